"""A picture of what was measured of a video: how colours and sharpness drift, where it jerks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .canvas import CONDITION, FADED, GRID, INK, SERIES, Canvas, Color, text_width, ticks, tint
from .metrics import GREY_LEVEL, linear_fit
from .report import Report

WIDTH, MARGIN, LABEL = 1024, 28, 76
LEFT, RIGHT = MARGIN + LABEL, WIDTH - MARGIN
HEAD, TITLE, PANEL, AXIS = 84, 30, 130, 48  # heights
CHANNELS: tuple[tuple[str, Color], ...] = (("red", (204, 82, 74)), ("green", (86, 158, 96)), ("blue", SERIES[0]))
SEAM = tint(INK, 0.25)
MAX_SEAMS = 200  # more lines would be a grey wall


@dataclass(frozen=True)
class _Curve:
    name: str
    color: Color
    values: Tensor  # (n,), of the last n frames but `behind`
    behind: int = 0
    fit: bool = False


def metric_chart(report: Report) -> Tensor:
    """Curves over the frames: means of the channels, sharpness, second differences with the seams of windows.

    Returns:
        float32 `(1, height, 1024, 3)`, 0..1.
    """
    given, numbers, drift = report.num_condition_frames, report.numbers, report.drift
    chart = _Chart(report)
    rates = [f" {rate:+.1f}" for rate in (*drift.color, drift.sharpness)] if drift else [""] * 4
    chart.panel(
        "Colour",
        "mean of a channel, % from its start" + ("; drift in % per 100 frames:" if drift else ""),
        [
            _Curve(name + rate, color, _percent(numbers.mean[:, c], given, GREY_LEVEL), fit=True)
            for c, ((name, color), rate) in enumerate(zip(CHANNELS, rates, strict=False))
        ],
        least=1.0,
    )
    chart.panel(
        "Sharpness",
        "variance of the Laplacian, % from its start" + ("; drift in % per 100 frames:" if drift else ""),
        [_Curve("sharpness" + rates[3], SERIES[1], _percent(numbers.sharpness, given, GREY_LEVEL**2), fit=True)],
        least=1.0,
    )
    ratio = "" if report.seam_jerk is None else f" {report.seam_jerk:.2f}"
    chart.panel(
        "Jerk",
        "second differences, grey levels; lines where windows begin and end"
        + ("; ratio there to elsewhere:" if ratio else ""),
        [_Curve("jerk" + ratio, SERIES[2], numbers.jerk / GREY_LEVEL, behind=1)],
        least=0.1,
        floor=0.0,
        seams=list(report.by_seam),
    )
    return chart.finish()


def _percent(values: Tensor, given: int, least: float) -> Tensor:
    """`(T,)` relative to where the generated frames begin, by their linear fit, as `metrics.drift` has it."""
    generated = values[given:]
    start = linear_fit(generated)[0] if len(generated) > 1 else generated[0]
    return 100 * (values - start) / start.abs().clamp(min=least)


class _Chart:
    """Panels from the top down over one axis of frames."""

    def __init__(self, report: Report):
        self.frames, self.given = report.num_frames, report.num_condition_frames
        self.canvas = Canvas(WIDTH, HEAD + 3 * (TITLE + PANEL) + AXIS)
        self.top = HEAD
        self.canvas.text(MARGIN, 20, "Measured video", size=24)
        facts = [
            f"{self.frames} frames, {self.given} of them given",
            f"flicker {report.flicker / GREY_LEVEL:.2f} grey levels",
        ]
        facts += [f"condition frame {i} at {value:.1f} dB" for i, value in enumerate(report.fidelity[:3])]
        self.canvas.text(MARGIN, 56, "  |  ".join(facts), color=FADED)

    def panel(
        self,
        title: str,
        explanation: str,
        curves: Sequence[_Curve],
        *,
        least: float,
        floor: float | None = None,
        seams: Sequence[int] = (),
    ) -> None:
        """One panel. `least` is the smallest span of its axis; `floor` its lower end, if that is fixed."""
        canvas, top, bottom = self.canvas, self.top + TITLE, self.top + TITLE + PANEL - 14
        canvas.text(MARGIN, self.top + 8, title)
        canvas.text(LEFT, self.top + 8, explanation, color=FADED, size=12)
        canvas.box(self._x(-0.5), top, self._x(self.given - 0.5), bottom, tint(CONDITION, 0.3))
        low, high = _span([curve.values for curve in curves], least, floor)

        def y(value: float) -> float:
            return bottom - (bottom - top) * (value - low) / (high - low)

        for tick in ticks(low, high, 4):
            canvas.line([(LEFT, y(tick)), (RIGHT, y(tick))], GRID)
            canvas.text(LEFT - 10, y(tick), f"{tick:g}", color=FADED, size=11, anchor="rm")
        for seam in seams if len(seams) <= MAX_SEAMS else ():
            canvas.line([(self._x(seam - 0.5), top), (self._x(seam - 0.5), bottom)], SEAM)
        right = RIGHT
        for curve in reversed(curves):
            first = self.frames - curve.behind - len(curve.values)
            points = [(self._x(first + i), y(value)) for i, value in enumerate(curve.values.tolist())]
            generated = curve.values[self.given :]
            if curve.fit and len(generated) > 1:
                start, slope = (float(v) for v in linear_fit(generated))
                ends = (self.given, start), (self.frames - 1, start + slope * (len(generated) - 1))
                canvas.line([(self._x(x), y(value)) for x, value in ends], tint(curve.color, 0.55), width=1)
            canvas.line(points, curve.color, width=2)
            canvas.text(right, self.top + 8, curve.name, color=curve.color, size=12, anchor="ra")
            right -= text_width(curve.name, 12) + 14
        self.top += TITLE + PANEL

    def finish(self) -> Tensor:
        """The axis of frames, and the picture."""
        y = self.top - 10
        for tick in ticks(0, self.frames - 1, 12):
            if tick == int(tick):
                self.canvas.line([(self._x(tick), y), (self._x(tick), y + 4)], FADED)
                self.canvas.text(self._x(tick), y + 8, f"{tick:.0f}", color=FADED, size=12, anchor="ma")
        self.canvas.text(LEFT - 10, y + 8, "frame", color=FADED, size=12, anchor="ra")
        return self.canvas.picture()

    def _x(self, frame: float) -> float:
        return LEFT + (frame + 0.5) * (RIGHT - LEFT) / self.frames


def _span(curves: Sequence[Tensor], least: float, floor: float | None) -> tuple[float, float]:
    """Lower and upper end of an axis which holds all values, with some air."""
    values = [value for curve in curves for value in curve.tolist() if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    air = max(0.08 * (high - low), (least - (high - low)) / 2)
    return (low - air if floor is None else floor), high + air
