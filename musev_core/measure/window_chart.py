"""A picture of a window schedule: what is denoised together, how it is fused, where the seams lie."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..denoise.windows import WindowOptions, context_windows, fusion_weights
from ..errors import MuseVError
from .canvas import CONDITION, FADED, GRID, INK, SERIES, Canvas, Color, text_width, ticks, tint

WIDTH, MARGIN, LABEL = 1024, 28, 76
LEFT, RIGHT = MARGIN + LABEL, WIDTH - MARGIN
MAX_ROWS = 40  # windows
MAX_STEPS = 12
MAX_COMPUTED = 6_000_000  # frames in all windows of all steps drawn
SHARES, AXIS = 96, 48  # heights
SEAM = tint(INK, 0.45)


def seams(windows: Sequence[Sequence[int]], num_frames: int) -> list[int]:
    """Frames s such that frame s - 1 and s lie in different windows: where a window begins or ends."""
    members: list[set[int]] = [set() for _ in range(num_frames)]
    for i, window in enumerate(windows):
        for frame in window:
            members[frame].add(i)
    return [s for s in range(1, num_frames) if members[s] != members[s - 1]]


def window_chart(length: int, condition_frames: int, options: WindowOptions, steps: int = 10) -> Tensor:
    """The schedule of a clip.

    Args:
        length: frames of the clip, condition frames included.
        condition_frames: how many of them are given, at the head.
        options: how the others are cut into windows.
        steps: of the sampler; seams which move are shown step by step.

    Returns:
        float32 `(1, height, 1024, 3)`, 0..1. A long clip is shown as far as there is room.

    Raises:
        MuseVError: a number that is not positive, no frame left to generate, or more windows than can be drawn.
    """
    if condition_frames < 0 or steps < 1:
        raise MuseVError(f"condition_frames must be 0 or more and steps 1 or more, got {condition_frames} and {steps}.")
    if length <= condition_frames:
        raise MuseVError(
            f"{condition_frames} condition frames of {length} leave nothing to generate; ask for a longer clip."
        )
    return _Chart(length, condition_frames, options, steps).draw()


class _Chart:
    """Positions and strokes; from the top down."""

    def __init__(self, length: int, condition_frames: int, options: WindowOptions, steps: int):
        self.length, self.given, self.options = length, condition_frames, options
        self.generated = length - condition_frames
        self.steps = min(steps, self._period(), MAX_STEPS)
        count = math.ceil(self.generated / (options.length - options.overlap))
        if count * options.length * (1 + self.steps) > MAX_COMPUTED:
            raise MuseVError(
                f"{count} windows of {options.length} frames are too many to draw. Ask for a shorter clip: its first "
                "windows look the same."
            )
        self.windows = context_windows(self.generated, options)
        self.rows = self.windows[:MAX_ROWS]
        self.shown = self.given + max(max(window) for window in self.rows) + 1  # frames
        self.pitch = (RIGHT - LEFT) / self.shown  # pixels per frame
        self.gap = 1 if self.pitch >= 6 else 0
        self.row_height = min(24, max(8, 440 / len(self.rows)))

    def _period(self) -> int:
        """Steps until the schedule is the first one again."""
        options = self.options
        advance = options.length - options.overlap
        return advance // math.gcd(advance, options.shift) if options.schedule == "uniform_v2" else 1

    def draw(self) -> Tensor:
        head = 84 if self.rows == self.windows else 102
        rows = 30 + self.row_height * len(self.rows)
        moving = 32 + 26 * self.steps if self.steps > 1 else 0
        self.canvas = Canvas(WIDTH, math.ceil(head + rows + SHARES + moving + AXIS))
        self._head()
        self._rows(head)
        self._shares(head + rows)
        if moving:
            self._moving(head + rows + SHARES)
        self._axis(head + rows + SHARES + moving + 8)
        return self.canvas.picture()

    # ---------------------------------------------------------------------------------------------- parts

    def _head(self) -> None:
        options, computed = self.options, sum(len(window) for window in self.windows)
        self.canvas.text(MARGIN, 20, "Context windows", size=24)
        cut = f"windows of {options.length}, overlap {options.overlap}, {options.schedule}, {options.fuse} weights"
        frames = f"{_count(self.generated, 'frame')} in {_count(len(self.windows), 'window')}"
        if self.given:
            frames = f"{_count(self.given, 'condition frame')} and {frames}"
        cost = f"{computed / self.generated:.2f} computed per frame"
        self.canvas.text(MARGIN, 56, f"{frames}  |  {cut}  |  {cost}", color=FADED)
        if self.rows != self.windows:
            self.canvas.text(
                MARGIN,
                76,
                f"The first {len(self.rows)} windows are shown, with {self.shown} of {self.length} frames.",
                color=FADED,
            )
        x = RIGHT
        for text, color in [("window", SERIES[0]), ("condition frame", CONDITION)][: 2 if self.given else 1]:
            x -= text_width(text) + 20
            self.canvas.box(x, 27, x + 13, 40, color, radius=2)
            self.canvas.text(x + 18, 34, text, color=FADED, anchor="lm")
            x -= 18

    def _rows(self, top: float) -> None:
        self._heading(top + 8, "Windows", "bars as high as a frame counts in its window")
        top += 30
        bottom = top + self.row_height * len(self.rows)
        for tick in self._ticks():
            self.canvas.line([(self._x(tick + 0.5), top), (self._x(tick + 0.5), bottom)], GRID)
        every = 1 if self.row_height >= 14 else 5
        for i, window in enumerate(self.rows):
            y = top + i * self.row_height
            low, high = y + self.row_height - 2, y + 1
            color = SERIES[i % len(SERIES)]
            if self.given:
                middle = (low + high) / 2
                self.canvas.line([(self._x(self.given), middle), (self._x(self.given + min(window)), middle)], GRID)
                self._cells(range(self.given), [1.0] * self.given, high, low, CONDITION)
            weights = fusion_weights(len(window), self.options)
            shares = (weights / weights.max()).tolist()
            frames = [self.given + frame for frame in window]
            self._cells(frames, [1.0] * len(frames), high, low, tint(color, 0.25))
            self._cells(frames, shares, high, low, color)
            if (i + 1) % every == 0:
                self.canvas.text(LEFT - 10, (low + high) / 2, str(i + 1), color=FADED, size=11, anchor="rm")

    def _shares(self, top: float) -> None:
        self._heading(top + 8, "Shares", "how much each window counts in a frame; marks where windows begin and end")
        for seam in seams(self.windows, self.generated):
            x = self._x(self.given + seam) - self.gap / 2
            if self.given + seam < self.shown:
                self.canvas.line([(x, top + 29), (x, top + 36)], SEAM)
        self._band(self.windows, top + 38, SHARES - 42)

    def _moving(self, top: float) -> None:
        period = f", back after {self._period()}" if self._period() <= self.steps else ""
        self._heading(top + 8, "Steps", f"shares move by {_count(self.options.shift, 'frame')} per step{period}")
        for step in range(self.steps):
            y = top + 32 + 26 * step
            self._band(context_windows(self.generated, self.options, step), y, 22)
            self.canvas.text(LEFT - 10, y + 11, f"{step + 1}", color=FADED, size=11, anchor="rm")

    def _axis(self, y: float) -> None:
        for tick in self._ticks():
            self.canvas.line([(self._x(tick + 0.5), y - 4), (self._x(tick + 0.5), y)], FADED)
            self.canvas.text(self._x(tick + 0.5), y + 4, str(tick), color=FADED, size=12, anchor="ma")
        self.canvas.text(LEFT - 10, y + 4, "frame", color=FADED, size=12, anchor="ra")

    # ---------------------------------------------------------------------------------------------- strokes

    def _band(self, windows: Sequence[Sequence[int]], top: float, height: float) -> None:
        """Every frame as a stack of the shares of its windows, which sum to 1."""
        stacks: list[list[tuple[int, float]]] = [[] for _ in range(self.shown - self.given)]
        for i, window in enumerate(windows):
            for frame, weight in zip(window, fusion_weights(len(window), self.options).tolist(), strict=True):
                if frame < len(stacks):
                    stacks[frame].append((i, weight))
        self._cells(range(self.given), [1.0] * self.given, top, top + height, CONDITION)
        for frame, stack in enumerate(stacks):
            total, y = sum(weight for _, weight in stack), top + height
            left, right = self._x(self.given + frame), self._x(self.given + frame + 1) - self.gap
            for i, weight in stack:
                above = y - height * weight / total
                self.canvas.box(left, above, right, y, SERIES[i % len(SERIES)])
                y = above

    def _cells(self, frames: Sequence[int], heights: Sequence[float], top: float, bottom: float, color: Color) -> None:
        for frame, height in zip(frames, heights, strict=True):
            left, right = self._x(frame), self._x(frame + 1) - self.gap
            self.canvas.box(left, bottom - (bottom - top) * height, right, bottom, color)

    def _heading(self, y: float, title: str, explanation: str) -> None:
        self.canvas.text(MARGIN, y, title, size=13)
        self.canvas.text(LEFT, y, explanation, color=FADED, size=12)

    def _x(self, frame: float) -> float:
        return LEFT + frame * self.pitch

    def _ticks(self) -> list[int]:
        return [int(tick) for tick in ticks(0, self.shown - 1, 12) if tick == int(tick)]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
