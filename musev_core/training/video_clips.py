"""Training straight from video files: frames are decoded and encoded while training."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..encode.text import encode_prompts
from ..errors import MuseVError
from ..frames.images import clip_pixel_values, fit_images
from ..frames.video import iter_frames, read_video
from .clip_sampling import ClipRule, choose_clip
from .objective import MotionObjective
from .schedule import place_in_epoch
from .sources import Source

log = logging.getLogger(__name__)


class VideoClips(Dataset):
    """Clips of video files, by the number of the sample in an endless run.

    A video which is broken or too short is reported once and left out. The first pass over the videos counts their
    frames.

    Args:
        sources: the videos. rule: how clips are taken; stored frames are every `stored_rate`-th.
        height, width: pixels, multiples of 8: frames are cropped to this shape and resized.
        seed: of the order and of everything drawn.
    """

    def __init__(self, sources: Sequence[Source], rule: ClipRule, height: int, width: int, *, seed: int):
        if height % 8 or width % 8 or min(height, width) < 8:
            raise MuseVError(f"height and width must be multiples of 8 pixels, got {height} x {width}")
        self.rule, self.height, self.width, self.seed = rule, height, width, seed
        counted = [(source, self._stored_frames(source)) for source in sources]
        self.videos = [(source, total) for source, total in counted if total >= rule.num_frames]
        if not self.videos:
            raise MuseVError(f"none of the {len(sources)} videos can be used for training; the warnings above say why")

    def _stored_frames(self, source: Source) -> int:
        try:
            total = sum(1 for _ in iter_frames(source.path, stride=self.rule.stored_rate))
        except MuseVError as error:
            log.warning("%s is left out: %s", source.path, error)
            return 0
        if total < self.rule.num_frames:
            log.warning(
                "%s is left out: it has %d frames at every %dth, a clip needs %d",
                source.path,
                total,
                self.rule.stored_rate,
                self.rule.num_frames,
            )
        return total

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample `number`: `frames (t, H, W, 3)` and `references (n, H, W, 3)`, uint8; frame_index; caption."""
        _, place = place_in_epoch(number, len(self.videos), self.seed)
        source, total = self.videos[place]
        choice = choose_clip(total, self.rule, np.random.default_rng((self.seed, 1, number)))
        numbers = sorted({*choice.frames, *choice.references})
        stored = read_video(source.path, stride=self.rule.stored_rate, start=0, max_frames=numbers[-1] + 1).frames
        kept = dict(zip(numbers, fit_images(stored[numbers], self.height, self.width, resample="bicubic"), strict=True))
        return {
            "frames": torch.stack([kept[i] for i in choice.frames]),
            "references": torch.stack([kept[i] for i in choice.references or choice.frames[:1]]),
            "frame_index": torch.tensor(choice.frame_index),
            "caption": source.caption,
        }


class EncodingObjective(nn.Module):
    """Encodes videos with the frozen networks of the base model, then a `MotionObjective`.

    Args:
        motion: what is trained. vae, text_encoder, image_encoder: frozen; tokenizer: of the text encoder.
        reference_scale: see `FeatureClips`.
    """

    def __init__(
        self,
        motion: MotionObjective,
        vae: Any,
        tokenizer: Any,
        text_encoder: Any,
        image_encoder: Any = None,
        reference_scale: float = 0.18215,
    ):
        super().__init__()
        self.motion = motion
        self.reference_scale = reference_scale
        # kept out of the module's own parts: they are neither trained nor saved
        self._frozen = (vae, tokenizer, text_encoder, image_encoder)

    def publish(self, folder: Any) -> None:
        """As the motion objective does."""
        self.motion.publish(folder)

    def forward(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of decoded clips."""
        vae, tokenizer, text_encoder, image_encoder = self._frozen
        with torch.no_grad():
            features = {
                "latents": self._latents(batch["frames"], generator, vae.config.scaling_factor),
                "frame_index": batch["frame_index"],
                "text": encode_prompts(tokenizer, text_encoder, batch["caption"], None, max_chunks=1).float(),
                "reference": self._latents(batch["references"], generator, self.reference_scale),
            }
            if image_encoder is not None:
                pixels = clip_pixel_values(batch["references"].flatten(0, 1), size=image_encoder.config.image_size)
                embeds = image_encoder(pixels.to(next(image_encoder.parameters()))).image_embeds
                features["image"] = embeds.float().unflatten(0, batch["references"].shape[:2])
        return self.motion(features, generator)

    def _latents(self, frames: Tensor, generator: torch.Generator, scale: float) -> Tensor:
        """Drawn latents `(b, 4, t, h, w)` of uint8 `frames (b, t, H, W, 3)`."""
        vae = self._frozen[0]
        b, t = frames.shape[:2]
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).to(next(vae.parameters())) / 127.5 - 1
        latents = torch.cat([vae.encode(part).latent_dist.sample(generator) for part in pixels.split(8)])
        return (latents.float() * scale).unflatten(0, (b, t)).transpose(1, 2)
