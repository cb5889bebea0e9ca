"""Progress bars for a terminal: loading, steps and windows, writing."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from .pipeline import Observer

log = logging.getLogger(__name__)


class TerminalProgress:
    """Bars on standard error; where that is no terminal, one line per stage."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._run = ""

    def loading(self, name: str) -> None:
        """A network is about to be loaded."""
        self._open(f"loading {name}", 0)

    def observer(self, num_steps: dict[str, int]) -> Observer:
        """An observer for the pipeline; `num_steps` of the run "first frame" and of all others ("video")."""

        def window(run: str, step: int, done: int, total: int) -> None:
            if run != self._run:
                steps = num_steps["first frame" if run == "first frame" else "video"]
                self._open(run, steps * total)
                self._run = run
            self._bar.n = step * total + done
            self._bar.set_postfix_str(f"step {step + 1}, window {min(done + 1, total)}/{total}")

        return Observer(on_window=window)

    def writing(self, parts: Iterable[Tensor], total: int) -> Iterator[Tensor]:
        """Passes frames on while counting them."""
        self._open("decoding and writing", total)
        for part in parts:
            yield part
            self._bar.update(len(part))
        self.close()

    def close(self) -> None:
        """Ends the present bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._run = None, ""

    def _open(self, title: str, total: int) -> None:
        from tqdm import tqdm

        self.close()
        if not sys.stderr.isatty():
            log.info("%s", title)
        layout = "{desc}" if total == 0 else None
        self._bar = tqdm(total=total or None, desc=title, bar_format=layout, disable=None, dynamic_ncols=True)
