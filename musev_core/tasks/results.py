"""What a task will give: number, size and file name of its frames, and the files it needs for them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import MAX_SIDE
from ..errors import MuseVError, blame
from ..file_names import existing_file, portable_name, short_code, shown
from .fields import field_infos
from .parameters import Parameters


def frame_count(task: Parameters) -> int:
    """Frames of the result, condition frames included (extra.md 2.2, 2.8).

    A given condition image, redrawn or not, stands before the n_batch * time_size frames; a generated one is the first
    of them, and so is the condition frame of a video which begins with it. A short video gives fewer frames.
    """
    frames = task.n_batch * task.time_size
    if task.n_vision_condition == 0:
        return frames
    if task.video_path is not None:
        return frames if task.video_has_condition else frames + 1
    return frames + len(task.conditions)


def frame_size(task: Parameters) -> tuple[int, int]:
    """(width, height) of the frames in pixels, multiples of 64 (extra.md 2.7).

    A missing height or width is that of the first condition image in use, else of the video.

    Raises:
        MuseVError: there is nothing to take the size from, the file is unreadable, or a side is below 64.
    """
    with blame(f"Task {task.name!r}"):
        width, height = task.width, task.height
        if width is None or height is None:
            if task.condition_images and task.use_condition_image:
                source = _source_size("condition_images", task.condition_images[0])
            elif task.video_path is not None:
                source = _source_size("video_path", task.video_path)
            else:
                raise MuseVError(
                    "height and width: needed, since there is no condition image or video to take them from."
                )
            width, height = width or source[0], height or source[1]
        return scaled_size(width, height, task.img_length_ratio)


def scaled_size(width: int, height: int, ratio: float) -> tuple[int, int]:
    """(width, height) times ratio, rounded down to multiples of 64.

    Raises:
        MuseVError: a side is below 64 or beyond `MAX_SIDE`.
    """
    from ..frames.images import target_size

    with blame("height, width, img_length_ratio"):
        height, width = target_size(height, width, ratio)
        if max(height, width) > MAX_SIDE:
            raise MuseVError(f"at most {MAX_SIDE:,} pixels a side, got {width:,} x {height:,}.")
    return width, height


def _source_size(key: str, path: Path) -> tuple[int, int]:
    from ..frames.image_files import load_image
    from ..frames.video import iter_frames

    with blame(key):
        picture = load_image(path)[0] if key == "condition_images" else next(iter_frames(path))
    height, width, _ = picture.shape
    return width, height


def check_files(task: Parameters) -> None:
    """Raise MuseVError for a picture or video of the task that is not there."""
    with blame(f"Task {task.name!r}"):
        for key, path in _files(task):
            is_video = key == "video_path"
            hint = f"Relative names are looked for beside the task file, then in {Path.cwd()}."
            with blame(key):
                existing_file(path, "video file" if is_video else "image file", folders=is_video, hint=hint)


def _files(task: Parameters) -> Iterator[tuple[str, Path]]:
    for key, info in field_infos(task).items():
        if info.kind is Path:
            value = getattr(task, key)
            for path in value if info.many else filter(None, [value]):
                yield key, path


def result_facts(task: Parameters, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the frames of a task's result but its seed: what is not at its default, by name.

    Pictures and videos count by their content, sizes by what they lead to; `networks` are those that make the result.
    """
    facts: dict[str, Any] = {"size": list(frame_size(task))}
    if networks:
        facts["networks"] = dict(networks)
    defaults = type(task)(prompt="")
    for key, info in field_infos(task).items():
        value = getattr(task, key)
        sized = key in ("height", "width", "img_length_ratio")
        if info.affects_result and info.kind is not Path and not sized and value != getattr(defaults, key):
            facts[key] = value
    for key, path in _files(task):
        with blame(f"Task {task.name!r}: {key}"):
            facts.setdefault(key, []).append(_content(path))
    return facts


def output_name(task: Parameters, facts: Mapping[str, Any], *, model: str, seed: int) -> str:
    """`<name>_<model>_<w>x<h>_<frames>f_s<seed>_<hash>`: the result's file name without extension.

    The original spells out two dozen parameters (extra.md 7.2): too long for some file systems, hard to read, and two
    runs which differ in an unlisted one (steps, the video) overwrite each other. Here the hash stands for model, seed
    and all `result_facts`. So a run finds its own file again, from another folder too, and a parameter added later
    renames nothing.
    """
    width, height = facts["size"]
    code = short_code(json.dumps({**facts, "model": model, "seed": seed}, sort_keys=True))
    name, model = portable_name(task.name, 40, fallback="task"), portable_name(model, 48, fallback="model")
    return f"{name}_{model}_{width}x{height}_{frame_count(task)}f_s{seed}_{code}"


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        for part in sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else [path]:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except (OSError, ValueError) as error:
        raise MuseVError(f"{shown(path)} cannot be read ({error}).") from error
    return digest.hexdigest()
