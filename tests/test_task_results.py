"""What a task will give: frame count, frame size, file name, and the files it needs."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.task_inputs import write_inputs

from musev_core.encode.prompts import negative_prompt
from musev_core.errors import MuseVError
from musev_core.tasks.results import check_files, frame_count, frame_size, output_name, result_facts
from musev_core.tasks.task import Task

SIZE: dict[str, Any] = {"height": 128, "width": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)


def make(**values: Any) -> Task:
    """A task of values as a file or a shell gives them."""
    values.setdefault("prompt", "")
    return Task(**values)


# ---- frame count and size


@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ({}, 24),  # the generated first frame is one of the shot's
        ({"condition_images": "a"}, 25),
        ({"condition_images": ["a", "b", "c"]}, 27),
        ({"condition_images": "a", "use_condition_image": False}, 24),
        ({"condition_images": "a", "redraw_condition_image": True}, 25),
        ({"condition_images": "a", "n_vision_condition": 0}, 24),
        ({"condition_images": "a", "video_path": "v"}, 24),
        ({"condition_images": "a", "video_path": "v", "video_has_condition": False}, 25),
        ({"video_path": "v", "video_has_condition": False, "n_vision_condition": 0}, 24),
    ],
)
def test_frame_count(values, frames):
    assert frame_count(make(n_batch=2, **values)) == frames


def test_one_frame_after_a_given_image_is_fine():
    assert frame_count(make(time_size=1, condition_images="a")) == 2


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
    (tmp_path / "broken").write_text("no picture", encoding="utf-8")
    with pytest.raises(MuseVError, match="Task 'task': condition_images: .*broken' cannot be read as an image"):
        frame_size(make(condition_images=tmp_path / "broken"))
    with pytest.raises(MuseVError, match="Task 'task': video_path: .*broken' cannot be read as a video"):
        frame_size(make(video_path=tmp_path / "broken"))


# ---- names of results


def result_name(task: Task, model: str = "musev") -> str:
    return output_name(task, result_facts(task, {}), model=model, seed=7)


def name(**values: Any) -> str:
    return result_name(make(**({"prompt": "p", "name": "girl"} | SIZE | values)))


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
    assert result_name(task, "a/b")[-5:] != result_name(task, "a:b")[-5:]


def test_output_name_goes_by_what_pictures_show_not_where_they_lie(folder):
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert name(refer_image=folder / "copy.png") == name(refer_image=folder / "a.png")
    with pytest.raises(MuseVError, match="Task 'girl': refer_image: .*gone.png. cannot be read"):
        name(refer_image=folder / "gone.png")


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ("../a b:c?", "a_b_c_musev"),
        ("///", "task_musev"),
        ("x" * 300, "x" * 34 + "-bvhcz_musev"),
        ("\u821e\u8e48", "\u821e\u8e48_musev"),
    ],
)
def test_output_name_is_safe_on_file_systems(given, start):
    result = name(name=given)
    assert result.startswith(start) and len(result.encode()) < 200
    assert not set(result) & set('/\\:*?"<>| ')


@pytest.mark.parametrize(
    "begins", ["musev_referencenet_pose-", "majicmixRealisticVision_v6_inpainting_fp16_pruned_", "\u821e" * 60]
)
def test_base_models_whose_names_begin_alike_are_told_apart_in_every_part_of_the_name(begins):
    task = make(prompt="p", name="\u821e" * 60, **SIZE)
    one, two = (result_name(task, f"{begins}{end}") for end in ("one", "two"))
    labels = [result.rpartition("_64x128_")[0] for result in (one, two)]
    assert labels[0] != labels[1] and all(len(result.encode()) <= 230 for result in (one, two))


def test_files_are_checked_apart_from_values(tmp_path):
    task = make(condition_images=tmp_path / "later.png")
    with pytest.raises(MuseVError, match="later.png' does not exist. Relative names are looked for beside"):
        check_files(task)
    (tmp_path / "later.png").touch()
    check_files(task)
