"""The command `musev`: one file per command, `main` puts them together."""

from .main import main

__all__ = ["main"]
