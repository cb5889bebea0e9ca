"""Names of the same tensor in different files: LDM, diffusers, transformers, and the numbers of IP-Adapter."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Tensor

from ..config import SD15, UNetConfig
from ..errors import CheckpointError
from .files import shorten

T = TypeVar("T")

LDM_UNET_PREFIX = "model.diffusion_model."
LDM_VAE_PREFIX = "first_stage_model."
LDM_TEXT_PREFIX = "cond_stage_model.transformer."

_WEIGHT_AND_BIAS = ("weight", "bias")
_RESNET = {  # LDM -> diffusers, UNet
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_TRANSFORMER_BIASED = (
    *("norm", "proj_in", "proj_out"),
    *(f"transformer_blocks.0.{n}" for n in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")),
    *(f"transformer_blocks.0.{n}.to_out.0" for n in ("attn1", "attn2")),
)
_TRANSFORMER_UNBIASED = tuple(f"transformer_blocks.0.{a}.to_{x}" for a in ("attn1", "attn2") for x in "qkv")
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers < 0.17
_MOTION_ROOTS = {"frame_embedding", "transformer_in", "first_refer_emb_attns", "mid_block_refer_emb_attns"}
_MOTION_PARTS = {
    *("temp_convs", "temp_attentions", "refer_emb_attns", "to_k_ip", "to_v_ip"),
    *("ip_adapter_face_to_k_ip", "ip_adapter_face_to_v_ip"),
}


def unet_ldm_to_diffusers(config: UNetConfig = SD15) -> dict[str, str]:
    """LDM name (without `model.diffusion_model.`) -> diffusers name of every tensor of a Stable Diffusion UNet.

    The LDM numbers count layers and samplers in one row: block i, layer j is `input_blocks.{(L+1)i + 1 + j}` and
    `output_blocks.{(L+1)i + j}` with L layers per block (musev.md 13).
    """
    names = {}
    for ldm, diffusers, has_bias in _unet_modules(config):
        for kind in _WEIGHT_AND_BIAS if has_bias else ("weight",):
            names[f"{ldm}.{kind}"] = f"{diffusers}.{kind}"
    return names


def controlnet_ldm_to_diffusers() -> dict[str, str]:
    """LDM name (without `control_model.`) -> diffusers name of every tensor of a Stable Diffusion 1.5 ControlNet."""
    encoder = ("time_embed.", "input_blocks.", "middle_block.")
    names = {old: new for old, new in unet_ldm_to_diffusers().items() if old.startswith(encoder)}
    layers = ["conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"]
    modules = {f"input_hint_block.{2 * i}": f"controlnet_cond_embedding.{name}" for i, name in enumerate(layers)}
    modules |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(12)}
    modules["middle_block_out.0"] = "controlnet_mid_block"
    return names | {f"{old}.{kind}": f"{new}.{kind}" for old, new in modules.items() for kind in _WEIGHT_AND_BIAS}


def _unet_modules(config: UNetConfig) -> Iterator[tuple[str, str, bool]]:
    """(LDM module, diffusers module, has a bias)."""
    widths, cross = config.block_out_channels, config.cross_attention_blocks
    last, row = len(widths) - 1, config.layers_per_block + 1

    def resnet(ldm: str, diffusers: str, *, changes_width: bool) -> Iterator[tuple[str, str, bool]]:
        for old, new in _RESNET.items():
            yield f"{ldm}.{old}", f"{diffusers}.{new}", True
        if changes_width:
            yield f"{ldm}.skip_connection", f"{diffusers}.conv_shortcut", True

    def transformer(ldm: str, diffusers: str) -> Iterator[tuple[str, str, bool]]:
        for name in _TRANSFORMER_BIASED:
            yield f"{ldm}.{name}", f"{diffusers}.{name}", True
        for name in _TRANSFORMER_UNBIASED:
            yield f"{ldm}.{name}", f"{diffusers}.{name}", False

    yield "time_embed.0", "time_embedding.linear_1", True
    yield "time_embed.2", "time_embedding.linear_2", True
    yield "input_blocks.0.0", "conv_in", True
    for i, width in enumerate(widths):
        for j in range(config.layers_per_block):
            ldm, block = f"input_blocks.{row * i + 1 + j}", f"down_blocks.{i}"
            before = widths[max(i - 1, 0)] if j == 0 else width
            yield from resnet(f"{ldm}.0", f"{block}.resnets.{j}", changes_width=before != width)
            if cross[i]:
                yield from transformer(f"{ldm}.1", f"{block}.attentions.{j}")
        if i < last:
            yield f"input_blocks.{row * (i + 1)}.0.op", f"down_blocks.{i}.downsamplers.0.conv", True
    yield from resnet("middle_block.0", "mid_block.resnets.0", changes_width=False)
    yield from transformer("middle_block.1", "mid_block.attentions.0")
    yield from resnet("middle_block.2", "mid_block.resnets.1", changes_width=False)
    for i in range(len(widths)):
        for j in range(row):
            ldm, block = f"output_blocks.{row * i + j}", f"up_blocks.{i}"
            # The skip connection is concatenated, so the width always changes.
            yield from resnet(f"{ldm}.0", f"{block}.resnets.{j}", changes_width=True)
            if cross[last - i]:
                yield from transformer(f"{ldm}.1", f"{block}.attentions.{j}")
        if i < last:
            place = 2 if cross[last - i] else 1
            yield f"output_blocks.{row * i + row - 1}.{place}.conv", f"up_blocks.{i}.upsamplers.0.conv", True
    yield "out.0", "conv_norm_out", True
    yield "out.2", "conv_out", True


def vae_ldm_to_diffusers(block_count: int = 4, layers: int = 2) -> dict[str, str]:
    """LDM name (without `first_stage_model.`) -> diffusers name of a VAE with `layers` resnets per encoder block.

    Lists a shortcut for every resnet, though only those that change the width have one: counts do not tell which.
    """
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}

    def resnet(ldm: str, diffusers: str) -> None:
        for name in ("norm1", "conv1", "norm2", "conv2"):
            modules[f"{ldm}.{name}"] = f"{diffusers}.{name}"
        modules[f"{ldm}.nin_shortcut"] = f"{diffusers}.conv_shortcut"

    for half in ("encoder", "decoder"):
        for ldm, diffusers in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            modules[f"{half}.{ldm}"] = f"{half}.{diffusers}"
        for j in range(2):
            resnet(f"{half}.mid.block_{j + 1}", f"{half}.mid_block.resnets.{j}")
        for ldm, diffusers in _VAE_ATTENTION.items():
            modules[f"{half}.mid.attn_1.{ldm}"] = f"{half}.mid_block.attentions.0.{diffusers}"
    for i in range(block_count):
        for j in range(layers):
            resnet(f"encoder.down.{i}.block.{j}", f"encoder.down_blocks.{i}.resnets.{j}")
        up = block_count - 1 - i  # LDM counts the decoder's blocks from the picture inwards
        for j in range(layers + 1):
            resnet(f"decoder.up.{up}.block.{j}", f"decoder.up_blocks.{i}.resnets.{j}")
        if i < block_count - 1:
            modules[f"encoder.down.{i}.downsample.conv"] = f"encoder.down_blocks.{i}.downsamplers.0.conv"
            modules[f"decoder.up.{up}.upsample.conv"] = f"decoder.up_blocks.{i}.upsamplers.0.conv"
    return {f"{old}.{kind}": f"{new}.{kind}" for old, new in modules.items() for kind in _WEIGHT_AND_BIAS}


def vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under today's diffusers names and shapes.

    Accepts LDM names (without prefix), diffusers names, and the attention names of old diffusers files. Attention
    weights stored as 1x1 convolutions become matrices.

    Raises:
        CheckpointError: a name of an LDM VAE does not exist in the Stable Diffusion one.
    """
    if any(name.startswith(("encoder.down.", "decoder.up.")) for name in tensors):
        # Training left its discriminator and logvar in some files.
        kept = {n: t for n, t in tensors.items() if n.startswith(("encoder.", "decoder.", "quant_", "post_quant_"))}
        tensors = renamed(kept, vae_ldm_to_diffusers(), what="a Stable Diffusion VAE")
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(
            r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.",
            lambda m: f"{m[1]}.{_OLD_VAE_ATTENTION[m[2]]}.",
            name,
        )
        if re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", name) and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        found[name] = tensor
    return found


def text_ldm_to_transformers(name: str) -> str | None:
    """Name of a CLIP text tensor as published (`text_model....`), from any of the names it has in files.

    `cond_stage_model.transformer.` is dropped and `text_model.` added where it lacks. None for tensors that are no
    weights (`position_ids`) or do not belong to the text encoder.
    """
    name = name.removeprefix(LDM_TEXT_PREFIX)
    if name.endswith("position_ids"):
        return None
    if name.startswith(("text_model.", "text_projection.")):
        return name
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else None


def fit_text_names(tensors: Mapping[str, T], expected: Iterable[str]) -> dict[str, T]:
    """`text_model.` names as the installed transformers spells them: version 5 dropped that prefix in CLIPTextModel.

    Args:
        tensors: names from `text_ldm_to_transformers`.
        expected: the names of the network's own state dict.
    """
    prefixed = any(name.startswith("text_model.") for name in expected)
    return {name if prefixed else name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}


def attention_blocks(config: UNetConfig = SD15) -> list[str]:
    """The UNet's spatial transformer blocks in IP-Adapter's order: down, up, **mid last** (extra.md 6.3).

    Block k holds attention processor 2k (attn1) and 2k + 1 (attn2).
    """
    cross, layers = config.cross_attention_blocks, config.layers_per_block
    places = [f"down_blocks.{i}.attentions.{j}" for i, has in enumerate(cross) if has for j in range(layers)]
    places += [
        f"up_blocks.{i}.attentions.{j}" for i, has in enumerate(reversed(cross)) if has for j in range(layers + 1)
    ]
    return [f"{place}.transformer_blocks.0" for place in [*places, "mid_block.attentions.0"]]


def ip_attention_key_map(config: UNetConfig = SD15, *, face: bool = False) -> dict[str, str]:
    """`N.to_k_ip.weight` of an IP-Adapter file -> the UNet's name, all layers (extra.md 6.3).

    Args:
        face: the parallel FaceID branch `ip_adapter_face_to_k_ip` in place of `to_k_ip`.
    """
    branch = "ip_adapter_face_" if face else ""
    return {
        f"{2 * k + 1}.to_{x}_ip.weight": f"{block}.attn2.{branch}to_{x}_ip.weight"
        for k, block in enumerate(attention_blocks(config))
        for x in "kv"
    }


def ip_attention_names(tensors: Mapping[str, T], *, face: bool = False, config: UNetConfig = SD15) -> dict[str, T]:
    """An IP-Adapter's key and value projections under the UNet's names; its LoRA tensors are left out.

    Raises:
        CheckpointError: layers are missing or more than this UNet has.
    """
    found = {name: tensor for name, tensor in tensors.items() if name.endswith(("to_k_ip.weight", "to_v_ip.weight"))}
    names = ip_attention_key_map(config, face=face)
    missing = [name for name in names if name not in found]
    if missing:
        raise CheckpointError(
            f"This IP-Adapter lacks {len(missing)} of {len(names)} attention tensors: {shorten(missing)}. "
            "Choose a complete adapter for Stable Diffusion 1.5."
        )
    return renamed(found, names, what="the attention layers of this UNet")


def split_ip_adapter(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """An IP-Adapter file's image projection and attention tensors, without their prefixes (extra.md 6.3).

    A file with a projection alone gives an empty second part.

    Raises:
        CheckpointError: there is no image projection.
    """

    def part(prefix: str) -> dict[str, T]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    projection, attention = part("image_proj."), part("ip_adapter.")
    if not projection:
        raise CheckpointError(
            "No IP-Adapter: no tensor is named image_proj.*, the file has "
            f"{shorten(list(tensors)) or 'no tensors'}. Choose an ip-adapter_*.bin or ip_adapter_image_proj.bin."
        )
    return projection, attention


def is_motion_name(name: str) -> bool:
    """True for tensors that MuseV adds to Stable Diffusion: temporal, reference, image-prompt layers (musev.md 7)."""
    parts = name.split(".")
    return parts[0] in _MOTION_ROOTS or not _MOTION_PARTS.isdisjoint(parts)


def motion_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """MuseV's own tensors of a UNet file; the Stable Diffusion part comes from the base model (musev.md 7)."""
    return {name: tensor for name, tensor in tensors.items() if is_motion_name(name)}


def renamed(tensors: Mapping[str, T], names: Mapping[str, str], *, what: str) -> dict[str, T]:
    """`tensors` under the names that `names` gives them.

    Raises:
        CheckpointError: a tensor has no entry in `names`.
    """
    unknown = [name for name in tensors if name not in names]
    if unknown:
        raise CheckpointError(f"{len(unknown)} tensors have no place in {what}: {shorten(unknown)}.")
    return {names[name]: tensor for name, tensor in tensors.items()}
