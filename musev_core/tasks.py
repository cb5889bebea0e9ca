"""Tasks: what one video is made of, checked before anything long starts, and the task files which list them."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import os
import re
import unicodedata
from base64 import b32encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .denoise.guidance import GUIDANCE_METHODS
from .denoise.noise import NOISE_TYPES
from .denoise.windows import FUSIONS, SCHEDULES
from .errors import MuseVError
from .images import target_size
from .prompts import fill_template, negative_prompt
from .video import iter_frames


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What a field of `Task` means and accepts; kept in the field's metadata, listed in `FIELDS`."""

    kind: type  # str, int, float, bool or Path
    help: str  # one sentence: unit, range, which way it pushes the result
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive lower bound
    choices: tuple[str, ...] = ()
    many: bool = False  # a tuple; written as one value, a YAML list, or (not for paths) a comma list
    option: str | None = None  # the original's command line name where it is not the field's
    affects_result: bool = True  # part of the hash in `output_name`


def _field(default: Any, kind: type, help: str, **rules: Any) -> Any:
    return dataclasses.field(default=default, metadata={"info": FieldInfo(kind=kind, help=help, **rules)})


@dataclass(frozen=True, kw_only=True)
class Task:
    """One video to make: parameter names and defaults of the original (extra.md 2.7 and 2.8).

    Values may be given as text ("1.8", "on", "0,-1"); they are converted to the annotated types, presets of
    negative prompts become their text. The switches which the original turns *off* when given are plain booleans.

    Raises:
        MuseVError: a value is of the wrong kind or out of range, or values contradict each other. Files are
            looked at by `check_files` only.
    """

    # what to show
    name: str = _field(
        "task",
        str,
        "Name of the task, used to select it and in the name of the result.",
        affects_result=False,
    )
    prompt: str = dataclasses.field(
        metadata={"info": FieldInfo(kind=str, help="What to show; (text:1.3) weighs a part, {key} inserts a field.")}
    )
    negative_prompt: str = _field(
        "V2", str, "What the first frame should not show: a preset (Empty, V1 to V5) or text."
    )
    video_negative_prompt: str = _field(
        "V2", str, "What the video should not show: a preset (Empty, V1 to V5) or text."
    )
    add_static_video_prompt: bool = _field(
        False, bool, 'Put "static video, " before the negative prompt of the video, which asks for more motion.'
    )
    style: str | None = _field(
        None, str, "Style of the task; base models whose table entry names another style skip it.", affects_result=False
    )
    sex: str | None = _field(
        None, str, "Sex of the person; base models whose table entry names another one skip it.", affects_result=False
    )

    # pictures and video
    condition_images: tuple[Path, ...] = _field(
        (), Path, "Picture(s) the video starts from, kept as its first frames; none: one is generated.", many=True
    )
    condition_images_index: tuple[int, ...] | None = _field(
        None, int, "Frame number of every condition image, negative from the end; default: the first frames.", many=True
    )
    video_path: Path | None = _field(None, Path, "Video which guides the result; makes the task video-to-video.")
    refer_image: tuple[Path, ...] = _field(
        (),
        Path,
        "Picture(s) whose details the ReferenceNet keeps; default: the condition image.",
        many=True,
        option="referencenet_image_path",
    )
    ipadapter_image: tuple[Path, ...] = _field(
        (),
        Path,
        "Picture(s) whose content and style the IP-Adapter follows; default: the condition image.",
        many=True,
        option="ipadapter_image_path",
    )
    face_image: tuple[Path, ...] = _field(
        (),
        Path,
        "Picture(s) whose face FaceID keeps; default: the condition image.",
        many=True,
        option="face_image_path",
    )

    # size and length
    height: int | None = _field(
        None, int, "Height in pixels before the ratio; default: that of the condition image, else of the video.", low=1
    )
    width: int | None = _field(
        None, int, "Width in pixels before the ratio; default: that of the condition image, else of the video.", low=1
    )
    img_length_ratio: float = _field(
        1.0, float, "Multiplies height and width, which are then rounded down to multiples of 64.", above=0
    )
    n_batch: int = _field(1, int, "Number of shots, each starting from the end of the one before.", low=1)
    time_size: int = _field(12, int, "Frames per shot; any length, the context windows share it.", low=1)
    fps: float = _field(4.0, float, "Frames per second of the saved file; changes its speed, not its frames.", above=0)

    # the first frame
    use_condition_image: bool = _field(True, bool, "Use the condition images; off: the first frame is generated.")
    n_vision_condition: int = _field(
        1, int, "Frames at the end of a shot which the next one continues; 0: no condition frames at all.", low=0
    )
    fix_condition_images: bool = _field(
        False, bool, "Start every shot from the first condition instead of the last frames of the shot before."
    )
    redraw_condition_image: bool = _field(
        False, bool, "Repaint the condition image with the model first, so that it matches the model's style."
    )
    redraw_condition_image_with_referencenet: bool = _field(
        True, bool, "Let the ReferenceNet take part in making the first frame."
    )
    redraw_condition_image_with_ipdapter: bool = _field(
        True, bool, "Let the IP-Adapter take part in making the first frame."
    )
    redraw_condition_image_with_ip_adapter_face: bool = _field(
        True, bool, "Let FaceID take part in making the first frame."
    )
    strength: float = _field(
        0.8, float, "How much a redrawn condition image changes, 0 (stays) to 1 (made anew).", low=0, high=1
    )
    num_inference_steps: int = _field(
        30, int, "Steps for the first frame if it is made; more is slower and finer.", low=1
    )
    guidance_scale: float = _field(
        7.5, float, "How closely the first frame follows the prompt; 1 or less: no guidance.", low=0
    )

    # sampling the video
    video_num_inference_steps: int = _field(10, int, "Steps for the video; more is slower and finer.", low=1)
    video_guidance_scale: float = _field(
        3.5, float, "How closely the video follows the prompt; 1 or less: no guidance, twice as fast.", low=0
    )
    video_guidance_scale_end: float | None = _field(
        None, float, "Guidance scale of the last step; default: the same for all steps.", low=0
    )
    video_guidance_scale_method: str = _field(
        "linear",
        str,
        "How guidance goes from start to end: a line, halves, thirds, or 3 steps and then the end value.",
        choices=GUIDANCE_METHODS,
    )
    noise_type: str = _field(
        "video_fusion",
        str,
        "video_fusion: frames share a part of their noise, which calms the video; random: they do not.",
        choices=NOISE_TYPES,
    )
    w_ind_noise: float = _field(
        0.5, float, "Share of noise of its own per frame, 0 to 1; more gives more motion and flicker.", low=0, high=1
    )
    need_img_based_video_noise: bool = _field(True, bool, "Mix the condition image into the initial noise.")
    img_weight: float = _field(
        1e-3, float, "Share of the condition image in the noise, 0 to 1; more holds the video closer.", low=0, high=1
    )
    motion_speed: float = _field(
        8.0, float, "Source frames between two frames, trained with 8 to 16; more gives larger motion.", low=0
    )
    need_hist_match: bool = _field(False, bool, "Match the colours of all frames to the first one, against drift.")
    seed: int | None = _field(
        None,
        int,
        "Seed of all random numbers; default: a new one for every repeat.",
        low=0,
        high=2**64 - 1,
        affects_result=False,
    )
    n_repeat: int = _field(1, int, "How often the task is run, with different seeds.", low=1, affects_result=False)

    # references
    fixed_refer_image: bool = _field(
        True, bool, "Keep the reference picture for all shots; off: the last frames of the shot before."
    )
    fixed_ip_adapter_image: bool = _field(
        True, bool, "Keep the IP-Adapter picture for all shots; off: the last frames of the shot before."
    )
    fixed_refer_face_image: bool = _field(
        True, bool, "Keep the face picture for all shots; off: the last frames of the shot before."
    )
    ip_adapter_scale: float = _field(
        1.0, float, "Strength of the IP-Adapter; 0 is off, more keeps closer to its picture.", low=0
    )
    ip_adapter_face_scale: float = _field(
        1.0, float, "Strength of FaceID; 0 is off, more keeps closer to its face.", low=0
    )

    # context windows
    context_schedule: str = _field(
        "uniform_v2",
        str,
        "How windows are laid over the frames; uniform wraps around from the end to the beginning, for loops.",
        choices=SCHEDULES,
    )
    context_frames: int = _field(
        12, int, "Frames per window; trained with 12, more needs more memory and shares more motion.", low=1
    )
    context_overlap: int = _field(
        4, int, "Frames two windows share, less than context_frames; more is smoother and slower.", low=0
    )
    context_batch_size: int = _field(
        1, int, "Windows computed at once; more needs more memory.", low=1, affects_result=False
    )
    context_fuse: str = _field(
        "flat",
        str,
        "Weights of overlapping windows: flat as the original, linear or pyramid hide the seams.",
        choices=FUSIONS,
    )

    # video to video
    which2video: str = _field(
        "video",
        str,
        "video: the frames also start the noise; video_middle: they act through the ControlNet only.",
        choices=("video", "video_middle"),
    )
    video_is_middle: bool = _field(False, bool, "The video already is the control map (pose, depth, ...).")
    video_has_condition: bool = _field(
        True, bool, "The first video frame matches the condition image; off: the map of that image is put in front."
    )
    video_strength: float = _field(
        1.0, float, "How far the result may leave the video, 0 (stays) to 1 (only its noise counts).", low=0, high=1
    )
    sample_rate: int = _field(1, int, "Use every n-th frame of the video; more gives faster motion.", low=1)
    controlnet_name: tuple[str, ...] = _field(
        (), str, "Control preprocessor(s) for the video, a comma list, e.g. dwpose_body_hand.", many=True
    )
    controlnet_conditioning_scale: float = _field(
        1.0, float, "Strength of the ControlNet(s); 0 is off, more follows the video more closely.", low=0
    )
    control_guidance_start: float = _field(
        0.0, float, "Share of the steps, 0 to 1, after which the ControlNet begins.", low=0, high=1
    )
    control_guidance_end: float = _field(
        1.0,
        float,
        "Share of the steps, 0 to 1, after which the ControlNet ends; less gives more freedom.",
        low=0,
        high=1,
    )
    need_return_videos: bool = _field(False, bool, "Show the source video beside the result.")
    need_return_condition: bool = _field(False, bool, "Show the control maps beside the result.")

    def __post_init__(self) -> None:
        """Convert and check every field, then the fields together."""
        with _blame(self.name):
            for key, info in FIELDS.items():
                object.__setattr__(self, key, _convert(key, getattr(self, key), info))
            for key in ("negative_prompt", "video_negative_prompt"):
                object.__setattr__(self, key, negative_prompt(getattr(self, key)))
            _check(self)

    @property
    def conditions(self) -> tuple[Path, ...]:
        """The condition images which become frames; empty if they are switched off."""
        return self.condition_images if self.use_condition_image and self.n_vision_condition else ()

    @property
    def makes_first_frame(self) -> bool:
        """Whether the condition frame is generated or redrawn instead of taken as it is."""
        return self.n_vision_condition > 0 and (self.redraw_condition_image or not self.conditions)


FIELDS: Mapping[str, FieldInfo] = MappingProxyType({f.name: f.metadata["info"] for f in dataclasses.fields(Task)})
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Task) if f.default is not dataclasses.MISSING}

_NO_FACEIN = "face-in was never finished; keep a face with face_image and an IP-Adapter face model"
_NO_SERIAL = "blending with the shot before was an experiment; use one long shot (n_batch 1) with context windows"
DEAD_PARAMETERS: Mapping[str, str] = MappingProxyType(
    {
        "facein_model_cfg_path": _NO_FACEIN,
        "facein_model_name": _NO_FACEIN,
        "facein_scale": _NO_FACEIN,
        "redraw_condition_image_with_facein": _NO_FACEIN,
        "context_stride": "strided windows have no effect with uniform_v2; widen context_frames or context_overlap",
        "interpolation_factor": "frames are not interpolated; make more of them with time_size, or raise fps",
        "end_to_end": "it has no effect; n_batch and time_size say how shots are chained",
        "pose_guider_model_path": "it was an experiment; guide poses with controlnet_name: dwpose_body_hand",
        "enable_zero_snr": "it was an experiment which breaks guidance; leave it out",
        "record_mid_video_latents": _NO_SERIAL,
        "record_mid_video_noises": _NO_SERIAL,
        "video_overlap": _NO_SERIAL,
        "need_video2video": "write which2video: video",
        "prompt_only_use_image_prompt": "the released models read text and image prompts apart; write prompt: ''",
    }
)
_HARMLESS = {"context_stride": "1"}  # a dead parameter at the value existing scripts give it
_FREE_KEYS = frozenset({"template_name", "eye_blinks_factor"})  # in the original's files even where no prompt asks
_TEMPLATE_KEY = re.compile(r"\{\s*(\w+)\s*\}")
_SIBLING = re.compile(r"\$\{\.(\w+)\}")
_EXAMPLE = (
    "- name: yongen\n  prompt: (masterpiece:1.2), a girl is dancing\n  condition_images: ./images/yongen.jpeg\n"
    "  refer_image: ${.condition_images}\n  motion_speed: 8.0"
)


# ------------------------------------------------------------------------------------------------ values

_WANTED = {str: "text", Path: "a file name", bool: "true or false", int: "a whole number", float: "a number"}
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@contextmanager
def _blame(task: object) -> Iterator[None]:
    """Put the task's name before an error that does not carry it yet."""
    try:
        yield
    except MuseVError as error:
        if str(error).startswith("Task "):
            raise
        raise MuseVError(f"Task {str(task)!r}: {error}") from error


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null"))


def _number(value: str | int | float, kind: type) -> int | float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    if kind is float:
        return number
    try:
        return int(value)  # not int(number): a float would round a large seed
    except ValueError:
        return int(number)  # "12.0"


def _scalar(key: str, value: Any, kind: type) -> Any:
    number_or_text = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    result: Any = None
    if kind is str and number_or_text:
        result = str(value)
    elif kind is Path and isinstance(value, (str, os.PathLike)):
        result = Path(value.strip() if isinstance(value, str) else value).expanduser()
    elif kind is bool and isinstance(value, (str, int)):
        result = _SWITCHES.get(str(value).strip().lower())
    elif kind in (int, float) and number_or_text:
        result = _number(value, kind)
    if result is None:
        raise MuseVError(f"{key}: expected {_WANTED[kind]}, got {value!r}.")
    return result


def _convert(key: str, value: Any, info: FieldInfo) -> Any:
    """`value` as the field's type, within the field's bounds."""
    default = _DEFAULTS.get(key)
    if info.many:
        if isinstance(value, str) and info.kind is not Path:
            value = value.split(",")
        items = [value] if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable) else list(value)
        if info.kind is str:
            items = [item.strip() if isinstance(item, str) else item for item in items]
        return tuple(_scalar(key, item, info.kind) for item in items if not _is_none(item)) or default
    if default is None and key in _DEFAULTS and _is_none(value):
        return None
    result = _scalar(key, value, info.kind)
    if info.choices and result not in info.choices:
        wanted = ", ".join(info.choices)
        raise MuseVError(f"{key}: expected one of {wanted}, got {value!r}.{_nearest(result, info.choices)}")
    bounds = (("at least", info.low), ("above", info.above), ("at most", info.high))
    if not (
        (info.low is None or result >= info.low)
        and (info.above is None or result > info.above)
        and (info.high is None or result <= info.high)
    ):
        wanted = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise MuseVError(f"{key}: expected a number {wanted}, got {value!r}.")
    return result


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _check(task: Task) -> None:
    """Values which are fine alone but not together (extra.md 2.1, 2.2, 2.8)."""
    if task.context_overlap >= task.context_frames:
        raise MuseVError(
            f"context_overlap: must be less than context_frames ({task.context_frames}), got {task.context_overlap}."
        )
    if task.control_guidance_start > task.control_guidance_end:
        raise MuseVError(
            f"control_guidance_start: must not be after control_guidance_end ({task.control_guidance_end:g}), "
            f"got {task.control_guidance_start:g}."
        )
    if task.n_vision_condition > task.time_size:
        raise MuseVError(
            f"n_vision_condition: a shot of time_size {task.time_size} frames cannot hand on {task.n_vision_condition}."
        )
    if task.height is not None and task.width is not None:
        _scaled(task.width, task.height, task.img_length_ratio)
    if task.video_path is None:
        _check_without_video(task)
    else:
        _check_video(task)
    if task.time_size < 2 and (task.makes_first_frame or (task.video_path is not None and task.n_vision_condition)):
        raise MuseVError(
            f"time_size: the first frame is one of the shot's, so at least 2 are needed, got {task.time_size}."
        )
    if task.condition_images_index is not None:
        _check_positions(task.condition_images_index, task)


def _check_without_video(task: Task) -> None:
    if task.controlnet_name:
        raise MuseVError(
            f"video_path: missing, but controlnet_name {', '.join(task.controlnet_name)} needs a video to read."
        )
    if task.video_is_middle:
        raise MuseVError("video_path: missing, but video_is_middle says that there is a video of control maps.")


def _check_video(task: Task) -> None:
    if task.video_is_middle and task.which2video == "video":
        raise MuseVError(
            "which2video: a video of control maps (video_is_middle) cannot start the noise, its maps would become the "
            "picture. Write which2video: video_middle."
        )
    if task.which2video == "video_middle" and not task.controlnet_name:
        raise MuseVError(
            "controlnet_name: missing; with which2video: video_middle only a ControlNet reads the video. Name one "
            "(e.g. dwpose_body_hand), or write which2video: video."
        )
    if not task.video_has_condition and task.n_vision_condition and not task.conditions:
        raise MuseVError(
            "condition_images: missing; video_has_condition: false puts the control map of that image in front."
        )
    if len(task.conditions) > 1:
        raise MuseVError(f"condition_images: video-to-video starts from one picture, got {len(task.conditions)}.")


def _check_positions(positions: tuple[int, ...], task: Task) -> None:
    if len(positions) != len(task.condition_images):
        raise MuseVError(
            f"condition_images_index: expected one frame number per condition image ({len(task.condition_images)}), "
            f"got {list(positions)}."
        )
    frames = frame_count(task)
    if any(not -frames <= position < frames for position in positions):
        raise MuseVError(
            f"condition_images_index: the video has {frames} frames (0 to {frames - 1}), got {list(positions)}."
        )
    if len({position % frames for position in positions}) < len(positions):
        raise MuseVError(f"condition_images_index: a frame can hold one condition image only, got {list(positions)}.")


# ------------------------------------------------------------------------------------------------ results

_EXIF_ORIENTATION = 0x0112  # values 5 to 8 swap the sides


def frame_count(task: Task) -> int:
    """Frames of the result, condition frames included (extra.md 2.2, 2.8).

    A given condition image stands before the n_batch * time_size frames; a generated or redrawn one is the first of
    them, and so is the condition frame of a video which begins with it. A short video gives fewer frames.
    """
    frames = task.n_batch * task.time_size
    if task.n_vision_condition == 0:
        return frames
    if task.video_path is not None:
        return frames if task.video_has_condition else frames + 1
    return frames if task.makes_first_frame else frames + len(task.conditions)


def frame_size(task: Task) -> tuple[int, int]:
    """(width, height) of the frames in pixels, multiples of 64 (extra.md 2.7).

    A missing height or width is that of the first condition image in use, else of the video.

    Raises:
        MuseVError: there is nothing to take the size from, the file is unreadable, or a side is below 64.
    """
    with _blame(task.name):
        width, height = task.width, task.height
        if width is None or height is None:
            if task.condition_images and task.use_condition_image:
                source = _picture_size(task.condition_images[0])
            elif task.video_path is not None:
                source = _video_size(task.video_path)
            else:
                raise MuseVError(
                    "height and width: needed, since there is no condition image or video to take them from."
                )
            width, height = width or source[0], height or source[1]
        return _scaled(width, height, task.img_length_ratio)


def _scaled(width: int, height: int, ratio: float) -> tuple[int, int]:
    try:
        height, width = target_size(height, width, ratio)
    except MuseVError as error:
        raise MuseVError(f"height, width, img_length_ratio: {error}") from error
    return width, height


def _picture_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5  # `load_image` puts it upright
            return (height, width) if turned else (width, height)
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise MuseVError(f"condition_images: {path} cannot be read as a picture ({error}).") from error


def _video_size(path: Path) -> tuple[int, int]:
    try:
        height, width, _ = next(iter_frames(path)).shape
    except MuseVError as error:
        raise MuseVError(f"video_path: {error}") from error
    return width, height


def check_files(task: Task) -> None:
    """Raise MuseVError for a picture or video of the task that is not there."""
    with _blame(task.name):
        for key, path in _files(task):
            if not path.is_file():
                raise MuseVError(
                    f"{key}: the file {path} does not exist. Relative names are looked for beside the task file, "
                    f"then in {Path.cwd()}."
                )


def _files(task: Task) -> Iterator[tuple[str, Path]]:
    for key, info in FIELDS.items():
        if info.kind is Path:
            value = getattr(task, key)
            for path in value if info.many else filter(None, [value]):
                yield key, path


def output_name(task: Task, *, model: str, seed: int) -> str:
    """`<name>_<model>_<w>x<h>_<frames>f_s<seed>_<hash>`: the result's file name without extension.

    The original spells out two dozen parameters (extra.md 7.2): too long for some file systems, hard to read, and two
    runs which differ in an unlisted one (steps, the video) overwrite each other. Here the hash stands for everything
    that changes the result: model, seed, and all parameters that are not at their default, with pictures and videos by
    content. So a run finds its own file again, from another folder too, and a parameter added later renames nothing.
    """
    width, height = frame_size(task)
    facts: dict[str, Any] = {"model": model, "seed": seed, "size": [width, height]}
    reference = Task(prompt="")
    for key, info in FIELDS.items():
        value = getattr(task, key)
        sized = key in ("height", "width", "img_length_ratio")  # count by the size they lead to
        if info.affects_result and info.kind is not Path and not sized and value != getattr(reference, key):
            facts[key] = value
    for key, path in _files(task):
        facts.setdefault(key, []).append(_content(task.name, key, path))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()
    code = b32encode(digest)[:5].decode().lower()  # letters which survive file systems that ignore case
    return f"{_plain(task.name, 40)}_{_plain(model, 24)}_{width}x{height}_{frame_count(task)}f_s{seed}_{code}"


def _content(task: str, key: str, path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MuseVError(f"Task {task!r}: {key}: {path} cannot be read ({error}).") from error
    return digest.hexdigest()


def _plain(text: str, length: int) -> str:
    cleaned = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text))
    return cleaned.strip("._-")[:length].rstrip("._-") or "task"


# ------------------------------------------------------------------------------------------------ task files


def load_tasks(
    path: str | os.PathLike[str],
    *,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
) -> list[Task]:
    """Read a task file: a YAML list of tasks, or a mapping with the list under `tasks` (extra.md 2.7).

    Args:
        path: the YAML file. Relative file names in it are looked for beside it, then in the working directory.
        defaults: values for fields which a task leaves out, e.g. from the command line.
        targets: names of the tasks wanted, in any order; None for all. Only these are checked.

    Raises:
        MuseVError: the file or a task is wrong; the message names the task and the field.
    """
    path = Path(path).expanduser()
    return make_tasks(_read(path), folder=path.parent, defaults=defaults, targets=targets)


def make_tasks(
    entries: Sequence[Any],
    *,
    folder: Path | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[str] | None = None,
) -> list[Task]:
    """Checked tasks from the mappings of a task file; see `load_tasks`.

    `${.key}` becomes the sibling's value; then a text with `|` splits its task into one per alternative, all
    combinations, named name_1, name_2...; then `{key}` in the prompt becomes the value of that field.
    A target selects a task by its name before or after splitting.
    """
    _check_keys(defaults, "the defaults", used=frozenset())
    named = [(str(name), fields) for name, fields in map(_named, itertools.count(), entries)]
    variants = [(name, *variant) for name, fields in named for variant in _alternatives(name, fields)]
    _check_unique([name for name, _ in named])
    _check_unique([name for _, name, _ in variants])
    if targets is not None:
        known = dict.fromkeys(name for base, name, _ in variants for name in (base, name))
        targets = [target.strip() for target in targets]
        for target in targets:
            if target not in known:
                raise MuseVError(
                    f"There is no task {target!r}.{_nearest(target, known)} Known tasks: {', '.join(known)}."
                )
        variants = [variant for variant in variants if variant[0] in targets or variant[1] in targets]
    tasks = []
    for _, name, fields in variants:
        with _blame(name):
            tasks.append(_build(name, fields, defaults, folder))
    return tasks


def _build(name: str, fields: Mapping[str, Any], defaults: Mapping[str, Any], folder: Path | None) -> Task:
    values: dict[str, Any] = {key: value for key, value in defaults.items() if value is not None}
    for key, value in fields.items():
        template_word = key not in FIELDS and key not in DEAD_PARAMETERS
        if value is not None or template_word:  # null means the default, or no word in a template
            values[key] = _located(value, folder) if _is_path(key) else value
    if "prompt" not in values:
        raise MuseVError("prompt: missing; every task needs one (it may be empty: prompt: '').")
    prompt = _scalar("prompt", values["prompt"], str)
    _check_keys(values, "the task", used=frozenset(_TEMPLATE_KEY.findall(prompt)))
    values["name"] = name
    values["prompt"] = fill_template(prompt, {**fields, **values})
    task = Task(**{key: value for key, value in values.items() if key in FIELDS})
    check_files(task)
    frame_size(task)
    return task


def _is_path(key: str) -> bool:
    return key in FIELDS and FIELDS[key].kind is Path


def _located(value: Any, folder: Path | None) -> Any:
    """The file beside the task file if it is there; otherwise the name is left to the working directory."""
    if isinstance(value, list):
        return [_located(item, folder) for item in value]
    if folder is None or not isinstance(value, str) or _is_none(value):
        return value
    beside = folder / Path(value.strip()).expanduser()
    return beside if beside.exists() else value


def _check_keys(values: Mapping[str, Any], where: str, *, used: frozenset[str]) -> None:
    for key, value in values.items():
        if key in DEAD_PARAMETERS:
            if str(value) != _HARMLESS.get(key):
                raise MuseVError(f"{key}: no longer a parameter in {where}: {DEAD_PARAMETERS[key]}.")
        elif key not in FIELDS and key not in used and key not in _FREE_KEYS:
            raise MuseVError(
                f"{key}: unknown field in {where}, and no {{{key}}} in the prompt uses it.{_nearest(str(key), FIELDS)}"
            )


def _named(index: int, entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping):
        raise MuseVError(
            f"Task {index}: expected a mapping of fields, got {entry!r}. A task looks like this:\n{_EXAMPLE}"
        )
    fields = {str(key): value for key, value in entry.items()}
    name = fields.pop("name", None)
    return str(index if name is None else name).strip(), fields


def _check_unique(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MuseVError(f"Task {name!r}: name: two tasks are called so; every task needs a name of its own.")
        seen.add(name)


def _alternatives(name: str, fields: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    with _blame(name):
        resolved = {key: _interpolate(value, fields | {"name": name}, (key,)) for key, value in fields.items()}
    choices = [
        [part.strip() for part in value.split("|")] if isinstance(value, str) and "|" in value else [value]
        for value in resolved.values()
    ]
    variants = [dict(zip(resolved, values, strict=True)) for values in itertools.product(*choices)]
    return [(name if len(variants) == 1 else f"{name}_{i}", variant) for i, variant in enumerate(variants, 1)]


def _interpolate(value: Any, fields: Mapping[str, Any], trail: tuple[str, ...]) -> Any:
    """`value` with every `${.key}` replaced by the sibling field; `trail` are the keys being resolved."""
    if isinstance(value, list):
        return [_interpolate(item, fields, trail) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value

    def sibling(match: re.Match[str]) -> Any:
        key = match[1]
        if key in trail:
            raise MuseVError(f"{trail[0]}: the references {' -> '.join((*trail, key))} go round in a circle.")
        if key not in fields:
            raise MuseVError(
                f"{trail[0]}: {match[0]} refers to a field which this task does not have.{_nearest(key, fields)}"
            )
        return _interpolate(fields[key], fields, (*trail, key))

    if whole := _SIBLING.fullmatch(value.strip()):
        return sibling(whole)
    result = _SIBLING.sub(lambda match: str(sibling(match)), value)
    if "${" in result:
        raise MuseVError(f"{trail[0]}: expected a reference like ${{.condition_images}}, got {value!r}.")
    return result


def _read(path: Path) -> list[Any]:
    import yaml

    kind = path.suffix.lower()
    if kind == ".csv":
        raise MuseVError(f"{path} is a CSV file; convert it to YAML, one list entry per row:\n{_EXAMPLE}")
    if kind == ".py":
        raise MuseVError(f"{path} is Python code, which is never executed. Write the tasks as YAML:\n{_EXAMPLE}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MuseVError(f"The task file {path} cannot be read ({error}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MuseVError(f"The task file {path} is not valid YAML: {error}") from error
    if isinstance(data, Mapping) and "tasks" in data:
        data = data["tasks"]
    if not isinstance(data, list) or not data:
        raise MuseVError(f"The task file {path} should hold a list of tasks, e.g.\n{_EXAMPLE}")
    return data
