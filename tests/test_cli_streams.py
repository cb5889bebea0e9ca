"""The command line beside closed, leaving and narrow consoles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUSEV = [sys.executable, "-m", "musev_core.cli"]
LISTING = [*MUSEV, "models", "download"]  # says a line per name, asks nobody
NARROW = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII only


def end_of(program: list[str], **options) -> tuple[int, bytes]:
    """Exit code and standard error of a program whose output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(program, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, **options)
    finally:
        os.close(write)
    return done.returncode, done.stderr


def test_a_reader_who_leaves_does_not_end_the_work(tmp_path):
    witness = tmp_path / "witness"
    code = (
        "import logging, sys; from pathlib import Path; from tqdm import tqdm\n"
        "from musev_core.cli.streams import steady_streams\n"
        "with steady_streams():\n"
        "    for _ in range(3): print('x' * 100_000); sys.stdout.write('y'); sys.stdout.writelines(['z'])\n"
        "    logging.basicConfig(stream=sys.stdout); logging.error('told')\n"
        "    list(tqdm(range(3), file=sys.stdout))\n"
        f"    Path({str(witness)!r}).touch()\n"
    )
    assert end_of([sys.executable, "-c", code]) == (0, b"")
    assert witness.exists()


def test_listing_into_a_closed_pipe_is_no_error():
    assert end_of(LISTING) == (0, b"")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "> /dev/full"])
def test_streams_that_are_closed_or_full_from_the_start(closed):
    if closed == "> /dev/full" and not Path("/dev/full").exists():
        closed = ">&-"
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *LISTING], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_console_that_cannot_show_a_name_shows_its_code():
    name = "gone-\u821e\u00e4\U0001f600.safetensors"
    for environment in (NARROW, {**os.environ, "PYTHONIOENCODING": "cp1252"}):
        done = subprocess.run(
            [*MUSEV, "models", "check", name], cwd=ROOT, env=environment, capture_output=True, encoding="cp1252"
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "gone-\\" in done.stderr
    code = f"from musev_core.cli.streams import steady_streams\nwith steady_streams(): print({ascii(name)})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=NARROW, capture_output=True, encoding="ascii")
    assert done.stdout == "gone-\\u821e\\xe4\\U0001f600.safetensors\n"
