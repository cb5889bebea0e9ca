"""The forward process, its targets and its losses: pure functions (extra.md 1.4)."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoise.noise import NoiseOptions
from ..errors import MuseVError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiffusionOptions:
    """What the network learns to predict; the defaults are the original's.

    Args:
        prediction_type: `epsilon`, as Stable Diffusion 1.5, or `v_prediction` (arXiv:2202.00512).
        noise: of the generated frames. noise_offset: share of noise that is constant over a frame.
        condition_noise_steps: condition frames get noise of a random step below this one; 0: they stay clean.
        min_snr_gamma: limits the weight of nearly clean steps (arXiv:2303.09556), usually 5; None: all count alike.
        timestep_power: None: every clip gets any step alike. p: the steps are 1000 u^p with u spread evenly over the
            batch (arXiv:2107.00630, appendix I.1): less variance, and for p < 1 more of the noisy steps, which decide
            about motion.
        text_dropout, image_dropout: probability that a clip is trained without its text, or without its image prompt.
        both_dropout: that it is trained without both, as guidance asks for it.
        static_probability: that a clip becomes one frame repeated, with the frame indices 0.
        condition_loss: weight of the clean estimates' distance from the condition frames.
        motion_loss: weight of the differences between neighbouring clean estimates.
        picture_loss: weight of the condition frames' prediction against the same network without temporal layers.
        pixel_condition_loss, pixel_motion_loss: the first two on decoded pixels.
        consistency_limit: 0..1, the four losses above only count below this part of the time steps.
    """

    prediction_type: str = "epsilon"
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    noise_offset: float = 0.0
    condition_noise_steps: int = 0
    min_snr_gamma: float | None = None
    timestep_power: float | None = None
    text_dropout: float = 0.0
    image_dropout: float = 0.0
    both_dropout: float = 0.0
    static_probability: float = 0.0
    condition_loss: float = 0.0
    motion_loss: float = 0.0
    picture_loss: float = 0.0
    pixel_condition_loss: float = 0.0
    pixel_motion_loss: float = 0.0
    consistency_limit: float = 0.3

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTIONS:
            raise MuseVError(
                f"unknown prediction_type {self.prediction_type!r}, expected one of {', '.join(PREDICTIONS)}"
            )
        for name in ("text_dropout", "image_dropout", "both_dropout", "static_probability", "consistency_limit"):
            if not 0 <= getattr(self, name) <= 1:
                raise MuseVError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.timestep_power is not None and self.timestep_power <= 0:
            raise MuseVError(f"timestep_power must be greater than 0, got {self.timestep_power}")
        if not 0 <= self.condition_noise_steps <= 1000:
            raise MuseVError(f"condition_noise_steps must lie in 0..1000, got {self.condition_noise_steps}")

    @property
    def uses_pixels(self) -> bool:
        """Whether a loss needs the VAE's decoder."""
        return self.pixel_condition_loss > 0 or self.pixel_motion_loss > 0


def alphas_cumprod(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Stable Diffusion's noise schedule ("scaled linear"): the share of signal power at every step."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def random_timesteps(count: int, steps: int, power: float | None, generator: torch.Generator) -> Tensor:
    """`(count)` time steps below `steps`, see `DiffusionOptions.timestep_power`."""
    if power is None:
        return torch.randint(0, steps, (count,), generator=generator, device=generator.device)
    places = torch.arange(count, device=generator.device) + torch.rand((), generator=generator, device=generator.device)
    order = torch.randperm(count, generator=generator, device=generator.device)
    return (steps * (places[order] / count) ** power).long().clamp(max=steps - 1)


def noised(clean: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """`clean (b, c, t, h, w)` with noise; `alpha (b)` is the share of signal power."""
    alpha = alpha.view(-1, 1, 1, 1, 1)
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def prediction_target(clean: Tensor, noise: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """What the network is to answer to `noised(clean, noise, alpha)`."""
    if prediction_type == "epsilon":
        return noise
    alpha = alpha.view(-1, 1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def clean_estimate(prediction: Tensor, sample: Tensor, alpha: Tensor, prediction_type: str) -> Tensor:
    """The clean frames a prediction for the noisy `sample` means."""
    alpha = alpha.view(-1, 1, 1, 1, 1)
    if prediction_type == "epsilon":
        return (sample - (1 - alpha).sqrt() * prediction) / alpha.sqrt()
    return alpha.sqrt() * sample - (1 - alpha).sqrt() * prediction


def min_snr_weight(alpha: Tensor, gamma: float | None, prediction_type: str) -> Tensor:
    """The weight `(b)` of each clip's squared error (arXiv:2303.09556, section 3.4)."""
    if gamma is None:
        return torch.ones_like(alpha)
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr if prediction_type == "epsilon" else snr + 1)


def weighted_mse(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Mean over all elements of `weight (b)` times the squared difference, in float32."""
    error = F.mse_loss(a.float(), b.float(), reduction="none")
    return (weight.view(-1, *[1] * (error.ndim - 1)) * error).mean()


def condition_distance(estimate: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
    """Every estimated frame against every condition frame: `(b, c, t, h, w)`, `(b, c, m, h, w)`."""
    every, against = torch.broadcast_tensors(estimate[:, :, :, None], condition[:, :, None])
    return weighted_mse(every, against, weight)


def motion_size(condition: Tensor, estimate: Tensor, weight: Tensor) -> Tensor:
    """Differences between neighbouring frames of condition and estimate, against none."""
    change = torch.cat([condition, estimate], dim=2).diff(dim=2)
    return weighted_mse(change, torch.zeros_like(change), weight)
