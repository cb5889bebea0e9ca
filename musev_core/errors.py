"""Errors a person can act on: what was expected, what came, what to do."""

import importlib
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
            f"{purpose} needs the package {module!r}, which cannot be imported ({error}). Install it with: pip install {install}"
        ) from error
