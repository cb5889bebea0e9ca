"""Three short films by the demo model, and what they measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoise.control import Control
from ..denoise.noise import VideoNoise
from ..denoise.windows import context_windows
from ..encode.vae import decode_latents, encode_latents
from ..frames.image_files import load_image
from ..frames.images import fit_images
from ..measure.metrics import psnr
from ..measure.report import measure
from ..measure.window_chart import seams
from ..pipeline import ClipInputs, MuseVPipeline, Observer
from . import toy
from .settings import SAMPLING

SPLIT = "test"  # of the toy world: scenes the model never saw
SCENES = {"walk": ("directed", 8), "sway": ("ambient", 8), "dance": ("wander", 6)}


@dataclass(frozen=True)
class Film:
    """What is made: a name, a caption, a start picture uint8 `(1, 64, 64, 3)`, and how many frames besides it.

    `pose (frames + 1, 64, 64, 3)`, uint8, is followed if it is given; `truth`, likewise, is what it should look like.
    """

    name: str
    caption: str
    image: Tensor
    num_frames: int
    pose: Tensor | None = None
    truth: Tensor | None = None


def standard_films(long_frames: int = 120) -> list[Film]:
    """From a picture and a caption; a long one through many windows; one that follows a pose video."""
    films = []
    for name, num_frames in (("walk", 12), ("sway", long_frames), ("dance", 12)):
        kind, number = SCENES[name]
        clips = toy.clips(SPLIT, [number], kind)
        films.append(
            Film(
                name,
                clips.captions[0],
                clips.frames[0, :1],
                num_frames,
                pose=clips.pose[0] if name == "dance" else None,
                truth=None if name == "sway" else clips.frames[0],
            )
        )
    return films


def make_film(
    pipeline: MuseVPipeline,
    film: Film,
    *,
    controlnet: Any = None,
    seed: int = 0,
    observer: Observer | None = None,
    run: str = "video",
) -> Tensor:
    """The frames `(frames + 1, 64, 64, 3)` of a film, in 0..1."""
    controls = []
    if film.pose is not None:
        controls = [Control(controlnet, film.pose.permute(0, 3, 1, 2).float() / 255)]
    inputs = ClipInputs(
        prompts=[film.caption],
        negative_prompts=[""],
        num_frames=film.num_frames,
        height=toy.SIZE,
        width=toy.SIZE,
        condition_latents=encode_latents(pipeline.vae, film.image)[None],
        reference_images=film.image[None],
        image_prompts=film.image[None],
        controls=controls,
    )
    latents = pipeline.sample(inputs, SAMPLING, noise=VideoNoise([seed]), observer=observer, run=run)
    return torch.cat(list(decode_latents(pipeline.vae, latents[0], batch=16)))


def enlarged(frames: Tensor, times: int = 4) -> Tensor:
    """Frames `(n, H, W, 3)` so many times larger: 64 pixels are a stamp on a screen."""
    larger = F.interpolate(frames.movedim(-1, 1), scale_factor=times, mode="bicubic", align_corners=False)
    return larger.movedim(1, -1).clamp(0, 1)


def described(film: Film, frames: Tensor) -> str:
    """What the frames measure, as lines of text."""
    windows = context_windows(film.num_frames, SAMPLING.denoiser.windows)
    picture = film.image.float() / 255
    if len(windows) > 1:
        places = seams(windows, film.num_frames)
        lines = [str(measure(frames, num_condition_frames=1, seams=places, pictures=picture))]
    else:  # a walk across the picture is no drift
        first = float(psnr(frames[:1], picture))
        lines = [f"{len(frames)} frames of one window; the first: {first:.1f} dB PSNR to its picture"]
    if film.truth is not None:
        truth = film.truth.float() / 255
        made, still = (float(psnr(x, truth)[1:].mean()) for x in (frames, truth[:1].expand_as(truth)))
        lines.append(f"Against the toy world's own clip: {made:.1f} dB PSNR; a still picture has {still:.1f}")
    return "\n".join(lines)


def changed(film: Film, image: Path | None, prompt: str | None) -> Film:
    """The film with another picture to start from, and another caption; nothing shows what it should look like."""
    picture = film.image if image is None else fit_images(load_image(image), toy.SIZE, toy.SIZE)
    return Film(film.name, prompt or film.caption, picture, film.num_frames)
