"""Progress bars for a terminal: loading, steps and windows, frames."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from ..pipeline import Observer

log = logging.getLogger(__name__)


class TerminalProgress:
    """Bars on standard error; where that is no terminal, one line per stage."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._run = ""
        self._counts_frames = False

    def loading(self, name: str) -> None:
        """A network is about to be loaded."""
        self._open(f"loading {name}", 0)

    def observer(self, num_steps: dict[str, int]) -> Observer:
        """An observer for the pipeline; `num_steps` of the run "first frame" and of all others ("video")."""

        def window(run: str, step: int, done: int, total: int) -> None:
            if run != self._run:
                if self._counts_frames:
                    log.debug("%s", run)
                else:
                    steps = num_steps["first frame" if run == "first frame" else "video"]
                    self._open(run, steps * total)
                self._run = run
            at = f"step {step + 1}, window {min(done + 1, total)}/{total}"
            if self._counts_frames:
                self._bar.set_postfix_str(f"{run}: {at}")
            else:
                self._bar.n = step * total + done
                self._bar.set_postfix_str(at)

        return Observer(on_window=window)

    def writing(self, parts: Iterable[Tensor], first: int, total: int) -> Iterator[Tensor]:
        """Passes frames on while counting them from `first`; the runs of the pipeline are told beside the count."""
        self._open(f"making {total} frames", total, first, unit=" frames")
        self._counts_frames = True
        for part in parts:
            yield part
            self._bar.update(len(part))
        self.close()

    def close(self) -> None:
        """Ends the present bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._run, self._counts_frames = None, "", False

    def _open(self, title: str, total: int, done: int = 0, *, unit: str = "it") -> None:
        from tqdm import tqdm

        self.close()
        if not sys.stderr.isatty():
            log.info("%s", title)
        layout = "{desc}" if total == 0 else None
        self._bar = tqdm(
            total=total or None,
            initial=done,
            desc=title,
            unit=unit,
            bar_format=layout,
            disable=None,
            dynamic_ncols=True,
        )
