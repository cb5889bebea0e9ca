"""What one training step of MuseV computes: conditions, noise, one call of every network, losses (extra.md 1.3-1.5)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoise.noise import video_noise
from ..errors import MuseVError
from ..models.conditions import ClipConditions, ControlResiduals
from .diffusion import (
    DiffusionOptions,
    alphas_cumprod,
    clean_estimate,
    condition_distance,
    min_snr_weight,
    motion_size,
    noised,
    prediction_target,
    random_timesteps,
    weighted_mse,
)


class MotionObjective(nn.Module):
    """The loss of MuseV's networks on a batch of clips; what is trained is decided by `requires_grad`.

    A batch holds, for `b` clips of `t` frames of which the first `m` are condition frames:
        latents: `(b, 4, t, h, w)`, scaled.
        frame_index: `(b, t)`, frame number times sampling rate.
        text: `(b, 77, dim)` features, or tokens: `(b, 77)` where a text encoder is trained along.
        reference: `(b, 4, n, h, w)`, scaled latents of reference pictures, if there is a ReferenceNet.
        image: `(b, n, dim)` CLIP embeddings, or pixels `(b, n, 3, H, W)` where the image encoder is trained along.
        pose: `(b, t, 3, H, W)` in 0..1, if there is a ControlNet.

    Args:
        empty_text: `(77, dim)` features, or `(77)` tokens, of no prompt: what dropped texts are replaced by.
        condition_frames: m.
        decode: scaled latents `(n, 4, h, w)` to pixels, for the losses on pixels.
        write: called with a folder and this objective, writes the weights in the layout they are used in.
    """

    def __init__(
        self,
        unet: nn.Module,
        options: DiffusionOptions,
        *,
        empty_text: Tensor,
        write: Callable[[Path, "MotionObjective"], None],
        reference_net: nn.Module | None = None,
        image_projection: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
        image_encoder: nn.Module | None = None,
        controlnet: nn.Module | None = None,
        controlnet_scale: float = 1.0,
        condition_frames: int = 1,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.unet: Any = unet
        self.reference_net = reference_net
        self.image_projection: Any = image_projection
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.controlnet: Any = controlnet
        self.controlnet_scale = controlnet_scale
        self.options = options
        self.condition_frames = condition_frames
        self._decode = decode
        self._write = write
        if options.uses_pixels and decode is None:
            raise MuseVError("losses on pixels need the VAE's decoder; give a VAE, or set their weights to 0")
        self.register_buffer("empty_text", empty_text, persistent=False)
        self.register_buffer("alphas", alphas_cumprod(), persistent=False)

    def publish(self, folder: Path) -> None:
        """Writes the weights in the layout they are used in."""
        self._write(folder, self)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses by name; `loss` is their weighted sum."""
        options, m = self.options, self.condition_frames
        latents, frame_index = batch["latents"], batch["frame_index"]
        b, _, t = latents.shape[:3]
        if not 0 < m < t:
            raise MuseVError(f"clips of {t} frames cannot have {m} condition frames: at least one must be generated")
        latents, frame_index = self._some_static(latents, frame_index, generator)
        clip = self._conditions(batch, generator)

        condition, clean = latents[:, :, :m], latents[:, :, m:]
        noise = video_noise(clean.shape, options.noise, generator, device=latents.device)
        if options.noise_offset:
            offset = torch.randn(*clean.shape[:2], 1, 1, 1, generator=generator, device=latents.device)
            noise = noise + options.noise_offset * offset
        steps = len(self.alphas)  # type: ignore[arg-type]
        timestep = random_timesteps(b, steps, options.timestep_power, generator)
        alpha = self.alphas[timestep]  # type: ignore[index]
        sample = noised(clean, noise, alpha)
        whole = torch.cat([self._condition_noise(condition, generator), sample], dim=2)
        prediction = self.unet(
            whole,
            timestep,
            clip,
            condition_frames=tuple(range(m)),
            frame_index=frame_index,
            control=self._control(whole, timestep, clip.text, batch.get("pose")),
        ).float()

        target = prediction_target(clean, noise, alpha, options.prediction_type)
        weight = min_snr_weight(alpha, options.min_snr_gamma, options.prediction_type)
        denoise = weighted_mse(prediction[:, :, m:], target, weight)
        losses = {"denoise": denoise}
        losses |= self._consistency(prediction, sample, alpha, timestep / steps, condition)
        if options.picture_loss:
            losses["picture"] = self._picture_loss(prediction[:, :, :m], condition, clip)
        weights = {
            "denoise": 1.0,
            "condition": options.condition_loss,
            "motion": options.motion_loss,
            "picture": options.picture_loss,
            "pixel_condition": options.pixel_condition_loss,
            "pixel_motion": options.pixel_motion_loss,
        }
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in losses.items()}}

    def _conditions(self, batch: dict[str, Tensor], generator: torch.Generator) -> ClipConditions:
        """Text, image tokens and reference features, some of them dropped."""
        options = self.options
        latents = batch["latents"]
        u = torch.rand(latents.shape[0], generator=generator, device=latents.device)
        both = u < options.both_dropout
        no_text = both | (u >= 1 - options.text_dropout)
        no_image = both | ((u - options.both_dropout >= 0) & (u - options.both_dropout < options.image_dropout))

        text = batch["tokens"] if self.text_encoder is not None else batch["text"]
        text = torch.where(no_text.view(-1, *[1] * (text.ndim - 1)), self.empty_text.to(text), text)  # type: ignore[operator]
        if self.text_encoder is not None:
            text = self.text_encoder(text).last_hidden_state
        image_tokens = None
        if self.image_projection is not None:
            image = batch["image"]
            if self.image_encoder is not None:
                image = self.image_encoder(image.flatten(0, 1)).image_embeds.unflatten(0, image.shape[:2])
            image = image.masked_fill(no_image[:, None, None], 0.0)  # inference knows no picture as zeros
            image_tokens = self.image_projection(image.flatten(0, 1)).unflatten(0, image.shape[:2]).flatten(1, 2)
        reference = None
        if self.reference_net is not None:
            reference = self.reference_net(batch["reference"], text if image_tokens is None else image_tokens)
        return ClipConditions(text=text, image_tokens=image_tokens, reference=reference)

    def _some_static(self, latents: Tensor, frame_index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.options.static_probability:
            return latents, frame_index
        draw = torch.rand(latents.shape[0], generator=generator, device=latents.device)
        static = draw < self.options.static_probability
        still = latents[:, :, :1].expand_as(latents)
        latents = torch.where(static.view(-1, 1, 1, 1, 1), still, latents)
        return latents, frame_index.masked_fill(static[:, None], 0)

    def _condition_noise(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        limit = self.options.condition_noise_steps
        if not limit:
            return condition
        noise = torch.randn(condition.shape, generator=generator, device=condition.device)
        steps = torch.randint(0, limit, (condition.shape[0],), generator=generator, device=condition.device)
        return noised(condition, noise, self.alphas[steps])  # type: ignore[index]

    def _control(self, sample: Tensor, timestep: Tensor, text: Tensor, pose: Tensor | None) -> ControlResiduals | None:
        if self.controlnet is None:
            return None
        if pose is None:
            raise MuseVError("a ControlNet needs pose maps, but the clips have none; extract them, or leave it out")
        t = sample.shape[2]
        down, mid = self.controlnet(
            sample.transpose(1, 2).flatten(0, 1),
            timestep.repeat_interleave(t),
            text.repeat_interleave(t, 0),
            pose.flatten(0, 1),
            conditioning_scale=self.controlnet_scale,
            return_dict=False,
        )
        return ControlResiduals(tuple(down), mid)

    def _consistency(
        self, prediction: Tensor, sample: Tensor, alpha: Tensor, time: Tensor, condition: Tensor
    ) -> dict[str, Tensor]:
        """The original's optional losses on the clean estimates of nearly clean steps."""
        options, m = self.options, self.condition_frames
        if not (options.condition_loss or options.motion_loss or options.uses_pixels):
            return {}
        active = (time <= options.consistency_limit).float()
        estimate = clean_estimate(prediction[:, :, m:], sample, alpha, options.prediction_type)
        losses = {}
        if options.condition_loss:
            losses["condition"] = condition_distance(estimate, condition, active)
        if options.motion_loss:
            losses["motion"] = motion_size(condition, estimate, active)
        if options.uses_pixels and self._decode is not None:
            both = torch.cat([condition, estimate], dim=2)
            pixels = self._decode(both.transpose(1, 2).flatten(0, 1)).unflatten(0, (both.shape[0], -1)).transpose(1, 2)
            if options.pixel_condition_loss:
                losses["pixel_condition"] = condition_distance(pixels[:, :, m:], pixels[:, :, :m], active)
            if options.pixel_motion_loss:
                losses["pixel_motion"] = motion_size(pixels[:, :, :m], pixels[:, :, m:], active)
        return losses

    def _picture_loss(self, prediction: Tensor, condition: Tensor, clip: ClipConditions) -> Tensor:
        """The condition frames' prediction against that of the network as a picture network, at step 0."""
        with torch.no_grad():
            zero = torch.zeros(condition.shape[0], device=condition.device)
            teacher = self.unet(condition, zero, clip, skip_temporal=True)
        return weighted_mse(prediction, teacher, torch.ones_like(zero))
