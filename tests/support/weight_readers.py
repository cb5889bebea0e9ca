"""All that reads weight files, by name, as `reader(path)`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from musev_core.loading import networks
from musev_core.loading.text import read_embeddings
from musev_core.weights.architecture import unet_config_from_shapes
from musev_core.weights.check import check_path
from musev_core.weights.config_json import read_config
from musev_core.weights.files import check_finite, read_shapes, read_tensors
from musev_core.weights.keymaps import ip_attention_names, split_ip_adapter
from musev_core.weights.kinds import describe, recognise
from musev_core.weights.layout import find_musev_files
from musev_core.weights.lora import apply_lora, read_faceid_lora, read_lora

from . import golden_models as models
from . import published

# imported where they are used, which must not count as the reading of a file
IMPORTED = (
    *(AutoencoderKL, ControlNetModel),
    *(CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection),
)
CONFIG = models.size_config(published.SIZE)
Reader = Callable[[Path], Any]


def _touched(path: Path) -> None:
    check_finite(read_tensors(path), path)


def _unet(path: Path) -> Any:
    found = find_musev_files(path)
    return networks.plan_unet(path, found, None, None).load(torch.float16)


def _lora(path: Path) -> Any:
    lora = read_lora(read_tensors(path), source=str(path), config=CONFIG)
    base = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.ones(32, 32)}
    return apply_lora(base, lora)


def _adapter(path: Path) -> Any:
    projection, attention = split_ip_adapter(read_tensors(path))
    read_faceid_lora(attention, config=CONFIG)
    return ip_attention_names(attention, config=CONFIG)


EVERYTHING: dict[str, Reader] = {
    "read_shapes": read_shapes,
    "read_tensors": _touched,
    "recognise": lambda path: describe(recognise(read_shapes(path))),
    "check": check_path,
    "unet_config": lambda path: unet_config_from_shapes(read_shapes(path), read_config(path.parent)),
}
BY_KIND: dict[str, Reader] = {
    "unet": _unet,
    "reference_net": lambda path: networks.plan_reference_net(path, CONFIG).load(torch.float32),
    "projection": lambda path: networks.plan_projection(path).load(torch.float16),
    "adapter": _adapter,
    "vae": networks.load_vae,
    "text": lambda path: networks.plan_text_encoder(path).load(torch.float16),
    "vision": lambda path: networks.plan_image_encoder(path.parent).load(torch.float16),
    "controlnet": networks.load_controlnet,
    "lora": _lora,
    "embedding": lambda path: read_embeddings([path]),
}
