"""The demo model's VAE: pixels of the toy world to 8 x 8 latents and back."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..demo import sizes, toy
from . import checkpoints
from .options import TrainOptions
from .schedule import derived_seed

OPTIONS = TrainOptions(
    steps=1100,
    batch_size=8,
    accumulation=1,
    learning_rate=1e-3,
    muon_rate=0.02,
    betas=(0.9, 0.95),
    learning_rate_schedule="cosine",
    warmup_steps=20,
    weight_decay=0.0,
    ema_decay=0.99,
    seed=5,
    checkpoint_every=200,
    keep_checkpoints=2,
    validate_every=100,
    log_every=20,
)
DECODER_OPTIONS = replace(OPTIONS, steps=3500, learning_rate=5e-4, muon_rate=0.01, ema_decay=0.995, seed=8)
KL_WEIGHT = 1e-4  # of the mean per latent value: keeps the latents smooth, which the UNet needs
SUBJECT_WEIGHT = 3.0  # how much more a pixel of the subject counts than one of the stage
CROPPED_STEPS, CROP = 1000, 32  # the first steps see quarters of pictures, at a quarter of the cost


class Pictures(Dataset):
    """Single pictures of the training split: sample n is scene n at some moment; the first ones are cropped."""

    def __init__(self, seed: int, cropped: int = 0):
        self.seed, self.cropped = seed, cropped

    def __getitem__(self, number: int) -> tuple[toy.Scene, float, tuple[int, int] | None]:
        """A scene, a motion speed which puts its second frame anywhere in a clip, and where to crop it."""
        rng = np.random.default_rng(derived_seed(self.seed, number))
        corner = tuple(map(int, rng.integers(0, toy.SIZE - CROP + 1, 2)))
        cropped = number < self.cropped
        return toy.scene("train", number), float(rng.uniform(0, 144)), corner if cropped else None  # type: ignore[return-value]


def pictures(samples: list[tuple[toy.Scene, float, tuple[int, int] | None]]) -> dict[str, Tensor]:
    """`pixels (n, 3, h, w)` in -1..1 and `weight (n, 1, h, w)`; every fourth is a portrait."""
    clips = toy.render([sample[0] for sample in samples], 2, [sample[1] for sample in samples])
    frames = clips.frames[:, 1].clone()
    frames[::4] = clips.reference[::4]
    subject = (frames.int() - clips.background.int()).abs().amax(-1) > 8
    subject[::4] = True  # the stage of a portrait is another one: all of it counts alike
    pixels = pixels_of(frames)
    both = torch.cat([pixels, 1 + SUBJECT_WEIGHT * subject[:, None].float()], dim=1)
    if samples[0][2] is not None:
        corners = [sample[2] or (0, 0) for sample in samples]
        both = torch.stack([x[:, i : i + CROP, j : j + CROP] for x, (i, j) in zip(both, corners, strict=True)])
    return {"pixels": both[:, :3], "weight": both[:, 3:]}


class VAEObjective(nn.Module):
    """Weighted squared error of the round trip, and a little KL divergence; or of a decoder alone.

    Args:
        decoder_only: the encoder stays as it is, and with it the latents that other networks have learned.
    """

    def __init__(self, vae: Any, *, decoder_only: bool = False):
        super().__init__()
        self.vae = vae
        self.decoder_only = decoder_only
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(not decoder_only)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of `pictures`."""
        pixels, weight = batch["pixels"], batch["weight"]
        with torch.set_grad_enabled(not self.decoder_only):
            latents = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(latents.sample(generator=generator)).sample
        error = (weight * (F.mse_loss(decoded, pixels, reduction="none"))).mean() / weight.mean()
        sharpness = (decoded - pixels).abs().mean()
        loss = error + 0.05 * sharpness
        if self.decoder_only:
            return {"loss": loss, "error": error.detach()}
        divergence = latents.kl().sum() / latents.mean.numel()
        loss = loss + KL_WEIGHT * divergence
        return {"loss": loss, "error": error.detach(), "divergence": divergence.detach()}

    def publish(self, folder: Path) -> None:
        """The `vae` folder of a diffusers model."""
        save_vae(self.vae, folder / "vae")


def new_vae() -> Any:
    """The demo's VAE, with random weights."""
    from diffusers import AutoencoderKL

    make: Any = AutoencoderKL
    vae = make(**sizes.VAE)
    _start_linear(vae)
    return vae


@torch.no_grad()
def _start_linear(vae: nn.Module) -> None:
    """Makes the network linear but for its last norms at first: it then learns colors within minutes, not hours."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if name.endswith(("conv2", "to_out.0")):
                module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()


def save_vae(vae: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Weights and configuration as diffusers lays them out."""
    tensors = {name: x.to(dtype) for name, x in vae.state_dict().items()}
    checkpoints.save_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    checkpoints.save_json(folder / "config.json", {"_class_name": "AutoencoderKL", **sizes.VAE})


@torch.no_grad()
def standardise(vae: Any, pixels: Tensor) -> None:
    """Moves and scales the latents to mean 0 and standard deviation 1 / 0.18215 per channel, as UNets expect them.

    The change is folded into the 1 x 1 convolutions on both sides of the latents: pictures stay the same.
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(16)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    factor = 1 / (std * vae.config.scaling_factor)
    into, out = vae.quant_conv, vae.post_quant_conv
    n = len(mean)
    into.weight[:n] *= factor[:, None, None, None]
    into.bias[:n] = (into.bias[:n] - mean) * factor
    into.bias[n:] += 2 * factor.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight /= factor[:, None, None]


def pixels_of(frames: Tensor) -> Tensor:
    """uint8 `(n, H, W, 3)` as the VAE takes them, `(n, 3, H, W)` in -1..1."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def round_trip_sheet(vae: Any, frames: Tensor) -> Tensor:
    """Pictures above, what comes back below: `(2 H, n W, 3)` in 0..1."""
    decoded = vae.decode(vae.encode(pixels_of(frames)).latent_dist.mean).sample.clamp(-1, 1) / 2 + 0.5
    rows = (frames.float() / 255, decoded.permute(0, 2, 3, 1))
    return torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)


@torch.no_grad()
def round_trip_psnr(vae: Any, frames: Tensor) -> float:
    """Mean over `frames (n, H, W, 3)`, uint8, of the PSNR after encoding and decoding, dB."""
    values = []
    for part in frames.split(16):
        pixels = pixels_of(part)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        values += [-10 * math.log10(x) for x in ((decoded - pixels) / 2).square().mean((1, 2, 3)).tolist()]
    return sum(values) / len(values)


def test_pictures(count: int = 64, split: str = "validation") -> Tensor:
    """Pictures of another split, uint8 `(count, 64, 64, 3)`."""
    return toy.render([toy.scene(split, i) for i in range(count)], 2, [(7 * i) % 144 for i in range(count)]).frames[
        :, 1
    ]
