"""What a weight file is, told from the names and shapes of its tensors, never from its file name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from .files import Shapes
from .keymaps import LDM_TEXT_PREFIX, LDM_UNET_PREFIX, is_motion_name


class Family(Enum):
    """Kinds of networks; the value is the noun used in messages."""

    MUSEV_UNET = "musev UNet"
    MUSEV_REFERENCENET_UNET = "musev_referencenet UNet"
    REFERENCENET = "ReferenceNet"
    IMAGE_PROJECTION = "image projection"
    UNET = "Stable Diffusion UNet"
    SINGLE_FILE = "single-file Stable Diffusion checkpoint"
    VAE = "VAE"
    CLIP_TEXT = "CLIP text encoder"
    CLIP_VISION = "CLIP vision encoder"
    CONTROLNET = "ControlNet"
    IP_ADAPTER = "IP-Adapter"
    LORA = "LoRA"
    TEXTUAL_INVERSION = "textual inversion embedding"
    ANIMATEDIFF = "AnimateDiff motion module"
    OTHER_VIDEO_UNET = "text-to-video UNet of another project"
    UNKNOWN = "unknown file"


BASES = {768: "SD1.5", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
_HAS_BASE = {
    *(Family.REFERENCENET, Family.UNET, Family.SINGLE_FILE, Family.CONTROLNET),
    *(Family.IP_ADAPTER, Family.IMAGE_PROJECTION, Family.LORA, Family.TEXTUAL_INVERSION),
}
MUSEV_FAMILIES = (Family.MUSEV_UNET, Family.MUSEV_REFERENCENET_UNET)


@dataclass(frozen=True)
class ModelKind:
    """Result of `recognise`.

    Args:
        family: the kind of network.
        form: IP-Adapter and image projection: "plain", "plus", "faceid", "faceid-plus", "full-face"; LoRA: "kohya",
            "diffusers", "LoHa", "LoKr"; UNet, VAE, ControlNet: "diffusers" or "LDM" names; "" elsewhere.
        width: prompt width (UNets, ControlNet, IP-Adapter, LoRA, embedding), hidden width (CLIP) or latent channels
            (VAE); None where no tensor shows it.
        motion_only: a MuseV UNet without its Stable Diffusion part.
        face_layers: a MuseV UNet with FaceID attention.
    """

    family: Family
    form: str = ""
    width: int | None = None
    motion_only: bool = False
    face_layers: bool = False

    @property
    def base(self) -> str | None:
        """The base model it belongs to by its prompt width: "SD1.5", "SD2", "SDXL", ... or None if that is unknown."""
        return BASES.get(self.width or 0) if self.family in _HAS_BASE else None


def describe(kind: ModelKind) -> str:
    """What it is, as the end of a sentence: "a musev UNet (complete, with its Stable Diffusion part)"."""
    noun, notes = kind.family.value, []
    match kind.family:
        case Family.UNKNOWN:
            return "of an unknown kind"
        case Family.MUSEV_UNET | Family.MUSEV_REFERENCENET_UNET:
            notes.append("motion layers only" if kind.motion_only else "complete, with its Stable Diffusion part")
            if kind.face_layers:
                notes.append("with FaceID layers")
        case Family.IMAGE_PROJECTION if kind.form == "plain":
            noun = "MuseV image projection"
        case Family.IP_ADAPTER | Family.IMAGE_PROJECTION | Family.LORA:
            notes.append(kind.form)
        case Family.UNET | Family.CONTROLNET | Family.VAE if kind.form == "LDM":
            notes.append("LDM names")
        case Family.VAE if kind.width not in (None, 4):
            notes.append(f"{kind.width} latent channels")
        case Family.CLIP_TEXT | Family.CLIP_VISION:
            notes.append(f"width {kind.width}")
    if kind.base is not None:
        notes.append(f"for {kind.base}")
    article = "an" if noun[0] in "aeiouAEIOU" else "a"
    return f"{article} {noun}" + (f" ({', '.join(notes)})" if notes else "")


def recognise(shapes: Shapes) -> ModelKind:
    """Tell what a file with these tensors is (extra.md 6.2, 8.3), whatever their shapes are."""
    names = list(shapes)

    def starts(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    def contains(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    if contains("motion_modules."):
        return ModelKind(Family.ANIMATEDIFF)
    if contains("temp_convs.", "temp_attentions."):
        return _video_unet(shapes)
    # The FaceID adapter carries LoRA layers too, so it is asked for first.
    projection = {n.removeprefix("image_proj."): s for n, s in shapes.items() if n.startswith("image_proj.")}
    if projection or starts("ip_adapter."):
        family = Family.IP_ADAPTER if starts("ip_adapter.") else Family.IMAGE_PROJECTION
        return ModelKind(family, projection_form(projection), _adapter_width(shapes, projection))
    if projection_form(shapes) in ("plain", "faceid", "plus") and starts("proj.", "proj_in."):
        return ModelKind(Family.IMAGE_PROJECTION, projection_form(shapes), _adapter_width(shapes, shapes))
    if contains(".lora_", "_lora.", ".lora.", ".hada_", ".lokr_"):
        return ModelKind(Family.LORA, _lora_form(names), _lora_width(shapes))
    if starts(LDM_UNET_PREFIX):
        return ModelKind(Family.SINGLE_FILE, "LDM", prompt_width(shapes))
    if contains("controlnet_cond_embedding.") or starts("control_model.", "input_hint_block."):
        return ModelKind(
            Family.CONTROLNET, "diffusers" if contains("controlnet_cond_") else "LDM", prompt_width(shapes)
        )
    if "input_blocks.0.0.weight" in shapes:
        return ModelKind(Family.UNET, "LDM", prompt_width(shapes))
    if "conv_in.weight" in shapes and starts("down_blocks.") and "time_embedding.linear_1.weight" in shapes:
        family = Family.UNET if "conv_out.weight" in shapes else Family.REFERENCENET
        return ModelKind(family, "diffusers", prompt_width(shapes))
    for prefix in ("", "first_stage_model."):
        if f"{prefix}decoder.conv_in.weight" in shapes and f"{prefix}encoder.conv_in.weight" in shapes:
            form = "LDM" if starts(f"{prefix}encoder.down.") else "diffusers"
            return ModelKind(Family.VAE, form, size_of(shapes, f"{prefix}decoder.conv_in.weight", 1))
    if "vision_model.embeddings.class_embedding" in shapes:
        return ModelKind(Family.CLIP_VISION, width=size_of(shapes, "vision_model.embeddings.class_embedding", 0))
    for prefix in ("text_model.", "", f"{LDM_TEXT_PREFIX}text_model."):
        if f"{prefix}embeddings.token_embedding.weight" in shapes:
            return ModelKind(Family.CLIP_TEXT, width=size_of(shapes, f"{prefix}embeddings.token_embedding.weight", 1))
    return _embedding(shapes) or ModelKind(Family.UNKNOWN)


def size_of(shapes: Shapes, name: str, axis: int) -> int | None:
    """Size of one axis of a tensor; None if the file lacks the tensor or the tensor the axis."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else None


def prompt_width(shapes: Shapes) -> int | None:
    """Input width of the text or image keys; temporal attention is left out, its "cross" attention is none."""
    for name in shapes:
        if name.endswith(("attn2.to_k.weight", "to_k_ip.weight")) and "temp" not in name and "former_in." not in name:
            return size_of(shapes, name, 1)
    return None


def _video_unet(shapes: Shapes) -> ModelKind:
    roots = {name.split(".")[0] for name in shapes}
    if "frame_embedding" not in roots and not any(name.endswith(".temporal_weight") for name in shapes):
        return ModelKind(Family.OTHER_VIDEO_UNET)
    reference = any("refer_emb_attns." in name for name in shapes)
    return ModelKind(
        Family.MUSEV_REFERENCENET_UNET if reference else Family.MUSEV_UNET,
        width=prompt_width(shapes),
        motion_only=all(is_motion_name(name) for name in shapes),
        face_layers=any(".ip_adapter_face_to_k_ip." in name for name in shapes),
    )


def projection_form(names: Iterable[str]) -> str:
    """The form of an image projection with these tensors, "unknown" if it is none."""
    names = set(names)
    if any(name.startswith("perceiver_resampler.") for name in names):
        return "faceid-plus"
    if "latents" in names:
        return "plus"
    if "proj.3.weight" in names:
        return "full-face"
    if "proj.0.weight" in names:
        return "faceid"
    return "plain" if {"proj.weight", "norm.weight"} <= names else "unknown"


def _adapter_width(shapes: Shapes, projection: Shapes) -> int | None:
    for name in ("proj_out.weight", "norm.weight", "proj.3.weight"):
        if name in projection:
            return size_of(projection, name, 0)
    return next((size_of(shapes, name, 1) for name in shapes if name.endswith("to_k_ip.weight")), None)


def _lora_form(names: Iterable[str]) -> str:
    for mark, form in ((".hada_", "LoHa"), (".lokr_", "LoKr"), (".lora_down.", "kohya")):
        if any(mark in name for name in names):
            return form
    return "diffusers"


def _lora_width(shapes: Shapes) -> int | None:
    """Prompt width of a LoRA: a layer on the text's keys has it as its input."""
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in shapes):
        return 2048
    for name in shapes:
        is_key = name.endswith(".weight") and re.search(r"attn2[._](processor\.)?to_k", name)
        if is_key and re.search(r"(lora_down|lora_A|down)\b", name):
            return size_of(shapes, name, 1)
    return None


def _embedding(shapes: Shapes) -> ModelKind | None:
    """Textual inversion: one matrix of few vectors, under a name of the trainer's choice."""
    if "clip_l" in shapes and "clip_g" in shapes:
        return ModelKind(Family.TEXTUAL_INVERSION, width=2048)
    matrices = [tuple(s) for n, s in shapes.items() if not n.startswith("string_to_token")]
    if len(matrices) == 1 and len(matrices[0]) in (1, 2) and matrices[0][-1] in (768, 1024):
        return ModelKind(Family.TEXTUAL_INVERSION, width=matrices[0][-1])
    return None
