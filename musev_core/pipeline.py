"""From pictures, text and videos to a video (musev.md 4 and 5, extra.md 2).

`MuseVPipeline.sample` is one run of the denoising loop over one clip; calling the pipeline makes a whole video: the
first frame if none is given, then one or several shots which continue each other through their latents.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .config import UNetConfig
from .denoise.control import Control
from .denoise.denoiser import ClipDenoiser, DenoiserOptions
from .denoise.guidance import guidance_schedule, guide
from .denoise.noise import NoiseOptions, VideoNoise, image_based_noise
from .denoise.parts import PredictionCache, parts
from .denoise.schedulers import SchedulerConfig, VideoScheduler, check_steps, scheduler_config
from .denoise.windows import take_frames
from .encode.pictures import FacePromptEncoder, ImagePromptEncoder
from .encode.text import encode_prompts
from .encode.vae import LatentDecoder, decode_latents, encode_latents
from .errors import Cancelled, MuseVError
from .frames.images import matched_to_first
from .frames.source import FrameSource
from .models.compilation import compile_network
from .models.conditions import ClipConditions

if TYPE_CHECKING:
    from .shots import ShotRunner


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


PART = 48  # generated frames of a part of a long video
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


@dataclass(frozen=True)
class StepInfo:
    """State after a step. Latents are `(videos, 4, generated frames of the part, h, w)`; `predicted` is the clean
    video so far."""

    run: str
    step: int
    num_steps: int
    timestep: float
    latents: Tensor
    predicted: Tensor


@dataclass
class Observer:
    """How the outside follows a run, and stops it.

    Args:
        on_step: called after every step.
        on_window: called with (run, step, windows done, windows in all) before every call of the network and once more
            when a step's windows are done.
        cancelled: asked before every call of the network; True raises `Cancelled`.
    """

    on_step: Callable[[StepInfo], None] | None = None
    on_window: Callable[[str, int, int, int], None] | None = None
    cancelled: Callable[[], bool] | None = None

    def check(self) -> None:
        """Raises `Cancelled` if that is wanted."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("stopped on request")


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


@dataclass
class VideoResult:
    """A finished video: latents `(4, frames, h, w)`, decoded when the frames are asked for."""

    latents: Tensor
    vae: Any
    match_histogram: bool = False

    def __len__(self) -> int:
        return self.latents.shape[1]

    def frames(
        self, *, batch: int | None = None, decoder: LatentDecoder | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[Tensor]:
        """Frames `(k, H, W, 3)` in 0..1, a few at a time, so that a long video never is in memory as pixels.

        Args:
            batch: how many at once; default: as many as fit in memory.
            decoder: another than the pipeline's VAE, e.g. a fast TAESD for a look.
            dtype: precision; default: what is safe, see `musev_core.encode.vae`.
        """
        frames = decode_latents(decoder or self.vae, self.latents, batch=batch, dtype=dtype)
        return matched_to_first(frames) if self.match_histogram else frames

    def video(self, **options: Any) -> Tensor:
        """All frames `(frames, H, W, 3)` in 0..1; `options` as for `frames`."""
        return torch.cat(list(self.frames(**options)))

    def save(self, path: str, *, fps: float, overwrite: bool = False, **options: Any) -> str:
        """Writes the video while it is decoded; the suffix decides the format, `options` are as for `frames`."""
        from .frames.video import VideoWriter

        with VideoWriter(path, fps=fps, overwrite=overwrite) as writer:
            for part in self.frames(**options):
                writer.write(part)
        return str(writer.path)


@dataclass(frozen=True)
class PictureNetwork:
    """Whether a kind of picture can be used: the UNet has `layers` for it, and its network is `loaded`."""

    layers: bool
    loaded: bool
    needs: str


@dataclass
class MuseVPipeline:
    """The networks which together make videos.

    Args:
        unet: `MuseVUNet`; vae: diffusers `AutoencoderKL`; tokenizer, text_encoder: CLIP of the base model.
        reference_net, image_prompt, face_prompt: optional; their pictures are refused if they are missing.
    """

    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: Any
    reference_net: Any = None
    image_prompt: ImagePromptEncoder | None = None
    face_prompt: FacePromptEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the UNet's weights are."""
        return next(self.unet.parameters()).device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "MuseVPipeline":
        """Moves the networks; the VAE keeps its precision (`musev_core.encode.vae` says in which it decodes)."""
        for net in (self.unet, self.text_encoder, self.reference_net, *self._prompt_networks()):
            if net is not None:
                net.to(device=device, dtype=dtype)
        self.vae.to(device=device)
        return self

    def compile(self, *, graphs: bool = False, **options: Any) -> "MuseVPipeline":
        """Compiles the UNet at its first call for each shape, with CUDA graphs on request; see `compile_network`.

        The other networks run as they are.
        """
        compile_network(self.unet, graphs=graphs, **options)
        return self

    def _prompt_networks(self) -> Iterator[Any]:
        if self.image_prompt is not None:
            yield self.image_prompt.encoder
            yield self.image_prompt.projection
        if self.face_prompt is not None:
            yield self.face_prompt.projection

    def picture_networks(self) -> dict[str, PictureNetwork]:
        """Which kinds of pictures this pipeline can use, by their name in `VideoRequest`."""
        config: UNetConfig = self.unet.config
        return {
            "reference_image": PictureNetwork(
                config.reference_fusion, self.reference_net is not None, "a ReferenceNet"
            ),
            "image_prompt": PictureNetwork(
                config.image_prompt, self.image_prompt is not None, "an image encoder and its projection"
            ),
            "face_image": PictureNetwork(
                config.face_prompt, self.face_prompt is not None, "a face extractor and its projection"
            ),
        }

    # ------------------------------------------------------------------------------------------ one run

    @torch.no_grad()
    def sample(
        self,
        inputs: ClipInputs,
        options: SamplingOptions,
        *,
        noise: VideoNoise | None = None,
        observer: Observer | None = None,
        run: str = "video",
    ) -> Tensor:
        """One run of the denoising loop: latents `(videos, 4, frames of the clip, h, w)`, condition frames in place.

        `noise` has a seed per video; default: random ones.
        """
        (latents,) = self.sample_parts(inputs, options, noise=noise, observer=observer, run=run)
        return latents

    @torch.no_grad()
    def sample_parts(
        self,
        inputs: ClipInputs,
        options: SamplingOptions,
        *,
        length: int | None = None,
        frames: range | None = None,
        noise: VideoNoise | None = None,
        observer: Observer | None = None,
        run: str = "video",
    ) -> Iterator[Tensor]:
        """The same in parts of `length` generated frames: the first ones are there while later ones are still noise.

        Together they are, bit for bit, what `sample` makes. No window is evaluated twice, and the latents and
        predictions that are kept do not grow with the clip. With the schedule `uniform` the first part needs the
        windows of all frames but in the last step.

        Args:
            frames: only these of the clip, as the whole run makes them. To begin in the middle costs `S (S - 1) / 2`
                evaluations of windows more, with `S` steps and windows of 12 that share 4.

        Raises:
            MuseVError: the inputs do not fit together; several parts of noise that is drawn at once; frames that the
                clip does not have.
        """
        watch = observer or Observer()
        conditions, n = inputs.condition_latents, _frame_count(inputs.condition_latents)
        num_frames = n + inputs.num_frames
        given = list(range(n)) if inputs.condition_frames is None else list(inputs.condition_frames)
        if len(given) != n:
            raise MuseVError(f"{n} condition frames were given, but {len(given)} frame numbers for them: {given}")
        if any(not -num_frames <= i < num_frames for i in given):
            raise MuseVError(
                f"condition frame numbers must lie in 0..{num_frames - 1} for a clip of {num_frames} frames (or count "
                f"from its end, -1 is the last), got {given}"
            )
        places = [i % num_frames for i in given]
        wanted = range(num_frames) if frames is None else frames
        if not 0 <= wanted.start < wanted.stop <= num_frames:
            raise MuseVError(
                f"the clip has the frames 0..{num_frames - 1}, got {wanted.start}..{wanted.stop - 1} to be made"
            )
        alone = any(i not in wanted and i not in places for i in range(num_frames))
        partly = alone or (length is not None and length < inputs.num_frames)
        if partly and options.noise.draw == "original":
            raise MuseVError(
                "the original draws the noise of a whole clip at once; for a video in parts take the draw 'frames'"
            )
        if inputs.initial_latents is not None:
            channels, *size = self._latent_size(inputs)
            expected, got = (len(inputs.prompts), channels, inputs.num_frames, *size), inputs.initial_latents.shape
            if tuple(got) != expected:
                raise MuseVError(
                    f"the initial latents must have the shape {expected}, one per generated frame, got {tuple(got)}"
                )
        if inputs.initial_latents is not None and options.strength == 0:
            given = _taken(inputs.initial_latents, 0, inputs.num_frames).to(self.device)
            whole = _merge(given, conditions, range(num_frames), places)
            yield whole[:, :, wanted.start : wanted.stop]
            return

        def new_scheduler() -> VideoScheduler:
            strength = options.strength if inputs.initial_latents is not None else 1.0
            return VideoScheduler(options.scheduler, options.num_steps, strength=strength, device=self.device)

        guidance = options.guidance()[new_scheduler().first :]
        guided = max(guidance) > 1
        clip = self.clip_conditions(inputs, options, guided=guided)
        denoisers = {
            branches: ClipDenoiser(
                self.unet,
                clip if branches == 2 or not guided else clip.take(range(clip.rows // 2, clip.rows)),
                branches=branches,
                num_frames=num_frames,
                condition_frames=places,
                options=options.denoiser,
                controls=inputs.controls,
                on_window=lambda done, total: self._on_window(watch, run, step, done, total),
            )
            for branches in sorted({2 if g > 1 else 1 for g in guidance})
        }
        windows = next(iter(denoisers.values())).windows
        noise = noise or VideoNoise([int(torch.randint(2**63 - 1, ())) for _ in inputs.prompts])
        numbers = range(num_frames) if inputs.frame_numbers is None else inputs.frame_numbers
        cache, num_steps = PredictionCache(), len(guidance)
        controlled = bool(inputs.controls)
        calls, made, done = windows.calls(num_steps), windows.makes(wanted), wanted.start
        for part in parts(calls, length, per_frame=controlled, frames=made):
            generated, held, scheduler = windows.generated[part.start : part.stop], windows.held(part), new_scheduler()
            drawn = [numbers[i] for i in generated], self._latent_size(inputs), options.noise
            latents = self.initial_latents(inputs, options, scheduler, noise.draw(0, *drawn), part.start)
            for step in range(num_steps):
                watch.check()
                whole = _merge(scheduler.scale(latents, step), conditions, held, places)
                branches = 2 if guidance[step] > 1 else 1
                prediction = denoisers[branches](
                    whole, scheduler.timesteps[step], step, num_steps, part=part, cache=cache
                )
                if branches == 2:
                    prediction = guide(*prediction.chunk(2), guidance[step])
                fresh = partial(noise.draw, step + 1, *drawn)
                latents, predicted = scheduler.step(prediction, step, latents, fresh)
                if scheduler.original_discards_noise:
                    noise.skip(*drawn)
                if watch.on_step is not None:
                    timestep = float(scheduler.timesteps[step])
                    watch.on_step(StepInfo(run, step, num_steps, timestep, latents, predicted))
            cache.forget_before(part.keep_from)
            for denoiser in denoisers.values():
                denoiser.forget_before(part.keep_from)
            # with the condition frames before each that it makes, and after the last of all
            end = wanted.stop if part.last == made[1] else windows.generated[part.last - 1] + 1
            merged = _merge(latents, conditions, held, places)
            yield take_frames(merged, [held.index(frame) for frame in range(done, end)], dim=2)
            done = end

    @staticmethod
    def _on_window(observer: Observer, run: str, step: int, done: int, total: int) -> None:
        observer.check()
        if observer.on_window is not None:
            observer.on_window(run, step, done, total)

    def _latent_size(self, inputs: ClipInputs) -> tuple[int, int, int]:
        """`(c, h, w)`"""
        return self.unet.config.in_channels, inputs.height // 8, inputs.width // 8

    def initial_latents(
        self, inputs: ClipInputs, options: SamplingOptions, scheduler: VideoScheduler, noise: Tensor, start: int = 0
    ) -> Tensor:
        """What the loop starts from: noise, or a given video with the noise of the first step (musev.md 4).

        `noise (videos, c, frames, h, w)` of unit variance, for generated frames from `start` on.
        """
        noise = noise.to(self.device)
        if inputs.initial_latents is not None:
            given = _taken(inputs.initial_latents, start, start + noise.shape[2]).to(self.device)
            return scheduler.add_noise(given, noise)
        weight = options.noise.image_weight
        if weight is not None and inputs.condition_latents is not None:
            noise = image_based_noise(noise, inputs.condition_latents.to(self.device), weight)
        return noise * scheduler.init_noise_sigma

    def clip_conditions(self, inputs: ClipInputs, options: SamplingOptions, *, guided: bool) -> ClipConditions:
        """Everything that is constant over the clip; rows are (negative, positive) with guidance."""
        config: UNetConfig = self.unet.config
        dtype = next(self.unet.parameters()).dtype
        negatives = list(inputs.negative_prompts) if guided else None
        text = encode_prompts(self.tokenizer, self.text_encoder, list(inputs.prompts), negatives)
        text = text.to(self.device, dtype)
        image_tokens = face_tokens = reference = None
        if inputs.image_prompts is not None and config.image_prompt:
            encoder = self._needed(self.image_prompt, "an image prompt", "an image encoder and its projection")

            def image_token(images: Tensor) -> Tensor:
                return encoder.tokens(images, inputs.height, inputs.width, legacy=inputs.legacy_fit)

            image_tokens = _prompt_tokens(encoder, image_token, inputs.image_prompts, guided).to(self.device, dtype)
        if inputs.face_images is not None and config.face_prompt:
            encoder = self._needed(self.face_prompt, "a face picture", "a face extractor and its projection")
            face_tokens = _prompt_tokens(encoder, encoder.tokens, inputs.face_images, guided).to(self.device, dtype)
        if inputs.reference_images is not None and config.reference_fusion:
            net = self._needed(self.reference_net, "a reference picture", "a ReferenceNet")
            latents = torch.stack([encode_latents(self.vae, images) for images in inputs.reference_images])
            latents = latents.to(self.device, dtype).repeat(2 if guided else 1, 1, 1, 1, 1)
            reference = net(latents, text if image_tokens is None else image_tokens)
        return ClipConditions(
            text=text,
            image_tokens=image_tokens,
            image_scale=options.image_scale,
            face_tokens=face_tokens,
            face_scale=options.face_scale,
            reference=reference,
        )

    @staticmethod
    def _needed(component: Any, what: str, need: str) -> Any:
        if component is None:
            raise MuseVError(f"{what} was given, but the pipeline has no network for it; load {need}, or leave it out")
        return component

    # ------------------------------------------------------------------------------------------ a video

    def __call__(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        observer: Observer | None = None,
        **request: Any,
    ) -> VideoResult:
        """Makes a video; the other arguments are the fields of `VideoRequest`.

        `seed`, 0..2**64 - 1, decides everything random; default: one from torch's global generator.

        Raises:
            MuseVError: anything about the request that cannot be done, before the long work starts.
            Cancelled: the observer asked to stop.
        """
        return self.generate(VideoRequest(prompt=prompt, **request), seed=seed, observer=observer)

    def stream(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        observer: Observer | None = None,
        length: int | None = PART,
        frames: range | None = None,
        batch: int | None = None,
        decoder: LatentDecoder | None = None,
        dtype: torch.dtype | None = None,
        **request: Any,
    ) -> Iterator[Tensor]:
        """Frames `(k, H, W, 3)` in 0..1 of a video as they are ready, the first ones while later ones are still noise.

        They are those of `pipeline(prompt, ...).video()`. Latents, predictions and frames in memory do not grow with
        the video; a driving video and control maps are held whole.

        Args:
            length: generated frames of a part, at least 1; None: a shot at once. The first of short parts comes sooner:
                with windows of 12 that share 4, and 10 steps, 8 frames wait for 55 evaluations of a window, 48 for 105.
            frames: only these of the video, as the whole run makes them; in a later shot none alone.
            batch, decoder, dtype: see `VideoResult.frames`; request: the fields of `VideoRequest`.

        Raises:
            MuseVError: as `__call__`, before the first frame is asked for.
        """
        plan = self.plan(VideoRequest(prompt=prompt, **request), seed=seed, observer=observer)
        return plan.stream(length, frames=frames, batch=batch, decoder=decoder, dtype=dtype)

    @torch.no_grad()
    def generate(
        self, request: VideoRequest, *, seed: int | None = None, observer: Observer | None = None
    ) -> VideoResult:
        """Makes the video of a request, see `__call__`."""
        return self.plan(request, seed=seed, observer=observer).run()

    @torch.no_grad()
    def plan(self, request: VideoRequest, *, seed: int | None = None, observer: Observer | None = None) -> "ShotRunner":
        """The checked request with all its control maps, to be `run`; see `__call__`."""
        from .shots import ShotRunner

        noise = VideoNoise(None if seed is None else [seed])
        return ShotRunner(self, request, noise, observer or Observer())


def _prompt_tokens(encoder: Any, tokens: Callable[[Tensor], Tensor], pictures: Tensor, guided: bool) -> Tensor:
    """Tokens `(rows, n, dim)` of `pictures (videos, n, H, W, 3)`, zeros' projection first for guidance."""
    given = torch.cat([tokens(images) for images in pictures])
    if not guided:
        return given
    empty = encoder.unconditional(pictures.shape[1]).to(given)
    return torch.cat([empty.expand(given.shape[0], -1, -1), given])


def _taken(latents: Tensor | LatentFrames, first: int, last: int) -> Tensor:
    return latents[:, :, first:last] if isinstance(latents, Tensor) else latents.take(first, last)


def _frame_count(latents: Tensor | None) -> int:
    return 0 if latents is None else latents.shape[2]


def _merge(generated: Tensor, conditions: Tensor | None, held: Sequence[int], places: Sequence[int]) -> Tensor:
    """The frames `held` of a clip: condition frames, which are given in the order of `places`, among generated ones."""
    if conditions is None:
        return generated
    conditions = conditions.to(generated)
    if list(places) == list(range(len(places))):
        return torch.cat([conditions, generated], dim=2)
    rest = iter(range(generated.shape[2]))
    frames = [
        conditions[:, :, places.index(frame)] if frame in places else generated[:, :, next(rest)] for frame in held
    ]
    return torch.stack(frames, dim=2)
