"""A video in the making: its finished frames are safe on disk, and another run goes on behind them.

Beside the target stands a folder that anyone may look into; it goes when the video is in its place:

    name.mp4.parts/
        run.json             what decides the frames, how many there are, who made them
        000000.mp4 ...       finished segments, named by their first frame
        frames/0000.png ...  instead of segments where every frame is wanted as it is: PNG folders, gif and webp
        shot-2.safetensors   what a later run needs of an earlier one

A file of these is written under another name, brought to the disk and only then given its own, so that it is whole if
it is there at all: after `kill -9`, and after a power cut.
"""

import contextlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..errors import MuseVError
from ..file_names import long_path, made_folder, shown
from ..locks import alone_with
from .audio import Sound
from .decoders import open_source
from .encoders import ENCODERS, Encoder, PngFolder, frame_name
from .folders import replace_folder, to_disk
from .image_files import save_image
from .images import to_uint8
from .joining import join_videos
from .run_file import FINISHING, RunFile, differences, run_folder
from .tensor_folder import TensorFolder
from .video import VideoWriter, unique_path

log = logging.getLogger(__name__)

SEGMENT = 48  # frames of a segment, the most that is lost
_ROOM = 50_000_000  # bytes on the disk for a start
_PARTIAL_EVERY = 60.0  # seconds between two partial files


def identity(facts: Mapping[str, Any], *, fps: float, images: bool) -> dict[str, Any]:
    """The facts of an unfinished video as its run.json holds them."""
    return json.loads(json.dumps({**facts, "fps": fps, "images": images}))


class ResumableVideo:
    """Writes a video, or goes on with one that another run has begun; a context manager.

    The order is: construct it, which only checks; enter it; `begin`; `write` the frames from that number on. If the
    block raises, what is finished stays, and for mp4 `name.partial.mp4` shows it.

    Args:
        path, fps, crf: as those of `VideoWriter`.
        facts: what decides the frames, all that JSON can say. Only a run with the same facts goes on.
        images: make a folder of PNG files as well, named as the video without its suffix.
        sound: what is heard with an mp4.
        overwrite: replace a finished video at `path`, and an unfinished one with other facts.
        resume: go on with frames that are there; False makes them anew.

    Attributes:
        path: where the video is, once it is finished.
        frame_count: finished frames, which are the first ones, so that this is the number of the next.
        choices: what the first run has chosen, and all others keep.
        checkpoint: tensors by name, kept beside the frames.

    Raises:
        MuseVError: on construction, before anything is made: as `VideoWriter`; also an unfinished video of the same
            name with other facts, or a full disk.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        facts: Mapping[str, Any],
        images: bool = False,
        sound: Sound | None = None,
        overwrite: bool = False,
        resume: bool = True,
        crf: int = 17,
    ):
        """Checks the arguments, and looks for an unfinished video of this name."""
        self.path = self._target = Path(path)
        self.folder = run_folder(self._target)
        self._fps, self._crf, self._overwrite, self._resume = fps, crf, overwrite, resume
        self.sound = sound
        self._suffixes = [self._target.suffix] + ([""] if images and self._target.suffix else [])
        self._facts = identity(facts, fps=fps, images=images)
        found = self._found()
        if found is None or found.state != FINISHING:  # then some outputs may be in their places
            for suffix in self._suffixes:
                VideoWriter(self._target.with_suffix(suffix), fps=fps, overwrite=overwrite, crf=crf)
        free = shutil.disk_usage(long_path(self._target.absolute().parent)).free
        if free < _ROOM:
            raise MuseVError(
                f"Only {free / 1e6:.0f} MB are free on the disk of {shown(self.path)}, and {_ROOM / 1e6:.0f} are "
                "needed for a start. Make room, or choose another disk."
            )
        self.choices = {} if found is None else found.choices
        self.checkpoint = TensorFolder(self.folder)
        self.frame_count = 0
        self._run: RunFile | None = None
        self._segment: Encoder | PngFolder | None = None
        self._joined_at = time.monotonic()
        self._lock = ExitStack()

    # ---- begin -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> "ResumableVideo":
        """From here on nobody else works on this video.

        Raises:
            MuseVError: another process does, or the folder cannot be made.
        """
        made_folder(self.folder)
        found = self._found()
        owner = "" if found is None else f" ({found.owner})"
        self._lock.enter_context(alone_with(self.folder, f"making a video{owner}"))
        return self

    def begin(self, total: int, choices: Mapping[str, Any], notes: Mapping[str, Any]) -> int:
        """The number of the first frame to write; `total` if none is left to make.

        Args:
            total: frames of the whole video.
            choices: what this run would choose; if another run has begun the video, its choices stay.
            notes: what may differ between runs, for people: versions, the device.

        Raises:
            MuseVError: the unfinished video has another number of frames, or cannot be read; no room on the disk.
        """
        run = self._found()  # again, now that nobody else writes
        if run is None:
            self._clear()
            run = RunFile(self._facts, total, SEGMENT, dict(choices))
        elif run.frames != total:
            raise MuseVError(
                f"{shown(self.folder)} holds an unfinished video of {run.frames:,} frames, and this one has "
                f"{total:,}. Choose another name, or begin anew with overwrite."
            )
        self._run, self.choices = run, run.choices
        with self._blamed():
            for leftover in self.folder.glob("*.part.*"):
                leftover.unlink()
            self.frame_count = total if run.state == FINISHING else self._finished(run)
            if self.frame_count < total:
                self._warn_of_change(run, notes)
                begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
                maker = {"host": platform.node(), "process": os.getpid(), **notes}
                run.runs.append({"from_frame": self.frame_count, "begun": begun, **maker})
                run.write(self.folder)
        return self.frame_count

    def _warn_of_change(self, run: RunFile, notes: Mapping[str, Any]) -> None:
        before = {name: run.runs[-1].get(name) for name in notes} if run.runs else notes
        if self.frame_count and (changes := differences(before, notes)):
            log.warning("%s goes on with frames which may differ a little: %s", self.path, changes)

    def _found(self) -> RunFile | None:
        """An unfinished video to go on with, or one that only has to go to its place."""
        if not RunFile.exists(self._target):
            return None
        try:
            run = RunFile.read(self.folder)
        except MuseVError as error:
            if self._overwrite:
                return None
            raise MuseVError(f"{error} Remove the folder, or begin anew with overwrite.") from error
        changes = differences(run.facts, self._facts)
        if changes and not self._overwrite:
            raise MuseVError(
                f"{shown(self.folder)} holds an unfinished video of another request: {changes}. Finish that one, "
                "choose another name, or begin anew with overwrite."
            )
        return run if not changes and (self._resume or run.state == FINISHING) else None

    def _clear(self) -> None:
        with self._blamed():
            for old in self.folder.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
                elif old.name != ".lock":
                    old.unlink()

    @property
    def _in_frames(self) -> bool:
        """Whether every frame is kept as a file of its own."""
        return self._suffixes != [".mp4"]

    def _finished(self, run: RunFile) -> int:
        """Frames on disk before the first gap."""
        step = 1 if self._in_frames else run.segment
        first = 0
        while first < run.frames and self._file(first, run).exists():
            first += step
        return min(first, run.frames)

    def _file(self, first: int, run: RunFile) -> Path:
        if self._in_frames:
            return self.folder / "frames" / frame_name(first, run.frames)
        return self.folder / f"{first:06d}.mp4"

    # ---- write -----------------------------------------------------------------------------------------------------

    def write(self, frames: torch.Tensor) -> None:
        """Appends frames `(n, H, W, 3)`, uint8 or float 0..1 (rounded to nearest).

        Raises:
            MuseVError: as `VideoWriter.write`; more frames than the video has; before `begin`.
        """
        run = self._begun()
        frames = to_uint8(frames)
        waiting = self._segment.count if self._segment else 0
        if self.frame_count + waiting + len(frames) > run.frames:
            raise MuseVError(f"{shown(self.path)} has {run.frames:,} frames; more came.")
        for frame in frames:
            with self._blamed():
                (self._write_frame if self._in_frames else self._write_to_segment)(frame, run)

    def _begun(self) -> RunFile:
        if self._run is None:
            raise MuseVError("frames are written after begin(), which says with which number they begin.")
        return self._run

    def _write_frame(self, frame: torch.Tensor, run: RunFile) -> None:
        file, part = self._file(self.frame_count, run), self.folder / "frame.part.png"
        file.parent.mkdir(exist_ok=True)
        save_image(part, frame[None])
        to_disk(part, file)
        self.frame_count += 1

    def _write_to_segment(self, frame: torch.Tensor, run: RunFile) -> None:
        part, segment = self.folder / "segment.part.mp4", self._segment
        if segment is None:
            rate = Fraction(self._fps).limit_denominator(1001)
            segment = ENCODERS[".mp4"](part, (frame.shape[0], frame.shape[1]), rate, self._crf)
            self._segment = segment
        segment.add(frame.cpu().numpy())
        count = segment.count
        if count < min(run.segment, run.frames - self.frame_count):
            return
        segment.close()
        self._segment = None
        to_disk(part, self._file(self.frame_count, run))
        self.frame_count += count
        if time.monotonic() > self._joined_at + _PARTIAL_EVERY and self.frame_count < run.frames:
            self._join_partial(run)

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        from av.codec.codec import UnknownCodecError
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, OSError, UnknownCodecError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MuseVError(f"{shown(self.path)} cannot be written: {reason}.") from error

    # ---- end -------------------------------------------------------------------------------------------------------

    def __exit__(self, error_type, error, traceback) -> None:
        """Puts the video in its place; or says what is finished of it, if the block raised."""
        with self._lock:
            if error_type is None:
                self._close(self._begun())
            else:
                self._stop()
        with contextlib.suppress(OSError):  # Windows keeps the lock's file until here; a folder with frames stays
            if [file.name for file in self.folder.iterdir()] == [".lock"]:
                shutil.rmtree(self.folder)

    def _stop(self) -> None:
        from av.error import FFmpegError

        if self._segment is not None:
            with contextlib.suppress(OSError, FFmpegError):
                self._segment.abort()
        run = self._run
        if run is None or run.state == FINISHING:
            return  # nothing was begun; or all is there, and the next run puts it in its place
        self.frame_count = self._finished(run)  # a signal may come between a file and its count
        if self.frame_count == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        partial = self._join_partial(run)
        log.warning(
            "%d of %d frames are finished and kept%s.%s",
            self.frame_count,
            run.frames,
            f" in {shown(self.folder)}" if partial is None else f"; {shown(partial)} shows them",
            f" The same command goes on from frame {self.frame_count}." if self._resume else "",
        )

    @property
    def partial(self) -> Path:
        """The file which shows what is finished, for mp4."""
        return self._target.with_suffix(f".partial{self._target.suffix}")

    def _join_partial(self, run: RunFile) -> Path | None:
        """`partial`, if it can be made now."""
        self._joined_at = time.monotonic()
        if self._in_frames:
            return None
        part = self.folder / "partial.part.mp4"
        try:
            with self._blamed():
                join_videos(part, self._segments(run), fps=self._fps)
                os.replace(part, self.partial)
        except MuseVError as error:  # a full disk, or Windows, while a player shows the old one
            log.debug("no partial file: %s", error)
            return None
        return self.partial

    def _segments(self, run: RunFile) -> list[Path]:
        return [self._file(first, run) for first in range(0, self.frame_count, run.segment)]

    def _close(self, run: RunFile) -> None:
        if self.frame_count < run.frames:
            self._stop()
            raise MuseVError(f"{shown(self.path)} has {run.frames:,} frames, and only {self.frame_count:,} came.")
        with self._blamed():
            if run.state != FINISHING:
                self._make_whole(run)
                run.state = FINISHING
                run.write(self.folder)
            for suffix in reversed(self._suffixes):  # the video last, which tells that all is there
                self._publish(suffix)
            self.partial.unlink(missing_ok=True)
        self._remove()

    def _remove(self) -> None:
        """Nothing is needed any more; what is known of the video goes last, so that another run can go on with this."""
        with contextlib.suppress(OSError):
            for file in self.folder.iterdir():
                if file.is_dir():
                    shutil.rmtree(file)
                elif file.name not in ("run.json", ".lock"):
                    file.unlink()
            (self.folder / "run.json").unlink()
            shutil.rmtree(self.folder)

    def _whole(self, suffix: str) -> Path:
        """Where an output is before it goes to its place."""
        return self.folder / (f"whole{suffix}" if suffix else "frames")

    def _make_whole(self, run: RunFile) -> None:
        for suffix in filter(None, self._suffixes):
            part = self.folder / f"whole.part{suffix}"
            parts = [self._encoded(suffix)] if self._in_frames else self._segments(run)
            if suffix == ".mp4":
                join_videos(part, parts, fps=self._fps, sound=self.sound)
            else:
                os.replace(parts[0], part)
            to_disk(part, self._whole(suffix))

    def _encoded(self, suffix: str) -> Path:
        """All frames in a file."""
        path = self.folder / f"encoded.part{suffix}"
        with VideoWriter(path, fps=self._fps, crf=self._crf, overwrite=True) as writer:
            for frame in open_source(self.folder / "frames").frames(0, 1):
                writer.write(frame[None])
        return path

    def _publish(self, suffix: str) -> None:
        whole, target = self._whole(suffix), self._target.with_suffix(suffix)
        if not whole.exists():
            return  # an earlier run did that, and was killed before it could tidy up
        occupied = target.is_file() or (target.is_dir() and any(target.iterdir()))
        if occupied and not self._overwrite:  # hours of work must not be lost
            target = _other_name(target, "was created meanwhile")
        try:
            try:
                self._put(whole, target)
            except PermissionError:  # Windows, while a player shows the old one
                target = _other_name(target, "is in use by another program or protected")
                self._put(whole, target)
        except OSError as error:
            raise MuseVError(
                f"The video is finished, but cannot be named {shown(target)}: {error}. It is here: {whole}"
            ) from error
        if suffix == self._target.suffix:
            self.path = target

    def _put(self, whole: Path, target: Path) -> None:
        if whole.is_dir():
            replace_folder(whole, long_path(target), keep=self.folder / "replaced")
        else:
            os.replace(whole, long_path(target))


def _other_name(target: Path, reason: str) -> Path:
    other = unique_path(target)
    log.warning("%s %s; writing %s instead.", target, reason, other)
    return other
