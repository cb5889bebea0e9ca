"""MuseV's networks in ComfyUI's care: built from its casting layers, moved and freed by its model management."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor, nn

from ...musev_core.config import ImageProjectionConfig, UNetConfig
from ...musev_core.errors import CheckpointError, naming
from ...musev_core.models.ip_adapter import image_projection
from ...musev_core.models.layers import Layers, new_layers
from ...musev_core.models.reference_net import ReferenceNet
from ...musev_core.models.unet import MuseVUNet
from ...musev_core.weights.architecture import image_projection_config, unet_config_from_shapes
from ...musev_core.weights.config_json import read_config
from ...musev_core.weights.files import Shapes, check_finite, read_tensors, select, shapes_of, shorten
from ...musev_core.weights.filling import fill
from ...musev_core.weights.keymaps import ip_attention_names, is_motion_name, motion_tensors, split_ip_adapter
from ...musev_core.weights.kinds import (
    MUSEV_FAMILIES,
    Family,
    describe,
    recognise,
)
from ...musev_core.weights.lora import Lora, read_faceid_lora


@dataclass(frozen=True, eq=False)
class Motion:
    """MuseV's own layers of the UNet; what is Stable Diffusion's comes from the MODEL they are applied to.

    `tree` has the parameters of the motion layers only, under their published names.
    """

    config: UNetConfig
    tree: MuseVUNet
    patcher: Any
    name: str


@dataclass(frozen=True, eq=False)
class HostedReferenceNet:
    """The ReferenceNet."""

    net: ReferenceNet
    patcher: Any
    name: str


@dataclass(frozen=True, eq=False)
class HostedIPAdapter:
    """From an image encoder's output to prompt tokens, and the attention layers which look at these.

    `layers` maps the file's names to its key and value layers; empty for MuseV's own projection, whose layers are part
    of the motion model. `lora` is that of a FaceID file, under this pack's names of the base model's layers.
    """

    config: ImageProjectionConfig
    projection: nn.Module
    layers: dict[str, nn.Module]
    patchers: tuple[Any, ...]
    name: str
    lora: Lora | None = None


class _Absent:
    """Stands where the base model's layer will be: invisible to parameters(), and never called."""


def _motion_only(name: str, kind: str, *shape: Any) -> Any:
    return _casting(name, kind, *shape) if is_motion_name(name) else _Absent()


_casting = new_layers(comfy.ops.manual_cast)


def _managed(net: Any, dtype: torch.dtype) -> Any:
    """A network in evaluation mode with its patcher. The class is looked up now: ComfyUI replaces it at start-up."""
    net.eval().requires_grad_(False)
    net.dtype = dtype
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(
        net,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _dtype(given: torch.dtype | None, parameters: int) -> torch.dtype:
    if given is not None:
        return given
    return comfy.model_management.unet_dtype(device=comfy.model_management.get_torch_device(), model_params=parameters)


def load_motion(path: str, dtype: torch.dtype | None = None) -> Motion:
    """MuseV's motion layers from its UNet file, complete or motion only (musev.md 7).

    Args:
        dtype: of the stored weights; None: what ComfyUI would choose for a UNet here.

    Raises:
        CheckpointError: another kind of file, or a damaged one.
    """
    tensors = read_tensors(path)
    shapes = shapes_of(tensors)
    kind = recognise(shapes)
    if kind.family not in MUSEV_FAMILIES:
        raise CheckpointError(
            f"A MuseV motion model was expected, but {Path(path).name} is {describe(kind)}. Choose "
            "motion/<variant>/unet/diffusion_pytorch_model of the MuseV repository."
        )
    return motion_from(tensors, _unet_config(shapes, path), path, dtype)


def _unet_config(shapes: Shapes, path: str) -> UNetConfig:
    with naming(path):
        return unet_config_from_shapes(shapes, read_config(Path(path).parent))


def motion_from(
    tensors: Mapping[str, Tensor], config: UNetConfig, source: str, dtype: torch.dtype | None = None
) -> Motion:
    """The motion model of a UNet's tensors; `source` is the file they are from."""
    with torch.device("meta"):
        tree = MuseVUNet(config, Layers(_motion_only))
    found = select(
        motion_tensors(tensors), shapes_of(tree.state_dict()), source=source, tolerate=("*.ip_adapter_face_to_*",)
    )
    dtype = _dtype(dtype, sum(x.numel() for x in found.values()))
    fill(tree, found, source, dtype)
    return Motion(config, tree, _managed(tree, dtype), Path(source).name)


def load_reference_net(path: str, dtype: torch.dtype | None = None) -> HostedReferenceNet:
    """The ReferenceNet, or the same part of a UNet under diffusers names (musev.md 3).

    Raises:
        CheckpointError: another kind of file, or a damaged one.
    """
    tensors = read_tensors(path)
    shapes = shapes_of(tensors)
    kind = recognise(shapes)
    if kind.family not in (Family.REFERENCENET, Family.UNET) or kind.form == "LDM":
        raise CheckpointError(
            f"A MuseV ReferenceNet was expected, but {Path(path).name} is {describe(kind)}. Choose "
            "motion/musev_referencenet/referencenet/diffusion_pytorch_model of the MuseV repository."
        )
    # sizes come from the tensors: those in the published config.json are wrong (musev.md 7)
    return reference_net_from(tensors, _unet_config(shapes, path), path, dtype)


def reference_net_from(
    tensors: Mapping[str, Tensor], config: UNetConfig, source: str, dtype: torch.dtype | None = None
) -> HostedReferenceNet:
    """The ReferenceNet of these tensors; `source` is the file they are from."""
    with torch.device("meta"):
        net = ReferenceNet(config, Layers(_casting))
    found = select(
        tensors, shapes_of(net.state_dict()), source=source, tolerate=("up_blocks.*", "conv_norm_out.*", "conv_out.*")
    )
    dtype = _dtype(dtype, sum(x.numel() for x in found.values()))
    fill(net, found, source, dtype)
    return HostedReferenceNet(net, _managed(net, dtype), Path(source).name)


def load_ip_adapter(path: str, dtype: torch.dtype | None = None) -> HostedIPAdapter:
    """MuseV's image projection or an IP-Adapter (plain, plus, plus-face, FaceID), told apart by tensors (extra.md 6).

    The projection is small and stays in float32.

    Raises:
        CheckpointError: another kind of file, or a damaged one.
    """
    tensors = read_tensors(path)
    kind = recognise(shapes_of(tensors))
    if kind.family not in (Family.IP_ADAPTER, Family.IMAGE_PROJECTION):
        raise CheckpointError(
            f"An IP-Adapter or MuseV's image projection was expected, but {Path(path).name} is {describe(kind)}."
        )
    with naming(path):
        projection, attention = split_ip_adapter(tensors)
    return ip_adapter_from(projection, attention, path, dtype)


def ip_adapter_from(
    projection: Mapping[str, Tensor],
    attention: Mapping[str, Tensor],
    source: str,
    dtype: torch.dtype | None = None,
) -> HostedIPAdapter:
    """An adapter of a projection's tensors and an IP-Adapter file's attention; `source` is the file they are from."""
    with naming(source):
        config = image_projection_config(shapes_of(projection))
    with torch.device("meta"):
        net = image_projection(config)
    fill(net, select(projection, shapes_of(net.state_dict()), source=source), source, torch.float32)
    patchers = [_managed(net, torch.float32)]
    layers: dict[str, nn.Module] = {}
    weights = {name: x for name, x in attention.items() if name.endswith(("to_k_ip.weight", "to_v_ip.weight"))}
    if weights:
        if flat := [name for name, x in weights.items() if x.ndim != 2]:
            raise CheckpointError(f"{source} is damaged: {shorten(flat)} should be matrices. Download it again.")
        check_finite(weights, source)
        dtype = _dtype(dtype, sum(x.numel() for x in weights.values()))
        with torch.device("meta"):
            layers = {name: _casting(name, "linear", x.shape[1], x.shape[0], False) for name, x in weights.items()}
        tree = nn.ModuleList(layers.values())
        fill(tree, {f"{i}.weight": x for i, x in enumerate(weights.values())}, source, dtype)
        patchers.append(_managed(tree, dtype))
    face = config.kind == "faceid"
    return HostedIPAdapter(
        config,
        net,
        layers,
        tuple(patchers),
        Path(source).name,
        read_faceid_lora(attention, source=source) if face and any("_lora." in name for name in attention) else None,
    )


def adapter_layers(adapter: HostedIPAdapter, config: UNetConfig) -> dict[str, nn.Module]:
    """The adapter's key and value layers under the names they have in a UNet.

    Raises:
        CheckpointError: it was made for another UNet.
    """
    face = adapter.config.kind == "faceid"
    named = ip_attention_names(adapter.layers, face=face, config=config)
    return {name.removesuffix(".weight"): layer for name, layer in named.items()}
