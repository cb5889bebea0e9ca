"""How much longer a reference person's bones are than those of the person in a video (extra.md 5.3, 5.8)."""

from collections.abc import Mapping

import numpy as np

from ..errors import MuseVError
from .keypoints import LEFT_HAND, NUM_POINTS, RIGHT_HAND

Bone = tuple[tuple[int, ...], tuple[int, ...]]  # its ends, each the middle of one or two joints

_KNUCKLES = (1, 5, 9, 13, 17)
_HAND_BONES: tuple[Bone, ...] = tuple(
    ((hand.start,), (hand.start + k,)) for hand in (LEFT_HAND, RIGHT_HAND) for k in _KNUCKLES
)
# left and right bones of a group count half each
_BONES: Mapping[str, tuple[Bone, ...]] = {
    "neck": (((0,), (1,)),),
    "face": (((16,), (17,)),),
    "shoulder": (((2,), (5,)),),
    "arm_upper": (((2,), (3,)), ((5,), (6,))),
    "arm_lower": (((3,), (4,)), ((6,), (7,))),
    "body_len": (((1,), (8, 11)),),
    "leg_upper": (((8,), (9,)), ((11,), (12,))),
    "leg_lower": (((9,), (10,)), ((12,), (13,))),
}
GROUPS = (*_BONES, "hand")
_FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "neck": ("shoulder",),
    "face": ("neck",),
    "shoulder": ("body_len",),
    "arm_upper": ("arm_lower",),
    "arm_lower": ("arm_upper",),
    "body_len": ("shoulder",),
    "leg_upper": ("leg_lower", "body_len"),
    "leg_lower": ("leg_upper", "body_len"),
}
_MIN_LENGTH, _MIN_HAND_LENGTH = 1e-3, 1e-4  # in heights of the picture; shorter bones tell nothing


def original_scales(reference: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Scale of every group as the original computes it, with what it makes of missing points (extra.md 5.6).

    Args:
        reference, first: `(130, 2)` of the reference and of the video's first frame, missing points at (-1, -1), then
            x times width / height of their own picture.

    Returns:
        `GROUPS` to scales; inf where the video's bone has no length.
    """

    with np.errstate(divide="ignore", invalid="ignore"):
        scales = {
            group: float(np.mean(_lengths(reference, bones) / _lengths(first, bones)))
            for group, bones in _BONES.items()
        }
    parts = [scales["arm_upper"], scales["arm_lower"]]
    r, v = _lengths(reference, _HAND_BONES), _lengths(first, _HAND_BONES)
    if (v != 0).any():
        parts.append(float(np.mean(r[v != 0] / v[v != 0])))
    scales["hand"] = float(np.mean(parts))
    return {group: 1.0 if np.isnan(scale) else scale for group, scale in scales.items()}


def robust_scales(
    reference: np.ndarray,
    video: np.ndarray,
    score: np.ndarray,
    *,
    quantile: float | None = None,
    limits: tuple[float, float] | None = None,
) -> tuple[dict[str, float], float]:
    """Scale of every group from bones which are seen in both, and stand-ins for groups without one.

    Args:
        reference: `(130, 2)`, NaN where missing, x times width / height of its picture.
        video: `(frames, 130, 2)` likewise.
        score: `(frames, 130)`, confidence of the video's points.
        quantile: length of a bone in the video: this quantile, 0..1, of its lengths in all frames, weighted with the
            confidence of its ends. A high one such as 0.9 does away with foreshortening. None: its length in the
            first frame.
        limits: smallest and largest scale.

    Returns:
        `GROUPS` to scales; and the median of those which were measured, 1 if none was.

    Raises:
        MuseVError: a quantile outside 0..1, or limits which are not 0 < low <= high.
    """
    if quantile is not None and not 0 <= quantile <= 1:
        raise MuseVError(f"the quantile of bone lengths must lie in 0..1, got {quantile}")
    if limits is not None and not 0 < limits[0] <= limits[1]:
        raise MuseVError(f"the limits of scales must be 0 < low <= high, got {limits[0]} and {limits[1]}")

    def ratio(bones: tuple[Bone, ...], shortest: float) -> float | None:
        found = []
        for bone in bones:
            r = float(_length(reference, bone))
            v = _video_length(video, score, bone, quantile)
            if r > shortest and v > shortest:  # NaN is not
                found.append(r / v)
        return sum(found) / len(found) if found else None

    measured = {group: ratio(bones, _MIN_LENGTH) for group, bones in _BONES.items()}
    usable = [scale for scale in measured.values() if scale is not None]
    median = float(np.median(usable)) if usable else 1.0
    scales = {
        group: next((s for s in (measured[g] for g in (group, *_FALLBACKS[group])) if s is not None), median)
        for group in _BONES
    }
    hand = ratio(_HAND_BONES, _MIN_HAND_LENGTH)
    arms = [scales["arm_upper"], scales["arm_lower"]]
    scales["hand"] = float(np.mean(arms if hand is None else [hand, *arms]))
    if limits is not None:
        scales = {group: min(max(scale, limits[0]), limits[1]) for group, scale in scales.items()}
        median = min(max(median, limits[0]), limits[1])
    return scales, median


def joint_scales(scales: Mapping[str, float]) -> np.ndarray:
    """The scale of the bone which leads to each of the 130 points, `(130,)`."""
    result = np.full(NUM_POINTS, scales["face"])
    for group, joints in {
        "neck": (0,), "shoulder": (2, 5), "arm_upper": (3, 6), "arm_lower": (4, 7), "body_len": (8, 11),
        "leg_upper": (9, 12), "leg_lower": (10, 13), "hand": range(LEFT_HAND.start, RIGHT_HAND.stop),
    }.items():  # fmt: skip
        result[list(joints)] = scales[group]
    return result


def _lengths(points: np.ndarray, bones: tuple[Bone, ...]) -> np.ndarray:
    return np.array([_length(points, bone) for bone in bones])


def _length(points: np.ndarray, bone: Bone) -> np.ndarray:
    """Length of a bone in `(..., 130, 2)`; NaN if a joint is."""
    start, end = (points[..., list(joints), :].mean(axis=-2) for joints in bone)
    return np.linalg.norm(start - end, axis=-1)


def _video_length(video: np.ndarray, score: np.ndarray, bone: Bone, quantile: float | None) -> float:
    if quantile is None:
        return float(_length(video[0], bone))
    lengths = _length(video, bone)
    seen = ~np.isnan(lengths)
    if not seen.any():
        return np.nan
    weights = score[:, [*bone[0], *bone[1]]].min(axis=1)[seen]
    order = np.argsort(lengths[seen])
    share = np.cumsum(weights[order])
    place = int(np.searchsorted(share, quantile * share[-1]))
    return float(lengths[seen][order][min(place, len(order) - 1)])
