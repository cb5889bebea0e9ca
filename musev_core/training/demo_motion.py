"""The demo model's UNet with what belongs to it, and its ControlNet, trained on the toy world's latents."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..demo import sizes, toy
from ..demo.files import FILES
from ..demo.model import DemoNetworks
from ..demo.vocabulary import USED_TOKENS, DemoTokenizer, padded
from ..frames.images import CLIP_MEAN, CLIP_STD
from ..weights.files import read_tensors
from . import checkpoints
from .diffusion import DiffusionOptions
from .objective import MotionObjective
from .options import TrainOptions
from .schedule import derived_seed, place_in_epoch

log = logging.getLogger(__name__)

NUM_FRAMES = 13  # one condition frame and a window
SPEEDS = (4.0, 6.0, 8.0, 8.0, 10.0, 12.0)  # motion speeds, the usual one twice
SHARD = 50  # clips per file of latents
SHORT_FRAMES = 7  # most steps see a condition frame and half a window, at half the cost

DIFFUSION = DiffusionOptions(prediction_type="v_prediction", text_dropout=0.05, image_dropout=0.05, both_dropout=0.08)
NOISIER = replace(DIFFUSION, timestep_power=0.5)
UNET_OPTIONS = TrainOptions(
    steps=3000,
    batch_size=8,
    accumulation=1,
    learning_rate=1e-3,
    muon_rate=0.01,
    betas=(0.9, 0.95),
    learning_rate_schedule="cosine",
    warmup_steps=100,
    weight_decay=0.0,
    ema_decay=0.998,
    seed=6,
    checkpoint_every=200,
    keep_checkpoints=2,
    validate_every=400,
    log_every=25,
)


@dataclass(frozen=True)
class Stage:
    """A part of the training: on the first `clips` of the training split, `short_steps` on short pieces of them."""

    options: TrainOptions
    clips: int
    short_steps: int
    diffusion: DiffusionOptions = NOISIER
    kinds: Sequence[str] = toy.KINDS


STAGES = {  # each begins with the averaged weights of the one before
    "unet": Stage(UNET_OPTIONS, clips=3000, short_steps=2650, diffusion=DIFFUSION),
    "refine": Stage(replace(UNET_OPTIONS, steps=3600, muon_rate=0.006, seed=9), clips=9000, short_steps=3600),
    "finish": Stage(
        replace(UNET_OPTIONS, steps=1300, accumulation=2, learning_rate=4e-4, muon_rate=0.004, seed=10),
        clips=9000,
        short_steps=0,
        kinds=(*toy.KINDS, "directed", "enter"),
    ),
}
CONTROLNET = Stage(
    replace(UNET_OPTIONS, steps=1000, seed=7),
    clips=3000,
    short_steps=1000,
    diffusion=DIFFUSION,
    kinds=("directed", "wander"),
)


def speed_of(number: int) -> float:
    """The motion speed of training clip `number`."""
    return SPEEDS[derived_seed(3, number) % len(SPEEDS)]


@torch.no_grad()
def write_latents(vae: Any, folder: Path, count: int, split: str = "train") -> None:
    """Encodes the first `count` clips of a split, a file per `SHARD`; what exists is kept."""
    for first in range(0, count, SHARD):
        path = folder / f"{split}-{first:06d}.safetensors"
        if path.exists():
            continue
        numbers = range(first, first + SHARD)
        clips = toy.render([toy.scene(split, i) for i in numbers], NUM_FRAMES, [speed_of(i) for i in numbers])
        pictures = torch.cat([clips.frames, clips.reference[:, None]], dim=1).flatten(0, 1)
        means = torch.cat(
            [vae.encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean for part in pictures.split(50)]
        )
        latents = (means * vae.config.scaling_factor).unflatten(0, (SHARD, NUM_FRAMES + 1))
        checkpoints.save_tensors(
            path.with_suffix(".part"),
            {
                "latents": latents[:, :-1].transpose(1, 2).half(),
                "reference": latents[:, -1].half(),
                "portrait": clips.reference,
                "first": clips.frames[:, 0],
            },
        )
        path.with_suffix(".part").replace(path)


def compact_tokens(captions: Sequence[str]) -> Tensor:
    """`(n, 77)` places in `USED_TOKENS` of the captions' tokens: only these are trained."""
    tokenizer = DemoTokenizer()
    ids = torch.tensor([padded(tokenizer(caption).input_ids) for caption in captions])
    return torch.searchsorted(torch.tensor(USED_TOKENS), ids)


def vision_pixels(pictures: Tensor) -> Tensor:
    """uint8 `(n, 64, 64, 3)` as the image encoder wants them, `(n, 3, 64, 64)`."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class ToyLatents(Dataset):
    """Encoded clips of the training split.

    Args:
        short_samples: the first so many samples have `SHORT_FRAMES` frames: the condition frame, and a run of the
            others that begins anywhere; the rest has all.
        kinds: which kinds of motion; one that is named twice is seen twice as often.
        pose: whether to draw the pose video as well.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        seed: int,
        *,
        short_samples: int = 0,
        kinds: Sequence[str] = toy.KINDS,
        pose: bool = False,
    ):
        self.seed, self.short_samples, self.pose = seed, short_samples, pose
        shards = [read_tensors(folder / f"train-{first:06d}.safetensors") for first in range(0, count, SHARD)]
        tensors = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        self.scenes = [toy.scene("train", i) for i in range(count)]
        self.numbers = [i for kind in kinds for i, s in enumerate(self.scenes) if s.kind == kind]
        self.tensors = tensors
        self.tokens = compact_tokens([s.caption for s in self.scenes])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Sample `number` of an endless run."""
        epoch, place = place_in_epoch(number, len(self.numbers), self.seed)
        item = self.numbers[place]
        rng = np.random.default_rng((self.seed, number, epoch))
        frames = SHORT_FRAMES if number < self.short_samples else NUM_FRAMES
        start = int(rng.integers(1, NUM_FRAMES - frames + 2))
        chosen = [0, *range(start, start + frames - 1)]
        latents = self.tensors["latents"][item].float()
        speed = speed_of(item)
        portrait = self.scenes[item].kind == "enter" or rng.random() < 0.5
        reference = self.tensors["reference"][item].float() if portrait else latents[:, 0]
        picture = self.tensors["portrait" if portrait else "first"][item]
        sample = {
            "latents": latents[:, chosen],
            "frame_index": torch.tensor([int(i * speed) for i in chosen]),
            "tokens": self.tokens[item],
            "reference": reference[:, None],
            "image": vision_pixels(picture[None]),
        }
        if self.pose:
            pose = toy.draw_pose(self.scenes[item], NUM_FRAMES, speed)[chosen]
            sample["pose"] = pose.permute(0, 3, 1, 2).float() / 255
        return sample


def write_demo(folder: Path, objective: MotionObjective) -> None:
    """All networks of the objective in the layout of the demo's weights."""
    networks: dict[str, Any] = {
        "unet": objective.unet,
        "reference_net": objective.reference_net,
        "image_projection": objective.image_projection,
        "image_encoder": objective.image_encoder,
        "controlnet": objective.controlnet,
    }
    for name, net in networks.items():
        if net is not None:
            checkpoints.save_tensors(folder / FILES[name], net.state_dict())
    if objective.text_encoder is not None:
        checkpoints.save_tensors(folder / FILES["text_encoder"], expanded_text(objective.text_encoder))


def expanded_text(text_encoder: Any) -> dict[str, Tensor]:
    """The text encoder's weights for CLIP's whole vocabulary; tokens which were never seen are zero."""
    tensors = {}
    for name, x in text_encoder.state_dict().items():
        if name.endswith("position_ids"):
            continue
        if name.endswith("token_embedding.weight"):
            table = x.new_zeros(sizes.TEXT["vocab_size"], x.shape[1])
            table[list(USED_TOKENS)] = x
            x = table
        tensors["text_model." + name.removeprefix("text_model.")] = x
    return tensors


def motion_objective(
    networks: DemoNetworks, diffusion: DiffusionOptions, *, train_controlnet: bool = False
) -> MotionObjective:
    """Everything but the VAE trained together; or only the ControlNet, beside the frozen rest."""
    for name, net in networks.named().items():
        trained = name == "controlnet" if train_controlnet else name not in ("controlnet", "vae")
        net.requires_grad_(trained)
    return MotionObjective(
        networks.unet,
        diffusion,
        empty_text=compact_tokens([""])[0],
        write=write_demo,
        reference_net=networks.reference_net,
        image_projection=networks.image_projection,
        text_encoder=networks.text_encoder,
        image_encoder=networks.image_encoder,
        controlnet=networks.controlnet if train_controlnet else None,
    )


def spatial_names() -> set[str]:
    """Names of the UNet's Stable Diffusion part."""
    from ..models.unet import MuseVUNet

    with torch.device("meta"):
        return set(MuseVUNet(sizes.UNET.spatial()).state_dict())
