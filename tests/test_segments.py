"""Videos in the making: finished frames are safe, and another run goes on behind them."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from musev_core.errors import MuseVError
from musev_core.frames import segments
from musev_core.frames.image_files import load_image
from musev_core.frames.joining import join_videos
from musev_core.frames.run_file import RunFile, differences, run_folder, unfinished
from musev_core.frames.segments import ResumableVideo
from musev_core.frames.tensor_folder import TensorFolder
from musev_core.frames.video import frame_rate, read_video, write_video
from musev_core.locks import is_free
from musev_core.tasks.making import Job, Output, open_jobs
from musev_core.tasks.task import Task

FACTS = {"prompt": "a girl", "networks": {"unet": "musev"}}
KINDS = pytest.mark.parametrize("name", ["film.mp4", "film.gif", "film.webp", "film"])


def clip(n: int, size: int = 32) -> torch.Tensor:
    """Frames that differ, with a gradient that moves."""
    ramp = torch.arange(size)
    frames = [
        (ramp[:, None, None] * 3 + ramp[None, :, None] * 2 + torch.tensor([0, 60, 120]) + 7 * i) for i in range(n)
    ]
    return torch.stack(frames).remainder(256).to(torch.uint8)


class Killed(BaseException):
    """A run that ends in the middle."""


def make(path: Path, frames: torch.Tensor, *, stop: int | None = None, facts=FACTS, choices=(), **options):
    """A run which makes the missing frames, a few at a time, and is stopped before the frame `stop`."""
    with ResumableVideo(path, fps=8, facts=facts, **options) as video:
        first = video.begin(len(frames), dict(choices), {"torch": "2"})
        for start in range(first, len(frames), 5):
            if stop is not None and start + 5 > stop:
                video.write(frames[start:stop])
                raise Killed
            video.write(frames[start : start + 5])
    return video, first


def stopped(*args, **options) -> None:
    with pytest.raises(Killed):
        make(*args, **options)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def shown(path: Path) -> torch.Tensor:
    """The frames of a file; FFmpeg does not decode animated WebP."""
    if path.suffix != ".webp":
        return read_video(path).frames
    with Image.open(path) as file:
        return torch.stack([torch.from_numpy(np.array(frame.convert("RGB"))) for frame in ImageSequence.Iterator(file)])


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT", 8)


@KINDS
def test_a_video_in_segments_is_the_video(tmp_path, name):
    frames = clip(19)
    video, first = make(tmp_path / name, frames)
    plain = write_video(tmp_path / f"plain{video.path.suffix}", frames, fps=8)
    made = shown(video.path)
    assert first == 0 and video.path == tmp_path / name and names(tmp_path) == sorted([name, plain.name])
    if name == "film.mp4":  # a key frame every segment, so the bits differ; x264 at crf 17
        assert (made.float() - frames.float()).abs().mean() < 12 and made.shape == frames.shape
    else:
        assert torch.equal(made, shown(plain))


@KINDS
@pytest.mark.parametrize("stop", [8, 12, 18])
def test_another_run_goes_on_behind_the_finished_frames(tmp_path, name, stop, caplog):
    frames = clip(19)
    unbroken, _ = make(tmp_path / f"unbroken-{name}", frames)
    stopped(tmp_path / name, frames, stop=stop)
    kept = stop // 8 * 8 if name.endswith("mp4") else stop
    assert f"{kept} of 19 frames are finished" in caplog.text and f"goes on from frame {kept}" in caplog.text
    assert not (tmp_path / name).exists()
    video, first = make(tmp_path / name, frames)
    assert first == kept
    assert torch.equal(shown(video.path), shown(unbroken.path))
    assert names(tmp_path) == sorted([name, f"unbroken-{name}"])


def test_segments_are_joined_without_a_seam(tmp_path):
    import av

    video, _ = make(tmp_path / "film.mp4", clip(19))
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    assert times == [i / 8 for i in range(19)]
    assert frame_rate(video.path) == 8


def test_what_is_finished_of_an_mp4_can_be_watched(tmp_path, monkeypatch):
    frames = clip(30)
    partial = tmp_path / "film.partial.mp4"
    stopped(tmp_path / "film.mp4", frames, stop=21)
    assert len(read_video(partial).frames) == 16
    # while the run goes on, too, but not after every segment
    now = time.monotonic()
    monkeypatch.setattr(segments.time, "monotonic", lambda: now)
    with ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video:
        video.begin(30, {}, {})
        video.write(frames[16:24])
        assert len(read_video(partial).frames) == 16
        now += 61
        video.write(frames[24:29])
        assert len(read_video(partial).frames) == 16
        video.write(frames[29:])
        assert names(video.folder) == [".lock", *(f"{i:06d}.mp4" for i in (0, 8, 16, 24)), "run.json"]
    assert names(tmp_path) == ["film.mp4"] and len(read_video(video.path).frames) == 30


def test_a_partial_file_is_joined_anew_after_a_minute(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(segments.time, "monotonic", lambda: now)
    with ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video:
        video.begin(30, {}, {})
        for start, seconds, shown in ((0, 61, 8), (8, 30, 8), (16, 32, 24)):
            now += seconds
            video.write(clip(30)[start : start + 8])
            assert len(read_video(video.partial).frames) == shown
        video.write(clip(30)[24:])


def test_a_run_which_fails_at_once_leaves_nothing(tmp_path):
    stopped(tmp_path / "film.mp4", clip(19), stop=3)
    with pytest.raises(Killed), ResumableVideo(tmp_path / "other.mp4", fps=8, facts=FACTS):
        raise Killed
    assert names(tmp_path) == []


def test_a_run_which_fails_at_once_keeps_what_others_have_made(tmp_path):
    stopped(tmp_path / "film.mp4", clip(19), stop=12)
    with pytest.raises(Killed), ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS):
        raise Killed
    assert make(tmp_path / "film.mp4", clip(19))[1] == 8


def test_another_request_of_the_same_name_is_told_what_changed(tmp_path):
    path, frames = tmp_path / "film.mp4", clip(19)
    stopped(path, frames, stop=12)
    other = {"prompt": "a boy", "networks": {"unet": "musev"}, "steps": 4}
    with pytest.raises(
        MuseVError,
        match='another request: prompt was "a girl" and is "a boy", steps was not given and is 4. Finish that one',
    ):
        make(path, frames, facts=other)
    with pytest.raises(MuseVError, match='networks.unet was "musev" and is "pose"'):
        make(path, frames, facts={**FACTS, "networks": {"unet": "pose"}}, resume=False)
    with pytest.raises(MuseVError, match="images was false and is true"):
        make(path, frames, images=True)
    with pytest.raises(MuseVError, match="an unfinished video of 19 frames, and this one has 20"):
        make(path, clip(20))
    assert (path.parent / "film.mp4.parts" / "000000.mp4").exists()
    assert make(path, frames, facts=other, overwrite=True)[1] == 0


def test_beginning_anew(tmp_path, caplog):
    path, frames = tmp_path / "film.mp4", clip(19)
    stopped(path, frames, stop=12)
    caplog.clear()
    stopped(path, frames, stop=12, resume=False)
    assert "8 of 19 frames are finished" in caplog.text and "goes on" not in caplog.text
    assert make(path, frames.flip(0), resume=False)[1] == 0
    assert read_video(path).frames[0].float().mean() == pytest.approx(frames[-1].float().mean(), abs=8)
    with pytest.raises(MuseVError, match="exists already"):
        make(path, frames)
    stopped(path, frames, stop=12, overwrite=True)
    assert read_video(path).frames[0].float().mean() == pytest.approx(frames[-1].float().mean(), abs=8)
    assert make(path, frames, overwrite=True)[1] == 8


def test_choices_of_the_first_run_stay(tmp_path):
    stopped(tmp_path / "film.mp4", clip(19), stop=12, choices={"decode_batch": 4})
    assert ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS).choices == {"decode_batch": 4}
    video, _ = make(tmp_path / "film.mp4", clip(19), choices={"decode_batch": 16})
    assert video.choices == {"decode_batch": 4}


def test_the_runs_of_a_video_are_written_down(tmp_path, caplog):
    path = tmp_path / "film.mp4"
    stopped(path, clip(19), stop=12)
    with pytest.raises(Killed), ResumableVideo(path, fps=8, facts=FACTS) as video:
        video.begin(19, {}, {"torch": "3"})
        raise Killed
    run = RunFile.read(video.folder)
    assert [one["from_frame"] for one in run.runs] == [0, 8] and run.owner.startswith(f"process {os.getpid()} on ")
    assert 'frames which may differ a little: torch was "2" and is "3"' in caplog.text
    assert [(target, one.frames) for target, one in unfinished(tmp_path)] == [(path, 19)]


def test_two_runs_of_one_name(tmp_path):
    stopped(tmp_path / "film.mp4", clip(19), stop=12)
    code = (
        "import sys, time; from pathlib import Path; from musev_core.locks import alone_with\n"
        "with alone_with(Path(sys.argv[1]), 'making a video'): print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "film.mp4.parts")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(MuseVError, match=rf"making a video \(process {os.getpid()} on .*film.mp4.parts"):
            make(tmp_path / "film.mp4", clip(19))
    finally:
        other.kill()
        other.wait()
    assert make(tmp_path / "film.mp4", clip(19))[1] == 8


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"facts": 3, "frames": 1, "segment": 8, "choices": {}}', "9" * 5000]
)
def test_a_damaged_run_file(tmp_path, content):
    path = tmp_path / "film.mp4"
    stopped(path, clip(19), stop=12)
    (tmp_path / "film.mp4.parts" / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(MuseVError, match=r"run\.json.*Remove the folder, or begin anew with overwrite"):
        make(path, clip(19))
    assert list(unfinished(tmp_path)) == []
    assert make(path, clip(19), overwrite=True)[1] == 0


def test_a_segment_that_was_removed_is_made_again(tmp_path):
    frames, path = clip(30), tmp_path / "film.mp4"
    unbroken, _ = make(tmp_path / "unbroken.mp4", frames)
    stopped(path, frames, stop=29)
    (tmp_path / "film.mp4.parts" / "000008.mp4").unlink()
    assert make(path, frames)[1] == 8
    assert torch.equal(read_video(path).frames, read_video(unbroken.path).frames)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, caplog):
    path, frames = tmp_path / "film.mp4", clip(30)

    def full(self, rgb):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(MuseVError, match="film.mp4' cannot be written: No space left on device"),
        monkeypatch.context() as m,
        ResumableVideo(path, fps=8, facts=FACTS) as video,
    ):
        video.begin(30, {}, {})
        video.write(frames[:20])
        m.setattr("musev_core.frames.encoders.Encoder.add", full)
        video.write(frames[20:])
    assert "16 of 30 frames are finished and kept" in caplog.text
    assert make(path, frames)[1] == 16


def test_a_disk_without_room_is_found_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=20_000_000))
    with pytest.raises(MuseVError, match=r"Only 20 MB are free on the disk of .*film.mp4', and 50 are needed"):
        make(tmp_path / "film.mp4", clip(9))
    assert names(tmp_path) == []


def test_frames_that_do_not_fit(tmp_path):
    with (
        pytest.raises(MuseVError, match="has 9 frames; more came"),
        ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video,
    ):
        video.begin(9, {}, {})
        video.write(clip(10))
    with (
        pytest.raises(MuseVError, match="has 9 frames, and only 8 came"),
        ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video,
    ):
        video.begin(9, {}, {})
        video.write(clip(8))
    with (
        pytest.raises(MuseVError, match=r"after begin\(\)"),
        ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video,
    ):
        video.write(clip(8))
    assert make(tmp_path / "film.mp4", clip(9))[1] == 8


# ---- outputs


def test_a_video_with_its_frames(tmp_path):
    frames = clip(19)
    stopped(tmp_path / "film.mp4", frames, stop=12, images=True)
    video, first = make(tmp_path / "film.mp4", frames, images=True)
    assert first == 12 and names(tmp_path) == ["film", "film.mp4"]
    assert names(tmp_path / "film") == [f"{i:04d}.png" for i in range(19)]
    assert torch.equal(read_video(tmp_path / "film").frames, frames)
    plain = write_video(tmp_path / "plain.mp4", frames, fps=8)
    assert torch.equal(read_video(video.path).frames, read_video(plain).frames)


def test_a_finished_video_that_is_not_in_its_place_yet_is_never_removed(tmp_path, monkeypatch):
    def killed(video, suffix):
        if suffix:
            raise Killed
        publish(video, suffix)

    publish, frames = ResumableVideo._publish, clip(9)
    with monkeypatch.context() as patch:
        patch.setattr(ResumableVideo, "_publish", killed)
        stopped(tmp_path / "film.mp4", frames, images=True)
    assert names(tmp_path) == ["film", "film.mp4.parts"]
    with (
        pytest.raises(Killed),
        ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS, images=True) as video,
    ):
        assert video.begin(9, {}, {}) == 9
        raise Killed
    assert make(tmp_path / "film.mp4", frames, images=True)[1] == 9
    assert names(tmp_path) == ["film", "film.mp4"] and len(read_video(tmp_path / "film.mp4").frames) == 9


def test_a_folder_that_is_replaced_keeps_what_is_no_frame(tmp_path):
    make(tmp_path / "film", clip(19))
    (tmp_path / "film" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "film" / "more").mkdir()
    (tmp_path / "film" / "more" / "a.png").write_bytes(b"mine")
    make(tmp_path / "film", clip(9).flip(0), overwrite=True)
    assert names(tmp_path / "film") == [*(f"{i:04d}.png" for i in range(9)), "more", "notes.txt"]
    assert (tmp_path / "film" / "more" / "a.png").read_bytes() == b"mine" and names(tmp_path) == ["film"]
    assert torch.equal(load_image(tmp_path / "film" / "0000.png"), clip(9)[-1:])


def test_somebody_elses_file_is_not_replaced(tmp_path, caplog):
    with ResumableVideo(tmp_path / "film.mp4", fps=8, facts=FACTS) as video:
        video.begin(9, {}, {})
        video.write(clip(9))
        (tmp_path / "film.mp4").write_bytes(b"mine")
    assert video.path == tmp_path / "film-2.mp4" and len(read_video(video.path).frames) == 9
    assert (tmp_path / "film.mp4").read_bytes() == b"mine" and "was created meanwhile" in caplog.text


DISK = ((os, "replace"), (os, "unlink"), (os, "link"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"))


class LastOperation:
    """Lets `left` changes of the disk happen, and none after them."""

    def __init__(self, monkeypatch, left: int):
        self.left = left
        for owner, function in DISK:
            monkeypatch.setattr(owner, function, self.counted(getattr(owner, function)))

    def counted(self, function):
        def call(*args, **kwargs):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return function(*args, **kwargs)

        return call


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "images"), [("film.mp4", False), ("film.mp4", True), ("film.gif", False), ("film", False)]
)
def test_a_kill_at_any_change_of_the_disk(tmp_path, name, images, overwrite, monkeypatch):
    """Whatever is the last thing that a run does, the next one finishes the video, and nothing is lost."""
    frames = clip(11)
    make(tmp_path / "unbroken" / name, frames, images=images)
    wanted = contents(tmp_path / "unbroken")
    folder = tmp_path / "killed"
    for count in range(1_000):
        folder.mkdir()
        if overwrite:
            make(folder / name, clip(3), images=images, facts={"prompt": "the old one"})
        if (folder / "film").is_dir():
            (folder / "film" / "notes.txt").write_bytes(b"mine")
            wanted["film/notes.txt"] = b"mine"
        with monkeypatch.context() as patch:
            last = LastOperation(patch, count)
            with contextlib.suppress(Killed):
                make(folder / name, frames, images=images, overwrite=overwrite)
            left = last.left
        if overwrite or not (folder / name).exists() or RunFile.exists(folder / name):
            make(folder / name, frames, images=images, overwrite=overwrite)
        made = {file: data for file, data in contents(folder).items() if file != f"{name}.parts/.lock"}
        assert made == wanted, count
        shutil.rmtree(folder)
        if left > 0:  # the run came to its end
            break
    assert 10 < count < 999


# ---- what else is in the folder


def test_tensors_by_name(tmp_path):
    kept = TensorFolder(tmp_path)
    tensor = torch.arange(6.0).reshape(2, 3).half()
    assert "shot 1" not in kept and kept.get("shot 1") is None
    kept["shot 1"] = tensor
    assert torch.equal(TensorFolder(tmp_path)["shot 1"], tensor) and kept["shot 1"].dtype == torch.float16
    assert list(kept) == ["shot 1"] and len(kept) == 1 and names(tmp_path) == ["shot-1.safetensors"]
    assert torch.equal(kept.setdefault("shot 1", torch.zeros(1)), tensor)
    (tmp_path / "shot-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(MuseVError, match="shot-1.safetensors' cannot be read.*begin the video anew"):
        kept["shot 1"]
    del kept["shot 1"]
    with pytest.raises(KeyError):
        del kept["shot 1"]


def test_differences_are_told_by_name():
    assert differences(FACTS, json.loads(json.dumps(FACTS))) == ""
    assert differences({"a": 1}, {"b": "x" * 99}) == f'a was 1 and is not given, b was not given and is "{"x" * 56}...'


# ---- which videos a task goes on with


def jobs(folder: Path, name: str, repeats: int = 1, first_seed: int = 100) -> list[Job]:
    task = Task(name=name, prompt="a girl", height=64, width=64, n_repeat=repeats)
    new = itertools.count(first_seed)
    return list(
        open_jobs(
            task, Output(folder), model="m", networks={}, random_seed=lambda: next(new), turns=itertools.repeat(True)
        )
    )


def stop(job: Job) -> None:
    with pytest.raises(Killed), job.video as video:
        video.begin(19, {"seed": job.seed}, {})
        video.write(clip(12))
        raise Killed


def test_a_task_without_a_seed_goes_on_with_its_own_unfinished_videos(tmp_path):
    (begun,) = jobs(tmp_path, "one")
    stop(begun)
    assert [job.seed for job in jobs(tmp_path, "one", repeats=2, first_seed=7)] == [begun.seed, 7]
    assert jobs(tmp_path, "one")[0].video.path == begun.video.path
    # the same request under another name is another video
    (other,) = jobs(tmp_path, "two", first_seed=7)
    assert other.seed == 7 and other.video.path != begun.video.path


def test_a_video_on_which_another_run_works_is_left_to_it(tmp_path):
    (begun,) = jobs(tmp_path, "one")
    stop(begun)
    code = (
        "import sys, time; from pathlib import Path; from musev_core.locks import alone_with\n"
        "with alone_with(Path(sys.argv[1]), 'making a video'): print('locked', flush=True); time.sleep(60)"
    )
    folder = run_folder(begun.video.path)
    assert is_free(folder)
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n" and not is_free(folder)
        (new,) = jobs(tmp_path, "one", first_seed=7)
        assert new.seed == 7 and new.video.path != begun.video.path
    finally:
        other.kill()
        other.wait()
    assert jobs(tmp_path, "one")[0].video.path == begun.video.path


def test_parts_from_multiples_of_a_segment_join_to_the_very_file(tmp_path):
    frames = clip(27)
    whole, _ = make(tmp_path / "whole.mp4", frames)
    parts = [make(tmp_path / f"{a}.mp4", frames[a:b])[0].path for a, b in ((0, 16), (16, 27))]
    join_videos(tmp_path / "joined.mp4", parts, fps=8)
    assert (tmp_path / "joined.mp4").read_bytes() == whole.path.read_bytes()
