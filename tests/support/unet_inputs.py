"""Small inputs for the networks, in float64 so that equal means equal, and the diffusers UNet to compare with."""

import copy
from dataclasses import fields

import torch
from torch import Tensor, nn

from musev_core.models.conditions import ClipConditions, ControlResiduals, ReferenceFeatures
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.unet import MuseVUNet

from . import golden_models as models
from .numbers import det, fill

SIZE = (10, 8)  # latent height and width: different, and odd further down
REFERENCED = "musev_referencenet"
ARCHS = ("musev", REFERENCED)
SAME = 1e-12  # relative distance between two ways of computing the same in float64


@models.shared
def unet(arch: str = REFERENCED, face_layers: bool = False) -> MuseVUNet:
    """The tiny2 network of the goldens. Shared by all tests: never change it."""
    return copy.deepcopy(models.unet(arch, "tiny2", 0, face_layers)).double()


@models.shared
def reference_net() -> ReferenceNet:
    """The tiny2 ReferenceNet of the goldens. Shared by all tests: never change it."""
    return copy.deepcopy(models.reference_net("tiny2", 0)).double()


def diffusers_unet() -> nn.Module:
    """diffusers' Stable Diffusion UNet of size tiny2, with the same weights as `unet` under the same names."""
    from diffusers import UNet2DConditionModel

    size = models.CONFIG["sizes"]["tiny2"]
    net = UNet2DConditionModel(
        block_out_channels=tuple(size["block_out_channels"]),
        layers_per_block=size["layers_per_block"],
        norm_num_groups=size["norm_groups"],
        attention_head_dim=size["num_heads"],  # the number of heads, in spite of its name
        cross_attention_dim=size["context_dim"],
    )
    # Module.to, because diffusers' own warns about a part of the network that this one does not have
    return nn.Module.to(fill(net, models.PREFIX["unet"], 0), torch.float64)


def numbers(name: str, *shape: int, seed: int = 0) -> Tensor:
    return det(name, shape, seed).double()


def sample(rows: int = 2, frames: int = 4, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return numbers("sample", rows, 4, frames, *size, seed=seed)


def text(rows: int = 2, seed: int = 0) -> Tensor:
    return numbers("txt", rows, 7, 32, seed=seed)


def image_tokens(rows: int = 2, seed: int = 0) -> Tensor:
    return numbers("ip", rows, 4, 32, seed=seed)


def reference(rows: int = 2, pictures: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> ReferenceFeatures:
    latents = numbers("ref", rows, 4, pictures, *size, seed=seed)
    with torch.no_grad():
        return reference_net()(latents, image_tokens(rows, seed))


def full_clip(rows: int = 2, seed: int = 0) -> ClipConditions:
    """Text, image tokens and a reference picture."""
    return ClipConditions(text(rows, seed), image_tokens(rows, seed), reference=reference(rows, seed=seed))


def varied(clip: ClipConditions, **changes) -> ClipConditions:
    """Another clip that differs in these fields only."""
    public = {f.name: getattr(clip, f.name) for f in fields(clip) if not f.name.startswith("_")}
    return ClipConditions(**public | changes)


def control(rows: int = 2, frames: int = 4, scale: float = 0.1) -> ControlResiduals:
    """One addition for every skip connection: they have the shapes of the ReferenceNet's features."""
    features = reference(rows, frames)

    def addition(i: int, x: Tensor) -> Tensor:
        return scale * numbers(f"control{i}", rows * frames, x.shape[-1], *x.shape[2:4])

    return ControlResiduals(
        tuple(addition(i, x) for i, x in enumerate(features.down)), addition(len(features.down), features.mid)
    )


def distance(x: Tensor, y: Tensor) -> float:
    """Relative L2 distance from `y`; NaN anywhere gives NaN, which is below no limit."""
    return float((x - y).norm() / y.norm())
