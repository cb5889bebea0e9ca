"""Errors a person can act on: what was expected, what came, what to do."""

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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


def nearest(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'fps'?"` for the end of a message about an unknown word; nothing if none comes close."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
