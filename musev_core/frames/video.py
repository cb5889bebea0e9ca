"""Videos: read and written frame by frame, so that length costs no memory."""

import contextlib
import itertools
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

from ..errors import MuseVError
from ..file_names import long_path, shown
from .decoders import PictureFolder, VideoFile, open_source
from .encoders import ENCODERS, Encoder, PngFolder
from .folders import replace_folder
from .images import to_uint8

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
        path: a video file, or a folder of pictures.
        max_frames: stop after so many; None reads to the end.

    Returns:
        The frames and their rate: the source's divided by `stride`, so that they play in real time.

    Raises:
        MuseVError: see `iter_frames`; also a `max_frames` below 1.
    """
    if max_frames is not None and max_frames < 1:
        raise MuseVError(f"max_frames must be 1 or more, got {max_frames}.")
    source = checked_source(path, stride, start)
    frames = list(itertools.islice(source.frames(start, stride), max_frames))
    return Video(torch.stack(frames), source.fps / stride)


def iter_frames(path: str | Path, *, stride: int = 1, start: int = 0) -> Iterator[torch.Tensor]:
    """Frames `start`, `start + stride`, ... of a video, one at a time: uint8 `(H, W, 3)` RGB, upright, of one size.

    A video is a file, or a folder of pictures in the order of their numbers. Pixels that are not square are made so.

    Raises:
        MuseVError: at once for a stride below 1, a negative start, a missing file, one without pictures or with frames
            beyond 8K; while reading for a damaged file, or if the video ends before `start`.
    """
    return checked_source(path, stride, start).frames(start, stride)


def frame_rate(path: str | Path) -> float:
    """Average frames per second of a video file; 25 where it does not say, as a folder of pictures.

    Raises:
        MuseVError: a missing file, one that is not a video, or one without pictures.
    """
    return open_source(Path(path)).fps


def checked_source(path: str | Path, stride: int, start: int) -> VideoFile | PictureFolder:
    """A video whose frames `start`, `start + stride`, ... can be asked for; raises as `iter_frames` does at once."""
    if stride < 1 or start < 0:
        raise MuseVError(f"stride must be 1 or more and start 0 or more, got stride {stride} and start {start}.")
    return open_source(Path(path))


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
    while long_path(candidate).exists():
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
                f"Unknown video format {suffix!r} of {shown(path)}: use {known}, or none for a folder of PNG files."
            )
        if not 0.01 <= fps <= 1000:
            raise MuseVError(f"fps must be a positive number of frames per second (0.01 to 1000), got {fps}.")
        if not 0 <= crf <= 51:
            raise MuseVError(f"crf must lie in 0..51, got {crf}.")
        try:
            self._check_target(suffix)
            self._target.parent.mkdir(parents=True, exist_ok=True)
        except MuseVError:
            raise
        except (OSError, ValueError) as error:  # ValueError: NUL, or characters the system's encoding does not have
            raise MuseVError(f"{shown(path)} cannot be made: {error}") from error
        self._rate = Fraction(fps).limit_denominator(1001)
        # a short name, whatever the target's length; a whole path, or FFmpeg would take `a:b/` for a protocol
        self._part = self._target.absolute().with_name(f".{uuid.uuid4().hex}.part")

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
            raise MuseVError(f"{shown(self.path)} is finished; frames can only be written before close or discard.")
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
            raise MuseVError(f"No frames were written, so there is no {shown(self.path)}.")
        try:
            with self._blamed():
                self._sink.close()
        except BaseException:
            self.discard()
            raise
        try:
            self._publish()
        except OSError as error:  # the work is done and must not be lost
            raise MuseVError(
                f"The video is finished, but cannot be named {shown(self.path)}: {error}. It is here: {self._part}"
            ) from error

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
        except (FFmpegError, OSError, UnicodeError, UnknownCodecError) as error:
            raise MuseVError(f"{shown(self.path)} cannot be written: {error}") from error

    @property
    def _target(self) -> Path:
        return long_path(self.path)

    def _check_target(self, suffix: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._target.lstat()  # whether the system takes the name
        if self._target.exists() and self._target.is_dir() != (suffix == ""):
            kind = "folder" if self._target.is_dir() else "file"
            raise MuseVError(f"{shown(self.path)} is an existing {kind} of another sort. Choose another name.")
        if self._occupied() and not self._overwrite:
            raise MuseVError(
                f"{shown(self.path)} exists already. Choose another name, or allow it with overwrite=True."
            )

    def _occupied(self) -> bool:
        return self._target.is_file() or (self._target.is_dir() and any(self._target.iterdir()))

    def _publish(self) -> None:
        if self._occupied() and not self._overwrite:  # somebody else was faster; hours of work must not be lost
            self._evade("was created meanwhile")
        try:
            self._put_in_place()
        except PermissionError:  # Windows, while a player shows the old one
            self._evade("is in use by another program or protected")
            self._put_in_place()

    def _evade(self, reason: str) -> None:
        taken, self.path = self.path, unique_path(self.path)
        log.warning("%s %s; writing %s instead.", taken, reason, self.path)

    def _put_in_place(self) -> None:
        target = self._target
        if target.is_dir():
            replace_folder(self._part, target, keep=self._part.with_suffix(".old"))
        else:
            os.replace(self._part, target)
