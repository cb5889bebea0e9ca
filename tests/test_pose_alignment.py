import numpy as np
import pytest
from support.poses import CASES, frame, person, recorded, recorded_case, without

from musev_core.errors import MuseVError
from musev_core.pose.alignment import AlignOptions, align_original, align_poses, align_robust
from musev_core.pose.keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND, PoseFrame
from musev_core.pose.proportions import original_scales, robust_scales

ROBUST_CASES = [name for name, case in CASES.items() if case.get("robust_expected")]


def nan(points):
    return np.where(points == -1, np.nan, points)


def options_of(name, mode="original"):
    smoothing = CASES[name]["smoothing"] or {"window": 0, "polyorder": 1}
    return AlignOptions(mode=mode, smoothing=smoothing["window"], order=smoothing["polyorder"])


def scales_of(result):
    return {key.removeprefix("scale_"): float(value) for key, value in result["scales"].items()}


def points_of(frames: list[PoseFrame]) -> np.ndarray:
    """(frames, 130, 2) in pixels of the frames, nobody is NaN."""
    return np.stack(
        [
            (f.people[0].points if f.people else np.full((130, 2), np.nan)) * (f.width, f.height)
            for f in frames
        ]
    )  # fmt: skip


# ---- recorded results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_original_mode_reproduces_the_original(name):
    reference, video, reference_aspect, video_aspect = recorded_case(name)
    scales = original_scales(reference * (reference_aspect, 1), video[0] * (video_aspect, 1))
    assert scales == pytest.approx(scales_of(CASES[name]["expected"]), abs=1e-6)
    got = align_original(reference, video, reference_aspect, video_aspect, options=options_of(name))
    expected = np.stack([recorded(pose) for pose in CASES[name]["expected"]["frames"]])
    np.testing.assert_allclose(got[:, :128], expected[:, :128], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ROBUST_CASES)
def test_robust_mode_reproduces_the_recorded_results(name):
    reference, video, reference_aspect, video_aspect = recorded_case(name)
    seen = (video[..., 0] != -1).astype(float)
    aspects = (reference_aspect, video_aspect)
    scales, _ = robust_scales(nan(reference) * (reference_aspect, 1), nan(video) * (video_aspect, 1), seen)
    assert scales == pytest.approx(scales_of(CASES[name]["robust_expected"]), abs=1e-6)
    got = align_robust(nan(reference), nan(video), seen, *aspects, options=AlignOptions())
    expected = nan(np.stack([recorded(pose) for pose in CASES[name]["robust_expected"]["frames"]]))
    np.testing.assert_allclose(got[:, :128], expected[:, :128], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_both_modes_agree_where_they_can_be_compared(name):
    reference, video, *aspects = recorded_case(name)
    case, seen = CASES[name]["comparable_with_robust"], (video[..., 0] != -1).astype(float)
    original = align_original(reference, video, *aspects, options=AlignOptions(mode="original"))
    robust = align_robust(nan(reference), nan(video), seen, *aspects, options=AlignOptions())
    joints = case["body_joints"] + (list(range(18, 60)) if case["hands"] else [])
    np.testing.assert_allclose(robust[:, joints], original[:, joints], atol=2e-8, rtol=0)


# ---- what alignment is for -----------------------------------------------------------------------------------------


def test_the_first_frame_lands_on_a_reference_of_the_same_posture():
    reference = frame(person(at=(-130, -60), size=1.5))
    video = [frame(person(at=(20, 10))), frame(person(at=(40, 10)))]
    aligned = points_of(align_poses(video, reference))
    np.testing.assert_allclose(aligned[0], points_of([reference])[0], atol=1e-9)
    np.testing.assert_allclose(aligned[1, BODY], aligned[0, BODY] + (20, 0), atol=1e-9)


def test_the_result_has_the_size_of_the_reference_and_ignores_the_videos_aspect():
    wide = PoseFrame([person()], height=400, width=200)
    stretched = [PoseFrame([person()], height=200, width=100)]
    aligned = align_poses(stretched, wide)
    assert (aligned[0].height, aligned[0].width) == (400, 200)
    np.testing.assert_allclose(points_of(aligned), points_of([wide]), atol=1e-9)


def test_nothing_is_invented_for_points_the_video_does_not_show():
    video = [frame(person()), frame(without(person(), 4, RIGHT_HAND)), frame()]
    aligned = align_poses(video, frame(person(size=0.8)))
    assert aligned[0].people[0].visible[:128].all()
    np.testing.assert_array_equal(aligned[1].people[0].visible, video[1].people[0].visible)
    assert len(aligned[2].people) == 0


def test_limbs_the_reference_does_not_show_are_scaled_like_the_rest():
    half = without(person(size=1.5, at=(-50, -50)), 9, 10, 12, 13, LEFT_HAND, RIGHT_HAND)
    whole = align_poses([frame(person())], frame(person(size=1.5, at=(-50, -50))))
    np.testing.assert_allclose(points_of(align_poses([frame(person())], frame(half))), points_of(whole), atol=1e-9)


@pytest.mark.parametrize("missing", [(1,), (1, 2, 5), (1, 2, 5, 8, 11)], ids=["neck", "shoulders", "hips"])
def test_without_a_neck_the_next_anchor_is_laid_over_the_references(missing):
    video, reference = [frame(without(person(), *missing))], frame(person(size=1.2, at=(7, 9)))
    aligned = points_of(align_poses(video, reference))[0]
    expected = points_of([reference])[0]
    anchor = {1: (2, 5), 3: (8, 11), 5: (0,)}[len(missing)]
    np.testing.assert_allclose(aligned[list(anchor)].mean(0), expected[list(anchor)].mean(0), atol=1e-9)
    assert np.isfinite(aligned[BODY]).all(-1).sum() == 18 - len(missing)


def test_a_joint_whose_parent_is_missing_hangs_on_the_next_ancestor():
    video, reference = [frame(without(person(), 3))], frame(person(size=2, at=(-100, -100)))
    aligned, expected = points_of(align_poses(video, reference))[0], points_of([reference])[0]
    np.testing.assert_allclose(aligned[4], expected[4], atol=1e-9)  # all scales are 2


def test_the_face_goes_with_the_head():
    aligned = points_of(align_poses([frame(person())], frame(person(size=0.5))))[0]
    np.testing.assert_allclose(aligned[FACE][:68], points_of([frame(person(size=0.5))])[0, FACE][:68], atol=1e-9)


def test_the_largest_person_is_followed_whatever_their_order():
    big, small = [person(at=(x, 0)) for x in (0, 5)], [person(size=0.4, at=(x, 200)) for x in (100, 110)]
    video = [frame(big[0], small[0]), frame(small[1], big[1])]
    aligned = points_of(align_poses(video, frame(person())))
    np.testing.assert_allclose(aligned[1, BODY] - aligned[0, BODY], np.full((18, 2), (5.0, 0.0)), atol=1e-9)
    chosen = points_of(align_poses(video, frame(person(size=0.4)), video_person=1))
    np.testing.assert_allclose(chosen[1, BODY] - chosen[0, BODY], np.full((18, 2), (10.0, 0.0)), atol=1e-9)


# ---- extras --------------------------------------------------------------------------------------------------------


def test_a_high_quantile_of_all_frames_does_away_with_foreshortening():
    points = person().points.copy()
    points[4] = 0.9 * points[3] + 0.1 * points[4]  # the forearm points at the camera
    short = type(person())(points, person().score)
    video, reference = [frame(short)] + [frame(person())] * 9, frame(person())
    first = points_of(align_poses(video, reference))
    high = points_of(align_poses(video, reference, AlignOptions(length_quantile=0.9)))
    forearm = [np.linalg.norm(p[5, 4] - p[5, 3]) for p in (points_of(video), first, high)]
    assert forearm[1] > 4 * forearm[0] and forearm[2] == pytest.approx(forearm[0])


def test_limits_hold_every_scale():
    reference, video = person(size=4).points * (0.5, 1), person().points[None] * (0.5, 1)
    scales, median = robust_scales(reference, video, np.ones((1, 130)), limits=(0.3, 3))
    assert set(scales.values()) == {3.0} and median == 3


def test_walking_may_be_scaled_with_the_body():
    video = [frame(person(at=(x, 0))) for x in (0, 30)] + [frame()]
    reference = frame(person(size=0.5))
    neck = points_of(align_poses(video, reference))[:, 1]
    scaled = points_of(align_poses(video, reference, AlignOptions(scale_motion=True)))[:, 1]
    assert (neck[1] - neck[0]).tolist() == pytest.approx([30, 0])
    assert (scaled[1] - scaled[0]).tolist() == pytest.approx([15, 0])


def test_feet_may_be_kept_on_the_ground():
    points = person().points.copy()
    points[[9, 10, 12, 13], 1] += 0.02
    long_legs = type(person())(points, person().score)
    reference = without(frame(person()).people[0], 9, 12)  # without knees the legs take the trunk's scale
    plain = points_of(align_poses([frame(long_legs)], frame(reference)))[0]
    kept = points_of(align_poses([frame(long_legs)], frame(reference), AlignOptions(keep_feet=True)))[0]
    ground = points_of([frame(reference)])[0, 10, 1]
    assert plain[10, 1] != pytest.approx(ground) and kept[10, 1] == pytest.approx(ground)


def test_smoothing_quiets_what_trembles_and_bridges_short_gaps():
    shake = np.array([0, 3, -3, 3, -3, 3, -3, 3, 0])
    video = [frame(person(at=(x, 0))) for x in shake]
    video[4] = frame(without(video[4].people[0], 4))
    options = AlignOptions(smoothing=5, max_gap=1)
    aligned = align_poses(video, frame(person()), options)
    assert np.abs(np.diff(points_of(aligned)[:, 4, 0])).max() < 2.5
    assert aligned[4].people[0].visible[4]
    assert not align_poses(video, frame(person()), AlignOptions(smoothing=5))[4].people[0].visible[4]


# ---- original mode -------------------------------------------------------------------------------------------------


def test_original_mode_gives_poses_of_the_same_kind():
    video, reference = [frame(person()), frame(person(at=(9, 0)))], frame(person(size=1.2))
    original = points_of(align_poses(video, reference, AlignOptions(mode="original")))
    robust = points_of(align_poses(video, reference))
    np.testing.assert_allclose(original[:, :60], robust[:, :60], atol=1e-9)


def test_original_mode_keeps_its_weakness_missing_hands_move_with_the_rest():
    one = without(person(), LEFT_HAND)
    aligned = align_poses([frame(one)], frame(person(size=0.5, at=(300, 300))), AlignOptions(mode="original"))
    assert aligned[0].people[0].visible[LEFT_HAND].all()


def test_original_mode_loses_limbs_whose_scale_is_infinite():
    video = [frame(without(person(), 9, 10)), frame(person())]
    aligned = align_poses(video, frame(person()), AlignOptions(mode="original"))
    assert np.isfinite(points_of(aligned)[1, :9]).all() and not aligned[1].people[0].visible[10]


@pytest.mark.parametrize(
    "video, reference, options, message",
    [
        ([frame(person())], frame(), {}, "nobody in the reference pose"),
        ([frame(), frame()], frame(person()), {}, "in any of the 2 frames"),
        ([frame(), frame(person())], frame(person()), {"mode": "original"}, "first frame, which shows nobody"),
        ([frame(person()), frame(person(), width=8)], frame(person()), {}, "different sizes"),
        ([frame(person())], frame(person()), {"mode": "x"}, "robust, original, got 'x'"),
        ([frame(person())], frame(person()), {"smoothing": 4}, r"odd number of frames \(0 is off\), got 4"),
        ([frame(person())], frame(person()), {"smoothing": 3, "order": 3}, "0..2 for a window of 3, got 3"),
        ([frame(person())], frame(person()), {"length_quantile": 2.0}, "0..1, got 2"),
        ([frame(person())], frame(person()), {"scale_limits": (0.0, 1.0)}, "0 < low <= high"),
    ],
)
def test_what_cannot_be_aligned_is_said(video, reference, options, message):
    with pytest.raises(MuseVError, match=message):
        align_poses(video, reference, AlignOptions(**options))
