"""People for tests, the recorded alignments of the original, and ONNX networks that find coloured dots."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from musev_core.pose.keypoints import BODY, FACE, LEFT_HAND, NUM_POINTS, RIGHT_HAND, Person, PoseFrame
from support.onnx_files import node, write_model

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = {
    case["name"]: case for case in json.loads((GOLDENS / "pose_align_cases.json").read_text(encoding="utf-8"))["cases"]
}

# a standing person, pixels of a picture 200 wide and 400 high, in OpenPose's order
_STANDING = (
    (100, 60), (100, 100), (70, 100), (60, 150), (55, 200), (130, 100), (140, 150), (145, 200), (80, 210), (78, 290),
    (76, 370), (120, 210), (122, 290), (124, 370), (95, 54), (105, 54), (88, 58), (112, 58),
)  # fmt: skip


def person(*, at: tuple[float, float] = (0, 0), size: float = 1, parts: Sequence[str] = ("body", "hands", "face")):
    """A standing person in a picture of 200 x 400, moved by pixels after being scaled around the picture's corner."""
    xy = np.zeros((NUM_POINTS, 2))
    xy[BODY] = _STANDING
    spread = np.stack([np.arange(21) % 5 * 3.0, np.arange(21) // 5 * 5.0], axis=-1)
    xy[LEFT_HAND], xy[RIGHT_HAND] = spread + xy[7], spread * (-1, 1) + xy[4]
    around = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    xy[FACE][:68] = np.stack([12 * np.cos(around), 18 * np.sin(around)], axis=-1) + xy[0]
    score = np.ones(NUM_POINTS)
    score[128:] = 0
    return Person((xy * size + at) / (200, 400), score).only(parts)


def without(one: Person, *joints: int | slice) -> Person:
    """The person with some points missing."""
    score = one.score.copy()
    for joint in joints:
        score[joint] = 0
    return Person(one.points, score)


def frame(*people: Person, height: int = 400, width: int = 200) -> PoseFrame:
    """A pose frame of the size `person` is made for."""
    return PoseFrame(people, height, width)


def recorded(pose: dict) -> np.ndarray:
    """`(130, 2)` of a recorded pose; missing points at -1, and the pupils it does not have."""
    return np.concatenate([pose["body"], pose["hands"][0], pose["hands"][1], pose["face"][0], np.full((2, 2), -1.0)])


def recorded_case(name: str) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Reference, video and the aspects (width / height) of both."""
    case = CASES[name]
    video = np.stack([recorded(pose) for pose in case["video_frames"]])
    aspects = [case[key][0] / case[key][1] for key in ("reference_size_wh", "video_size_wh")]
    return recorded(case["reference_pose"]), video, aspects[0], aspects[1]


def write_detector(path: Path, boxes: Sequence[tuple[tuple[float, float, float, float], float, int]]) -> Path:
    """A detector in YOLOX's form which sees `boxes` wherever the largest blue and red in the picture say so.

    A box is (left, top, right, bottom) in pixels of the 640 x 640 square, its score, and the channel of the network's
    input whose maximum / 255 multiplies the score.
    """
    side, strides = 640, (8, 16, 32)
    base = np.zeros((1, 8400, 85), np.float32)
    gain = np.zeros((3, 8400), np.float32)
    for i, ((left, top, right, bottom), score, channel) in enumerate(boxes):
        level = i % 3
        stride, width = strides[level], side // strides[level]
        first = sum((side // s) ** 2 for s in strides[:level])
        x, y = int((left + right) / 2 / stride), int((top + bottom) / 2 / stride)
        row = first + y * width + x
        base[0, row, 0] = (left + right) / 2 / stride - x
        base[0, row, 1] = (top + bottom) / 2 / stride - y
        base[0, row, 2:4] = np.log((right - left) / stride), np.log((bottom - top) / stride)
        base[0, row, 5] = score
        base[0, row, 6] = 1  # a bicycle, which is nobody
        gain[channel, row] = 1 / 255
    column = np.zeros((1, 1, 85), np.float32)
    column[0, 0, 4] = 1
    nodes = [
        node("ReduceMax", ["image"], "brightest", axes=[2, 3], keepdims=0),  # (1, 3)
        node("MatMul", ["brightest", "gain"], "objectness"),  # (1, 8400)
        node("Unsqueeze", ["objectness", "last"], "rows"),
        node("Mul", ["rows", "column"], "seen"),
        node("Add", ["base", "seen"], "output"),
    ]
    constants = {"gain": gain, "last": np.array([2], np.int64), "column": column, "base": base}
    return write_model(path, nodes, constants, {"image": (1, 3, 640, 640)}, {"output": (1, 8400, 85)})


def write_pose_net(path: Path) -> Path:
    """A whole-body network in SimCC's form whose point j is the brightest dot in channel j % 3; none scores 0."""
    height, width = 384, 288
    nodes, constants = [], {"choice": np.eye(3, dtype=np.float32)[np.arange(133) % 3]}
    for name, side, axis in (("x", width, 2), ("y", height, 3)):
        spread = np.zeros((side, 2 * side), np.float32)
        spread[np.arange(side), 2 * np.arange(side)] = 1
        constants[f"spread_{name}"] = spread
        nodes += [
            node("ReduceMax", ["image"], f"line_{name}", axes=[axis], keepdims=0),  # (1, 3, side)
            node("MatMul", [f"line_{name}", f"spread_{name}"], f"bins_{name}"),
            node("MatMul", ["choice", f"bins_{name}"], f"simcc_{name}"),  # (1, 133, 2 * side)
        ]
    outputs = {"simcc_x": (1, 133, 2 * width), "simcc_y": (1, 133, 2 * height)}
    return write_model(path, nodes, constants, {"image": (1, 3, height, width)}, outputs)
