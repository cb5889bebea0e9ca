"""POSE_KEYPOINT dictionaries, as comfyui_controlnet_aux makes them and OpenPose wrote them first (extra.md 4.4)."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import MuseVError, blame
from .keypoints import BODY, FACE, LEFT_HAND, MIN_SCORE, NUM_POINTS, RIGHT_HAND, Person, PoseFrame

_PARTS = {
    "pose_keypoints_2d": BODY,
    "hand_left_keypoints_2d": LEFT_HAND,
    "hand_right_keypoints_2d": RIGHT_HAND,
    "face_keypoints_2d": FACE,
}
_LANDMARKS = 68  # of a face without pupils
_EYES = slice(14, 16)  # body joints which the DWPose node appends to the face, in the place of pupils


def read_keypoints(data: Any) -> list[PoseFrame]:
    """Pose frames from POSE_KEYPOINT: a list with one dictionary per frame, or one dictionary.

    Coordinates are pixels of the canvas, or 0..1: a part whose points all lie within 1 of zero is taken as 0..1. The
    third number is 1 for a present point and 0 for a missing one; other programs write a confidence there, which must
    exceed 0.3. Parts may be null; frames without people are kept; feet and animals are ignored. Pupils which only
    repeat the eyes of the body are no measurement and dropped.

    Raises:
        MuseVError: not of this form; the message says which frame and person.
    """
    frames = [data] if isinstance(data, Mapping) else data
    if not isinstance(frames, Sequence) or isinstance(frames, str) or not frames:
        raise MuseVError(
            f"POSE_KEYPOINT must be a list with one dictionary per frame and at least one frame, got {_short(data)}"
        )
    result = []
    for number, frame in enumerate(frames):
        with blame(f"frame {number} of POSE_KEYPOINT"):
            result.append(_read_frame(frame))
    return result


def write_keypoints(frames: Sequence[PoseFrame]) -> list[dict[str, Any]]:
    """POSE_KEYPOINT: one dictionary per frame, in pixels of the canvas, 1.0 for present and three zeros for missing.

    Hands and faces without a point are null, a body is eighteen missing points then. Faces have 70 points: where the
    pupils are unknown, the eyes of the body stand in for them, as in the DWPose node.
    """
    return [
        {
            "people": [_write_person(person, frame) for person in frame.people],
            "canvas_height": frame.height,
            "canvas_width": frame.width,
        }
        for frame in frames
    ]


def _read_frame(frame: Any) -> PoseFrame:
    if not isinstance(frame, Mapping) or "people" not in frame:
        raise MuseVError(f"expected a dictionary with people, canvas_height and canvas_width, got {_short(frame)}")
    height, width = (_side(frame.get(key), key) for key in ("canvas_height", "canvas_width"))
    given = frame["people"] or ()
    if not isinstance(given, Sequence):
        raise MuseVError(f"people must be a list with one dictionary per person, got {_short(given)}")
    people = []
    for number, person in enumerate(given):
        with blame(f"person {number}"):
            people.append(_read_person(person, height, width))
    return PoseFrame(people, height, width)


def _side(value: Any, key: str) -> int:
    if not isinstance(value, (int, float)) or not 1 <= value < 1 << 20:
        raise MuseVError(f"{key} must be a number of pixels, 1 or more, got {_short(value)}")
    return int(value)


def _read_person(data: Any, height: int, width: int) -> Person:
    if not isinstance(data, Mapping):
        raise MuseVError(f"expected a dictionary with pose_keypoints_2d, got {_short(data)}")
    points, score = np.zeros((NUM_POINTS, 2)), np.zeros(NUM_POINTS)
    for key, places in _PARTS.items():
        triples = _triples(data.get(key), key, places.stop - places.start)
        if key == "face_keypoints_2d" and len(triples) > _LANDMARKS:
            eyes = _triples(data.get("pose_keypoints_2d"), "pose_keypoints_2d", 18)[_EYES]
            if np.array_equal(triples[_LANDMARKS:], eyes):
                triples = triples[:_LANDMARKS]
        present = triples[:, 2] > MIN_SCORE
        xy = triples[:, :2]
        if present.any() and (np.abs(xy[present]) > 1).any():
            xy = _normalised(xy, np.array([width, height], np.float64))
        start = places.start
        points[start : start + len(xy)] = xy
        score[start : start + len(xy)] = np.where(present, triples[:, 2], 0)
    return Person(points, score)


def _normalised(pixels: np.ndarray, size: np.ndarray) -> np.ndarray:
    """`pixels / size`, rounded up where multiplying again would fall short: drawing truncates."""
    xy = pixels / size
    return np.where(xy * size < pixels, np.nextafter(xy, np.inf), xy)


def _triples(values: Any, key: str, count: int) -> np.ndarray:
    """`(n, 3)` with n = count, or 0 for null, or 68 of the 70 points of a face."""
    if values is None:
        return np.zeros((0, 3))
    try:
        array = np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise MuseVError(f"{key} must be a flat list of numbers, got {_short(values)}") from error
    if len(array) == 0:
        return np.zeros((0, 3))
    if not np.isfinite(array).all():
        raise MuseVError(f"{key} must be a flat list of finite numbers, got {_short(values)}")
    lengths = (3 * count, 3 * _LANDMARKS) if key == "face_keypoints_2d" else (3 * count,)
    if len(array) not in lengths:
        expected = " or ".join(str(n) for n in lengths)
        raise MuseVError(f"{key} must have {expected} numbers (x, y and confidence per point), got {len(array)}")
    return array.reshape(-1, 3)


def _write_person(person: Person, frame: PoseFrame) -> dict[str, Any]:
    pixels = person.points * (frame.width, frame.height)
    visible = person.visible
    pupils = slice(FACE.start + _LANDMARKS, FACE.stop)
    if visible[FACE].any() and not visible[pupils].any():
        pixels[pupils], visible[pupils] = pixels[_EYES], visible[_EYES]
    triples = np.where(visible[:, None], np.concatenate([pixels, np.ones((NUM_POINTS, 1))], axis=1), 0.0)
    return {
        key: triples[places].reshape(-1).tolist() if places == BODY or visible[places].any() else None
        for key, places in _PARTS.items()
    }


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # looks at the beginning only
    return text if len(text) <= 80 else f"{text[:77]}..."
