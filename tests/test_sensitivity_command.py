"""Every field of a task and every option of `musev generate` has an effect: one row for each.

A field of a task becomes fields of the request, whose own rows are in test_sensitivity.py; an option for files becomes
fields of `ModelFiles` (test_sensitivity_files.py); what is left is run. A field or option without a row fails.
"""

import argparse
import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from support import golden_models as models
from support import published
from support.effects import differences
from support.numbers import det_image
from support.request_table import ROWS as REQUEST_ROWS
from support.request_table import pipeline

from musev_core.cli import main
from musev_core.cli.generate_options import add_arguments
from musev_core.cli.model_choice import ModelChoice
from musev_core.frames.image_files import load_images, save_image
from musev_core.frames.video import read_video, write_video
from musev_core.pipeline import SamplingOptions, VideoRequest
from musev_core.tasks.dead import DEAD_PARAMETERS
from musev_core.tasks.files import load_tasks
from musev_core.tasks.results import output_name, result_facts
from musev_core.tasks.runner import result_frames, video_request
from musev_core.tasks.task import FIELDS, Task
from musev_core.weights.downloaded import place


@pytest.fixture(autouse=True)
def quiet():
    yield
    logging.getLogger().handlers.clear()


@pytest.fixture(autouse=True)
def insightface(monkeypatch):
    """As if it were installed; no test here gets as far as using it."""
    for name in ("insightface", "insightface.app"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Pictures, videos, and two models of every kind a run loads."""
    root = tmp_path_factory.mktemp("command")
    for name, height, width in (("a", 160, 96), ("b", 128, 128), ("c", 64, 64)):
        save_image(root / f"{name}.png", det_image(name, (1, 3, 1, height, width)).permute(0, 2, 3, 4, 1)[0])
    for name in ("one", "two"):
        frames = det_image(name, (1, 3, 9, 128, 192)).permute(0, 2, 3, 4, 1)[0]
        write_video(root / f"{name}.mp4", frames, fps=4)
    published.write_musev(root / "motion", suffix=".safetensors")
    published.write_base(root / "bases" / "zero")
    published.write_base(root / "bases" / "one", seed=1)
    for seed in (0, 1):
        published.write_controlnet(root / f"canny{seed}", seed=seed)
    return root


def task_file(folder: Path, *tasks: dict[str, Any]) -> Path:
    file = folder / "tasks.yaml"
    file.write_text(yaml.safe_dump(list(tasks)), encoding="utf-8")
    return file


# ------------------------------------------------------------------------------- fields of a task


@dataclass(frozen=True)
class Becomes:
    """Another value of a field, and the fields of the request which change with it, no others.

    `given` are other fields of the task, before and after.
    """

    value: Any
    paths: set[str]
    given: dict[str, Any] = field(default_factory=dict)


PICTURE = {"condition_images": "a.png"}
VIDEO = {"video_path": "one.mp4", "controlnet_name": "canny", "time_size": 4, **PICTURE}
SIZED = {"image", "height", "width"}

# a text names the test which shows the effect
TASK_ROWS: dict[str, Becomes | str] = {
    "name": "test_write_info_marks_every_frame_with_name_and_number",
    "prompt": Becomes("a dog", {"prompt"}),
    "negative_prompt": Becomes("V3", {"first_frame_negative_prompt"}),
    "video_negative_prompt": Becomes("blurry", {"negative_prompt"}),
    "add_static_video_prompt": Becomes(True, {"negative_prompt"}),
    "style": "test_a_model_of_another_style_or_sex_leaves_a_task_out",
    "sex": "test_a_model_of_another_style_or_sex_leaves_a_task_out",
    "condition_images": Becomes("b.png", {"image"}, {"height": 64, "width": 64}),
    "condition_images_index": Becomes([2], {"condition_frames"}, PICTURE),
    "video_path": Becomes("two.mp4", {"video", "controls.0.frames"}, VIDEO),
    "refer_image": Becomes("b.png", {"reference_image"}, PICTURE),
    "ipadapter_image": Becomes("b.png", {"image_prompt"}, PICTURE),
    "face_image": Becomes("b.png", {"face_image"}, PICTURE),
    "height": Becomes(256, {"height", "image"}, PICTURE),
    "width": Becomes(128, {"width", "image"}, PICTURE),
    "img_length_ratio": Becomes(2.0, SIZED, PICTURE),
    "n_batch": Becomes(2, {"num_shots"}),
    "time_size": Becomes(5, {"num_frames"}),
    "fps": "test_the_frame_rate_is_that_of_the_file_and_images_come_beside_it",
    "use_condition_image": Becomes(False, {"image"}, {**PICTURE, "height": 128, "width": 64}),
    "n_vision_condition": Becomes(2, {"num_condition_frames"}),
    "fix_condition_images": Becomes(True, {"fixed_condition"}),
    "redraw_condition_image": Becomes(True, {"redraw"}, PICTURE),
    "redraw_condition_image_with_referencenet": Becomes(False, {"redraw_with_reference"}),
    "redraw_condition_image_with_ipdapter": Becomes(False, {"redraw_with_image_prompt"}),
    "redraw_condition_image_with_ip_adapter_face": Becomes(False, {"redraw_with_face"}),
    "strength": Becomes(0.3, {"first_frame.strength"}),
    "num_inference_steps": Becomes(7, {"first_frame.num_steps"}),
    "guidance_scale": Becomes(2.5, {"first_frame.guidance_scale"}),
    "video_num_inference_steps": Becomes(7, {"sampling.num_steps"}),
    "video_guidance_scale": Becomes(2.5, {"sampling.guidance_scale"}),
    "video_guidance_scale_end": Becomes(2.5, {"sampling.guidance_end"}),
    "video_guidance_scale_method": Becomes("two_stage", {"sampling.guidance_method"}),
    "noise_type": Becomes("random", {"sampling.noise.type"}),
    "noise_draw": Becomes("original", {"sampling.noise.draw", "first_frame.noise.draw"}),
    "w_ind_noise": Becomes(0.7, {"sampling.noise.individual_weight"}),
    "need_img_based_video_noise": Becomes(False, {"sampling.noise.image_weight"}),
    "img_weight": Becomes(0.2, {"sampling.noise.image_weight"}),
    "motion_speed": Becomes(3.0, {"sampling.denoiser.motion_speed"}),
    "need_hist_match": Becomes(True, {"match_histogram"}),
    "seed": "test_same_seed_same_file_and_other_seed_other_file",
    "n_repeat": "test_an_option_means_what_the_field_means_in_the_file",
    "fixed_refer_image": Becomes(False, {"fixed_reference"}),
    "fixed_ip_adapter_image": Becomes(False, {"fixed_image_prompt"}),
    "fixed_refer_face_image": Becomes(False, {"fixed_face"}),
    "ip_adapter_scale": Becomes(0.4, {"sampling.image_scale", "first_frame.image_scale"}),
    "ip_adapter_face_scale": Becomes(0.4, {"sampling.face_scale", "first_frame.face_scale"}),
    "context_schedule": Becomes("uniform", {"sampling.denoiser.windows.schedule"}),
    "context_frames": Becomes(6, {"sampling.denoiser.windows.length"}),
    "context_overlap": Becomes(2, {"sampling.denoiser.windows.overlap"}),
    "context_batch_size": Becomes(2, {"sampling.denoiser.windows_per_call"}),
    "context_fuse": Becomes("linear", {"sampling.denoiser.windows.fuse"}),
    "which2video": Becomes("video_middle", {"video"}, VIDEO),
    "pose_align": "test_poses_are_aligned_to_the_picture",
    "video_is_middle": Becomes(True, {"controls.0.preprocessor"}, {**VIDEO, "which2video": "video_middle"}),
    "video_has_condition": Becomes(False, {"video_has_condition"}, VIDEO),
    "video_strength": Becomes(0.5, {"video_strength"}, VIDEO),
    "sample_rate": Becomes(2, {"video", "controls.0.frames"}, VIDEO),
    "controlnet_name": Becomes(["canny", "tile"], {"controls"}, VIDEO),
    "controlnet_conditioning_scale": Becomes(0.4, {"controls.0.scale"}, VIDEO),
    "control_guidance_start": Becomes(0.2, {"controls.0.start"}, VIDEO),
    "control_guidance_end": Becomes(0.7, {"controls.0.end"}, VIDEO),
    "need_return_videos": "test_source_and_control_maps_stand_beside_the_result",
    "need_return_condition": "test_source_and_control_maps_stand_beside_the_result",
}  # fmt: skip
REQUEST_FIELDS = {name: row for name, row in TASK_ROWS.items() if isinstance(row, Becomes)}
SIZE = {"height": 128, "width": 64}


def load(disk: Path, **fields: Any) -> Task:
    size = {} if "condition_images" in fields or "video_path" in fields else SIZE
    return load_tasks(task_file(disk, {"name": "t", "prompt": "a girl", **size, **fields}))[0]


def request(disk: Path, **fields: Any) -> VideoRequest:
    return video_request(
        load(disk, **fields), controlnets=dict.fromkeys(("canny", "tile"), models.controlnet("tiny", 0))
    )


def test_every_field_of_a_task_has_a_row():
    assert set(TASK_ROWS) == set(FIELDS)


def test_what_a_task_can_change_in_a_request_changes_the_video():
    silent = {path for path, row in REQUEST_ROWS.items() if row.why}
    known = set(REQUEST_ROWS) | {"sampling.scheduler", "controls"}
    assert all(row.paths <= known - silent for row in REQUEST_FIELDS.values())


@pytest.mark.parametrize("name", REQUEST_FIELDS)
def test_a_field_changes_what_its_row_says_and_nothing_else(disk, name):
    row = REQUEST_FIELDS[name]
    before, after = request(disk, **row.given), request(disk, **{**row.given, name: row.value})
    assert differences(before, after) == row.paths


def shown(disk: Path, **fields: Any) -> torch.Tensor:
    """The frames of the file, `(frames, H, W, 3)`; made in one step, once for every request."""
    task = load(disk, **VIDEO, **fields)
    asked = replace(request(disk, **VIDEO), sampling=SamplingOptions(num_steps=1, guidance_scale=1))
    shots = pipeline().plan(asked, seed=0)
    return torch.cat(list(result_frames(task, shots, shots.stream(None))))


def test_source_and_control_maps_stand_beside_the_result(disk):
    plain = shown(disk)
    source, maps = shown(disk, need_return_videos=True), shown(disk, need_return_condition=True)
    width = plain.shape[2]
    assert source.shape[2] == maps.shape[2] == 2 * width
    assert torch.equal(source[:, :, width:], plain) and torch.equal(maps[:, :, :width], plain)
    assert not torch.equal(source[:, :, :width], maps[:, :, width:])


# ---------------------------------------------------------------------- the same fields as options


OPTION_TEXT = {"controlnet_name": "canny,tile", "condition_images_index": "2"}


def arguments(disk: Path, out: Path) -> list[str]:
    return [
        *("--musev", str(disk / "motion"), "--base", str(disk / "bases" / "zero"), "--device", "cpu"),
        *("--output_dir", str(out), "--checkpoints", str(disk / "downloads")),
        *("--controlnet", f"canny={disk / 'canny0'}", "--controlnet", f"tile={disk / 'canny0'}"),
    ]


def generate(disk: Path, file: Path, out: Path, *options: str) -> int:
    return main(["generate", str(file), *arguments(disk, out), *options])


def as_option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", OPTION_TEXT.get(name, str(value))]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_arguments(made)
    return made


OPTIONS = {action.dest: action for action in parser()._actions if action.dest != "help"}
VALUES = {name: row.value for name, row in REQUEST_FIELDS.items()} | {
    "seed": 7, "n_repeat": 2, "fps": 9.0, "need_return_videos": True, "need_return_condition": True,
}  # fmt: skip


OTHERWISE = {"context_batch_size", "pose_align"}  # see their tests


@pytest.mark.parametrize("name", [name for name in FIELDS if name in OPTIONS and name not in OTHERWISE])
def test_an_option_means_what_the_field_means_in_the_file(disk, tmp_path, name, caplog):
    """The result of the field is there already: an option which means the same finds it, and nothing is loaded."""
    row = REQUEST_FIELDS.get(name)
    value = str(disk / VALUES[name]) if FIELDS[name].kind is Path else VALUES[name]
    given = {"seed": 1, **(row.given if row else VIDEO if name.startswith("need_return") else {})}
    given = {key: x for key, x in given.items() if key != name}
    plain, changed = load(disk, **given), load(disk, **given, **{name: value})
    # networks for all kinds of pictures, without which their fields would be refused
    networks = ["--image_encoder", "encoder", "--face_adapter", "face", "--face_models", "faces"]
    choice = ModelChoice(parser().parse_args([*arguments(disk, tmp_path), *networks]))
    before, after = result_names(plain, choice), result_names(changed, choice)
    assert not set(after) <= set(before)
    for result in after:
        (tmp_path / f"{result}.mp4").touch()
    with caplog.at_level(logging.INFO):
        load(disk, **given)
        assert generate(disk, disk / "tasks.yaml", tmp_path, *networks, *as_option(name, value)) == 0
    assert caplog.text.count("exists and is skipped") == len(after) == len(list(tmp_path.iterdir()))


def result_names(task: Task, choice: ModelChoice) -> list[str]:
    (entry,) = choice.entries()
    facts = choice.facts(entry, task.controlnet_name)
    seeds = [(task.seed or 0) + i for i in range(task.n_repeat)]
    return [output_name(task, result_facts(task, facts), model=f"motion-{entry.name}", seed=seed) for seed in seeds]


def test_the_number_of_windows_at_once_is_an_option_too(disk, tmp_path, capsys):
    # it changes nothing but the time, so no file name tells of it
    file = task_file(disk, {"name": "t", "prompt": "a girl", **SIZE})
    assert generate(disk, file, tmp_path, "--context_batch_size", "none at all") == 1
    assert "context_batch_size" in capsys.readouterr().err


# ------------------------------------------------------------------------------- options for files


@dataclass(frozen=True)
class Names:
    """Options, the fields of `ModelFiles` which they change, no others, and options given before and after."""

    options: list[str]
    fields: set[str]
    given: list[str] = field(default_factory=list)


ENCODER = ["--image_encoder", "encoder"]
FACE = ["--face_adapter", "face", "--face_models", "faces"]
LCM = ["--lcm", "lcm.safetensors"]

FILE_OPTIONS = {
    "checkpoints": Names(["--checkpoints", "DOWNLOADS"], {"vae"}),
    "musev": Names(["--musev", "other"], {"musev"}),
    "variant": Names(["--variant", "musev"], {"variant"}),
    "vae": Names(["--vae", "vae"], {"vae"}),
    "text_encoder": Names(["--text_encoder", "text"], {"text_encoder"}),
    "tokenizer": Names(["--tokenizer", "words"], {"tokenizer"}),
    "referencenet": Names(["--referencenet", "net"], {"reference_net"}),
    "referencenet_model_name": Names(["--referencenet_model_name", "None"], {"use_reference_net"}),
    "image_projection": Names(["--image_projection", "projection"], {"image_projection"}),
    "ip_adapter_model_name": Names(["--ip_adapter_model_name", "None"], {"use_image_prompt"}),
    "image_encoder": Names(ENCODER, {"image_encoder"}),
    "vision_clip_extractor_class_name": Names(
        ["--vision_clip_extractor_class_name", "None"], {"image_encoder"}, ENCODER
    ),
    "ip_adapter": Names(["--ip_adapter", "plain"], {"ip_adapter"}, ENCODER),
    "face_adapter": Names(["--face_adapter", "another face"], {"face_adapter"}, FACE),
    "ip_adapter_face_model_name": Names(
        ["--ip_adapter_face_model_name", "None"], {"face_adapter", "face_models"}, FACE
    ),
    "face_models": Names(["--face_models", "other faces"], {"face_models"}, FACE),
    "lcm": Names(LCM, {"loras"}),
    "lcm_model_name": Names(["--lcm_model_name", "None"], {"loras"}, LCM),
    "lora": Names(["--lora", "lora.safetensors:0.5"], {"loras"}),
    "embeddings": Names(["--embeddings", "words"], {"embeddings"}),
}


@pytest.mark.parametrize("name", FILE_OPTIONS)
def test_an_option_names_the_file_its_row_says_and_no_other(disk, tmp_path, name):
    row = FILE_OPTIONS[name]
    (tmp_path / place("vae")).mkdir(parents=True)
    options = [option.replace("DOWNLOADS", str(tmp_path)) for option in row.options]
    before, after = (
        ModelChoice(parser().parse_args([*arguments(disk, tmp_path), *row.given, *changed]))
        for changed in ([], options)
    )
    (entry,) = before.entries()
    assert differences(before.files(entry), after.files(entry)) == row.fields
    assert before.facts(entry) != after.facts(entry)  # so that the results have other names


# --------------------------------------------------------------------------- options for the run

# a text names the test which shows the effect
RUN_OPTIONS = {
    "tasks": "test_an_option_means_what_the_field_means_in_the_file",
    "test_data_path": "test_names_choose_tasks_and_models",
    "target_datas": "test_names_choose_tasks_and_models",
    "base": "test_names_choose_tasks_and_models",
    "sd_model_name": "test_names_choose_tasks_and_models",
    "context_batch_size": "test_the_number_of_windows_at_once_is_an_option_too",
    "scheduler": "test_a_run_changes_with_its_options",
    "dtype": "test_a_run_changes_with_its_options",
    "controlnet": "test_a_run_changes_with_its_options",
    "n_cols": "test_a_run_changes_with_its_options",
    "audio": "test_the_driving_videos_sound_is_heard_with_the_result",
    "frames": "test_parts_of_a_video_are_made_alone_and_joined",
    "share": "test_shares_make_everything_once",
    "resume": "test_a_video_is_made_anew_on_request",
    "save_images": "test_the_frame_rate_is_that_of_the_file_and_images_come_beside_it",
    "annotators": "test_annotators_are_looked_for_in_the_folders_given",
    "output_dir": "test_image_to_video_writes_condition_and_generated_frames",
    "overwrite": "test_existing_results_are_skipped_and_overwritten_only_on_request",
    "save_filetype": "test_other_formats",
    "write_info": "test_write_info_marks_every_frame_with_name_and_number",
}
DEAD = set(DEAD_PARAMETERS)
NO_EFFECT = {"device": "where the work is done: another device gives the same pictures, to rounding"}


def test_every_option_has_a_row():
    rows = set(FILE_OPTIONS) | set(RUN_OPTIONS) | set(NO_EFFECT) | DEAD
    assert set(OPTIONS) == rows | (set(FIELDS) & set(OPTIONS))


def test_the_tests_that_rows_name_are_there():
    files = [
        Path(__file__).with_name(f"test_{name}.py") for name in ("sensitivity_command", "cli", "original_commands")
    ]
    texts = [file.read_text(encoding="utf-8") for file in files]
    for name in {row for row in (*TASK_ROWS.values(), *RUN_OPTIONS.values()) if isinstance(row, str)}:
        assert any(f"def {name}(" in text for text in texts), name


def test_names_choose_tasks_and_models(disk, tmp_path, caplog):
    tasks = [{"name": name, "prompt": "a", "seed": 1, **SIZE} for name in ("first", "second")]
    file = task_file(disk, *tasks)
    # what is not chosen would have to be made, and there is no model to make it with
    given = ["--musev", str(tmp_path / "motion"), "--base", str(disk / "bases"), "--output_dir", str(tmp_path)]
    second, one = ["--target_datas", "second"], ["--sd_model_name", "one"]
    (wanted,) = result_names(load_tasks(file)[1], ModelChoice(parser().parse_args([*given, *one])))
    (tmp_path / f"{wanted}.mp4").touch()
    with caplog.at_level(logging.INFO):
        assert main(["generate", "-test_data_path", str(file), *given, *second, *one]) == 0
        assert caplog.text.count("exists and is skipped") == 1
        for missing in (second, one):
            assert main(["generate", "-test_data_path", str(file), *given, *missing]) == 1


@pytest.mark.parametrize("key", ["style", "sex"])
def test_a_model_of_another_style_or_sex_leaves_a_task_out(disk, tmp_path, key):
    table = disk / "models.yaml"
    table.write_text(yaml.safe_dump({"zero": {"path": str(disk / "bases" / "zero"), key: "one"}}), encoding="utf-8")
    for value, status in (("another", 0), ("one", 1)):
        file = task_file(disk, {"name": "t", "prompt": "a", **SIZE, key: value})
        # there is no model to make anything with
        given = ["--musev", str(tmp_path / "motion"), "--base", str(table), "--output_dir", str(tmp_path)]
        assert main(["generate", str(file), *given]) == status


RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "scheduler": (["--scheduler", "ddim"], {}),
    "dtype": (["--dtype", "bfloat16"], {}),
    "controlnet": (["--controlnet", "canny=CANNY1"], VIDEO),
    "n_cols": (["--n_cols", "1"], {**VIDEO, "need_return_videos": True}),
}
QUICK = {"seed": 1, "video_num_inference_steps": 1, "num_inference_steps": 1, "condition_images": "c.png"}


def pictures(disk: Path, out: Path, fields: dict[str, Any], *options: str) -> torch.Tensor:
    """The frames of the one result of a run, as pictures."""
    file = task_file(disk, {"name": "t", "prompt": "a", "time_size": 3, **fields, **QUICK})
    options = tuple(option.replace("CANNY1", str(disk / "canny1")) for option in options)
    assert generate(disk, file, out, *options, "--save_filetype", "images") == 0
    (folder,) = out.iterdir()
    return torch.cat(load_images(sorted(folder.iterdir()))).float()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_changes_with_its_options(disk, tmp_path, name):
    options, fields = RUNS[name]
    before = pictures(disk, tmp_path / "before", fields)
    after = pictures(disk, tmp_path / "after", fields, *options)
    assert before.shape != after.shape or not torch.equal(before, after)


def test_the_same_command_makes_the_same_pictures_again(disk, tmp_path):
    a, b = (pictures(disk, tmp_path / name, VIDEO) for name in "ab")
    assert torch.equal(a, b)


def test_the_frame_rate_is_that_of_the_file_and_images_come_beside_it(disk, tmp_path):
    file = task_file(disk, {"name": "t", "prompt": "a", "time_size": 3, "fps": 9.0, **QUICK})
    assert generate(disk, file, tmp_path, "--save_images") == 0
    (film,) = tmp_path.glob("*.mp4")
    video = read_video(film)
    assert video.fps == 9
    assert len(list(film.with_suffix("").glob("*.png"))) == len(video.frames) == 4


def test_annotators_are_looked_for_in_the_folders_given(disk, tmp_path, capsys):
    file = task_file(disk, {"name": "t", "prompt": "a", **VIDEO, "controlnet_name": "hed"})
    errors = []
    for options in ((), ("--annotators", str(tmp_path / "weights of hed"))):
        assert generate(disk, file, tmp_path, "--controlnet", "hed=nowhere", *options) == 1
        errors.append(capsys.readouterr().err)
    assert "weights of hed" not in errors[0] and "weights of hed" in errors[1]


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpu"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(disk, tmp_path, capsys, device):
    file = task_file(disk, {"name": "t", "prompt": "a", **QUICK})
    assert generate(disk, file, tmp_path, "--musev", "nowhere", "--device", device) == 1
    assert f"The device {device!r} cannot be used here" in capsys.readouterr().err
