"""Locks between processes: what two runs would spoil together is one run's at a time."""

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path

from .errors import MuseVError
from .file_names import long_path, shown

log = logging.getLogger(__name__)

_NOT_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # some network drives know no locks


@contextlib.contextmanager
def alone_with(path: Path, work: str) -> Iterator[None]:
    """Inside, no other process that asks for the same path gets it; the lock of a process that dies is free at once.

    Args:
        path: a file, locked by the hidden file `.<name>.lock` beside it; or an existing folder, by `.lock` in it.
        work: what is done there, for the message: "training".

    Raises:
        MuseVError: another process has it, or the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(long_path(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MuseVError(
            f"Another run is {work} in {shown(path)} at this moment. Wait until it is done, or choose another place."
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NOT_HERE:
            raise MuseVError(f"{shown(path)} cannot be written: {error.strerror or error}.") from error
        log.warning("%s cannot be locked (%s): start no second run there.", path, error)
    try:
        yield
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Whether no other process has the lock of a path at this moment."""
    try:
        with alone_with(path, "looking"):
            return True
    except MuseVError:
        return False
