"""The pipeline of a plan: each network loaded in turn, LoRAs and embeddings added."""

from collections.abc import Callable
from pathlib import Path

import torch

from ..devices import find_device
from ..encode.pictures import FacePromptEncoder, ImagePromptEncoder, insightface_extractor
from ..encode.text import add_textual_inversions
from ..pipeline import MuseVPipeline
from ..weights.lora import apply_lora
from .files import ModelFiles
from .plan import Plan, make_plan


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision on an accelerator, full precision on the CPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def load_pipeline(
    files: ModelFiles,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[str], None] | None = None,
) -> MuseVPipeline:
    """Loads a pipeline.

    Args:
        device, dtype: default: `devices.default_device()`, `default_dtype()`; the VAE stays in float32.
        progress: called with the name of each network before it is loaded.

    Raises:
        MuseVError: no such device.
        CheckpointError: a file is missing, damaged, or not what is asked for (all are recognised before any is loaded);
            or weights are NaN or infinite.
        MissingPackageError: FaceID without insightface.
    """
    device = find_device(device)
    return load_plan(make_plan(files), dtype or default_dtype(device), progress or (lambda name: None)).to(device)


def load_plan(plan: Plan, dtype: torch.dtype, say: Callable[[str], None]) -> MuseVPipeline:
    """The pipeline of a plan on the CPU, which is used up.

    Raises:
        CheckpointError: weights are NaN or infinite, or become so in `dtype`.
    """
    say("UNet")
    unet = plan.unet.load(dtype)
    say("text encoder")
    text_encoder = plan.text_encoder.load(dtype)
    for file, lora in plan.loras:
        say(f"LoRA {Path(file.path).stem}")
        if lora.unet:
            apply_lora(unet, lora, file.strength, file.block_weights, part="unet")
        if lora.text:
            apply_lora(text_encoder, lora, file.strength, file.block_weights, part="text")
    if plan.embeddings:
        say("embeddings")
        add_textual_inversions(plan.tokenizer, text_encoder, plan.embeddings)
    say("VAE")
    vae = plan.vae.load(torch.float32)
    reference_net = image_prompt = face_prompt = None
    if plan.reference_net is not None:
        say("ReferenceNet")
        reference_net = plan.reference_net.load(dtype)
    if plan.image_encoder is not None and plan.image_projection is not None:
        say("image encoder")
        image_prompt = ImagePromptEncoder(plan.image_encoder.load(dtype), plan.image_projection.load(dtype))
    if plan.face_projection is not None and plan.face_models is not None:
        say("FaceID")
        face_prompt = FacePromptEncoder(insightface_extractor(plan.face_models), plan.face_projection.load(dtype))
    return MuseVPipeline(unet, vae, plan.tokenizer, text_encoder, reference_net, image_prompt, face_prompt)
