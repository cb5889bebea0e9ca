"""Guidance scale over the steps (extra.md 2.8)."""

import math

from torch import Tensor

from ..config import GUIDANCE_METHODS
from ..errors import MuseVError


def guidance_schedule(start: float, end: float | None, method: str, num_steps: int) -> list[float]:
    """The guidance scale of every step.

    Args:
        start, end: first and last value; `end=None` keeps `start` throughout.
        method: `linear`; `two_stage`: half the steps each; `three_stage`: thirds, with the truncated mean between;
            `fix_two_stage`: `start` for three steps, then `end`.
        num_steps: at least 1.
    """
    if method not in GUIDANCE_METHODS:
        raise MuseVError(f"unknown guidance method {method!r}, expected one of {', '.join(GUIDANCE_METHODS)}")
    if not all(math.isfinite(g) for g in (start, end if end is not None else 0.0)):
        raise MuseVError(f"guidance scales must be finite numbers, got {start} to {end}")
    if num_steps < 1:
        raise MuseVError(f"the number of steps must be at least 1, got {num_steps}")
    if end is None or end == start:
        return [float(start)] * num_steps
    if method == "linear":
        span = max(num_steps - 1, 1)
        return [start + (end - start) * i / span for i in range(num_steps)]
    if method == "two_stage":
        first = num_steps // 2
        return [float(start)] * first + [float(end)] * (num_steps - first)
    if method == "three_stage":
        third = num_steps // 3
        middle = float(int((start + end) // 2))
        return [float(start)] * third + [middle] * third + [float(end)] * (num_steps - 2 * third)
    first = min(3, num_steps)
    return [float(start)] * first + [float(end)] * (num_steps - first)


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598)."""
    return unconditional + scale * (conditional - unconditional)
