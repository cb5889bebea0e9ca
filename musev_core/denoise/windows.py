"""Context windows: which frames are denoised together, and how overlapping predictions are fused (musev.md 4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import FUSIONS, SCHEDULES
from ..errors import MuseVError


@dataclass(frozen=True)
class WindowOptions:
    """How a clip is cut into windows. Lengths are frames and do not count condition frames.

    Args:
        length: frames denoised together; the released models were trained with 11 besides the condition frame.
        overlap: frames shared by neighbours; more is smoother and slower.
        schedule: `uniform_v2` plain windows, the last ones shorter; `uniform` wraps around, which makes a loop.
        stride: `uniform` only: adds windows over every 2nd, 4th, ... frame.
        fuse: weights in overlaps. `flat` is the original's mean; `linear` and `pyramid` hide the seams;
            they differ from each other with `uniform` only.
        shift: `uniform_v2` only: moves the seams by this many frames at every step; 0 keeps them in place.
    """

    length: int = 12
    overlap: int = 4
    schedule: str = "uniform_v2"
    stride: int = 1
    fuse: str = "flat"
    shift: int = 0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise MuseVError(f"window length must be at least 1 frame, got {self.length}")
        if not 0 <= self.overlap < self.length:
            raise MuseVError(
                f"window overlap must be at least 0 and less than the window length, got overlap {self.overlap} "
                f"for length {self.length}; reduce the overlap or lengthen the windows"
            )
        if self.schedule not in SCHEDULES:
            raise MuseVError(f"unknown window schedule {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
        if self.fuse not in FUSIONS:
            raise MuseVError(f"unknown window fusion {self.fuse!r}, expected one of {', '.join(FUSIONS)}")
        if self.stride < 1:
            raise MuseVError(f"window stride must be at least 1, got {self.stride}")
        if self.shift < 0:
            raise MuseVError(f"window shift must be at least 0 frames, got {self.shift}")


@dataclass(frozen=True)
class Window:
    """The frames of one call of the network, condition frames in their places.

    Args:
        generated: its numbers among the generated frames.
        frames: its numbers in the clip, in the order in which the network sees them.
        condition_positions, generated_positions: where in `frames` the condition frames and the others stand.
    """

    generated: tuple[int, ...]
    frames: tuple[int, ...]
    condition_positions: tuple[int, ...]
    generated_positions: tuple[int, ...]

    @property
    def layout(self) -> tuple[int, tuple[int, ...]]:
        """Windows of one layout may go through the network together."""
        return len(self.frames), self.condition_positions

    def add(self, total: Tensor, prediction: Tensor, weights: Sequence[float], dim: int) -> None:
        """Adds the weighted prediction of the generated frames to `total`, which holds the whole clip.

        A number goes to the device as part of an addition; a tensor of them would have to be copied there first.
        """
        for position, weight in zip(self.generated_positions, weights, strict=True):
            total.select(dim, self.frames[position]).add_(prediction.select(dim, position), alpha=weight)


def placed(generated: Sequence[int], clip_frames: Sequence[int], condition_frames: Sequence[int]) -> Window:
    """A window over `generated` frames, whose numbers in the clip are in `clip_frames`, with all condition frames."""
    frames = place_condition_frames([clip_frames[i] for i in generated], condition_frames)
    conditions = set(condition_frames)
    return Window(
        tuple(generated),
        tuple(frames),
        tuple(i for i, frame in enumerate(frames) if frame in conditions),
        tuple(i for i, frame in enumerate(frames) if frame not in conditions),
    )


def take_frames(x: Tensor, places: Sequence[int], dim: int) -> Tensor:
    """The frames at `places` of an axis in this order, by slices of neighbours instead of index tensors."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    parts = [x.narrow(dim, run[0], len(run)) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def context_windows(num_frames: int, options: WindowOptions, step: int = 0) -> list[list[int]]:
    """The windows of one step, as frame numbers 0..num_frames-1; every frame is in at least one."""
    if num_frames < 1:
        raise MuseVError(f"a video needs at least 1 generated frame besides the condition frames, got {num_frames}")
    if options.schedule == "uniform":
        return _wrapping(num_frames, options)
    return _plain(num_frames, options, step)


def _plain(num_frames: int, options: WindowOptions, step: int) -> list[list[int]]:
    advance = options.length - options.overlap
    offset = step * options.shift % advance
    windows = [
        list(range(max(start, 0), min(start + options.length, num_frames)))
        for start in range(-offset, num_frames, advance)
    ]
    # the original drops one window that ends where the one before it ends, and only one
    if len(windows) > 1 and windows[-1][-1] == windows[-2][-1]:
        windows.pop()
    return windows


def _wrapping(num_frames: int, options: WindowOptions) -> list[list[int]]:
    if num_frames <= options.length:
        return [list(range(num_frames))]
    levels = min(options.stride, math.ceil(math.log2(num_frames / options.length)) + 1)
    windows = []
    for spread in (2**level for level in range(levels)):
        for start in range(0, num_frames, options.length * spread - options.overlap):
            stop = start + options.length * spread
            windows.append([frame % num_frames for frame in range(start, stop, spread)])
    return windows


def fusion_weights(length: int, options: WindowOptions) -> Tensor:
    """Weights `(length,)` of a window's frames, before they are divided by their sum over all windows."""
    if options.fuse == "flat":
        return torch.ones(length)
    distance = torch.minimum(torch.arange(1, length + 1), torch.arange(length, 0, -1)).float()  # to the nearer end
    if options.fuse == "pyramid":
        return distance
    return distance.clamp(max=options.overlap + 1) / (options.overlap + 1)


def place_condition_frames(window: Sequence[int], condition_frames: Sequence[int]) -> list[int]:
    """The frames of a call: the window in its order, with the condition frames where they belong.

    Both are frame numbers of the clip. Condition frames before the window come first, those after it last, those inside
    keep their place. A window which wraps around consists of several runs of rising numbers; a condition frame lies
    inside it if one of the runs spans it.
    """
    first = [c for c in condition_frames]
    frames: list[int] = []
    for i, frame in enumerate(window):
        previous = window[i - 1] if i else frame
        inside = [c for c in first if previous < c < frame]
        frames += [*sorted(inside), frame]
        first = [c for c in first if c not in inside]
    before = sorted(c for c in first if c < window[0])
    after = sorted(c for c in first if c > window[0])
    return before + frames + after
