"""Rules of one field of a task: what it means, its type, its bounds; and the conversion by these rules."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..encode.templates import MAX_PROMPT
from ..errors import MuseVError, nearest, shown
from ..values import is_none, scalar


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What a field of `Task` means and accepts; kept in the field's metadata, listed in `tasks.FIELDS`."""

    kind: type  # str, int, float, bool or Path
    help: str  # one sentence: unit, range, which way it pushes the result
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive lower bound
    choices: tuple[str, ...] = ()
    many: bool = False  # a tuple; written as one value, a YAML list, or (not for paths) a comma list
    option: str | None = None  # the original's command line name where it is not the field's
    affects_result: bool = True  # part of the hash in `output_name`


def field(default: Any, kind: type, help: str, **rules: Any) -> Any:
    """A dataclass field with a default and a `FieldInfo`."""
    return dataclasses.field(default=default, metadata={"info": FieldInfo(kind=kind, help=help, **rules)})


def field_infos(task: Any) -> dict[str, FieldInfo]:
    """The rules of every field of a dataclass or of one of its instances, by name."""
    return {f.name: f.metadata["info"] for f in dataclasses.fields(task)}


def convert(name: str, value: Any, info: FieldInfo, default: Any) -> Any:
    """`value` as the type of the field `name`, within its bounds; what stands for nothing becomes `default`.

    A field of one value whose default is not None cannot be nothing.

    Raises:
        MuseVError: of another type, none of the choices, or out of bounds.
    """
    if info.many:
        if isinstance(value, str) and info.kind is not Path:
            value = value.split(",")
        one = not isinstance(value, Iterable) or isinstance(value, (str, os.PathLike, Mapping))
        items: list[Any] = [value] if one else list(value)
        if info.kind is str:
            items = [item.strip() if isinstance(item, str) else item for item in items]
        return tuple(scalar(name, item, info.kind) for item in items if not is_none(item)) or default
    if default is None and is_none(value):
        return None
    result = scalar(name, value, info.kind)
    if info.kind is str and len(result) > MAX_PROMPT:
        raise MuseVError(f"{name}: at most {MAX_PROMPT:,} characters, got {len(result):,}.")
    if info.choices and result not in info.choices:
        wanted = ", ".join(info.choices)
        raise MuseVError(f"{name}: expected one of {wanted}, got {shown(value)}.{nearest(result, info.choices)}")
    if not (
        (info.low is None or result >= info.low)
        and (info.above is None or result > info.above)
        and (info.high is None or result <= info.high)
    ):
        bounds = (("at least", info.low), ("above", info.above), ("at most", info.high))
        wanted = " and ".join(f"{word} {bound:,.10g}" for word, bound in bounds if bound is not None)
        raise MuseVError(f"{name}: expected a number {wanted}, got {shown(value)}.")
    return result
