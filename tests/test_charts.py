import pytest
import torch

from musev_core.denoise.windows import WindowOptions, context_windows
from musev_core.errors import MuseVError
from musev_core.measure.canvas import CONDITION, SERIES, Canvas, ticks
from musev_core.measure.metric_chart import metric_chart
from musev_core.measure.report import measure
from musev_core.measure.window_chart import seams, window_chart


def painted(picture, color):
    """(height, width): where a picture has exactly this colour."""
    return ((picture[0] * 255).round() == torch.tensor(color)).all(dim=-1)


def runs(line):
    """How many stretches of True a row or column of pixels has."""
    padded = torch.cat([torch.zeros(1, dtype=torch.bool), line])
    return int((padded[1:] & ~padded[:-1]).sum())


# ---- seams ---------------------------------------------------------------------------------------------------------


def test_seams_are_where_windows_begin_and_end():
    # 0-11, 8-19, 16-20
    assert seams(context_windows(21, WindowOptions(12, 4)), 21) == [8, 12, 16, 20]
    assert seams(context_windows(24, WindowOptions(12, 0)), 24) == [12]
    assert seams(context_windows(12, WindowOptions(12, 4)), 12) == []


def test_windows_which_wrap_around_have_seams_at_both_ends_of_the_clip():
    windows = context_windows(20, WindowOptions(12, 4, "uniform"))
    wrapped = next(window for window in windows if window[0] > window[-1])
    assert wrapped[-1] + 1 in seams(windows, 20) and wrapped[0] in seams(windows, 20)


# ---- the schedule --------------------------------------------------------------------------------------------------


def test_a_condition_frame_stands_before_every_window():
    chart = window_chart(49, 1, WindowOptions(12, 4))
    column = painted(chart, CONDITION)[:, 110]  # within frame 0
    assert runs(column) == 6 + 1  # six windows, and the band of shares
    assert not painted(window_chart(48, 0, WindowOptions(12, 4)), CONDITION).any()


def test_flat_windows_share_a_frame_evenly():
    chart = window_chart(20, 0, WindowOptions(12, 4))
    first, second = (painted(chart, color).sum() for color in SERIES[:2])
    assert first.item() == pytest.approx(second.item(), rel=0.02)  # 12 frames each, 4 of them shared


def test_weights_are_the_heights_of_the_bars():
    flat, linear = (
        painted(window_chart(12, 0, WindowOptions(12, 4, fuse=fuse)), SERIES[0]).sum() for fuse in ("flat", "linear")
    )
    assert linear < flat


def test_seams_that_move_are_drawn_step_by_step_until_they_are_back():
    def height(shift, steps):
        return window_chart(49, 1, WindowOptions(12, 4, shift=shift), steps).shape[1]

    still, one = height(0, 10), height(4, 2) - height(0, 10)
    assert height(4, 10) - still == one  # 4, 8 = 0: two steps
    assert height(2, 10) > height(2, 3) > height(2, 2)
    assert height(1, 10) == height(1, 8)  # back after eight


@pytest.mark.parametrize("options", [WindowOptions(), WindowOptions(512, 511), WindowOptions(2, 0, shift=1)])
def test_a_long_clip_does_not_make_a_long_picture(options):
    assert window_chart(5000, 1, options, steps=1000).shape[1] < 1100


@pytest.mark.parametrize(("length", "given", "steps"), [(1, 1, 10), (5, -1, 10), (5, 1, 0)])
def test_numbers_that_cannot_be_are_refused(length, given, steps):
    with pytest.raises(MuseVError):
        window_chart(length, given, WindowOptions(), steps)


# ---- the measurement -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 49, 1000])
def test_a_measurement_of_any_length_is_a_picture(frames):
    clip = torch.rand(frames, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    chart = metric_chart(measure(clip, num_condition_frames=min(1, frames - 1)))
    assert chart.shape[0] == 1 and chart.shape[2:] == (1024, 3)
    assert torch.isfinite(chart).all() and chart.min() >= 0 and chart.max() <= 1


def test_a_curve_that_rises_is_drawn_rising():
    clip = torch.full((50, 8, 8, 3), 0.4)
    clip[..., 2] += 0.2 * torch.arange(50)[:, None, None] / 50
    blue = painted(metric_chart(measure(clip)), SERIES[0])
    blue[:110] = False  # the legend
    heights = [column.nonzero().min().item() for column in blue.T if column.any()]
    assert heights == sorted(heights, reverse=True) and heights[0] - heights[-1] > 50


# ---- the canvas ----------------------------------------------------------------------------------------------------


def test_boxes_which_touch_leave_no_gap():
    canvas = Canvas(30, 10)
    for i in range(7):
        canvas.box(i * 30 / 7, 0, (i + 1) * 30 / 7, 10, (0, 0, 0))
    assert not canvas.picture().any()


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 48, 12, range(0, 49, 5)),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, 5, [3]),
        (0, 0.04, 4, [0, 0.01, 0.02, 0.03, 0.04]),
    ],
)
def test_ticks_are_round_numbers(low, high, most, expected):
    assert ticks(low, high, most) == pytest.approx(list(expected))
