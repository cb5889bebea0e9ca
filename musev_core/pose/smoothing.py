"""Poses smoothed over time (extra.md 5.5, 5.8)."""

import numpy as np

from ..errors import MuseVError


def check_window(window: int, order: int) -> None:
    """Raises MuseVError unless the window is an odd number of frames and the order smaller than it."""
    if window < 1 or window % 2 == 0:
        raise MuseVError(f"the window of smoothing must be an odd number of frames (0 is off), got {window}")
    if not 0 <= order < window:
        raise MuseVError(f"the order of smoothing must lie in 0..{window - 1} for a window of {window}, got {order}")


def savgol(values: np.ndarray, window: int, order: int, *, hold: bool = False) -> np.ndarray:
    """The filter of Savitzky and Golay (1964): every value from a polynomial fitted to the window around it.

    Args:
        values: `(frames, ...)`.
        window: odd; at most the number of frames unless `hold`.
        order: of the polynomial, less than the window.
        hold: at both ends the window goes on with the first or last value (as in the original) instead of stopping
            there and using the polynomial of the outermost whole window.
    """
    half = window // 2
    powers = np.vander(np.arange(window) - half, order + 1, increasing=True)  # (window, order + 1)
    fit = powers @ np.linalg.pinv(powers)  # (window, window): fitted values from given ones
    if hold:
        values = np.concatenate([values[:1]] * half + [values] + [values[-1:]] * half)
        windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)  # (frames, ..., window)
        return windows @ fit[half]
    last = len(values) - window
    starts = np.clip(np.arange(len(values)) - half, 0, last)
    windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)[starts]
    rows = fit[np.arange(len(values)) - starts]  # (frames, window)
    return np.einsum("t...w,tw->t...", windows, rows)


def fill_gaps(points: np.ndarray, max_gap: int) -> np.ndarray:
    """Missing (NaN) points of `(frames, n, 2)` on a straight line between their neighbours in time.

    Only where a point is missing for at most `max_gap` frames in a row and is seen before and after.
    """
    points = points.copy()
    for joint in range(points.shape[1]):
        runs = _runs(~np.isnan(points[:, joint, 0]))
        for (_, a), (b, _) in zip(runs, runs[1:], strict=False):
            if b - a <= max_gap:
                share = np.arange(1, b - a + 1)[:, None] / (b - a + 1)
                points[a:b, joint] = (1 - share) * points[a - 1, joint] + share * points[b, joint]
    return points


def smooth_visible(points: np.ndarray, window: int, order: int) -> np.ndarray:
    """`savgol` for each point of `(frames, n, 2)` over every unbroken run in which it is seen (not NaN).

    In a run shorter than the window, the window is the longest odd one that fits and the order lowered with it.
    """
    points = points.copy()
    for joint in range(points.shape[1]):
        for start, stop in _runs(~np.isnan(points[:, joint, 0])):
            fitting = min(window, (stop - start - 1) // 2 * 2 + 1)
            run = points[start:stop, joint]
            points[start:stop, joint] = savgol(run, fitting, min(order, fitting - 1))
    return points


def _runs(seen: np.ndarray) -> list[tuple[int, int]]:
    """First frame and the one after the last of every unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
