"""From weight files to a pipeline: files -> plan (all recognised, nothing loaded) -> networks -> pipeline."""

from .files import LoraFile, ModelFiles
from .networks import (
    Planned,
    load_controlnet,
    load_image_encoder,
    load_projection,
    load_reference_net,
    load_text_encoder,
    load_vae,
    plan_controlnet,
)
from .pipeline import default_dtype, load_pipeline
from .plan import Plan, make_plan
from .text import load_tokenizer

__all__ = [
    "LoraFile",
    "ModelFiles",
    "Plan",
    "Planned",
    "default_dtype",
    "load_controlnet",
    "load_image_encoder",
    "load_pipeline",
    "load_projection",
    "load_reference_net",
    "load_text_encoder",
    "load_tokenizer",
    "load_vae",
    "make_plan",
    "plan_controlnet",
]
