"""Pictures of poses, pixel for pixel those the OpenPose ControlNet was trained on (extra.md 4.3)."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MuseVError, require
from .keypoints import BODY, FACE, LEFT_HAND, RIGHT_HAND, Person

_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
_FINGERS = tuple((0 if j % 4 == 1 else j - 1, j) for j in range(1, 21))
_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
# OpenCV rounds these, and many lie on one half: they must be the very floats of the original.
_FINGER_COLOURS = tuple(tuple(c * 255 for c in colorsys.hsv_to_rgb(e / 20, 1.0, 1.0)) for e in range(20))
_EYES = slice(FACE.start + 36, FACE.start + 48)

_STICK = 4  # pixels: half width of a limb and radius of a joint, at every size of picture
_FACE_RADIUS = 3
_FAR = 1 << 15  # pixels: what lies further out is not drawn, OpenCV could not hold it
ORDERS = ("dwpose", "openpose")


def draw_people(
    people: Sequence[Person],
    height: int,
    width: int,
    *,
    body: bool = True,
    hands: bool = True,
    face: bool = False,
    eyes: bool = False,
    order: str = "dwpose",
) -> np.ndarray:
    """The people of one frame on black. Sticks keep their width: draw at the size of the video, do not resize after.

    Args:
        people: points are times `width` and `height`, whatever size they were found at.
        height, width: pixels, 1 or more.
        body, hands, face: which parts are drawn.
        eyes: without `face`, the landmarks of the eyes only.
        order: which of several people or parts lies on top. "dwpose" draws all bodies, then all faces, then all left
            and all right hands; "openpose" one person after the other, each body, left hand, right hand, face.

    Returns:
        uint8 `(height, width, 3)`, RGB.

    Raises:
        MuseVError: a size that is not positive, or an unknown order.
        MissingPackageError: OpenCV is not installed.
    """
    if height < 1 or width < 1:
        raise MuseVError(f"a picture of a pose needs a positive size, got {height} x {width} (height x width)")
    if order not in ORDERS:
        raise MuseVError(f"the order of drawing must be one of {', '.join(ORDERS)}, got {order!r}")
    cv2 = require("cv2", install="opencv-python-headless", purpose="Drawing poses")
    canvas = np.zeros((height, width, 3), np.uint8)
    pixels = [_pixels(person, height, width) for person in people]
    marks = FACE if face else _EYES if eyes else slice(0, 0)
    groups = [pixels] if order == "dwpose" else [[p] for p in pixels]
    for group in groups:
        if body:
            _draw_bodies(cv2, canvas, [p[BODY] for p in group])
        if order == "dwpose":
            _draw_faces(cv2, canvas, [p[marks] for p in group])
        if hands:
            _draw_hands(cv2, canvas, [p[LEFT_HAND] for p in group] + [p[RIGHT_HAND] for p in group])
        if order == "openpose":
            _draw_faces(cv2, canvas, [p[marks] for p in group])
    return canvas


def _pixels(person: Person, height: int, width: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        pixels = person.points * (width, height)
    return np.where((np.abs(pixels) < _FAR).all(axis=-1, keepdims=True), pixels, np.nan)


def _draw_bodies(cv2: Any, canvas: np.ndarray, bodies: Sequence[np.ndarray]) -> None:
    for (a, b), colour in zip(_LIMBS, _COLOURS, strict=False):
        for (x0, y0), (x1, y1) in (body[[a, b]].tolist() for body in bodies):
            if math.isnan(x0 + x1):
                continue
            centre = (int((x0 + x1) / 2), int((y0 + y1) / 2))
            half_length = int(math.sqrt((x0 - x1) ** 2 + (y0 - y1) ** 2) / 2)
            angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
            ellipse = cv2.ellipse2Poly(centre, (half_length, _STICK), angle, 0, 360, 1)
            cv2.fillConvexPoly(canvas, ellipse, tuple(c * 3 // 5 for c in colour))
    for joint, colour in enumerate(_COLOURS):
        for x, y in (body[joint].tolist() for body in bodies):
            if not math.isnan(x):
                cv2.circle(canvas, (int(x), int(y)), _STICK, colour, -1)


def _draw_hands(cv2: Any, canvas: np.ndarray, hands: Sequence[np.ndarray]) -> None:
    for hand in hands:
        points = _inside(hand)
        for (a, b), colour in zip(_FINGERS, _FINGER_COLOURS, strict=True):
            start, end = points[a], points[b]
            if start is not None and end is not None:
                cv2.line(canvas, start, end, colour, 2)
        for point in points:
            if point is not None:
                cv2.circle(canvas, point, _STICK, (0, 0, 255), -1)


def _draw_faces(cv2: Any, canvas: np.ndarray, faces: Sequence[np.ndarray]) -> None:
    for face in faces:
        for point in _inside(face):
            if point is not None:
                cv2.circle(canvas, point, _FACE_RADIUS, (255, 255, 255), -1)


def _inside(points: np.ndarray) -> list[tuple[int, int] | None]:
    """Pixels of the points of a hand or face which count: not on the left and upper edge, where missing ones lay."""
    return [(int(x), int(y)) if x >= 1 and y >= 1 else None for x, y in points.tolist()]  # NaN fails too
