"""From a request to a video: `MuseVPipeline`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoise.noise import VideoNoise
from ..encode.vae import LatentDecoder
from .clip import ClipPipeline
from .observer import Observer
from .request import PART, VideoRequest
from .result import VideoResult
from .shots import ShotRunner


@dataclass
class MuseVPipeline(ClipPipeline):
    """Makes videos: the first frame if none is given, then shots which continue each other (extra.md 2)."""

    def __call__(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        observer: Observer | None = None,
        **request: Any,
    ) -> VideoResult:
        """Makes a video; the other arguments are the fields of `VideoRequest`.

        `seed`, 0..2**64 - 1, decides everything random; default: one from torch's global generator.

        Raises:
            MuseVError: anything about the request that cannot be done, before the long work starts.
            Cancelled: the observer asked to stop.
        """
        return self.generate(VideoRequest(prompt=prompt, **request), seed=seed, observer=observer)

    def stream(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        observer: Observer | None = None,
        length: int | None = PART,
        frames: range | None = None,
        batch: int | None = None,
        decoder: LatentDecoder | None = None,
        dtype: torch.dtype | None = None,
        **request: Any,
    ) -> Iterator[Tensor]:
        """Frames `(k, H, W, 3)` in 0..1 of a video as they are ready, the first ones while later ones are still noise.

        They are those of `pipeline(prompt, ...).video()`. What is in memory does not grow with the video; driving
        frames neither, if they come from a `frames.source.FileFrames`.

        Args:
            length: generated frames of a part, at least 1; None: a shot at once. The first of short parts comes sooner:
                with windows of 12 that share 4, and 10 steps, 8 frames wait for 55 evaluations of a window, 48 for 105.
            frames: only these of the video, as the whole run makes them; in a later shot none alone.
            batch, decoder, dtype: see `VideoResult.frames`; request: the fields of `VideoRequest`.

        Raises:
            MuseVError: as `__call__`, before the first frame is asked for.
        """
        plan = self.plan(VideoRequest(prompt=prompt, **request), seed=seed, observer=observer)
        return plan.stream(length, frames=frames, batch=batch, decoder=decoder, dtype=dtype)

    @torch.no_grad()
    def generate(
        self, request: VideoRequest, *, seed: int | None = None, observer: Observer | None = None
    ) -> VideoResult:
        """Makes the video of a request, see `__call__`."""
        return self.plan(request, seed=seed, observer=observer).run()

    @torch.no_grad()
    def plan(self, request: VideoRequest, *, seed: int | None = None, observer: Observer | None = None) -> ShotRunner:
        """The checked request with all its control maps, to be `run`; see `__call__`."""
        noise = VideoNoise(None if seed is None else [seed])
        return ShotRunner(self, request, noise, observer or Observer())
