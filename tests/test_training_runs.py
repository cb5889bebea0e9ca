"""`musev train`, run as a person runs it, on tiny models and videos in the published layout."""

import io
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import published, tiny_runs

import musev_core
from musev_core.cli import main
from musev_core.frames.image_files import load_image
from musev_core.frames.video import read_video
from musev_core.locks import alone_with
from musev_core.training import checkpoints
from musev_core.weights.files import read_tensors
from musev_core.weights.keymaps import is_motion_name

TASK = """\
- name: sample
  prompt: clip one
  video_negative_prompt: bad
  negative_prompt: bad
  height: 64
  width: 64
  time_size: 3
  video_num_inference_steps: 1
  num_inference_steps: 1
"""


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Every run is as in a process of its own: accelerate keeps its precision, the log its handlers."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    forget_accelerator()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_accelerator()
    logging.getLogger().handlers.clear()


def forget_accelerator() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    root = tiny_runs.write_disk(tmp_path_factory.mktemp("training"))
    options = ("--width", "64", "--height", "64", "--image_encoder", str(root / "image_encoder"))
    features = ("--base", str(root / "base"), "--output_dir", str(root / "features"))
    assert main(["train", "extract", str(root / "videos"), *features, *options]) == 0
    return root


def train(config: Path, *options: str) -> Path:
    """The last checkpoint of a run which must succeed."""
    forget_accelerator()
    assert main(["train", "run", str(config), *options]) == 0
    return last_checkpoint(config.parent / config.stem)


def last_checkpoint(output: Path) -> Path:
    return list(checkpoints.checkpoint_folders(output / "checkpoints").values())[-1]


def unet_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return read_tensors(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")


def generate(disk: Path, out: Path, *models: str) -> torch.Tensor:
    """The frames of the video that `musev generate` makes with a trained model."""
    image = torch.arange(64 * 64 * 3).reshape(64, 64, 3) % 251
    Image.fromarray(image.to(torch.uint8).numpy()).save(out / "picture.png")
    (out / "tasks.yaml").write_text(
        TASK + "  condition_images: picture.png\n  ipadapter_image: picture.png\n", encoding="utf-8"
    )
    results = ("--output_dir", str(out / "results"), "--save_filetype", "images", "--seed", "1", "--device", "cpu")
    assert main(["generate", str(out / "tasks.yaml"), *models, *results]) == 0
    (folder,) = (out / "results").iterdir()
    return torch.cat([load_image(path) for path in sorted(folder.iterdir())])


# ------------------------------------------------------------------------------------------ from data to a video


def test_a_model_trained_on_captioned_videos_makes_a_video(disk, tmp_path):
    checkpoint = train(tiny_runs.configuration(disk, tmp_path / "run.yaml", model={"save": "all"}))
    assert checkpoint.name == "checkpoint-2"
    assert len(generate(disk, tmp_path, "--musev", str(checkpoint), "--base", str(disk / "base"))) == 4


def test_a_model_trained_on_extracted_features_makes_a_video_with_an_image_prompt(disk, tmp_path, capsys):
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", kind="features", variant="musev_referencenet")
    checkpoint = train(config)
    assert all(is_motion_name(name) for name in unet_of(checkpoint))
    models = ("--musev", str(checkpoint), "--base", str(disk / "base"), "--image_encoder", str(disk / "image_encoder"))
    assert len(generate(disk, tmp_path, *models)) == 4
    assert main(["models", "check", str(checkpoint)]) == 0
    assert "PROBLEM" not in capsys.readouterr().out


def test_an_earlier_model_can_be_trained_on(disk, tmp_path):
    parts = {"model": {"musev": str(published.write_musev(tmp_path / "motion"))}, "train": {"learning_rate": "1e-9"}}
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", variant="musev_referencenet", **parts)
    checkpoint = train(config)
    earlier = read_tensors(tmp_path / "motion" / "musev_referencenet" / "unet" / "diffusion_pytorch_model.bin")
    assert all(torch.allclose(x, earlier[name], atol=1e-6) for name, x in unet_of(checkpoint).items())
    projection = read_tensors(checkpoint / "ip_adapter_image_proj.safetensors")
    earlier = read_tensors(tmp_path / "motion" / "musev_referencenet" / "ip_adapter_image_proj.bin")
    assert all(torch.allclose(x, projection[name], atol=1e-6) for name, x in earlier.items())


def test_training_everything_leaves_a_base_model_that_the_video_is_made_with(disk, tmp_path):
    config = tiny_runs.configuration(
        disk, tmp_path / "run.yaml", kind="features", model={"train": "all", "save": "all"}, train={"steps": 1}
    )
    checkpoint = train(config)
    complete, base = unet_of(checkpoint), unet_of(checkpoint / "base")
    assert set(base) == {name for name in complete if not is_motion_name(name)}
    assert all(torch.equal(x, complete[name]) for name, x in base.items())
    assert not torch.equal(base["conv_in.weight"], unet_of(disk / "base")["conv_in.weight"])
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    ours = generate(disk, tmp_path / "with", "--musev", str(checkpoint), "--base", str(checkpoint / "base"))
    theirs = generate(disk, tmp_path / "without", "--musev", str(checkpoint), "--base", str(disk / "base"))
    assert torch.equal(ours[0], theirs[0]) and not torch.equal(ours[1:], theirs[1:])


# ------------------------------------------------------------------------------------------ going on


def test_a_second_run_goes_on_where_the_first_ended(disk, tmp_path):
    parts = {"train": {"steps": 4, "learning_rate_schedule": "constant", "ema_decay": 0.9}}
    whole = train(tiny_runs.configuration(disk, tmp_path / "whole.yaml", **parts))
    config = tiny_runs.configuration(disk, tmp_path / "parts.yaml", **parts)
    train(config, "--set", "train.steps=2")
    second = train(config)
    assert whole.name == second.name == "checkpoint-4"
    expected, got = (checkpoints.read_state(folder)[0] for folder in (whole, second))
    assert expected.keys() == got.keys()
    assert [name for name, x in expected.items() if not torch.equal(x, got[name])] == []


def test_a_finished_run_says_so_and_a_new_one_does_not_begin_in_its_folder(disk, tmp_path, caplog, capsys):
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", train={"steps": 1})
    train(config)
    with caplog.at_level(logging.INFO):
        assert main(["train", "run", str(config)]) == 0
    assert "all 1 steps are done already" in caplog.text
    assert main(["train", "run", str(config), "--resume", "none"]) == 1
    assert "choose another output_dir" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ precision, processes


def test_bfloat16_and_checkpointed_activations_keep_the_weights_in_full_precision(disk, tmp_path):
    parts = {"train": {"steps": 1, "mixed_precision": "bf16", "gradient_checkpointing": True}}
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", variant="musev_referencenet", **parts)
    checkpoint = train(config)
    tensors = {**unet_of(checkpoint), **checkpoints.read_state(checkpoint)[0]}
    tensors |= read_tensors(checkpoint / "referencenet" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in tensors.values()} == {torch.float32}
    assert all(x.isfinite().all() for x in tensors.values())
    parts = {"train": {"steps": 1}}
    exact = train(tiny_runs.configuration(disk, tmp_path / "exact.yaml", variant="musev_referencenet", **parts))
    assert any(not torch.equal(x, tensors[name]) for name, x in unet_of(exact).items())


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(disk, tmp_path):
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", kind="features")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    roots = [str(Path(tiny_runs.__file__).parents[1]), str(Path(musev_core.__file__).parents[1])]
    common = {"PYTHONPATH": os.pathsep.join(roots), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    program = [sys.executable, "-m", "support.tiny_runs", str(tmp_path / "shared"), str(config)]
    processes = [
        subprocess.Popen(
            program,
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        alone = tiny_runs.train_one_by_one(tmp_path / "alone", batch_size=2)
        first, second = (process.communicate(timeout=120)[1] for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], first + second

    shared, _ = checkpoints.read_state(last_checkpoint(tmp_path / "shared"))
    assert {name for name in shared if name.startswith("weights/")} == {f"weights/{name}" for name in alone.parameters}
    for name, parameter in alone.parameters.items():
        assert torch.allclose(shared[f"weights/{name}"], parameter, atol=1e-6), name

    assert (tmp_path / "shared" / "samples" / "step-2").read_text(encoding="utf-8") == "process 0"

    # then they did `musev train run`; the first process alone writes and tells
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    assert len(list((tmp_path / "run" / "log").iterdir())) == 1
    assert "step 2 of 2" in first and "INFO" not in second


# ------------------------------------------------------------------------------------------ samples, log


def samples(folder: Path) -> dict[str, str]:
    (folder / "samples.yaml").write_text(TASK, encoding="utf-8")
    return {"tasks": str(folder / "samples.yaml")}


def test_samples_are_written_and_the_log_shows_them_and_the_losses(disk, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    parts = {"train": {"steps": 2, "validate_every": 1}, "validation": {**samples(tmp_path), "fps": 5}}
    train(tiny_runs.configuration(disk, tmp_path / "run.yaml", **parts))
    videos = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in videos] == ["0000001-sample.mp4", "0000002-sample.mp4"]
    video = read_video(videos[0])
    assert video.frames.shape == (3, 64, 64, 3) and video.fps == 5

    events = EventAccumulator(str(tmp_path / "run" / "log")).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("train/loss", "train/denoise", "train/learning_rate", "train/seconds_per_step"),
    }
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert all(0 < event.value < 10 for event in events.Scalars("train/loss"))
    assert [event.step for event in events.Images("samples/sample")] == [1, 2]
    moving = Image.open(io.BytesIO(events.Images("samples/sample")[0].encoded_image_string))
    assert moving.format == "GIF" and getattr(moving, "n_frames", 1) == 3 and moving.size == (64, 64)


# ------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.base={tmp}/nowhere"], "nowhere does not exist"),
        (["model.vae={tmp}/nowhere"], "model.vae: {tmp}/nowhere does not exist"),
        (["model.musev={tmp}/nowhere"], "nowhere does not exist"),
        (["model.variant=musev_referencenet"], "needs model.image_encoder"),
        (["model.controlnet={disk}/base"], "model.controlnet needs poses"),
        (["data.places={tmp}/empty"], "no videos (.mp4, .mkv"),
        (["data.places={tmp}/nowhere"], "is neither a folder of videos nor a CSV table"),
        (["data.kind=features", "data.places={tmp}/empty"], "no feature files (.h5py"),
        (["data.kind=features", "data.width=128", "data.places={disk}/features"], "none of the 3 feature files"),
        (["train.steps=many"], "train.steps: expected a whole number, got 'many'"),
        (["train.step=3"], "unknown value 'train.step'. Did you mean 'steps'?"),
        (["train.mixed_precision=fp16"], "mixed_precision 'fp16' is not possible here"),
        (["train.validate_every=1"], "needs validation.tasks"),
        (["train.validate_every=1", "validation.tasks={tmp}/nowhere.yaml"], "nowhere.yaml' does not exist"),
    ],
)
def test_a_wrong_configuration_is_one_sentence_and_leaves_nothing(disk, tmp_path, capsys, options, message):
    (tmp_path / "empty").mkdir()
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml")
    places = {"tmp": str(tmp_path), "disk": str(disk)}
    changes = [part for option in options for part in ("--set", option.format(**places))]
    assert main(["train", "run", str(config), *changes]) == 1
    error = capsys.readouterr().err
    assert message.format(**places) in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_is_not_there_is_told_before_anything_is_read(disk, tmp_path, capsys):
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", model={"base": "nowhere"})
    assert main(["train", "run", str(config), "--resume", str(tmp_path / "checkpoint-7")]) == 1
    assert "checkpoint-7 is no checkpoint training can go on from" in capsys.readouterr().err


def test_a_second_run_beside_the_first_is_refused(disk, tmp_path, capsys):
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml")
    output = tmp_path / "run"
    output.mkdir()
    with alone_with(output, "training"):
        assert main(["train", "run", str(config)]) == 1
    assert f"Another run is training in '{output}' at this moment" in capsys.readouterr().err


def test_an_image_projection_for_other_embeddings_is_refused(disk, tmp_path, capsys):
    from musev_core.config import ImageProjectionConfig
    from musev_core.models.ip_adapter import image_projection

    tensors = image_projection(ImageProjectionConfig(input_dim=40, context_dim=32)).state_dict()
    path = published.save({f"image_proj.{name}": x for name, x in tensors.items()}, tmp_path / "proj.safetensors")
    parts = {"model": {"image_projection": str(path)}}
    config = tiny_runs.configuration(disk, tmp_path / "run.yaml", variant="musev_referencenet", **parts)
    assert main(["train", "run", str(config)]) == 1
    assert "plain projection of 40 numbers, but the image embeddings in the data have 24" in capsys.readouterr().err


def test_without_separate_reference_pictures_the_first_frame_is_one(disk, tmp_path):
    rule = {"num_frames": 3, "sample_rate": 1, "max_sample_rate": 1, "num_references": 0}
    parts = {"data": {"rule": rule}, "train": {"steps": 1}}
    train(tiny_runs.configuration(disk, tmp_path / "run.yaml", kind="features", variant="musev_referencenet", **parts))
