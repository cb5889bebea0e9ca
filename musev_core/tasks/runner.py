"""From a task of a task file to a request for the pipeline, and to a file on disk (extra.md 2)."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoise.denoiser import DenoiserOptions
from ..denoise.noise import NoiseOptions
from ..denoise.windows import WindowOptions
from ..errors import MuseVError
from ..frames.image_files import load_images
from ..frames.images import fit_images, to_uint8
from ..frames.source import FileFrames
from ..pipeline import ControlInput, PictureNetwork, SamplingOptions, VideoRequest
from ..pipeline.driving import DrivingFrames
from ..pipeline.shots import ShotRunner
from ..pose.aligned import align_video
from ..pose.preprocessors import PREPROCESSORS, ControlPreprocessor, check_preprocessor
from .results import frame_size
from .task import Task

log = logging.getLogger(__name__)


def video_request(
    task: Task,
    *,
    controlnets: Mapping[str, Any] | None = None,
    annotators: Sequence[str | Path] = (),
    device: str | torch.device = "cpu",
    scheduler: str = "euler",
) -> VideoRequest:
    """The request a task stands for; pictures and videos are read here.

    Args:
        controlnets: ControlNet per name of `task.controlnet_name`.
        annotators: folders with the weight files of control preprocessors.
        device: where these run.
        scheduler: of all runs, e.g. `lcm` with the LCM LoRA.
    """
    width, height = frame_size(task)

    def pictures(paths: Iterable[Path]) -> Tensor | None:
        images = [fit_images(image, height, width) for image in load_images(paths)]
        return torch.cat(images) if images else None

    image = pictures(task.conditions)
    num_frames, num_shots = task.time_size, task.n_batch
    frames = None
    if task.video_path is not None:
        frames = FileFrames(task.video_path, stride=task.sample_rate, max_frames=num_frames * num_shots)
        if len(frames) < num_frames:
            log.warning("%s has %d frames at this sample_rate, fewer than time_size %d: the video gets as many",
                        task.video_path, len(frames), num_frames)  # fmt: skip
            num_frames = len(frames)
        num_shots = len(frames) // num_frames
    windows = WindowOptions(
        length=task.context_frames,
        overlap=task.context_overlap,
        schedule=task.context_schedule,
        fuse=task.context_fuse,
    )
    denoiser = DenoiserOptions(
        windows=windows, motion_speed=task.motion_speed, windows_per_call=task.context_batch_size
    )
    image_weight = task.img_weight if task.need_img_based_video_noise else None
    sampling = SamplingOptions(
        num_steps=task.video_num_inference_steps,
        guidance_scale=task.video_guidance_scale,
        guidance_end=task.video_guidance_scale_end,
        guidance_method=task.video_guidance_scale_method,
        scheduler=scheduler,
        image_scale=task.ip_adapter_scale,
        face_scale=task.ip_adapter_face_scale,
        noise=NoiseOptions(task.noise_type, task.w_ind_noise, image_weight, task.noise_draw),
        denoiser=denoiser,
    )
    first_frame = SamplingOptions(
        num_steps=task.num_inference_steps,
        guidance_scale=task.guidance_scale,
        scheduler=scheduler,
        strength=task.strength,
        image_scale=task.ip_adapter_scale,
        face_scale=task.ip_adapter_face_scale,
        noise=NoiseOptions("random", draw=task.noise_draw),
        denoiser=DenoiserOptions(skip_temporal=True),
    )
    negative = task.video_negative_prompt
    return VideoRequest(
        prompt=task.prompt,
        negative_prompt=f"static video, {negative}" if task.add_static_video_prompt else negative,
        first_frame_negative_prompt=task.negative_prompt,
        image=image,
        condition_frames=task.condition_images_index,
        num_frames=num_frames,
        num_shots=num_shots,
        height=height,
        width=width,
        video=frames if task.which2video == "video" else None,
        video_strength=task.video_strength,
        video_has_condition=task.video_has_condition,
        controls=[] if frames is None else _controls(task, frames, image, controlnets or {}, annotators, device),
        reference_image=pictures(task.refer_image),
        image_prompt=pictures(task.ipadapter_image),
        face_image=pictures(task.face_image),
        redraw=task.redraw_condition_image,
        redraw_with_reference=task.redraw_condition_image_with_referencenet,
        redraw_with_image_prompt=task.redraw_condition_image_with_ipdapter,
        redraw_with_face=task.redraw_condition_image_with_ip_adapter_face,
        num_condition_frames=task.n_vision_condition,
        fixed_condition=task.fix_condition_images,
        fixed_reference=task.fixed_refer_image,
        fixed_image_prompt=task.fixed_ip_adapter_image,
        fixed_face=task.fixed_refer_face_image,
        match_histogram=task.need_hist_match,
        sampling=sampling,
        first_frame=first_frame,
    )


def without_unused_pictures(request: VideoRequest, networks: Mapping[str, PictureNetwork]) -> VideoRequest:
    """The request without pictures for networks which were not loaded.

    Task files name the same picture for all purposes as a rule, and leaving a network out is a choice of the run.
    """
    unused = [name for name, network in networks.items() if not network.loaded and getattr(request, name) is not None]
    for name in unused:
        log.warning("%s is not used: %s is not loaded", name, networks[name].needs)
    return replace(request, **dict.fromkeys(unused))


def check_controls(task: Task, controlnets: Iterable[str], annotators: Sequence[str | Path] = ()) -> None:
    """Raises MuseVError for a ControlNet, a preprocessor or its weights a task needs and this run does not have."""
    known = list(controlnets)
    for name in task.controlnet_name:
        if name not in known:
            raise MuseVError(
                f"controlnet_name: say where the ControlNet {name!r} is with --controlnet {name}=PATH"
                + (f" (given: {', '.join(known)})" if known else "")
            )
        if not task.video_is_middle or task.needs_condition_map:
            check_preprocessor(name, annotators)
        if task.pose_align and "body" not in PREPROCESSORS[name].parts:
            finding = ", ".join(known for known, one in PREPROCESSORS.items() if "body" in one.parts)
            raise MuseVError(
                f"pose_align: task {task.name!r} names {name!r}, which finds no bodies that could be aligned; use one "
                f"of {finding}"
            )


def _controls(
    task: Task,
    frames: FileFrames,
    image: Tensor | None,
    controlnets: Mapping[str, Any],
    annotators: Sequence[str | Path],
    device: str | torch.device,
) -> list[ControlInput]:
    check_controls(task, controlnets, annotators)
    controls = []
    for name in task.controlnet_name:
        maps: Tensor | FileFrames = frames
        preprocessor, condition_map = None, None
        if not task.video_is_middle or task.needs_condition_map:
            preprocessor = ControlPreprocessor(name, folders=annotators, device=device)
        if preprocessor is not None and image is not None and task.pose_align:
            reference = preprocessor.run(image[:1])
            maps = align_video(preprocessor, frames.take(range(len(frames))), reference).maps
            preprocessor, condition_map = None, reference.maps
        elif preprocessor is not None and image is not None and task.video_is_middle:
            condition_map, preprocessor = preprocessor(image), None
        controls.append(
            ControlInput(
                controlnets[name],
                maps,
                preprocessor=preprocessor,
                condition_map=condition_map,
                scale=task.controlnet_conditioning_scale,
                start=task.control_guidance_start,
                end=task.control_guidance_end,
            )
        )
    return controls


def result_frames(
    task: Task,
    shots: ShotRunner,
    frames: Iterable[Tensor],
    *,
    first: int = 0,
    n_cols: int = 3,
    write_info: bool = False,
) -> Iterator[Tensor]:
    """The frames to write: those that `shots` makes, beside them source and control maps if the task asks for them.

    `first` is the number of the first of the frames. `n_cols` videos at most stand in a row; `write_info` writes what
    they are and the frame number into the pictures.
    """
    source = shots.source() if task.need_return_videos else None
    before = [] if source is None else [source]
    beside = shots.hints if task.need_return_condition else []
    start = first
    for part in frames:
        columns = [_rows(x, start, len(part)) for x in before] + [part] + [_rows(x, start, len(part)) for x in beside]
        if write_info:
            names = ["source"] * len(before) + [task.name] + list(task.controlnet_name)
            columns = [labelled(column, name, start) for column, name in zip(columns, names, strict=False)]
        yield columns[0] if len(columns) == 1 else grid(columns, n_cols)
        start += len(part)


def labelled(frames: Tensor, label: str, first: int) -> Tensor:
    """Frames with a label at the top left and the frame number at the bottom left.

    `frames (k, H, W, 3)` in 0..1, `first` is the number of the first of them (extra.md 7.2).
    """
    from PIL import Image, ImageDraw

    marked = []
    for number, frame in enumerate(frames, first):
        picture = Image.fromarray(to_uint8(frame[None])[0].numpy())
        draw = ImageDraw.Draw(picture)
        draw.text((4, 2), label, fill=(255, 0, 0))
        draw.text((4, picture.height - 14), str(number), fill=(255, 0, 0))
        marked.append(torch.from_numpy(np.array(picture)))
    return torch.stack(marked).float() / 255


def _rows(frames: DrivingFrames, start: int, count: int) -> Tensor:
    """`count` frames from `start`; the last one stays where the video is shorter than the result."""
    return frames.take([min(i, len(frames) - 1) for i in range(start, start + count)])


def grid(videos: list[Tensor], n_cols: int) -> Tensor:
    """Videos `(frames, H, W, 3)` of one size side by side, at most `n_cols` in a row (extra.md 7.2)."""
    n_rows = -(-len(videos) // n_cols)
    columns = -(-len(videos) // n_rows)
    blank = torch.zeros_like(videos[0])
    padded = videos + [blank] * (n_rows * columns - len(videos))
    rows = [torch.cat(padded[r * columns : (r + 1) * columns], dim=2) for r in range(n_rows)]
    return torch.cat(rows, dim=1)
