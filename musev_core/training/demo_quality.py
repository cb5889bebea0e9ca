"""What the demo model has to be good at, measured on the toy world's test split (the acceptance list).

Every function gives figures by name. Everything goes through the pipeline, so they say what a user gets.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..demo import toy
from ..demo.model import DemoNetworks
from ..demo.settings import SAMPLING
from ..denoise.windows import WindowOptions, context_windows
from ..encode.vae import decode_latents, encode_latents
from ..measure.metrics import psnr
from ..measure.report import measure
from ..measure.window_chart import seams
from ..models.temporal import TemporalConv, TemporalTransformer
from ..pipeline import MuseVPipeline, SamplingOptions
from .demo_metrics import (
    DIFFERENT,
    centres,
    decoded,
    directions,
    first_latents,
    generate,
    moving_psnr,
    opposite,
    repeated,
    sample,
    subject_psnr,
    trajectory_error,
)
from .demo_vae import round_trip_psnr, test_pictures

SPLIT = "test"
LONG = 120  # generated frames of a long film


def round_trip(networks: DemoNetworks, count: int = 64) -> dict[str, float]:
    """PSNR of the VAE's round trip, dB."""
    return {"psnr": round_trip_psnr(networks.vae, test_pictures(count, SPLIT))}


def one_window(networks: DemoNetworks, count: int = 50) -> dict[str, float]:
    """Directed clips of a window: what moves, and where to.

    `gain`: dB of the moving pixels above repeating the first frame, and `ceiling`, what the VAE's round trip of the
    true clips would reach. `right`: share of clips whose direction is the caption's; `swapped`: the same with the
    opposite caption; `still`: with the temporal layers off. `first_frame`: dB between frame 0 and the VAE's round trip
    of the given picture.
    """
    pipeline = networks.pipeline()
    clips = toy.clips(SPLIT, range(count), "directed")
    frames = generate(pipeline, clips)
    base = moving_psnr(repeated(clips.frames), clips.frames)
    trip = decoded(pipeline, first_latents(pipeline, clips))[:, 0]
    whole = torch.stack([_round_trip(pipeline, x) for x in clips.frames])
    swapped = [opposite(caption) for caption in clips.captions]
    without_motion = replace(networks, unet=without_temporal_layers(networks.unet)).pipeline()
    return {
        "gain": float((moving_psnr(frames, clips.frames) - base).mean()),
        "ceiling": float((moving_psnr(whole, clips.frames) - base).mean()),
        "right": _share_right(frames, clips, clips.captions),
        "swapped": _share_right(generate(pipeline, clips, captions=swapped), clips, swapped),
        "still": _share_right(generate(without_motion, clips), clips, clips.captions),
        "first_frame": float(psnr(frames[:, 0], trip).clamp(max=200).mean()),
    }


def poses(networks: DemoNetworks, count: int = 12) -> dict[str, float]:
    """Mean distance between the subject and its place in the pose video, pixels: with `control`, and `without`."""
    pipeline = networks.pipeline()
    clips = toy.clips(SPLIT, range(count), "wander")

    def error(frames: Tensor) -> float:
        return float(trajectory_error(frames, clips.frames, clips.background).mean())

    return {
        "control": error(generate(pipeline, clips, controlnet=networks.controlnet)),
        "without": error(generate(pipeline, clips)),
    }


def references(networks: DemoNetworks, count: int = 16) -> dict[str, float]:
    """Subjects that enter an empty stage: only the reference picture shows what they look like.

    `given` and `off`: PSNR of the true subject's pixels with and without ReferenceNet and image prompt, dB.
    `swapped`: share of the clips which look more like the subject of another reference picture, when that is given.
    """
    pipeline = networks.pipeline()
    scenes = [replace(toy.scene(SPLIT, i, "enter"), described=False) for i in range(count)]
    colors = list(toy.COLORS)
    others = [
        replace(s, color=colors[(colors.index(s.color) + 3) % len(colors)], texture=_next(toy.TEXTURES, s.texture))
        for s in scenes
    ]
    clips, other = toy.render(scenes), toy.render(others)

    def likeness(frames: Tensor, truth: toy.Clips) -> Tensor:
        return subject_psnr(frames, truth.frames, truth.background)

    given = generate(pipeline, clips)
    off = generate(pipeline, clips, use_reference=False)
    swapped = generate(pipeline, clips, references=other.reference)
    return {
        "given": float(likeness(given, clips).mean()),
        "off": float(likeness(off, clips).mean()),
        "swapped": float((likeness(swapped, other) > likeness(swapped, clips)).float().mean()),
    }


def long_films(networks: DemoNetworks, count: int = 20, fuse: str = "linear") -> dict[str, float]:
    """120 ambient frames through windows of 12 that share 4; `pyramid` weights are then the same as `linear` ones.

    `seam_jerk`: ratio of the second differences at the windows' seams to those between. `color`, `contrast`,
    `sharpness`: size of the steady change, up or down, per cent per 100 frames. Means over the films.
    """
    windows = replace(SAMPLING.denoiser.windows, fuse=fuse)
    sampling = replace(SAMPLING, denoiser=replace(SAMPLING.denoiser, windows=windows))
    clips = toy.clips(SPLIT, range(count), "ambient")
    frames = generate(networks.pipeline(), clips, num_frames=LONG, sampling=sampling)
    return {name: float(values.mean()) for name, values in _steadiness(frames, _seams(windows)).items()}


def parallel_and_chained(networks: DemoNetworks, count: int = 20) -> dict[str, dict[str, tuple[float, float]]]:
    """A long film by parallel denoising against ten chained shots of 12 frames, at equal cost.

    Equal cost: the same number of calls of the network. Windows that overlap are more than shots, so the shots get more
    steps. Figures by measure and by method: mean over the clips and half the width of its 95 % confidence interval.
    """
    pipeline = networks.pipeline()
    clips = toy.clips(SPLIT, range(count), "ambient")
    window = SAMPLING.denoiser.windows
    shots = LONG // window.length
    steps = round(SAMPLING.num_steps * len(context_windows(LONG, window)) / shots)
    methods = {
        "parallel": (generate(pipeline, clips, num_frames=LONG), _seams(window)),
        f"chained, {steps} steps": (
            chained(pipeline, clips, shots, replace(SAMPLING, num_steps=steps)),
            range(window.length, LONG, window.length),
        ),
    }
    table: dict[str, dict[str, tuple[float, float]]] = {}
    for name, (frames, places) in methods.items():
        for measured, values in _over_time(frames, clips, list(places)).items():
            table.setdefault(measured, {})[name] = _interval(values)
    return table


def chained(pipeline: MuseVPipeline, clips: toy.Clips, shots: int, sampling: SamplingOptions) -> Tensor:
    """Videos of shots, each of which begins with the last frame of the one before: `(b, 1 + shots * 12, 64, 64, 3)`."""
    length = sampling.denoiser.windows.length
    parts = [first_latents(pipeline, clips)]
    for shot in range(shots):
        made = sample(
            pipeline,
            clips,
            condition=parts[-1][:, :, -1:],
            num_frames=length,
            sampling=sampling,
            seed=shot * len(clips.captions),
        )
        parts.append(made[:, :, 1:])
    return decoded(pipeline, torch.cat(parts, dim=2))


def without_temporal_layers(unet: torch.nn.Module) -> torch.nn.Module:
    """The same network with all weights of its temporal layers 0, so that these pass on what they get."""
    changed = copy.deepcopy(unet)
    for module in changed.modules():
        if isinstance(module, TemporalConv | TemporalTransformer):
            for parameter in module.parameters():
                parameter.data.zero_()
    return changed


MEASURES: dict[str, Callable[[DemoNetworks], dict[str, Any]]] = {
    "round trip": round_trip,
    "one window": one_window,
    "poses": poses,
    "references": references,
    "long films, flat": partial(long_films, fuse="flat"),
    "long films, linear": partial(long_films, fuse="linear"),
    "parallel and chained": parallel_and_chained,
}


# ------------------------------------------------------------------------------------------ small things


def _over_time(frames: Tensor, clips: toy.Clips, places: Sequence[int]) -> dict[str, Tensor]:
    """Measures `(b)` of long films `(b, 121, 64, 64, 3)` of ambient clips."""
    shot = SAMPLING.denoiser.windows.length
    stage = clips.background.float() / 255
    truth = clips.frames.float() / 255
    # the stage where the subject has no business: a margin of 6 pixels around all its places in the true clips
    reach = (truth - stage[:, None]).abs().amax((1, -1)) > 0.02
    free = F.max_pool2d(reach[:, None].float(), 13, 1, 6)[:, 0] == 0

    def stage_psnr(part: Tensor) -> Tensor:
        return torch.stack(
            [psnr(x, s.expand_as(x), m.expand(x.shape[:3])).mean() for x, s, m in zip(part, stage, free, strict=True)]
        )

    subject = centres(frames, clips.background)
    away = (subject - subject[:, :1]).norm(dim=-1)
    steady = _steadiness(frames, places)
    return {
        f"stage, frames 1 to {shot}, dB": stage_psnr(frames[:, 1 : shot + 1]),
        f"stage, last {shot} frames, dB": stage_psnr(frames[:, -shot:]),
        f"subject from home, frames 1 to {shot}, pixels": away[:, 1 : shot + 1].nan_to_num(nan=32.0).mean(1),
        f"subject from home, last {shot} frames, pixels": away[:, -shot:].nan_to_num(nan=32.0).mean(1),
        f"subject's color, last {shot} frames, error of 255": 255 * _color_error(frames, clips)[:, -shot:].mean(1),
        "seam jerk": steady.pop("seam_jerk"),
        **{f"{name} drift, % per 100 frames": values for name, values in steady.items()},
    }


def _steadiness(frames: Tensor, places: Sequence[int]) -> dict[str, Tensor]:
    """Seam jerk and sizes of the drifts, `(b)` each, of films `(b, t, 64, 64, 3)` with one condition frame."""
    reports = [measure(x, num_condition_frames=1, seams=places) for x in frames]
    drifts = [r.drift for r in reports if r.drift is not None]
    return {
        "seam_jerk": torch.tensor([r.seam_jerk or 0.0 for r in reports]),
        "color": torch.tensor([d.color for d in drifts]).abs().mean(1),
        "contrast": torch.tensor([d.contrast for d in drifts]).abs().mean(1),
        "sharpness": torch.tensor([d.sharpness for d in drifts]).abs(),
    }


def _color_error(frames: Tensor, clips: toy.Clips) -> Tensor:
    """`(b, t)`: how far the subject's mean color is from that in the given picture; 1 where there is no subject."""

    def color(x: Tensor) -> Tensor:  # (b, t, h, w, 3) -> (b, t, 3)
        stage = clips.background.float()[:, None] / 255
        mask = ((x - stage).abs().amax(-1, keepdim=True) > DIFFERENT).float()
        return (x * mask).sum((2, 3)) / mask.sum((2, 3))

    return (color(frames) - color(clips.frames[:, :1].float() / 255)).abs().mean(-1).nan_to_num(nan=1.0)


def _round_trip(pipeline: MuseVPipeline, frames: Tensor) -> Tensor:
    return torch.cat(list(decode_latents(pipeline.vae, encode_latents(pipeline.vae, frames), batch=16)))


def _seams(windows: WindowOptions) -> list[int]:
    return seams(context_windows(LONG, windows), LONG)


def _share_right(frames: Tensor, clips: toy.Clips, captions: Sequence[str]) -> float:
    found = directions(frames, clips.background)
    return sum(d in caption.split() for d, caption in zip(found, captions, strict=True)) / len(captions)


def _next(values: Sequence[str], value: str) -> str:
    return values[(values.index(value) + 1) % len(values)]


def _interval(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))
