"""Task files: templates, references, alternatives, selection, wrong entries."""

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.task_inputs import write_inputs

from musev_core.encode.prompts import negative_prompt
from musev_core.errors import MuseVError
from musev_core.tasks.dead import DEAD_PARAMETERS
from musev_core.tasks.files import load_tasks, make_tasks
from musev_core.tasks.results import frame_size
from musev_core.tasks.task import FIELDS, Task

SIZE: dict[str, Any] = {"height": 128, "width": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


def load(folder: Path, text: str, **options) -> list[Task]:
    """The tasks of a task file with this text, which lies in `folder`."""
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return load_tasks(file, **options)


def only(folder: Path, text: str, **options) -> Task:
    """The single task of the file."""
    [task] = load(folder, text, **options)
    return task


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


def test_every_style_of_render_makes_a_task():
    entry = {"name": "x", "prompt": "a, {render}", **SIZE}
    for render in ("HD, Digital", ["HD", "Digital"], "HD|Digital"):
        tasks = make_tasks([{**entry, "render": render}])
        assert [task.name for task in tasks] == ["x_1", "x_2"]
        assert tasks[0].prompt == "a, 8k, highly detailed" and "digital art" in tasks[1].prompt
    (task,) = make_tasks([{**entry, "render": "HD,"}])
    assert (task.name, task.prompt) == ("x", "a, 8k, highly detailed")


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
        ({"prompt": "p {other}", "hair": "red"}, "Task 'x': .*other"),
        ({"prompt": "p", "video": "a.mp4"}, "Task 'x': video: unknown field in the task, and no {video}.*video_path"),
        ({"prompt": "p", "face_image_path": "a"}, "Task 'x': face_image_path: .* in the task it is face_image"),
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
            "Task 'x': condition_images: The image file .*gone.png. does not exist",
        ),
        (
            {"prompt": "p", "video_path": "gone.mp4", **SIZE},
            "Task 'x': video_path: The video file .gone.mp4. does not exist",
        ),
        (
            {"prompt": "p", "face_image": ["gone.png"], **SIZE},
            "Task 'x': face_image: The image file .gone.png. does not exist",
        ),
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
    assert len(make_tasks([entry], defaults={"context_stride": "1", "end_to_end": None})) == 1


def test_unknown_default_is_refused():
    with pytest.raises(MuseVError, match="motion_sped: unknown field in the defaults.* Did you mean 'motion_speed'"):
        make_tasks([{"prompt": "p", **SIZE}], defaults={"motion_sped": 3})


def test_names_are_unique_also_after_splitting():
    with pytest.raises(MuseVError, match="Task 'x': name: two tasks are called so"):
        make_tasks([{"name": "x", "prompt": "a"}, {"name": "x", "prompt": "b"}])
    with pytest.raises(MuseVError, match="Task 'x_1': name: another task is called 'x_1'"):
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
        ("tasks.yaml", "- {prompt: [", r"is not valid YAML: line \d: \w+"),
        ("tasks.yaml", "- !!python/object/apply:os.getcwd []", "cannot be used: line 1: the tag"),
        ("tasks.yaml", "- {name: a, name: b}", "cannot be used: line 1: the key 'name' stands twice"),
    ],
)
def test_wrong_files_are_explained(name, text, message, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(MuseVError, match=message):
        load_tasks(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MuseVError, match="The task file .*gone.yaml' does not exist"):
        load_tasks(tmp_path / "gone.yaml")
    with pytest.raises(MuseVError, match="is a folder; the name of one task file was expected"):
        load_tasks(tmp_path)


# ---- bounds


def doubled(levels: int) -> dict[str, Any]:
    return {"a0": "lol"} | {f"a{i}": f"${{.a{i - 1}}}${{.a{i - 1}}}" for i in range(1, levels)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (doubled(40), "a12: with its references written out it has more than 10,000 characters"),
        ({"a0": ["x"]} | {f"a{i}": [f"${{.a{i - 1}}}"] * 2 for i in range(1, 40)}, "more than 10,000 characters"),
        ({"a": "x" * 9000, "b": "${.a} ${.a}"}, "b: with its references"),
        ({f"a{i}": f"${{.a{i + 1}}}" for i in range(5000)} | {"a5000": "x"}, "more than 50 references"),
        ({f"a{i}": [[[f"${{.a{i + 1}}}"]]] for i in range(60)} | {"a60": "x"}, "more than 50 references"),
        ({"a": "${.a}"}, "a -> a go round in a circle"),
        ({"a": ["${.a}"]}, "a -> a go round in a circle"),
        (
            {f"a{i}": "x|y" for i in range(40)},
            r"make 1,099,511,627,776 tasks \(a0 2, a1 2, .* and 32 more\), and a file may hold 1,000",
        ),
        ({"a": "|" * 1000}, r"make 1,001 tasks \(a 1001\)"),
        ({"word": "x" * 9000, "prompt": "{word} {word}"}, "prompt: .*more than 10,000 characters"),
        ({"prompt": "x" * 20_000}, "prompt: at most 10,000 characters, got 20,000"),
        ({"name": "n" * 300}, "name: at most 200 characters, got 300"),
        (
            {"condition_images": "n" * 300},
            "condition_images: The image file 'n+...n+' cannot be opened: File name too long",
        ),
        ({"condition_images": [["a"], ["b"]]}, "condition_images: expected a file name"),
        ({"condition_images": {"a": "b"}}, "condition_images: expected a file name, got {'a': 'b'}"),
        ({"condition_images": 5}, "condition_images: expected a file name, got 5"),
        ({"prompt": ["p"]}, "prompt: expected text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_grow_is_refused_at_once(fields, message):
    start = time.process_time()
    with pytest.raises(MuseVError, match=message) as caught:
        make_tasks([{"name": "x", "prompt": "p", **SIZE, **fields}])
    assert time.process_time() - start < 2 and len(str(caught.value)) < 2000


def test_a_file_may_hold_a_thousand_tasks_and_no_more():
    entries = [{"name": str(i), "prompt": "a|b", **SIZE} for i in range(501)]
    start = time.process_time()
    errors: list[MuseVError] = []
    assert len(make_tasks(entries, refuse=errors.append)) == 1000
    assert time.process_time() - start < 2
    assert ["Task '500': the alternatives" in str(error) for error in errors] == [True]
    with pytest.raises(MuseVError, match="A file may hold 1,000 tasks, got 1,001"):
        make_tasks([{"prompt": "a", **SIZE}] * 1001)


# ---- tasks that are wrong among others


def test_a_bad_task_does_not_refuse_the_others():
    entries: list[Any] = [
        "no mapping",
        {"name": "fast", "prompt": "p", "fps": -1, **SIZE},
        {"name": "good", "prompt": "p", **SIZE},
        {"name": "many", "prompt": "|".join("p" * 2000), **SIZE},
        {"name": "good", "prompt": "again", **SIZE},
        {"name": "round", "prompt": "${.prompt}", **SIZE},
        {"name": "split", "prompt": "a|b", **SIZE},
    ]
    errors: list[MuseVError] = []
    tasks = make_tasks(entries, refuse=errors.append)
    assert [task.name for task in tasks] == ["good", "split_1", "split_2"]
    assert sorted(str(error).split(":")[0] for error in errors) == [
        "Task 'fast'",
        "Task 'good'",
        "Task 'many'",
        "Task 'round'",
        "Task 0",
    ]
    with pytest.raises(MuseVError):
        make_tasks(entries)


def test_a_target_whose_task_cannot_be_split_is_told_why():
    entries = [{"name": "girl", "prompt": "${.gone}"}, {"name": "boy", "prompt": "p", **SIZE}]
    for target in ("girl", "girl_2"):
        with pytest.raises(MuseVError, match="Task 'girl': prompt: .*gone"):
            make_tasks(entries, targets=[target])
    assert [task.name for task in make_tasks(entries, targets=["boy"])] == ["boy"]


def test_notes_of_the_users_own_are_told_and_do_no_harm(caplog):
    entry = {
        "prompt": "p {word}",
        "my_note": "x",
        "author": None,
        "word": "y",
        "base": "a|b",
        "style": "${.base}",
        **SIZE,
    }
    assert len(make_tasks([entry])) == 4
    [record] = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().endswith(": my_note, author")
