"""The promise about anything that comes from outside: a good result or a sentence, soon, in little memory, alone."""

import gc
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CPU_SECONDS = 2.0
MEMORY = 1 << 30  # bytes, beyond the file's own size
_STUCK_AFTER = 10  # seconds of CPU; what does not end by itself must not hold up the tests
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CHILDREN = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn")
_FORBIDDEN = {*_CHILDREN, "os.startfile", "pty.spawn", "pickle.find_class"}

_seen: list[str] | None = None  # forbidden events, while something is watched


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in _FORBIDDEN:
        _seen.append(f"{event}{arguments}")


sys.addaudithook(_watch)


def bounded(call: Callable[[], Any], *, size: int = 0) -> Any:
    """What `call` returns, or the MuseVError which it raises; everything else fails the test.

    Import what it needs before: imports count. Works in the main thread; memory is looked at on Linux only.

    Args:
        size: bytes of the files that it reads, which it may hold in memory besides `MEMORY`.
    """
    global _seen
    gc.freeze()  # looking through all that the tests imported, 0.5 s each time, is no cost of this call
    before, seen, started = _peak_memory(reset=True), [], time.process_time()
    alarm = signal.signal(signal.SIGPROF, lambda *_: pytest.fail(f"was still running after {_STUCK_AFTER} s of CPU"))
    signal.setitimer(signal.ITIMER_PROF, _STUCK_AFTER)
    _seen = seen
    try:
        outcome = call()
    except Exception as error:
        if not _is_sentence(error):
            raise
        assert str(error).strip(), "an error without words"
        assert not _out_of_memory(error), f"asked for more memory than there is: {error}"
        outcome = error
    finally:
        gc.unfreeze()
        _seen = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, alarm)
    seconds, memory = time.process_time() - started, _peak_memory() - before
    assert not seen, f"started a process or ran code: {seen}"
    assert seconds <= CPU_SECONDS, f"took {seconds:.1f} s of CPU, then: {outcome!r:.200}"
    assert memory <= MEMORY + size, f"took {memory / 1e6:.0f} MB of memory, then: {outcome!r:.200}"
    return outcome


def _peak_memory(*, reset: bool = False) -> int:
    """Most bytes that this process held since it was last reset; 0 where the system does not tell."""
    if not _CLEAR_REFS.exists():
        return 0
    if reset:
        _CLEAR_REFS.write_text("5", encoding="utf-8")
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _is_sentence(error: Exception) -> bool:
    return any(kind.__name__ == "MuseVError" for kind in type(error).__mro__)  # ComfyUI's copy of the pack has its own


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
