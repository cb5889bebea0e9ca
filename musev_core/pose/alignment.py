"""A video's poses in the proportions and at the place of the person in a reference picture (extra.md 5).

Bones keep the directions they have in the video and take their lengths from the reference, from the neck outwards.
Lengths are measured in heights of their picture: x counts times width / height. Missing points are NaN, except inside
the original's formulation, where they are the marker -1 and take part in the arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import MuseVError
from .keypoints import (
    BODY,
    FACE,
    LEFT_HAND,
    MIN_SCORE,
    NECK,
    NOSE,
    NUM_POINTS,
    RIGHT_HAND,
    Person,
    PoseFrame,
    with_hands_at_their_wrists,
)
from .proportions import joint_scales, original_scales, robust_scales
from .smoothing import check_window, fill_gaps, savgol, smooth_visible
from .tracking import choose_person, follow_person

MODES = ("robust", "original")

_R_WRIST, _L_WRIST, _R_ANKLE, _L_ANKLE = 4, 7, 10, 13
# (points, the joint they hang on), parents first
_TREE: tuple[tuple[int | slice, int], ...] = (
    (NOSE, NECK), (slice(14, 18), NOSE), (FACE, NOSE),
    (2, NECK), (3, 2), (4, 3), (RIGHT_HAND, _R_WRIST),
    (5, NECK), (6, 5), (7, 6), (LEFT_HAND, _L_WRIST),
    (8, NECK), (9, 8), (10, 9), (11, NECK), (12, 11), (13, 12),
)  # fmt: skip
_ANCHORS = ((NECK,), (2, 5), (8, 11), (NOSE,))  # what is laid over the reference's: the first seen in both
_MARKER = -1.0
_FAR = 1e3  # pictures away: where the original's infinite limbs end up


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """How poses are aligned.

    Attributes:
        mode: "robust", or "original" for the original's numbers with all their weaknesses (extra.md 5.6).
        smoothing: window in frames, odd; 0 is off.
        order: of the polynomial which smooths, less than the window.
        max_gap: robust with smoothing: points missing for up to so many frames are interpolated.
        length_quantile: robust: bone lengths from this quantile over all frames, None for the first frame's.
        scale_limits: robust: smallest and largest scale of a bone.
        scale_motion: robust: the way the person walks is scaled with the body.
        keep_feet: robust: shifted up or down so that the lower ankle begins where the reference's is.
    """

    mode: str = "robust"
    smoothing: int = 0
    order: int = 1
    max_gap: int = 0
    length_quantile: float | None = None
    scale_limits: tuple[float, float] | None = None
    scale_motion: bool = False
    keep_feet: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise MuseVError(f"the mode of alignment must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.smoothing:
            check_window(self.smoothing, self.order)


def align_poses(
    video: Sequence[PoseFrame],
    reference: PoseFrame,
    options: AlignOptions | None = None,
    *,
    video_person: int | None = None,
    reference_person: int | None = None,
) -> list[PoseFrame]:
    """The person of a video, one frame per frame, as the person in `reference` would do the same.

    Args:
        video: poses of the driving video; frames without the person stay empty.
        reference: pose of the condition picture; its size is that of the result.
        options: robust without extras if not given.
        video_person, reference_person: number of the person in the first frame that shows anybody, and in the
            reference; the largest if not given.

    Raises:
        MuseVError: nobody in the reference or the video; original mode without a person in the first frame.
    """
    options = options or AlignOptions()
    model = choose_person(reference, reference_person)
    if model is None:
        raise MuseVError("there is nobody in the reference pose; use a picture in which the person is found")
    track = follow_person(video, video_person)
    if not any(one is not None and one.visible[BODY].any() for one in track):
        raise MuseVError(f"there is nobody with a body in any of the {len(video)} frames of the driving poses")
    person = with_hands_at_their_wrists(reference.people[model])
    track = [None if one is None else with_hands_at_their_wrists(one) for one in track]
    nobody = Person(np.full((NUM_POINTS, 2), np.nan), np.zeros(NUM_POINTS))
    points = np.stack([(one or nobody).points for one in track])
    score = np.stack([(one or nobody).score for one in track])
    if len({(frame.height, frame.width) for frame in video}) > 1:
        raise MuseVError("the frames of the driving poses have different sizes; they must come from one video")
    aspects = (reference.width / reference.height, video[0].width / video[0].height)
    if options.mode == "original":
        if track[0] is None:
            raise MuseVError(
                "mode original takes the proportions from the first frame, which shows nobody; use mode robust or "
                "begin the video later"
            )
        markers = (_with_markers(person.points), _with_markers(points))
        aligned = align_original(*markers, *aspects, options=options)
        score = _original_score(aligned, score)
    else:
        aligned = align_robust(person.points, points, score, *aspects, options=options)
        score = np.where(np.isnan(aligned[..., 0]), 0, np.where(score > 0, score, MIN_SCORE))
    return [
        PoseFrame([Person(xy, s)] if s.any() else [], reference.height, reference.width)
        for xy, s in zip(aligned, score, strict=True)
    ]


def align_original(
    reference: np.ndarray,
    video: np.ndarray,
    reference_aspect: float,
    video_aspect: float,
    *,
    options: AlignOptions,
) -> np.ndarray:
    """The original's alignment, number for number (extra.md 5.3 to 5.5); the face is moved but not scaled.

    Args:
        reference: `(130, 2)`, 0..1 of its picture, missing points at (-1, -1).
        video: `(frames, 130, 2)` likewise; scales come from the first frame.
        reference_aspect, video_aspect: width / height.

    Returns:
        `(frames, 130, 2)`, 0..1 of the reference picture. Missing points are moved with the rest, so they are
        neither -1 nor reliably outside any more.
    """
    target, old = reference * (reference_aspect, 1), video * (video_aspect, 1)
    scales = joint_scales(original_scales(target, old[0]))
    with np.errstate(invalid="ignore", over="ignore"):
        new = _repose(old, scales, 1.0)
        new[:, FACE] = old[:, FACE]
        new = np.nan_to_num(np.where(video == _MARKER, _MARKER, new), nan=_MARKER)
        new = (new + (target[NECK] - old[0, NECK])) / (reference_aspect, 1)
        return savgol(new, options.smoothing, options.order, hold=True) if options.smoothing else new


def align_robust(
    reference: np.ndarray,
    video: np.ndarray,
    score: np.ndarray,
    reference_aspect: float,
    video_aspect: float,
    *,
    options: AlignOptions,
) -> np.ndarray:
    """Alignment by what is seen in both: missing points stay missing, missing bones borrow a scale (extra.md 5.8).

    Args:
        reference: `(130, 2)`, 0..1 of its picture, NaN where missing.
        video: `(frames, 130, 2)` likewise; scales come from the first frame which shows a body.
        score: `(frames, 130)`, confidence of the video's points.
        reference_aspect, video_aspect: width / height.

    Returns:
        `(frames, 130, 2)`, 0..1 of the reference picture, NaN where missing.
    """
    target, old = reference * (reference_aspect, 1), video * (video_aspect, 1)
    first = int(np.argmax((score[:, BODY] > 0).any(axis=1)))
    scales, median = robust_scales(
        target, old[first:], score[first:], quantile=options.length_quantile, limits=options.scale_limits
    )
    new = _repose(old, joint_scales(scales), median)
    new = new + _offset(target, new[first])
    if options.scale_motion:
        new = new + (median - 1) * _motion(old, first)
    if options.keep_feet:
        new[..., 1] += _feet(target, new[first])
    new = new / (reference_aspect, 1)
    if options.smoothing:
        new = smooth_visible(fill_gaps(new, options.max_gap), options.smoothing, options.order)
    return new


def _repose(old: np.ndarray, scales: np.ndarray, median: float) -> np.ndarray:
    """`(frames, 130, 2)` with every bone's length times its scale, the neck where it was.

    A point whose parent is NaN hangs on the nearest ancestor that is not, the middle of the shoulders or hips in the
    place of a missing neck; a point without any is scaled by `median` around the middle of the person.
    """
    new = old.copy()
    root = _first_seen([_middle(old, joints) for joints in _ANCHORS[:3]])
    centre = _seen_mean(old)[:, None]
    bases = {NECK: (root, root)}  # joint: where it, or what stands for it, was and is: (frames, 2) each
    for points, parent in _TREE:
        was, now = (base[:, None] for base in bases[parent])
        places = slice(points, points + 1) if isinstance(points, int) else points
        part = old[:, places]
        hanging = now + scales[places, None] * (part - was)
        new[:, places] = np.where(np.isnan(was), centre + median * (part - centre), hanging)
        if isinstance(points, int):
            seen = ~np.isnan(part)
            bases[points] = (np.where(seen, part, was)[:, 0], np.where(seen, new[:, places], now)[:, 0])
    return new


def _offset(target: np.ndarray, first: np.ndarray) -> np.ndarray:
    """From the first frame's anchor to the reference's, `(2,)`; from middle to middle if no anchor is seen in both."""
    ways = [_middle(target, joints) - _middle(first, joints) for joints in _ANCHORS]
    return _first_seen([*ways, _seen_mean(target) - _seen_mean(first)])


def _motion(old: np.ndarray, first: int) -> np.ndarray:
    """How far the person has walked since the frame `first`, `(frames, 1, 2)`; missing frames keep the last way."""
    way = np.zeros((len(old), 1, 2))
    for t in range(first + 1, len(old)):
        now = _first_seen([_middle(old[t], joints) - _middle(old[first], joints) for joints in _ANCHORS])
        way[t] = way[t - 1] if np.isnan(now).any() else now
    return way


def _feet(target: np.ndarray, first: np.ndarray) -> float:
    lowest = [points[[_R_ANKLE, _L_ANKLE], 1] for points in (target, first)]
    if any(np.isnan(y).all() for y in lowest):
        return 0.0
    return float(np.nanmax(lowest[0]) - np.nanmax(lowest[1]))


def _middle(points: np.ndarray, joints: tuple[int, ...]) -> np.ndarray:
    return points[..., list(joints), :].mean(axis=-2)


def _seen_mean(points: np.ndarray) -> np.ndarray:
    """Mean of the points `(..., n, 2)` which are not NaN; NaN if there is none."""
    seen = ~np.isnan(points)
    count = seen.sum(axis=-2)
    return np.where(count > 0, np.where(seen, points, 0).sum(axis=-2) / np.maximum(count, 1), np.nan)


def _first_seen(candidates: Sequence[np.ndarray]) -> np.ndarray:
    """The first candidate which is not NaN, element for element."""
    result = candidates[0]
    for candidate in candidates[1:]:
        result = np.where(np.isnan(result), candidate, result)
    return result


def _with_markers(points: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(points), _MARKER, points)


def _original_score(aligned: np.ndarray, score: np.ndarray) -> np.ndarray:
    """What the original would draw: bodies by the detection, hands and faces wherever their numbers ended up."""
    rest = slice(BODY.stop, NUM_POINTS)
    somebody = score.any(axis=1, keepdims=True)
    drawn = score.copy()
    drawn[:, rest] = np.where(somebody, np.maximum(score[:, rest], MIN_SCORE), 0)
    drawn[~(np.abs(aligned) < _FAR).all(axis=-1)] = 0
    return drawn
