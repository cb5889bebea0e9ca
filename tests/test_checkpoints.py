"""Weight files: reading, what is wrong with a broken one, recognition, names, folders."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from musev_core.config import IMAGE_PROJECTIONS, MUSEV, MUSEV_REFERENCENET, SD15, UNetConfig
from musev_core.errors import CheckpointError, MuseVError
from musev_core.weights import keymaps
from musev_core.weights.architecture import image_projection_config, unet_config_from_shapes
from musev_core.weights.config_json import ConfigJson
from musev_core.weights.files import check_finite, read_shapes, read_tensors, select
from musev_core.weights.kinds import Family, describe, recognise
from musev_core.weights.layout import find_musev_files, read_base

MANIFESTS = Path(__file__).parent / "manifests"
TINY = json.loads((MANIFESTS / "tiny.json").read_text(encoding="utf-8"))
TINY_CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64, 64), layers_per_block=1, num_heads=4, norm_groups=8, context_dim=32, temporal=False
)
TINY_JSON = ConfigJson({"attention_head_dim": 4, "norm_num_groups": 8})


def manifest(name):
    data = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    return data["state_dict"]


def zeros(shapes, dtype=torch.float32):
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def numbered(shapes):
    """Tensors that can be told apart: tensor i is filled with i."""
    return {name: torch.full(tuple(shape), float(i)) for i, (name, shape) in enumerate(shapes.items())}


def saved(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def refused(path, pattern):
    """Both readers refuse the file with the same message."""
    for read in (read_tensors, read_shapes):
        with pytest.raises(CheckpointError, match=pattern):
            read(path)


# Reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".pt", ".ckpt"])
def test_every_format_and_type_comes_back_as_it_was_written(tmp_path, suffix, dtype):
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3).to(dtype), "b": torch.zeros(4, dtype=dtype)}
    path = saved(tmp_path / f"model{suffix}", tensors)
    read = read_tensors(path)
    assert {n: t.dtype for n, t in read.items()} == {"a.weight": dtype, "b": dtype}
    assert torch.equal(read["a.weight"].float(), tensors["a.weight"].float())
    assert read_shapes(path) == {"a.weight": (2, 3), "b": (4,)}


def test_files_of_old_torch_versions_are_read(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.ckpt")["a"], torch.ones(3))
    assert read_shapes(tmp_path / "old.ckpt") == {"a": (3,)}


def test_nested_dictionaries_become_dotted_names(tmp_path):
    nested = {
        "state_dict": {"x": torch.ones(1)},
        "image_proj": {"proj.weight": torch.ones(2)},
        "ip_adapter": {"1": {"to_k_ip": torch.ones(3)}},
        "string_to_param": {"*": torch.nn.Parameter(torch.ones(4))},
        "global_step": 7,
        "name": "no tensor",
    }
    expected = {"x": (1,), "image_proj.proj.weight": (2,), "ip_adapter.1.to_k_ip": (3,), "string_to_param.*": (4,)}
    path = saved(tmp_path / "nested.pt", nested)
    assert read_shapes(path) == expected
    assert {n: tuple(t.shape) for n, t in read_tensors(path).items()} == expected
    assert not read_tensors(path)["string_to_param.*"].requires_grad


def test_the_content_decides_not_the_suffix(tmp_path):
    saved(tmp_path / "a.safetensors", {"x": torch.ones(2)}).rename(tmp_path / "a.bin")
    saved(tmp_path / "b.bin", {"x": torch.ones(2)}).rename(tmp_path / "b.safetensors")
    assert read_shapes(tmp_path / "a.bin") == read_shapes(tmp_path / "b.safetensors") == {"x": (2,)}
    assert torch.equal(read_tensors(tmp_path / "a.bin")["x"], read_tensors(tmp_path / "b.safetensors")["x"])


@pytest.mark.parametrize("length", [int.from_bytes(b"PK", "little"), 0x80])
def test_a_header_length_that_looks_like_another_format(tmp_path, length):
    header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"\7")
    assert read_shapes(tmp_path / "a.safetensors") == {"x": (1,)}
    assert read_tensors(tmp_path / "a.safetensors")["x"].item() == 7


def test_missing_file_names_its_neighbours(tmp_path):
    saved(tmp_path / "musev_unet.bin", {"x": torch.ones(1)})
    refused(tmp_path / "musev_unet.safetensors", r"does not exist\. In that folder: musev_unet\.bin")
    refused(tmp_path / "no" / "x.bin", r"does not exist\. The folder .*no does not exist either")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty" / "x.bin", "That folder holds no weight files")


def test_folder_in_place_of_a_file(tmp_path):
    refused(tmp_path, "is a folder, a weight file was expected. It holds no weight files")
    saved(tmp_path / "x.bin", {"x": torch.ones(1)})
    refused(tmp_path, r"is a folder.*Choose one of: x\.bin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.bin",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("a.safetensors", b"\n<!DOCTYPE html><html></html>", "is a web page"),
        ("a.bin", b"<html>login</html>", "is a web page"),
        ("a.bin", b"", r"is empty \(0 bytes\)"),
        ("a.gguf", b"GGUF", r"ends in '\.gguf', expected one of \.safetensors, \.bin"),
        ("a.bin", b"hello, no weights", "neither a safetensors nor a torch file.*b'hello, n'"),
        ("a.safetensors", b"\x05", "damaged safetensors file: its header should take 5 bytes"),
        ("a.safetensors", (50).to_bytes(8, "little") + b"{", "header should take 50 bytes, the whole file has 9"),
        ("a.safetensors", (5).to_bytes(8, "little") + b"{oh!}", "damaged safetensors file: its header"),
        ("a.safetensors", (9).to_bytes(8, "little") + b'{"x":"y"}', "damaged safetensors file: its header"),
        (
            "a.safetensors",
            (50).to_bytes(8, "little") + b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[]}}',
            "damaged safetensors file: 'x' has the offsets",
        ),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}", "holds no tensors"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_safetensors_of_an_unknown_number_type(tmp_path):
    header = b'{"x":{"dtype":"Z9","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    refused(tmp_path / "a.safetensors", "'x' is of the number type 'Z9', which is unknown here")


def test_truncated_safetensors_says_how_much_is_there(tmp_path):
    path = saved(tmp_path / "a.safetensors", {"x": torch.ones(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    refused(path, rf"truncated or damaged .*: its header says {len(whole)} bytes, the file has 1000")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_truncated_torch_file(tmp_path, new_format, kept):
    path = tmp_path / "a.bin"
    torch.save({"x": torch.ones(3000)}, path, _use_new_zipfile_serialization=new_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(path, "is a truncated or damaged torch file.*Download it again")


class RunsCode:
    """Pickles to a call of `print` on loading."""

    def __reduce__(self):
        return print, ("loaded",)


@pytest.mark.parametrize(
    ("content", "named"), [({"a": Namespace(x=1)}, r"argparse\.Namespace"), ({"a": RunsCode()}, "print")]
)
@pytest.mark.parametrize("new_format", [True, False])
def test_files_that_could_run_code_are_refused_by_name(tmp_path, capsys, content, named, new_format):
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=new_format)
    refused(tmp_path / "evil.ckpt", rf"was not loaded: it refers to '{named}'.*could run code.*\.safetensors")
    assert capsys.readouterr().out == ""


def test_no_tensors_inside(tmp_path):
    refused(saved(tmp_path / "a.pt", {"step": 3}), "holds no tensors")


# Checking


def test_select_returns_the_expected_tensors_in_order():
    tensors = numbered({"b": [2], "extra.x": [1], "a": [3]})
    chosen = select(tensors, {"a": [3], "b": [2]}, source="f", tolerate=("extra.*",))
    assert list(chosen) == ["a", "b"]
    assert chosen["a"] is tensors["a"]


def test_select_names_everything_that_is_wrong():
    expected = {f"layer.{i}": [2] for i in range(12)} | {"wide": [4, 4]}
    with pytest.raises(CheckpointError) as caught:
        select(zeros({"layer.0": [2], "wide": [4, 5], "odd": [1]}), expected, source="file.bin")
    message = str(caught.value)
    assert "file.bin does not fit the network, which has 13 tensors" in message
    assert "11 missing: layer.1, layer.2" in message and "layer.8 and 3 more" in message
    assert "1 of another shape: wide (expected [4, 4], found [4, 5])" in message
    assert "1 unexpected: odd" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn])
def test_nan_is_found_and_named(dtype):
    good = {"a": torch.ones(3).to(dtype), "count": torch.ones(1, dtype=torch.int64)}
    check_finite(good, "f")
    bad = good | {"b.weight": torch.tensor([1.0, float("nan")]).to(dtype)}
    with pytest.raises(CheckpointError, match=r"f holds NaN or infinite values in 1 of 3 tensors: b\.weight"):
        check_finite(bad, "f")


def test_infinity_is_found():
    with pytest.raises(CheckpointError, match="infinite"):
        check_finite({"a": torch.tensor([float("inf")])}, "f")


# Recognition


@pytest.mark.parametrize(
    ("shapes", "family", "description"),
    [
        ("musev.unet", Family.MUSEV_UNET, "a musev UNet (complete, with its Stable Diffusion part)"),
        ("musev_referencenet.unet", Family.MUSEV_REFERENCENET_UNET, "a musev_referencenet UNet (complete, with its"),
        ("musev_referencenet.unet_with_faceid", Family.MUSEV_REFERENCENET_UNET, "with FaceID layers"),
        ("musev_referencenet.referencenet", Family.REFERENCENET, "a ReferenceNet (for SD1.5)"),
        ("sd15_unet", Family.UNET, "a Stable Diffusion UNet (for SD1.5)"),
        ("sd15_controlnet", Family.CONTROLNET, "a ControlNet (for SD1.5)"),
        ("ip_adapter_image_proj", Family.IMAGE_PROJECTION, "a MuseV image projection (for SD1.5)"),
        ("ip_adapter_plus_proj", Family.IMAGE_PROJECTION, "an image projection (plus, for SD1.5)"),
        ("ip_adapter_faceid_proj", Family.IMAGE_PROJECTION, "an image projection (faceid, for SD1.5)"),
    ],
)
def test_published_files_are_recognised(shapes, family, description):
    kind = recognise(manifest(shapes))
    assert kind.family is family
    assert description in describe(kind)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("unet/musev/tiny", Family.MUSEV_UNET),
        ("unet/musev_referencenet/tiny", Family.MUSEV_REFERENCENET_UNET),
        ("reference_net/tiny", Family.REFERENCENET),
        ("controlnet/tiny", Family.CONTROLNET),
        ("unet2d/tiny", Family.UNET),
        ("vae", Family.VAE),
        ("text_encoder", Family.CLIP_TEXT),
        ("clip_vision", Family.CLIP_VISION),
    ],
)
def test_small_networks_are_recognised_too(name, family):
    assert recognise(TINY[name]).family is family


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
LDM_ATTENTION = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
FACE_PROJ = {"image_proj.proj.0.weight": [1024, 512], "image_proj.norm.weight": [768]}


@pytest.mark.parametrize(
    ("shapes", "family", "form", "base"),
    [
        ({f"model.diffusion_model.{LDM_ATTENTION}": [320, 768]}, Family.SINGLE_FILE, "LDM", "SD1.5"),
        ({f"model.diffusion_model.{LDM_ATTENTION}": [640, 2048]}, Family.SINGLE_FILE, "LDM", "SDXL"),
        ({f"model.diffusion_model.{LDM_ATTENTION}": [320, 1024]}, Family.SINGLE_FILE, "LDM", "SD2"),
        ({"input_blocks.0.0.weight": [320, 4, 3, 3], LDM_ATTENTION: [640, 2048]}, Family.UNET, "LDM", "SDXL"),
        ({f"control_model.{LDM_ATTENTION}": [320, 768]}, Family.CONTROLNET, "LDM", "SD1.5"),
        (FACE_PROJ | {"ip_adapter.1.to_k_ip.weight": [320, 768]}, Family.IP_ADAPTER, "faceid", "SD1.5"),
        (
            FACE_PROJ | {"ip_adapter.0.to_q_lora.down.weight": [128, 320], "image_proj.perceiver_resampler.x": [1]},
            *(Family.IP_ADAPTER, "faceid-plus", "SD1.5"),
        ),
        (
            {"image_proj.proj.0.weight": [1280, 1280], "image_proj.proj.3.weight": [768], "ip_adapter.1.x": [1]},
            *(Family.IP_ADAPTER, "full-face", "SD1.5"),
        ),
        (
            {"image_proj.latents": [1, 16, 768], "image_proj.proj_out.weight": [768, 768], "ip_adapter.1.x": [1]},
            *(Family.IP_ADAPTER, "plus", "SD1.5"),
        ),
        (
            {"image_proj.proj.weight": [8192, 1280], "image_proj.norm.weight": [2048], "ip_adapter.1.x": [1]},
            *(Family.IP_ADAPTER, "plain", "SDXL"),
        ),
        ({"lora_unet_down_blocks_0_attn2_to_k.lora_down.weight": [4, 768]}, Family.LORA, "kohya", "SD1.5"),
        ({"lora_unet_input_blocks_4_1_attn2_to_k.lora_down.weight": [4, 2048]}, Family.LORA, "kohya", "SDXL"),
        ({f"unet.{ATTENTION}.lora_A.weight": [4, 768]}, Family.LORA, "diffusers", "SD1.5"),
        ({"x_attn2.processor.to_k_lora.down.weight": [4, 1024]}, Family.LORA, "diffusers", "SD2"),
        ({"lora_te2_text_model_x.lora_down.weight": [4, 1280]}, Family.LORA, "kohya", "SDXL"),
        ({"lora_unet_x.hada_w1_a": [4, 4]}, Family.LORA, "LoHa", None),
        ({"emb_params": [8, 768]}, Family.TEXTUAL_INVERSION, "", "SD1.5"),
        ({"string_to_token.*": [], "string_to_param.*": [2, 1024]}, Family.TEXTUAL_INVERSION, "", "SD2"),
        ({"clip_l": [2, 768], "clip_g": [2, 1280]}, Family.TEXTUAL_INVERSION, "", "SDXL"),
        ({"down_blocks.0.motion_modules.0.x": [1]}, Family.ANIMATEDIFF, "", None),
        ({"down_blocks.0.temp_convs.0.conv1.0.weight": [320]}, Family.OTHER_VIDEO_UNET, "", None),
        ({"first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3]}, Family.UNKNOWN, "", None),
        ({"weight": [3, 3]}, Family.UNKNOWN, "", None),
    ],
)
def test_other_files_are_told_apart(shapes, family, form, base):
    kind = recognise(shapes)
    assert (kind.family, kind.form, kind.base) == (family, form, base)
    assert describe(kind)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"weight": [3, 3]}, "of an unknown kind"),
        ({"input_blocks.0.0.weight": [1], LDM_ATTENTION: [1, 2048]}, "a Stable Diffusion UNet (LDM names, for SDXL)"),
        ({"encoder.conv_in.weight": [1], "decoder.conv_in.weight": [512, 16, 3, 3]}, "a VAE (16 latent channels)"),
        ({"embeddings.token_embedding.weight": [49408, 768]}, "a CLIP text encoder (width 768)"),
        ({"lora_unet_attn2_to_k.lora_down.weight": [4, 2048]}, "a LoRA (kohya, for SDXL)"),
    ],
)
def test_descriptions_end_a_sentence(shapes, text):
    assert describe(recognise(shapes)) == text


# Architecture from shapes


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        ("musev.unet", MUSEV),
        ("musev_referencenet.unet", MUSEV_REFERENCENET),
        ("musev_referencenet_pose.unet", MUSEV_REFERENCENET),
        ("musev_referencenet.unet_with_faceid", replace(MUSEV_REFERENCENET, face_prompt=True)),
        ("musev_referencenet.referencenet", SD15),
        ("sd15_unet", SD15),
    ],
)
def test_the_released_configurations_follow_from_the_tensors(shapes, config):
    assert unet_config_from_shapes(manifest(shapes)) == config
    if config.temporal:
        assert unet_config_from_shapes(keymaps.motion_tensors(manifest(shapes))) == config


def test_heads_and_groups_come_from_the_config_file():
    assert unet_config_from_shapes(TINY["unet2d/tiny"], TINY_JSON) == TINY_CONFIG
    repeated = ConfigJson({"attention_head_dim": [4, 4, 4, 4], "norm_num_groups": 8})
    assert unet_config_from_shapes(TINY["unet2d/tiny"], repeated).num_heads == 4
    with pytest.raises(CheckpointError, match=r"one number for all blocks.* it is \[5, 10\]"):
        unet_config_from_shapes(TINY["unet2d/tiny"], ConfigJson({"attention_head_dim": [5, 10]}))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ("sd15_controlnet", "UNet with diffusers names was expected, but the file is a ControlNet"),
        ("ip_adapter_image_proj", "but the file is a MuseV image projection"),
    ],
)
def test_no_configuration_for_what_is_no_unet(shapes, message):
    with pytest.raises(CheckpointError, match=message):
        unet_config_from_shapes(manifest(shapes))


def test_an_sdxl_unet_is_called_by_its_name():
    shapes = {n: [s[0], 2048] if n.endswith("attn2.to_k.weight") else s for n, s in manifest("sd15_unet").items()}
    with pytest.raises(CheckpointError, match="a model for SDXL. MuseV needs SD1.5"):
        unet_config_from_shapes(shapes)


@pytest.mark.parametrize("kind", ["plain", "plus", "faceid"])
@pytest.mark.parametrize("prefix", ["", "image_proj."])
def test_image_projections(kind, prefix):
    name = {"plain": "ip_adapter_image_proj", "plus": "ip_adapter_plus_proj", "faceid": "ip_adapter_faceid_proj"}[kind]
    shapes = {prefix + n: shape for n, shape in manifest(name).items()}
    assert image_projection_config(shapes) == IMAGE_PROJECTIONS[kind]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (FACE_PROJ | {"image_proj.perceiver_resampler.x": [1]}, "of the kind 'faceid-plus'; MuseV can use 'plain'"),
        ({"image_proj.proj.3.weight": [768]}, "of the kind 'full-face'"),
        ({"x": [1]}, "of the kind 'unknown'"),
        ({"proj.0.weight": [1024, 512]}, r"\(faceid\) is incomplete: it has no tensor proj\.2\.weight"),
        ({"proj.weight": [3000, 1024], "norm.weight": [768]}, "3000 is no multiple of 768"),
    ],
)
def test_projections_that_cannot_be_used(shapes, message):
    with pytest.raises(CheckpointError, match=message):
        image_projection_config(shapes)


# Motion layers and IP-Adapter names


@pytest.mark.parametrize(
    "name",
    ["musev.unet", "musev_referencenet.unet", "musev_referencenet.unet_with_faceid", "musev_referencenet_pose.unet"],
)
def test_motion_layers_are_what_stable_diffusion_lacks(name):
    shapes, base = manifest(name), manifest("sd15_unet")
    assert list(keymaps.motion_tensors(shapes)) == [n for n in shapes if n not in base]


def test_stable_diffusion_has_no_motion_layers():
    assert not keymaps.motion_tensors(manifest("sd15_unet"))


@pytest.mark.parametrize(("face", "name"), [(False, "ip_adapter_key_map"), (True, "ip_adapter_face_key_map")])
def test_ip_adapter_numbers_mean_these_layers(face, name):
    expected = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    assert keymaps.ip_attention_key_map(face=face) == expected
    tensors = numbered({n: [1] for n in expected})
    lora = {"0.to_q_lora.down.weight": torch.ones(1)}
    named = keymaps.ip_attention_names(tensors | lora, face=face)
    assert named == {expected[n]: t for n, t in tensors.items()}


def test_ip_adapter_layers_exist_in_the_published_unet():
    shapes = manifest("musev_referencenet.unet_with_faceid")
    assert set(keymaps.ip_attention_key_map().values()) < set(shapes)
    assert set(keymaps.ip_attention_key_map(face=True).values()) < set(shapes)


def test_ip_adapter_of_another_size():
    names = dict.fromkeys(keymaps.ip_attention_key_map(), 0)
    with pytest.raises(CheckpointError, match=r"lacks 31 of 32 attention tensors: 1\.to_v_ip\.weight"):
        keymaps.ip_attention_names({"1.to_k_ip.weight": 0})
    with pytest.raises(CheckpointError, match=r"1 tensors have no place in the attention layers.*: 33\.to_k_ip"):
        keymaps.ip_attention_names(names | {"33.to_k_ip.weight": 0})


def test_ip_adapter_is_split():
    parts = keymaps.split_ip_adapter({"image_proj.proj.weight": 1, "ip_adapter.1.to_k_ip.weight": 2})
    assert parts == ({"proj.weight": 1}, {"1.to_k_ip.weight": 2})
    assert keymaps.split_ip_adapter({"image_proj.proj.weight": 1}) == ({"proj.weight": 1}, {})
    with pytest.raises(CheckpointError, match=r"No IP-Adapter: .* the file has conv_in\.weight"):
        keymaps.split_ip_adapter({"conv_in.weight": 1})


# Base models


def ldm_unet():
    """A tiny Stable Diffusion UNet under LDM names, with the diffusers names it belongs to."""
    names = keymaps.unet_ldm_to_diffusers(TINY_CONFIG)
    tensors = numbered(TINY["unet2d/tiny"])
    return {ldm: tensors[name] for ldm, name in names.items()}, tensors


def ldm_vae():
    names = {new: old for old, new in keymaps.vae_ldm_to_diffusers().items()}
    tensors = numbered(TINY["vae"])
    # LDM keeps the attention's matrices as 1x1 convolutions.
    attention = {n for n in tensors if ".attentions.0.to_" in n and n.endswith(".weight")}
    return {names[n]: t[:, :, None, None] if n in attention else t for n, t in tensors.items()}, tensors


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_unet_map_covers_stable_diffusion():
    names = keymaps.unet_ldm_to_diffusers()
    assert sorted(names.values()) == sorted(manifest("sd15_unet"))
    assert names["output_blocks.5.2.conv.weight"] == "up_blocks.1.upsamplers.0.conv.weight"
    assert names["input_blocks.8.1.proj_in.bias"] == "down_blocks.2.attentions.1.proj_in.bias"


def test_unet_map_agrees_with_diffusers():
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    ldm, expected = ldm_unet()
    theirs = convert_ldm_unet_checkpoint(prefixed("model.diffusion_model.", ldm), {"layers_per_block": 1})
    assert same(theirs, expected)


def test_vae_map_agrees_with_diffusers():
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=2,
            norm_num_groups=8,
        )
    shapes = {name: list(tensor.shape) for name, tensor in vae.state_dict().items()}
    names = {new: old for old, new in keymaps.vae_ldm_to_diffusers(4, 2).items()}
    assert shapes.keys() <= names.keys()
    tensors = numbered(shapes)
    ldm = {names[name]: tensor for name, tensor in tensors.items()}
    theirs = convert_ldm_vae_checkpoint(
        prefixed("first_stage_model.", ldm), {"down_block_types": down, "up_block_types": up}
    )
    assert same(theirs, tensors)
    assert same(keymaps.vae_names(ldm), tensors)


def test_published_text_names_load_into_the_installed_transformers():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = keymaps.fit_text_names(zeros(TINY["text_encoder"]), expected)
    assert select(tensors, expected, source="text encoder").keys() == expected.keys()


def test_text_names_for_both_spellings():
    tensors = {"text_model.encoder.x": 1}
    assert keymaps.fit_text_names(tensors, ["encoder.x"]) == {"encoder.x": 1}
    assert keymaps.fit_text_names(tensors, ["text_model.encoder.x"]) == tensors


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cond_stage_model.transformer.text_model.embeddings.x", "text_model.embeddings.x"),
        ("cond_stage_model.transformer.encoder.x", "text_model.encoder.x"),
        ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("cond_stage_model.transformer.text_model.embeddings.position_ids", None),
        ("logit_scale", None),
    ],
)
def test_text_names(name, expected):
    assert keymaps.text_ldm_to_transformers(name) == expected


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_base_parts_of_a_single_file(tmp_path, suffix):
    (unet, unet_names), (vae, vae_names) = ldm_unet(), ldm_vae()
    text = numbered(TINY["text_encoder"])
    tensors = (
        prefixed("model.diffusion_model.", unet)
        | prefixed("first_stage_model.", vae | {"loss.logvar": torch.zeros(1)})
        | prefixed("cond_stage_model.transformer.", text | {"text_model.embeddings.position_ids": torch.zeros(1, 77)})
        | {"model_ema.decay": torch.zeros(1)}
    )
    path = saved(
        tmp_path / f"base{suffix}", tensors if suffix == ".safetensors" else {"state_dict": tensors, "epoch": 1}
    )
    assert same(read_base(path, "unet", config=TINY_CONFIG), unet_names)
    assert same(read_base(path, "vae"), vae_names)
    assert same(read_base(path, "text_encoder"), text)


@pytest.mark.parametrize(
    ("network_file", "text_file"),
    [
        ("diffusion_pytorch_model.safetensors", "model.safetensors"),
        ("diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"),
        ("diffusion_pytorch_model.bin", "pytorch_model.bin"),
        ("diffusion_pytorch_model.fp16.bin", "pytorch_model.fp16.bin"),
    ],
)
def test_base_parts_of_a_diffusers_folder(tmp_path, network_file, text_file):
    old_attention = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = numbered(TINY["vae"])
    old_vae = {}
    for name, tensor in vae.items():
        for new, old in old_attention.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        old_vae[name] = tensor
    text = {name.removeprefix("text_model."): t for name, t in numbered(TINY["text_encoder"]).items()}
    saved(tmp_path / "unet" / network_file, numbered(TINY["unet2d/tiny"]))
    saved(tmp_path / "vae" / network_file, old_vae)
    saved(tmp_path / "text_encoder" / text_file, text)
    assert same(read_base(tmp_path, "unet"), numbered(TINY["unet2d/tiny"]))
    assert same(read_base(tmp_path / "vae", "vae"), vae)
    assert same(read_base(tmp_path / "vae" / network_file, "vae"), vae)
    assert same(read_base(tmp_path, "text_encoder"), numbered(TINY["text_encoder"]))


def test_base_models_that_do_not_fit(tmp_path):
    with pytest.raises(MuseVError, match="Unknown part 'clip'"):
        read_base(tmp_path, "clip")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_base(tmp_path / "x.safetensors", "vae")
    with pytest.raises(CheckpointError, match="holds no VAE: expected vae/diffusion_pytorch_model.safetensors"):
        read_base(tmp_path, "vae")

    xl = saved(tmp_path / "xl.safetensors", zeros({f"model.diffusion_model.{LDM_ATTENTION}": [2, 2048]}))
    with pytest.raises(CheckpointError, match=r"this is an SDXL model, MuseV needs SD1\.5"):
        read_base(xl, "unet")
    pruned = saved(tmp_path / "pruned.safetensors", zeros({f"model.diffusion_model.{LDM_ATTENTION}": [2, 768]}))
    with pytest.raises(CheckpointError, match=r"holds no VAE \(no tensor is named first_stage_model\.\*\)"):
        read_base(pruned, "vae")
    other = saved(tmp_path / "other.safetensors", zeros({"model.diffusion_model.middle_block.9.x": [1]}))
    with pytest.raises(CheckpointError, match=r"no place in the UNet of Stable Diffusion 1\.5: middle_block\.9\.x"):
        read_base(other, "unet")
    vae = saved(tmp_path / "vae.safetensors", zeros(TINY["vae"]))
    with pytest.raises(CheckpointError, match="expected to hold a Stable Diffusion UNet, but it is a VAE"):
        read_base(vae, "unet")
    big_text = saved(tmp_path / "text.safetensors", zeros({"text_model.embeddings.token_embedding.weight": [2, 1024]}))
    with pytest.raises(CheckpointError, match=r"\(width 1024\), as SD2 and SDXL use it"):
        read_base(big_text, "text_encoder")


# MuseV's folders


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published tree at tiny sizes: complete .bin, motion-only .safetensors, pose without a ReferenceNet."""
    root = tmp_path_factory.mktemp("MuseV")
    musev, reference = TINY["unet/musev/tiny"], TINY["unet/musev_referencenet/tiny"]
    saved(root / "motion/musev/unet/diffusion_pytorch_model.bin", zeros(musev, torch.float16))
    home = root / "motion/musev_referencenet"
    saved(home / "unet/diffusion_pytorch_model.safetensors", keymaps.motion_tensors(zeros(reference)))
    saved(home / "referencenet/diffusion_pytorch_model.bin", zeros(TINY["reference_net/tiny"]))
    saved(home / "ip_adapter_image_proj.bin", {"image_proj": zeros(TINY["image_proj"])})
    pose = root / "motion/musev_referencenet_pose"
    saved(pose / "unet/diffusion_pytorch_model.bin", zeros(reference))
    saved(pose / "ip_adapter_image_proj.bin", {"image_proj": zeros(TINY["image_proj"])})
    saved(root / "t2i/sd1.5/base/unet/diffusion_pytorch_model.bin", zeros(TINY["unet2d/tiny"]))
    return root


@pytest.mark.parametrize("start", ["", "motion", "motion/musev", "motion/musev/unet"])
def test_musev_is_found_from_every_folder(published, start):
    files = find_musev_files(published / start, "musev")
    assert files.unet == published / "motion/musev/unet/diffusion_pytorch_model.bin"
    assert files.kind.family is Family.MUSEV_UNET and not files.kind.motion_only
    assert files.referencenet is None and files.image_proj is None


@pytest.mark.parametrize(
    "start", ["motion/musev_referencenet", "motion/musev_referencenet/unet/diffusion_pytorch_model.safetensors"]
)
def test_the_reference_model_comes_with_its_siblings(published, start):
    home = published / "motion/musev_referencenet"
    for variant in ("musev_referencenet", None):
        files = find_musev_files(published / start, variant)
        assert files.kind.motion_only
        assert files.referencenet == home / "referencenet/diffusion_pytorch_model.bin"
        assert files.image_proj == home / "ip_adapter_image_proj.bin"


def test_pose_uses_the_reference_net_next_door(published):
    files = find_musev_files(published, "musev_referencenet_pose")
    assert files.unet.parent.parent.name == "musev_referencenet_pose"
    assert files.referencenet == published / "motion/musev_referencenet/referencenet/diffusion_pytorch_model.bin"
    assert files.image_proj == published / "motion/musev_referencenet_pose/ip_adapter_image_proj.bin"


def test_a_single_file_under_any_name(tmp_path):
    path = saved(
        tmp_path / "my motion.safetensors", keymaps.motion_tensors(zeros(TINY["unet/musev_referencenet/tiny"]))
    )
    files = find_musev_files(path)
    assert files.unet == path and files.kind.family is Family.MUSEV_REFERENCENET_UNET
    assert files.referencenet is None and files.image_proj is None


def test_a_lone_model_needs_no_variant(tmp_path):
    path = tmp_path / "mine/unet/diffusion_pytorch_model.safetensors"
    saved(path, keymaps.motion_tensors(zeros(TINY["unet/musev/tiny"])))
    saved(tmp_path / "base/unet/diffusion_pytorch_model.safetensors", zeros(TINY["unet2d/tiny"]))
    assert find_musev_files(tmp_path).unet == path


def test_what_find_musev_files_refuses(published, tmp_path):
    with pytest.raises(
        MuseVError, match="Unknown MuseV variant 'museV'; expected one of musev, .* Did you mean 'musev'"
    ):
        find_musev_files(published, "museV")
    with pytest.raises(CheckpointError, match=r"does not exist\. In that folder: motion\."):
        find_musev_files(published / "motions")
    with pytest.raises(CheckpointError, match="holds several MuseV models: musev, musev_referencenet, musev_ref"):
        find_musev_files(published)
    with pytest.raises(
        CheckpointError, match=r"Asked for musev_referencenet, but .* is a musev UNet \(complete.*ask for musev\."
    ):
        find_musev_files(published / "motion/musev", "musev_referencenet")
    with pytest.raises(CheckpointError, match="or ask for musev_referencenet or musev_referencenet_pose"):
        find_musev_files(published / "motion/musev_referencenet", "musev")
    with pytest.raises(CheckpointError, match="A MuseV UNet was expected, but .* is a Stable Diffusion UNet"):
        find_musev_files(published / "t2i/sd1.5/base")
    with pytest.raises(CheckpointError, match="is a ReferenceNet"):
        find_musev_files(published / "motion/musev_referencenet/referencenet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no MuseV model: expected motion/<variant>/unet/"):
        find_musev_files(tmp_path)
    saved(tmp_path / "musev/unet/diffusion_pytorch_model.bin", zeros(TINY["unet/musev/tiny"], torch.float16))
    with pytest.raises(CheckpointError, match=r"holds no model musev_referencenet: .* Found there: musev\."):
        find_musev_files(tmp_path, "musev_referencenet")


def test_a_complete_motion_only_or_extended_file_gives_the_same_motion_layers(published):
    expected = keymaps.motion_tensors(TINY["unet/musev_referencenet/tiny"])
    for variant in ("musev_referencenet", "musev_referencenet_pose"):
        tensors = read_tensors(find_musev_files(published, variant).unet)
        assert select(keymaps.motion_tensors(tensors), expected, source=variant).keys() == expected.keys()
        assert select(tensors, expected, source=variant, tolerate=("*",)).keys() == expected.keys()
