"""Decoders of a video's frames: a file through FFmpeg, or a folder of pictures (extra.md 7.1)."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import MuseVError
from ..file_names import existing_file, long_path, shown
from .filters import EXACT, filter_graph
from .image_files import load_image

if TYPE_CHECKING:
    from av import VideoFrame

# FFmpeg's demuxers which read one file and nothing else; a playlist (hls, concat, dash, sdp) would open other files and
# addresses. With the protocol they are all that FFmpeg may use.
DEMUXERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "asf", "flv", "ogg", "rm", "mxf", "dv", "gif", "apng"),
    *("h264", "hevc", "m4v", "ivf", "obu", "mjpeg", "yuv4mpegpipe"),
)
FRAME_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".tga")
DEFAULT_RATE = 25.0  # frames per second, FFmpeg's own for pictures
MAX_PIXELS = 8192 * 4352  # of a frame: 8K
_LIMITS = {"max_pixels": str(MAX_PIXELS)}  # for FFmpeg, before it allocates a frame
_SLOWEST, _FASTEST = 0.01, 1000.0  # frames per second; beyond them a rate is damage
_THREADED_PIXELS = 4096 * 2304  # threads by frame hold a frame each, so larger frames are decoded one at a time
_MAX_STRETCH = 8  # pixel aspect ratios beyond this are damage
_PROBED_PACKETS = 10_000  # to find the stream that moves


def open_source(path: Path) -> "VideoFile | PictureFolder":
    """The frames of a video file, or of a folder of pictures in the order of their numbers.

    Raises:
        MuseVError: nothing there, no video, a stream nobody can decode, frames beyond 8K, or a folder without pictures.
    """
    path = existing_file(path, "video file", folders=True)
    return PictureFolder(path) if path.is_dir() else VideoFile(path)


class VideoFile:
    """A video file which FFmpeg decodes; `fps` is its average rate."""

    def __init__(self, path: Path):
        """Looks into the file without decoding its frames."""
        self.path = path
        with self._opened() as container:
            stream = _moving_stream(container)
            if stream is None:
                raise MuseVError(f"{shown(path)} has no video stream that can be decoded.")
            _check_size(path, stream.width, stream.height)
            self._index, self.fps = stream.index, _rate(stream)

    def count(self) -> int:
        """How many frames there are: by the packets, without decoding any.

        Where these do not fit the duration (fields instead of frames, a beginning that an editor hid), by decoding.

        Raises:
            MuseVError: the file cannot be read to its end.
        """
        from av.error import FFmpegError

        with self._opened() as container:
            stream = container.streams[self._index]
            try:
                packets = sum(bool(packet.size) for packet in container.demux(stream))
            except (FFmpegError, OSError, ValueError) as error:
                raise MuseVError(f"{shown(self.path)} cannot be read: {error}") from error
            seconds = float(stream.duration * stream.time_base) if stream.duration else 0
        if seconds and abs(packets - seconds * self.fps) > 1 + packets / 100:
            return sum(1 for _ in self.frames(0, 1))
        return packets

    def frames(self, start: int, stride: int) -> Iterator[torch.Tensor]:
        """Frames `start`, `start + stride`, ...: uint8 `(H, W, 3)`, upright, with square pixels, all of one size.

        Raises:
            MuseVError: damage, or a video that ends before `start`.
        """
        from av.error import FFmpegError

        count = 0
        with self._opened() as container:
            stream = container.streams[self._index]
            stream.codec_context.options = _LIMITS
            stream.thread_type = "AUTO" if stream.width * stream.height <= _THREADED_PIXELS else "SLICE"
            convert = _Converter(self.path, stream.sample_aspect_ratio)
            try:
                for frame in container.decode(stream):
                    if count >= start and (count - start) % stride == 0:
                        yield convert(frame)
                    count += 1
            except MuseVError:
                raise
            except (FFmpegError, OSError, ValueError) as error:
                raise MuseVError(f"{shown(self.path)} cannot be read after frame {count}: {error}") from error
        _check_count(self.path, count, start)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        import av
        from av.error import FFmpegError

        only = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "file", **_LIMITS}
        try:
            # the whole path, since `a:b.mp4` would be taken for a protocol
            container = av.open(str(long_path(self.path.absolute())), options=only, metadata_errors="replace")
        except (FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MuseVError(
                f"{shown(self.path)} cannot be read as a video: {reason}. Playlists, pictures and damaged files are no "
                "videos; a folder of pictures is one."
            ) from error
        with container:
            yield container


class PictureFolder:
    """A folder of pictures, one for each frame, in the order of the numbers in their names."""

    fps = DEFAULT_RATE

    def __init__(self, path: Path):
        """Lists the pictures, and opens none."""
        self.path = path
        self._files = natural_order(
            file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES and not file.name.startswith(".")
        )
        if not self._files:
            raise MuseVError(f"The folder {shown(path)} holds no pictures ({', '.join(FRAME_SUFFIXES)}).")

    def count(self) -> int:
        """How many pictures there are."""
        return len(self._files)

    def frames(self, start: int, stride: int) -> Iterator[torch.Tensor]:
        """As those of `VideoFile`."""
        _check_count(self.path, len(self._files), start)
        size = None
        for file in self._files[start::stride]:
            frame = load_image(file)[0]
            if size not in (None, frame.shape):
                raise MuseVError(
                    f"The pictures of {shown(self.path)} differ in size: {file.name} has {frame.shape[0]} x "
                    f"{frame.shape[1]} pixels (height x width), those before it {size[0]} x {size[1]}."
                )
            size = frame.shape
            yield frame


def natural_order(files: Iterable[Path]) -> list[Path]:
    """Files sorted by name as people do: numbers by their value, so that 10000.png comes after 9999.png."""

    def key(file: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name.lower())]

    return sorted(files, key=lambda file: (key(file), file.name))


class _Converter:
    """Decoded frames as uint8 RGB `(H, W, 3)` of the size of the first, turned upright."""

    def __init__(self, path: Path, pixel_aspect: Fraction | None):
        self._path = path
        self._aspect = pixel_aspect if pixel_aspect and 1 / _MAX_STRETCH <= pixel_aspect <= _MAX_STRETCH else 1
        self._size: tuple[int, int] | None = None
        self._kind: tuple[Any, ...] = ()
        self._graph: Any = None

    def __call__(self, frame: "VideoFrame") -> torch.Tensor:
        if self._size is None:
            self._size = round(frame.width * self._aspect), frame.height
            _check_size(self._path, *self._size)
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self._kind:
            width, height, form = self._kind = kind
            scale = f"{self._size[0]}:{self._size[1]}:flags={EXACT}"
            filters = [("scale", scale), ("format", "rgb24")]
            base = frame.time_base or Fraction(1, 1000)
            self._graph = filter_graph(filters, width=width, height=height, format=form, time_base=base)
        self._graph.push(frame)
        rgb = self._graph.pull().to_ndarray()
        quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise; PyAV 14 and later
        return torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, quarter_turns)))


def _moving_stream(container: Any) -> Any:
    """The first stream of pictures that has two of them; a cover before it has one."""
    from av.error import FFmpegError

    # without a pixel format FFmpeg saw no frame of it, as with animated WebP
    streams = [s for s in container.streams.video if s.codec_context is not None and s.codec_context.pix_fmt]
    if len(streams) < 2:
        return streams[0] if streams else None
    seen = set()
    with contextlib.suppress(FFmpegError):  # damage further on is told when somebody reads so far
        for packet in itertools.islice(container.demux(streams), _PROBED_PACKETS):
            if packet.size and packet.stream.index in seen:
                return packet.stream
            seen.add(packet.stream.index)
    return streams[0]


def _rate(stream: Any) -> float:
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    return next((rate for rate in rates if _SLOWEST <= rate <= _FASTEST), DEFAULT_RATE)


def _check_size(path: Path, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise MuseVError(
            f"{shown(path)} has frames of {height} x {width} pixels (height x width); videos up to 8K "
            f"({MAX_PIXELS / 1e6:.0f} million pixels) are read."
        )


def _check_count(path: Path, count: int, start: int) -> None:
    if count <= start:
        raise MuseVError(f"{shown(path)} has {count} frames, so there is none left from frame {start} on.")
