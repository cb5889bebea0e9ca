"""How well the demo model does on toy clips it never saw, measured through the pipeline (the acceptance list)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..demo.settings import SAMPLING
from ..denoise.control import Control
from ..encoders import decode_latents, encode_latents
from ..metrics import moving_pixels, psnr
from ..pipeline import ClipInputs, MuseVPipeline, SamplingOptions
from .toy import DIRECTIONS, Clips

DIFFERENT = 0.12  # a pixel that differs so much from the stage belongs to the subject


def generate(
    pipeline: MuseVPipeline,
    clips: Clips,
    *,
    captions: Sequence[str] | None = None,
    references: Tensor | None = None,
    use_reference: bool = True,
    controlnet: Any = None,
    num_frames: int | None = None,
    sampling: SamplingOptions = SAMPLING,
    seed: int = 0,
    batch: int = 10,
) -> Tensor:
    """Videos `(b, t, 64, 64, 3)` in 0..1 that begin with the clips' first frames.

    Args:
        captions, references: instead of the clips' own; references uint8 `(b, 64, 64, 3)`.
        use_reference: off leaves out ReferenceNet and image prompt.
        controlnet: follows the clips' pose videos.
        num_frames: to generate, besides the first.
    """
    count = len(clips.captions)
    num_frames = num_frames or clips.frames.shape[1] - 1
    captions = clips.captions if captions is None else list(captions)
    references = clips.reference if references is None else references
    videos = []
    for first in range(0, count, 1 if controlnet is not None else batch):
        part = slice(first, first + (1 if controlnet is not None else batch))
        condition = torch.stack([encode_latents(pipeline.vae, frames[:1]) for frames in clips.frames[part]])
        pictures = references[part, None] if use_reference else None
        controls = []
        if controlnet is not None:
            hints = clips.pose[first, : num_frames + 1].permute(0, 3, 1, 2).float() / 255
            controls = [Control(controlnet, hints)]
        inputs = ClipInputs(
            prompts=captions[part],
            negative_prompts=[""] * len(captions[part]),
            num_frames=num_frames,
            height=64,
            width=64,
            condition_latents=condition,
            reference_images=pictures,
            image_prompts=pictures,
            controls=controls,
        )
        # a seed per video: the result does not depend on the size of the batches
        generators = [torch.Generator().manual_seed(seed + i) for i in range(first, first + len(captions[part]))]
        latents = pipeline.sample(inputs, sampling, generator=generators)
        videos += [torch.cat(list(decode_latents(pipeline.vae, x, batch=16))) for x in latents]
    return torch.stack(videos)


def centres(frames: Tensor, backgrounds: Tensor) -> Tensor:
    """Where the subject is, `(b, t, 2)` x and y in pixels: the centre of what differs from the stage; NaN if nothing.

    `frames (b, t, H, W, 3)` and uint8 `backgrounds (b, H, W, 3)`.
    """
    difference = (_unit(frames) - _unit(backgrounds)[:, None]).abs().amax(-1)
    weight = (difference - DIFFERENT).clamp(min=0)  # (b, t, h, w)
    axis = torch.arange(frames.shape[3]) + 0.5
    total = weight.sum((2, 3))
    x, y = (weight.sum(2) * axis).sum(-1) / total, (weight.sum(3) * axis).sum(-1) / total
    return torch.stack([x, y], dim=-1)


def directions(frames: Tensor, backgrounds: Tensor, least: float = 2.0) -> list[str | None]:
    """The direction in which each subject moved from the first frame to the last three; None if hardly at all."""
    places = centres(frames, backgrounds)
    moved = places[:, -3:].nanmean(1) - places[:, 0]  # (b, 2)
    found = []
    for x, y in moved.tolist():
        name = max(DIRECTIONS, key=lambda d: DIRECTIONS[d][0] * x + DIRECTIONS[d][1] * y)
        along = DIRECTIONS[name][0] * x + DIRECTIONS[name][1] * y
        found.append(name if along >= least else None)
    return found


def moving_psnr(frames: Tensor, truth: Tensor) -> Tensor:
    """PSNR `(b)` over the pixels that move in the true clips, the first frame left out, dB."""
    values = []
    for made, true in zip(_unit(frames), _unit(truth), strict=True):
        values.append(psnr(made, true, moving_pixels(true))[1:].nanmean())
    return torch.stack(values)


def repeated(truth: Tensor) -> Tensor:
    """The first frame of every clip, again and again."""
    return truth[:, :1].expand_as(truth)


def trajectory_error(frames: Tensor, truth: Tensor, backgrounds: Tensor) -> Tensor:
    """Mean distance `(b)` between the subject's places in two videos, pixels; the first frame left out."""
    distance = (centres(frames, backgrounds) - centres(truth, backgrounds)).norm(dim=-1)[:, 1:]
    return distance.nan_to_num(nan=32.0).mean(1)  # a subject that is gone is half a picture away


def subject_psnr(frames: Tensor, truth: Tensor, backgrounds: Tensor) -> Tensor:
    """PSNR `(b)` over the pixels of the true subject, the first frame left out, dB."""
    values = []
    for made, true, stage in zip(_unit(frames), _unit(truth), _unit(backgrounds), strict=True):
        mask = ((true - stage).abs().amax(-1) > DIFFERENT)[1:]
        values.append(psnr(made[1:], true[1:], mask).nanmean())
    return torch.stack(values)


def opposite(caption: str) -> str:
    """The caption with the direction turned round."""
    pairs = {"left": "right", "right": "left", "up": "down", "down": "up"}
    return " ".join(pairs.get(word, word) for word in caption.split())


def without_guidance(sampling: SamplingOptions) -> SamplingOptions:
    """The same run with guidance off: half the work."""
    return replace(sampling, guidance_scale=1.0, guidance_end=None)


def _unit(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x
