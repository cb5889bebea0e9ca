"""Which files `musev generate` uses: what `musev models download --layout original` fetches is what it finds."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import pytest

from musev_core.cli.generate_options import add_arguments
from musev_core.cli.model_choice import ModelChoice
from musev_core.errors import MissingPackageError, MuseVError
from musev_core.pose.preprocessors import PREPROCESSORS
from musev_core.tasks.model_table import ModelEntry
from musev_core.weights.published import PUBLISHED, sources_of


def fetch(root: Path, *names: str) -> None:
    """Empty files where `musev models download` puts those of these names."""
    for source in sources_of(names):
        file = root / source.original / ("file.pt" if source.path.endswith("/") else "")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def choice(root: Path, *options: str) -> ModelChoice:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ModelChoice(parser.parse_args(["--checkpoints", str(root), *options]))


def published_controlnet(name: str) -> str:
    return next(x for x, p in PUBLISHED.items() if p.sources[0].repo == PREPROCESSORS[name].controlnet)


@pytest.mark.parametrize("name", [name for name in PREPROCESSORS if name != "face_detector"])
def test_controlnets_are_found_by_the_preprocessor_they_go_with(name, tmp_path):
    published = published_controlnet(name)
    with pytest.raises(MuseVError, match=f"download {published} --layout original .*or .*--controlnet {name}=PATH"):
        choice(tmp_path).controlnets([name])
    fetch(tmp_path, published)
    (found,) = choice(tmp_path).controlnets([name]).values()
    assert found == tmp_path / "controlnet" / PREPROCESSORS[name].controlnet.rpartition("/")[2] and found.is_dir()
    given = choice(tmp_path, "--controlnet", f"{name}=mine").controlnets([name])
    assert given == {name: Path("mine")}


def test_a_controlnet_that_is_not_published_has_to_be_given(tmp_path):
    for name in ("face_detector", "nonsense"):
        with pytest.raises(MuseVError, match=f"no ControlNet is published for '{name}'.*--controlnet {name}=PATH"):
            choice(tmp_path).controlnets([name])


@pytest.mark.parametrize(
    ("name", "option", "published"),
    [
        ("IPAdapter", "--ip_adapter_model_name", "ip_adapter"),
        ("IPAdapterPlus", "--ip_adapter_model_name", "ip_adapter_plus"),
        ("IPAdapterPlus-face", "--ip_adapter_model_name", "ip_adapter_plus_face"),
    ],
)
@pytest.mark.parametrize("place", ["IP-Adapter/models/{}.safetensors", "IP-Adapter/models/{}.bin", "IP-Adapter/{}.bin"])
def test_ip_adapters_are_found_by_name(name, option, published, place, tmp_path):
    fetch(tmp_path, "image_encoder")
    with pytest.raises(MuseVError, match=f"download {published} --layout original"):
        choice(tmp_path, option, name)
    file = tmp_path / place.format(published.replace("_", "-") + "_sd15")
    file.touch()
    chosen = choice(tmp_path, option, name)
    assert chosen.ip_adapter == file
    assert chosen.image_encoder == tmp_path / "IP-Adapter" / "models" / "image_encoder"


def test_an_ip_adapter_needs_its_image_encoder(tmp_path):
    fetch(tmp_path, "ip_adapter_plus")
    with pytest.raises(MuseVError, match="download image_encoder --layout original .*--image_encoder"):
        choice(tmp_path, "--ip_adapter_model_name", "IPAdapterPlus")


def test_lcm_brings_its_scheduler(tmp_path):
    fetch(tmp_path, "lcm")
    chosen = choice(tmp_path, "--lcm_model_name", "lcm")
    (lora,) = chosen.files(ModelEntry(name="b", path=Path("b"))).loras
    assert lora.path == tmp_path / "lcm" / "lcm-lora-sdv1-5" / "pytorch_lora_weights.safetensors"
    assert (
        chosen.scheduler == "lcm"
        and choice(tmp_path, "--lcm_model_name", "lcm", "--scheduler", "ddim").scheduler == "ddim"
    )
    for off in ((), ("--lcm_model_name", "None"), ("--lcm", "x", "--lcm_model_name", "None")):
        without = choice(tmp_path, *off)
        assert without.lcm is None and without.scheduler == "euler"


def test_faceid_is_found_with_its_face_models(tmp_path, monkeypatch):
    name = ("--ip_adapter_face_model_name", "IPAdapterFaceID")
    with pytest.raises(MuseVError, match="download faceid --layout original"):
        choice(tmp_path, *name)
    fetch(tmp_path, "faceid")
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(MissingPackageError, match="FaceID needs the package 'insightface"):
        choice(tmp_path, *name)
    for module in ("insightface", "insightface.app"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    chosen = choice(tmp_path, *name)
    assert chosen.face_adapter == tmp_path / "IP-Adapter" / "models" / "ip-adapter-faceid_sd15.bin"
    assert chosen.face_models is not None and (chosen.face_models / "models" / "buffalo_l").is_dir()


def test_vae_and_embeddings_are_used_where_they_are(tmp_path):
    assert (choice(tmp_path).vae, choice(tmp_path).embeddings) == (None, [])
    fetch(tmp_path, "vae")
    for name in ("badhandv4.pt", "EasyNegativeV2.safetensors", "notes.txt"):
        (tmp_path / "embedding").mkdir(exist_ok=True)
        (tmp_path / "embedding" / name).touch()
    chosen = choice(tmp_path)
    assert chosen.vae == tmp_path / "vae" / "sd-vae-ft-mse" and chosen.embedding_names() == {
        "badhandv4",
        "easynegativev2",
    }
    assert choice(tmp_path, "--vae", "None").vae is None and choice(tmp_path, "--vae", "mine").vae == Path("mine")
    # one of the same name that is given comes instead
    (tmp_path / "badhandv4.pt").touch()
    mine = choice(tmp_path, "--embeddings", str(tmp_path / "badhandv4.pt")).embeddings
    assert [x.relative_to(tmp_path).as_posix() for x in mine] == [
        "badhandv4.pt",
        "embedding/EasyNegativeV2.safetensors",
    ]


def test_the_folder_of_a_model_is_a_place_for_its_reference_net(tmp_path):
    (tmp_path / "model" / "referencenet").mkdir(parents=True)
    for place in ("model", "model/referencenet"):
        chosen = choice(tmp_path, "--referencenet_model_cfg_path", str(tmp_path / place))
        assert chosen.reference_net == tmp_path / "model" / "referencenet"


def test_what_is_in_no_default_place_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(MuseVError, match="motion is not there.*download musev_referencenet --layout .*--musev"):
        choice(tmp_path).entries()
    with pytest.raises(MuseVError, match="download musev --layout original"):
        choice(tmp_path, "--unet_model_name", "musev").entries()
    with pytest.raises(MuseVError, match="download musev_referencenet_pose --layout original"):
        choice(tmp_path, "--ip_adapter_model_name", "musev_referencenet_pose")
    (tmp_path / "motion").mkdir()
    with pytest.raises(MuseVError, match="sd1.5 is not there.*download base --layout original .*--base"):
        choice(tmp_path).entries()


def test_names_tell_networks_apart_but_not_where_they_lie(tmp_path):
    facts = []
    for place in ("a", "b"):
        fetch(tmp_path / place, "lcm")
        entry = ModelEntry(name="base", path=tmp_path / place / "base")
        for options in ((), ("--lcm_model_name", "lcm"), ("--lora", "x:0.5"), ("--referencenet_model_name", "None")):
            facts.append(choice(tmp_path / place, *options).facts(entry))
        facts.append(choice(tmp_path / place, "--dtype", "bfloat16").facts(entry))
        for net in ("one", "two"):
            facts.append(choice(tmp_path / place, "--controlnet", f"pose={place}/nets/{net}").facts(entry, ["pose"]))
    here, there = facts[:7], facts[7:]
    assert here == there and all(a != b for i, a in enumerate(here) for b in here[:i])
