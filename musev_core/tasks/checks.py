"""What the values of a task must not say together."""

from ..config import MAX_FRAMES
from ..errors import MuseVError
from .parameters import Parameters
from .results import frame_count, scaled_size


def check_together(task: Parameters) -> None:
    """Raise MuseVError for values which are fine alone but not together (extra.md 2.1, 2.2, 2.8)."""
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
    if task.n_batch * task.time_size > MAX_FRAMES:
        raise MuseVError(
            f"n_batch, time_size: a video may have {MAX_FRAMES:,} frames, got {task.n_batch:,} x {task.time_size:,}."
        )
    if task.height is not None and task.width is not None:
        scaled_size(task.width, task.height, task.img_length_ratio)
    if task.video_path is None:
        _check_without_video(task)
    else:
        _check_video(task)
    if task.time_size < 2 and task.n_vision_condition and (task.video_path is not None or not task.conditions):
        raise MuseVError(
            f"time_size: the first frame is one of the shot's, so at least 2 are needed, got {task.time_size}."
        )
    if task.condition_images_index is not None:
        _check_positions(task.condition_images_index, task)


def _check_without_video(task: Parameters) -> None:
    if task.controlnet_name:
        raise MuseVError(
            f"video_path: missing, but controlnet_name {', '.join(task.controlnet_name)} needs a video to read."
        )
    if task.video_is_middle:
        raise MuseVError("video_path: missing, but video_is_middle says that there is a video of control maps.")
    if task.pose_align:
        raise MuseVError("pose_align: there is no video whose poses could be aligned; give video_path.")


def _check_video(task: Parameters) -> None:
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
    if task.pose_align:
        _check_alignment(task)
    if len(task.conditions) > 1:
        raise MuseVError(f"condition_images: video-to-video starts from one picture, got {len(task.conditions)}.")


def _check_alignment(task: Parameters) -> None:
    if task.video_is_middle:
        raise MuseVError(
            "pose_align: a video of control maps (video_is_middle) has no poses to align any more. Give the video they "
            "were made from, or align the poses before: musev pose align."
        )
    if not task.controlnet_name:
        raise MuseVError("pose_align: poses act through a ControlNet only; name one, e.g. dwpose_body_hand.")
    if not task.conditions:
        raise MuseVError("pose_align: needs condition_images, the picture of the person to align to.")


def _check_positions(positions: tuple[int, ...], task: Parameters) -> None:
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
