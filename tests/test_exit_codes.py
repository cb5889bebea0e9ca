"""What the command line says when something goes wrong, and whose error it is."""

import errno
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import published

from musev_core.cli import main
from musev_core.cli.failures import OURS, STOPPED, USERS, Failures, explain
from musev_core.errors import Cancelled, CheckpointError, MissingPackageError, MuseVError
from musev_core.frames.image_files import save_image
from musev_core.tasks.task import FIELDS
from musev_core.weights import check


@pytest.fixture(autouse=True)
def logging_as_before():
    level = logging.getLogger().level
    yield
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MuseVError("fps: too low"), USERS, "fps: too low"),
        (CheckpointError("x.bin is damaged"), USERS, "x.bin is damaged"),
        (MissingPackageError("needs onnxruntime"), USERS, "needs onnxruntime"),
        (KeyboardInterrupt(), STOPPED, "stopped"),
        (Cancelled("on request"), STOPPED, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "a.mp4"), USERS, "a.mp4: No space .*make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), USERS, "make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a.mp4"), USERS, "a.mp4: Permission denied .*another"),
        (OSError(errno.EROFS, "Read-only file system", "a.mp4"), USERS, "a.mp4: Read-only .*can be written"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), USERS, "a.png: No such file .*moved or deleted"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), USERS, "shorter name"),
        (OSError(errno.EIO, "Input/output error"), USERS, r"^Input/output error\.$"),
        (MemoryError(), USERS, "not enough memory.*--dtype float16"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), USERS, "not enough memory.*2 GiB"),
        (RuntimeError("MPS backend out of memory"), USERS, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), USERS, "not enough memory"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), USERS, "package 'torch'.*Install"),
        (ImportError("cannot import name", name="musev_core.x"), OURS, "This is a bug of MuseV"),
        (RecursionError("maximum recursion depth exceeded"), OURS, "a bug of MuseV.*RecursionError"),
        (KeyError("x"), OURS, "a bug of MuseV, not your mistake: KeyError: 'x'.*--debug"),
        (ValueError("many\nlines " + "x" * 1000), OURS, "ValueError: many lines x"),
        (OSError("without a number"), OURS, "a bug of MuseV"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_every_exception_is_one_sentence_and_somebodys(error, status, words):
    failure = explain(error)
    assert failure.status == status
    assert re.search(words, failure.sentence), failure.sentence
    assert "\n" not in failure.sentence and len(failure.sentence) < 800


def test_memory_that_does_not_suffice_is_recognised_where_it_really_happens():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert explain(caught.value).status == USERS


def broken(path):
    raise KeyError("left\nright")


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_one_sentence_with_the_traceback_on_request(debug, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(check, "check_path", broken)
    assert main(["models", "check", str(tmp_path), *(["--debug"] if debug else [])]) == OURS
    error = capsys.readouterr().err
    assert error.startswith("musev: This is a bug of MuseV, not your mistake: KeyError in test_exit_codes.py:")
    assert error.count("\n") == 1 and "--debug" in error
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == debug and all(record.levelno == logging.DEBUG for record in told)


def test_the_traceback_reaches_the_terminal(tmp_path):
    code = (
        "import sys; from musev_core.weights import check; check.check_path = None; from musev_core.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    for options, traceback in (([], False), (["--debug"], True)):
        command = [sys.executable, "-c", code, "models", "check", str(tmp_path), *options]
        run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
        assert run.returncode == OURS and ("Traceback" in run.stderr) == traceback
        assert run.stderr.splitlines()[-1].startswith("musev: This is a bug of MuseV")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["generate", "--frobnicate"], ["demo", "--frames", "many"], ["generate", "--n_cols"]],
)
def test_what_cannot_be_understood_is_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: musev" in capsys.readouterr().err


def test_stopping_is_told(tmp_path, capsys, monkeypatch):
    def pressed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check_path", pressed)
    assert main(["models", "check", str(tmp_path)]) == STOPPED
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "generate", "train run", "train extract", "train demo", "models check",
                                     "models download", "bench", "pose align"])  # fmt: skip
def test_every_command_has_debug(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "-h"])
    assert stop.value.code == 0 and "--debug" in capsys.readouterr().out


# ---- command lines


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    root = tmp_path_factory.mktemp("exit-codes")
    published.write_musev(root / "motion")
    published.write_base(root / "base")
    save_image(root / "picture.png", torch.full((1, 64, 64, 3), 99, dtype=torch.uint8))
    (root / "text.png").write_text("not a picture", encoding="utf-8")
    return root


def task(name: str, root: Path, more: str = "") -> str:
    return f"- name: {name}\n  prompt: p\n  condition_images: {root}/picture.png\n  time_size: 2\n{more}"


def generate(disk: Path, out: Path, text: str, *options: str) -> int:
    (out / "tasks.yaml").write_text(text, encoding="utf-8")
    models = ["--musev", str(disk / "motion"), "--base", str(disk / "base"), "--referencenet_model_name", "None"]
    numbers = ["--video_num_inference_steps", "1", "--seed", "1"]
    return main(
        ["generate", str(out / "tasks.yaml"), *models, *numbers, "--output_dir", str(out / "results"), *options]
    )


def results(out: Path) -> list[str]:
    return sorted(path.name.split("_")[0] for path in (out / "results").glob("*.mp4"))


def test_a_failing_task_does_not_end_the_others_and_is_named_at_the_end(disk, tmp_path, capsys):
    text = (
        task("bad", disk, "  fps: -1\n")
        + task("good", disk)
        + f"- {{name: broken, prompt: p, condition_images: {disk}/text.png, height: 64, width: 64, time_size: 2}}\n"
        + task("last", disk)
    )
    assert generate(disk, tmp_path, text, "--device", "cpu") == USERS
    assert results(tmp_path) == ["good", "last"]
    error = capsys.readouterr().err
    told = error[error.index("musev: ") :]
    assert "Task 'bad': fps: " in told and "Task 'broken': " in told and "text.png" in told
    assert "good" not in told and "last" not in told and "Traceback" not in error


def test_a_bug_in_one_task_does_not_end_the_others(disk, tmp_path, capsys, monkeypatch):
    from musev_core.tasks import making

    real = making.video_request

    def request(task, **options):
        if task.name == "first":
            raise KeyError("x")
        return real(task, **options)

    monkeypatch.setattr(making, "video_request", request)
    assert generate(disk, tmp_path, task("first", disk) + task("second", disk), "--device", "cpu") == OURS
    assert results(tmp_path) == ["second"] and "Task 'first': This is a bug of MuseV" in capsys.readouterr().err


def test_stopping_ends_all_tasks(disk, tmp_path, capsys, monkeypatch):
    from musev_core.tasks import making

    def request(task, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "video_request", request)
    assert generate(disk, tmp_path, task("first", disk) + task("second", disk), "--device", "cpu") == STOPPED
    assert results(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "cuda:7"], "'cuda:7' cannot be used here"),
        (["--device", "mps:3"], "'mps:3' cannot be used here"),
        (["--device", "nonsense"], "'nonsense' cannot be used here"),
        (["--device", "meta"], "'meta' cannot be used here"),
        (["--device", ""], "'' cannot be used here"),
        (["--n_cols", "0"], "--n_cols must be at least 1"),
        (["--controlnet", "canny"], "--controlnet takes NAME=PATH"),
        (["--output_dir", "/proc/nowhere"], "/proc/nowhere"),
        (["--output_dir", "a" * 300], "File name too long"),
        (["--seed", str(2**64)], "seed: expected a number at least 0 and at most"),
        (["--seed", "-1"], "seed: expected a number at least 0"),
        (["--seed", "1.5"], "seed: expected a whole number, got '1.5'"),
        (["--fps", "nan"], "fps: expected a number, got 'nan'"),
        (["--fps", "5e400"], "fps: expected a number, got '5e400'"),
        (["--fps", "1_0"], "fps: expected a number, got '1_0'"),
        (["--time_size", "\u0661\u0662"], "time_size: expected a whole number"),
        (["--time_size", "9" * 5000], "time_size: expected a whole number"),
        (["--height", "1000000"], "height: expected a number at least 1 and at most 16,384"),
        (["--img_length_ratio", "1e-9"], "smaller than 64 pixels"),
        (["--video_guidance_scale", "1e300"], "video_guidance_scale: expected a number at least 0 and at most 1,000"),
        (["--n_batch", "99999", "--time_size", "99999"], "n_batch, time_size: a video may have 100,000 frames"),
        (["--n_repeat", "1000000000"], "n_repeat: expected a number at least 1 and at most 1,000"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_command_lines_that_cannot_be_run_are_one_sentence(options, words, disk, tmp_path, capsys):
    assert generate(disk, tmp_path, task("one", disk), *options) == USERS
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and "a bug of MuseV" not in error
    assert results(tmp_path) == []


def test_the_largest_seed_is_repeated_from_the_smallest(disk, tmp_path):
    more = f"  n_repeat: 2\n  seed: {2**64 - 1}\n"
    assert generate(disk, tmp_path, task("one", disk, more), "--device", "cpu") == 0
    seeds = [path.name.split("_s")[1].split("_")[0] for path in (tmp_path / "results").glob("*.mp4")]
    assert sorted(seeds) == ["0", str(2**64 - 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seed", "-1"], "--seed: a seed is a whole number"),
        (["demo", "--seed", str(2**64)], "--seed: a seed is a whole number"),
        (["demo", "--frames", str(10**12)], "--frames must be at least 1 and at most 100,000"),
        (["bench", "--device", "cuda:7"], "cannot be used here"),
        (["bench", "--frames", str(10**12)], "frames must be at least 1 and at most 100,000"),
        (["bench", "--height", "8000000"], "height must be at least 1 and at most 16,384"),
        (["train", "run", "."], "is a folder; the name of one training configuration was expected"),
        (["train", "run", "none.yaml", "--set", "steps"], "--set wants NAME=VALUE"),
        (["train", "extract", "nowhere", "--output_dir", "x", "--base", "x"], "nowhere"),
        (["models", "check", "a" * 5000], ""),
        (["models", "download", "lcm", "--to", "a" * 5000], ""),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_other_commands_too(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(arguments) == USERS
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.count("\n") == 1


def test_failures_are_kept_once_and_the_worst_decides():
    failures = Failures()
    with failures.of("Task 'a'"):
        raise MuseVError("Task 'a': fps: too low")
    assert failures.status == USERS
    with failures.of("Task 'b'"):
        raise KeyError("x")
    with pytest.raises(KeyboardInterrupt), failures.of("Task 'c'"):
        raise KeyboardInterrupt
    with pytest.raises(Cancelled), failures.of("Task 'd'"):
        raise Cancelled
    first, second = failures.summary.splitlines()
    assert first == "Task 'a': fps: too low" and second.startswith("Task 'b': This is a bug")
    assert failures.status == OURS and len(failures) == 2


def test_every_number_of_a_task_has_a_limit():
    for name, info in FIELDS.items():
        if info.kind in (int, float) and not info.many:
            assert info.high is not None and (info.low is not None or info.above is not None), name
