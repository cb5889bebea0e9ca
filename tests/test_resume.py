"""`musev generate` stopped and killed in the middle: the same command goes on, and nobody sees that from the film."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import published

from musev_core.frames.image_files import save_image
from musev_core.frames.run_file import RunFile
from musev_core.frames.video import read_video

FRAMES, SEGMENT = 41, 8
# A process that has made a film, so that all is imported, and forks itself for every run: a run begins at once.
RUNS = f"""
import json, os, sys
import torch
from musev_core.cli import main
from musev_core.frames import segments
from musev_core.tasks import making

torch.set_num_threads(1)  # a fork has no threads of its parent
segments.SEGMENT = making.PART = {SEGMENT}
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork() if request["forked"] else 0
    if pid == 0:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        status = main(request["arguments"])
        if request["forked"]:
            os._exit(status)
    print(pid, file=answers, flush=True)
    print(os.waitpid(pid, 0)[1] if pid else status, file=answers, flush=True)
"""


class Runs:
    """Runs of `musev generate` on small models."""

    def __init__(self, folder: Path, process: subprocess.Popen):
        self.folder, self.process = folder, process
        self.log = folder / "log.txt"

    def command(self, out: Path, *options: str) -> list[str]:
        f = self.folder
        return [
            *("generate", str(f / "tasks.yaml"), "--musev", str(f / "motion"), "--base", str(f / "base")),
            *("--image_encoder", str(f / "image_encoder"), "--output_dir", str(out), "--device", "cpu"),
            *("--video_num_inference_steps", "2", "--context_frames", "6", "--context_overlap", "2", *options),
        ]

    def begin(self, out: Path, *options: str, forked: bool = True) -> int:
        """The process number of a run that has begun."""
        self.log.unlink(missing_ok=True)
        request = {"arguments": self.command(out, *options), "log": str(self.log), "forked": forked}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def has_said(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text(encoding="utf-8")

    def wait(self) -> int:
        """The status of the run that was begun, as `os.waitpid` gives it."""
        return int(self.process.stdout.readline())

    def run(self, out: Path, *options: str) -> int:
        self.begin(out, *options)
        return os.waitstatus_to_exitcode(self.wait())

    def stop(self, out: Path, signal_: int, when, *options: str) -> int:
        """Sends a signal to a run as soon as `when()` holds."""
        pid = self.begin(out, *options)
        deadline = time.monotonic() + 60
        while not when() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(pid, signal_)
        return os.waitstatus_to_exitcode(self.wait())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    published.write_musev(folder / "motion")
    published.write_base(folder / "base")
    published.write_image_encoder(folder / "image_encoder")
    picture = torch.arange(64 * 64 * 3).reshape(1, 64, 64, 3) % 251
    save_image(folder / "picture.png", picture.to(torch.uint8))
    (folder / "tasks.yaml").write_text(
        f"- name: one\n  prompt: a b\n  condition_images: {folder / 'picture.png'}\n  time_size: {FRAMES - 1}\n",
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, "-c", RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield Runs(folder, process)
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def unbroken(runs):
    """The frames of a run that nobody stops, and how long it takes."""
    runs.begin(runs.folder / "unbroken", "--seed", "1", forked=False)
    assert runs.wait() == 0, runs.log.read_text(encoding="utf-8")
    begun = time.monotonic()
    assert runs.run(runs.folder / "unbroken", "--seed", "1", "--overwrite") == 0, runs.log.read_text(encoding="utf-8")
    seconds = time.monotonic() - begun
    (film,) = (runs.folder / "unbroken").iterdir()
    return read_video(film).frames, seconds


def parts(out: Path) -> dict[str, tuple[int, int]]:
    """The finished segments of a folder's unfinished video, and what tells each from one that was made anew."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.parts/0*.mp4")}


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_run_says_from_where_the_next_goes_on(runs, unbroken, tmp_path, signal_):
    frames, _ = unbroken
    assert runs.stop(tmp_path, signal_, lambda: len(parts(tmp_path)) >= 2, "--seed", "1") == 130
    (partial,) = tmp_path.glob("*.partial.mp4")
    count = len(read_video(partial).frames)
    said = runs.log.read_text(encoding="utf-8")
    assert f"{count} of {FRAMES} frames are finished and kept; {str(partial)!r} shows them" in said
    assert f"The same command goes on from frame {count}." in said and "Traceback" not in said
    assert count % SEGMENT == 0 and len(parts(tmp_path)) == count // SEGMENT
    kept = parts(tmp_path)
    # once more, before it has made anything
    assert runs.stop(tmp_path, signal_, lambda: runs.has_said("finished already"), "--seed", "1") == 130
    assert kept.items() <= parts(tmp_path).items()
    assert runs.run(tmp_path, "--seed", "1") == 0
    (film,) = tmp_path.iterdir()
    assert torch.equal(read_video(film).frames, frames)


def test_a_task_without_a_seed_goes_on_with_the_seed_it_began_with(runs, unbroken, tmp_path):
    runs.stop(tmp_path, signal.SIGKILL, lambda: len(parts(tmp_path)) >= 1)
    (folder,) = tmp_path.glob("*.parts")
    seed = RunFile.read(folder).choices["seed"]
    kept = len(parts(tmp_path)) * SEGMENT
    assert runs.run(tmp_path) == 0 and f"{kept} of {FRAMES} frames are finished already" in runs.log.read_text(
        encoding="utf-8"
    )
    (film,) = tmp_path.iterdir()
    assert f"_s{seed}_" in film.name
    assert runs.run(tmp_path) == 0 and len(list(tmp_path.iterdir())) == 2  # another video, with another seed


def test_another_request_of_the_same_name_is_refused(runs, unbroken, tmp_path):
    runs.stop(tmp_path, signal.SIGKILL, lambda: len(parts(tmp_path)) >= 1, "--seed", "1")
    kept = parts(tmp_path)
    assert runs.run(tmp_path, "--seed", "1", "--write_info") == 1
    assert runs.has_said('another request: write_info was false and is "one". Finish that one')
    assert parts(tmp_path) == kept
    assert runs.run(tmp_path, "--seed", "1", "--no-resume") == 0
    assert not runs.has_said("frames are finished already")


def killed_at_random(runs: Runs, unbroken, out: Path, count: int, seed: int) -> int:
    """Kills `count` runs at random moments, and says how many films were finished; each has to be the unbroken one."""
    frames, seconds = unbroken
    chance, films = random.Random(seed), 0
    kept: dict[str, tuple[int, int]] = {}
    for number in range(count + 1):
        pid = runs.begin(out, "--seed", "1")
        if number < count:
            time.sleep(chance.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):  # it is done
                os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(runs.wait())
        assert status in (0, -signal.SIGKILL), runs.log.read_text(encoding="utf-8")
        films_there = [film for film in out.glob("*.mp4") if ".partial" not in film.name]
        if status == 0 or (films_there and not any(map(RunFile.exists, films_there))):
            (film,) = films_there
            assert torch.equal(read_video(film).frames, frames)
            film.unlink()
            films, kept = films + 1, {}
        elif not films_there:
            now = parts(out)
            assert kept.items() <= now.items()  # none lost, none made twice
            kept = now
    return films


@pytest.mark.slow
def test_a_film_survives_kills_at_random_moments(runs, unbroken, tmp_path):
    count = int(os.environ.get("MUSEV_KILLS", "6"))
    assert killed_at_random(runs, unbroken, tmp_path, count=count, seed=count) > 1
