"""`musev join`: parts of a video, made by several machines, as one file."""

import argparse
import uuid
from pathlib import Path
from typing import Any

from ..errors import MuseVError
from ..file_names import existing_file, shown
from .terminal import add_command, say


def add_join(commands: Any) -> None:
    """Adds the command `join`."""
    parser = add_command(
        commands,
        "join",
        join,
        "Join parts of a video, without encoding them again.",
        "Parts are what `musev generate --frames A:B` writes. Their names say their order and that of the video.",
    )
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.mp4", help="the parts of one video")
    parser.add_argument("--output", type=Path, default=None, help="the video; its parts are then joined as given")
    parser.add_argument("--audio", type=Path, default=None, metavar="FILE", help="what is heard with it")
    parser.add_argument("--overwrite", action="store_true", help="replace a video that exists already")


def join(options: argparse.Namespace) -> int:
    """Joins the parts, which stay."""
    from av.error import FFmpegError

    from ..frames.audio import Sound, has_sound
    from ..frames.folders import to_disk
    from ..frames.joining import in_order, join_videos
    from ..frames.video import frame_rate

    parts = [existing_file(part, "part of a video") for part in options.parts]
    target, parts = in_order(parts) if options.output is None else (options.output, parts)
    if target.suffix.lower() != ".mp4":
        raise MuseVError(f"{shown(target)}: only mp4 files can be joined.")
    if target.exists() and (target.is_dir() or not options.overwrite):
        raise MuseVError(f"{shown(target)} exists already. Choose another name, or allow it with --overwrite.")
    rates = sorted({frame_rate(part) for part in parts})
    if len(rates) > 1:
        raise MuseVError(f"The parts have {' and '.join(f'{rate:g}' for rate in rates)} frames per second.")
    if options.audio is not None and not has_sound(options.audio):
        raise MuseVError(f"{shown(options.audio)} has no sound.")
    sound = None if options.audio is None else Sound(options.audio)
    hidden = target.absolute().with_name(f".{uuid.uuid4().hex}.part.mp4")
    try:
        join_videos(hidden, parts, fps=rates[0], sound=sound)
        to_disk(hidden, target)
    except (FFmpegError, OSError) as error:
        raise MuseVError(f"{shown(target)} cannot be written: {error.strerror or error}.") from error
    finally:
        hidden.unlink(missing_ok=True)
    say(str(target))
    return 0
