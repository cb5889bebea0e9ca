"""How good a video is, in numbers: fidelity, drift, seams, flicker.

Frames are `(T, H, W, 3)` float in 0..1. Nothing here holds more than three frames at a time: whatever is measured along
time is reduced to a few numbers per frame first (`measure_frames`), so the length of a video costs no memory.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MuseVError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
GREY_LEVEL = 1 / 255
STILL = GREY_LEVEL / 1000  # second differences below this are rounding
SSIM_SIGMA, SSIM_RADIUS = 1.5, 5  # Wang et al. 2004: an 11 x 11 Gaussian window
FLICKER_GRID = 32  # blocks along each side


# ---- one video against another -------------------------------------------------------------------------------------


def psnr(frames: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of every frame, in dB; infinite where nothing differs.

    Args:
        frames, reference: `(T, H, W, 3)`, 0..1.
        mask: bool `(T, H, W)`, the pixels to compare; see `moving_pixels`. A frame without any gives NaN.

    Returns:
        float64 `(T,)`.

    Raises:
        MuseVError: shapes or number formats that do not fit.
    """
    _check_pair(frames, reference, mask)
    errors = []
    for t, (a, b) in enumerate(zip(frames, reference, strict=True)):
        squared = (a.float() - b.float()).square().mean(dim=-1)  # (H, W)
        errors.append(_mean(squared, None if mask is None else mask[t]))
    return -10 * torch.stack(errors).log10()


def ssim(frames: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity of every frame, 1 for equal frames; the mean of the three channels.

    Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli: Image quality assessment: from error visibility to structural
    similarity. IEEE Transactions on Image Processing 13 (2004). Gaussian window of 11 pixels and deviation 1.5, only
    where it lies inside the picture.

    Args:
        frames, reference: `(T, H, W, 3)`, 0..1, at least 11 pixels on each side.
        mask: bool `(T, H, W)`, the pixels whose surroundings are compared. A frame without any gives NaN.

    Returns:
        float64 `(T,)`.

    Raises:
        MuseVError: shapes or number formats that do not fit, or frames smaller than the window.
    """
    _check_pair(frames, reference, mask)
    side = 2 * SSIM_RADIUS + 1
    if min(frames.shape[1:3]) < side:
        raise MuseVError(
            f"SSIM compares windows of {side} pixels, but the frames have only {frames.shape[1]} x {frames.shape[2]} "
            "(height x width)."
        )
    inner = slice(SSIM_RADIUS, -SSIM_RADIUS)
    scores = []
    for t, (a, b) in enumerate(zip(frames, reference, strict=True)):
        similarity = _ssim_map(a.double().permute(2, 0, 1), b.double().permute(2, 0, 1)).mean(dim=0)
        scores.append(_mean(similarity, None if mask is None else mask[t, inner, inner]))
    return torch.stack(scores)


def moving_pixels(reference: Tensor, threshold: float = 5 * GREY_LEVEL) -> Tensor:
    """Pixels that differ from the frame before or after by more than `threshold` in some channel.

    Args:
        reference: the clip which says what moves, `(T, H, W, 3)`, 0..1.
        threshold: the smallest change that counts, 0..1.

    Returns:
        bool `(T, H, W)`; of a single frame nothing moves.

    Raises:
        MuseVError: a wrong shape or number format.
    """
    _check(reference, "reference")
    moving = torch.zeros(reference.shape[:3], dtype=torch.bool, device=reference.device)
    for t in range(len(reference) - 1):
        changed = ((reference[t + 1].float() - reference[t].float()).abs() > threshold).any(dim=-1)
        moving[t] |= changed
        moving[t + 1] |= changed
    return moving


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """`(3, H, W)` twice -> `(3, H - 10, W - 10)`."""
    mean_a, mean_b, squares, ab = _window_means(torch.stack([a, b, a * a + b * b, a * b]))
    mean_squares, mean_ab = mean_a**2 + mean_b**2, mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_ab + c1) / (mean_squares + c1)
    return luminance * (2 * (ab - mean_ab) + c2) / (squares - mean_squares + c2)


def _window_means(x: Tensor) -> Tensor:
    """Gaussian means over the last two axes, where the window fits."""
    offset = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    weights = (weights / weights.sum()).tolist()

    def band(size: int) -> Tensor:  # (size - 10, size); a matrix product is the fastest filter in float64
        matrix = x.new_zeros(size - 2 * SSIM_RADIUS, size)
        for i, weight in enumerate(weights):
            matrix.diagonal(i).fill_(weight)
        return matrix

    return band(x.shape[-2]) @ x @ band(x.shape[-1]).T


# ---- one video along time ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameNumbers:
    """A video of T frames, reduced to a few numbers per frame. float64 on the CPU, values of pixels in 0..1."""

    mean: Tensor  # (T, 3) of the channels
    std: Tensor  # (T, 3)
    sharpness: Tensor  # (T,) variance of the Laplacian of the luminance
    jerk: Tensor  # (T - 2,) RMS of the second differences centred at frame 1, 2, ...
    flicker: Tensor  # (T - 2,) the same of the block means of the luminance, over 4

    def __len__(self) -> int:
        return len(self.mean)

    def after(self, frames: int) -> "FrameNumbers":
        """The numbers of the same video without its first `frames` frames."""
        return FrameNumbers(**{field.name: getattr(self, field.name)[frames:] for field in fields(self)})


def measure_frames(frames: Iterable[Tensor]) -> FrameNumbers:
    """The numbers from which drift, seams and flicker follow; each frame is looked at once.

    Args:
        frames: pictures `(H, W, 3)` of one size, 0..1, in order: a tensor `(T, H, W, 3)` or a stream.

    Raises:
        MuseVError: no frame, a wrong shape or number format, or frames of different sizes.
    """
    # Python's numbers: small tensors that live on between the frames would keep the heap from shrinking
    mean, std, sharpness, jerk, flicker = [], [], [], [], []
    pixels: list[Tensor] = []  # the last three frames
    blocks: list[Tensor] = []
    for frame in frames:
        _check(frame[None], "a frame")
        if pixels and frame.shape != pixels[-1].shape:
            raise MuseVError(f"All frames must have one size, got {_size(pixels[-1])} and {_size(frame)} pixels.")
        frame = frame.float()
        luma = frame @ frame.new_tensor(LUMA)  # (H, W)
        deviation, average = torch.std_mean(frame, dim=(0, 1), correction=0)
        mean.append(average.tolist())
        std.append(deviation.tolist())
        sharpness.append(_laplacian(luma).var(correction=0).item())
        grid = (min(luma.shape[0], FLICKER_GRID), min(luma.shape[1], FLICKER_GRID))
        pixels = [*pixels[-2:], frame]
        blocks = [*blocks[-2:], F.adaptive_avg_pool2d(luma[None], grid)]
        if len(pixels) == 3:
            jerk.append(_second_difference(pixels))
            flicker.append(_second_difference(blocks) / 4)  # +a, -a, +a has second differences of 4 a
    if not mean:
        raise MuseVError("There is no frame to measure.")
    return FrameNumbers(
        *(torch.tensor(values, dtype=torch.float64) for values in (mean, std, sharpness, jerk, flicker))
    )


def drift(values: Tensor, *, least: float = GREY_LEVEL) -> Tensor:
    """Steady change in percent per 100 frames: the slope of a linear fit over its value at the first frame.

    Args:
        values: `(T, ...)`, one number or more per frame, at least 2 frames.
        least: a start value below counts as this; a black channel would give nonsense otherwise.

    Returns:
        float64 `(...)`.

    Raises:
        MuseVError: a single frame.
    """
    start, slope = linear_fit(values)
    return 100 * 100 * slope / start.abs().clamp(min=least)


def linear_fit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares line through `values (T, ...)`: its value at the first frame, and its slope per frame.

    Raises:
        MuseVError: a single frame.
    """
    if len(values) < 2:
        raise MuseVError(f"A drift needs at least 2 frames, got {len(values)}.")
    values = values.double()
    time = torch.arange(len(values), dtype=values.dtype, device=values.device)
    time -= time.mean()
    slope = torch.tensordot(time, values, dims=1) / time.square().sum()
    return values.mean(dim=0) + slope * time[0], slope


def seam_jerk(jerk: Tensor, seams: Sequence[int]) -> tuple[float | None, dict[int, float]]:
    """Second differences at the seams of windows against those of the interior; 1: a seam is like any other place.

    Args:
        jerk: `(T - 2,)` of `FrameNumbers`.
        seams: frame numbers s, 1..T-1: something changes between frame s - 1 and s. A jump there shows in the second
            differences centred at both.

    Returns:
        The ratio of the RMS of all seams to that of the interior, and the ratio of each seam. None and nothing where
        there is no seam, or no frame away from the seams.

    Raises:
        MuseVError: a seam outside the video.
    """
    frames = len(jerk) + 2
    if any(not 0 < s < frames for s in seams):
        raise MuseVError(f"Seams must lie in 1..{frames - 1} for {frames} frames, got {sorted(seams)}.")
    places = {s: [c - 1 for c in (s - 1, s) if 0 < c < frames - 1] for s in sorted(set(seams))}
    at_seam = torch.zeros(len(jerk), dtype=torch.bool)
    at_seam[[i for touched in places.values() for i in touched]] = True
    if not at_seam.any() or at_seam.all():
        return None, {}
    interior = max(_rms(jerk[~at_seam]), STILL)

    def ratio(place: Tensor | list[int]) -> float:
        return max(_rms(jerk[place]), STILL) / interior

    return ratio(at_seam), {s: ratio(touched) for s, touched in places.items() if touched}


def flicker(numbers: FrameNumbers) -> float:
    """RMS of the brightness that comes and goes from frame to frame, in 0..1: a clip that alternates by +-a has a.

    Taken from second differences of block means of the luminance, so a steady change of brightness is none and
    motion of small things counts little. 0 for fewer than 3 frames.
    """
    return _rms(numbers.flicker)


# ---- small things --------------------------------------------------------------------------------------------------


def _check(frames: Tensor, name: str) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape or not frames.is_floating_point():
        raise MuseVError(
            f"{name} must be float pictures (frames, height, width, 3) in 0..1, got {tuple(frames.shape)} of "
            f"{frames.dtype}."
        )


def _check_pair(frames: Tensor, reference: Tensor, mask: Tensor | None) -> None:
    _check(frames, "frames")
    _check(reference, "reference")
    if frames.shape != reference.shape:
        raise MuseVError(f"frames and reference must have one shape, got {(*frames.shape,)} and {(*reference.shape,)}.")
    if mask is not None and (mask.shape != frames.shape[:3] or mask.dtype != torch.bool):
        raise MuseVError(f"The mask must be bool {tuple(frames.shape[:3])}, got {mask.dtype} {tuple(mask.shape)}.")


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    return (values if mask is None else values[mask]).double().mean()


def _laplacian(luma: Tensor) -> Tensor:
    """`(H, W)` -> `(H - 2, W - 2)`, four neighbours; the picture itself as one zero if it is too small."""
    if min(luma.shape) < 3:
        return luma.new_zeros(1)
    neighbours = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return neighbours - 4 * luma[1:-1, 1:-1]


def _second_difference(last: Sequence[Tensor]) -> float:
    before, now, after = last
    difference = torch.add(before, now, alpha=-2).add_(after)
    return float(torch.linalg.vector_norm(difference)) / math.sqrt(difference.numel())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if len(values) else 0.0


def _size(frame: Tensor) -> str:
    return f"{frame.shape[0]} x {frame.shape[1]}"
