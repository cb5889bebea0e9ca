"""The points of a person: their order, and how a whole-body detector's 133 points become them (extra.md 4.1, 4.2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MuseVError

# One array holds all points of a person; left and right are the person's own.
BODY = slice(0, 18)  # OpenPose: nose, neck, right arm, left arm, right leg, left leg, eyes, ears
LEFT_HAND = slice(18, 39)  # wrist, then four joints of thumb, index, middle, ring and little finger
RIGHT_HAND = slice(39, 60)
FACE = slice(60, 130)  # 68 landmarks (iBUG), then the pupils where a detector has them
NUM_POINTS = 130
NOSE, NECK = 0, 1
PARTS = {"body": (BODY,), "hands": (LEFT_HAND, RIGHT_HAND), "face": (FACE,)}

MIN_SCORE = 0.3  # below it a detected point counts as missing (extra.md 4.2)

_WHOLE_BODY_NECK = 17  # place of the inserted neck, then the 18 of OpenPose in places of the 134
_OPENPOSE = (0, 17, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)


@dataclass(frozen=True, eq=False)
class Person:
    """All points of a person in one picture.

    Attributes:
        points: float64 `(130, 2)`, x / width and y / height of the picture; NaN where missing.
        score: float64 `(130,)`, 0 where missing, else the detector's confidence (1 if there is none).
    """

    points: np.ndarray
    score: np.ndarray

    def __post_init__(self) -> None:
        points, score = np.array(self.points, np.float64), np.array(self.score, np.float64)
        if points.shape != (NUM_POINTS, 2) or score.shape != (NUM_POINTS,):
            raise MuseVError(
                f"a person has {NUM_POINTS} points (x, y) and as many scores, got {points.shape} and {score.shape}"
            )
        present = (score > 0) & np.isfinite(points).all(-1)
        score[~present], points[~present] = 0, np.nan
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "score", score)

    @property
    def visible(self) -> np.ndarray:
        """bool `(130,)`: which points there are."""
        return self.score > 0

    def only(self, parts: Iterable[str]) -> "Person":
        """The same person with the points of some `PARTS` and no others."""
        score = np.zeros_like(self.score)
        for part in parts:
            for places in PARTS[part]:
                score[places] = self.score[places]
        return Person(self.points, score)


def with_hands_at_their_wrists(person: Person) -> Person:
    """The person, hands exchanged if they lie nearer to the wrists of the other side.

    ComfyUI's own SDPose nodes name left what others name right.
    """
    l_wrist, r_wrist = person.points[7], person.points[4]
    l_hand, r_hand = person.points[LEFT_HAND.start], person.points[RIGHT_HAND.start]
    if np.isnan(l_wrist + r_wrist).any():
        return person
    named = [np.hypot(*(l_hand - l_wrist)), np.hypot(*(r_hand - r_wrist))]
    exchanged = [np.hypot(*(l_hand - r_wrist)), np.hypot(*(r_hand - l_wrist))]
    if not np.nansum(exchanged) < np.nansum(named):
        return person
    order = np.arange(NUM_POINTS)
    order[LEFT_HAND], order[RIGHT_HAND] = order[RIGHT_HAND].copy(), order[LEFT_HAND].copy()
    return Person(person.points[order], person.score[order])


@dataclass(frozen=True, eq=False)
class PoseFrame:
    """The people in one picture of `height` x `width` pixels; there may be none."""

    people: Sequence[Person]
    height: int
    width: int


def openpose_134(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO whole-body points with a neck between the shoulders and the body in OpenPose's order.

    Args:
        points: `(people, 133, 2)`.
        scores: `(people, 133)`.

    Returns:
        `(people, 134, 2)` and `(people, 134)`: 18 body, 6 feet, 68 face, 21 left hand, 21 right hand. The neck's score
        is 1 if both shoulders' exceed 0.3, else 0.
    """
    neck = points[:, 5:7].mean(axis=1, keepdims=True)
    neck_score = (scores[:, 5:7] > MIN_SCORE).all(axis=1, keepdims=True).astype(scores.dtype)
    points = np.insert(points, [_WHOLE_BODY_NECK], neck, axis=1)
    scores = np.insert(scores, [_WHOLE_BODY_NECK], neck_score, axis=1)
    order = [*_OPENPOSE, *range(18, 134)]
    return points[:, order], scores[:, order]


def people_from_wholebody(points: np.ndarray, scores: np.ndarray, height: int, width: int) -> list[Person]:
    """The people a COCO whole-body detector found; feet are dropped, who has no certain point is left out.

    Args:
        points: `(people, 133, 2)` in pixels of a picture of `height` x `width`.
        scores: `(people, 133)`.
    """
    points, scores = openpose_134(np.asarray(points, np.float64), np.asarray(scores, np.float64))
    points = points / (width, height)
    certain = scores >= MIN_SCORE
    certain[:, BODY] = scores[:, BODY] > MIN_SCORE
    scores = np.where(certain, scores, 0)
    pupils = np.zeros(2)
    people = []
    for xy, score in zip(points, scores, strict=True):
        face, left, right = slice(24, 92), slice(92, 113), slice(113, 134)
        people.append(
            Person(
                np.concatenate([xy[BODY], xy[left], xy[right], xy[face], np.zeros((2, 2))]),
                np.concatenate([score[BODY], score[left], score[right], score[face], pupils]),
            )
        )
    return [person for person in people if person.visible.any()]
