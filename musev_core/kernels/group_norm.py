"""Group norm of channels-last video, with the time embedding before it and SiLU after it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MuseVError
from .operators import operator
from .selection import active, launchable, wide


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    over_time: bool,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Tensor:
    """Group norm of `x (b, t, h, w, c)`, then SiLU; statistics, sum and result are computed in float32 at least.

    Statistics span (h, w) of each frame, or with `over_time` (t, h, w) of each clip. `weight (c)`, `bias (c)`;
    `shift (1 or b, 1 or t, c)` is added to x first (the time embedding of a resnet, musev.md 2.2).

    Returns:
        `(b, t, h, w, c)`, contiguous, in x's type.

    Raises:
        MuseVError: if the shapes do not fit each other or the groups.
    """
    if x.ndim != 5:
        raise MuseVError(f"group_norm_silu needs x (b, t, h, w, c), but its shape is {tuple(x.shape)}")
    b, t, c = x.shape[0], x.shape[1], x.shape[4]
    if groups < 1 or c % groups:
        raise MuseVError(f"{c} channels cannot be divided into {groups} groups of equal size")
    if weight.shape != (c,) or bias.shape != (c,):
        shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        raise MuseVError(f"the weight and bias of a group norm of {c} channels must be ({c},), but they are {shapes}")
    if shift is not None and (
        shift.ndim != 3 or shift.shape[0] not in (1, b) or shift.shape[1] not in (1, t) or shift.shape[2] != c
    ):
        raise MuseVError(f"shift must be (1 or {b}, 1 or {t}, {c}) for this x, but it is {tuple(shift.shape)}")
    run = _operator if active(x, weight, bias, shift) else reference
    return run(x, weight, bias, groups, eps, over_time, silu, shift)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, over_time: bool, silu: bool, shift: Tensor | None
) -> Tensor:
    """`group_norm_silu` in plain torch."""
    kind = wide(x.dtype)
    y = x.to(kind)
    if shift is not None:
        y = y + shift.to(kind)[:, :, None, None]
    y = y.unflatten(-1, (groups, -1))  # (b, t, h, w, groups, c / groups)
    variance, mean = torch.var_mean(y, (1, 2, 3, 5) if over_time else (2, 3, 5), correction=0, keepdim=True)
    y = ((y - mean) * torch.rsqrt(variance + eps)).flatten(-2) * weight.to(kind) + bias.to(kind)
    return (F.silu(y) if silu else y).to(x.dtype).contiguous()


def _run(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, over_time: bool, silu: bool, shift: Tensor | None
) -> Tensor:
    if not launchable(x):
        return reference(x, weight, bias, groups, eps, over_time, silu, shift)
    from .fused.group_norm import group_norm_silu as fused

    return fused(x, weight, bias, groups, eps, over_time=over_time, silu=silu, shift=shift)


def _shape(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, over_time: bool, silu: bool, shift: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape)


_operator = operator(
    "group_norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps, bool over_time, bool silu,"
    " Tensor? shift) -> Tensor",
    _run,
    _shape,
)
