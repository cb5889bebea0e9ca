import numpy as np
import pytest
from PIL import Image
from support.poses import GOLDENS, person, recorded_case, without

from musev_core.errors import MuseVError
from musev_core.pose.drawing import ORDERS, draw_people
from musev_core.pose.keypoints import FACE, LEFT_HAND, NUM_POINTS, RIGHT_HAND, Person


def only_points(**at: tuple[float, float]) -> Person:
    """A person with single points, `p5=(x, y)` in 0..1."""
    points, score = np.zeros((NUM_POINTS, 2)), np.zeros(NUM_POINTS)
    for name, xy in at.items():
        points[int(name[1:])], score[int(name[1:])] = xy, 1
    return Person(points, score)


def colours(picture) -> set[tuple[int, ...]]:
    return {tuple(c) for c in np.unique(picture.reshape(-1, 3), axis=0).tolist()} - {(0, 0, 0)}


@pytest.mark.parametrize("order", ORDERS)
def test_the_picture_is_that_of_the_original_pixel_for_pixel(order):
    _, video, _, _ = recorded_case("proportions_and_aspect")
    points = video[2]
    drawn = draw_people([Person(points, points[:, 0] != -1)], 768, 512, face=True, order=order)
    np.testing.assert_array_equal(drawn, np.array(Image.open(GOLDENS / "pose_draw_case.png").convert("RGB")))


def test_nobody_is_black():
    assert not draw_people([], 64, 32).any() and draw_people([], 64, 32).shape == (64, 32, 3)


def test_a_joint_is_a_dot_of_radius_4_at_the_truncated_pixel():
    picture = draw_people([only_points(p2=(0.507, 0.319))], 100, 100)
    rows, columns = np.nonzero(picture.any(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (27, 35, 46, 54)
    assert colours(picture) == {(255, 170, 0)}


def test_a_limb_is_darker_than_its_joints_and_needs_both_ends():
    assert colours(draw_people([only_points(p2=(0.2, 0.5), p3=(0.8, 0.5))], 100, 100)) == {
        (153, 102, 0), (255, 170, 0), (255, 255, 0),
    }  # fmt: skip
    assert len(colours(draw_people([only_points(p2=(0.2, 0.5), p4=(0.8, 0.5))], 100, 100))) == 2


def test_sticks_keep_their_width_at_every_size():
    for size in (128, 1024):
        picture = draw_people([only_points(p2=(0.25, 0.5), p3=(0.75, 0.5))], size, size)
        assert picture[:, size // 2].any(-1).sum() == 9


def test_parts_are_drawn_as_asked():
    one = person()
    body, hands, face, eyes = (
        draw_people([one], 400, 200, **{"body": False, "hands": False, part: True})
        for part in ("body", "hands", "face", "eyes")
    )
    assert colours(face) == colours(eyes) == {(255, 255, 255)}
    assert 0 < eyes.any(-1).sum() < face.any(-1).sum()
    assert (0, 0, 255) in colours(hands) and (153, 0, 0) in colours(body)
    everything = draw_people([one], 400, 200, face=True)
    np.testing.assert_array_equal(everything.any(-1), (body | hands | face).any(-1))
    np.testing.assert_array_equal(draw_people([one.only(["hands"])], 400, 200), hands)


def test_hands_and_faces_on_the_left_or_upper_edge_are_skipped_bodies_are_not():
    def edge(place):
        return draw_people([only_points(**{f"p{place}": (0.009, 0.5)})], 100, 100, face=True)

    assert not edge(LEFT_HAND.start).any() and not edge(RIGHT_HAND.start).any() and not edge(FACE.start).any()
    assert edge(0).any()


def test_pupils_are_drawn_with_the_face():
    assert draw_people([only_points(p128=(0.5, 0.5))], 100, 100, face=True).any()


def test_points_far_outside_do_no_harm():
    far = only_points(p2=(0.5, 0.5), p3=(1e9, -1e9), p4=(3, 3), p18=(1e300, 0.5))
    assert colours(draw_people([far], 100, 100)) == {(255, 170, 0)}


def test_the_order_of_several_people():
    """The hands of one before the arms of another: over all bodies, or under those who come later."""
    front, back = person(parts=["hands"]), person(parts=["body"])
    alone = draw_people([front], 400, 200)
    hands = alone.any(-1)
    together, one_by_one = (draw_people([front, back], 400, 200, order=order) for order in ("dwpose", "openpose"))
    np.testing.assert_array_equal(together[hands], alone[hands])
    assert (one_by_one[hands] != alone[hands]).any()


def test_the_face_lies_under_the_hands_in_dwposes_order_and_over_them_in_openposes():
    one = only_points(p18=(0.5, 0.5), p60=(0.5, 0.5))
    assert draw_people([one], 100, 100, face=True)[50, 50].tolist() == [0, 0, 255]
    assert draw_people([one], 100, 100, face=True, order="openpose")[50, 50].tolist() == [255, 255, 255]


def test_a_missing_joint_takes_its_limbs_with_it():
    complete, partial = (draw_people([p], 400, 200) for p in (person(), without(person(), 9)))
    assert (0, 153, 51) in colours(complete) and (0, 153, 51) not in colours(partial)  # knee from hip
    assert (0, 153, 0) in colours(partial)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"height": 0, "width": 8}, "positive size, got 0 x 8"),
        ({"height": 8, "width": 8, "order": "x"}, "dwpose, openpose, got 'x'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(MuseVError, match=message):
        draw_people([], **arguments)
