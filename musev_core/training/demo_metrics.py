"""How well the demo model does on toy clips it never saw, measured through the pipeline (the acceptance list)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..demo.settings import SAMPLING
from ..demo.toy import DIRECTIONS, SIZE, Clips
from ..denoise.control import Control
from ..denoise.noise import VideoNoise
from ..encode.vae import decode_latents, encode_latents
from ..measure.metrics import moving_pixels, psnr
from ..pipeline import ClipInputs, MuseVPipeline, SamplingOptions

DIFFERENT = 0.12  # a pixel that differs so much from the stage belongs to the subject


@torch.no_grad()
def generate(pipeline: MuseVPipeline, clips: Clips, **options: Any) -> Tensor:
    """Videos `(b, t, 64, 64, 3)` in 0..1 that begin with the clips' first frames; options as for `sample`."""
    return decoded(pipeline, sample(pipeline, clips, **options))


@torch.no_grad()
def sample(
    pipeline: MuseVPipeline,
    clips: Clips,
    *,
    condition: Tensor | None = None,
    captions: Sequence[str] | None = None,
    references: Tensor | None = None,
    use_reference: bool = True,
    controlnet: Any = None,
    num_frames: int | None = None,
    sampling: SamplingOptions = SAMPLING,
    seed: int = 0,
    batch: int = 10,
) -> Tensor:
    """Latents `(b, 4, t, 8, 8)` of videos of clips.

    Args:
        condition: latents `(b, 4, 1, 8, 8)` of the condition frames; default: the clips' first frames.
        captions, references: instead of the clips' own; references uint8 `(b, 64, 64, 3)`.
        use_reference: off leaves out ReferenceNet and image prompt.
        controlnet: follows the clips' pose videos.
        num_frames: to generate, besides the first.
        seed: of the first video, counted up: the result does not depend on the size of the batches.
    """
    count = len(clips.captions)
    num_frames = num_frames or clips.frames.shape[1] - 1
    captions = clips.captions if captions is None else list(captions)
    references = clips.reference if references is None else references
    if condition is None:
        condition = first_latents(pipeline, clips)
    size = 1 if controlnet is not None else batch  # a pose video belongs to one clip
    made = []
    for first in range(0, count, size):
        part = slice(first, min(first + size, count))
        pictures = references[part, None] if use_reference else None
        controls = []
        if controlnet is not None:
            hints = clips.pose[first, : num_frames + 1].permute(0, 3, 1, 2).float() / 255
            controls = [Control(controlnet, hints)]
        inputs = ClipInputs(
            prompts=captions[part],
            negative_prompts=[""] * len(captions[part]),
            num_frames=num_frames,
            height=SIZE,
            width=SIZE,
            condition_latents=condition[part],
            reference_images=pictures,
            image_prompts=pictures,
            controls=controls,
        )
        noise = VideoNoise(range(seed + part.start, seed + part.stop))
        made.append(pipeline.sample(inputs, sampling, noise=noise))
    return torch.cat(made)


def first_latents(pipeline: MuseVPipeline, clips: Clips) -> Tensor:
    """Latents `(b, 4, 1, 8, 8)` of the clips' first frames."""
    return encode_latents(pipeline.vae, clips.frames[:, 0]).transpose(0, 1)[:, :, None]


def decoded(pipeline: MuseVPipeline, latents: Tensor) -> Tensor:
    """Frames `(b, t, 64, 64, 3)` in 0..1 of latents `(b, 4, t, 8, 8)`."""
    return torch.stack([torch.cat(list(decode_latents(pipeline.vae, x, batch=16))) for x in latents])


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


def _unit(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x
