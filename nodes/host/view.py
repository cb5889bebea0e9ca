"""Our network over the loaded UNet's own layers: base weights exist once and stay ComfyUI's (comfyui.md, part A)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.ldm.modules.attention
from torch import Tensor, nn

from ...musev_core.config import UNetConfig
from ...musev_core.errors import MuseVError
from ...musev_core.kernels.selection import DTYPES
from ...musev_core.models.attention import heads_first, heads_last, scaled_dot_product
from ...musev_core.models.layers import Gains, Layers, hosted_layers
from ...musev_core.models.unet import MuseVUNet
from ...musev_core.weights.keymaps import unet_ldm_to_diffusers
from . import forwards
from .networks import HostedIPAdapter, Motion, adapter_layers


def base_config(unet_config: Mapping[str, Any]) -> UNetConfig:
    """The architecture of a Stable Diffusion 1.5 UNet from ComfyUI's description of it.

    Raises:
        MuseVError: another architecture.
    """
    width, multipliers = unet_config["model_channels"], unet_config["channel_mult"]
    depths = unet_config.get("num_res_blocks")
    per_block = [depths] * len(multipliers) if isinstance(depths, int) else list(depths or ())
    layers = per_block[0] if per_block else 0
    cross = unet_config.get("transformer_depth")
    heads = unet_config.get("num_heads", -1)
    ordinary = (
        bool(per_block)
        and len(set(per_block)) == 1
        and cross is not None
        and set(cross) <= {0, 1}
        and heads > 0
        and not unet_config.get("use_linear_in_transformer", False)
        and unet_config.get("adm_in_channels") is None
        and unet_config.get("in_channels", 4) == 4
    )
    if not ordinary:
        raise MuseVError(
            "MuseV needs a Stable Diffusion 1.5 model with 4 input channels; this MODEL is of another kind "
            f"(context width {unet_config.get('context_dim')}, {unet_config.get('in_channels')} input channels). "
            "Load an SD1.5 checkpoint; inpainting, SD2, SDXL, Flux and video models do not fit."
        )
    return UNetConfig(
        block_out_channels=tuple(width * m for m in multipliers),
        cross_attention_blocks=tuple(bool(cross[i * layers]) for i in range(len(multipliers))),
        layers_per_block=layers,
        num_heads=heads,
        context_dim=unet_config["context_dim"],
        temporal=False,
    )


def check_fit(motion: Motion, base: UNetConfig) -> None:
    """Raises MuseVError if the motion model was made for another size of UNet."""
    for name in ("block_out_channels", "layers_per_block", "cross_attention_blocks"):
        ours, theirs = getattr(motion.config, name), getattr(base, name)
        if ours != theirs:
            raise MuseVError(
                f"the motion model {motion.name} does not fit this MODEL: its {name.replace('_', ' ')} are {ours}, the "
                f"MODEL's are {theirs}. Use an SD1.5 checkpoint with a MuseV model made for SD1.5."
            )


class _Attention:
    """ComfyUI's attention for the layers it knows; temporal attention has a head per pixel and goes to torch.

    The network keeps this object and not the view: what is freed at the end of a run must hang on no cycle.
    """

    def __init__(self, heads: int):
        self.heads = heads
        self.transformer_options: dict[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[1] != self.heads:
            return scaled_dot_product(q, k, v)
        return optimized_attention(q, k, v, self.transformer_options)


class View:
    """MuseV's UNet whose leaf layers are the module objects of a loaded UNet, the motion model and the adapters.

    Args:
        unet: ComfyUI's UNet, as it is called (hooks and clones bring other objects than the MODEL's).
        base: its architecture.
    """

    def __init__(
        self,
        unet: nn.Module,
        base: UNetConfig,
        motion: Motion,
        image: HostedIPAdapter | None = None,
        face: HostedIPAdapter | None = None,
    ):
        check_fit(motion, base)
        self.bypassed = forwards.bypassed(unet, base)
        forwards.check_parts(self.bypassed)
        leaves = base_leaves(unet, base) | dict(_motion_leaves(motion.tree))
        config = replace(motion.config, num_heads=base.num_heads, context_dim=base.context_dim)
        for adapter, switch in ((image, "image_prompt"), (face, "face_prompt")):
            if adapter is not None and adapter.layers:
                leaves |= adapter_layers(adapter, base)
                config = replace(config, **{switch: True})
        self.attention = _Attention(base.num_heads)
        weights = {name: x for name, x in motion.tree.named_parameters() if name.endswith("temporal_weight")}

        def parameter(name: str, kind: str, *shape: Any) -> Any:
            if kind != "parameter":
                raise MuseVError(f"the layer {name} is missing in the loaded model; load the checkpoint again")
            return weights[name]

        self.net = MuseVUNet(config, Layers(hosted_layers(leaves, parameter, norm_gains), attention=self.attention))

    def __call__(self, transformer_options: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """What the network says, with ComfyUI's options of this call."""
        forwards.check_parts(self.bypassed)  # some replace a forward for the time of a call
        self.attention.transformer_options = transformer_options
        try:
            return self.net(*args, **kwargs)
        finally:
            self.attention.transformer_options = {}


def optimized_attention(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict[str, Any]) -> Tensor:
    """What the user has chosen for ComfyUI, on `(b, heads, n, d)`."""
    out = comfy.ldm.modules.attention.optimized_attention(
        *(heads_last(x) for x in (q, k, v)), heads=q.shape[1], transformer_options=transformer_options
    )
    return heads_first(out, q.shape[1])


def base_leaves(unet: nn.Module, base: UNetConfig) -> dict[str, nn.Module]:
    """The leaf modules of ComfyUI's UNet under the names they have in published MuseV files.

    Looked up by module path, not by tensor: quantised layers have other tensors or none.
    """
    modules = dict(forwards.named_parts(unet))
    leaves = {}
    for theirs, ours in unet_ldm_to_diffusers(base).items():
        path = theirs.rpartition(".")[0]
        if path not in modules:
            raise MuseVError(
                f"the UNet of this MODEL has no layer {path}, which Stable Diffusion 1.5 has. Load an SD1.5 checkpoint."
            )
        leaves[ours.rpartition(".")[0]] = modules[path]
    return leaves


def _motion_leaves(tree: MuseVUNet) -> Mapping[str, nn.Module]:
    return {
        name.rpartition(".")[0]: tree.get_submodule(name.rpartition(".")[0])
        for name, _ in tree.named_parameters()
        if not name.endswith("temporal_weight")
    }


def norm_gains(norm: nn.Module) -> Gains | None:
    """A norm's weight and bias for our fused kernels; None where they are patched, elsewhere, or not plain tensors.

    Nor where somebody has replaced what the norm does: then it has to be called.
    """
    if forwards.is_changed(norm):
        return None
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    patched = getattr(norm, "weight_function", None) or getattr(norm, "bias_function", None)
    plain = type(weight) is nn.Parameter and type(bias) is nn.Parameter and weight.dtype in DTYPES
    return (weight, bias) if plain and not patched and weight.device.type != "cpu" else None
