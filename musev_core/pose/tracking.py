"""Which of several people, and the same one from frame to frame: the order of detections is not stable."""

from collections.abc import Sequence

import numpy as np

from ..errors import MuseVError
from .keypoints import BODY, Person, PoseFrame


def choose_person(frame: PoseFrame, index: int | None = None) -> int | None:
    """The number of a person in `frame`: `index`, or the one whose visible points fill the largest box.

    Returns None if there is nobody with a visible point.

    Raises:
        MuseVError: there is no person of that index.
    """
    if index is not None:
        if not 0 <= index < len(frame.people):
            raise MuseVError(f"there is no person {index}: the frame has {len(frame.people)} people, counted from 0")
        return index
    areas = [float(np.prod(_extent(_square(person, frame)))) for person in frame.people]
    seen = [i for i, person in enumerate(frame.people) if person.visible.any()]
    return max(seen, key=lambda i: areas[i], default=None)


def follow_person(frames: Sequence[PoseFrame], index: int | None = None) -> list[Person | None]:
    """One person through a video: in each frame whoever is nearest to where the person was seen last.

    Near is the mean distance of the body joints seen both times, or of the middles of all points if none is shared.
    Somebody further away than the diagonal of the person's box is somebody else; the person is missing then.

    Args:
        index: the person's number in the first frame which shows anybody; None for the largest there.

    Returns:
        One person or None per frame.
    """
    track: list[Person | None] = []
    last: np.ndarray | None = None
    for frame in frames:
        squares = [_square(person, frame) for person in frame.people]
        found = None
        if last is None:
            if any(person.visible.any() for person in frame.people):
                found = choose_person(frame, index)
        else:
            distances = [_distance(last, points) for points in squares]
            nearest = int(np.argmin(distances)) if distances else None
            if nearest is not None and distances[nearest] <= np.hypot(*_extent(last)):
                found = nearest
        if found is not None:
            last = squares[found]
        track.append(None if found is None else frame.people[found])
    return track


def _square(person: Person, frame: PoseFrame) -> np.ndarray:
    """Points in units of the picture's height, in which lengths mean something."""
    return person.points * (frame.width / frame.height, 1)


def _extent(points: np.ndarray) -> np.ndarray:
    """Width and height of the box around the points which are not NaN; 0 if there is none."""
    seen = points[~np.isnan(points[:, 0])]
    return np.ptp(seen, axis=0) if len(seen) else np.zeros(2)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    apart = np.hypot(*(a[BODY] - b[BODY]).T)
    shared = apart[~np.isnan(apart)]
    if len(shared):
        return float(shared.mean())
    if np.isnan(a).all() or np.isnan(b).all():
        return np.inf
    return float(np.hypot(*(np.nanmean(a, axis=0) - np.nanmean(b, axis=0))))
