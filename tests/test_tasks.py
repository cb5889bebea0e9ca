"""Tasks and task files: defaults, conversions, templates, alternatives, checks, names."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from musev_core.errors import MuseVError
from musev_core.prompts import negative_prompt
from musev_core.tasks import (
    DEAD_PARAMETERS,
    FIELDS,
    Task,
    check_files,
    frame_count,
    frame_size,
    load_tasks,
    make_tasks,
    output_name,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.png (96x160), b.png (128x128) and clip.mp4 (192x128, 3 frames)."""
    import av
    import numpy as np

    Image.new("RGB", (96, 160), "red").save(tmp_path / "a.png")
    Image.new("RGB", (128, 128), "blue").save(tmp_path / "b.png")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(4))
        stream.width, stream.height = 192, 128
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((128, 192, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return tmp_path


def load(folder: Path, text: str, **options) -> list[Task]:
    """The tasks of a task file with this text, which lies in `folder`."""
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return load_tasks(file, **options)


def only(folder: Path, text: str, **options) -> Task:
    """The single task of the file."""
    [task] = load(folder, text, **options)
    return task


def make(**values: Any) -> Task:
    """A task of values as a file or a shell gives them."""
    values.setdefault("prompt", "")
    return Task(**values)


SIZE: dict[str, Any] = {"height": 128, "width": 64}


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
    with pytest.raises(MuseVError, match="fps: expected a number above 0, got -1"):
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
        ("motion_speed", -1, "motion_speed: expected a number at least 0, got -1"),
        ("time_size", 2.5, "time_size: expected a whole number, got 2.5"),
        ("time_size", 0, "time_size: expected a number at least 1"),
        ("n_batch", 0, "n_batch: expected a number at least 1"),
        ("n_repeat", 0, "n_repeat: expected a number at least 1"),
        ("n_vision_condition", -1, "n_vision_condition: expected a number at least 0"),
        ("num_inference_steps", 0, "num_inference_steps: expected a number at least 1"),
        ("video_num_inference_steps", "0", "video_num_inference_steps: expected a number at least 1, got '0'"),
        ("guidance_scale", -1, "guidance_scale: expected a number at least 0"),
        ("video_guidance_scale", -1, "video_guidance_scale: expected a number at least 0"),
        ("video_guidance_scale_end", -1, "video_guidance_scale_end: expected a number at least 0"),
        ("fps", 0, "fps: expected a number above 0, got 0"),
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


def test_one_frame_after_a_given_image_is_fine():
    assert frame_count(make(time_size=1, condition_images="a")) == 2


# ---- frame count and size


@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ({}, 24),  # the generated first frame is one of the shot's
        ({"condition_images": "a"}, 25),
        ({"condition_images": ["a", "b", "c"]}, 27),
        ({"condition_images": "a", "use_condition_image": False}, 24),
        ({"condition_images": "a", "redraw_condition_image": True}, 24),
        ({"condition_images": "a", "n_vision_condition": 0}, 24),
        ({"condition_images": "a", "video_path": "v"}, 24),
        ({"condition_images": "a", "video_path": "v", "video_has_condition": False}, 25),
        ({"video_path": "v", "video_has_condition": False, "n_vision_condition": 0}, 24),
    ],
)
def test_frame_count(values, frames):
    assert frame_count(make(n_batch=2, **values)) == frames


def test_published_example_size():
    assert frame_size(make(height=1308, width=736, img_length_ratio=0.957)) == (704, 1216)


def test_size_comes_from_the_first_image_then_the_video(folder):
    image, video = folder / "a.png", folder / "clip.mp4"
    assert frame_size(make(condition_images=[image, folder / "b.png"])) == (64, 128)
    assert frame_size(make(condition_images=image, video_path=video)) == (64, 128)
    assert frame_size(make(condition_images=image, video_path=video, use_condition_image=False)) == (
        192,
        128,
    )
    assert frame_size(make(condition_images=image, width=300)) == (256, 128)
    assert frame_size(make(condition_images=image, img_length_ratio=2)) == (192, 320)


def test_size_of_a_photo_taken_sideways_is_its_upright_one(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (128, 64)).save(tmp_path / "phone.jpg", exif=exif)
    assert frame_size(make(condition_images=tmp_path / "phone.jpg")) == (64, 128)


def test_size_without_a_source_or_from_a_broken_one(tmp_path):
    with pytest.raises(MuseVError, match="Task 'task': height and width: needed"):
        frame_size(make(height=64))
    (tmp_path / "broken").write_text("no picture")
    with pytest.raises(MuseVError, match="condition_images: .*broken cannot be read as a picture"):
        frame_size(make(condition_images=tmp_path / "broken"))
    with pytest.raises(MuseVError, match="video_path: .*broken' cannot be read as a video"):
        frame_size(make(video_path=tmp_path / "broken"))


# ---- task files


def test_the_originals_example_file_loads(folder):
    tasks = load(
        folder,
        """
- condition_images: ./a.png
  eye_blinks_factor: 1.8
  height: 1308
  img_length_ratio: 0.957
  ipadapter_image: ${.condition_images}
  name: yongen
  prompt: (masterpiece, best quality, highres:1),(eye blinks:{eye_blinks_factor})
  refer_image: ${.condition_images}
  video_path: null
  width: 736
- condition_images: ./b.png
  name: dance
  prompt: (best quality:1), a girl is dancing
  video_path: ./clip.mp4
  video_is_middle: off
""",
        defaults={"motion_speed": "12", "fps": None},
    )
    assert [task.name for task in tasks] == ["yongen", "dance"]
    assert "(eye blinks:1.8)" in tasks[0].prompt
    assert tasks[0].refer_image == tasks[0].ipadapter_image == tasks[0].condition_images == (folder / "a.png",)
    assert tasks[0].face_image == () and tasks[0].video_path is None
    assert [frame_size(task) for task in tasks] == [(704, 1216), (128, 128)]
    assert [task.motion_speed for task in tasks] == [12.0, 12.0] and tasks[0].fps == 4


def test_list_under_tasks_and_names_by_index(folder):
    text = "tasks:\n  - {prompt: a, height: 64, width: 64}\n  - {prompt: b, height: 64, width: 64}"
    assert [task.name for task in load(folder, text)] == ["0", "1"]


def test_a_tasks_own_value_wins_over_the_default(folder):
    text = "- {name: x, prompt: p, fps: 12, height: 64, width: 64}"
    task = only(folder, text, defaults={"fps": 8, "negative_prompt": "V1"})
    assert task.fps == 12 and task.negative_prompt == negative_prompt("V1")


def test_paths_are_looked_for_beside_the_file_then_in_the_working_directory(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Image.new("RGB", (64, 64)).save(elsewhere / "here.png")
    Image.new("RGB", (64, 64)).save(elsewhere / "a.png")
    monkeypatch.chdir(elsewhere)
    task = only(folder, "- {prompt: p, condition_images: [a.png, here.png]}")
    assert task.condition_images == (folder / "a.png", Path("here.png"))
    task = only(folder, "- {prompt: p, condition_images: a.png}", defaults={"refer_image": "a.png"})
    assert task.refer_image == (Path("a.png"),)  # a default was typed in the working directory


def test_references_chain_and_stand_inside_text(folder):
    task = only(
        folder,
        """
- name: x
  condition_images: a.png
  refer_image: ${.ipadapter_image}
  ipadapter_image: ${.condition_images}
  face_image: ["${.condition_images}", b.png]
  prompt: a picture called ${.name}
""",
    )
    assert task.refer_image == (folder / "a.png",)
    assert task.face_image == (folder / "a.png", folder / "b.png")
    assert task.prompt == "a picture called x"


def test_reference_to_a_field_left_empty_is_empty():
    [task] = make_tasks([{"prompt": "p", "refer_image": "${.condition_images}", "condition_images": None, **SIZE}])
    assert task.refer_image == ()


def test_alternatives_become_all_combinations(folder):
    tasks = load(
        folder,
        """
- {name: girl, prompt: dancing | singing, condition_images: a.png|b.png, motion_speed: 8}
- {name: boy, prompt: running, height: 64, width: 64}
""",
    )
    assert [(task.name, task.prompt, task.condition_images) for task in tasks[:4]] == [
        ("girl_1", "dancing", (folder / "a.png",)),
        ("girl_2", "dancing", (folder / "b.png",)),
        ("girl_3", "singing", (folder / "a.png",)),
        ("girl_4", "singing", (folder / "b.png",)),
    ]
    assert tasks[4].name == "boy"


def test_alternatives_of_numbers_presets_and_template_words(folder):
    tasks = load(
        folder, "- {prompt: 'a {mood} girl', mood: happy|sad, fps: 4|8, negative_prompt: V1|V3, height: 64, width: 64}"
    )
    assert len(tasks) == 8
    assert {(task.prompt, task.fps) for task in tasks} == {
        (f"a {mood} girl", fps) for mood in ("happy", "sad") for fps in (4, 8)
    }
    assert {task.negative_prompt for task in tasks} == {negative_prompt("V1"), negative_prompt("V3")}


def test_template_may_use_fields_lists_and_default_values(folder):
    prompt = "{name} at {motion_speed} with {things}, {style}, {nothing}, {fps}"
    entry = {"name": "x", "prompt": prompt, "things": ["hat", "bag"], "style": None, "nothing": None, "fps": 5, **SIZE}
    [task] = make_tasks([entry], defaults={"motion_speed": 9})
    assert task.prompt == "x at 9 with hat, bag, 5"


def test_empty_prompt_stays_empty_and_style_and_sex_are_kept():
    [task] = make_tasks([{"prompt": "", "style": "anime", "sex": "girl", "template_name": "t", **SIZE}])
    assert (task.prompt, task.style, task.sex) == ("", "anime", "girl")


def test_targets_select_by_name_before_or_after_splitting(folder):
    entries = [{"name": name, "prompt": "x|y", **SIZE} for name in ("a", "b")] + [{"name": "c", "prompt": "z"}]
    assert [task.name for task in make_tasks(entries, targets=["b", " a_2"])] == ["a_2", "b_1", "b_2"]
    with pytest.raises(MuseVError, match="There is no task 'd'.* Known tasks: a, a_1, a_2, b, b_1, b_2, c"):
        make_tasks(entries, targets=["d"])


def test_only_targets_are_checked():
    entries = [{"name": "broken", "prompt": "x", "fps": -1}, {"name": "fine", "prompt": "x", **SIZE}]
    assert [task.name for task in make_tasks(entries, targets=["fine"])] == ["fine"]
    with pytest.raises(MuseVError, match="Task 'broken': fps"):
        make_tasks(entries)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "Task 'x': prompt: missing"),
        ({"prompt": None}, "Task 'x': prompt: missing"),
        ({"prompt": "p", "hight": 64}, "Task 'x': hight: unknown field .* Did you mean 'height'"),
        ({"prompt": "p {other}", "mood": "sad"}, "Task 'x': mood: unknown field in the task, and no {mood}"),
        ({"prompt": "p {other}"}, "Task 'x': .*other"),
        ({"prompt": "p"}, "Task 'x': height and width: needed"),
        ({"prompt": "p", "context_stride": 2}, "Task 'x': context_stride: .* strided windows"),
        (
            {"prompt": "p", "refer_image": "${.condition_image}", "condition_images": "a"},
            "Did you mean 'condition_images'",
        ),
        ({"prompt": "${.negative_prompt}", "negative_prompt": "${.prompt}"}, "prompt -> negative_prompt -> prompt"),
        ({"prompt": "${oc.env:HOME}"}, "Task 'x': prompt: expected a reference like"),
        (
            {"prompt": "p", "condition_images": "gone.png"},
            "Task 'x': condition_images: the file gone.png does not exist",
        ),
        ({"prompt": "p", "video_path": "gone.mp4", **SIZE}, "Task 'x': video_path: the file gone.mp4 does not exist"),
        ({"prompt": "p", "face_image": ["gone.png"], **SIZE}, "Task 'x': face_image: the file gone.png does not exist"),
    ],
)
def test_wrong_entries_are_named(fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MuseVError, match=message):
        make_tasks([{"name": "x", **fields}])


@pytest.mark.parametrize("key", DEAD_PARAMETERS)
def test_dead_parameters_are_refused_with_a_hint(key):
    with pytest.raises(MuseVError, match=f"Task 'x': {key}: no longer a parameter in the task: ."):
        make_tasks([{"name": "x", "prompt": "p", key: "something", **SIZE}])
    with pytest.raises(MuseVError, match=f"{key}: no longer a parameter in the defaults"):
        make_tasks([], defaults={key: "something"})
    assert key not in FIELDS


def test_dead_parameters_which_ask_for_nothing_do_no_harm():
    entry = {"prompt": "p", "context_stride": 1, "pose_guider_model_path": None, **SIZE}
    assert len(make_tasks([entry], defaults={"context_stride": "1"})) == 1


def test_unknown_default_is_refused():
    with pytest.raises(MuseVError, match="motion_sped: unknown field in the defaults.* Did you mean 'motion_speed'"):
        make_tasks([{"prompt": "p", **SIZE}], defaults={"motion_sped": 3})


def test_names_are_unique_also_after_splitting():
    with pytest.raises(MuseVError, match="Task 'x': name: two tasks are called so"):
        make_tasks([{"name": "x", "prompt": "a"}, {"name": "x", "prompt": "b"}])
    with pytest.raises(MuseVError, match="Task 'x_1': name: two tasks are called so"):
        make_tasks([{"name": "x", "prompt": "a|b"}, {"name": "x_1", "prompt": "b"}])


def test_entry_must_be_a_mapping():
    with pytest.raises(MuseVError, match="Task 0: expected a mapping of fields, got 'prompt'"):
        make_tasks(["prompt"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tasks.csv", "name,prompt", "is a CSV file; convert it to YAML(.|\n)*- name: yongen"),
        ("tasks.py", "raise SystemExit('was run')", "never executed(.|\n)*- name: yongen"),
        ("tasks.yaml", "", "should hold a list of tasks"),
        ("tasks.yaml", "tasks: []", "should hold a list of tasks"),
        ("tasks.yaml", "prompt: a single task", "should hold a list of tasks"),
        ("tasks.yaml", "- {prompt: [", "is not valid YAML: (.|\n)*line 1"),
        ("tasks.yaml", "- !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_wrong_files_are_explained(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(MuseVError, match=message):
        load_tasks(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MuseVError, match="The task file .*gone.yaml cannot be read"):
        load_tasks(tmp_path / "gone.yaml")
    with pytest.raises(MuseVError, match="cannot be read"):
        load_tasks(tmp_path)


# ---- names of results


def name(**values: Any) -> str:
    return output_name(make(**({"prompt": "p", "name": "girl"} | SIZE | values)), model="musev", seed=7)


def test_output_name_reads_well_and_never_changes():
    assert name() == "girl_musev_64x128_12f_s7_xm5gx"


def test_output_name_tells_apart_what_differs_in_the_result(folder):
    same = {
        "n_repeat": 3,
        "seed": 7,
        "context_batch_size": 4,
        "negative_prompt": negative_prompt("V2"),
        "style": "anime",
    }
    assert name(**same) == name() == name(height=64, width=32, img_length_ratio=2)
    different = [
        {},
        {"prompt": "q"},
        {"video_num_inference_steps": 20},
        {"negative_prompt": "V1"},
        {"fps": 8},
        {"refer_image": folder / "a.png"},
        {"face_image": folder / "a.png"},
        {"refer_image": folder / "b.png"},
        {"refer_image": [folder / "a.png", folder / "b.png"]},
    ]
    assert len({name(**values) for values in different}) == len(different)
    task = make(prompt="p", name="girl", **SIZE)
    assert output_name(task, model="a/b", seed=7)[-5:] != output_name(task, model="a:b", seed=7)[-5:]


def test_output_name_goes_by_what_pictures_show_not_where_they_lie(folder):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert name(refer_image=folder / "copy.png") == name(refer_image=folder / "a.png")
    with pytest.raises(MuseVError, match="Task 'girl': refer_image: .*gone.png cannot be read"):
        name(refer_image=folder / "gone.png")


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ("../a b:c?", "a_b_c_musev"),
        ("///", "task_musev"),
        ("x" * 300, "x" * 40 + "_musev"),
        ("\u821e\u8e48", "\u821e\u8e48_musev"),
    ],
)
def test_output_name_is_safe_on_file_systems(given, start):
    result = name(name=given)
    assert result.startswith(start) and len(result.encode()) < 200
    assert not set(result) & set('/\\:*?"<>| ')


def test_files_are_checked_apart_from_values(tmp_path):
    task = make(condition_images=tmp_path / "later.png")
    with pytest.raises(MuseVError, match="later.png does not exist"):
        check_files(task)
    (tmp_path / "later.png").touch()
    check_files(task)
