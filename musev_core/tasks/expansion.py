"""`${.key}` and `x|y` in the fields of a task: what they stand for, found out before it grows."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from ..errors import MuseVError, nearest, shown

MAX_TASKS = 1000  # of a file, with all alternatives
MAX_TEXT = 10_000  # characters of a value made of references; lists count what is in them
MAX_DEPTH = 50  # references from one to the next, and lists around them

_SIBLING = re.compile(r"\$\{\.(\w+)\}")


def with_references(fields: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The fields with every `${.key}` replaced by the sibling field, and the keys that were referred to.

    Raises:
        MuseVError: no such field, another kind of `${`, a circle, or beyond the bounds above.
    """
    references = _References(fields)
    return {key: references.value(key) for key in fields}, references.used


class _References:
    def __init__(self, fields: Mapping[str, Any]):
        self._fields = fields
        self.used: set[str] = set()
        self._known: dict[str, Any] = {}
        self._trail: list[str] = []  # the keys being resolved
        self._depth = 0  # of them and the lists around them

    def value(self, key: str) -> Any:
        if key not in self._known:
            if key in self._trail:
                raise self._error(f"the references {' -> '.join([*self._trail, key])} go round in a circle")
            self._trail.append(key)
            self._known[key] = self._replaced(self._fields[key])
            self._trail.pop()
        return self._known[key]

    def _error(self, message: str) -> MuseVError:
        return MuseVError(f"{self._trail[0]}: {message}.")

    def _replaced(self, value: Any) -> Any:
        if self._depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} references (${{.key}}) lead from one to the next")
        self._depth += 1
        if isinstance(value, list) and _refers(value):
            value = self._list(value)
        elif isinstance(value, str) and "${" in value:
            whole = _SIBLING.fullmatch(value.strip())
            value = self._sibling(whole[1]) if whole else self._text(value)
        self._depth -= 1
        return value

    def _list(self, value: list[Any]) -> list[Any]:
        items, size = [], 0
        for item in value:
            items.append(self._replaced(item))
            size = self._bounded(size + _size(items[-1]))
        return items

    def _text(self, value: str) -> str:
        pieces, size, end = [], 0, 0
        for match in _SIBLING.finditer(value):
            pieces += [value[end : match.start()], str(self._sibling(match[1]))]
            size = self._bounded(size + len(pieces[-2]) + len(pieces[-1]))
            end = match.end()
        result = "".join([*pieces, value[end:]])
        self._bounded(len(result))
        if "${" in result:
            raise self._error(f"expected a reference like ${{.condition_images}}, got {shown(value)}")
        return result

    def _sibling(self, key: str) -> Any:
        if key not in self._fields:
            raise self._error(
                f"${{.{key}}} refers to a field which this task does not have.{nearest(key, self._fields)}"
            )
        self.used.add(key)
        return self.value(key)

    def _bounded(self, size: int) -> int:
        if size > MAX_TEXT:
            raise self._error(f"with its references written out it has more than {MAX_TEXT:,} characters")
        return size


def _refers(value: list[Any]) -> bool:
    return any(_refers(item) if isinstance(item, list) else isinstance(item, str) and "${" in item for item in value)


def _size(value: Any) -> int:
    """About the characters of a value written out."""
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _size(inner) for key, inner in value.items()) + 1
    return sum(map(_size, value)) + 1 if isinstance(value, list) else len(str(value))


def count_variants(fields: Mapping[str, Any]) -> int:
    """How many tasks the alternatives of all fields make; what is beyond 10^15 counts as that."""
    count = 1
    for value in fields.values():
        if isinstance(value, str):
            count = min(count * (value.count("|") + 1), 10**15)
    return count


def variants(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields with every `x|y` replaced by one of its alternatives: all combinations, the last field's first."""
    choices = [
        [part.strip() for part in value.split("|")] if isinstance(value, str) and "|" in value else [value]
        for value in fields.values()
    ]
    for values in product(*choices):
        yield dict(zip(fields, values, strict=True))
