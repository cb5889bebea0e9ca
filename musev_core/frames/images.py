"""Pictures: crop, resize, and the forms the VAE, CLIP and the eye want them in."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import MuseVError, require

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

BACKGROUND = 128  # grey of contact sheets
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# ---- checks and number formats -------------------------------------------------------------------------------------


def check_frames(frames: torch.Tensor, *, name: str = "frames") -> None:
    """Checks that `frames` is `(n, H, W, 3)`, n >= 1, uint8 or float.

    Raises:
        MuseVError: any other shape or dtype; the message calls the tensor `name`.
    """
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise MuseVError(f"{name} must have the shape (frames, height, width, 3) and at least one frame, got {shape}.")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise MuseVError(f"{name} must be uint8 (0..255) or float (0..1), got {frames.dtype}.")


def _check_uint8(frames: torch.Tensor, name: str) -> None:
    check_frames(frames, name=name)
    if frames.dtype != torch.uint8:
        raise MuseVError(f"{name} must be uint8 pictures (0..255), got {frames.dtype}. Convert them with to_uint8.")


def _check_unit_range(frames: torch.Tensor, name: str) -> None:
    # Overshoot of a resize is fine; this is for pictures in 0..255 or -1..1 by mistake.
    low, high = (float(v) for v in frames.aminmax())
    if not (low >= -0.5 and high <= 1.5):  # so asked, NaN is refused too
        raise MuseVError(f"{name} are float and must lie in 0..1, got {low:.3g}..{high:.3g}.")


def to_uint8(frames: torch.Tensor, *, name: str = "frames", truncate: bool = False) -> torch.Tensor:
    """Frames `(n, H, W, 3)` as uint8: float 0..1 times 255, clamped and rounded to nearest; uint8 as it is.

    Args:
        name: what the messages call them.
        truncate: round towards 0, as the original does before PIL and scikit-image (extra.md 7.2).

    Raises:
        MuseVError: a wrong shape or dtype, or floats far outside 0..1.
    """
    check_frames(frames, name=name)
    if frames.dtype == torch.uint8:
        return frames
    _check_unit_range(frames, name)
    values = frames.float().mul(255).clamp_(0, 255)
    return (values if truncate else values.round_()).to(torch.uint8)


# ---- crop and resize -----------------------------------------------------------------------------------------------


def target_size(height: int, width: int, ratio: float = 1.0, multiple: int = 64) -> tuple[int, int]:
    """Video size `(height, width)`: both times `ratio`, rounded down to a multiple of `multiple` (extra.md 2.7).

    Raises:
        MuseVError: a size or ratio that is not positive, or so small that nothing is left.
    """
    if height <= 0 or width <= 0 or multiple <= 0 or not (math.isfinite(ratio) and ratio > 0):
        raise MuseVError(
            f"height, width, multiple and ratio must be positive, got {height}, {width}, {multiple} and {ratio}."
        )
    h, w = (math.floor(size * ratio / multiple) * multiple for size in (height, width))
    if h == 0 or w == 0:
        raise MuseVError(
            f"A picture of {height} x {width} pixels (height x width) times {ratio} is smaller than {multiple} pixels "
            "on one side. Use a larger picture or a larger ratio."
        )
    return h, w


def crop_box(
    height: int, width: int, target_height: int, target_width: int, *, legacy: bool = False
) -> tuple[int, int, int, int]:
    """The largest centred box with the target's aspect ratio (musev.md 5).

    Args:
        legacy: the original's box, which lacks the last row or column of the side that is kept (musev.md 9.9).

    Returns:
        `(top, left, bottom, right)` in pixels, bottom and right exclusive.

    Raises:
        MuseVError: a size that is not positive, or a picture too small to crop.
    """
    if min(height, width, target_height, target_width) <= 0:
        raise MuseVError(
            f"Cannot crop {height} x {width} to the shape of {target_height} x {target_width} (height x width): "
            "all sizes must be positive."
        )
    if legacy:
        # In floating point and in this order, since rounding up exposes the last bit.
        if width / height >= target_width / target_height:
            top, bottom = 0, height - 1
            margin = (width - height * target_width / target_height) / 2
            left, right = max(0, math.ceil(margin)), min(math.ceil(width - margin), width - 1)
        else:
            left, right = 0, width - 1
            margin = (height - width * target_height / target_width) / 2
            top, bottom = max(0, math.ceil(margin)), min(math.ceil(height - margin), height - 1)
        if bottom <= top or right <= left:
            raise MuseVError(
                f"A picture of {height} x {width} (height x width) is too small to be cropped to the shape of "
                f"{target_height} x {target_width} in the original's way."
            )
        return top, left, bottom, right
    inner_height, inner_width = height, width
    if width * target_height > height * target_width:
        inner_width = max(1, (2 * height * target_width + target_height) // (2 * target_height))
    else:
        inner_height = max(1, (2 * width * target_height + target_width) // (2 * target_width))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    return top, left, top + inner_height, left + inner_width


def fit_images(
    images: torch.Tensor, height: int, width: int, *, resample: str = "lanczos", legacy: bool = False
) -> torch.Tensor:
    """Given pictures cropped and resized with PIL to the size of the video (musev.md 5).

    Args:
        images: uint8 `(n, H, W, 3)`.
        resample: "lanczos" or "bicubic", antialiased.
        legacy: the original's crop, and resampling even if the size is right already.

    Returns:
        uint8 `(n, height, width, 3)`; `images` itself if it has that size and not `legacy`.

    Raises:
        MuseVError: pictures which are not uint8, a size that is not positive, an unknown filter.
    """
    from PIL import Image

    _check_uint8(images, "images")
    filters = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    if resample not in filters:
        raise MuseVError(f"resample must be one of {', '.join(filters)}, got {resample!r}.")
    top, left, bottom, right = crop_box(images.shape[1], images.shape[2], height, width, legacy=legacy)
    if images.shape[1:3] == (height, width) and not legacy:
        return images
    pictures = to_pil(images[:, top:bottom, left:right])
    return from_pil(picture.resize((width, height), filters[resample]) for picture in pictures).to(images.device)


def fit_video(frames: torch.Tensor, height: int, width: int, *, legacy: bool = False) -> torch.Tensor:
    """Frames of a given video cropped and resized on their device, without rounding (extra.md 2.2).

    Args:
        frames: uint8 `(n, H, W, 3)`.
        legacy: the original's crop and its bilinear filter without antialiasing.

    Returns:
        float32 `(n, height, width, 3)`, values 0..255.

    Raises:
        MuseVError: frames which are not uint8, or a size that is not positive.
    """
    _check_uint8(frames, "frames")
    top, left, bottom, right = crop_box(frames.shape[1], frames.shape[2], height, width, legacy=legacy)
    values = frames[:, top:bottom, left:right].permute(0, 3, 1, 2).float()  # (n, 3, h, w)
    if values.shape[2:] != (height, width):
        values = F.interpolate(values, (height, width), mode="bilinear", antialias=not legacy)
    return values.permute(0, 2, 3, 1)


# ---- inputs of the networks ----------------------------------------------------------------------------------------


def to_vae_input(frames: torch.Tensor) -> torch.Tensor:
    """Frames `(n, H, W, 3)`, uint8 or float 0..1, as the VAE takes them: float32 `(n, 3, H, W)`, -1..1.

    Raises:
        MuseVError: a wrong shape or dtype, or floats far outside 0..1.
    """
    check_frames(frames)
    if frames.dtype == torch.uint8:
        values = frames.float() / 255
    else:
        _check_unit_range(frames, "frames")
        values = frames.float()
    return (values * 2 - 1).permute(0, 3, 1, 2).contiguous()


def clip_pixel_values(
    images: torch.Tensor,
    *,
    size: int = 224,
    height: int | None = None,
    width: int | None = None,
    legacy: bool = False,
) -> torch.Tensor:
    """CLIP's preprocessing: shortest side to `size` (PIL bicubic), centre square, mean and deviation (musev.md 5).

    Args:
        images: `(n, H, W, 3)`, uint8 or float 0..1; floats are truncated to uint8 as in the original.
        height, width: size of the video. The pictures are first cropped to its aspect ratio.
        legacy: they are also resampled to height x width first, by the original's crop.

    Returns:
        float32 `(n, 3, size, size)`.

    Raises:
        MuseVError: a wrong shape or dtype, or only one of height and width.
    """
    from PIL import Image

    if (height is None) != (width is None):
        raise MuseVError(f"Give both height and width or none of them, got height {height} and width {width}.")
    images = to_uint8(images, name="images", truncate=True)
    if height is not None and width is not None:
        if legacy:
            images = fit_images(images, height, width, resample="bicubic", legacy=True)
        else:
            top, left, bottom, right = crop_box(images.shape[1], images.shape[2], height, width)
            images = images[:, top:bottom, left:right]
    h, w = images.shape[1:3]
    new_h, new_w = (size, int(size * w / h)) if h <= w else (int(size * h / w), size)
    pictures = (picture.resize((new_w, new_h), Image.Resampling.BICUBIC) for picture in to_pil(images))
    top, left = (new_h - size) // 2, (new_w - size) // 2
    squares = from_pil(pictures)[:, top : top + size, left : left + size].to(images.device)
    mean, std = squares.new_tensor(CLIP_MEAN, dtype=torch.float32), squares.new_tensor(CLIP_STD, dtype=torch.float32)
    return ((squares.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def match_histograms(frames: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Every frame and channel given the histogram of one picture, against colour drift (musev.md 5, step 4).

    Args:
        frames: `(n, H, W, 3)`, uint8 or float 0..1; floats are truncated to uint8 as in the original.
        target: `(1, H', W', 3)`, likewise.

    Returns:
        float32 `(n, H, W, 3)`, 0..1, in steps of 1/255.

    Raises:
        MuseVError: a wrong shape or dtype, or more than one target picture.
    """
    source = to_uint8(frames, truncate=True)
    reference = to_uint8(target, name="target", truncate=True)
    if len(reference) != 1:
        raise MuseVError(f"target must be one picture, got {len(reference)}.")
    picture = reference[0].cpu().numpy()
    matched = np.empty(source.shape, np.uint8)
    for i, frame in enumerate(source.cpu().numpy()):
        for c in range(3):
            matched[i, ..., c] = _histogram_map(frame[..., c], picture[..., c])[frame[..., c]]
    return torch.from_numpy(matched).to(frames.device).float() / 255


def matched_to_first(parts: Iterable[torch.Tensor], first: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """Frames, a few at a time, with the histogram of the first of them; see `match_histograms`.

    `first (1, H, W, 3)` is given if it came before these frames.
    """
    for part in parts:
        if first is None:
            first, part = part[:1], part[1:]
            yield first
        if len(part):
            yield match_histograms(part, first).to(part.dtype)


def _histogram_map(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What each of 256 values of `source` becomes: the value below which as many pixels of `target` lie."""
    below = np.bincount(source.ravel(), minlength=256).cumsum() / source.size
    counts = np.bincount(target.ravel())
    values = np.flatnonzero(counts)
    return np.interp(below, counts[values].cumsum() / target.size, values).astype(np.uint8)


def canny(frames: torch.Tensor, low: float = 100, high: float = 200) -> torch.Tensor:
    """Canny edges of RGB frames (extra.md 3): white lines on black.

    Args:
        frames: `(n, H, W, 3)`, uint8 or float 0..1.
        low, high: thresholds of the gradient, in grey levels.

    Returns:
        uint8 `(n, H, W, 3)`.

    Raises:
        MuseVError: a wrong shape or dtype.
        MissingPackageError: OpenCV is not installed.
    """
    frames = to_uint8(frames)
    cv2 = require("cv2", install="opencv-python-headless", purpose="The canny control map")
    edges = np.stack([cv2.Canny(frame, low, high) for frame in np.ascontiguousarray(frames.cpu().numpy())])
    return torch.from_numpy(edges).to(frames.device)[..., None].repeat(1, 1, 1, 3)


# ---- views ---------------------------------------------------------------------------------------------------------


def contact_sheet(frames: torch.Tensor, *, columns: int = 4, gap: int = 4, max_frames: int = 16) -> torch.Tensor:
    """Evenly picked frames, always the first and the last, in a grid on grey.

    Args:
        frames: `(n, H, W, 3)`, uint8 or float 0..1.
        columns: pictures per row; fewer if there are fewer frames.
        gap: pixels between pictures and around them.
        max_frames: how many frames to pick at most, 2 or more.

    Returns:
        uint8 `(1, H', W', 3)`.

    Raises:
        MuseVError: a wrong shape, dtype or number.
    """
    check_frames(frames)
    if columns < 1 or gap < 0 or max_frames < 2:
        raise MuseVError(
            "A contact sheet needs columns >= 1, gap >= 0 and max_frames >= 2, "
            f"got columns {columns}, gap {gap} and max_frames {max_frames}."
        )
    n, h, w, _ = frames.shape
    count = min(n, max_frames)
    picks = [round(i * (n - 1) / max(1, count - 1)) for i in range(count)]
    pictures = to_uint8(frames[picks])
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    size = (1, rows * (h + gap) + gap, columns * (w + gap) + gap, 3)
    sheet = torch.full(size, BACKGROUND, dtype=torch.uint8, device=frames.device)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        top, left = gap + row * (h + gap), gap + column * (w + gap)
        sheet[0, top : top + h, left : left + w] = picture
    return sheet


def to_pil(images: torch.Tensor) -> list["PILImage"]:
    """Pillow's pictures of uint8 `(n, H, W, 3)`."""
    from PIL import Image

    return [Image.fromarray(np.ascontiguousarray(image)) for image in images.cpu().numpy()]


def from_pil(pictures: "Iterable[PILImage]") -> torch.Tensor:
    """uint8 `(n, H, W, 3)` of RGB pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
