"""Between frames and latents; decoding in a precision that is safe, as many at once as fit in memory, as a stream.

On an accelerator float32 weights decode in float16, which halves the memory and its traffic. It comes closer to float32
than bfloat16 does (71 against 53 dB on the small VAE of the tests), but some VAEs of Stable Diffusion overflow in it.
That never passes unseen: a group norm spreads an infinite value over its whole group as NaN, and the convolution behind
it over all channels. Frames which are not finite are decoded once more in float32, and so are all that follow. The CPU,
where half precision saves no time, keeps to the precision of the weights.
"""

import logging
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import MuseVError
from ..frames.images import to_vae_input
from ..precision import HALF, expect_finite

log = logging.getLogger(__name__)

CPU_BATCH = 4
MAX_BATCH = 16  # more at once decode no faster, and the first frames come later
_SHARE_OF_FREE_MEMORY = 0.8  # the rest is for what convolutions want beyond their tensors
_PIXELS_PER_LATENT = 8
_STABLE_DIFFUSION_WIDTH = 256
_ENCODER = ("encoder.", "quant_conv.")


class LatentDecoder(Protocol):
    """What decodes latents: diffusers' `AutoencoderKL` or `AutoencoderTiny` (TAESD, 6 % of the work), or one alike.

    It is a `torch.nn.Module`; its parameters say on which device and in which precision it works.
    `config.scaling_factor` is what latents are divided by before `decode`, 1 for TAESD. `config.block_out_channels`, if
    it is there, tells the width at full resolution (its second number), for the estimate of memory.
    """

    config: Any

    def decode(self, latents: Tensor, /) -> Any:
        """An object whose `sample` are pixels `(n, 3, 8 h, 8 w)` in -1..1, of `latents (n, 4, h, w)`."""
        ...


@torch.no_grad()
def encode_latents(vae: Any, frames: Tensor, *, batch: int = 8) -> Tensor:
    """Scaled latents `(4, frames, h, w)` of `frames (frames, H, W, 3)`: the mean, never a sample (musev.md 3)."""
    pixels, place = to_vae_input(frames), next(vae.parameters())
    means = torch.cat([vae.encode(part.to(place.device, place.dtype)).latent_dist.mean for part in pixels.split(batch)])
    expect_finite(means, "the VAE's encoder")
    return (means.float() * vae.config.scaling_factor).transpose(0, 1)


@torch.no_grad()
def decode_latents(
    vae: LatentDecoder | Any, latents: Tensor, *, batch: int | None = None, dtype: torch.dtype | None = None
) -> Iterator[Tensor]:
    """Frames `(k, H, W, 3)` in 0..1 of `latents (4, frames, h, w)`, a few at a time, as they are ready.

    Args:
        vae: see `LatentDecoder`; its weights stay as they are.
        batch: frames at once; default: `CPU_BATCH`, on an accelerator what its free memory takes. Results of different
            batches differ by rounding.
        dtype: precision to decode in; default: `decoding_dtype(vae)`.

    Raises:
        MuseVError: latents or frames are NaN or infinite.
    """
    decoder: Any = vae
    dtype = dtype or decoding_dtype(vae)
    if not latents.isfinite().all():
        raise MuseVError(
            "the latents hold NaN or infinity: the UNet overflowed, or a LoRA or ControlNet is damaged or too strong. "
            "Run it in float32 (--dtype float32), or with less of these."
        )
    frames = latents.transpose(0, 1)
    height, width = (_PIXELS_PER_LATENT * n for n in frames.shape[2:])
    decode = _decoding_in(decoder, dtype)
    at_once = batch or fitting_batch(vae, height, width, dtype)
    start = 0
    while start < len(frames):
        part = frames[start : start + at_once]
        pixels = decode(part / decoder.config.scaling_factor)
        if dtype not in HALF:
            expect_finite(pixels, "the VAE's decoder")
        elif not pixels.isfinite().all():
            log.warning(
                "the VAE overflows in %s at frame %d: this and all later frames are decoded in float32",
                str(dtype).removeprefix("torch."),
                start,
            )
            dtype = torch.float32
            del pixels, decode  # before the larger weights
            decode = _decoding_in(decoder, dtype)
            at_once = batch or fitting_batch(vae, height, width, dtype)
            continue
        start += len(part)
        yield (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def decoding_dtype(vae: Any) -> torch.dtype:
    """That of the weights, and float16 instead of float32 on an accelerator."""
    weight = next(vae.parameters())
    return torch.float16 if weight.device.type != "cpu" and weight.dtype == torch.float32 else weight.dtype


def decoding_bytes(vae: Any, height: int, width: int, dtype: torch.dtype) -> int:
    """Memory that decoding one frame of `height x width` pixels takes, in bytes, besides the weights.

    At its peak a decoder holds three activations at full resolution, as wide as what enters the last level.
    """
    widths = getattr(vae.config, "block_out_channels", None) or (_STABLE_DIFFUSION_WIDTH,)
    return 3 * widths[min(1, len(widths) - 1)] * height * width * dtype.itemsize


def free_memory(device: torch.device) -> int | None:
    """Bytes which may be allocated on an accelerator, torch's own reserve included; None where nobody can tell."""
    backend: Any = getattr(torch, device.type, None)
    if device.type == "cpu" or not hasattr(backend, "mem_get_info"):
        return None
    free, _ = backend.mem_get_info(device)
    return free + backend.memory_reserved(device) - backend.memory_allocated(device)


def fitting_batch(vae: Any, height: int, width: int, dtype: torch.dtype, *, free: int | None = None) -> int:
    """How many frames of `height x width` pixels to decode at once, 1 to `MAX_BATCH`.

    Args:
        free: bytes of memory; default: `free_memory` of the VAE's device, and `CPU_BATCH` frames where it is unknown.
    """
    if free is None:
        free = free_memory(next(vae.parameters()).device)
    if free is None:
        return CPU_BATCH
    fitting = int(_SHARE_OF_FREE_MEMORY * free) // decoding_bytes(vae, height, width, dtype)
    return min(max(fitting, 1), MAX_BATCH)


class _Decode(nn.Module):
    """`decode` as `forward`."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample


def _decoding_in(vae: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Latents to pixels in a precision which need not be that of the weights: then it has a copy of what decodes."""
    place = next(vae.parameters())
    call = _Decode(vae)
    if place.dtype == dtype:
        return lambda latents: call(latents.to(place.device, dtype))
    weights = {
        f"vae.{name}": x.to(dtype)
        for name, x in chain(vae.named_parameters(), vae.named_buffers())
        if x.is_floating_point() and not name.startswith(_ENCODER)
    }
    return lambda latents: functional_call(call, weights, (latents.to(place.device, dtype),))
