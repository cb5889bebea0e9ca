"""Noise levels of a run: ComfyUI's schedulers, and the original's own spacing."""

from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...musev_core.errors import MuseVError

ORIGINAL = "musev_linspace"


def sigmas_of(model: Any, scheduler: str, steps: int, denoise: float) -> Tensor:
    """`(steps + 1)` noise levels, highest first, 0 last; empty if there is nothing to do."""
    if denoise <= 0:
        return torch.zeros(0)
    total = steps if denoise >= 1 else round(steps / denoise)
    sampling = model.get_model_object("model_sampling")
    if scheduler == ORIGINAL:
        sigmas = _linspace(sampling, total)
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total).cpu()
    return sigmas[-(steps + 1) :]


def _linspace(sampling: Any, steps: int) -> Tensor:
    """The original's Euler schedule (musev.md 4): fractional time steps, interpolated in sigma.

    ComfyUI rounds the steps and interpolates in log sigma: the same at 4 and 10 steps, slightly different elsewhere.
    """
    table = getattr(sampling, "sigmas", None)
    if table is None:
        raise MuseVError(f"{ORIGINAL} needs a model with discrete time steps; choose another scheduler")
    table = table.double().cpu()
    last = len(table) - 1
    times = torch.linspace(last, 0, steps, dtype=torch.float64) if steps > 1 else torch.tensor([float(last)])
    below = times.floor().long()
    above = (below + 1).clamp(max=last)
    share = times - below
    levels = (1 - share) * table[below] + share * table[above]
    return torch.cat([levels, levels.new_zeros(1)]).float()
