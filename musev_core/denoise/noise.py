"""Noise of a whole video (musev.md 4), addressed by frame number, or drawn at once as the original does.

By frame number, the noise of a frame depends on seed, draw and frame alone: not on how long the video is, nor on which
part of it is being made.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import NOISE_DRAWS, NOISE_TYPES
from ..errors import MuseVError
from ..values import check_seed

Generator = torch.Generator | Sequence[torch.Generator] | None

COMMON = 2**63  # the frame number of what all frames share


@dataclass(frozen=True)
class NoiseOptions:
    """How the frames' noise is related.

    Args:
        type: `video_fusion`: frames share a common part; `random`: independent, flickers.
        individual_weight: 0..1, variance share of a frame's own part; more means more motion.
        image_weight: 0..1, variance share of the condition frames' mean in the initial noise; None: off.
        draw: `frames`: by frame number, so that a longer video begins like a shorter one, and any part can be made
            alone; `original`: the whole clip from one generator of torch, frame by frame the numbers of the original.
    """

    type: str = "video_fusion"
    individual_weight: float = 0.5
    image_weight: float | None = 0.001
    draw: str = "frames"

    def __post_init__(self) -> None:
        if self.type not in NOISE_TYPES:
            raise MuseVError(f"unknown noise type {self.type!r}, expected one of {', '.join(NOISE_TYPES)}")
        if self.draw not in NOISE_DRAWS:
            raise MuseVError(f"unknown noise draw {self.draw!r}, expected one of {', '.join(NOISE_DRAWS)}")
        if not 0 <= self.individual_weight <= 1:
            raise MuseVError(f"the individual noise weight must lie in 0..1, got {self.individual_weight}")
        if self.image_weight is not None and not 0 <= self.image_weight <= 1:
            raise MuseVError(f"the image noise weight must lie in 0..1, got {self.image_weight}")


class VideoNoise:
    """All the noise of a video, or of a batch of videos: any frame's, at every draw.

    Args:
        seeds: one per video, 0..2**64 - 1; None: one video, and a seed from torch's global generator.
    """

    def __init__(self, seeds: Sequence[int] | None = None):
        if seeds is None:
            seeds = [int(torch.randint(2**63 - 1, ()))]
        self.seeds = [check_seed("seed", seed) for seed in seeds]
        self._stream = 0
        self._generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def stream(self, number: int) -> "VideoNoise":
        """Other numbers from the same seeds, for another run over the same frames; 0 is the video's own.

        The original's generators run on through all runs of a video, and so they do here.
        """
        other = copy.copy(self)
        other._stream = number
        return other

    def draw(self, number: int, frames: Sequence[int], size: Sequence[int], options: NoiseOptions) -> Tensor:
        """Noise of unit variance `(videos, c, frames, h, w)` in float32, on the CPU whatever the model runs on.

        Args:
            number: of the draw: 0 is the initial noise, the others are those of a run's steps. The original's draw
                knows no numbers: it gives what comes next.
            frames: numbers of the frames in the video; size: `(c, h, w)`.
        """
        if options.draw == "original":
            c, h, w = size
            return video_noise((len(self.seeds), c, len(frames), h, w), options, self._generators)
        return torch.stack([self._of_frames(seed, number, frames, size, options) for seed in self.seeds])

    def skip(self, frames: Sequence[int], size: Sequence[int], options: NoiseOptions) -> None:
        """Passes over what the original draws here and does not use; by frame number there is nothing to pass over."""
        if options.draw == "original":
            self.draw(0, frames, size, options)

    def _of_frames(
        self, seed: int, number: int, frames: Sequence[int], size: Sequence[int], options: NoiseOptions
    ) -> Tensor:
        own = torch.stack([self._normal(seed, number, frame, size) for frame in frames], dim=1)
        if options.type == "random":
            return own
        common = self._normal(seed, number, COMMON, size)[:, None]
        weight = options.individual_weight
        return (1 - weight) ** 0.5 * common + weight**0.5 * own

    def _normal(self, seed: int, number: int, frame: int, size: Sequence[int]) -> Tensor:
        """Box and Muller's transform of the raw bits of a counter-based generator.

        numpy promises that raw bits stay the same over its versions and machines, which it does not of its normals.
        """
        import numpy as np

        n = int(np.prod(size))
        # as arrays of their own type: numpy makes floats of a list with a number over 2**63
        key = np.array([seed, self._stream << 32 | number], dtype=np.uint64)
        counter = np.array([0, 0, 0, frame], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=counter).random_raw(2 * n)
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
        normal = np.sqrt(-2 * np.log(uniform[:n])) * np.cos(2 * np.pi * uniform[n:])
        return torch.from_numpy(normal.astype(np.float32)).reshape(tuple(size))


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
    """Noise of a whole clip as the original draws it, of unit variance, `shape = (b, c, t, h, w)`.

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
