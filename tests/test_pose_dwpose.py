import numpy as np
import pytest
from support.poses import write_detector, write_pose_net

from musev_core.errors import CheckpointError
from musev_core.pose.dwpose import DWPose, decode_people, letterbox, suppress
from musev_core.pose.keypoints import BODY, FACE

pytest.importorskip("onnxruntime", reason="the extra `pose` is not installed")
cv2 = pytest.importorskip("cv2")

RED, GREEN, BLUE = 0, 1, 2  # of the pictures; the detector's input has them the other way round
OF_BLUE, OF_RED = 0, 2


@pytest.fixture
def networks(tmp_path):
    def make(*boxes):
        return DWPose(write_detector(tmp_path / "d.onnx", boxes), write_pose_net(tmp_path / "p.onnx"))

    return make


def picture(height=480, width=320, **dots):
    """Black with single dots 3 pixels wide: `r=(x, y)`, `g`, `b`."""
    image = np.zeros((height, width, 3), np.uint8)
    for channel, (x, y) in dots.items():
        image[y - 1 : y + 2, x - 1 : x + 2, "rgb".index(channel)] = 255
    return image


# ---- the detector --------------------------------------------------------------------------------------------------


def test_the_picture_stands_in_the_upper_left_of_a_grey_square():
    image = np.full((320, 160, 3), (10, 20, 30), np.uint8)
    square, ratio = letterbox(image, 640, cv2)
    assert ratio == 2 and square.shape == (640, 640, 3)
    assert (square[:, :320] == (10, 20, 30)).all() and (square[:, 320:] == 114).all()
    square, ratio = letterbox(np.zeros((100, 1281, 3), np.uint8), 640, cv2)
    assert ratio == 640 / 1281 and (square[:49] == 0).all() and (square[49:] == 114).all()


def test_a_row_is_relative_to_its_cell_and_stride():
    output = np.zeros((8400, 85))
    for row in (81, 6400 + 41, 8000 + 21):  # cell (1, 1) of each stride
        output[row, :6] = (0.5, 0.25, np.log(2), np.log(4), 0.8, 0.9)
    boxes, scores = decode_people(output, 640)
    assert boxes.tolist() == [
        pytest.approx([(1.5 - 1) * s, (1.25 - 2) * s, (1.5 + 1) * s, (1.25 + 2) * s]) for s in (8, 16, 32)
    ]
    assert scores == pytest.approx([0.72] * 3)


def test_only_certain_people_count():
    output = np.zeros((8400, 85))
    output[0, 4:6] = 0.5, 0.6  # 0.3
    output[1, 4:7] = 1, 0, 1  # a bicycle
    output[2, 4:6] = 0.5, 0.62
    assert decode_people(output, 640)[1] == pytest.approx([0.31])


def test_overlapping_boxes_leave_the_better_one():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [5, 0, 15, 10], [50, 50, 60, 60]], float)
    assert suppress(boxes, np.array([0.5, 0.9, 0.6, 0.4])) == [1, 2, 3]
    assert suppress(np.zeros((0, 4)), np.zeros(0)) == []


def test_the_detector_gets_blue_first_and_boxes_come_back_in_pixels_of_the_picture(networks):
    dwpose = networks(((64, 128, 192, 384), 0.9, OF_RED), ((300, 0, 400, 100), 0.5, OF_BLUE))
    red = dwpose.find_people(picture(320, 160, r=(80, 200)))  # twice as large in the square
    np.testing.assert_allclose(red, [[32, 64, 96, 192]], atol=1e-4)
    both = dwpose.find_people(picture(320, 160, r=(80, 200), b=(9, 9)))
    np.testing.assert_allclose(both, [[32, 64, 96, 192], [150, 0, 200, 50]], atol=1e-4)


# ---- points --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [(40, 60, 200, 300), (0, 0, 320, 480), (60, 200, 300, 260)], ids=["tall", "all", "flat"]
)
def test_points_are_found_where_they_are(networks, box):
    image = picture(r=(100, 220), g=(150, 240), b=(180, 210))
    points, scores = networks().find_points(image, np.array(box, float))
    pixel = 1.25 * max((box[2] - box[0]) / 288, (box[3] - box[1]) / 384)  # of the network, in pixels of the picture
    for channel, place in enumerate([(100, 220), (150, 240), (180, 210)]):
        assert np.abs(points[channel::3] - place).max() <= 1 + pixel
    assert (scores > 2).all()


def test_the_score_is_the_smaller_of_both_directions_and_missing_dots_score_nothing(networks):
    _, scores = networks().find_points(picture(r=(100, 220)), np.array([40, 60, 200, 300.0]))
    bright = (255 - 123.675) / 58.395
    assert scores[0::3] == pytest.approx([bright] * 45, abs=0.05)
    assert (scores[1::3] == 0).all() and (scores[2::3] == 0).all()


def test_people_come_with_openposes_joints(networks):
    dwpose = networks(((80, 80, 280, 520), 0.9, OF_RED))
    (one,) = dwpose(picture(480, 320, r=(100, 220), g=(150, 240)))
    # red: COCO 0, 3, 6, 9, ...; green: 1, 4, 7, ...; blue is missing
    assert one.points[0] * (320, 480) == pytest.approx((100, 220), abs=2)  # nose
    assert one.points[2] * (320, 480) == pytest.approx((100, 220), abs=2)  # right shoulder, COCO 6
    assert one.points[15] * (320, 480) == pytest.approx((150, 240), abs=2)  # left eye, COCO 1
    assert np.flatnonzero(~one.visible[BODY]).tolist() == [1, 3, 5, 9, 11, 14]  # neck, and COCO 8, 5, 14, 11, 2
    assert one.visible[FACE].sum() == sum(1 for j in range(23, 91) if j % 3 != 2)


def test_without_anybody_the_whole_picture_is_looked_at(networks):
    dwpose = networks(((80, 80, 280, 520), 0.9, OF_BLUE))
    (one,) = dwpose(picture(r=(100, 220)))
    assert one.points[0] * (320, 480) == pytest.approx((100, 220), abs=3)
    assert dwpose(picture()) == []


# ---- files ---------------------------------------------------------------------------------------------------------


def test_damaged_and_exchanged_files_are_named(tmp_path):
    detector, pose = write_detector(tmp_path / "d.onnx", []), write_pose_net(tmp_path / "p.onnx")
    damaged = tmp_path / "x.onnx"
    damaged.write_bytes(b"no onnx")
    with pytest.raises(CheckpointError, match=r"x\.onnx' cannot be read by onnxruntime"):
        DWPose(damaged, pose)
    with pytest.raises(CheckpointError, match=r"p\.onnx' has 2 outputs where 1 belong"):
        DWPose(pose, detector)
