"""DWPose through onnxruntime: YOLOX finds people, a SimCC network their 133 points (extra.md 3.1 b).

Yang et al., Effective Whole-body Pose Estimation with Two-stages Distillation, 2023; Ge et al., YOLOX, 2021.
"""

from os import PathLike
from typing import Any

import numpy as np

from ..errors import CheckpointError, require
from .keypoints import Person, people_from_wholebody

_DETECTOR_SIZE = (640, 640)  # height and width of the networks' inputs, if a file leaves them open
_POSE_SIZE = (384, 288)
_STRIDES = (8, 16, 32)
_GREY = 114  # around the picture in the detector's square
_MIN_PERSON = 0.3  # objectness times class
_MAX_OVERLAP = 0.45  # intersection over union, above which the weaker box goes
_PADDING = 1.25
_SIMCC_SPLIT = 2  # bins per pixel
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
# fastest first; those which this onnxruntime lacks are left out
_ACCELERATORS = (
    "CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider", "CoreMLExecutionProvider",
)  # fmt: skip


class DWPose:
    """Finds the people in a picture, with all their points.

    Args:
        detector: YOLOX trained on COCO (`yolox_l.onnx`).
        pose: whole-body network (`dw-ll_ucoco_384.onnx`).
        accelerate: use what this onnxruntime has beside the CPU.

    Raises:
        MissingPackageError: onnxruntime or OpenCV is not installed.
        CheckpointError: a file cannot be read by onnxruntime, or is another network.
    """

    def __init__(self, detector: str | PathLike[str], pose: str | PathLike[str], *, accelerate: bool = False) -> None:
        self._cv2 = require("cv2", install="opencv-python-headless", purpose="DWPose")
        self._detector = _session(detector, accelerate, outputs=1)
        self._pose = _session(pose, accelerate, outputs=2)

    def __call__(self, image: np.ndarray) -> list[Person]:
        """The people in a picture.

        Args:
            image: uint8 `(height, width, 3)`, RGB.
        """
        height, width = image.shape[:2]
        boxes = self.find_people(image)
        if not len(boxes):  # a close-up may show no whole person
            boxes = np.array([[0, 0, width, height]], np.float64)
        found = [self.find_points(image, box) for box in boxes]
        points, scores = (np.stack(values) for values in zip(*found, strict=True))
        return people_from_wholebody(points, scores, height, width)

    def find_people(self, image: np.ndarray) -> np.ndarray:
        """Boxes `(people, 4)`: left, top, right, bottom in pixels; the most certain first."""
        side = _input_size(self._detector, _DETECTOR_SIZE)[0]
        square, ratio = letterbox(image, side, self._cv2)
        values = square[:, :, ::-1].astype(np.float32).transpose(2, 0, 1)[None]  # trained on BGR, 0..255
        (output,) = self._detector.run(None, {self._detector.get_inputs()[0].name: values})
        boxes, scores = decode_people(output[0].astype(np.float64), side)
        return boxes[suppress(boxes, scores)] / ratio

    def find_points(self, image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points `(133, 2)` in pixels and scores `(133,)` of the person in a box."""
        height, width = _input_size(self._pose, _POSE_SIZE)
        centre = (box[:2] + box[2:]) / 2
        size = (box[2:] - box[:2]) * _PADDING
        aspect = width / height
        size = np.array([max(size[0], size[1] * aspect), max(size[1], size[0] / aspect)])
        scale = width / size[0]
        shift = np.array([width, height]) / 2 - scale * centre
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        crop = self._cv2.warpAffine(image, matrix, (width, height), flags=self._cv2.INTER_LINEAR)
        values = ((crop.astype(np.float32) - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None]
        x, y = self._pose.run(None, {self._pose.get_inputs()[0].name: values})  # (1, 133, 2 * width), (.., 2 * height)
        places = np.stack([x[0].argmax(axis=-1), y[0].argmax(axis=-1)], axis=-1) / _SIMCC_SPLIT
        scores = np.minimum(x[0].max(axis=-1), y[0].max(axis=-1)).astype(np.float64)
        return places / (width, height) * size + centre - size / 2, scores


def letterbox(image: np.ndarray, side: int, cv2: Any) -> tuple[np.ndarray, float]:
    """The picture in the upper left of a grey square of `side` pixels, and by how much it was enlarged for that."""
    height, width = image.shape[:2]
    ratio = min(side / height, side / width)
    size = (max(1, int(width * ratio)), max(1, int(height * ratio)))
    square = np.full((side, side, 3), _GREY, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return square, ratio


def decode_people(output: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(n, 4)` and scores `(n,)` of the people among YOLOX's raw predictions `(cells, 5 + classes)`.

    A row holds centre and size relative to its cell, objectness, and a score per class, of which 0 is a person. Boxes
    left, top, right, bottom are in pixels of the square.
    """
    cells, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[: side // stride, : side // stride]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        strides.append(np.full((len(cells[-1]), 1), stride))
    cell, stride = np.concatenate(cells), np.concatenate(strides)
    score = output[:, 4] * output[:, 5]
    keep = score > _MIN_PERSON
    centre = (output[keep, :2] + cell[keep]) * stride[keep]
    half = np.exp(output[keep, 2:4]) * stride[keep] / 2
    return np.concatenate([centre - half, centre + half], axis=1), score[keep]


def suppress(boxes: np.ndarray, scores: np.ndarray, max_overlap: float = _MAX_OVERLAP) -> list[int]:
    """Numbers of the boxes to keep, best first: each but those which overlap a better one too much."""
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        order = order[shared <= max_overlap * (areas[best] + areas[order] - shared)]
    return kept


def _session(path: str | PathLike[str], accelerate: bool, *, outputs: int) -> Any:
    ort = require("onnxruntime", install="onnxruntime", purpose="DWPose")
    available = ort.get_available_providers()
    wanted = [name for name in _ACCELERATORS if name in available] if accelerate else []
    try:
        session = ort.InferenceSession(str(path), providers=[*wanted, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for every kind of damage and no common one
        raise CheckpointError(f"{str(path)!r} cannot be read by onnxruntime: {error}") from error
    if len(session.get_outputs()) != outputs:
        raise CheckpointError(
            f"{str(path)!r} has {len(session.get_outputs())} outputs where {outputs} belong: DWPose takes yolox_l.onnx "
            "for finding people and dw-ll_ucoco_384.onnx for their points"
        )
    return session


def _input_size(session: Any, default: tuple[int, int]) -> tuple[int, int]:
    """Height and width a network takes."""
    height, width = session.get_inputs()[0].shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else default
