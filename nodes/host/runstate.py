"""One sampling run: what was found out at its start, and the network's call for the present window."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...musev_core.config import UNetConfig
from ...musev_core.denoise.guidance import guidance_schedule
from ...musev_core.denoise.noise import VideoNoise, image_based_noise
from ...musev_core.denoise.parts import ClipWindows
from ...musev_core.denoise.windows import Window, take_frames
from ...musev_core.models.conditions import ClipConditions
from . import patches, wrappers
from .control import ControlCache
from .options import MotionOptions, Options, Span
from .references import Features
from .schedules import fractional_time
from .view import View

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RunState:
    """The state of one run; it is made for the run and dropped with it, and so is everything cached in it.

    Args:
        num_frames: of the clip, condition frames included.
        condition_frames: their numbers.
        base: architecture of the MODEL's UNet.
        features: of the reference pictures.
        source: of the run's noise.
    """

    options: Options
    num_frames: int
    condition_frames: tuple[int, ...]
    base: UNetConfig
    features: Features
    source: VideoNoise
    model_sampling: Any = None
    sigmas: list[float] = field(default_factory=list)
    clean: Tensor | None = None  # processed latents of the condition frames (n, 4, h, w)
    window: Window | None = None
    conds: dict[str, list] = field(default_factory=dict)  # the guider's, by name
    pictured: list[bool] = field(default_factory=lambda: [True, False])  # by number in cond_or_uncond
    branches_alike: bool = True  # all rows of a call hold the same latents
    text_constant: bool = True  # over windows and steps
    text_per_frame: bool = False
    around: list[str] = field(default_factory=list)  # what other packs have wrapped round the network
    called: bool = False  # whether the network was, for the present window
    controls: ControlCache = field(default_factory=ControlCache)
    bar: Any = None  # ComfyUI's progress bar
    _done: float = 0.0
    _draws: int = 0  # of noise, so far
    _views: dict[int, View] = field(default_factory=dict)
    _clips: dict[tuple, ClipConditions] = field(default_factory=dict)
    _spans: dict[Span, tuple[float, float]] = field(default_factory=dict)

    @property
    def motion(self) -> MotionOptions:
        """The motion model's options; a run without does not get here."""
        motion = self.options.motion
        if motion is None:
            raise RuntimeError("a MuseV run without a motion model")
        return motion

    @cached_property
    def windows(self) -> ClipWindows:
        """The clip's context windows at every step."""
        return ClipWindows(self.num_frames, self.condition_frames, self.options.windows)

    @property
    def generated(self) -> list[int]:
        """Numbers of the frames which are no condition frames."""
        return self.windows.generated

    def __deepcopy__(self, memo: dict) -> "RunState":
        return self  # ComfyUI copies transformer options

    # --------------------------------------------------------------------------------- steps

    def step(self, sigma: float) -> int:
        """The number of the step a noise level belongs to; samplers may look between two levels."""
        reached = [i for i, s in enumerate(self.sigmas[:-1]) if s >= sigma * (1 - 1e-5)]
        return reached[-1] if reached else 0

    def active(self, span: Span, sigma: float) -> bool:
        """Whether something acts at this noise level."""
        if span not in self._spans:
            self._spans[span] = span.sigmas(self.model_sampling)
        high, low = self._spans[span]
        return low <= sigma <= high

    def moves(self, sigma: float) -> bool:
        """Whether the motion model takes part at this noise level."""
        return self.motion.strength > 0 and self.active(self.motion.span, sigma)

    def guidance(self, sigma: float) -> float | None:
        """The guidance scale of the schedule, if there is one."""
        plan = self.options.guidance
        if plan is None:
            return None
        steps = max(len(self.sigmas) - 1, 1)
        return guidance_schedule(plan.start, plan.end, plan.curve, steps)[min(self.step(sigma), steps - 1)]

    def progress(self, window: int, windows: int, sigma: float) -> None:
        """Tells ComfyUI that a window is done."""
        if self.bar is not None:
            steps = max(len(self.sigmas) - 1, 1)
            done = (min(self.step(sigma), steps - 1) * windows + window + 1) / (steps * windows)
            # samplers which look twice at a step come back to its first window
            self._done = max(self._done, done)
            self.bar.update_absolute(round(self._done * steps * windows), steps * windows)

    # --------------------------------------------------------------------------------- noise

    def initial_noise(self, given: Tensor, *, from_scratch: bool) -> Tensor:
        """MuseV's noise in place of `given (frames, 4, h, w)`; the condition frames get none.

        Noise that was switched off stays off. The condition picture is mixed in only where nothing else is there to
        start from (musev.md 4).
        """
        noise = given.clone()
        if self.condition_frames:
            noise[list(self.condition_frames)] = 0
        options = self.options.noise
        # drawn in any case: noise that is added later must not be that which the stage before has begun with
        drawn = self._drawn(noise) if options.type == "video_fusion" else None
        if not bool(given.any()):
            return noise
        if drawn is not None:
            noise[self.generated] = drawn
        if from_scratch and options.image_weight and self.clean is not None:
            mixed = image_based_noise(_as_clip(noise[self.generated]), _as_clip(self.clean), options.image_weight)
            noise[self.generated] = _as_batch(mixed).to(noise)
        return noise

    def fresh_noise(self, like: Tensor) -> Tensor:
        """Noise for samplers which add some at every step."""
        noise = torch.zeros_like(like)
        noise[self.generated] = self._drawn(like)
        return noise

    def _drawn(self, like: Tensor) -> Tensor:
        """The next draw, `(generated frames, c, h, w)`."""
        drawn = self.source.draw(self._draws, self.generated, like.shape[1:], self.options.noise)
        self._draws += 1
        return _as_batch(drawn).to(like)

    # -------------------------------------------------------------------------------- network

    def view(self, unet: Any) -> View:
        """Our network over this UNet's layers."""
        if id(unet) not in self._views:
            image, face = self.options.image_prompt, self.options.face
            self._views[id(unet)] = View(
                unet, self.base, self.motion.motion, image and image.adapter, face and face.adapter
            )
        return self._views[id(unet)]

    def forward(
        self,
        unet: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        control: dict[str, list] | None,
        transformer_options: dict[str, Any],
    ) -> Tensor:
        """The motion network in place of ComfyUI's own forward: `(chunks * frames, 4, h, w)`, chunk outermost.

        Raises:
            MuseVError: another pack has called it with something else, or has changed the UNet.
        """
        window = self.window
        came = [0 if given is None else given.shape[0] for given in (x, timesteps, context)]
        if window is None:
            raise wrappers.wrong_batch(self.around, f"{came[0]} frames on its own", "context windows")
        chunks: list[int] = transformer_options["cond_or_uncond"]
        rows, frames = len(chunks), len(window.frames)
        if set(came) != {rows * frames}:
            raise wrappers.wrong_batch(
                self.around,
                "{} latents, {} time steps and {} prompts".format(*came),
                f"{rows} x {frames} of each ({rows} conditionings, {frames} frames of a window)",
            )
        self.called = True
        view = self.view(unet)
        sigma = float(transformer_options["sigmas"][0])
        hooks = None
        if patches.needed(transformer_options, control):
            inputs = {"x": x, "timesteps": timesteps, "context": context}
            hooks = patches.Patches(
                transformer_options,
                control,
                frames,
                inputs,
                self.base.block_out_channels[0],
                self.base.layers_per_block,
            )
        shared = self.branches_alike and not patches.acts_before_prompt(transformer_options, control)
        branches = rows if shared else 1
        sample = x.unflatten(0, (rows, frames)).transpose(1, 2)  # (rows, 4, t, h, w)
        steps = timesteps.unflatten(0, (rows, frames))[:, 0]
        if self.options.fractional_time:
            steps = torch.full_like(steps, fractional_time(self.model_sampling, sigma))
        out = view(
            transformer_options,
            sample[: rows // branches],
            steps[: rows // branches],
            self._clip(chunks, context.unflatten(0, (rows, frames)), transformer_options, x, sigma),
            condition_frames=window.condition_positions,
            motion_speed=self.motion.speed,
            branches=branches,
            motion_strength=self._strength(window),
            hooks=hooks,
        )
        return out.transpose(1, 2).flatten(0, 1)

    def _strength(self, window: Window) -> float | Tensor | None:
        motion = self.motion
        if motion.frame_strength is not None:
            return take_frames(motion.frame_strength.expand(self.num_frames), window.frames, dim=0) * motion.strength
        return None if motion.strength == 1 else motion.strength

    def _clip(
        self, chunks: Sequence[int], context: Tensor, options: dict[str, Any], x: Tensor, sigma: float
    ) -> ClipConditions:
        """Prompts and pictures of the call's rows; what is computed from them is kept for the run.

        `context (rows, frames, tokens, dim)`. `chunks` numbers the conditioning of each row.
        """
        window = self.window
        pictured = tuple(self.pictured[chunk] for chunk in chunks)
        uuids = tuple(map(str, options.get("uuids", ())))
        key = (pictured, tuple(chunks), uuids, context.shape[2], x.dtype, x.device)
        if key not in self._clips:
            self._clips[key] = self.features.conditions(context[:, 0], [int(p) for p in pictured], x)
            log.debug("constants of %d clips: %.1f MB", len(self._clips), self.nbytes() / 1e6)
        clip = self._clips[key]
        changing = None if self.text_constant else context if self.text_per_frame else context[:, 0]
        reference, prompt, face = self.options.reference, self.options.image_prompt, self.options.face
        mask = None
        if prompt is not None and prompt.mask is not None and window is not None:
            mask = prompt.mask if len(prompt.mask) == 1 else take_frames(prompt.mask, window.frames, dim=0)
        return clip.adjusted(
            reference_scale=self._scale(reference and (reference.strength, reference.span), sigma),
            image_scale=self._scale(prompt and (prompt.weight, prompt.span), sigma),
            face_scale=self._scale(face and (face.weight, face.span), sigma),
            image_mask=None if mask is None else mask.to(x),
            changing_text=changing,
        )

    def _scale(self, given: tuple[float, Span] | None, sigma: float) -> float:
        return given[0] if given and self.active(given[1], sigma) else 0.0

    def nbytes(self) -> int:
        """Memory of everything kept for this run, in bytes."""
        return sum(clip.nbytes() for clip in self._clips.values())


def _as_clip(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]  # (frames, c, h, w) -> (1, c, frames, h, w)


def _as_batch(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)
