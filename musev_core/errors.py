"""Errors a person can act on: what was expected, what came, what to do."""

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from types import ModuleType


class MuseVError(ValueError):
    """Something the user can put right. The command line prints its message instead of a traceback."""


class CheckpointError(MuseVError):
    """A weight file which is missing, damaged, or not what was asked for."""


class MissingPackageError(MuseVError, ImportError):
    """An optional package is needed for this one feature."""


class Cancelled(RuntimeError):
    """The caller asked to stop; raised between two windows."""


def require(module: str, *, install: str, purpose: str) -> ModuleType:
    """Import an optional package at the place where it is used.

    Raises:
        MissingPackageError: it is not installed or broken; the message names `purpose` and what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {module!r}, which cannot be imported ({error}). "
            f"Install it with: pip install {install}"
        ) from error


@contextmanager
def blame(owner: str) -> Iterator[None]:
    """Put `owner` ("Task 'girl'", a field's name) before a MuseVError which does not begin with it yet."""
    try:
        yield
    except MuseVError as error:
        if str(error).startswith(f"{owner}: "):
            raise
        raise MuseVError(f"{owner}: {error}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'fps'?"` for the end of a message about an unknown word; nothing if none comes close."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
