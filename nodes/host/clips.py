"""Pictures and frames in the one form the nodes work with, and as latents."""

from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...musev_core.errors import MuseVError
from ...musev_core.frames.images import fit_images, to_uint8
from .inputs import LATENT_CHANNELS, check_memory

BATCH = 16  # frames between two looks at the interrupt button
PIXELS_PER_LATENT = 8  # of Stable Diffusion 1.5


def rgb(images: Tensor) -> Tensor:
    """An IMAGE as `(n, H, W, 3)`, transparency laid on white."""
    if images.shape[-1] == 3:
        return images
    alpha = images[..., 3:]
    return images[..., :3] * alpha + (1 - alpha)


def fit(images: Tensor, height: int, width: int) -> Tensor:
    """Pictures `(n, H, W, 3)`, 0..1, cropped and resized with Lanczos; those of the right size as they are."""
    if images.shape[1:3] == (height, width):
        return images
    check_memory(f"{len(images)} pictures of {width} x {height} pixels", len(images), height, width, 3)
    return fit_images(to_uint8(images), height, width).to(images.dtype) / 255


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents `(n, 4, H / 8, W / 8)` of frames `(n, H, W, 3)`, unscaled, with progress; can be interrupted.

    Raises:
        MuseVError: the VAE's latents are not those of Stable Diffusion 1.5.
    """
    height, width = (size // PIXELS_PER_LATENT for size in pixels.shape[1:3])
    parts = []
    for start, stop in batches(len(pixels)):
        part = vae.encode(pixels[start:stop, :, :, :3])
        if part.shape != (stop - start, LATENT_CHANNELS, height, width):
            raise MuseVError(
                f"This VAE does not fit: it makes latents of shape {tuple(part.shape)} from {stop - start} pictures of "
                f"{pixels.shape[1]} x {pixels.shape[2]} pixels. MuseV needs a VAE of Stable Diffusion 1.5, which makes "
                f"{(stop - start, LATENT_CHANNELS, height, width)}."
            )
        parts.append(part)
    return torch.cat(parts)


def batches(frames: int, size: int = BATCH) -> Iterator[tuple[int, int]]:
    """First and last + 1 of batches of frames, with progress on the node; stops when the user interrupts."""
    bar = comfy.utils.ProgressBar(frames)
    for start in range(0, frames, size):
        comfy.model_management.throw_exception_if_processing_interrupted()
        stop = min(start + size, frames)
        yield start, stop
        bar.update(stop - start)
