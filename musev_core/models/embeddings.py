"""Sinusoidal embeddings of time steps and frame numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Layers


def sinusoidal(positions: Tensor, dim: int) -> Tensor:
    """`(...)` numbers to `(..., dim)`: cosines, then sines, in float32 (musev.md 2.2)."""
    half = dim // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.float()[..., None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


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
