"""Sinusoidal embeddings of time steps and frame numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import ClipConditions
from .layers import Layers


def sinusoidal(positions: Tensor, dim: int) -> Tensor:
    """`(...)` numbers to `(..., dim)`: cosines, then sines, in float32 (musev.md 2.2)."""
    half = dim // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.float()[..., None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class FrameEmbedding:
    """The embedded frame numbers of a window, `(1 or b, t, dim)`; what is projected from it is constant over a clip.

    `key` names the numbers among all windows of the clip, None if they were given for this call alone.
    """

    value: Tensor
    key: tuple[int, float] | None

    def projected(self, name: str, project: Callable[[Tensor], Tensor], clip: ClipConditions) -> Tensor:
        """`(1 or b, t, c)` for the layer called `name`."""
        if self.key is None:
            return project(F.silu(self.value))
        return clip.once((name, "frames", self.key), lambda: project(F.silu(self.value)))


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear on sinusoids."""

    def __init__(self, layers: Layers, dim: int, out_dim: int):
        super().__init__()
        self.dim = dim
        self.linear_1 = layers.linear("linear_1", dim, out_dim)
        self.linear_2 = layers.linear("linear_2", out_dim, out_dim)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """`(...)` to `(..., out_dim)`."""
        return self.linear_2(F.silu(self.linear_1(sinusoidal(positions, self.dim).to(dtype))))
