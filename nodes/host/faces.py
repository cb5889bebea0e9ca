"""Face embeddings inside ComfyUI, and the LoRA which an IP-Adapter FaceID brings along."""

from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
import torch
from torch import Tensor

from ...musev_core.encode.pictures import face_extractor, insightface_extractor
from ...musev_core.errors import MuseVError
from ...musev_core.frames.images import to_uint8
from ...musev_core.weights.keymaps import unet_ldm_to_diffusers
from .networks import HostedIPAdapter
from .view import base_config


def embeddings(images: Tensor, insightface: Any = None) -> Tensor:
    """`(n, 512)`, unit length, of the largest face in each of `images (n, H, W, 3)`.

    Args:
        insightface: an analysis of another pack's loader; None: buffalo_l of `models/insightface`.

    Raises:
        MissingPackageError: insightface is not installed.
        MuseVError: its models are missing, or there is a picture without a face.
    """
    if insightface is None:
        extract = insightface_extractor(Path(folder_paths.models_dir) / "insightface")
    else:
        extract = face_extractor(insightface)
    return extract(to_uint8(images[..., :3]))


def with_face_lora(model: Any, adapter: HostedIPAdapter, strength: float) -> Any:
    """The MODEL with the adapter's LoRA in its attention layers, as any LoRA of ComfyUI.

    Raises:
        MuseVError: the file holds none.
    """
    if strength == 0:
        return model
    if adapter.lora is None:
        raise MuseVError(f"{adapter.name} holds no LoRA: set lora_strength to 0, or load ip-adapter-faceid_sd15.bin")
    names = unet_ldm_to_diffusers(base_config(model.model.model_config.unet_config))
    keys = {
        ours.removesuffix(".weight").replace(".", "_"): f"diffusion_model.{theirs}"
        for theirs, ours in names.items()
        if ours.endswith(".weight")
    }
    tensors: dict[str, Tensor] = {}
    for module, layer in adapter.lora.unet.items():
        tensors[f"{module}.lora_up.weight"] = layer.up
        tensors[f"{module}.lora_down.weight"] = layer.down
        if layer.alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(float(layer.alpha))
    patches = comfy.lora.load_lora(tensors, {name: key for name, key in keys.items() if name in adapter.lora.unet})
    new = model.clone()
    new.add_patches(patches, strength)
    return new
