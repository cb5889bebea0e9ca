"""Driving frames on the timeline of a video: fitted, preprocessed and encoded when they are first needed.

The timeline counts the frames of the result. Where a driving video does not show the condition frames, their own
pictures stand at their places, and the driving frames around them.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..encode.vae import encode_latents
from ..errors import MuseVError
from ..frames.images import fit_video, to_uint8
from ..frames.source import FrameSource

ENCODED_AT_ONCE = 8  # frames; groups are counted from a shot's first, since bits depend on the batch


class DrivingFrames:
    """Pictures `(height, width, 3)` in 0..1 by their number on the timeline.

    Args:
        source: the driving video.
        height, width: what its frames are fitted to; legacy: as the original fits them.
        preprocessor: makes uint8 maps of uint8 frames.
        condition: pictures `(n, height, width, 3)` in 0..1 at the `places` which the driving video does not show.
    """

    def __init__(
        self,
        source: FrameSource,
        height: int,
        width: int,
        *,
        legacy: bool = False,
        preprocessor: Callable[[Tensor], Tensor] | None = None,
        condition: Tensor | None = None,
        places: Sequence[int] = (),
    ):
        self.source, self.height, self.width, self.legacy = source, height, width, legacy
        self._preprocessor = preprocessor
        self._condition = condition
        self._places = list(places) if condition is not None else []
        self._sorted = sorted(self._places)
        self._maps: dict[int, Tensor] = {}  # uint8, by number of the source

    def __len__(self) -> int:
        """Frames of the timeline that can be asked for."""
        return len(self.source) + len(self._places)

    def take(self, numbers: Sequence[int]) -> Tensor:
        """`(k, height, width, 3)` in 0..1."""
        driving = {i: self._behind(i) for i in numbers if i not in self._places}
        if self._preprocessor is None:
            made = dict(zip(driving, self._fitted(list(driving.values())) / 255, strict=True)) if driving else {}
        else:
            self._preprocess([n for n in driving.values() if n not in self._maps])
            made = {i: self._maps[n].float() / 255 for i, n in driving.items()}
        if self._condition is not None:
            made |= {i: self._condition[self._places.index(i)] for i in numbers if i in self._places}
        return torch.stack([made[i] for i in numbers])

    def forget_before(self, number: int, keep: Sequence[int] = ()) -> None:
        """Drops what was read for frames of the timeline before `number`, but for those of `keep`."""
        first = self._behind(number)
        kept = {self._behind(i) for i in keep if i not in self._places}
        self.source.forget_before(first, kept)
        self._maps = {n: x for n, x in self._maps.items() if n >= first or n in kept}

    def _behind(self, number: int) -> int:
        """The driving frame at a place of the timeline, or the next one."""
        return number - bisect.bisect_left(self._sorted, number)

    def _fitted(self, numbers: list[int]) -> Tensor:
        return fit_video(self.source.take(numbers), self.height, self.width, legacy=self.legacy)

    def _preprocess(self, numbers: list[int]) -> None:
        if not numbers or self._preprocessor is None:
            return
        fitted = self._fitted(numbers)
        maps = self._preprocessor(to_uint8(fitted / 255))
        if maps.shape != fitted.shape:
            raise MuseVError(
                f"a preprocessor must return one picture per frame, {tuple(fitted.shape)}, got {tuple(maps.shape)}"
            )
        self._maps |= dict(zip(numbers, maps, strict=True))


class ClipHints:
    """Control maps of a clip's frames, see `denoise.control.HintFrames`.

    Args:
        timeline: the number of each frame of the clip on the timeline.
    """

    device = torch.device("cpu")

    def __init__(self, frames: DrivingFrames, timeline: Sequence[int]):
        self._frames, self._timeline = frames, timeline
        self.shape = (len(timeline), 3, frames.height, frames.width)

    def __getitem__(self, frames: list[int]) -> Tensor:
        """`(k, 3, height, width)` in 0..1."""
        return self._frames.take([self._timeline[i] for i in frames]).permute(0, 3, 1, 2)


class ClipLatents:
    """Latents of a clip's generated frames, see `request.LatentFrames`; a group of frames is encoded when it is needed.

    Args:
        timeline: the number of each generated frame on the timeline.
    """

    def __init__(self, vae: Any, frames: DrivingFrames, timeline: Sequence[int], channels: int):
        self._vae, self._frames, self._timeline = vae, frames, timeline
        self.shape = (1, channels, len(timeline), frames.height // 8, frames.width // 8)
        self._groups: dict[int, Tensor] = {}

    def take(self, first: int, last: int) -> Tensor:
        """`(1, c, last - first, h, w)`; what was made for frames before `first` is dropped."""
        wanted = range(first // ENCODED_AT_ONCE, -(-last // ENCODED_AT_ONCE))
        self._groups = {group: x for group, x in self._groups.items() if group in wanted}
        for group in wanted:
            if group not in self._groups:
                numbers = self._timeline[group * ENCODED_AT_ONCE : (group + 1) * ENCODED_AT_ONCE]
                frames = self._frames.take(numbers)
                self._groups[group] = encode_latents(self._vae, frames, batch=ENCODED_AT_ONCE)[None]
        begin = wanted.start * ENCODED_AT_ONCE
        return torch.cat([self._groups[group] for group in wanted], dim=2)[:, :, first - begin : last - begin]
