"""Windows, fusion weights and the place of condition frames (musev.md 4, DESIGN.md "Frames, windows, counts")."""

import itertools
from collections import Counter

import pytest
import torch

from musev_core.denoise.windows import (
    FUSIONS,
    SCHEDULES,
    WindowOptions,
    context_windows,
    fusion_weights,
    place_condition_frames,
)
from musev_core.errors import MuseVError

LENGTHS = [(length, overlap) for length in (1, 2, 5, 12, 16) for overlap in range(length)]
COUNTS = (1, 2, 3, 5, 7, 11, 12, 13, 16, 29, 47)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("length, overlap", LENGTHS)
def test_every_frame_is_in_a_window_and_no_window_is_too_long(schedule, length, overlap):
    shifts = (0, 1, 3) if schedule == "uniform_v2" else (0,)
    strides = (1,) if schedule == "uniform_v2" else (1, 2, 4)
    for n, shift, stride, step in itertools.product(COUNTS, shifts, strides, (0, 1, 7)):
        options = WindowOptions(length=length, overlap=overlap, schedule=schedule, stride=stride, shift=shift)
        windows = context_windows(n, options, step)
        assert {frame for window in windows for frame in window} == set(range(n)), (n, options, step)
        assert all(1 <= len(window) <= length for window in windows), (n, options, step)


def test_plain_windows_overlap_and_end_with_the_video():
    options = WindowOptions(length=6, overlap=2)
    assert context_windows(10, options) == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]]
    # the last window is short instead of reaching back
    assert context_windows(11, options)[-1] == [8, 9, 10]
    assert context_windows(4, options) == [[0, 1, 2, 3]]


def test_only_one_redundant_window_is_dropped_as_in_the_original():
    options = WindowOptions(length=8, overlap=6)  # advances by 2
    assert context_windows(8, options) == [list(range(8)), [2, 3, 4, 5, 6, 7], [4, 5, 6, 7]]


def test_plain_windows_stand_still_without_shift():
    options = WindowOptions(length=6, overlap=2)
    assert context_windows(23, options, 0) == context_windows(23, options, 5)


def test_shift_moves_the_seams_and_comes_back():
    options = WindowOptions(length=6, overlap=2, shift=1)  # advances by 4, so 4 steps are a round

    def starts(step: int) -> list[int]:
        return [window[0] for window in context_windows(20, options, step)]

    assert starts(0) == [0, 4, 8, 12, 16]
    assert starts(1) == [0, 3, 7, 11, 15]
    assert starts(2) == [0, 2, 6, 10, 14]
    assert context_windows(20, options, 4) == context_windows(20, options, 0)


def test_without_shift_frames_near_a_seam_are_always_the_same_and_with_it_they_change():
    def seam_frames(shift: int) -> set[int]:
        options = WindowOptions(length=6, overlap=2, shift=shift)
        return {window[0] for step in range(4) for window in context_windows(40, options, step)}

    assert len(seam_frames(1)) > 3 * len(seam_frames(0))


def test_wrapping_windows_join_end_and_beginning():
    windows = context_windows(24, WindowOptions(length=12, overlap=4, schedule="uniform"))
    assert windows[-1] == [*range(16, 24), *range(4)]
    assert all(len(window) == 12 for window in windows)
    # the loop has no seam of its own: each frame has the successor it has in the loop
    assert all((b - a) % 24 == 1 for window in windows for a, b in itertools.pairwise(window))


def test_a_short_clip_does_not_wrap():
    assert context_windows(12, WindowOptions(schedule="uniform")) == [list(range(12))]


def test_strides_add_windows_over_every_second_and_fourth_frame():
    options = WindowOptions(length=4, overlap=1, schedule="uniform", stride=3)
    plain = context_windows(32, WindowOptions(length=4, overlap=1, schedule="uniform"))
    windows = context_windows(32, options)
    assert windows[: len(plain)] == plain
    steps = Counter((b - a) % 32 for window in windows for a, b in itertools.pairwise(window))
    assert set(steps) == {1, 2, 4}


def test_strides_are_limited_by_the_length_of_the_clip():
    few = context_windows(13, WindowOptions(length=12, overlap=4, schedule="uniform", stride=2))
    many = context_windows(13, WindowOptions(length=12, overlap=4, schedule="uniform", stride=50))
    assert many == few  # and not windows over every 2**49th frame


@pytest.mark.parametrize("fuse", FUSIONS)
@pytest.mark.parametrize("length", [1, 2, 3, 6, 11, 12])
def test_weights_are_positive_symmetric_and_rise_to_the_middle(fuse, length):
    weights = fusion_weights(length, WindowOptions(length=12, overlap=4, fuse=fuse))
    assert weights.shape == (length,)
    assert (weights > 0).all()
    assert torch.equal(weights, weights.flip(0))
    half = weights[: (length + 1) // 2]
    assert (half.diff() >= 0).all()


def test_the_three_fusions():
    def weights(fuse: str) -> list[float]:
        return fusion_weights(8, WindowOptions(length=8, overlap=3, fuse=fuse)).tolist()

    assert weights("flat") == [1.0] * 8
    assert weights("linear") == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]
    assert weights("pyramid") == [1, 2, 3, 4, 4, 3, 2, 1]


def test_linear_weights_of_two_neighbours_add_up_to_one():
    options = WindowOptions(length=12, overlap=4, fuse="linear")
    weights = fusion_weights(12, options)
    torch.testing.assert_close(weights[-4:] + weights[:4], torch.ones(4))


@pytest.mark.parametrize(
    "window, conditions, expected",
    [
        ([1, 2, 3], [0], [0, 1, 2, 3]),
        ([5, 6, 7], [0], [0, 5, 6, 7]),  # however far away
        ([1, 2, 3], [9], [1, 2, 3, 9]),
        ([1, 2, 4, 5], [3], [1, 2, 3, 4, 5]),
        ([5, 6, 8], [0, 1, 7, 9, 20], [0, 1, 5, 6, 7, 8, 9, 20]),
        ([5, 6], [20, 0, 9, 1], [0, 1, 5, 6, 9, 20]),  # in the order of the clip
        ([2, 5], [3, 4], [2, 3, 4, 5]),
        ([4], [0, 9], [0, 4, 9]),
        ([1, 2, 3], [], [1, 2, 3]),
        ([1, 3, 5], [2, 4], [1, 2, 3, 4, 5]),  # a strided window
        ([8, 9, 1, 2], [0], [0, 8, 9, 1, 2]),  # wraps around: in neither run
        ([8, 9, 1, 2], [5], [5, 8, 9, 1, 2]),  # between the runs, before the window's first frame
        ([7, 9, 1, 2], [8], [7, 8, 9, 1, 2]),  # inside the first run
        ([8, 9, 1, 3], [2], [8, 9, 1, 2, 3]),  # inside the second run
        ([8, 9, 1, 2], [11], [8, 9, 1, 2, 11]),
    ],
)
def test_condition_frames_stand_where_they_belong(window, conditions, expected):
    given = list(window), list(conditions)
    assert place_condition_frames(window, conditions) == expected
    assert (window, conditions) == given  # nothing is changed in place


def test_the_frames_of_a_window_keep_their_order_and_conditions_come_once():
    options = WindowOptions(length=8, overlap=2, schedule="uniform", stride=3)
    conditions = [0, 13, 29]
    generated = [i for i in range(30) if i not in conditions]
    for window in context_windows(len(generated), options):
        frames = [generated[i] for i in window]
        placed = place_condition_frames(frames, conditions)
        assert [frame for frame in placed if frame not in conditions] == frames
        assert Counter(frame for frame in placed if frame in conditions) == Counter(conditions)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"length": 0}, "window length must be at least 1 frame, got 0"),
        ({"overlap": 12}, "less than the window length, got overlap 12 for length 12; reduce the overlap"),
        ({"overlap": -1}, "must be at least 0 .* got overlap -1"),
        ({"schedule": "sliding"}, "unknown window schedule 'sliding', expected one of uniform_v2, uniform"),
        ({"fuse": "max"}, "unknown window fusion 'max', expected one of flat, linear, pyramid"),
        ({"stride": 0}, "window stride must be at least 1, got 0"),
        ({"shift": -2}, "window shift must be at least 0 frames, got -2"),
    ],
)
def test_wrong_options_say_what_is_expected(changes, message):
    with pytest.raises(MuseVError, match=message):
        WindowOptions(**changes)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_to_generate_is_an_error(schedule):
    with pytest.raises(MuseVError, match="at least 1 generated frame besides the condition frames, got 0"):
        context_windows(0, WindowOptions(schedule=schedule))
