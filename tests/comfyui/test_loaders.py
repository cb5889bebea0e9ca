"""The loader nodes on small files in the published layout, through ComfyUI's own validation."""

import asyncio

import execution
import folder_paths
import nodes as comfy_nodes
import pytest
import torch
from support import published

from musev_pack.musev_core.errors import MuseVError
from musev_pack.nodes.host import paths
from musev_pack.nodes.host.networks import HostedIPAdapter, HostedReferenceNet, Motion
from musev_pack.nodes.loaders import NODES, LoadIPAdapter, LoadMotion, LoadReferenceNet

FOLDER = "motion/musev_referencenet"
UNET = f"{FOLDER}/unet/diffusion_pytorch_model.bin"
NET = f"{FOLDER}/referencenet/diffusion_pytorch_model.bin"
PROJECTION = f"{FOLDER}/ip_adapter_image_proj.bin"
LOADERS = [(LoadMotion, UNET), (LoadReferenceNet, NET), (LoadIPAdapter, PROJECTION)]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty folder of models."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {"diffusers": ([str(tmp_path / "diffusers")], [])})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    paths.register()
    return tmp_path


@pytest.fixture
def disk(models):
    """With MuseV where other packs have it."""
    published.write_musev(models / "diffusers/TMElyralab/MuseV/motion")
    return models


def errors_of(node, **values) -> list[str]:
    """What ComfyUI finds wrong with a workflow of this node, before anything runs."""
    prompt = {"1": {"class_type": node.define_schema().node_id, "inputs": values}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, node.define_schema().node_id, node)
        node.GET_SCHEMA()
        _, errors, _ = asyncio.run(execution.validate_inputs("0", prompt, "1", {}))
    return [error["details"] for error in errors]


def name_input(node) -> str:
    return node.define_schema().inputs[0].id


def test_the_loaders_give_what_the_files_hold(disk):
    (motion,) = LoadMotion.execute(UNET).args
    (net,) = LoadReferenceNet.execute(NET).args
    (adapter,) = LoadIPAdapter.execute(PROJECTION).args
    assert isinstance(motion, Motion) and motion.config.reference_fusion
    assert isinstance(net, HostedReferenceNet) and isinstance(adapter, HostedIPAdapter)
    assert adapter.config.kind == "plain"


@pytest.mark.parametrize("name, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_is_that_of_the_weights(disk, name, dtype):
    file = disk / "ipadapter" / "ip-adapter_sd15.safetensors"
    projection = {"proj.weight": (3072, 1024), "proj.bias": (3072,), "norm.weight": (768,), "norm.bias": (768,)}
    tensors = {f"image_proj.{key}": torch.ones(shape) for key, shape in projection.items()}
    tensors |= {f"ip_adapter.1.to_{key}_ip.weight": torch.ones(320, 768) for key in "kv"}
    published.save(tensors, file)
    (motion,) = LoadMotion.execute(UNET, name).args
    (net,) = LoadReferenceNet.execute(NET, name).args
    (adapter,) = LoadIPAdapter.execute(file.name, name).args
    for network in (motion.tree, net.net, *adapter.layers.values()):
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}


@pytest.mark.parametrize("node, name", LOADERS)
def test_the_list_offers_the_file_and_comfyui_accepts_it(disk, node, name):
    assert node.define_schema().inputs[0].options == [name]
    for spelling in (name, name.replace("/", "\\")):
        assert errors_of(node, **{name_input(node): spelling, "dtype": "auto"}) == []


@pytest.mark.parametrize("node, name", LOADERS)
def test_a_file_that_is_missing_is_explained_before_anything_runs(models, node, name):
    (error,) = errors_of(node, **{name_input(node): name, "dtype": "auto"})
    assert name in error and "models download" in error


@pytest.mark.parametrize("node, name", LOADERS)
def test_without_any_file_the_node_still_shows_and_says_what_to_do(models, node, name):
    (only,) = node.define_schema().inputs[0].options
    assert name in only and "models/musev" in only
    with pytest.raises(MuseVError, match="models download"):
        node.execute(only)


def test_a_file_deleted_after_the_list_was_made_is_named(disk):
    (listed,) = LoadMotion.define_schema().inputs[0].options
    (disk / "diffusers/TMElyralab/MuseV" / UNET).unlink()
    with pytest.raises(MuseVError, match="motion"):
        LoadMotion.execute(listed)


def test_other_files_at_a_published_place_are_refused_by_what_they_are(disk):
    unet = disk / "diffusers/TMElyralab/MuseV" / UNET
    unet.write_bytes((disk / "diffusers/TMElyralab/MuseV" / NET).read_bytes())
    with pytest.raises(MuseVError, match="ReferenceNet"):
        LoadMotion.execute(UNET)


def test_every_input_and_output_has_a_tooltip():
    for node in NODES:
        schema = node.define_schema()
        assert schema.description
        assert all(socket.tooltip for socket in (*schema.inputs, *schema.outputs))
