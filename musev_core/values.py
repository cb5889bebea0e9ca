"""Values as people write them, in YAML files and on command lines, and the files they name."""

import math
import os
from pathlib import Path
from typing import Any

from .errors import MuseVError

_WANTED = {str: "text", Path: "a file name", bool: "true or false", int: "a whole number", float: "a number"}
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def scalar(name: str, value: Any, kind: type) -> Any:
    """`value` as a str, int, float, bool or Path; numbers and switches may be given as text ("1e-3", "on").

    Args:
        name: what the message calls it.

    Raises:
        MuseVError: not of this kind, or a number that is not finite.
    """
    number_or_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    result: Any = None
    if kind is str and number_or_text:
        result = str(value)
    elif kind is Path and isinstance(value, (str, os.PathLike)):
        result = user_path(value)
    elif kind is bool and isinstance(value, (str, int)):
        result = _SWITCHES.get(str(value).strip().lower())
    elif kind in (int, float) and number_or_text:
        result = _number(value, kind)
    if result is None:
        raise MuseVError(f"{name}: expected {_WANTED[kind]}, got {value!r}.")
    return result


def _number(value: str | int | float, kind: type) -> int | float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    if kind is float:
        return number
    try:
        return int(value)  # not int(number): a float would round a large seed
    except ValueError:
        return int(number)  # "12.0"


def is_none(value: object) -> bool:
    """Whether a value stands for nothing: None, an empty text, "none" or "null"."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def user_path(name: str | os.PathLike[str]) -> Path:
    """A file name as typed: trimmed, `~` for the home folder; an unknown `~name` stays as it is."""
    return Path(os.path.expanduser(name.strip() if isinstance(name, str) else name))


def beside(folder: Path, name: str) -> Path:
    """The file `name` in `folder` if it is there; otherwise the name is left to the working directory."""
    path = user_path(name)
    return folder / path if (folder / path).exists() else path


def read_yaml(path: Path, *, what: str, example: str) -> Any:
    """The content of a YAML file; Python files, which the original ran for this purpose, are refused.

    Args:
        what: what the messages call the file, e.g. "task file".
        example: such a file as YAML, shown to those who bring Python.

    Raises:
        MuseVError: Python code, an unreadable file, or not YAML.
    """
    import yaml

    if path.suffix.lower() == ".py":
        raise MuseVError(f"{path} is Python code, which is never executed. Write the {what} as YAML:\n{example}")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MuseVError(f"The {what} {path} cannot be read ({error}).") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: other encodings, dates like 2024-02-31
        raise MuseVError(f"The {what} {path} is not valid YAML: {error}") from error
