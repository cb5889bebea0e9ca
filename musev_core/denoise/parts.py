"""A clip in parts, each exactly as the whole clip's run makes it.

A part is an ordinary run over the frames which its *cone* needs: to make the frames of the last call exactly, every
call before needs the windows which hold them, and so a few frames more. What an earlier part has evaluated already is
taken from a cache instead. No state of a sampler is kept: the same noise and the same predictions give the same
latents, so a part repeats the cheap arithmetic on frames which the one before has run ahead with.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..errors import MuseVError
from .windows import Window, WindowOptions, context_windows, fusion_weights, placed, take_frames


class Call:
    """One evaluation of a whole clip by the network.

    Args:
        jobs: windows which go through the network together, in the order of the clip.
        num_generated: frames of the clip which are no condition frames.
    """

    def __init__(self, jobs: Sequence[Sequence[Window]], num_generated: int):
        self.jobs = [tuple(job) for job in jobs]
        self.num_generated = num_generated

    @cached_property
    def holders(self) -> list[list[int]]:
        """The numbers of the jobs that hold a generated frame, for each."""
        holders: list[list[int]] = [[] for _ in range(self.num_generated)]
        for number in range(len(self.jobs)):
            for frame in self.frames_of(number):
                holders[frame].append(number)
        return holders

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The first generated frame of every job, and one past its last."""
        held = [self.frames_of(number) for number in range(len(self.jobs))]
        return [(min(frames), max(frames) + 1) for frames in held]

    @cached_property
    def scattered(self) -> bool:
        """Whether a job's frames have others between them."""
        return any(end - first > len(self.frames_of(n)) for n, (first, end) in enumerate(self.spans))

    @cached_property
    def lowest(self) -> list[int]:
        """The lowest frame that is computed together with a generated frame or one after it, for each."""
        lowest = [self.group_of(frame)[0] for frame in range(self.num_generated)]
        for frame in reversed(range(self.num_generated - 1)):
            lowest[frame] = min(lowest[frame], lowest[frame + 1])
        return lowest

    @cached_property
    def groups(self) -> list[tuple[int, ...]]:
        """The generated frames which a job is the first to hold, for each job: what belongs to a frame alone is
        computed for these at once."""
        groups: list[list[int]] = [[] for _ in self.jobs]
        for frame, holders in enumerate(self.holders):
            groups[holders[0]].append(frame)
        return [tuple(group) for group in groups]

    def group_of(self, frame: int) -> tuple[int, ...]:
        """The frames which are computed together with a generated frame."""
        return self.groups[self.holders[frame][0]]

    def frames_of(self, job: int) -> list[int]:
        """The generated frames of a job."""
        return list(dict.fromkeys(frame for window in self.jobs[job] for frame in window.generated))

    def jobs_over(self, first: int, last: int) -> list[int]:
        """The jobs which hold one of the generated frames `first..last - 1`."""
        return sorted({number for frame in range(first, last) for number in self.holders[frame]})


class ClipWindows:
    """The windows of a clip, for every step of a run.

    Args:
        num_frames: frames of the clip, condition frames included.
        condition_frames: their numbers in the clip.
        per_call: how many windows go through the network at once.

    Raises:
        MuseVError: condition frames that cannot be, or nothing left to generate.
    """

    def __init__(self, num_frames: int, condition_frames: Sequence[int], options: WindowOptions, per_call: int = 1):
        self.num_frames, self.options, self.per_call = num_frames, options, per_call
        self.condition_frames = sorted(condition_frames)
        conditions = set(self.condition_frames)
        if len(conditions) != len(condition_frames):
            raise MuseVError(f"a condition frame is given twice: {list(condition_frames)}")
        if any(not 0 <= i < num_frames for i in self.condition_frames):
            raise MuseVError(
                f"condition frame numbers must lie in 0..{num_frames - 1} for a clip of {num_frames} frames, "
                f"got {list(condition_frames)}"
            )
        self.generated = [i for i in range(num_frames) if i not in conditions]
        if not self.generated:
            raise MuseVError(f"all {num_frames} frames of the clip are condition frames: nothing is left to generate")
        self._calls: dict[int, Call] = {}

    def call(self, step: int) -> Call:
        """The windows of a step."""
        options = self.options
        moving = options.shift > 0 and options.schedule == "uniform_v2"
        # seams come back to where they were after so many steps
        turn = step % (options.length - options.overlap) if moving else 0
        if turn not in self._calls:
            windows = context_windows(len(self.generated), self.options, turn)
            jobs = _jobs([placed(x, self.generated, self.condition_frames) for x in windows], self.per_call)
            self._calls[turn] = Call(jobs, len(self.generated))
        return self._calls[turn]

    def weights(self, job: Sequence[Window]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The generated frames of a job's windows, one after the other, and what each counts."""
        frames = tuple(frame for window in job for frame in window.generated)
        weights = [w for window in job for w in fusion_weights(len(window.generated), self.options).tolist()]
        return frames, tuple(weights)

    def held(self, part: "Part") -> list[int]:
        """The clip's frames which a part's run holds: its own, and all condition frames."""
        return sorted([*self.condition_frames, *self.generated[part.start : part.stop]])

    def makes(self, frames: range) -> tuple[int, int]:
        """The generated frames (first, one past the last) which a run has to finish for these of the clip; at least
        one, since a run of condition frames alone is none."""
        first = min(bisect_left(self.generated, frames.start), len(self.generated) - 1)
        return first, max(bisect_left(self.generated, frames.stop), first + 1)

    def group_of(self, call: Call, frame: int) -> Sequence[int]:
        """The frames of the clip which are computed together with one of them; condition frames are on their own."""
        i = bisect_left(self.generated, frame)
        if i == len(self.generated) or self.generated[i] != frame:
            return self.condition_frames
        return [self.generated[i] for i in call.group_of(i)]

    def calls(self, num_steps: int) -> list[Call]:
        """Those of all steps of a run; equal ones are the same object."""
        return [self.call(step) for step in range(num_steps)]


def _jobs(windows: Sequence[Window], per_call: int) -> list[list[Window]]:
    """Neighbouring windows of the same layout, up to `per_call` at a time."""
    jobs: list[list[Window]] = []
    for window in windows:
        if jobs and jobs[-1][0].layout == window.layout and len(jobs[-1]) < per_call:
            jobs[-1].append(window)
        else:
            jobs.append([window])
    return jobs


@dataclass(frozen=True)
class Part:
    """A run over some of a clip's frames. All numbers are those of generated frames.

    Args:
        first, last: it finishes the frames `first..last - 1`.
        start, stop: it runs over the frames `start..stop - 1`.
        jobs: for every call, the jobs it evaluates or takes from the cache.
        keep_from: predictions for frames from here on are kept for the parts after it.
    """

    first: int
    last: int
    start: int
    stop: int
    jobs: tuple[tuple[int, ...], ...]
    keep_from: int

    def __len__(self) -> int:
        return self.stop - self.start


def parts(
    calls: Sequence[Call],
    length: int | None = None,
    *,
    per_frame: bool = False,
    frames: tuple[int, int] | None = None,
) -> Iterator[Part]:
    """The parts of a clip, `length` generated frames each; None: the whole clip at once.

    Args:
        calls: those of the run, in their order.
        per_frame: something besides the windows is computed for every frame (a ControlNet's answer): its groups must
            be whole as well, so that a batch has the same frames in every part.
        frames: only those which make these (first, one past the last). The first of them has no part before it whose
            predictions it could take, so it needs a cone on both sides.

    Raises:
        MuseVError: a part without frames.
    """
    if length is not None and length < 1:
        raise MuseVError(f"a part must have at least 1 frame, got {length}")
    begin, end = frames or (0, calls[0].num_generated)
    # windows which hold frames from all over the clip leave nothing to a later part
    if length is None or (begin > 0 and any(call.scattered for call in dict.fromkeys(calls))):
        length = end - begin
    for first in range(begin, end, length):
        last = min(first + length, end)
        start = _start(calls, first, per_frame)
        jobs, start, stop = _cone(calls, start, last, alone=first == begin, per_frame=per_frame)
        following = _start(calls, last, per_frame) if last < end else calls[0].num_generated
        yield Part(first, last, start, stop, jobs, following)


def _start(calls: Sequence[Call], first: int, per_frame: bool) -> int:
    """Where a part's run begins: at its first frame, or where the first of its groups does."""
    if not per_frame:
        return first
    return min(call.lowest[first] for call in dict.fromkeys(calls))


def _cone(
    calls: Sequence[Call], start: int, last: int, *, alone: bool, per_frame: bool
) -> tuple[tuple[tuple[int, ...], ...], int, int]:
    """The jobs of every call that make the frames `start..last - 1`, and the range of frames they need.

    `alone`: nothing is known of what lies before, so that the range may begin before `start`.
    """
    jobs: list[tuple[int, ...]] = []
    for call in reversed(calls):
        chosen = call.jobs_over(start, last)
        jobs.append(tuple(chosen))
        spans = [call.spans[number] for number in chosen]
        if per_frame:  # of scattered windows, they go beyond the window
            groups = [call.group_of(frame) for number in chosen for frame in call.frames_of(number)]
            spans += [(min(group), max(group) + 1) for group in dict.fromkeys(groups)]
        if alone:
            start = min(start, *(first for first, _ in spans))
        last = max(last, *(end for _, end in spans))
    return tuple(reversed(jobs)), start, last


@dataclass(frozen=True)
class Prediction:
    """What a job predicts, or what is left of it.

    Args:
        frames: generated ones; one may come twice, from two windows of the job.
        weights: what each counts.
        values: `(b, c, frames, h, w)`.
    """

    frames: tuple[int, ...]
    weights: tuple[float, ...]
    values: Tensor

    def add(self, total: Tensor, coverage: list[float], start: int) -> None:
        """Adds the weighted values to `total (b, c, frames, h, w)`, which begins with the frame `start`.

        A number goes to the device as part of an addition; a tensor of them would have to be copied there first.
        """
        for i, (frame, weight) in enumerate(zip(self.frames, self.weights, strict=True)):
            if frame >= start:
                total.select(2, frame - start).add_(self.values.select(2, i), alpha=weight)
                coverage[frame - start] += weight

    def since(self, first: int) -> "Prediction | None":
        """A copy of the frames from `first` on, if there are any."""
        kept = [i for i, frame in enumerate(self.frames) if frame >= first]
        if not kept:
            return None
        values = take_frames(self.values, kept, dim=2).clone()
        return Prediction(tuple(self.frames[i] for i in kept), tuple(self.weights[i] for i in kept), values)


class PredictionCache:
    """What earlier parts have evaluated and later ones need again, by (call, job)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Prediction] = {}

    def get(self, call: int, job: int) -> Prediction | None:
        """What is left of a job, None if it has not been evaluated."""
        return self._kept.get((call, job))

    def keep(self, call: int, job: int, prediction: Prediction, first: int) -> None:
        """Remembers a job's frames from `first` on."""
        left = prediction.since(first)
        if left is not None:
            self._kept[call, job] = left

    def forget_before(self, first: int) -> None:
        """Drops the jobs which hold no frame from `first` on."""
        self._kept = {key: x for key, x in self._kept.items() if max(x.frames) >= first}

    def nbytes(self) -> int:
        """Memory of what is kept."""
        return sum(x.values.numel() * x.values.element_size() for x in self._kept.values())
