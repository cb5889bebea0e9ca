"""Two processes and one place."""

import errno
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from musev_core.errors import MuseVError
from musev_core.locks import alone_with

ROOT = Path(__file__).parents[1]
HOLD = (
    "import sys; from pathlib import Path; from musev_core.locks import alone_with\n"
    "with alone_with(Path(sys.argv[1]), 'training'): print('held', flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("name", ["folder", "model.bin"])
def test_a_second_process_is_told_and_a_dead_one_forgotten(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with (
        pytest.raises(MuseVError, match=f"Another run is training in .*{name}' at this moment"),
        alone_with(path, "training"),
    ):
        pass
    with alone_with(tmp_path / "other", "training"):
        pass
    other.kill()
    other.communicate()
    with alone_with(path, "training"):
        pass


def test_a_place_without_rights_is_an_error_and_a_drive_without_locks_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    with pytest.raises(MuseVError, match="cannot be written"), alone_with(tmp_path / "file" / "x", "training"):
        pass

    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with alone_with(tmp_path, "training"):
        assert "start no second run there" in caplog.text
