"""Residual sum and layer norm in one pass."""

import torch.nn.functional as F
from torch import Tensor

from ..errors import MuseVError
from .operators import operator
from .selection import active, launchable, wide


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + residual`, and its layer norm over the last axis, whose statistics are float32 at least.

    `x`, `residual (..., c)` of one type; `weight (c)`, `bias (c)`. The norm sees the sum as it is returned, rounded to
    x's type, so that the result is that of the two operations one after the other.

    Returns:
        The sum and the normed sum, both `(..., c)`, contiguous, in x's type.

    Raises:
        MuseVError: if shapes or types do not fit each other.
    """
    if x.shape != residual.shape or x.dtype != residual.dtype:
        sides = f"{tuple(x.shape)} {x.dtype} and {tuple(residual.shape)} {residual.dtype}"
        raise MuseVError(f"add_layer_norm needs two tensors of one shape and type, but they are {sides}")
    c = x.shape[-1]
    if weight.shape != (c,) or bias.shape != (c,):
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise MuseVError(f"the weight and bias of a layer norm of {c} channels must be ({c},), but they are {shapes}")
    return (_operator if active(x, residual, weight, bias) else reference)(x, residual, weight, bias, eps)


def reference(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`add_layer_norm` in plain torch."""
    total = (x + residual).contiguous()
    kind = wide(x.dtype)
    return total, F.layer_norm(total.to(kind), weight.shape, weight.to(kind), bias.to(kind), eps).to(x.dtype)


def _run(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if not launchable(x):
        return reference(x, residual, weight, bias, eps)
    from .fused.layer_norm import MAX_CHANNELS
    from .fused.layer_norm import add_layer_norm as fused

    run = fused if x.shape[-1] <= MAX_CHANNELS else reference
    return run(x, residual, weight, bias, eps)


def _shape(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


_operator = operator(
    "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)", _run, _shape
)
