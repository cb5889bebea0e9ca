"""Frames of a video by number: read when they are first needed, and kept no longer than they are."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MuseVError
from ..file_names import shown
from .video import checked_source

log = logging.getLogger(__name__)


class FrameSource(Protocol):
    """Frames uint8 `(H, W, 3)` of one size, by their numbers from 0 on."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Their height and width."""
        ...

    def take(self, numbers: Sequence[int]) -> Tensor:
        """Some of them, `(k, H, W, 3)`."""
        ...

    def forget_before(self, number: int, keep: Collection[int] = ()) -> None:
        """Those before a number are not needed soon, but for `keep`."""
        ...


class GivenFrames:
    """A `FrameSource` of frames in memory, uint8 `(n, H, W, 3)`."""

    def __init__(self, frames: Tensor):
        """The frames stay where they are."""
        self.frames = frames

    def __len__(self) -> int:
        """How many there are."""
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Their height and width."""
        return self.frames.shape[1], self.frames.shape[2]

    def take(self, numbers: Sequence[int]) -> Tensor:
        """Some of them."""
        return self.frames[list(numbers)]

    def forget_before(self, number: int, keep: Collection[int] = ()) -> None:
        """Nothing: they are the caller's."""


class FileFrames:
    """A `FrameSource` of a video file or folder of pictures: frames 0, `stride`, 2 `stride`, ...

    It reads on from where it is, so that numbers should rise; for one that is behind it begins anew.

    Args:
        max_frames: how many at most.

    Raises:
        MuseVError: as `iter_frames`; on construction, but for damage, which is found when the place is read.
    """

    def __init__(self, path: str | Path, *, stride: int = 1, max_frames: int | None = None):
        """Counts the frames, and reads the first."""
        self.path, self._stride = Path(path), stride
        self._source = checked_source(self.path, stride, 0)
        count = -(-self._source.count() // stride)
        self._count = count if max_frames is None else min(count, max_frames)
        self._kept: dict[int, Tensor] = {}
        self._begin()
        first = self.take([0])
        self.size: tuple[int, int] = (first.shape[1], first.shape[2])

    def __len__(self) -> int:
        """How many there are, as the file says."""
        return self._count

    def take(self, numbers: Sequence[int]) -> Tensor:
        """Some of them; the last one again for those that a damaged file lacks at its end."""
        if numbers and not (min(numbers) >= 0 and max(numbers) < self._count):
            raise MuseVError(f"{shown(self.path)} has {self._count} frames, asked for {min(numbers)}..{max(numbers)}.")
        for number in sorted(set(numbers) - self._kept.keys()):
            self._kept[number] = self._read(number)
        return torch.stack([self._kept[number] for number in numbers])

    def forget_before(self, number: int, keep: Collection[int] = ()) -> None:
        """Drops them."""
        self._kept = {i: frame for i, frame in self._kept.items() if i >= number or i in keep}

    def _begin(self) -> None:
        self._frames, self._next, self._last = self._source.frames(0, self._stride), 0, torch.empty(0)

    def _read(self, number: int) -> Tensor:
        if number < self._next:
            self._begin()
        while self._next <= number:
            frame = next(self._frames, None)
            if frame is None:
                log.warning("%s ends after %d of %d frames; the last one stays", self.path, self._next, self._count)
                self._next = self._count
                break
            self._last, self._next = frame, self._next + 1
        return self._last


def as_source(frames: "Tensor | FrameSource") -> FrameSource:
    """Frames in memory as a source; a source as it is."""
    return GivenFrames(frames) if isinstance(frames, Tensor) else frames
