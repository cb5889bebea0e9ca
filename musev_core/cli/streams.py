"""Standard streams that never end the work: every console can show every name, and whoever reads may leave."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Inside, standard output and error take every text, and drop it once nobody can read it any more.

    Characters that a console cannot show are written as `\\xe4` or `\\u821e`. A stream that was closed from the start
    is none in Python; here it takes texts too.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_SteadyStream(stream or _nowhere()) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _SteadyStream:
    """A text stream whose reader may leave, as `| head -1` does: what is written then goes nowhere."""

    def __init__(self, stream: Any):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._let_go()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Points the stream's descriptor to nowhere, or Python would complain once more when it ends."""
        with contextlib.suppress(OSError), _nowhere() as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
