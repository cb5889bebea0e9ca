"""LoRA: read the usual file forms, merge W + strength * (alpha / rank) * up @ down into a network's weights."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ..config import SD15, UNetConfig
from ..errors import CheckpointError, MuseVError
from .files import check_finite, shorten
from .keymaps import attention_blocks, is_motion_name, unet_ldm_to_diffusers
from .kinds import Family, describe, recognise
from .lora_blocks import LORA_BLOCK_PRESETS, TEXT_BLOCK, block_factors, block_index

logger = logging.getLogger(__name__)

Part = Literal["unet", "text"]

_PATTERNS = (
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>up|down|mid)\.weight"),  # kohya
    re.compile(r"(?P<module>.+)\.lora_(?P<kind>A|B)(\.\w+)?\.weight"),  # peft
    re.compile(r"(?P<module>.+?)(\.processor)?\.(?P<layer>to_[a-z]+)_lora\.(?P<kind>up|down)\.weight"),  # old diffusers
    re.compile(r"(?P<module>.+)\.(lora|lora_linear_layer)\.(?P<kind>up|down)\.weight"),
    re.compile(r"(?P<module>.+)\.(?P<kind>alpha)"),
)
_OLD_TEXT_LAYERS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_KINDS = {"A": "down", "B": "up"}
_UNSUPPORTED = ("hada_", "lokr_", "oft_", "dora_scale")


@dataclass(frozen=True)
class LoraLayer:
    """One low-rank difference.

    Args:
        up: (out, rank) or (out, rank, 1, 1).
        down: (rank, in), (rank, in, 1, 1) or (rank, in, 3, 3).
        mid: (rank, rank, 3, 3) of a LoCon layer whose `down` is 1x1.
        alpha: the difference is scaled by alpha / rank; None means 1.
    """

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the difference: (out, in) followed by the kernel, if it is a convolution's."""
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def fits(self, weight: Tensor) -> bool:
        """True if the difference can be added to `weight`; 1x1 convolutions and matrices go together."""
        return _without_unit_kernel(self.shape) == _without_unit_kernel(tuple(weight.shape))

    def delta(self, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """scale * up @ down, shaped like `shape`."""
        up = self.up.to(device, dtype).flatten(1)  # (out, rank)
        down = self.down.to(device, dtype).flatten(1)  # (rank, in * kernel)
        if self.mid is None:
            product = up @ down
        else:
            product = torch.einsum("oa,abhw,bi->oihw", up, self.mid.to(device, dtype), down)
        return self.scale * product.reshape(self.shape)


@dataclass(frozen=True)
class Lora:
    """Layers by the name of the module they change, in kohya's spelling (dots as underscores, no prefix)."""

    unet: dict[str, LoraLayer] = field(default_factory=dict)
    text: dict[str, LoraLayer] = field(default_factory=dict)


def read_lora(tensors: Mapping[str, Tensor], *, source: str = "this LoRA", config: UNetConfig = SD15) -> Lora:
    """Understand a LoRA file of kohya (diffusers or LDM layer names, LoCon, LCM-LoRA) or diffusers (old and peft).

    Args:
        tensors: the file's content (`checkpoints.read_tensors`).
        source: the file, for messages.
        config: sizes of the UNet, for LDM layer names.

    Raises:
        CheckpointError: no LoRA, one for another base model, of an unsupported kind, or damaged.
    """
    kind = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if kind.family is not Family.LORA:
        raise CheckpointError(f"A LoRA was expected, but {source} is {describe(kind)}.")
    if kind.base not in ("SD1.5", None):
        raise CheckpointError(f"{source} is {describe(kind)}. MuseV needs a LoRA for SD1.5.")
    if unsupported := [name for name in tensors if any(mark in name for mark in _UNSUPPORTED)]:
        raise CheckpointError(
            f"{source} is of a LoRA kind that is not supported (LoHa, LoKr, OFT or DoRA): {shorten(unsupported)}. "
            "Use a plain LoRA or LoCon, or merge it into the base model with the tool it was made for."
        )
    check_finite(tensors, source)
    ldm_names = {_underscored(a): _underscored(b) for a, b in unet_ldm_to_diffusers(config).items()}
    parts: dict[Part, dict[str, dict[str, Tensor]]] = {"unet": {}, "text": {}}
    unread = []
    for name, tensor in tensors.items():
        if (parsed := _parse(name)) is None:
            unread.append(name)
            continue
        part, module, role = parsed
        module = f"{module}_weight"
        module = (ldm_names.get(module, module) if part == "unet" else module).removesuffix("_weight")
        parts[part].setdefault(module, {})[role] = tensor
    if unread:
        logger.warning("%s: %d tensors are no LoRA layers and are ignored: %s", source, len(unread), shorten(unread))
    layers = {part: {m: _layer(m, found, source) for m, found in modules.items()} for part, modules in parts.items()}
    return Lora(unet=layers["unet"], text=layers["text"])


def read_faceid_lora(
    tensors: Mapping[str, Tensor], *, source: str = "this IP-Adapter", config: UNetConfig = SD15
) -> Lora:
    """The LoRA inside an IP-Adapter FaceID file (extra.md 6.3).

    Its layers are `N.to_q_lora.down.weight`, N counting attn1, attn2, attn1, ... It has no alpha, its factor is 1.
    The IP layers in the file are left to `keymaps.ip_attention_names`.

    Raises:
        CheckpointError: the file has no such layers, or more than this UNet has attentions.
    """
    blocks = attention_blocks(config)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:ip_adapter\.)?(\d+)\.(to_[a-z]+)_lora\.(up|down)\.weight", name)
        if match is None:
            continue
        number, layer = int(match[1]), "to_out.0" if match[2] == "to_out" else match[2]
        if number >= 2 * len(blocks):
            raise CheckpointError(
                f"{source} has LoRA layers for attention {number}; this UNet has {2 * len(blocks)}. "
                "Choose the FaceID adapter for Stable Diffusion 1.5."
            )
        module = f"{blocks[number // 2]}.attn{number % 2 + 1}.{layer}"
        modules.setdefault(_underscored(module), {})[match[3]] = tensor
    if not modules:
        raise CheckpointError(f"{source} holds no LoRA layers; of the IP-Adapters only the FaceID ones do.")
    return Lora(unet={module: _layer(module, found, source) for module, found in modules.items()})


@overload
def apply_lora(
    state: nn.Module,
    lora: Lora,
    strength: float = ...,
    block_weights: str | Sequence[float] | None = ...,
    *,
    part: Part = ...,
) -> nn.Module: ...
@overload
def apply_lora(
    state: Mapping[str, Tensor],
    lora: Lora,
    strength: float = ...,
    block_weights: str | Sequence[float] | None = ...,
    *,
    part: Part = ...,
) -> dict[str, Tensor]: ...
def apply_lora(
    state: Mapping[str, Tensor] | nn.Module,
    lora: Lora,
    strength: float = 1.0,
    block_weights: str | Sequence[float] | None = None,
    *,
    part: Part = "unet",
) -> dict[str, Tensor] | nn.Module:
    """Merge a LoRA: W + strength * block factor * (alpha / rank) * up @ down, in fp32, then W's dtype (extra.md 7.3).

    Motion layers are never touched. Strength 0 leaves every weight as it is, bit for bit.

    Args:
        state: tensors by their diffusers or transformers names, of which a copy is returned (unchanged tensors are
            shared); or a module, which is changed in place and returned.
        lora: from `read_lora` or `read_faceid_lora`.
        strength: usually 0..1; negative values take the LoRA's effect away.
        block_weights: as `lora_blocks.block_factors` takes them; None: 1 everywhere. Layers between the blocks
            (samplers, first and last layers) take the factor of the nearest one.
        part: which network `state` is; the LoRA's layers for the other one are left out silently.

    Raises:
        MuseVError: bad strength or block weights.
        CheckpointError: no layer of the LoRA fits the network.
    """
    if not math.isfinite(strength):
        raise MuseVError(f"The LoRA's strength must be a finite number, got {strength}.")
    factors = LORA_BLOCK_PRESETS["ALL"] if block_weights is None else block_factors(block_weights)
    layers = lora.unet if part == "unet" else lora.text
    tensors = state.state_dict() if isinstance(state, nn.Module) else dict(state)
    names = {_module_key(name): name for name in tensors if name.endswith(".weight") and not is_motion_name(name)}
    fitting = {key: layer for key, layer in layers.items() if key in names and layer.fits(tensors[names[key]])}
    if layers and not fitting:
        key = next(iter(layers))
        raise CheckpointError(
            f"None of the {len(layers)} layers of this LoRA fits the {part} network (the first is {key}, "
            f"{list(layers[key].shape)}): is it for SDXL? MuseV needs a LoRA for SD1.5."
        )
    if left_out := [key for key in layers if key not in fitting]:
        logger.warning(
            "%d of %d layers of this LoRA fit no %s layer and are left out: %s",
            *(len(left_out), len(layers), part, shorten(left_out)),
        )
    merged = {}
    for key, layer in fitting.items():
        name = names[key]
        factor = strength * factors[TEXT_BLOCK if part == "text" else block_index(name)]
        if factor != 0.0:
            merged[name] = _merged(tensors[name], layer, factor)
    if not isinstance(state, nn.Module):
        return {**tensors, **merged}
    with torch.no_grad():
        for name, weight in merged.items():
            tensors[name].copy_(weight)  # shares the parameter's memory
    return state


def _merged(weight: Tensor, layer: LoraLayer, factor: float) -> Tensor:
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    delta = layer.delta(device=weight.device, dtype=exact).reshape(weight.shape)
    return (weight.detach().to(exact) + factor * delta).to(weight.dtype)


def _parse(name: str) -> tuple[Part, str, str] | None:
    """(network, underscored module, "up" | "down" | "mid" | "alpha") of a tensor in a LoRA file."""
    match = next((m for pattern in _PATTERNS if (m := pattern.fullmatch(name))), None)
    if match is None:
        return None
    groups = match.groupdict()
    module, kind = groups["module"].removeprefix("base_model.model."), groups["kind"]
    if layer := groups.get("layer"):
        new = _OLD_TEXT_LAYERS.get(layer, layer) if "self_attn" in module else layer
        module = f"{module}.{'to_out.0' if new == 'to_out' else new}"
    module = module.replace(".", "_")
    part: Part = "unet"
    for prefix in ("lora_te1_", "lora_te_", "text_encoder_"):
        if module.startswith(prefix):
            part, module = "text", module.removeprefix(prefix).removeprefix("text_model_")
    if part == "unet":
        module = module.removeprefix("lora_unet_").removeprefix("unet_")
    return part, module, _KINDS.get(kind, kind)


def _layer(module: str, found: Mapping[str, Tensor], source: str) -> LoraLayer:
    lacking = [role for role in ("up", "down") if role not in found]
    if lacking:
        raise CheckpointError(
            f"{source} is incomplete: its layer {module} has no {' and no '.join(lacking)} matrix. Download it again."
        )
    up, down, mid = found["up"], found["down"], found.get("mid")
    alpha = found.get("alpha")
    if not _belong_together(up, down, mid) or (alpha is not None and alpha.numel() != 1):
        shapes = {role: list(tensor.shape) for role, tensor in found.items()}
        raise CheckpointError(f"{source} is damaged: the matrices of {module} do not belong together: {shapes}.")
    return LoraLayer(up=up, down=down, mid=mid, alpha=None if alpha is None else float(alpha.real))


def _belong_together(up: Tensor, down: Tensor, mid: Tensor | None) -> bool:
    if up.ndim < 2 or down.ndim not in (2, 4) or math.prod(up.shape[2:]) != 1 or not up.shape[1]:
        return False
    if mid is not None and (mid.ndim != 4 or math.prod(down.shape[2:]) != 1):
        return False
    return {up.shape[1], down.shape[0]} == {up.shape[1], *(() if mid is None else mid.shape[:2])}


def _module_key(weight_name: str) -> str:
    return _underscored(weight_name.removesuffix(".weight")).removeprefix("text_model_")


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _without_unit_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(n == 1 for n in shape[2:]) else shape
