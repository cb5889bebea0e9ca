"""Video files: read and written frame by frame through PyAV, so that length costs no memory."""

import contextlib
import logging
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import MuseVError
from .images import save_image, to_uint8

if TYPE_CHECKING:
    from av import VideoFrame

log = logging.getLogger(__name__)

_EXACT = "bicubic+accurate_rnd+full_chroma_int"  # without these swscale darkens every conversion by one level


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """Frames in memory: uint8 `(n, H, W, 3)` RGB, and how many of them make a second."""

    frames: torch.Tensor
    fps: float


def read_video(path: str | Path, *, stride: int = 1, start: int = 0, max_frames: int | None = None) -> Video:
    """Frames `start`, `start + stride`, ... of a video, upright (extra.md 7.1).

    Args:
        max_frames: stop after so many; None reads to the end.

    Returns:
        The frames and their rate: the source's divided by `stride`, so that they play in real time.

    Raises:
        MuseVError: see `iter_frames`; also a `max_frames` below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise MuseVError(f"max_frames must be 1 or more, got {max_frames}.")
    frames = []
    for frame in iter_frames(path, stride=stride, start=start):
        frames.append(frame)
        if len(frames) == max_frames:
            break
    return Video(torch.stack(frames), frame_rate(path) / stride)


def iter_frames(path: str | Path, *, stride: int = 1, start: int = 0) -> Iterator[torch.Tensor]:
    """Frames `start`, `start + stride`, ... of a video, one at a time: uint8 `(H, W, 3)` RGB, upright.

    Raises:
        MuseVError: at once for a stride below 1, a negative start, a missing file or one without pictures;
            while reading for a damaged file, or if the video ends before `start`.
    """
    if stride < 1 or start < 0:
        raise MuseVError(f"stride must be 1 or more and start 0 or more, got stride {stride} and start {start}.")
    path = Path(path)
    frame_rate(path)
    return _decode(path, stride, start)


def frame_rate(path: str | Path) -> float:
    """Average frames per second of a video file.

    Raises:
        MuseVError: a missing file, one that is not a video, or one without pictures.
    """
    with _open_video(Path(path)) as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 25)  # FFmpeg's own default


@contextlib.contextmanager
def _open_video(path: Path):
    import av
    from av.error import FFmpegError

    if not path.is_file():
        raise MuseVError(f"There is no video file {str(path)!r}.")
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError) as error:
        raise MuseVError(f"{str(path)!r} cannot be read as a video: {error}") from error
    with container:
        # No pixel format: FFmpeg saw no frame of it, as with animated WebP.
        if not container.streams.video or not container.streams.video[0].codec_context.pix_fmt:
            raise MuseVError(f"{str(path)!r} has no video stream that can be decoded.")
        yield container


def _decode(path: Path, stride: int, start: int) -> Iterator[torch.Tensor]:
    from av.error import FFmpegError

    count = 0
    with _open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            to_rgb = _graph([("scale", f"flags={_EXACT}"), ("format", "rgb24")], template=stream)
            for frame in container.decode(stream):
                if count >= start and (count - start) % stride == 0:
                    to_rgb.push(frame)
                    rgb = to_rgb.pull().to_ndarray()
                    quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise; PyAV 14 and later
                    yield torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, quarter_turns)))
                count += 1
        except FFmpegError as error:
            raise MuseVError(f"{str(path)!r} cannot be read after frame {count}: {error}") from error
    if count <= start:
        raise MuseVError(f"{str(path)!r} has {count} frames, so there is none left from frame {start} on.")


def _graph(filters: list[tuple[str, str]], **source) -> Any:
    """A chain of FFmpeg filters; `source` describes the frames pushed into it."""
    from av.filter import Graph

    graph = Graph()
    nodes = [graph.add_buffer(**source)]
    nodes += [graph.add(name, arguments) for name, arguments in [*filters, ("buffersink", "")]]
    graph.link_nodes(*nodes).configure()
    return graph


# ---- writing -------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: torch.Tensor, *, fps: float, overwrite: bool = False) -> Path:
    """Writes a whole clip `(n, H, W, 3)` with `VideoWriter` and returns the path it was written to."""
    with VideoWriter(path, fps=fps, overwrite=overwrite) as writer:
        writer.write(frames)
    return writer.path


def unique_path(path: str | Path) -> Path:
    """`path` if nothing is there, otherwise the first free one of `path-2`, `path-3`, ... with the same suffix."""
    path = candidate = Path(path)
    number = 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


class VideoWriter:
    """Writes frames to a video as they come (extra.md 7.2); a context manager.

    The suffix decides: `.mp4` (H.264, yuv420p, BT.709), `.gif` (a palette per frame, endless), `.webp` (lossless,
    endless), no suffix (a folder with 0000.png, 0001.png, ...). Everything goes to a hidden name beside the target,
    which takes the target's place at the end; if the block raises, nothing is left behind.

    Args:
        fps: frames per second. GIF counts in hundredths of a second, rounded down.
        overwrite: replace what is at `path`. In a folder, only numbered PNG files are replaced.
        crf: constant rate factor of mp4: 0 lossless, 17 hardly visible loss, 51 worst.

    Attributes:
        path: where the video is, once it is written.
        frame_count: frames written so far.

    Raises:
        MuseVError: on construction for an unknown suffix, a path that exists, or a number out of range.
    """

    def __init__(self, path: str | Path, *, fps: float, overwrite: bool = False, crf: int = 17):
        """Checks the arguments; the file is opened by the first frames."""
        self.path = Path(path)
        self.frame_count = 0
        self._overwrite, self._crf = overwrite, crf
        self._sink: _Encoder | _PngFolder | None = None
        self._size: tuple[int, int] | None = None
        self._finished = False

        suffix = self.path.suffix.lower()
        if suffix not in _OPEN:
            known = ", ".join(name for name in _OPEN if name)
            raise MuseVError(
                f"Unknown video format {suffix!r} of {str(path)!r}: use {known}, or none for a folder of PNG files."
            )
        if not 0.01 <= fps <= 1000:
            raise MuseVError(f"fps must be a positive number of frames per second (0.01 to 1000), got {fps}.")
        if not 0 <= crf <= 51:
            raise MuseVError(f"crf must lie in 0..51, got {crf}.")
        if self.path.exists() and self.path.is_dir() != (suffix == ""):
            kind = "folder" if self.path.is_dir() else "file"
            raise MuseVError(f"{str(path)!r} is an existing {kind} of another sort. Choose another name.")
        if self._occupied() and not overwrite:
            raise MuseVError(f"{str(path)!r} exists already. Choose another name, or allow it with overwrite=True.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MuseVError(f"The folder {str(self.path.parent)!r} cannot be made: {error}") from error
        self._rate = Fraction(fps).limit_denominator(1001)
        self._part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")

    def __enter__(self) -> "VideoWriter":
        """The writer itself."""
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        """Puts the video in its place, or removes every trace of it if the block raised."""
        if error_type is None:
            self.close()
        else:
            self.discard()

    def write(self, frames: torch.Tensor) -> None:
        """Appends frames `(n, H, W, 3)`, uint8 or float 0..1 (rounded to nearest).

        Raises:
            MuseVError: a wrong shape or dtype, another size than that of the first frames, or a finished writer.
        """
        if self._finished:
            raise MuseVError(f"{str(self.path)!r} is finished; frames can only be written before close or discard.")
        frames = to_uint8(frames)
        size = (frames.shape[1], frames.shape[2])
        sink = self._sink
        if sink is None:
            self._size = size
            self._sink = sink = _OPEN[self.path.suffix.lower()](self._part, size, self._rate, self._crf)
        if size != self._size:
            raise MuseVError(f"All frames must be of the size of the first, {self._size} (height, width), got {size}.")
        for frame in frames.cpu().numpy():
            sink.add(frame)
        self.frame_count += len(frames)

    def close(self) -> None:
        """Finishes the file and puts it in its place; does nothing after the first call.

        Raises:
            MuseVError: no frame was written.
        """
        if self._finished:
            return
        self._finished = True
        if self._sink is None:
            raise MuseVError(f"No frames were written, so there is no {str(self.path)!r}.")
        try:
            self._sink.close()
            self._publish()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Gives up: removes what was written so far."""
        from av.error import FFmpegError

        self._finished = True
        if self._sink is not None:
            with contextlib.suppress(OSError, FFmpegError):
                self._sink.abort()
        if self._part.is_dir():
            shutil.rmtree(self._part, ignore_errors=True)
        else:
            self._part.unlink(missing_ok=True)

    def _occupied(self) -> bool:
        return self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir()))

    def _publish(self) -> None:
        if self._occupied() and not self._overwrite:  # somebody else was faster; hours of work must not be lost
            taken, self.path = self.path, unique_path(self.path)
            log.warning("%s was created meanwhile; writing %s instead.", taken, self.path)
        if not self.path.is_dir():
            self._part.replace(self.path)
            return
        for old in self.path.iterdir():
            if re.fullmatch(r"\d{4,}\.png", old.name):
                old.unlink()
        for new in sorted(self._part.iterdir()):
            new.replace(self.path / new.name)
        self._part.rmdir()


class _PngFolder:
    def __init__(self, path: Path):
        path.mkdir()
        self.path, self.count = path, 0

    def add(self, rgb: np.ndarray) -> None:
        save_image(self.path / f"{self.count:04d}.png", torch.from_numpy(rgb)[None])
        self.count += 1

    def close(self) -> None: ...

    abort = close


class _Encoder:
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
        import av

        self.container = av.open(str(path), "w", format=muxer, options=_MUXER_OPTIONS[muxer])
        self.stream: Any = self.container.add_stream(codec, rate=rate, options=options)
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = pix_fmt
        self.convert, self.time_base, self.ticks, self.count = convert, 1 / rate, ticks, 0

    def add(self, rgb: np.ndarray) -> None:
        frame = self.convert(np.ascontiguousarray(rgb))
        frame.pts, frame.time_base = self.count * self.ticks, self.time_base
        self.count += 1
        self._mux(self.stream.encode(frame))

    def close(self) -> None:
        self._mux(self.stream.encode())
        self.container.close()

    def abort(self) -> None:
        self.container.close()

    def _mux(self, packets) -> None:
        for packet in packets:
            packet.duration = self.ticks  # or the last frame of a GIF would flash by
            self.container.mux(packet)


def _open_mp4(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> _Encoder:
    from av import VideoFrame

    bottom, right = size[0] % 2, size[1] % 2
    height, width = size[0] + bottom, size[1] + right
    if bottom or right:
        log.warning("mp4 needs even sizes: %s x %s becomes %s x %s (height x width).", *size, height, width)
    to_yuv = _graph(
        [("scale", f"out_color_matrix=bt709:out_range=tv:flags={_EXACT}"), ("format", "yuv420p")],
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
    encoder = _Encoder(path, "mp4", "libx264", (height, width), rate, convert, pix_fmt="yuv420p", options=options)
    context = encoder.stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, 16..235
    return encoder


def _open_webp(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> _Encoder:
    from av import VideoFrame

    def convert(rgb: np.ndarray) -> VideoFrame:
        return VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgra")

    options = {"lossless": "1", "compression_level": "1"}  # higher levels take twice as long and save nothing
    return _Encoder(path, "webp", "libwebp_anim", size, rate, convert, pix_fmt="bgra", options=options)


def _open_gif(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> _Encoder:
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
    return _Encoder(path, "gif", "gif", size, Fraction(100), convert, pix_fmt="pal8", options={}, ticks=ticks)


def _open_folder(path: Path, size: tuple[int, int], rate: Fraction, crf: int) -> _PngFolder:
    return _PngFolder(path)


_OPEN = {".mp4": _open_mp4, ".gif": _open_gif, ".webp": _open_webp, "": _open_folder}
_MUXER_OPTIONS = {"mp4": {"movflags": "+faststart"}, "gif": {"loop": "0"}, "webp": {"loop": "0"}}
