import numpy as np
import pytest
from scipy.signal import savgol_filter
from support.poses import frame, person, without

from musev_core.errors import MuseVError
from musev_core.pose.smoothing import fill_gaps, savgol, smooth_visible
from musev_core.pose.tracking import choose_person, follow_person

# ---- who ----------------------------------------------------------------------------------------------------------


def test_the_largest_person_is_chosen_unless_one_is_named():
    two = frame(person(size=0.3), person(), person(size=0.5))
    assert choose_person(two) == 1 and choose_person(two, 2) == 2
    assert choose_person(frame()) is None and choose_person(frame(without(person(), slice(None)))) is None
    with pytest.raises(MuseVError, match="no person 3: the frame has 3 people"):
        choose_person(two, 3)


def test_a_person_is_followed_through_changes_of_order_and_size():
    steps = range(0, 60, 10)
    walkers = [(person(size=0.5, at=(x, 0)), person(size=0.6, at=(60 - x, 200))) for x in steps]
    frames = [frame(*pair[:: 1 if i % 2 else -1]) for i, pair in enumerate(walkers)]
    assert follow_person(frames) == [pair[1] for pair in walkers]
    assert follow_person(frames, 1) == [pair[0] for pair in walkers]


def test_somebody_far_away_is_somebody_else():
    here, there = person(size=0.2), person(size=0.2, at=(150, 300))
    assert follow_person([frame(here), frame(there), frame(), frame(here)]) == [here, None, None, here]


def test_the_track_begins_with_the_first_person():
    late = person()
    assert follow_person([frame(), frame(late)]) == [None, late]


def test_without_common_joints_the_middle_counts():
    legs, arms = without(person(), slice(0, 8), slice(14, 130)), without(person(), slice(8, 130))
    far = without(person(size=0.5, at=(1000, 0)), slice(8, 130))
    assert follow_person([frame(legs), frame(far, arms)])[1] is arms


# ---- smoothing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window, order", [(5, 1), (7, 2), (11, 3)])
def test_savgol_is_the_filter_of_scipy(window, order):
    values = np.random.RandomState(0).randn(20, 3, 2)
    for hold, mode in ((True, "nearest"), (False, "interp")):
        expected = savgol_filter(values, window, order, axis=0, mode=mode)
        np.testing.assert_allclose(savgol(values, window, order, hold=hold), expected, atol=1e-12)


def test_a_held_window_may_be_longer_than_the_video():
    values = np.arange(6.0).reshape(3, 2)
    expected = savgol_filter(values, 7, 1, axis=0, mode="nearest")
    np.testing.assert_allclose(savgol(values, 7, 1, hold=True), expected, atol=1e-12)


def path(*seen: int, frames: int = 9) -> np.ndarray:
    """One point on a parabola, (frames, 1, 2), seen in some frames."""
    t = np.arange(frames, dtype=float)
    points = np.stack([t, t**2], axis=-1)[:, None]
    points[[i for i in range(frames) if i not in seen]] = np.nan
    return points


def test_runs_are_smoothed_apart_and_gaps_stay():
    points = path(0, 1, 2, 5, 6, 7, 8)
    smoothed = smooth_visible(points, 9, 1)
    np.testing.assert_array_equal(np.isnan(smoothed), np.isnan(points))
    np.testing.assert_allclose(smoothed[:3, 0], savgol(points[:3, 0], 3, 1))
    np.testing.assert_allclose(smoothed[5:, 0], savgol(points[5:, 0], 3, 1))


def test_a_single_sighting_is_left_alone():
    np.testing.assert_array_equal(smooth_visible(path(4), 5, 1), path(4))


def test_short_gaps_are_bridged_on_a_straight_line_and_ends_are_not():
    filled = fill_gaps(path(1, 2, 4, 7), 1)
    assert filled[3, 0].tolist() == [3, 10]
    assert np.flatnonzero(np.isnan(filled[:, 0, 0])).tolist() == [0, 5, 6, 8]
    assert not np.isnan(fill_gaps(path(1, 2, 4, 7), 2)[1:8]).any()
