"""What a weight file is, told from the names and shapes of its tensors, never from its file name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..config import ImageProjectionConfig, UNetConfig
from ..errors import CheckpointError
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


_BASES = {768: "SD1.5", 1024: "SD2", 1280: "SDXL refiner", 2048: "SDXL"}
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
        return _BASES.get(self.width or 0) if self.family in _HAS_BASE else None


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
    """Tell what a file with these tensors is (extra.md 6.2, 8.3)."""
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
        return ModelKind(family, _projection_form(projection), _adapter_width(shapes, projection))
    if _projection_form(shapes) in ("plain", "faceid", "plus") and starts("proj.", "proj_in."):
        return ModelKind(Family.IMAGE_PROJECTION, _projection_form(shapes), _adapter_width(shapes, shapes))
    if contains(".lora_", "_lora.", ".lora.", ".hada_", ".lokr_"):
        return ModelKind(Family.LORA, _lora_form(names), _lora_width(shapes))
    if starts(LDM_UNET_PREFIX):
        return ModelKind(Family.SINGLE_FILE, "LDM", _prompt_width(shapes))
    if contains("controlnet_cond_embedding.") or starts("control_model.", "input_hint_block."):
        return ModelKind(
            Family.CONTROLNET, "diffusers" if contains("controlnet_cond_") else "LDM", _prompt_width(shapes)
        )
    if "input_blocks.0.0.weight" in shapes:
        return ModelKind(Family.UNET, "LDM", _prompt_width(shapes))
    if "conv_in.weight" in shapes and starts("down_blocks.") and "time_embedding.linear_1.weight" in shapes:
        family = Family.UNET if "conv_out.weight" in shapes else Family.REFERENCENET
        return ModelKind(family, "diffusers", _prompt_width(shapes))
    for prefix in ("", "first_stage_model."):
        if f"{prefix}decoder.conv_in.weight" in shapes and f"{prefix}encoder.conv_in.weight" in shapes:
            form = "LDM" if starts(f"{prefix}encoder.down.") else "diffusers"
            return ModelKind(Family.VAE, form, shapes[f"{prefix}decoder.conv_in.weight"][1])
    if "vision_model.embeddings.class_embedding" in shapes:
        return ModelKind(Family.CLIP_VISION, width=shapes["vision_model.embeddings.class_embedding"][0])
    for prefix in ("text_model.", "", f"{LDM_TEXT_PREFIX}text_model."):
        if f"{prefix}embeddings.token_embedding.weight" in shapes:
            return ModelKind(Family.CLIP_TEXT, width=shapes[f"{prefix}embeddings.token_embedding.weight"][1])
    return _embedding(shapes) or ModelKind(Family.UNKNOWN)


def unet_config_from_shapes(shapes: Shapes, config_json: Mapping[str, Any] | None = None) -> UNetConfig:
    """The architecture of a UNet, MuseV UNet (complete or motion only) or ReferenceNet under diffusers names.

    Widths, depth, prompt width and switches come from the tensors. Heads and norm groups leave no trace in them:
    `attention_head_dim` (which counts heads in Stable Diffusion 1.5 files) and `norm_num_groups` of `config_json`
    are taken, else 8 and 32. The switches of musev.md 2.1 that have no tensors go with the reference layers.

    Raises:
        CheckpointError: no UNet, or one of another base model.
    """
    kind = recognise(shapes)
    widths: list[int] = []
    while (width := _block_width(shapes, len(widths))) is not None:
        widths.append(width)
    if not widths or kind.family not in (*MUSEV_FAMILIES, Family.UNET, Family.REFERENCENET):
        raise CheckpointError(f"A UNet with diffusers names was expected, but the file is {describe(kind)}.")
    prompt_width = _prompt_width(shapes)
    if prompt_width in (1024, 1280, 2048) or any(".transformer_blocks.1." in name for name in shapes):
        raise CheckpointError(
            f"This is {describe(kind)}: a model for {_BASES.get(prompt_width or 0, 'SDXL')}. MuseV needs SD1.5."
        )
    roots = {name.split(".")[0] for name in shapes}
    parts = {part for name in shapes for part in name.split(".")}
    fusion = "first_refer_emb_attns" in roots
    layers = {m[1] for n in shapes if (m := re.match(r"down_blocks\.0\.(?:resnets|temp_convs)\.(\d+)\.", n))}
    has_attention = {m[1] for n in shapes if (m := re.match(r"down_blocks\.(\d+)\.(?:temp_)?attentions\.", n))}
    return UNetConfig(
        block_out_channels=tuple(widths),
        cross_attention_blocks=tuple(str(i) in has_attention for i in range(len(widths))),
        layers_per_block=len(layers),
        num_heads=_heads(config_json or {}),
        norm_groups=int((config_json or {}).get("norm_num_groups") or 32),
        context_dim=prompt_width or 768,
        in_channels=shapes["conv_in.weight"][1] if "conv_in.weight" in shapes else 4,
        out_channels=shapes["conv_out.weight"][0] if "conv_out.weight" in shapes else 4,
        temporal="temp_convs" in parts,
        input_temporal_transformer="transformer_in" in roots,
        reference_fusion=fusion,
        image_prompt="to_k_ip" in parts,
        face_prompt="ip_adapter_face_to_k_ip" in parts,
        zero_condition_time_embedding=fusion,
        motion_speed=fusion,
        silu_on_frame_embedding=fusion,
    )


def image_projection_config(shapes: Shapes) -> ImageProjectionConfig:
    """Kind and sizes of an image projection, with or without the prefix `image_proj.` (extra.md 6.2, 6.3).

    Raises:
        CheckpointError: no projection, or one that MuseV cannot use ("faceid-plus", "full-face").
    """
    shapes = {name.removeprefix("image_proj."): shape for name, shape in shapes.items()}
    form = _projection_form(shapes)
    try:
        if form == "plain":
            (out, width), context = shapes["proj.weight"], shapes["norm.weight"][0]
            return ImageProjectionConfig(
                kind="plain", input_dim=width, context_dim=context, num_tokens=_whole(out, context)
            )
        if form == "faceid":
            out, context = shapes["proj.2.weight"][0], shapes["norm.weight"][0]
            width = shapes["proj.0.weight"][1]
            return ImageProjectionConfig(
                kind="faceid", input_dim=width, context_dim=context, num_tokens=_whole(out, context)
            )
        if form == "plus":
            default = ImageProjectionConfig()
            inner, width = shapes["layers.0.0.to_q.weight"]
            return ImageProjectionConfig(
                kind="plus",
                input_dim=shapes["proj_in.weight"][1],
                context_dim=shapes["proj_out.weight"][0],
                num_tokens=shapes["latents"][1],
                depth=len({n.split(".")[1] for n in shapes if n.startswith("layers.")}),
                num_heads=_whole(inner, default.head_dim),  # every published resampler has heads of 64
                ff_mult=_whole(shapes["layers.0.1.1.weight"][0], width),
            )
    except KeyError as error:
        raise CheckpointError(f"The image projection ({form}) is incomplete: it has no tensor {error}.") from error
    raise CheckpointError(
        f"The image projection is of the kind {form!r}; MuseV can use 'plain', 'plus' and 'faceid'. "
        "Choose ip-adapter_sd15, ip-adapter-plus_sd15, ip-adapter-faceid_sd15 or MuseV's ip_adapter_image_proj."
    )


def _whole(number: int, divisor: int) -> int:
    if number < divisor or number % divisor:
        raise CheckpointError(f"The image projection's sizes do not fit: {number} is no multiple of {divisor}.")
    return number // divisor


def _heads(config_json: Mapping[str, Any]) -> int:
    heads = config_json.get("num_attention_heads") or config_json.get("attention_head_dim") or 8
    different = set(heads) if isinstance(heads, list) else {heads}
    if len(different) != 1:
        raise CheckpointError(
            f"config.json gives the head numbers {heads}; Stable Diffusion 1.5 has one for all blocks."
        )
    return int(different.pop())


def _block_width(shapes: Shapes, block: int) -> int | None:
    for tensor in ("resnets.0.conv1.weight", "temp_convs.0.conv1.2.weight"):
        if shape := shapes.get(f"down_blocks.{block}.{tensor}"):
            return shape[0]
    return None


def _prompt_width(shapes: Shapes) -> int | None:
    """Input width of the text or image keys; temporal attention is left out, its "cross" attention is none."""
    for name, shape in shapes.items():
        if name.endswith(("attn2.to_k.weight", "to_k_ip.weight")) and "temp" not in name and "former_in." not in name:
            return shape[1]
    return None


def _video_unet(shapes: Shapes) -> ModelKind:
    roots = {name.split(".")[0] for name in shapes}
    if "frame_embedding" not in roots and not any(name.endswith(".temporal_weight") for name in shapes):
        return ModelKind(Family.OTHER_VIDEO_UNET)
    reference = any("refer_emb_attns." in name for name in shapes)
    return ModelKind(
        Family.MUSEV_REFERENCENET_UNET if reference else Family.MUSEV_UNET,
        width=_prompt_width(shapes),
        motion_only=all(is_motion_name(name) for name in shapes),
        face_layers=any(".ip_adapter_face_to_k_ip." in name for name in shapes),
    )


def _projection_form(names: Iterable[str]) -> str:
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
            return projection[name][0]
    return next((shape[1] for name, shape in shapes.items() if name.endswith("to_k_ip.weight")), None)


def _lora_form(names: Iterable[str]) -> str:
    for mark, form in ((".hada_", "LoHa"), (".lokr_", "LoKr"), (".lora_down.", "kohya")):
        if any(mark in name for name in names):
            return form
    return "diffusers"


def _lora_width(shapes: Shapes) -> int | None:
    """Prompt width of a LoRA: a layer on the text's keys has it as its input."""
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in shapes):
        return 2048
    for name, shape in shapes.items():
        if re.search(r"attn2[._](processor\.)?to_k", name) and re.search(r"(lora_down|lora_A|down)\b.*\.weight$", name):
            return shape[1]
    return None


def _embedding(shapes: Shapes) -> ModelKind | None:
    """Textual inversion: one matrix of few vectors, under a name of the trainer's choice."""
    if "clip_l" in shapes and "clip_g" in shapes:
        return ModelKind(Family.TEXTUAL_INVERSION, width=2048)
    matrices = [tuple(s) for n, s in shapes.items() if not n.startswith("string_to_token")]
    if len(matrices) == 1 and len(matrices[0]) in (1, 2) and matrices[0][-1] in (768, 1024):
        return ModelKind(Family.TEXTUAL_INVERSION, width=matrices[0][-1])
    return None
