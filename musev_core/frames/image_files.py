"""Picture files: read with their cost known before they are decoded, and written."""

import io
import logging
import mmap
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import MuseVError
from ..file_names import existing_file, long_path, shown
from .images import from_pil, to_pil, to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

log = logging.getLogger(__name__)

MIN_SIDE = 8  # pixels: one latent pixel
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # those that are written

# Those that are read, as Pillow calls them. Formats which describe a drawing are left out: Pillow hands EPS to
# Ghostscript, WMF to Windows. TGA is last, it has no signature.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
# What decodes in two seconds at most, in million pixels.
_LIMIT, _LIMITS = 50, {"WEBP": 32, "AVIF": 32, "JPEG2000": 4}
_LIMIT_IN_PYTHON = 1  # of the variants that Pillow decodes in Python: text PPM, run-length BMP
_LIMIT_OF_SCANS = 500  # pixels times passes of a progressive JPEG, which usually has ten
_READS = 4_000  # of a header; in more pieces than this no program writes one
_SMALL = 1 << 16  # bytes that may be read many times
_EXIF_LIMIT = 1 << 17  # bytes; cameras write up to 64 KB
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # tags of TIFF
_ORIENTATION = 0x0112  # tag of EXIF
_SCAN = b"\xff\xda"  # marker of JPEG

# EXIF orientation -> how to turn the picture upright, by the names of Image.Transpose
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def load_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """An image file as uint8 `(1, H, W, 3)`: upright by its EXIF tag, transparency on white, any depth (extra.md 7.1).

    Of a moving picture it is the first frame.

    Raises:
        MuseVError: no such file, none of `FORMATS`, damaged, a floating-point image, a side under 8 pixels, or one
            whose decoding would take seconds.
    """
    path = existing_file(path, "image file")
    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow has one for every damaged tag; what matters is told below
        try:
            picture = _open(file)
            _check_cost(picture, file)
            file.expect_data()
            return from_pil([_as_rgb(_upright(picture))])
        except MuseVError as error:
            raise MuseVError(f"{shown(path)} {error}") from error
        except Exception as error:  # a damaged file may raise anything
            reason = str(error) or type(error).__name__
            raise MuseVError(f"{shown(path)} cannot be read as an image: {reason}") from error


def load_images(paths: Iterable[str | os.PathLike[str]]) -> list[torch.Tensor]:
    """One `load_image` result per path; sizes may differ, so fit each before stacking them."""
    return [load_image(path) for path in paths]


def save_image(path: str | Path, image: torch.Tensor) -> None:
    """Writes one picture `(1, H, W, 3)`, uint8 or float 0..1, as PNG, JPEG or WebP by suffix; replaces the file.

    Raises:
        MuseVError: more than one picture, a wrong shape or dtype, an unknown suffix, a folder that does not exist,
            or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise MuseVError(f"Unknown image format {path.suffix!r} of {shown(path)}: use {', '.join(IMAGE_SUFFIXES)}.")
    pictures = to_pil(to_uint8(image))
    if len(pictures) != 1:
        raise MuseVError(f"{shown(path)} can hold one picture, got {len(pictures)} frames.")
    if not path.parent.is_dir():
        raise MuseVError(f"There is no folder {shown(path.parent)} to write {shown(path.name)} to.")
    try:
        # JPEG takes the first option, WebP the second, PNG neither
        pictures[0].save(long_path(path), quality=95, lossless=True)
    except (OSError, ValueError) as error:
        raise MuseVError(f"{shown(path)} cannot be written: {error}") from error


class _PictureFile(io.BufferedReader):
    """A picture file that gives up on a header which is read in thousands of pieces, or again and again."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(long_path(path)))
        self.size = os.fstat(self.fileno()).st_size
        self._reads, self._bytes = _READS, 2 * self.size + _SMALL

    def expect_data(self) -> None:
        """The header is over; pixels come in blocks, or in the strips of a TIFF, which may overlap."""
        self._reads, self._bytes = _READS + self.size // 256, 1 << 62

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file; a size beyond the file's own costs no memory."""
        data = super().read(-1 if size is None else min(size, self.size))
        self._reads, self._bytes = self._reads - 1, self._bytes - len(data)
        if self._reads < 0 or self._bytes < 0:
            raise MuseVError("is damaged: its header does not end.")
        return data


def _opened(path: Path) -> _PictureFile:
    try:
        return _PictureFile(path)
    except OSError as error:
        raise MuseVError(f"The image file {shown(path)} cannot be opened: {error.strerror or error}.") from error


def _open(file: _PictureFile) -> "PILImage":
    """The picture with its header read, and nothing else."""
    from PIL import Image, UnidentifiedImageError

    if not file.size:
        raise MuseVError("is empty (0 bytes).")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # some builds of Pillow lack AVIF
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError as error:
        raise MuseVError(f"cannot be read as an image: it is damaged, or none of {', '.join(known)}.") from error


def _check_cost(picture: "PILImage", file: _PictureFile) -> None:
    from PIL import Image

    width, height = picture.size
    if min(width, height) < MIN_SIDE:
        raise MuseVError(
            f"is only {height} x {width} pixels (height x width); at least {MIN_SIDE} on each side are needed."
        )
    in_python = any(tile[0] in Image.DECODERS for tile in getattr(picture, "tile", ()))
    limit = _LIMIT_IN_PYTHON if in_python else _LIMITS.get(picture.format or "", _LIMIT)
    tags = getattr(picture, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    megapixels = max(width * height, tile) / 1e6
    if megapixels > limit:
        raise MuseVError(
            f"is too large: {height} x {width} (height x width) are {megapixels:.1f} million pixels, and a file of "
            f"this kind may have {limit} million. Save it smaller, as PNG or JPEG."
        )
    if picture.format in ("JPEG", "MPO") and (passes := _passes(file)) * megapixels > _LIMIT_OF_SCANS:
        raise MuseVError(f"is built to take long: it wants {passes} passes over its pixels. Save it anew.")


def _passes(file: _PictureFile) -> int:
    """Scans of a JPEG, those of a thumbnail in its EXIF included."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, count = data.find(_SCAN), 0
        while at >= 0:
            at, count = data.find(_SCAN, at + 2), count + 1
    return count


def _upright(picture: "PILImage") -> "PILImage":
    from PIL import Image

    exif = max((len(picture.info.get(key, "")) for key in ("exif", "Raw profile type exif")), default=0)
    try:
        orientation = picture.getexif().get(_ORIENTATION) if exif <= _EXIF_LIMIT else None
    except Exception as error:  # damaged data about the picture; the picture itself may be fine
        log.debug("the EXIF data cannot be read: %s", error)
        orientation = None
    if orientation not in _UPRIGHT:
        return picture
    return picture.transpose(Image.Transpose[_UPRIGHT[orientation]])


def _as_rgb(picture: "PILImage") -> "PILImage":
    from PIL import Image

    if picture.mode == "F":
        raise MuseVError("holds floating-point values of unknown range. Save it with 8 or 16 bits.")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scaling
        deep = np.asarray(picture).clip(0, 65535).astype(np.uint32)
        picture = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
