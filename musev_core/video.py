"""Video files: read and written frame by frame through PyAV, so that length costs no memory."""

import contextlib
import logging
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from .errors import MuseVError
from .images import to_uint8
from .video_encoders import ENCODERS, EXACT, Encoder, PngFolder, filter_graph

log = logging.getLogger(__name__)


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
            to_rgb = filter_graph([("scale", f"flags={EXACT}"), ("format", "rgb24")], template=stream)
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
        self._sink: Encoder | PngFolder | None = None
        self._size: tuple[int, int] | None = None
        self._finished = False

        suffix = self.path.suffix.lower()
        if suffix not in ENCODERS:
            known = ", ".join(name for name in ENCODERS if name)
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
            MuseVError: a wrong shape or dtype, another size than that of the first frames, a finished writer, or a
                file that cannot be written (no rights, a full disk, an FFmpeg without the encoder).
        """
        if self._finished:
            raise MuseVError(f"{str(self.path)!r} is finished; frames can only be written before close or discard.")
        frames = to_uint8(frames)
        size = (frames.shape[1], frames.shape[2])
        sink = self._sink
        if sink is None:
            self._size = size
            with self._blamed():
                self._sink = sink = ENCODERS[self.path.suffix.lower()](self._part, size, self._rate, self._crf)
        if size != self._size:
            raise MuseVError(f"All frames must be of the size of the first, {self._size} (height, width), got {size}.")
        with self._blamed():
            for frame in frames.cpu().numpy():
                sink.add(frame)
        self.frame_count += len(frames)

    def close(self) -> None:
        """Finishes the file and puts it in its place; does nothing after the first call.

        Raises:
            MuseVError: no frame was written, or the file cannot be written to its end.
        """
        if self._finished:
            return
        self._finished = True
        if self._sink is None:
            raise MuseVError(f"No frames were written, so there is no {str(self.path)!r}.")
        try:
            with self._blamed():
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

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        from av.codec.codec import UnknownCodecError
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, OSError, UnknownCodecError) as error:
            raise MuseVError(f"{str(self.path)!r} cannot be written: {error}") from error

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
