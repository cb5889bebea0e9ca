"""Noise levels of a run: ComfyUI's schedulers, and the original's own spacing."""

from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...musev_core.errors import MuseVError

ORIGINAL = "musev_linspace"
MOST_STEPS = 100_000


def sigmas_of(model: Any, scheduler: str, steps: int, denoise: float, sampler: str) -> Tensor:
    """`(steps + 1)` noise levels, highest first, 0 last, as KSampler has them; empty if there is nothing to do."""
    if denoise <= 0:
        return torch.zeros(0)
    total = steps if denoise > 0.9999 else int(min(steps / denoise, MOST_STEPS + 1))
    if total > MOST_STEPS:
        raise MuseVError(
            f"{steps} steps with a denoise of {denoise} are a part of more than {MOST_STEPS} steps; raise denoise, or "
            "take fewer steps."
        )
    sampling = model.get_model_object("model_sampling")
    # some samplers cannot take the last step down to nothing from a level as low as the one before it
    leap = sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    if scheduler == ORIGINAL:
        sigmas = _linspace(sampling, total + leap)
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total + leap).cpu()
    if leap:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas[-(steps + 1) :]


def fractional_time(sampling: Any, sigma: float) -> float:
    """The time step of a noise level, between two of the training's; ComfyUI rounds it."""
    table = _table(sampling)
    below = int(torch.searchsorted(table, sigma, right=True).clamp(1, len(table) - 1)) - 1
    return below + float((sigma - table[below]) / (table[below + 1] - table[below]))


def _table(sampling: Any) -> Tensor:
    table = getattr(sampling, "sigmas", None)
    if table is None:
        raise MuseVError(f"{ORIGINAL} needs a model with discrete time steps; choose another scheduler")
    return table.double().cpu()


def _linspace(sampling: Any, steps: int) -> Tensor:
    """The original's Euler schedule (musev.md 4): fractional time steps, interpolated in sigma.

    ComfyUI rounds the steps and interpolates in log sigma: the same at 4 and 10 steps, slightly different elsewhere.
    """
    table = _table(sampling)
    last = len(table) - 1
    times = torch.linspace(last, 0, steps, dtype=torch.float64) if steps > 1 else torch.tensor([float(last)])
    below = times.floor().long()
    above = (below + 1).clamp(max=last)
    share = times - below
    levels = (1 - share) * table[below] + share * table[above]
    return torch.cat([levels, levels.new_zeros(1)]).float()
