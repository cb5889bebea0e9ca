"""Tasks: defaults, conversions, contradictions."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from musev_core.encode.prompts import negative_prompt
from musev_core.errors import MuseVError
from musev_core.tasks.task import FIELDS, Task


def make(**values: Any) -> Task:
    """A task of values as a file or a shell gives them."""
    values.setdefault("prompt", "")
    return Task(**values)


# ---- fields


def test_defaults_are_the_originals():
    task = Task(prompt="a girl")
    assert (task.n_batch, task.time_size, task.fps, task.n_vision_condition, task.n_repeat) == (1, 12, 4, 1, 1)
    assert (task.video_num_inference_steps, task.video_guidance_scale, task.video_guidance_scale_end) == (10, 3.5, None)
    assert (task.num_inference_steps, task.guidance_scale, task.strength, task.video_strength) == (30, 7.5, 0.8, 1.0)
    assert (task.noise_type, task.w_ind_noise, task.img_weight, task.motion_speed) == ("video_fusion", 0.5, 1e-3, 8.0)
    assert (task.context_schedule, task.context_frames, task.context_overlap, task.context_batch_size) == (
        "uniform_v2",
        12,
        4,
        1,
    )
    assert (task.context_fuse, task.which2video, task.sample_rate, task.seed) == ("flat", "video", 1, None)
    assert task.negative_prompt == task.video_negative_prompt == negative_prompt("V2")


def test_switches_which_the_original_turns_off_by_naming_them_are_on():
    task = make()
    on = {key for key, info in FIELDS.items() if info.kind is bool and getattr(task, key)}
    assert on == {
        "use_condition_image",
        "redraw_condition_image_with_referencenet",
        "redraw_condition_image_with_ipdapter",
        "redraw_condition_image_with_ip_adapter_face",
        "need_img_based_video_noise",
        "fixed_refer_image",
        "fixed_ip_adapter_image",
        "fixed_refer_face_image",
        "video_has_condition",
    }


def test_every_field_explains_itself_in_one_sentence():
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Task)}
    for key, info in FIELDS.items():
        assert info.help.endswith(".") and 20 < len(info.help) < 120 and info.help.isascii(), key
        assert "%" not in info.help, key  # argparse would take it for a format


def test_fields_know_their_old_option_names():
    renamed = {key: info.option for key, info in FIELDS.items() if info.option}
    assert renamed == {
        "refer_image": "referencenet_image_path",
        "ipadapter_image": "ipadapter_image_path",
        "face_image": "face_image_path",
    }


def test_task_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().fps = 8.0  # type: ignore[misc]


def test_replace_checks_again():
    task = make(prompt="x", negative_prompt="V3")
    assert dataclasses.replace(task, fps="8").fps == 8.0
    assert dataclasses.replace(task, fps=8).negative_prompt == negative_prompt("V3")
    with pytest.raises(MuseVError, match="fps: expected a number above 0 and at most 1,000, got -1"):
        dataclasses.replace(task, fps=-1)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("motion_speed", "1.8", 1.8),
        ("img_weight", "1e-3", 1e-3),
        ("time_size", "24", 24),
        ("time_size", "24.0", 24),
        ("time_size", 24.0, 24),
        ("seed", str(2**64 - 1), 2**64 - 1),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("seed", "none", None),
        ("video_guidance_scale_end", "", None),
        ("need_hist_match", "on", True),
        ("need_hist_match", "Yes", True),
        ("need_hist_match", 1, True),
        ("use_condition_image", "off", False),
        ("use_condition_image", "no", False),
        ("use_condition_image", "FALSE", False),
        ("condition_images_index", None, None),
        ("refer_image", "a.png", (Path("a.png"),)),
        ("refer_image", ["a.png", Path("b,c.png")], (Path("a.png"), Path("b,c.png"))),
        ("refer_image", None, ()),
        ("refer_image", "None", ()),
        ("face_image", "~/face.png", (Path.home() / "face.png",)),
        ("negative_prompt", "Empty", ""),
        ("negative_prompt", "my own words", "my own words"),
        ("prompt", 5, "5"),
    ],
)
def test_values_are_converted(key, given, expected):
    value = getattr(make(**{key: given}), key)
    assert value == expected and type(value) is type(expected)


def test_comma_lists_of_names_and_numbers():
    given = make(controlnet_name="canny, depth", video_path="v.mp4")
    assert given.controlnet_name == ("canny", "depth")
    given = make(condition_images=["a", "b"], condition_images_index="0,-1")
    assert given.condition_images_index == (0, -1)
    given = make(condition_images="a", condition_images_index=3)
    assert given.condition_images_index == (3,)


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("motion_speed", "fast", "motion_speed: expected a number, got 'fast'"),
        ("motion_speed", "nan", "motion_speed: expected a number, got 'nan'"),
        ("motion_speed", True, "motion_speed: expected a number, got True"),
        ("motion_speed", None, "motion_speed: expected a number, got None"),
        ("motion_speed", -1, "motion_speed: expected a number at least 0 and at most 1,000, got -1"),
        ("time_size", 2.5, "time_size: expected a whole number, got 2.5"),
        ("time_size", 0, "time_size: expected a number at least 1"),
        ("n_batch", 0, "n_batch: expected a number at least 1"),
        ("n_repeat", 0, "n_repeat: expected a number at least 1"),
        ("n_vision_condition", -1, "n_vision_condition: expected a number at least 0"),
        ("num_inference_steps", 0, "num_inference_steps: expected a number at least 1"),
        (
            "video_num_inference_steps",
            "0",
            "video_num_inference_steps: expected a number at least 1 and at most 1,000, got '0'",
        ),
        ("guidance_scale", -1, "guidance_scale: expected a number at least 0"),
        ("video_guidance_scale", -1, "video_guidance_scale: expected a number at least 0"),
        ("video_guidance_scale_end", -1, "video_guidance_scale_end: expected a number at least 0"),
        ("fps", 0, "fps: expected a number above 0 and at most 1,000, got 0"),
        ("img_length_ratio", 0, "img_length_ratio: expected a number above 0"),
        ("w_ind_noise", 1.5, "w_ind_noise: expected a number at least 0 and at most 1, got 1.5"),
        ("img_weight", -0.1, "img_weight: expected a number at least 0 and at most 1"),
        ("strength", 2, "strength: expected a number at least 0 and at most 1"),
        ("video_strength", 2, "video_strength: expected a number at least 0 and at most 1"),
        ("control_guidance_end", 2, "control_guidance_end: expected a number at least 0 and at most 1"),
        ("controlnet_conditioning_scale", -1, "controlnet_conditioning_scale: expected a number at least 0"),
        ("ip_adapter_scale", -1, "ip_adapter_scale: expected a number at least 0"),
        ("ip_adapter_face_scale", -1, "ip_adapter_face_scale: expected a number at least 0"),
        ("sample_rate", 0, "sample_rate: expected a number at least 1"),
        ("context_frames", 0, "context_frames: expected a number at least 1"),
        ("context_overlap", -1, "context_overlap: expected a number at least 0"),
        ("context_batch_size", 0, "context_batch_size: expected a number at least 1"),
        ("seed", -1, "seed: expected a number at least 0"),
        ("height", 0, "height: expected a number at least 1"),
        ("need_hist_match", "maybe", "need_hist_match: expected true or false, got 'maybe'"),
        ("need_hist_match", 2, "need_hist_match: expected true or false, got 2"),
        ("prompt", ["a"], "prompt: expected text"),
        ("video_path", 5, "video_path: expected a file name, got 5"),
        ("refer_image", [5], "refer_image: expected a file name, got 5"),
        ("condition_images_index", "0,x", "condition_images_index: expected a whole number, got 'x'"),
        ("noise_type", "randm", "noise_type: expected one of video_fusion, random, got 'randm'. Did you mean 'random'"),
        ("context_schedule", "v2", "context_schedule: expected one of uniform_v2, uniform"),
        ("context_fuse", "sum", "context_fuse: expected one of flat, linear, pyramid"),
        ("which2video", "both", "which2video: expected one of video, video_middle"),
        ("video_guidance_scale_method", "x", "video_guidance_scale_method: expected one of linear, two_stage"),
    ],
)
def test_wrong_values_are_named(key, given, message):
    with pytest.raises(MuseVError, match="Task 'case': " + message.replace("(", r"\(")):
        make(**{"name": "case", key: given})


# ---- values which do not go together


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"context_frames": 8, "context_overlap": 8},
            r"context_overlap: must be less than context_frames \(8\), got 8",
        ),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.5}, "control_guidance_start: must not be after"),
        ({"n_vision_condition": 13}, "n_vision_condition: a shot of time_size 12 frames cannot hand on 13"),
        ({"height": 63, "width": 64}, "height, width, img_length_ratio: .*63"),
        ({"height": 640, "width": 640, "img_length_ratio": 0.05}, "height, width, img_length_ratio: .*0.05"),
        ({"controlnet_name": "canny,depth"}, "video_path: missing, but controlnet_name canny, depth needs"),
        ({"video_is_middle": True}, "video_path: missing, but video_is_middle"),
        (
            {"video_path": "v.mp4", "video_is_middle": True, "controlnet_name": "pose"},
            "which2video: a video of control maps .* Write which2video: video_middle",
        ),
        (
            {"video_path": "v.mp4", "which2video": "video_middle"},
            "controlnet_name: missing; with which2video: video_middle",
        ),
        (
            {"video_path": "v.mp4", "video_has_condition": False},
            "condition_images: missing; video_has_condition: false",
        ),
        (
            {"video_path": "v", "video_has_condition": False, "condition_images": "a", "use_condition_image": False},
            "condition_images: missing",
        ),
        ({"video_path": "v.mp4", "condition_images": ["a", "b"]}, "condition_images: .* one picture, got 2"),
        ({"time_size": 1}, "time_size: .* at least 2 are needed, got 1"),
        ({"time_size": 1, "video_path": "v", "condition_images": "a"}, "time_size: .* at least 2 are needed, got 1"),
        ({"condition_images_index": [0]}, r"condition_images_index: expected one frame number .* \(0\), got \[0\]"),
        (
            {"condition_images": ["a", "b"], "condition_images_index": [0]},
            r"condition_images_index: expected one frame number per condition image \(2\), got \[0\]",
        ),
        (
            {"condition_images": ["a", "b"], "condition_images_index": [0, 14]},
            r"condition_images_index: the video has 14 frames \(0 to 13\), got \[0, 14\]",
        ),
        (
            {"condition_images": ["a", "b"], "condition_images_index": [13, -1]},
            r"condition_images_index: a frame can hold one condition image only, got \[13, -1\]",
        ),
    ],
)
def test_contradictions_are_named(values, message):
    with pytest.raises(MuseVError, match="Task 'task': " + message):
        make(**values)


def test_a_video_of_maps_that_no_controlnet_reads_is_left_out():
    task = make(video_path="v.mp4", video_is_middle=True, condition_images=["a", "b"])
    assert (task.video_path, task.video_is_middle) == (None, False)
    assert make(video_path="v.mp4").video_path == Path("v.mp4")  # rgb starts the noise


ALIGNED = {"pose_align": True, "video_path": "v", "controlnet_name": "dwpose", "condition_images": "a"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"video_path": None, "controlnet_name": None}, "pose_align: there is no video"),
        ({"video_is_middle": True, "which2video": "video_middle"}, "pose_align: a video of control maps"),
        ({"controlnet_name": None}, "pose_align: poses act through a ControlNet only"),
        ({"condition_images": None}, "pose_align: needs condition_images"),
        ({"use_condition_image": False}, "pose_align: needs condition_images"),
    ],
)
def test_poses_are_aligned_only_where_that_can_be(values, message):
    make(**ALIGNED)
    with pytest.raises(MuseVError, match=message):
        make(**{**ALIGNED, **values})


@pytest.mark.parametrize("which", [{"which2video": "video"}, {"which2video": "video_middle"}])
@pytest.mark.parametrize("has_condition", [True, False])
def test_rgb_video_goes_with_both_uses_and_both_kinds_of_condition(which, has_condition):
    make(
        video_path="v",
        condition_images="a",
        controlnet_name="dwpose",
        video_has_condition=has_condition,
        **which,
    )


@pytest.mark.parametrize("has_condition", [True, False])
def test_video_of_maps_goes_with_the_controlnet(has_condition):
    make(
        video_path="v",
        condition_images="a",
        controlnet_name="dwpose",
        video_is_middle=True,
        which2video="video_middle",
        video_has_condition=has_condition,
    )


# ---- a fast start


def test_options_are_known_without_waiting_for_torch():
    code = (
        "import sys, musev_core.tasks.files, musev_core.tasks.model_table; musev_core.tasks.task.Task(prompt='');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
