"""Encoders of a video's frames, one per file format (extra.md 7.2)."""

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .filters import EXACT, filter_graph
from .image_files import save_image

if TYPE_CHECKING:
    from av import VideoFrame

log = logging.getLogger(__name__)
_SMALL = 128  # pixels; below, x264 with its macroblock tree makes different files of the same frames


class PngFolder:
    """A folder of frames 0000.png, 0001.png, ...; from 10,000 frames on with as many digits as sort them."""

    def __init__(self, path: Path):
        """Makes the folder."""
        path.mkdir()
        self.path, self.count = path, 0

    def add(self, rgb: np.ndarray) -> None:
        """Writes one frame, uint8 `(H, W, 3)`."""
        save_image(self.path / frame_name(self.count), torch.from_numpy(rgb)[None])
        self.count += 1

    def close(self) -> None:
        """Gives all names the same number of digits, for those who sort names by their letters."""
        longest = len(frame_name(self.count - 1))
        for file in list(self.path.iterdir()) if self.count > 10_000 else ():
            file.rename(file.with_name(file.name.zfill(longest)))

    def abort(self) -> None:
        """Nothing is left to do."""


def frame_name(number: int, total: int = 0) -> str:
    """The file of a frame; with as many digits as sort all `total` of them."""
    return f"{number:0{max(4, len(str(total - 1)))}d}.png"


class Encoder:
    """One FFmpeg file with one video encoder; `convert` makes its frames of RGB arrays, `ticks` time units apart."""

    def __init__(
        self,
        path: Path,
        muxer: str,
        codec: str,
        size: tuple[int, int],
        rate: Fraction,
        convert: "Callable[[np.ndarray], VideoFrame]",
        *,
        pix_fmt: str,
        options: dict[str, str],
        ticks: int = 1,
    ):
        """Opens the file."""
        import av

        self.container = av.open(str(path), "w", format=muxer, options=MUXER_OPTIONS[muxer])
        self.stream: Any = self.container.add_stream(codec, rate=rate, options=options)
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = pix_fmt
        self.convert, self.time_base, self.ticks, self.count = convert, 1 / rate, ticks, 0

    def add(self, rgb: np.ndarray) -> None:
        """Encodes one frame, uint8 `(H, W, 3)`."""
        frame = self.convert(np.ascontiguousarray(rgb))
        frame.pts, frame.time_base = self.count * self.ticks, self.time_base
        self.count += 1
        self._mux(self.stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder still holds, and the end of the file."""
        self._mux(self.stream.encode())
        self.container.close()

    def abort(self) -> None:
        """Lets go of the file, which is not usable."""
        self.container.close()

    def _mux(self, packets) -> None:
        for packet in packets:
            packet.duration = self.ticks  # or the last frame of a GIF would flash by
            self.container.mux(packet)


def _open_mp4(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> Encoder:
    from av import VideoFrame

    bottom, right = size[0] % 2, size[1] % 2
    height, width = size[0] + bottom, size[1] + right
    if bottom or right:
        log.warning("mp4 needs even sizes: %s x %s becomes %s x %s (height x width).", *size, height, width)
    to_yuv = filter_graph(
        [("scale", f"out_color_matrix=bt709:out_range=tv:flags={EXACT}"), ("format", "yuv420p")],
        width=width,
        height=height,
        format="rgb24",
        time_base=1 / rate,
    )

    def convert(rgb: np.ndarray) -> VideoFrame:
        rgb = np.pad(rgb, ((0, bottom), (0, right), (0, 0)), mode="edge")
        to_yuv.push(VideoFrame.from_ndarray(rgb, format="rgb24"))
        return to_yuv.pull()

    options = {"crf": str(crf)}
    if min(height, width) < _SMALL:
        options["x264-params"] = "mbtree=0"
    encoder = Encoder(path, "mp4", "libx264", (height, width), rate, convert, pix_fmt="yuv420p", options=options)
    context = encoder.stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, 16..235
    return encoder


def _open_webp(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> Encoder:
    from av import VideoFrame

    def convert(rgb: np.ndarray) -> VideoFrame:
        return VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgra")

    options = {"lossless": "1", "compression_level": "1"}  # higher levels take twice as long and save nothing
    return Encoder(path, "webp", "libwebp_anim", size, rate, convert, pix_fmt="bgra", options=options)


def _open_gif(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> Encoder:
    from av import VideoFrame
    from PIL import Image

    step = 1 + max(size) // 512  # a part of the pixels is enough to choose the colours

    def convert(rgb: np.ndarray) -> VideoFrame:
        # A palette for each frame, since one for the whole clip would need all frames in memory.
        palette = Image.fromarray(np.ascontiguousarray(rgb[::step, ::step])).quantize(256)
        picture = Image.fromarray(rgb).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        colours = np.asarray(palette.getpalette("RGB"), np.uint8).reshape(-1, 3)
        argb = np.full((256, 4), 255, np.uint8)
        argb[: len(colours), 1:] = colours
        indexed: Any = (np.asarray(picture), argb)
        return VideoFrame.from_ndarray(indexed, format="pal8")

    ticks = max(2, int(1000 / rate) // 10)  # browsers slow anything faster than 1/50 s down to 1/10 s
    return Encoder(path, "gif", "gif", size, Fraction(100), convert, pix_fmt="pal8", options={}, ticks=ticks)


def _open_folder(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> PngFolder:
    return PngFolder(path)


# by suffix: (path, (height, width), frames per second, crf) -> encoder
ENCODERS = {".mp4": _open_mp4, ".gif": _open_gif, ".webp": _open_webp, "": _open_folder}
MUXER_OPTIONS = {"mp4": {"movflags": "+faststart"}, "gif": {"loop": "0"}, "webp": {"loop": "0"}}
