"""One run of the denoising loop over one clip (musev.md 4)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import UNetConfig
from ..denoise.denoiser import ClipDenoiser
from ..denoise.guidance import guide
from ..denoise.noise import VideoNoise, image_based_noise
from ..denoise.parts import PredictionCache, parts
from ..denoise.schedulers import VideoScheduler
from ..denoise.windows import take_frames
from ..encode.pictures import FacePromptEncoder, ImagePromptEncoder
from ..encode.text import encode_prompts
from ..encode.vae import encode_latents
from ..errors import MuseVError
from ..models.compilation import compile_network
from ..models.conditions import ClipConditions
from .observer import Observer, StepInfo
from .request import ClipInputs, LatentFrames, SamplingOptions

Pipeline = TypeVar("Pipeline", bound="ClipPipeline")


@dataclass(frozen=True)
class PictureNetwork:
    """Whether a kind of picture can be used: the UNet has `layers` for it, and its network is `loaded`."""

    layers: bool
    loaded: bool
    needs: str


@dataclass
class ClipPipeline:
    """The networks which together make videos, and one run of them over one clip.

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

    def to(self: Pipeline, device: torch.device | str, dtype: torch.dtype | None = None) -> Pipeline:
        """Moves the networks; the VAE keeps its precision (`musev_core.encode.vae` says in which it decodes)."""
        for net in (self.unet, self.text_encoder, self.reference_net, *self._prompt_networks()):
            if net is not None:
                net.to(device=device, dtype=dtype)
        self.vae.to(device=device)
        return self

    def compile(self: Pipeline, *, graphs: bool = False, **options: Any) -> Pipeline:
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
