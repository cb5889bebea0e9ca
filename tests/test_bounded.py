"""The tool that holds readers to their promise notices when it is broken."""

import pickle
import subprocess
import sys
import time

import pytest
from support import bounded as tool
from support.bounded import bounded

from musev_core.errors import CheckpointError


def test_results_and_sentences_come_back():
    assert bounded(lambda: 7) == 7
    error = CheckpointError("this file is damaged")
    assert bounded(lambda: _raise(error)) is error


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), ValueError("no sentence of ours")])
def test_other_exceptions_pass_through(error):
    with pytest.raises(type(error)):
        bounded(lambda: _raise(error))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _raise(CheckpointError(" ")), "without words"),
        (lambda: subprocess.run([sys.executable, "-c", ""], check=True), "started a process"),
        (lambda: pickle.loads(pickle.dumps(CheckpointError)), "ran code"),
        (lambda: _spend(1.2), "s of CPU"),
        (lambda: b"x" * 200_000_000, "MB of memory"),  # more than an earlier test may have left to the heap
    ],
)
def test_broken_promises_fail(call, message, monkeypatch):
    monkeypatch.setattr(tool, "CPU_SECONDS", 1.0)
    monkeypatch.setattr(tool, "MEMORY", 30_000_000)
    with pytest.raises(AssertionError, match=message):
        bounded(call)


def test_what_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(tool, "_STUCK_AFTER", 0.2)
    with pytest.raises(pytest.fail.Exception, match="still running"):
        bounded(lambda: _spend(60))


def test_the_files_own_size_is_granted(monkeypatch):
    monkeypatch.setattr(tool, "MEMORY", 30_000_000)
    assert len(bounded(lambda: b"x" * 40_000_000, size=40_000_000)) == 40_000_000


def _raise(error):
    raise error


def _spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
