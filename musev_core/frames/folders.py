"""Files and folders which are whole wherever they stand, whenever the machine stops."""

import contextlib
import os
import re
import shutil
from pathlib import Path

_NUMBERED = re.compile(r"\d{4,}\.png")


def to_disk(part: Path, target: Path) -> None:
    """Gives a file, which was written as `part`, its name once its bytes are on the disk."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _names_to_disk(target.parent)


def replace_folder(new: Path, target: Path, *, keep: Path) -> None:
    """Puts a folder of numbered PNG files in the place of another: nobody ever sees a part of it.

    All but the numbered PNG files of the old folder moves into the new one.

    Args:
        keep: where the old folder is for a moment, on the same disk. A run that is killed between both leaves `new`
            and no `target`, and this function goes on from there.
    """
    if target.is_dir():
        for other in target.iterdir():
            if not _NUMBERED.fullmatch(other.name):
                _bring(other, new / other.name)
        if keep.exists():
            shutil.rmtree(keep)
        os.replace(target, keep)
    try:
        os.replace(new, target)
    except OSError:
        if keep.exists():
            os.replace(keep, target)
        raise
    _names_to_disk(target.parent)
    shutil.rmtree(keep, ignore_errors=True)


def _bring(file: Path, to: Path) -> None:
    """Another name for a file or folder; a copy, where the disk knows no second names."""
    if file.is_dir():
        to.mkdir(exist_ok=True)
        for inner in file.iterdir():
            _bring(inner, to / inner.name)
        return
    to.unlink(missing_ok=True)
    try:
        os.link(file, to, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(file, to, follow_symlinks=False)


def _names_to_disk(folder: Path) -> None:
    """A new name is safe once its folder is; Windows cannot be asked for that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
