"""Errors a person can act on: what was expected, what came, what to do."""

import importlib
import importlib.metadata
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from os import PathLike
from types import ModuleType


class MuseVError(ValueError):
    """Something the user can put right. The command line prints its message instead of a traceback."""


class CheckpointError(MuseVError):
    """A weight file which is missing, damaged, or not what was asked for."""


class MissingPackageError(MuseVError, ImportError):
    """An optional package is needed for this one feature."""


class Cancelled(RuntimeError):
    """The caller asked to stop; raised between two windows."""


_KEPT = ("numpy", "torch")  # what everything else in an environment is built on


def require(module: str, *, install: str, purpose: str) -> ModuleType:
    """Import an optional package at the place where it is used.

    Raises:
        MissingPackageError: it is not installed or broken; the message names `purpose` and what to install.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package that no longer fits its own dependencies may raise anything
        raise MissingPackageError(
            f"{purpose} needs the package {module!r}, which cannot be imported ({type(error).__name__}: {error}). "
            f"Install it with: {install_command(install)}"
        ) from error


def install_command(packages: str) -> str:
    """The command that installs packages and leaves numpy and torch as they are."""
    kept = []
    for name in _KEPT:
        with suppress(importlib.metadata.PackageNotFoundError):
            kept.append(f"{name}=={importlib.metadata.version(name)}")
    return " ".join(["pip install", packages, *kept])


@contextmanager
def blame(owner: str) -> Iterator[None]:
    """Put `owner` ("Task 'girl'", a field's name) before a MuseVError which does not begin with it yet."""
    try:
        yield
    except MuseVError as error:
        if str(error).startswith(f"{owner}: "):
            raise
        raise MuseVError(f"{owner}: {error}") from error


@contextmanager
def naming(file: str | PathLike[str]) -> Iterator[None]:
    """Put the file before a MuseVError which does not name it yet."""
    try:
        yield
    except MuseVError as error:
        if str(file) in str(error):
            raise
        raise type(error)(f"{file}: {error}") from error


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`" Did you mean 'fps'?"` for the end of a message about an unknown word; nothing if none comes close.

    `cutoff` is the share of letters in common, 0 to 1. Words of hundreds of letters are nobody's slip.
    """
    close = get_close_matches(word, list(known), n=1, cutoff=cutoff) if len(word) < 100 else []
    return f" Did you mean {close[0]!r}?" if close else ""


class _Shown(reprlib.Repr):
    """Values cut short, whatever they are: Python refuses to write out whole numbers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        return f"<a number of {x.bit_length()} bits>" if x.bit_length() > 256 else repr(x)


def shown(value: object, length: int = 120) -> str:
    """`repr(value)` for a message, cut to about `length` characters."""
    short = _Shown()
    short.maxlevel, short.maxstring, short.maxother = 3, length, length
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 8
    return short.repr(value)


def listed(words: Iterable[str], most: int = 40) -> str:
    """Words for a message, comma by comma; of many only the first."""
    all_words = list(words)
    rest = f" and {len(all_words) - most} more" if len(all_words) > most else ""
    return ", ".join(all_words[:most]) + rest
