"""The parameters of a task: what each means, and what it may be."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ..config import FUSIONS, GUIDANCE_METHODS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, NOISE_DRAWS, NOISE_TYPES, SCHEDULES
from ..values import SEEDS
from .fields import FieldInfo, field


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of a task, with the original's names and defaults (extra.md 2.7 and 2.8); `Task` checks them."""

    # what to show
    name: str = field(
        "task",
        str,
        "Name of the task, used to select it and in the name of the result.",
        affects_result=False,
    )
    prompt: str = dataclasses.field(  # said in full, so that type checkers see that it has no default
        metadata={"info": FieldInfo(kind=str, help="What to show; (text:1.3) weighs a part, {key} inserts a field.")}
    )
    negative_prompt: str = field("V2", str, "What the first frame should not show: a preset (Empty, V1 to V5) or text.")
    video_negative_prompt: str = field("V2", str, "What the video should not show: a preset (Empty, V1 to V5) or text.")
    add_static_video_prompt: bool = field(
        False, bool, 'Put "static video, " before the negative prompt of the video, which asks for more motion.'
    )
    style: str | None = field(
        None, str, "Style of the task; base models whose table entry names another style skip it.", affects_result=False
    )
    sex: str | None = field(
        None, str, "Sex of the person; base models whose table entry names another one skip it.", affects_result=False
    )

    # pictures and video
    condition_images: tuple[Path, ...] = field(
        (), Path, "Picture(s) the video starts from, kept as its first frames; none: one is generated.", many=True
    )
    condition_images_index: tuple[int, ...] | None = field(
        None, int, "Frame number of every condition image, negative from the end; default: the first frames.", many=True
    )
    video_path: Path | None = field(
        None, Path, "Video, or folder of pictures, which guides the result; makes the task video-to-video."
    )
    refer_image: tuple[Path, ...] = field(
        (),
        Path,
        "Picture(s) whose details the ReferenceNet keeps; default: the condition image.",
        many=True,
        option="referencenet_image_path",
    )
    ipadapter_image: tuple[Path, ...] = field(
        (),
        Path,
        "Picture(s) whose content and style the IP-Adapter follows; default: the condition image.",
        many=True,
        option="ipadapter_image_path",
    )
    face_image: tuple[Path, ...] = field(
        (),
        Path,
        "Picture(s) whose face FaceID keeps; default: the condition image.",
        many=True,
        option="face_image_path",
    )

    # size and length
    height: int | None = field(
        None,
        int,
        "Height in pixels before the ratio; default: that of the condition image, else of the video.",
        low=1,
        high=MAX_SIDE,
    )
    width: int | None = field(
        None,
        int,
        "Width in pixels before the ratio; default: that of the condition image, else of the video.",
        low=1,
        high=MAX_SIDE,
    )
    img_length_ratio: float = field(
        1.0, float, "Multiplies height and width, which are then rounded down to multiples of 64.", above=0, high=16
    )
    n_batch: int = field(
        1, int, "Number of shots, each starting from the end of the one before.", low=1, high=MAX_FRAMES
    )
    time_size: int = field(
        12, int, "Frames per shot; any length, the context windows share it.", low=1, high=MAX_FRAMES
    )
    fps: float = field(
        4.0, float, "Frames per second of the saved file; changes its speed, not its frames.", above=0, high=1000
    )

    # the first frame
    use_condition_image: bool = field(True, bool, "Use the condition images; off: the first frame is generated.")
    n_vision_condition: int = field(
        1,
        int,
        "Frames at the end of a shot which the next one continues; 0: no condition frames at all.",
        low=0,
        high=MAX_FRAMES,
    )
    fix_condition_images: bool = field(
        False, bool, "Start every shot from the first condition instead of the last frames of the shot before."
    )
    redraw_condition_image: bool = field(
        False, bool, "Repaint the condition image with the model first, so that it matches the model's style."
    )
    redraw_condition_image_with_referencenet: bool = field(
        True, bool, "Let the ReferenceNet take part in making the first frame."
    )
    redraw_condition_image_with_ipdapter: bool = field(
        True, bool, "Let the IP-Adapter take part in making the first frame."
    )
    redraw_condition_image_with_ip_adapter_face: bool = field(
        True, bool, "Let FaceID take part in making the first frame."
    )
    strength: float = field(
        0.8, float, "How much a redrawn condition image changes, 0 (stays) to 1 (made anew).", low=0, high=1
    )
    num_inference_steps: int = field(
        30, int, "Steps for the first frame if it is made; more is slower and finer.", low=1, high=MAX_STEPS
    )
    guidance_scale: float = field(
        7.5, float, "How closely the first frame follows the prompt; 1 or less: no guidance.", low=0, high=1000
    )

    # sampling the video
    video_num_inference_steps: int = field(
        10, int, "Steps for the video; more is slower and finer.", low=1, high=MAX_STEPS
    )
    video_guidance_scale: float = field(
        3.5, float, "How closely the video follows the prompt; 1 or less: no guidance, twice as fast.", low=0, high=1000
    )
    video_guidance_scale_end: float | None = field(
        None, float, "Guidance scale of the last step; default: the same for all steps.", low=0, high=1000
    )
    video_guidance_scale_method: str = field(
        "linear",
        str,
        "How guidance goes from start to end: a line, halves, thirds, or 3 steps and then the end value.",
        choices=GUIDANCE_METHODS,
    )
    noise_type: str = field(
        "video_fusion",
        str,
        "video_fusion: frames share a part of their noise, which calms the video; random: they do not.",
        choices=NOISE_TYPES,
    )
    w_ind_noise: float = field(
        0.5, float, "Share of noise of its own per frame, 0 to 1; more gives more motion and flicker.", low=0, high=1
    )
    noise_draw: str = field(
        "frames",
        str,
        "frames: noise by frame number, a longer video begins like a shorter one; original: the original's numbers.",
        choices=NOISE_DRAWS,
    )
    need_img_based_video_noise: bool = field(True, bool, "Mix the condition image into the initial noise.")
    img_weight: float = field(
        1e-3, float, "Share of the condition image in the noise, 0 to 1; more holds the video closer.", low=0, high=1
    )
    motion_speed: float = field(
        8.0,
        float,
        "Source frames between two frames, trained with 8 to 16; more gives larger motion.",
        low=0,
        high=1000,
    )
    need_hist_match: bool = field(False, bool, "Match the colours of all frames to the first one, against drift.")
    seed: int | None = field(
        None,
        int,
        "Seed of all random numbers; default: a new one for every repeat.",
        low=0,
        high=SEEDS - 1,
        affects_result=False,
    )
    n_repeat: int = field(
        1, int, "How often the task is run, with different seeds.", low=1, affects_result=False, high=1000
    )

    # references
    fixed_refer_image: bool = field(
        True, bool, "Keep the reference picture for all shots; off: the last frames of the shot before."
    )
    fixed_ip_adapter_image: bool = field(
        True, bool, "Keep the IP-Adapter picture for all shots; off: the last frames of the shot before."
    )
    fixed_refer_face_image: bool = field(
        True, bool, "Keep the face picture for all shots; off: the last frames of the shot before."
    )
    ip_adapter_scale: float = field(
        1.0, float, "Strength of the IP-Adapter; 0 is off, more keeps closer to its picture.", low=0, high=100
    )
    ip_adapter_face_scale: float = field(
        1.0, float, "Strength of FaceID; 0 is off, more keeps closer to its face.", low=0, high=100
    )

    # context windows
    context_schedule: str = field(
        "uniform_v2",
        str,
        "How windows are laid over the frames; uniform wraps around from the end to the beginning, for loops.",
        choices=SCHEDULES,
    )
    context_frames: int = field(
        12,
        int,
        "Frames per window; trained with 12, more needs more memory and shares more motion.",
        low=1,
        high=MAX_FRAMES,
    )
    context_overlap: int = field(
        4,
        int,
        "Frames two windows share, less than context_frames; more is smoother and slower.",
        low=0,
        high=MAX_FRAMES,
    )
    context_batch_size: int = field(
        1, int, "Windows computed at once; more needs more memory.", low=1, affects_result=False, high=MAX_FRAMES
    )
    context_fuse: str = field(
        "flat",
        str,
        "Overlapping windows: flat as the original; linear or pyramid, which differ with uniform only, hide the seams.",
        choices=FUSIONS,
    )

    # video to video
    which2video: str = field(
        "video",
        str,
        "video: the frames also start the noise; video_middle: they act through the ControlNet only.",
        choices=("video", "video_middle"),
    )
    video_is_middle: bool = field(False, bool, "The video already is the control map (pose, depth, ...).")
    video_has_condition: bool = field(
        True, bool, "The first video frame matches the condition image; off: the map of that image is put in front."
    )
    video_strength: float = field(
        1.0, float, "How far the result may leave the video, 0 (stays) to 1 (only its noise counts).", low=0, high=1
    )
    pose_align: bool = field(
        False, bool, "Give the poses of the video the proportions and place of the person in the condition image."
    )
    sample_rate: int = field(
        1, int, "Use every n-th frame of the video; more gives faster motion.", low=1, high=MAX_FRAMES
    )
    controlnet_name: tuple[str, ...] = field(
        (), str, "Control preprocessor(s) for the video, a comma list, e.g. dwpose_body_hand.", many=True
    )
    controlnet_conditioning_scale: float = field(
        1.0, float, "Strength of the ControlNet(s); 0 is off, more follows the video more closely.", low=0, high=100
    )
    control_guidance_start: float = field(
        0.0, float, "Share of the steps, 0 to 1, after which the ControlNet begins.", low=0, high=1
    )
    control_guidance_end: float = field(
        1.0,
        float,
        "Share of the steps, 0 to 1, after which the ControlNet ends; less gives more freedom.",
        low=0,
        high=1,
    )
    need_return_videos: bool = field(False, bool, "Show the source video beside the result.")
    need_return_condition: bool = field(False, bool, "Show the control maps beside the result.")

    @property
    def conditions(self) -> tuple[Path, ...]:
        """The condition images which become frames; empty if they are switched off."""
        return self.condition_images if self.use_condition_image and self.n_vision_condition else ()

    @property
    def needs_condition_map(self) -> bool:
        """Whether the driving video does not begin with the control map of the condition image."""
        return bool(self.conditions) and not self.video_has_condition
