"""Euler, DDIM and LCM with MuseV's semantics, on top of diffusers' schedulers (musev.md 4)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MuseVError


@dataclass(frozen=True)
class SchedulerConfig:
    """Which scheduler, and how it spaces its time steps.

    Args:
        type: `euler`, `ddim` or `lcm`.
        timestep_spacing: `linspace` (999 ... 0) or `leading` (901 ... 1 at ten steps). The published base models most
            likely make the original use `linspace` for Euler (extra.md 8.4).
        prediction_type: what the network predicts, `epsilon` for Stable Diffusion 1.5.
    """

    type: str = "euler"
    timestep_spacing: str = "linspace"
    steps_offset: int = 1
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50  # LCM

    def __post_init__(self) -> None:
        if self.type not in SCHEDULER_TYPES:
            raise MuseVError(f"unknown scheduler {self.type!r}, expected one of {', '.join(SCHEDULER_TYPES)}")
        if self.timestep_spacing not in ("linspace", "leading"):
            raise MuseVError(f"unknown timestep spacing {self.timestep_spacing!r}, expected linspace or leading")


SCHEDULER_TYPES = ("euler", "ddim", "lcm")
SCHEDULERS: dict[str, SchedulerConfig] = {
    "euler": SchedulerConfig(),
    "euler_leading": SchedulerConfig(timestep_spacing="leading"),
    "ddim": SchedulerConfig(type="ddim", timestep_spacing="leading"),
    "lcm": SchedulerConfig(type="lcm", timestep_spacing="leading", steps_offset=0),
}


def scheduler_config(name: str | SchedulerConfig, **changes: Any) -> SchedulerConfig:
    """A named configuration, with changes."""
    if isinstance(name, str):
        if name not in SCHEDULERS:
            raise MuseVError(f"unknown scheduler {name!r}, expected one of {', '.join(SCHEDULERS)}")
        name = SCHEDULERS[name]
    return replace(name, **changes)


def check_steps(config: SchedulerConfig, num_steps: int) -> None:
    """Raises MuseVError for a number of steps the scheduler cannot take."""
    if num_steps < 1:
        raise MuseVError(f"the number of steps must be at least 1, got {num_steps}")
    if config.type == "lcm" and num_steps > config.original_inference_steps:
        raise MuseVError(
            f"LCM takes at most {config.original_inference_steps} steps (4 to 8 are usual), got {num_steps}"
        )


def _diffusers_scheduler(config: SchedulerConfig) -> Any:
    import diffusers

    common: dict[str, Any] = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
        "timestep_spacing": config.timestep_spacing,
        "steps_offset": config.steps_offset,
    }
    if config.type == "euler":
        return diffusers.EulerDiscreteScheduler(**common, interpolation_type="linear")
    if config.type == "ddim":
        return diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False)
    return diffusers.LCMScheduler(
        **common,
        clip_sample=False,
        set_alpha_to_one=False,
        original_inference_steps=config.original_inference_steps,
        timestep_scaling=10.0,
    )


class VideoScheduler:
    """One sampling run: time steps, scaling, and steps over `(b, c, t, h, w)`.

    Args:
        config: a `SchedulerConfig` or the name of one.
        num_steps: at least 1.
        strength: 0..1; a run on top of a picture uses the last `round(num_steps * strength)` of the steps, at least 1
            (the original ignores it, musev.md 9.2). 1 starts from the noisiest step.
    """

    def __init__(
        self,
        config: str | SchedulerConfig,
        num_steps: int,
        *,
        strength: float = 1.0,
        device: torch.device | str = "cpu",
    ):
        self.config = scheduler_config(config)
        check_steps(self.config, num_steps)
        if not 0 <= strength <= 1:
            raise MuseVError(f"strength must lie in 0..1, got {strength}")
        self._scheduler = _diffusers_scheduler(self.config)
        if num_steps == 1 and self.config.type == "euler":
            # a line of one point begins at its wrong end, where there is no noise left to remove
            self._scheduler.set_timesteps(timesteps=[self.config.num_train_timesteps - 1], device=device)
        else:
            self._scheduler.set_timesteps(num_steps, device=device)
        self.first = num_steps - max(1, round(num_steps * strength))
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(self.first)
        self._throw_away = torch.Generator(device)

    @property
    def timesteps(self) -> Tensor:
        """Time steps of the run, noisiest first; fractional for Euler."""
        return self._scheduler.timesteps[self.first :]

    @property
    def sigmas(self) -> Tensor | None:
        """Noise levels of the run with a final 0; Euler only."""
        return self._scheduler.sigmas[self.first :] if self.config.type == "euler" else None

    @property
    def init_noise_sigma(self) -> float:
        """What pure noise is multiplied by before the first step."""
        return float(self._scheduler.init_noise_sigma)

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Clean latents noised to the level of the run's first step."""
        first = self.timesteps[:1].to(latents.device)
        return self._scheduler.add_noise(latents, noise, first.expand(latents.shape[0]))

    def scale(self, latents: Tensor, i: int) -> Tensor:
        """The noisy latents as the network wants them at step i."""
        return self._scheduler.scale_model_input(latents, self.timesteps[i])

    @property
    def original_discards_noise(self) -> bool:
        """Whether the original draws noise at every step, and does not use it."""
        return self.config.type == "euler"

    def step(self, prediction: Tensor, i: int, sample: Tensor, noise: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Latents after step i, and the clean latents it believes in.

        `noise()` is asked for fresh noise of the shape of `sample`: by LCM at every step but the last.
        """
        timestep = self.timesteps[i]
        if self.config.type == "lcm":
            out = self._scheduler.step(prediction, timestep, sample, generator=self._throw_away)
            clean = out.denoised
            if i + 1 == len(self.timesteps):
                return clean, clean
            alpha = self._scheduler.alphas_cumprod[int(self.timesteps[i + 1])].item()
            return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise().to(clean), clean
        out = self._scheduler.step(prediction, timestep, sample)
        return out.prev_sample, out.pred_original_sample
