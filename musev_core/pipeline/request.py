"""What is asked for: numbers of a run, the inputs of a clip, a whole video."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from ..denoise.control import Control
from ..denoise.denoiser import DenoiserOptions
from ..denoise.guidance import guidance_schedule
from ..denoise.noise import NoiseOptions
from ..denoise.schedulers import SchedulerConfig, check_steps, scheduler_config
from ..errors import MuseVError
from ..frames.source import FrameSource

PART = 48  # generated frames of a part of a long video  # generated frames of a part of a long video


@dataclass(frozen=True)
class SamplingOptions:
    """Numbers of one run; the defaults are the original's for video.

    Args:
        num_steps: more is finer and slower.
        guidance_scale, guidance_end, guidance_method: see `guidance_schedule`; 1 or less halves the work.
        scheduler: a name of `SCHEDULERS` or a configuration.
        strength: 0..1, with an initial picture or video: how far the run may leave it. In a `VideoRequest` that of the
            first frame only; the video's is `video_strength`.
        image_scale, face_scale: strength of image prompt and FaceID; 0 is off.
        noise, denoiser: see there.
    """

    num_steps: int = 10
    guidance_scale: float = 3.5
    guidance_end: float | None = None
    guidance_method: str = "linear"
    scheduler: str | SchedulerConfig = "euler"
    strength: float = 1.0
    image_scale: float = 1.0
    face_scale: float = 1.0
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    denoiser: DenoiserOptions = field(default_factory=DenoiserOptions)

    def __post_init__(self) -> None:
        self.guidance()
        check_steps(scheduler_config(self.scheduler), self.num_steps)
        if not 0 <= self.strength <= 1:
            raise MuseVError(f"strength must lie in 0..1, got {self.strength}")
        for name in ("image_scale", "face_scale"):
            if not math.isfinite(getattr(self, name)):
                raise MuseVError(f"{name} must be a finite number, got {getattr(self, name)}")

    def guidance(self) -> list[float]:
        """The guidance scale of every step of a full run."""
        return guidance_schedule(self.guidance_scale, self.guidance_end, self.guidance_method, self.num_steps)


FIRST_FRAME = SamplingOptions(
    num_steps=30,
    guidance_scale=7.5,
    noise=NoiseOptions(type="random"),
    denoiser=DenoiserOptions(skip_temporal=True),
)


class LatentFrames(Protocol):
    """What gives latents of a video when they are needed."""

    @property
    def shape(self) -> Sequence[int]:
        """Of all of them, `(videos, c, frames, h, w)`."""
        ...

    def take(self, first: int, last: int) -> Tensor:
        """Those of the frames `first..last - 1`; none before `first` is asked for again."""
        ...


@dataclass
class ClipInputs:
    """What one run is given. Pictures are `(videos, pictures, H, W, 3)`, latents `(videos, 4, frames, h, w)`.

    Args:
        prompts, negative_prompts: one per video.
        num_frames: frames to generate, besides the condition frames.
        height, width: pixels, multiples of 8.
        condition_latents: clean frames, at `condition_frames` of the clip (default: its first frames).
        initial_latents: a video to start from instead of pure noise, one latent per generated frame; a tensor, or what
            makes them when they are needed.
        reference_images: fitted pictures for the ReferenceNet; image_prompts, face_images: for IP-Adapter and FaceID.
        controls: ControlNets, with a hint per frame of the clip.
        frame_numbers: of the clip's frames in the video, by which their noise is drawn; default: from 0 on.
    """

    prompts: Sequence[str]
    negative_prompts: Sequence[str]
    num_frames: int
    height: int
    width: int
    condition_latents: Tensor | None = None
    condition_frames: Sequence[int] | None = None
    initial_latents: Tensor | LatentFrames | None = None
    reference_images: Tensor | None = None
    image_prompts: Tensor | None = None
    face_images: Tensor | None = None
    controls: Sequence[Control] = ()
    legacy_fit: bool = False
    frame_numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Refuses what does not fit together, before any network runs."""
        for name in ("prompts", "negative_prompts"):
            if isinstance(getattr(self, name), str) or len(getattr(self, name)) != len(self.prompts):
                raise MuseVError(f"{name} must be a list with one text per video, got {getattr(self, name)!r}")
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 8:
            raise MuseVError(f"height and width must be multiples of 8 pixels, got {self.height} x {self.width}")
        latents = (len(self.prompts), self.height // 8, self.width // 8)
        for name in ("condition_latents", "initial_latents"):
            x = getattr(self, name)
            if x is not None and (len(x.shape) != 5 or (x.shape[0], *x.shape[3:]) != latents):
                raise MuseVError(
                    f"{name} must have the shape ({latents[0]}, channels, frames, {latents[1]}, {latents[2]}) for "
                    f"{latents[0]} video(s) of {self.height} x {self.width} pixels, got {tuple(x.shape)}"
                )
        for name in ("reference_images", "image_prompts", "face_images"):
            x = getattr(self, name)
            if x is not None and (x.ndim != 5 or x.shape[0] != latents[0] or x.shape[-1] != 3):
                raise MuseVError(f"{name} must have the shape ({latents[0]}, pictures, H, W, 3), got {tuple(x.shape)}")
        for control in self.controls:
            if tuple(control.hints.shape[1:]) != (3, self.height, self.width):
                raise MuseVError(
                    f"control hints must have the shape (frames, 3, {self.height}, {self.width}), "
                    f"got {tuple(control.hints.shape)}"
                )


@dataclass
class ControlInput:
    """One ControlNet for a video.

    Args:
        net: a diffusers `ControlNetModel`.
        frames: uint8 `(frames, H, W, 3)`: control maps, or rgb frames if there is a `preprocessor`; in memory, or a
            source that reads them when they are needed.
        preprocessor: rgb frames to control maps, uint8 both, e.g. `images.canny`.
        condition_map: `(n, H, W, 3)`, map of the condition frames if the first control frame is not theirs.
        scale, start, end: see `Control`.
    """

    net: nn.Module
    frames: Tensor | FrameSource
    preprocessor: Callable[[Tensor], Tensor] | None = None
    condition_map: Tensor | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "start", "end"):
            if not math.isfinite(getattr(self, name)):
                raise MuseVError(f"{name} of a ControlNet must be a finite number, got {getattr(self, name)}")


@dataclass
class VideoRequest:
    """A video to make. Pictures are uint8 `(n, H, W, 3)`.

    Args:
        prompt: weighted text; negative_prompt: of the video; first_frame_negative_prompt: None: the same.
        image: condition picture(s), the first frames of the video; None: one is generated from the text.
        condition_frames: their frame numbers in the first shot, negative from the end; default: the head.
        num_frames: frames per shot, besides a given condition picture, including a generated one; default: 12, or all
            frames of the driving video.
        num_shots: shots, each continuing the last `num_condition_frames` of the one before.
        height, width: pixels, multiples of 8; default: those of the image, or the video, rounded down to 64.
        video: rgb frames to start from (video-to-video), in memory or a source of them; `video_strength` 0..1 says how
            far the result may leave them.
        video_has_condition: the first frame of `video` or of the control frames belongs to the condition frame.
        controls: ControlNets.
        reference_image, image_prompt, face_image: default: the condition picture; `use_*` switches each off.
        redraw: repaint the condition picture first; `first_frame.strength` says how much.
        fixed_*: keep the same pictures for every shot; otherwise the last frames of the shot before.
        match_histogram: match the colours of every frame to the first.
        legacy_fit: crop and resize as the original does, which loses the last row or column (musev.md 9.9).
        sampling, first_frame: numbers of the video runs, and of the run that makes the first frame.
    """

    prompt: str
    negative_prompt: str = ""
    first_frame_negative_prompt: str | None = None
    image: Tensor | None = None
    condition_frames: Sequence[int] | None = None
    num_frames: int | None = None
    num_shots: int = 1
    height: int | None = None
    width: int | None = None
    video: Tensor | FrameSource | None = None
    video_strength: float = 1.0
    video_has_condition: bool = True
    controls: Sequence[ControlInput] = ()
    reference_image: Tensor | None = None
    image_prompt: Tensor | None = None
    face_image: Tensor | None = None
    use_reference: bool = True
    use_image_prompt: bool = True
    use_face: bool = True
    redraw: bool = False
    redraw_with_reference: bool = True
    redraw_with_image_prompt: bool = True
    redraw_with_face: bool = True
    num_condition_frames: int = 1
    fixed_condition: bool = False
    fixed_reference: bool = True
    fixed_image_prompt: bool = True
    fixed_face: bool = True
    match_histogram: bool = False
    legacy_fit: bool = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    first_frame: SamplingOptions = FIRST_FRAME
