"""A `models` folder with the files that the example workflows name, as small as ComfyUI's own loaders accept them.

ComfyUI knows Stable Diffusion 1.5 by its first layer (320 channels) and its prompts (768), so these two stay as they
are and everything else shrinks: two resolutions of one layer each. CLIP's sizes are fixed in ComfyUI; the layers in
between are zeros there (a residual network passes through them), which a sparse file holds for nothing. The VAE is a
tiny autoencoder, which ComfyUI takes from a checkpoint as well. All weights are seeded, finite and meaningless.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from musev_core.config import IMAGE_PROJECTIONS, VARIANTS, UNetConfig, resized
from musev_core.models.ip_adapter import image_projection
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.unet import MuseVUNet
from musev_core.weights.keymaps import ip_attention_key_map, unet_ldm_to_diffusers
from musev_core.weights.published import MUSEV_REPO, PUBLISHED

from .poses import write_detector, write_pose_net
from .published import save

SD15 = UNetConfig(
    block_out_channels=(320, 320), cross_attention_blocks=(True, False), layers_per_block=1, temporal=False
)
TREE = Path("diffusers") / MUSEV_REPO  # where users of other MuseV packs have the published tree
Shapes = dict[str, tuple[int, ...]]


def write_models(models: Path) -> Path:
    """Everything the workflows need, about 0.7 GB, in a few seconds; returns the folder."""
    write_motion(models / TREE / "motion")
    write_checkpoint(models / "checkpoints" / "majicmixRealistic_v6.safetensors")
    write_controlnet(models / "controlnet" / "control_v11p_sd15_openpose.safetensors")
    write_clip_vision(models / "clip_vision" / "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors")
    write_faceid(models / "ipadapter" / "ip-adapter-faceid_sd15.bin")
    write_lcm_lora(models / "loras" / "lcm-lora-sdv1-5.safetensors")
    for source, write in zip(PUBLISHED["preprocessor_dwpose"].sources, (_write_detector, write_pose_net), strict=True):
        (models / source.comfyui).parent.mkdir(parents=True, exist_ok=True)
        write(models / source.comfyui)
    return models


def _write_detector(path: Path) -> None:
    """Sees one person, who fills the middle of the picture."""
    write_detector(path, [((160, 60, 480, 600), 0.9, 2)])


def write_motion(motion: Path) -> None:
    """`musev` and `musev_referencenet` with all that belongs to them; the pose model has no ReferenceNet of its own."""
    for variant in VARIANTS:
        folder, seed = motion / variant, len(variant)
        config = {"attention_head_dim": SD15.num_heads, "norm_num_groups": SD15.norm_groups}
        _network(folder / "unet", MuseVUNet, resized(VARIANTS[variant], SD15), seed, config)
        if variant == "musev_referencenet":
            _network(folder / "referencenet", ReferenceNet, SD15, seed, config)
        if variant != "musev":
            with torch.device("meta"):
                names = shapes_of(image_projection(IMAGE_PROJECTIONS["plain"]))
            save(_prefixed("image_proj.", random(names, seed)), folder / "ip_adapter_image_proj.bin")


def _network(folder: Path, network: type, config: UNetConfig, seed: int, published: Mapping) -> None:
    with torch.device("meta"):
        names = shapes_of(network(config))
    save(random(names, seed), folder / "diffusion_pytorch_model.bin", torch.float16)
    (folder / "config.json").write_text(json.dumps(published), encoding="utf-8")


def write_checkpoint(path: Path) -> None:
    """UNet, text encoder and VAE in one file with LDM names."""
    with torch.device("meta"):
        unet = shapes_of(MuseVUNet(SD15))
    tensors = {f"model.diffusion_model.{old}": unet[new] for old, new in unet_ldm_to_diffusers(SD15).items()}
    text = clip_shapes("text_model", width=768, layers=12)
    text["text_model.embeddings.token_embedding.weight"] = (49408, 768)
    text["text_model.embeddings.position_embedding.weight"] = (77, 768)
    text["text_model.final_layer_norm.weight"] = text["text_model.final_layer_norm.bias"] = (768,)
    tensors |= _prefixed("cond_stage_model.transformer.", text)
    tensors |= _prefixed("first_stage_model.", _tiny_autoencoder())
    write_sparse(path, tensors, seed=1, zero=_layers_between(12))


def write_clip_vision(path: Path) -> None:
    """The image encoder of IP-Adapter, ViT-H/14, under transformers' names."""
    tensors = clip_shapes("vision_model", width=1280, layers=32)
    tensors["vision_model.embeddings.class_embedding"] = (1280,)
    tensors["vision_model.embeddings.patch_embedding.weight"] = (1280, 3, 14, 14)
    tensors["vision_model.embeddings.position_embedding.weight"] = (257, 1280)
    for norm in ("pre_layrnorm", "post_layernorm"):
        tensors[f"vision_model.{norm}.weight"] = tensors[f"vision_model.{norm}.bias"] = (1280,)
    tensors["visual_projection.weight"] = (1024, 1280)
    write_sparse(path, tensors, seed=2, zero=_layers_between(32))


def write_controlnet(path: Path) -> None:
    """The down path of the UNet, a hint encoder and one projection for every skip connection, with LDM names."""
    with torch.device("meta"):
        unet = shapes_of(MuseVUNet(SD15))
    copied = ("time_embed.", "input_blocks.", "middle_block.")
    tensors = {old: unet[new] for old, new in unet_ldm_to_diffusers(SD15).items() if old.startswith(copied)}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        tensors |= _conv(f"input_hint_block.{2 * i}", before, after)
    for i in range(len({name.split(".")[1] for name in tensors if name.startswith("input_blocks.")})):
        tensors |= _conv(f"zero_convs.{i}.0", 320, 320, 1)
    tensors |= _conv("middle_block_out.0", 320, 320, 1)
    save(_prefixed("control_model.", random(tensors, 3)), path, torch.float16)


def write_faceid(path: Path) -> None:
    """Projection, attention and LoRA layers, nested as in the published `.bin`."""
    with torch.device("meta"):
        parts = {"image_proj": shapes_of(image_projection(IMAGE_PROJECTIONS["faceid"]))}
    parts["ip_adapter"] = {}
    for key in ip_attention_key_map(SD15):
        number = int(key.split(".")[0])
        parts["ip_adapter"][key] = (320, 768)
        for processor, context in ((number - 1, 320), (number, 768)):
            for layer, width in (("to_q", 320), ("to_k", context), ("to_v", context), ("to_out", 320)):
                parts["ip_adapter"][f"{processor}.{layer}_lora.down.weight"] = (128, width)
                parts["ip_adapter"][f"{processor}.{layer}_lora.up.weight"] = (320, 128)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: {k: v.half() for k, v in random(part, 4).items()} for name, part in parts.items()}, path)


def write_lcm_lora(path: Path) -> None:
    """Low-rank changes of every attention of the UNet, in kohya's names."""
    with torch.device("meta"):
        unet = shapes_of(MuseVUNet(SD15))
    tensors = {}
    for name, shape in unet.items():
        if ".attn" in name and name.endswith(".weight"):
            layer = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{layer}.lora_down.weight"] = (4, shape[1])
            tensors[f"{layer}.lora_up.weight"] = (shape[0], 4)
            tensors[f"{layer}.alpha"] = ()
    save(random(tensors, 5), path, torch.float16)


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


def clip_shapes(prefix: str, *, width: int, layers: int) -> Shapes:
    """The layers that CLIP's two encoders have in common."""
    shapes = {}
    for i in range(layers):
        layer = f"{prefix}.encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{name}.weight"] = shapes[f"{layer}{name}.bias"] = (width,)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}self_attn.{name}", width, width)
        shapes |= _linear(f"{layer}mlp.fc1", width, 4 * width) | _linear(f"{layer}mlp.fc2", 4 * width, width)
    return shapes


def _layers_between(count: int) -> tuple[str, ...]:
    """All layers of an encoder but the last two, whose outputs are what other networks look at."""
    return tuple(f".encoder.layers.{i}." for i in range(count - 2))


def _tiny_autoencoder() -> Shapes:
    """TAESD: three halvings of the picture, 64 channels everywhere."""

    def block(half: str, place: int) -> Shapes:
        return {k: v for i in (0, 2, 4) for k, v in _conv(f"taesd_{half}.{place}.conv.{i}", 64, 64).items()}

    shapes: Shapes = {"vae_scale": ()}
    for place in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        shapes |= block("encoder", place)
    for place in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        shapes |= block("decoder", place)
    for name in ("encoder.2", "encoder.6", "encoder.10", "decoder.7", "decoder.12", "decoder.17"):  # the resampling
        shapes[f"taesd_{name}.weight"] = (64, 64, 3, 3)
    shapes |= _conv("taesd_encoder.0", 3, 64) | _conv("taesd_encoder.14", 64, 4)
    return shapes | _conv("taesd_decoder.1", 4, 64) | _conv("taesd_decoder.19", 64, 3)


def _linear(name: str, before: int, after: int) -> Shapes:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _conv(name: str, before: int, after: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (after, before, size, size), f"{name}.bias": (after,)}


def _prefixed(prefix: str, entries: Mapping) -> dict:
    return {prefix + name: entry for name, entry in entries.items()}


def random(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights which neither grow nor vanish from layer to layer."""
    numbers = _numbers(seed)
    return {name: _weight(name, shape, numbers) for name, shape in shapes.items()}


def _numbers(seed: int) -> Tensor:
    """Normal numbers; a tensor takes as many of them as it has, again from the start where they end."""
    return torch.randn(999_983, generator=torch.Generator().manual_seed(seed))


def _weight(name: str, shape: tuple[int, ...], numbers: Tensor) -> Tensor:
    if name.endswith("vae_scale"):
        return torch.tensor(0.18215)
    if not shape:
        return torch.ones(shape)
    count = math.prod(shape)
    drawn = numbers.repeat(math.ceil(count / len(numbers)))[:count].reshape(shape)
    if len(shape) > 1:
        return drawn * math.prod(shape[1:]) ** -0.5
    gain = name.endswith("weight")  # of a norm, whatever it is called; other vectors are added to something
    return 0.1 * drawn + float(gain)


def write_sparse(path: Path, shapes: Shapes, *, seed: int, zero: Iterable[str]) -> None:
    """A .safetensors file in half precision in which tensors whose name contains one of `zero` are a hole."""
    numbers = _numbers(seed)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        first = file.tell()
        for name, shape in shapes.items():
            if not any(part in name for part in zero):
                file.seek(first + header[name]["data_offsets"][0])
                file.write(_weight(name, shape, numbers).half().numpy().tobytes())
        file.truncate(first + end)
