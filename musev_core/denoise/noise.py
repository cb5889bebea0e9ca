"""Noise of a whole video (musev.md 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import NOISE_TYPES
from ..errors import MuseVError

Generator = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class NoiseOptions:
    """How the frames' noise is related.

    Args:
        type: `video_fusion`: frames share a common part; `random`: independent, flickers.
        individual_weight: 0..1, variance share of a frame's own part; more means more motion.
        image_weight: 0..1, variance share of the condition frames' mean in the initial noise; None: off.
    """

    type: str = "video_fusion"
    individual_weight: float = 0.5
    image_weight: float | None = 0.001

    def __post_init__(self) -> None:
        if self.type not in NOISE_TYPES:
            raise MuseVError(f"unknown noise type {self.type!r}, expected one of {', '.join(NOISE_TYPES)}")
        if not 0 <= self.individual_weight <= 1:
            raise MuseVError(f"the individual noise weight must lie in 0..1, got {self.individual_weight}")
        if self.image_weight is not None and not 0 <= self.image_weight <= 1:
            raise MuseVError(f"the image noise weight must lie in 0..1, got {self.image_weight}")


def _randn(shape: Sequence[int], generator: Generator, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise MuseVError(f"expected one generator per video, got {len(generator)} for a batch of {shape[0]}")
        return torch.cat([_randn((1, *shape[1:]), g, device, dtype) for g in generator])
    # drawn where the generator lives, so that a seed gives the same noise whatever the model runs on
    source = generator.device if generator is not None else "cpu"
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=torch.float32).to(device, dtype)


def video_noise(
    shape: Sequence[int],
    options: NoiseOptions,
    generator: Generator = None,
    *,
    common_noise: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noise of unit variance, `shape = (b, c, t, h, w)`.

    With `video_fusion` the common part `(b, c, 1, h, w)` is drawn first, then the individual part, from the generator
    of the whole batch or from one generator per video. `common_noise` gives the common part instead of drawing it.
    """
    if isinstance(generator, Sequence) and common_noise is None:
        if len(generator) != shape[0]:
            raise MuseVError(f"expected one generator per video, got {len(generator)} for a batch of {shape[0]}")
        parts = [video_noise((1, *shape[1:]), options, g, device=device, dtype=dtype) for g in generator]
        return torch.cat(parts)
    if options.type == "random":
        return _randn(shape, generator, device, dtype)
    b, c, _, h, w = shape
    if common_noise is None:
        common_noise = _randn((b, c, 1, h, w), generator, device, dtype)
    individual = _randn(shape, generator, device, dtype)
    weight = options.individual_weight
    return (1 - weight) ** 0.5 * common_noise + weight**0.5 * individual


def image_based_noise(noise: Tensor, condition_latents: Tensor, image_weight: float) -> Tensor:
    """Mixes the mean condition latent into the noise: pulls colours towards the picture from the first step on.

    `noise (b, c, t, h, w)`, `condition_latents (b, c, n, h, w)`.
    """
    mean = condition_latents.mean(dim=2, keepdim=True)
    return image_weight**0.5 * mean + (1 - image_weight) ** 0.5 * noise


def noise_source(
    options: NoiseOptions, generator: Generator, device: torch.device | str, dtype: torch.dtype
) -> Callable[[Sequence[int]], Tensor]:
    """A function `shape -> noise` for a scheduler which needs fresh noise at its steps."""
    return lambda shape: video_noise(shape, options, generator, device=device, dtype=dtype)
