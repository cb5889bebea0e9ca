"""The golden set's models, read from the machine-readable block of goldens/FORMAT.md and filled by rule."""

import copy
import json
import re
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from musev_core.config import VARIANTS, ImageProjectionConfig, UNetConfig, resized
from musev_core.denoise.schedulers import SchedulerConfig
from musev_core.models.ip_adapter import image_projection
from musev_core.models.reference_net import ReferenceNet
from musev_core.models.unet import MuseVUNet

from .numbers import det, fill

GOLDENS = Path(__file__).parents[1] / "goldens"
_BLOCK = re.search(
    r"<!-- config:begin -->\s*```json\n(.*?)```", (GOLDENS / "FORMAT.md").read_text(encoding="utf-8"), re.S
)
CONFIG = json.loads(_BLOCK.group(1))
PREFIX = CONFIG["prefixes"]


def shared(build):
    """`build` is called once for each set of arguments, in no mode of its first caller: weights that were made under
    `inference_mode` could not be trained by the next test."""
    return cache(torch.inference_mode(False)(build))


def size_config(size: str) -> UNetConfig:
    """The widths and depths of a size, without temporal layers."""
    s = CONFIG["sizes"][size]
    return UNetConfig(
        block_out_channels=tuple(s["block_out_channels"]),
        cross_attention_blocks=tuple(s["cross_attention_blocks"]),
        layers_per_block=s["layers_per_block"],
        norm_groups=s["norm_groups"],
        num_heads=s["num_heads"],
        context_dim=s["context_dim"],
        temporal=False,
    )


def unet_config(arch: str, size: str, face_layers: bool = False) -> UNetConfig:
    return replace(resized(VARIANTS[arch], size_config(size)), face_prompt=face_layers)


@shared
def unet(arch: str, size: str, seed: int, face_layers: bool = False) -> MuseVUNet:
    return fill(MuseVUNet(unet_config(arch, size, face_layers)), PREFIX["unet"], seed)


@shared
def unet_as(dtype: torch.dtype, *which) -> MuseVUNet:
    """The same network in another precision."""
    return unet(*which) if dtype == torch.float32 else copy.deepcopy(unet(*which)).to(dtype)


@shared
def unet2d(size: str, seed: int) -> MuseVUNet:
    return fill(MuseVUNet(size_config(size)), PREFIX["unet2d"], seed)


@shared
def reference_net(size: str, seed: int) -> ReferenceNet:
    return fill(ReferenceNet(size_config(size)), PREFIX["reference_net"], seed)


def projection_config(kind: str, numbers: dict | None = None) -> ImageProjectionConfig:
    numbers = numbers or CONFIG["image_proj" if kind == "plain" else "faceid_proj"]
    names = ("input_dim", "context_dim", "num_tokens")
    return ImageProjectionConfig(kind=kind, **{name: numbers[name] for name in names})


@shared
def projection(kind: str, seed: int):
    return fill(
        image_projection(projection_config(kind)), PREFIX["image_proj" if kind == "plain" else "faceid_proj"], seed
    )


@shared
def vae(seed: int):
    from diffusers import AutoencoderKL

    return fill(AutoencoderKL(**CONFIG["vae"]), PREFIX["vae"], seed)


@shared
def controlnet(size: str, seed: int):
    from diffusers import ControlNetModel

    s, c = CONFIG["sizes"][size], CONFIG["controlnet"]
    net = ControlNetModel(
        in_channels=4,
        conditioning_channels=c["conditioning_channels"],
        conditioning_embedding_out_channels=tuple(c["conditioning_embedding_out_channels"]),
        block_out_channels=tuple(s["block_out_channels"]),
        layers_per_block=s["layers_per_block"],
        down_block_types=tuple("CrossAttnDownBlock2D" if x else "DownBlock2D" for x in s["cross_attention_blocks"]),
        norm_num_groups=s["norm_groups"],
        attention_head_dim=s["num_heads"],
        cross_attention_dim=s["context_dim"],
    )
    return fill(net, PREFIX["controlnet"], seed)


def _published_keys(module: torch.nn.Module, outer: str, prefix: str, seed: int) -> torch.nn.Module:
    """Fills by the published key even where a transformers release leaves out the outer name."""
    first = next(iter(dict(module.named_parameters())))
    return fill(module, prefix if first.startswith(outer) else prefix + outer, seed)


@shared
def text_encoder(seed: int):
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig(**CONFIG["text_encoder"]))
    return _published_keys(model, "text_model.", PREFIX["text_encoder"], seed)


@shared
def image_encoder(seed: int):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG["clip_vision"])), PREFIX["clip_vision"], seed)


class StandInTokenizer:
    """Words hashed to numbers (FORMAT.md 2.2), with the interface of a transformers tokenizer."""

    bos_token_id = CONFIG["tokenizer"]["bos"]
    eos_token_id = CONFIG["tokenizer"]["eos"]
    pad_token_id = CONFIG["tokenizer"]["pad"]
    model_max_length = CONFIG["tokenizer"]["model_max_length"]

    def __call__(self, text: str, add_special_tokens: bool = True, **_):
        ids = [zlib.crc32(word.encode("utf-8")) % CONFIG["tokenizer"]["modulus"] for word in text.split()]
        if add_special_tokens:
            ids = [self.bos_token_id, *ids, self.eos_token_id]
        return type("Encoding", (), {"input_ids": ids})()


def face_embeddings(images: torch.Tensor) -> torch.Tensor:
    """Stand-in extractor: the same embeddings whatever the pictures contain. `(n, H, W, 3)` to `(n, dim)`."""
    extractor = CONFIG["face_extractor"]
    e = det(extractor["name"], (images.shape[0], extractor["dim"]))
    return e / e.norm(dim=1, keepdim=True)


_EQUIVALENT = {"type", "timestep_spacing", "steps_offset", "prediction_type", "num_train_timesteps"}


def scheduler(name: str) -> SchedulerConfig:
    c = CONFIG["schedulers"][name]
    return SchedulerConfig(
        **{k: c[k] for k in _EQUIVALENT | {"beta_start", "beta_end", "beta_schedule"}},
        **({"original_inference_steps": c["original_inference_steps"]} if c["type"] == "lcm" else {}),
    )
