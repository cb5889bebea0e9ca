"""Colours of frames brought to those of a picture, against colour drift."""

import torch
from torch import Tensor

from ..errors import MuseVError
from .images import check_frames, match_histograms

METHODS = ("histogram", "mean_std", "mean")
GREY_LEVEL = 1 / 255


def match_color(frames: Tensor, picture: Tensor, method: str = "histogram", amount: float = 1.0) -> Tensor:
    """Frames with the colours of one picture.

    Every frame is matched on its own. So the same frame always gives the same result whatever the rest of the clip
    is, a drift goes away however it runs, and a clip may come in pieces. A fade goes away as well.

    Args:
        frames: `(n, H, W, 3)`, uint8 or float 0..1.
        picture: `(1, H', W', 3)`, likewise.
        method: `histogram` gives each channel the picture's distribution of values (`images.match_histograms`, in
            steps of 1/255), `mean_std` its mean and standard deviation, `mean` its mean alone. The first is the
            strongest, the last keeps most of a frame.
        amount: 0 leaves the frames as they are, 1 matches fully.

    Returns:
        `(n, H, W, 3)`, 0..1, float32 or the frames' own float format; at amount 0 `frames` itself.

    Raises:
        MuseVError: a wrong shape or number format, more than one picture, an unknown method, or an amount outside
            0..1.
    """
    check_frames(frames)
    check_frames(picture, name="the reference")
    if len(picture) != 1:
        raise MuseVError(f"The reference must be one picture, got {len(picture)}; pick one of them.")
    if method not in METHODS:
        raise MuseVError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if not 0 <= amount <= 1:
        raise MuseVError(f"amount must lie in 0..1, got {amount}.")
    if amount == 0:
        return frames
    start = frames / 255 if frames.dtype == torch.uint8 else frames
    if method == "histogram":
        matched = match_histograms(frames, picture).to(start.dtype)
    else:
        reference = picture / 255 if picture.dtype == torch.uint8 else picture
        # below one grey level there is nothing to stretch but noise
        matched = match_moments(start, reference, (1, 2), deviation=method == "mean_std", least=GREY_LEVEL)
        matched = matched.clamp_(0, 1)
    return torch.lerp(start, matched, amount)


def match_moments(
    values: Tensor, reference: Tensor, axes: tuple[int, ...], *, deviation: bool = True, least: float = 1e-6
) -> Tensor:
    """`values` with the mean, and the standard deviation too, of `reference`.

    E. Reinhard, M. Ashikhmin, B. Gooch, P. Shirley: Color transfer between images. IEEE Computer Graphics and
    Applications 21 (2001), without its change of colour space.

    Args:
        values, reference: tensors which agree in all other axes than `axes`, or broadcast there.
        axes: over which mean and deviation are taken.
        deviation: off matches the mean only.
        least: a smaller deviation of `values` counts as this one.

    Returns:
        Of the shape and dtype of `values`; computed in float32 at least.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    std, mean = torch.std_mean(values.to(dtype), dim=axes, correction=0, keepdim=True)
    target_std, target_mean = torch.std_mean(reference.to(values.device, dtype), dim=axes, correction=0, keepdim=True)
    matched = values.to(dtype) - mean
    if deviation:
        matched *= target_std / std.clamp(min=least)
    return matched.add_(target_mean).to(values.dtype)
