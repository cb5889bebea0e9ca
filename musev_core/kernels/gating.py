"""GEGLU (arXiv:2002.05202): half of a projection gates the other half."""

import torch.nn.functional as F
from torch import Tensor

from ..errors import MuseVError
from .operators import operator
from .selection import active, launchable, wide


def geglu(x: Tensor) -> Tensor:
    """First half times the exact GELU of the second half, computed in float32 at least: `(..., 2 d)` to `(..., d)`.

    Raises:
        MuseVError: if the last axis is odd.
    """
    if x.shape[-1] % 2:
        raise MuseVError(f"geglu needs two halves in the last axis, but its size is {x.shape[-1]}")
    return _operator(x) if active(x) else reference(x)


def reference(x: Tensor) -> Tensor:
    """`geglu` in plain torch."""
    value, gate = x.to(wide(x.dtype)).chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(x.dtype).contiguous()


def _run(x: Tensor) -> Tensor:
    if not launchable(x):
        return reference(x)
    from .fused.gating import geglu as fused

    return fused(x)


def _shape(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


_operator = operator("geglu(Tensor x) -> Tensor", _run, _shape)
