"""Good pictures and videos of every kind, and damage done to them.

`python -m support.damaged COUNT [SEED]`, run in tests/, tries COUNT damaged files of every kind and prints what came.
"""

import contextlib
import functools
import io
import logging
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def _pixels(shape: tuple[int, ...] = (24, 40, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _picture(form: str, mode: str, **options: Any) -> bytes:
    picture = Image.fromarray(_pixels())
    if mode == "I;16":
        picture = Image.fromarray(_pixels((24, 40)).astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    return exif


_MAKERS: dict[str, Callable[[], bytes]] = {
    "png": lambda: _picture("PNG", "RGB", exif=_exif()),
    "png_alpha": lambda: _picture("PNG", "RGBA"),
    "png_palette": lambda: _picture("PNG", "P", transparency=0),
    "png_16_bit": lambda: _picture("PNG", "I;16"),
    "png_grey_alpha": lambda: _picture("PNG", "LA"),
    "apng": lambda: _picture("PNG", "RGB", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "jpeg": lambda: _picture("JPEG", "RGB", exif=_exif()),
    "jpeg_progressive": lambda: _picture("JPEG", "RGB", progressive=True),
    "jpeg_cmyk": lambda: _picture("JPEG", "CMYK"),
    "webp": lambda: _picture("WEBP", "RGB", exif=_exif()),
    "webp_alpha": lambda: _picture("WEBP", "RGBA", lossless=True),
    "webp_moving": lambda: _picture("WEBP", "RGB", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "gif_still": lambda: _picture("GIF", "P"),
    "gif_moving": lambda: _picture("GIF", "P", save_all=True, append_images=[Image.new("P", (40, 24), 5)], comment="x"),
    "bmp": lambda: _picture("BMP", "RGB"),
    "tiff": lambda: _picture("TIFF", "RGB"),
    "tiff_lzw": lambda: _picture("TIFF", "RGB", compression="tiff_lzw"),
    "tiff_16_bit": lambda: _picture("TIFF", "I;16"),
    "tiff_float": lambda: _picture("TIFF", "F"),
    "tiff_cmyk": lambda: _picture("TIFF", "CMYK", compression="tiff_adobe_deflate"),
    "ppm": lambda: _picture("PPM", "RGB"),
    "ppm_text": lambda: b"P3 9 8 99 " + b"1 2 3 " * 72,
    "tga": lambda: _picture("TGA", "RGB"),
    "tga_rle": lambda: _picture("TGA", "RGBA", compression="tga_rle"),
    "avif": lambda: _picture("AVIF", "RGB"),
    "jpeg2000": lambda: _picture("JPEG2000", "RGB"),
}
PICTURES = tuple(_MAKERS)

OUTCOMES = ("good", "sentence", "broken promise")

_CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mjpeg", "yuvj420p"),
    "mkv": ("libx264", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "ts": ("mpeg2video", "yuv420p"),
    "mpg": ("mpeg1video", "yuv420p"),
    "flv": ("flv", "yuv420p"),
    "wmv": ("wmv2", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "ogv": ("libtheora", "yuv420p"),
}
VIDEOS = tuple(suffix for suffix, (codec, _) in _CODECS.items() if codec in av.codecs_available)


def write_film(path: Path, suffix: str | None = None, *, frames: int = 6, cover: bool = False, **changes: Any) -> Path:
    """A film of 96 x 64 (width x height); `changes` are set on its stream's codec, `cover` puts a still before it."""
    codec, pix_fmt = _CODECS[suffix or path.suffix[1:]]
    with av.open(str(path), "w") as container:
        still = _stream(container, "mjpeg", "yuvj420p", (48, 48)) if cover else None
        film = _stream(container, codec, pix_fmt, (64, 96))
        for name, value in changes.items():
            setattr(film.codec_context, name, value)
        if still is not None:
            _encode(container, still, np.full((1, 48, 48, 3), 255, np.uint8))
        _encode(container, film, _pixels((frames, 64, 96, 3)))
    return path


def _stream(container: Any, codec: str, pix_fmt: str, size: tuple[int, int]) -> Any:
    stream = container.add_stream(codec, rate=Fraction(25))
    stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
    return stream


def _encode(container: Any, stream: Any, pictures: np.ndarray) -> None:
    for picture in pictures:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())


@functools.cache
def good(kind: str) -> bytes:
    """A good file of a kind of `PICTURES` or `VIDEOS`."""
    if kind in _MAKERS:
        return _MAKERS[kind]()
    with tempfile.TemporaryDirectory() as folder:
        return write_film(Path(folder) / f"film.{kind}").read_bytes()


def damaged(kind: str, draw: random.Random) -> bytes:
    """The good file with a few bytes changed, a part cut out, doubled or shifted, numbers blown up, or the end lost."""
    data = bytearray(good(kind))
    for _ in range(draw.choice((1, 1, 2, 4, 30))):
        # mostly near the beginning, where the numbers are that decide what happens
        at = draw.randrange(min(len(data), 600) if draw.random() < 0.7 else len(data))
        harm = draw.randrange(6)
        if harm == 0:
            data[at] = draw.randrange(256)
        elif harm == 1:
            data[at] ^= 1 << draw.randrange(8)
        elif harm == 2:
            big = draw.choice((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 20_000, 100_000))
            data[at : at + 4] = big.to_bytes(4, draw.choice(("little", "big")))
        elif harm == 3:
            del data[at : at + draw.randrange(1, 40)]
        elif harm == 4:
            data[at:at] = data[at : at + draw.randrange(1, 400)] * draw.choice((1, 2, 50))
        else:
            del data[at:]
        if not data:
            break
    return bytes(data)


def _trials(count: int, seed: int, folder: Path) -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    from musev_core.frames.image_files import load_image
    from musev_core.frames.video import read_video

    for kinds, read in ((PICTURES, load_image), (VIDEOS, functools.partial(read_video, max_frames=8))):
        for kind in kinds:
            for number in range(count):
                path = folder / f"file.{kind}"
                path.write_bytes(damaged(kind, random.Random(f"{seed} {kind} {number}")))
                yield kind, path, functools.partial(read, path)


def main(count: int, seed: int) -> None:
    """Tries every kind and prints a line for each, then the sums."""
    from support.bounded import bounded

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    log = logging.getLogger("damaged")
    sums: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, path, read in _trials(count, seed, Path(folder)):
            try:
                outcome = bounded(read, size=path.stat().st_size)
                result = "sentence" if isinstance(outcome, Exception) else "good"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                result = "broken promise"
                log.info("%s: %s: %s", kind, type(error).__name__, str(error)[:300])
                with contextlib.suppress(OSError):
                    (Path(tempfile.gettempdir()) / f"broken-promise.{kind}").write_bytes(path.read_bytes())
            sums.setdefault(kind, Counter())[result] += 1
    for kind, counts in [*sums.items(), ("all together", sum(sums.values(), Counter()))]:
        log.info("%-18s %6d good %6d sentences %6d broken promises", kind, *(counts[key] for key in OUTCOMES))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
