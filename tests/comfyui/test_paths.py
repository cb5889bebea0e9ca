"""Which files the loaders list, under which names, and what is said when one is missing."""

import os
import shutil

import folder_paths
import pytest
import torch
from support import golden_models as models
from support import published

from musev_pack.musev_core.errors import MuseVError
from musev_pack.musev_core.weights.published import sources_of
from musev_pack.nodes.host import paths
from musev_pack.nodes.host.paths import IP_ADAPTER, MOTION, REFERENCE_NET

SHARED = "diffusers/TMElyralab/MuseV"
UNET = "motion/musev_referencenet/unet/diffusion_pytorch_model.bin"
NET = "motion/musev_referencenet/referencenet/diffusion_pytorch_model.bin"
PROJECTION = "motion/musev_referencenet/ip_adapter_image_proj.bin"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's model folders, empty."""
    root = tmp_path / "models"
    table = {"diffusers": ([str(root / "diffusers")], ["folder"])}
    monkeypatch.setattr(folder_paths, "models_dir", str(root))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", table)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return root


@pytest.fixture
def disk(folders):
    paths.register()
    return folders


def adapter(form: str, width: int = 768) -> dict[str, torch.Tensor]:
    """An IP-Adapter as far as its kind can be told from it."""
    names = {
        "plain": {"image_proj.proj.weight": (4 * width, 1024), "image_proj.norm.weight": (width,)},
        "faceid-plus": {"image_proj.perceiver_resampler.latents": (1, 4, width)},
    }[form]
    names["ip_adapter.1.to_k_ip.weight"] = (320, width)
    return {name: torch.zeros(shape) for name, shape in names.items()}


# Folders


def test_the_folders_are_those_of_our_own_and_those_of_other_packs_for_musev(disk):
    assert folder_paths.get_folder_paths("musev") == [
        str(disk / "musev"),
        str(disk / SHARED),
        str(disk / "diffusers" / "MuseV"),
    ]
    assert folder_paths.get_folder_paths("ipadapter") == [str(disk / "ipadapter")]


def test_paths_and_suffixes_that_were_there_stay(folders):
    folder_paths.add_model_folder_path("musev", "/elsewhere/checkpoints")  # as extra_model_paths.yaml does
    folder_paths.add_model_folder_path("diffusers", "/elsewhere/diffusers")
    folder_paths.folder_names_and_paths["ipadapter"] = (["/elsewhere/ipadapter"], {".sft"})
    paths.register()
    known, suffixes = folder_paths.folder_names_and_paths["musev"]
    assert known[:2] == ["/elsewhere/checkpoints", str(folders / "musev")]
    assert "/elsewhere/diffusers/TMElyralab/MuseV" in [p.replace(os.sep, "/") for p in known]
    assert suffixes >= {".bin", ".safetensors"} and ".json" not in suffixes
    known, suffixes = folder_paths.folder_names_and_paths["ipadapter"]
    assert known == ["/elsewhere/ipadapter"] and suffixes >= {".sft", ".bin"}


def test_registering_twice_changes_nothing(disk):
    before = {key: (list(known), set(suffixes)) for key, (known, suffixes) in _table()}
    paths.register()
    assert {key: (list(known), set(suffixes)) for key, (known, suffixes) in _table()} == before


def test_the_set_of_suffixes_that_comfyui_shares_between_its_folders_is_not_touched(folders):
    before = set(folder_paths.supported_pt_extensions)
    folder_paths.folder_names_and_paths["ipadapter"] = ([], folder_paths.supported_pt_extensions)
    paths.register()
    assert folder_paths.supported_pt_extensions == before


def _table():
    return folder_paths.folder_names_and_paths.items()


# The list


@pytest.mark.parametrize("where", ["musev", SHARED, "diffusers/MuseV"])
def test_the_published_tree_is_listed_under_one_name_wherever_it_lies(disk, where):
    published.write_musev(disk / where / "motion")
    assert paths.options(MOTION) == [UNET]
    assert paths.options(REFERENCE_NET) == [NET]
    assert paths.options(IP_ADAPTER) == [PROJECTION]
    assert paths.find(MOTION, UNET) == os.path.join(str(disk / where), UNET)


def test_the_other_networks_of_the_tree_are_not_listed(disk):
    published.write_base(disk / SHARED / "t2i/sd1.5/majicmixRealv6Fp16")
    published.write_image_encoder(disk / SHARED / "IP-Adapter/models/image_encoder")
    published.write_controlnet(disk / "musev" / "some_controlnet")
    for kind in (MOTION, REFERENCE_NET, IP_ADAPTER):
        (only,) = paths.options(kind)
        assert only.startswith("nothing found")


def test_single_files_are_recognised_by_their_tensors(disk):
    made = published.write_musev(disk.parent / "made", suffix=".safetensors", motion_only=True)
    (disk / "musev").mkdir(parents=True)
    for name, part in (("a", "unet"), ("b", "referencenet")):
        shutil.copy(made / part / "diffusion_pytorch_model.safetensors", disk / "musev" / f"{name}.safetensors")
    shutil.copy(made / "ip_adapter_image_proj.safetensors", disk / "musev" / "c.safetensors")
    assert [paths.options(kind) for kind in (MOTION, REFERENCE_NET, IP_ADAPTER)] == [
        ["a.safetensors"],
        ["b.safetensors"],
        ["c.safetensors"],
    ]


def test_ip_adapters_are_listed_if_musev_can_use_them(disk):
    published.save(adapter("plain"), disk / "ipadapter" / "sd15" / "ip-adapter_sd15.safetensors")
    published.save(adapter("plain"), disk / SHARED / "IP-Adapter" / "models" / "ip-adapter_sd15.bin")
    published.save(adapter("plain", 2048), disk / "ipadapter" / "ip-adapter_sdxl.safetensors")
    published.save(adapter("faceid-plus"), disk / "ipadapter" / "ip-adapter-faceid-plus_sd15.bin")
    assert paths.options(IP_ADAPTER) == ["IP-Adapter/models/ip-adapter_sd15.bin", "sd15/ip-adapter_sd15.safetensors"]
    assert paths.find(IP_ADAPTER, "sd15/ip-adapter_sd15.safetensors").startswith(str(disk / "ipadapter"))


def test_a_file_is_read_again_only_after_it_changed(disk):
    path = published.save(adapter("plain"), disk / "ipadapter" / "x.safetensors")
    assert paths.options(IP_ADAPTER) == ["x.safetensors"]
    before = path.stat()
    published.save(adapter("plain", 2048), path)  # for SDXL
    os.truncate(path, before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths.options(IP_ADAPTER) == ["x.safetensors"]
    published.save(adapter("plain", 2048), path)
    assert "nothing found" in paths.options(IP_ADAPTER)[0]


def test_published_names_are_believed_without_opening_the_files(disk):
    published.write_musev(disk / "musev" / "motion")
    published.write_base(disk / "musev" / "t2i" / "sd1.5" / "base")
    for file in disk.rglob("*"):
        if file.is_file():
            file.write_bytes(b"nothing that could be read")
    assert [paths.options(kind) for kind in (MOTION, REFERENCE_NET, IP_ADAPTER)] == [[UNET], [NET], [PROJECTION]]


def test_damaged_files_stay_in_the_list_so_that_loading_can_say_what_is_wrong(disk):
    (disk / "musev").mkdir(parents=True)
    (disk / "musev" / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\n", encoding="utf-8"
    )
    (disk / "musev" / "empty.bin").touch()
    (disk / "musev" / "dangling.bin").symlink_to(disk / "nowhere.bin")
    assert paths.options(MOTION) == ["empty.bin", "pointer.safetensors"]


def test_pickles_of_old_torch_versions_are_recognised(disk):
    (disk / "musev").mkdir(parents=True)
    reference_net = models.reference_net(published.SIZE, 0).state_dict()
    torch.save(reference_net, disk / "musev" / "old.pth", _use_new_zipfile_serialization=False)
    assert paths.options(REFERENCE_NET) == ["old.pth"] and "nothing found" in paths.options(MOTION)[0]


HOSTILE = {
    "nested.safetensors": b'{"a":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "infinite.safetensors": b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}',
    "flat.safetensors": b'{"text_model.embeddings.token_embedding.weight":'
    b'{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "list.safetensors": b"{}[1]",
    "long_name.bin": b"\x80\x02c" + b"a" * 10_000 + b"\n" + b"b" * 10_000 + b"\n.",
}


def test_hostile_files_do_not_take_the_loaders_out(disk):
    (disk / "musev").mkdir(parents=True)
    good = published.save(models.unet("musev", published.SIZE, 0).state_dict(), disk / "musev" / "good.safetensors")
    for name, content in HOSTILE.items():
        head = len(content).to_bytes(8, "little") if name.endswith(".safetensors") else b""
        (disk / "musev" / name).write_bytes(head + content + bytes(64))
    assert good.name in paths.options(MOTION)
    for kind in (MOTION, REFERENCE_NET, IP_ADAPTER):
        paths.options(kind)


def test_new_and_deleted_files_show_in_the_list(disk):
    folder = published.write_musev(disk / "musev" / "motion")
    assert paths.options(MOTION) == [UNET]
    published.write_musev(disk / "musev" / "motion", arch="musev")
    assert paths.options(MOTION) == ["motion/musev/unet/diffusion_pytorch_model.bin", UNET]
    shutil.rmtree(folder)
    assert paths.options(MOTION) == ["motion/musev/unet/diffusion_pytorch_model.bin"]


# The file behind a name


def test_names_from_windows_are_understood(disk):
    published.write_musev(disk / SHARED / "motion")
    assert paths.find(MOTION, UNET.replace("/", "\\")) == paths.find(MOTION, UNET)


def test_nothing_there_is_explained_with_folder_file_and_command(disk):
    (only,) = paths.options(MOTION)
    for name in (only, "", UNET):
        with pytest.raises(MuseVError) as error:
            paths.find(MOTION, name)
        for part in (UNET, str(disk / "musev"), "TMElyralab/MuseV", "models download musev_referencenet"):
            assert part in str(error.value)


@pytest.mark.parametrize("kind", [MOTION, REFERENCE_NET, IP_ADAPTER])
def test_the_command_in_the_explanation_fetches_the_file_into_a_listed_folder(disk, kind):
    (source,) = sources_of([kind.download])
    assert kind.example.startswith(source.path)
    folder = str(disk / source.comfyui.removesuffix(source.path))
    assert folder in folder_paths.get_folder_paths("musev")


def test_the_entry_of_an_empty_list_is_no_file_once_there_are_some(disk):
    (nothing,) = paths.options(MOTION)
    published.write_musev(disk / "musev" / "motion")
    with pytest.raises(MuseVError, match="Choose a file: motion/musev_referencenet/unet"):
        paths.find(MOTION, nothing)


def test_a_file_that_is_gone_is_named_with_what_is_there(disk):
    published.write_musev(disk / "musev" / "motion")
    with pytest.raises(MuseVError) as error:
        paths.find(MOTION, UNET.replace(".bin", ".safetensors"))
    assert "moved, deleted" in str(error.value) and f"Did you mean {UNET!r}?" in str(error.value)


@pytest.mark.parametrize("name", ["../secret.bin", "..\\secret.bin", "motion/../../secret.bin"])
def test_names_do_not_lead_out_of_the_folders(disk, name):
    published.write_musev(disk / "musev" / "motion")
    published.save(models.unet("musev", published.SIZE, 0).state_dict(), disk / "secret.bin")
    with pytest.raises(MuseVError, match="is not there"):
        paths.find(MOTION, name)
