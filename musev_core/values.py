"""Values as people write them, in YAML files and on command lines, and the files they name."""

import math
import os
import re
from pathlib import Path
from typing import Any

from .errors import MuseVError, shown

SEEDS = 2**64  # how many a generator of torch tells apart: 0 to 2**64 - 1
_WANTED = {str: "text", Path: "a file name", bool: "true or false", int: "a whole number", float: "a number"}
# as people write them: neither 1_000 nor the digits of other scripts, which Python takes as well
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
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
        result = value if isinstance(value, str) else shown(value)
    elif kind is Path and isinstance(value, (str, os.PathLike)):
        result = None if "\0" in os.fsdecode(value) else user_path(value)
    elif kind is bool and isinstance(value, (str, int)):
        result = _SWITCHES.get(str(value).strip().lower() if isinstance(value, (str, bool)) else shown(value))
    elif kind in (int, float) and number_or_text:
        result = _number(value, kind)
    if result is None:
        raise MuseVError(f"{name}: expected {_WANTED[kind]}, got {shown(value)}.")
    return result


def _number(value: str | int | float, kind: type) -> int | float | None:
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    if kind is float:
        return number
    try:
        return int(value)  # not int(number): a float would round a large seed
    except ValueError:
        return int(number)  # "12.0"


def check_seed(name: str, seed: Any) -> int:
    """The seed, if a generator of torch takes it: a whole number from 0 to 2**64 - 1.

    Raises:
        MuseVError: it is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise MuseVError(f"{name}: a seed is a whole number from 0 to 2**64 - 1, got {shown(seed)}.")
    return seed


def is_none(value: object) -> bool:
    """Whether a value stands for nothing: None, an empty text, "none" or "null"."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def user_path(name: str | os.PathLike[str]) -> Path:
    """A file name as typed: trimmed, `~` for the home folder; an unknown `~name` stays as it is."""
    return Path(os.path.expanduser(name.strip() if isinstance(name, str) else name))


def beside(folder: Path, name: str) -> Path:
    """The file `name` in `folder` if it is there; otherwise the name is left to the working directory."""
    path = user_path(name)
    return folder / path if os.path.exists(folder / path) else path  # a name too long for a file is not there
