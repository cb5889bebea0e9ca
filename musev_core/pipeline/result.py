"""A finished video."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encode.vae import LatentDecoder, decode_latents
from ..frames.images import matched_to_first


@dataclass
class VideoResult:
    """A finished video: latents `(4, frames, h, w)`, decoded when the frames are asked for."""

    latents: Tensor
    vae: Any
    match_histogram: bool = False

    def __len__(self) -> int:
        return self.latents.shape[1]

    def frames(
        self, *, batch: int | None = None, decoder: LatentDecoder | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[Tensor]:
        """Frames `(k, H, W, 3)` in 0..1, a few at a time, so that a long video never is in memory as pixels.

        Args:
            batch: how many at once; default: as many as fit in memory.
            decoder: another than the pipeline's VAE, e.g. a fast TAESD for a look.
            dtype: precision; default: what is safe, see `musev_core.encode.vae`.
        """
        frames = decode_latents(decoder or self.vae, self.latents, batch=batch, dtype=dtype)
        return matched_to_first(frames) if self.match_histogram else frames

    def video(self, **options: Any) -> Tensor:
        """All frames `(frames, H, W, 3)` in 0..1; `options` as for `frames`."""
        return torch.cat(list(self.frames(**options)))

    def save(self, path: str, *, fps: float, overwrite: bool = False, **options: Any) -> str:
        """Writes the video while it is decoded; the suffix decides the format, `options` are as for `frames`."""
        from ..frames.video import VideoWriter

        with VideoWriter(path, fps=fps, overwrite=overwrite) as writer:
            for part in self.frames(**options):
                writer.write(part)
        return str(writer.path)
