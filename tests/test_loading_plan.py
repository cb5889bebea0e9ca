"""Loading: all files are recognised before any network is loaded, and no weight that is NaN gets into one."""

import shutil
from dataclasses import replace

import pytest
import torch
from support import golden_models as models
from support import published
from support.weight_readers import CONFIG

from musev_core.errors import CheckpointError, MuseVError
from musev_core.loading import LoraFile, ModelFiles, load_controlnet, load_pipeline, make_plan
from musev_core.weights.files import read_tensors
from musev_core.weights.keymaps import controlnet_ldm_to_diffusers, ip_attention_key_map
from musev_core.weights.layout import read_base


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    published.write_musev(root / "motion", suffix=".safetensors")
    published.write_base(root / "base")
    published.write_image_encoder(root / "image_encoder")
    published.write_controlnet(root / "controlnet")
    published.save({"emb_params": torch.ones(1, 32)}, root / "embeddings" / "word9.safetensors")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = {f"{key}.lora_down.weight": torch.ones(2, 32), f"{key}.lora_up.weight": torch.ones(32, 2)}
    published.save(lora, root / "lora.safetensors")
    adapter = {f"ip_adapter.{n}": torch.ones(shape) for n, shape in adapter_shapes().items()}
    adapter |= {f"image_proj.{k}": v for k, v in models.projection("plain", 0).state_dict().items()}
    published.save(adapter, root / "ip-adapter.safetensors")
    return root


def adapter_shapes():
    unet = models.unet("musev_referencenet", published.SIZE, 0).state_dict()
    return {n: unet[name].shape for n, name in ip_attention_key_map(CONFIG).items()}


@pytest.fixture
def disk(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "disk")


def files(disk, **changes) -> ModelFiles:
    given = ModelFiles(
        musev=disk / "motion",
        base=disk / "base",
        image_encoder=disk / "image_encoder",
        loras=[LoraFile(disk / "lora.safetensors")],
        embeddings=[disk / "embeddings"],
    )
    return replace(given, **changes)


MUSEV = "motion/musev_referencenet"
FILES = {
    "UNet": f"{MUSEV}/unet/diffusion_pytorch_model.safetensors",
    "ReferenceNet": f"{MUSEV}/referencenet/diffusion_pytorch_model.safetensors",
    "projection": f"{MUSEV}/ip_adapter_image_proj.safetensors",
    "base UNet": "base/unet/diffusion_pytorch_model.safetensors",
    "VAE": "base/vae/diffusion_pytorch_model.safetensors",
    "text encoder": "base/text_encoder/model.safetensors",
    "image encoder": "image_encoder/model.safetensors",
    "LoRA": "lora.safetensors",
    "embedding": "embeddings/word9.safetensors",
    "IP-Adapter": "ip-adapter.safetensors",
}


def changed(path, change):
    """The file with its last tensor changed, or left out where `change` gives None; the tensor's name."""
    tensors = {name: x.clone() for name, x in read_tensors(path).items()}
    name = ([n for n in tensors if "temp_convs" in n] or list(tensors))[-1]  # of MuseV's file a motion layer is used
    x = change(tensors.pop(name))
    published.save(tensors | ({} if x is None else {name: x}), path)
    return name


def load(disk, which, said):
    adapter = disk / FILES["IP-Adapter"] if which == "IP-Adapter" else None
    return load_pipeline(files(disk, ip_adapter=adapter), device="cpu", progress=said.append)


@pytest.mark.parametrize("which", FILES)
@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("-inf"), marks=pytest.mark.slow)])
def test_not_finite_weights_are_found_at_load_and_named(disk, which, value):
    path = disk / FILES[which]
    name = changed(path, lambda x: x.masked_fill(torch.arange(x.numel()).view(x.shape) == x.numel() - 1, value))
    with pytest.raises(CheckpointError, match="NaN or infinite") as caught:
        load(disk, which, [])
    assert str(path) in str(caught.value)
    last = ".".join(name.split(".")[-2:])  # the rest is what the network calls it
    assert which == "embedding" or last in str(caught.value)


def test_not_finite_weights_of_a_controlnet(disk):
    path = disk / "controlnet" / "diffusion_pytorch_model.safetensors"
    name = changed(path, lambda x: x * float("nan"))
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in 1 of .*: {name}"):
        load_controlnet(disk / "controlnet")


def test_weights_too_large_for_half_precision_are_named(disk):
    name = changed(disk / FILES["base UNet"], lambda x: x + 1e6)
    with pytest.raises(CheckpointError, match=rf"too large for float16 in {name}.*bfloat16 or float32"):
        load_pipeline(files(disk), device="cpu", dtype=torch.float16)
    load_pipeline(files(disk), device="cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("which", FILES)
def test_a_file_that_lacks_a_tensor_is_found_before_anything_is_loaded(disk, which):
    said = []
    changed(disk / FILES[which], lambda x: None)
    with pytest.raises(MuseVError):
        load(disk, which, said)
    assert said == []


@pytest.mark.parametrize(
    ("gone", "changes", "message"),
    [
        (FILES["projection"], {}, "no ip_adapter_image_proj file"),
        ("base/vae", {}, "holds no VAE.*--vae"),
        ("base/text_encoder", {}, "holds no CLIP text encoder.*--text_encoder"),
        ("base/unet", {}, "holds no Stable Diffusion UNet"),
        ("base/tokenizer/vocab.json", {"tokenizer": "base/tokenizer"}, "no vocab.json"),
        ("image_encoder/config.json", {}, "no config.json"),
        (FILES["embedding"], {}, "embeddings holds no embeddings: expected files ending in .safetensors"),
        ("embeddings", {}, "embeddings do not exist|do not exist"),
        ("ip-adapter.safetensors", {"face_adapter": "ip-adapter.safetensors"}, "does not exist"),
        ("controlnet", {"face_adapter": "ip-adapter.safetensors"}, "FaceID needs face_models"),
        (
            "controlnet",
            {"face_adapter": "ip-adapter.safetensors", "face_models": "embeddings"},
            "face models were expected in",
        ),
        ("lora.safetensors", {}, "lora.safetensors does not exist"),
    ],
)
def test_what_is_missing_is_found_before_anything_is_loaded(disk, gone, changes, message):
    said = []
    shutil.rmtree(disk / gone) if (disk / gone).is_dir() else (disk / gone).unlink()
    changes = {name: disk / value for name, value in changes.items()}
    with pytest.raises(MuseVError, match=message):
        load_pipeline(files(disk, **changes), device="cpu", progress=said.append)
    assert said == []


def test_networks_that_do_not_go_together_are_found_before_anything_is_loaded(disk):
    published.save({"emb_params": torch.ones(1, 64)}, disk / "wide.safetensors")
    projection = {f"image_proj.{k}": v for k, v in models.projection("plain", 0).state_dict().items()}
    projection["image_proj.proj.weight"] = torch.ones(128, 25)
    published.save(projection, disk / "other.safetensors")
    for changes, message in (
        ({"embeddings": [disk / "wide.safetensors"]}, "64 numbers a token, the text encoder 32"),
        ({"image_projection": disk / "other.safetensors"}, "image encoder gives 24 numbers, but .* expects 25"),
    ):
        with pytest.raises(CheckpointError, match=message):
            make_plan(files(disk, **changes))


def test_another_text_encoder_takes_the_base_models_place(disk):
    (disk / "other").mkdir()
    shutil.move(disk / "base" / "text_encoder", disk / "other" / "text_encoder")
    loaded = load_pipeline(files(disk, text_encoder=disk / "other"), device="cpu")
    assert loaded.text_encoder.config.hidden_size == 32


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("vae", '{"norm_num_groups": 0}', "norm_num_groups must be a whole number from 1"),
        ("vae", '{"norm_num_groups": 3}', "8 channels wide, which cannot be divided into 3 norm groups"),
        ("vae", '{"scaling_factor": NaN}', "scaling_factor must be a number above 0"),
        ("vae", "[]", "must hold names and values"),
        ("text_encoder", '{"num_attention_heads": "4"}', "num_attention_heads must be a whole number"),
        ("text_encoder", '{"hidden_act": "exec"}', "hidden_act must be one of quick_gelu, gelu"),
        ("unet", "{" * 9000, "is no readable JSON"),
    ],
)
def test_a_config_that_makes_no_sense_is_named(disk, part, config, message):
    path = (disk / MUSEV / "unet" if part == "unet" else disk / "base" / part) / "config.json"
    path.write_text(config, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message) as caught:
        make_plan(files(disk))
    assert str(path) in str(caught.value)


def test_a_single_file_says_which_option_gives_what_it_lacks(tmp_path):
    ldm = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}
    path = published.save(ldm, tmp_path / "unet_only.safetensors")
    for part, option in (("vae", "--vae"), ("text_encoder", "--text_encoder")):
        with pytest.raises(CheckpointError, match=f"no tensor is named .*{option}"):
            read_base(path, part)


def test_a_controlnet_with_ldm_names_has_a_place_for_every_tensor():
    from diffusers import ControlNetModel

    with torch.device("meta"):
        expected = set(ControlNetModel(cross_attention_dim=768, attention_head_dim=8).state_dict())
    assert set(controlnet_ldm_to_diffusers().values()) == expected
