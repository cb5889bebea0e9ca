"""YAML files of the user's own: no code, and nothing that grows when it is expanded."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import MuseVError, shown
from .file_names import existing_file

MAX_BYTES = 1_000_000  # of a file; a task has about a thousand
MAX_VALUES = 50_000  # keys included, every alias (*name) counted as what it stands for
MAX_TEXT = 4 * MAX_BYTES  # characters of all texts, counted likewise
MAX_DEPTH = 30
MAX_KEY = 1024  # characters, as YAML itself has it for ordinary keys

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_SWITCHES = {
    form: value
    for words, value in ((("true", "yes", "on"), True), (("false", "no", "off"), False))
    for word in words
    for form in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(path: Path, *, what: str, example: str) -> Any:
    """The content of a YAML file: dicts with text keys, lists, text, whole numbers, numbers, switches and None.

    Words are read as YAML 1.2 has them, and yes, no, on and off as switches: dates, times like 1:30 and numbers like
    0123 or 1_000 stay text. `<<` merges; a key twice in one mapping is an error, as are other tags than `!!str`.

    Args:
        what: what the messages call the file, e.g. "task file".
        example: such a file as YAML, shown to those who bring Python, which the original ran for this purpose.

    Raises:
        MuseVError: Python code, an unreadable file, not YAML, or beyond the bounds above.
    """
    import yaml

    if path.suffix.lower() == ".py":
        raise MuseVError(f"{path} is Python code, which is never executed. Write the {what} as YAML:\n{example}")
    text = _text(path, what)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its events are used
    try:
        return _Reader(yaml.parse(text, Loader=loader)).document()
    except MuseVError as error:
        raise MuseVError(f"The {what} {path} cannot be used: {error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: \U escapes beyond Unicode
        raise MuseVError(f"The {what} {path} is not valid YAML: {_told(error)}.") from error


def _text(path: Path, what: str) -> str:
    try:
        with existing_file(path, what).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise MuseVError(f"The {what} {path} cannot be read ({error.strerror or error}).") from error
    if len(content) > MAX_BYTES:
        raise MuseVError(f"The {what} {path} cannot be read (it is larger than {MAX_BYTES:,} bytes).")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MuseVError(
            f"The {what} {path} is not valid YAML: line {line} is not UTF-8 text. Save it with the encoding UTF-8."
        ) from error


def _told(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return where + " ".join(str(getattr(error, "problem", None) or error).split())


class _Reader:
    """Values from the events of PyYAML's parser, which does not recurse."""

    def __init__(self, events: Iterator[Any]):
        self._events = events
        self._anchors: dict[str, tuple[Any, int, int]] = {}  # complete values: none can contain itself
        self._values = self._characters = 0
        self._line = 0

    def document(self) -> Any:
        """The only document; None if there is none."""
        from yaml import DocumentStartEvent, StreamEndEvent

        value = None
        for number in range(3):
            event = self._next()
            while not isinstance(event, (DocumentStartEvent, StreamEndEvent)):
                event = self._next()
            if isinstance(event, StreamEndEvent):
                break
            if number:
                raise self._error("a second document (---) begins; keep one per file")
            value = self._value(self._next(), 0)
        return value

    def _next(self) -> Any:
        event = next(self._events)
        self._line = event.start_mark.line + 1
        return event

    def _error(self, message: str) -> MuseVError:
        return MuseVError(f"line {self._line}: {message}.")

    def _value(self, event: Any, depth: int, *, is_key: bool = False) -> Any:
        from yaml import AliasEvent, ScalarEvent, SequenceStartEvent

        values, characters = self._values, self._characters
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error(f"*{event.anchor} stands for nothing before it, or for what it is itself a part of")
            value, more, longer = self._anchors[event.anchor]
            self._count(more, longer)
            return value
        if depth > MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} lists or mappings lie in each other")
        self._count(1, 0)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event, is_key)
        elif isinstance(event, SequenceStartEvent):
            value = self._list(event, depth)
        else:
            value = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - values, self._characters - characters
        return value

    def _count(self, values: int, characters: int) -> None:
        self._values += values
        self._characters += characters
        if self._values > MAX_VALUES or self._characters > MAX_TEXT:
            raise self._error(
                f"too large, with every alias (*name) written out: at most {MAX_VALUES:,} values and {MAX_TEXT:,} "
                "characters"
            )

    def _scalar(self, event: Any, is_key: bool) -> Any:
        text = event.value
        self._check_tag(event, "str")
        self._count(0, len(text))
        if "\0" in text or not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._error(f"{shown(text)} holds a character that is none")
        return _plain(text) if event.implicit[0] and not is_key else text

    def _check_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{kind}"):
            raise self._error(f"the tag {shown(event.tag)} is not known here; leave it out")

    def _list(self, event: Any, depth: int) -> list[Any]:
        from yaml import SequenceEndEvent

        self._check_tag(event, "seq")
        items = []
        while not isinstance(item := self._next(), SequenceEndEvent):
            items.append(self._value(item, depth + 1))
        return items

    def _mapping(self, event: Any, depth: int) -> dict[str, Any]:
        from yaml import MappingEndEvent

        self._check_tag(event, "map")
        fields: dict[str, Any] = {}
        while not isinstance(key_event := self._next(), MappingEndEvent):
            key = self._value(key_event, depth + 1, is_key=True)
            if not isinstance(key, str) or len(key) > MAX_KEY:
                raise self._error(f"expected a key of up to {MAX_KEY} characters, got {shown(key)}")
            if key in fields:
                raise self._error(f"the key {shown(key)} stands twice in one mapping; keep one of them")
            fields[key] = self._value(self._next(), depth + 1)
        return self._merged(fields.pop("<<", {})) | fields

    def _merged(self, value: Any) -> dict[str, Any]:
        """Of a mapping or a list of them, in which the first has the word."""
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise self._error(f"<< takes a mapping or a list of them, got {shown(value)}")
        return {key: inner for part in reversed(parts) for key, inner in part.items()}


def _plain(text: str) -> Any:
    """What a word without quotes stands for."""
    if text in _NULL:
        return None
    if text in _SWITCHES:
        return _SWITCHES[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NO_NUMBER.fullmatch(text):
        return float(text.lower().replace(".", ""))
    if _NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text
