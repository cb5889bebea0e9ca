import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.poses import frame, person, without

from musev_core.errors import MuseVError
from musev_core.pose.drawing import draw_people
from musev_core.pose.keypoint_json import read_keypoints, write_keypoints
from musev_core.pose.keypoints import (
    BODY,
    FACE,
    LEFT_HAND,
    NECK,
    RIGHT_HAND,
    Person,
    openpose_134,
    people_from_wholebody,
    with_hands_at_their_wrists,
)

# COCO's own names of its first 17 points, in OpenPose's order of 18
COCO = "nose l_eye r_eye l_ear r_ear l_shoulder r_shoulder l_elbow r_elbow l_wrist r_wrist l_hip r_hip l_knee r_knee l_ankle r_ankle"  # noqa: E501
OPENPOSE = "nose neck r_shoulder r_elbow r_wrist l_shoulder l_elbow l_wrist r_hip r_knee r_ankle l_hip l_knee l_ankle r_eye l_eye r_ear l_ear"  # noqa: E501


def detection(score=1.0):
    """One person of 133 points at (j, 1000 - j)."""
    j = np.arange(133.0)
    return np.stack([j, 1000 - j], axis=-1)[None], np.full((1, 133), score)


def triples(count, x=10.0, y=20.0, c=1.0):
    return [x, y, c] * count


def dictionary(**parts):
    everything = {
        "pose_keypoints_2d": triples(18),
        "face_keypoints_2d": None,
        "hand_left_keypoints_2d": None,
        "hand_right_keypoints_2d": None,
    }
    return {"people": [everything | parts], "canvas_height": 400, "canvas_width": 200}


def assert_same(a: Person, b: Person):
    np.testing.assert_array_equal(a.visible, b.visible)
    np.testing.assert_allclose(a.points, b.points, rtol=1e-12)


# ---- from a whole-body detector ------------------------------------------------------------------------------------


def test_body_joints_come_in_openposes_order():
    points, _ = openpose_134(*detection())
    coco, openpose = COCO.split(), OPENPOSE.split()
    for place, name in enumerate(openpose):
        if name != "neck":
            assert points[0, place, 0] == coco.index(name)


def test_the_neck_lies_between_the_shoulders_and_is_there_if_both_are():
    points, scores = detection()
    both = openpose_134(points, scores)
    assert both[0][0, NECK].tolist() == [5.5, 994.5] and both[1][0, NECK] == 1
    scores[0, 6] = 0.3
    assert openpose_134(points, scores)[1][0, NECK] == 0


def test_feet_face_and_hands_follow_in_the_order_of_134():
    points, _ = openpose_134(*detection())
    assert points[0, 18:, 0].tolist() == list(range(17, 133))


def test_a_person_keeps_face_and_hands_and_loses_the_feet():
    (one,) = people_from_wholebody(*detection(), height=1000, width=500)
    assert (one.points[FACE][:68, 0] * 500).tolist() == pytest.approx(range(23, 91))
    assert (one.points[LEFT_HAND, 0] * 500).tolist() == pytest.approx(range(91, 112))
    assert (one.points[RIGHT_HAND, 0] * 500).tolist() == pytest.approx(range(112, 133))
    assert one.visible[:128].all() and not one.visible[128:].any()
    assert np.nanmax(one.points[:, 1]) == 1


def test_points_below_the_threshold_are_missing_at_the_threshold_only_those_of_the_body():
    (one,) = people_from_wholebody(*detection(0.3), height=1, width=1)
    assert not one.visible[BODY].any() and one.visible[LEFT_HAND].all() and one.visible[FACE][:68].all()
    assert people_from_wholebody(*detection(0.29), height=1, width=1) == []


def test_a_person_without_a_score_or_a_place_is_missing_there():
    points, score = np.zeros((130, 2)), np.ones(130)
    score[3], points[4] = 0, np.nan
    one = Person(points, score)
    assert np.flatnonzero(~one.visible).tolist() == [3, 4]
    assert np.isnan(one.points[[3, 4]]).all() and one.score[4] == 0


def test_hands_named_the_wrong_way_round_go_to_their_wrists():
    right = person()
    order = np.r_[0:18, 39:60, 18:39, 60:130]
    wrong = Person(right.points[order], right.score[order])
    assert_same(with_hands_at_their_wrists(wrong), right)
    assert with_hands_at_their_wrists(right) is right
    one_hand = without(wrong, LEFT_HAND)
    assert not with_hands_at_their_wrists(one_hand).visible[RIGHT_HAND].any()
    assert with_hands_at_their_wrists(without(wrong, 4)).visible[RIGHT_HAND].any()


# ---- POSE_KEYPOINT -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again():
    frames = [frame(person(), without(person(at=(20, 5)), 3, 9, LEFT_HAND)), frame(), frame(person(parts=["hands"]))]
    again = read_keypoints(json.loads(json.dumps(write_keypoints(frames))))
    assert [len(f.people) for f in again] == [2, 0, 1]
    for before, after in zip(frames, again, strict=True):
        assert (after.height, after.width) == (400, 200)
        for a, b in zip(before.people, after.people, strict=True):
            assert_same(a, b)


def test_the_written_form_is_that_of_the_openpose_nodes():
    body = without(person(parts=["body"]), 4)
    (written,) = write_keypoints([frame(body, person())])
    assert (written["canvas_height"], written["canvas_width"]) == (400, 200)
    first, second = written["people"]
    assert first["pose_keypoints_2d"][:3] == [100, 60, 1] and first["pose_keypoints_2d"][12:15] == [0, 0, 0]
    assert [first[k] for k in ("face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d")] == [None] * 3
    assert [len(second[k]) for k in sorted(second)] == [210, 63, 63, 54]
    assert second["face_keypoints_2d"][-6:] == second["pose_keypoints_2d"][14 * 3 : 16 * 3]


def test_a_body_that_is_switched_off_is_eighteen_zero_triples():
    (written,) = write_keypoints([frame(person(parts=["face"]))])
    assert written["people"][0]["pose_keypoints_2d"] == [0.0] * 54


def test_each_part_is_in_pixels_or_normalised_on_its_own():
    data = dictionary(pose_keypoints_2d=triples(18, 0.5, 0.25), hand_left_keypoints_2d=triples(21, 100, 100))
    (one,) = read_keypoints(data)[0].people
    assert one.points[0].tolist() == [0.5, 0.25] and one.points[LEFT_HAND][0].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("size", [100, 333, 720, 1000, 1023])
def test_whole_pixels_stay_whole_pixels(size):
    """Drawing truncates, so falling short by the last bit would move a joint."""
    for start in range(2, size - 18, 18):
        values = [v for x in range(start, start + 18) for v in (x, 5, 1)]
        data = dictionary(pose_keypoints_2d=values) | {"canvas_width": size}
        (one,) = read_keypoints(data)[0].people
        assert [int(x) for x in one.points[BODY, 0] * size] == list(range(start, start + 18))


def test_a_confidence_counts_from_the_threshold_on():
    values = triples(18)
    values[2::3] = [0.0, 0.29, 0.31, *[1.0] * 15]
    (one,) = read_keypoints(dictionary(pose_keypoints_2d=values))[0].people
    assert np.flatnonzero(~one.visible[BODY]).tolist() == [0, 1] and one.score[2] == 0.31


def test_faces_may_have_68_points_and_pupils_of_their_own():
    (one,) = read_keypoints(dictionary(face_keypoints_2d=triples(68)))[0].people
    assert one.visible[FACE].sum() == 68
    (one,) = read_keypoints(dictionary(face_keypoints_2d=triples(70)))[0].people  # eyes of the body once more
    assert one.visible[FACE].sum() == 68
    (one,) = read_keypoints(dictionary(face_keypoints_2d=triples(70, 30, 30)))[0].people
    assert one.visible[FACE].sum() == 70


def test_missing_parts_other_keys_and_one_frame_without_a_list_are_understood():
    data = {"people": [{"pose_keypoints_2d": triples(18), "foot_keypoints_2d": triples(6)}], "animals": [[1, 2]]}
    (result,) = read_keypoints(data | {"canvas_height": 400, "canvas_width": 200})
    assert result.people[0].visible.sum() == 18
    (empty,) = read_keypoints([{"people": [], "canvas_height": 8, "canvas_width": 8}])
    assert len(empty.people) == 0


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "at least one frame, got []"),
        ("people", "list with one dictionary per frame"),
        ([{"canvas_height": 4}], "frame 0 of POSE_KEYPOINT: expected a dictionary with people"),
        ([{"people": []}], "canvas_height must be a number of pixels, 1 or more, got None"),
        ([dictionary(), dictionary(pose_keypoints_2d=[1, 2])], "frame 1 of POSE_KEYPOINT: person 0: pose_keypoints_2d"),
        ([dictionary(hand_left_keypoints_2d=["x"] * 63)], "hand_left_keypoints_2d must be a flat list of numbers"),
        ([dictionary(face_keypoints_2d=triples(69))], "face_keypoints_2d must have 210 or 204 numbers"),
        ([dictionary(pose_keypoints_2d=5)], "pose_keypoints_2d must have 54 numbers"),
        ([dictionary(pose_keypoints_2d=[10**400] * 54)], "pose_keypoints_2d must be a flat list of numbers"),
        ([dictionary(pose_keypoints_2d=[float("nan")] * 54)], "must be a flat list of finite numbers"),
        (
            [{"people": 5, "canvas_height": 8, "canvas_width": 8}],
            "people must be a list with one dictionary per person",
        ),
        (
            [{"people": [], "canvas_height": float("nan"), "canvas_width": 8}],
            "canvas_height must be a number of pixels",
        ),
    ],
)
def test_other_data_is_refused_with_its_place(data, message):
    with pytest.raises(MuseVError, match=re.escape(message)):
        read_keypoints(data)


ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["people", "canvas_height", "canvas_width", "pose_keypoints_2d"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


@given(data=ODD, body=st.lists(st.floats() | st.integers(), min_size=54, max_size=54))
def test_any_data_is_read_or_refused(data, body):
    person = {"people": [{"pose_keypoints_2d": body}], "canvas_height": 64, "canvas_width": 64}
    for given_data in (data, [data], person, {"people": data, "canvas_height": 64, "canvas_width": 64}):
        try:
            frames = read_keypoints(given_data)
        except MuseVError:
            continue
        draw_people(frames[0].people, 16, 16)
        assert read_keypoints(write_keypoints(frames))
