"""Exceptions as the command line tells them: one sentence each, and whose error it is as an exit status."""

import errno
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import Cancelled, MuseVError

log = logging.getLogger(__name__)

USERS, OURS, STOPPED = 1, 70, 130  # beside 0, and 2 which argparse takes for usage

LESS_MEMORY = (
    "There is not enough memory for this. Smaller pictures, fewer frames at once (context_frames, "
    "context_batch_size) or half precision (--dtype float16) need less."
)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
_HINTS = {
    errno.ENOSPC: "make room on the disk, or write to another one",
    errno.EDQUOT: "make room on the disk, or write to another one",
    errno.EACCES: "choose another place, or change who may read and write there",
    errno.EPERM: "choose another place, or change who may read and write there",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "was it moved or deleted",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@dataclass(frozen=True)
class Failure:
    """What the person at the screen is told, and the exit status: `USERS`, `OURS` or `STOPPED`."""

    sentence: str
    status: int


def explain(error: BaseException) -> Failure:
    """The sentence for an exception.

    The user's are `MuseVError`s, those of the machine (files, memory) and packages that cannot be imported. Everything
    else is a bug of this package: its traceback is told on request only.
    """
    if isinstance(error, MuseVError):
        return Failure(str(error), USERS)
    if isinstance(error, (KeyboardInterrupt, Cancelled)):
        return Failure("stopped; what was finished is kept", STOPPED)
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return Failure(LESS_MEMORY + (f" ({_shortened(text)})" if text else ""), USERS)
    if isinstance(error, OSError) and error.errno is not None:
        return Failure(_of_the_machine(error), USERS)
    if isinstance(error, ImportError) and error.name and not error.name.startswith("musev_core"):
        return Failure(f"The package {error.name!r} cannot be imported ({_shortened(text)}). Install it anew.", USERS)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" in {Path(frame.filename).name}:{frame.lineno}" for frame in place)
    return Failure(
        f"This is a bug of MuseV, not your mistake: {type(error).__name__}{where}: {_shortened(text)}. "
        "The same command with --debug shows where it happened; please report that.",
        OURS,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's or the accelerator's memory did not suffice."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # torch's, without importing it
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or named or told


def _of_the_machine(error: OSError) -> str:
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    hint = _HINTS.get(error.errno or 0)
    return f"{files + ': ' if files else ''}{error.strerror or error}{f' ({hint}).' if hint else '.'}"


def _shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


class Failures:
    """What went wrong with single parts of the work, while the others go on."""

    def __init__(self) -> None:
        self._failures: list[Failure] = []

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """Keeps an exception of the block, under the name of its owner. Stopping is none: it passes."""
        try:
            yield
        except Cancelled:
            raise
        except Exception as error:
            self.add(error, owner)

    def add(self, error: Exception, owner: str = "") -> None:
        """Keeps an exception and logs it."""
        failure = explain(error)
        if owner and not failure.sentence.startswith(f"{owner}: "):
            failure = Failure(f"{owner}: {failure.sentence}", failure.status)
        log.warning("left out, the others go on: %s", failure.sentence)
        log.debug("where it happened:", exc_info=error)
        self._failures.append(failure)

    def __len__(self) -> int:
        return len(self._failures)

    @property
    def status(self) -> int:
        """The exit status: 0 if nothing failed, `OURS` if a bug is among it, else `USERS`."""
        return max((failure.status for failure in self._failures), default=0)

    @property
    def summary(self) -> str:
        """Every sentence, one a line."""
        return "\n".join(failure.sentence for failure in self._failures)
