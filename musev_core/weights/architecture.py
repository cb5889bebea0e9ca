"""How large a network is: its sizes from the shapes of its tensors, the rest from config.json, all within reason.

Whatever comes out can be built: every number has been compared with what the layers ask for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ImageProjectionConfig, UNetConfig
from ..errors import CheckpointError
from .config_json import ConfigJson
from .files import Shapes
from .kinds import BASES, MUSEV_FAMILIES, Family, describe, projection_form, prompt_width, recognise, size_of

_MOST_BLOCKS = 8
_MOST_LAYERS = 8  # in a block
_MOST_DEPTH = 64  # of a transformer
_WIDEST = 1 << 17  # more than the vocabulary of CLIP
_TEMPORAL_GROUPS = 32  # of temporal convolutions, whatever the others have
_UNETS = (*MUSEV_FAMILIES, Family.UNET, Family.REFERENCENET)
_ACTIVATIONS = ("quick_gelu", "gelu")


def unet_config_from_shapes(
    shapes: Shapes, config_json: ConfigJson | None = None, *, families: Sequence[Family] = _UNETS
) -> UNetConfig:
    """The architecture of a UNet, MuseV UNet (complete or motion only) or ReferenceNet under diffusers names.

    Widths, depth, prompt width and switches come from the tensors. Heads and norm groups leave no trace in them:
    `attention_head_dim` (which counts heads in Stable Diffusion 1.5 files) and `norm_num_groups` of `config_json`
    are taken, else 8 and 32. The switches of musev.md 2.1 that have no tensors go with the reference layers.

    Raises:
        CheckpointError: none of the `families`, one of another base model, or sizes that do not fit each other.
    """
    config_json = config_json or ConfigJson()
    kind = recognise(shapes)
    widths: list[int] = []
    while len(widths) <= _MOST_BLOCKS and (width := _block_width(shapes, len(widths))) is not None:
        widths.append(width)
    if not widths or kind.family not in families:
        raise CheckpointError(f"A UNet with diffusers names was expected, but the file is {describe(kind)}.")
    context = prompt_width(shapes)
    if context in (1024, 1280, 2048) or any(".transformer_blocks.1." in name for name in shapes):
        raise CheckpointError(
            f"This is {describe(kind)}: a model for {BASES.get(context or 0, 'SDXL')}. MuseV needs SD1.5."
        )
    roots = {name.split(".")[0] for name in shapes}
    parts = {part for name in shapes for part in name.split(".")}
    fusion = "first_refer_emb_attns" in roots
    layers = _numbers(shapes, r"down_blocks\.0\.(?:resnets|temp_convs)\.(\d+)\.")
    has_attention = _numbers(shapes, r"down_blocks\.(\d+)\.(?:temp_)?attentions\.")
    in_channels, out_channels = size_of(shapes, "conv_in.weight", 1), size_of(shapes, "conv_out.weight", 0)
    config = UNetConfig(
        block_out_channels=tuple(widths),
        cross_attention_blocks=tuple(str(i) in has_attention for i in range(len(widths))),
        layers_per_block=len(layers),
        num_heads=config_json.heads(8),
        norm_groups=config_json.whole("norm_num_groups", 32, most=1024),
        context_dim=768 if context is None else context,
        in_channels=4 if in_channels is None else in_channels,
        out_channels=4 if out_channels is None else out_channels,
        temporal="temp_convs" in parts,
        input_temporal_transformer="transformer_in" in roots,
        reference_fusion=fusion,
        image_prompt="to_k_ip" in parts,
        face_prompt="ip_adapter_face_to_k_ip" in parts,
        zero_condition_time_embedding=fusion,
        motion_speed=fusion,
        silu_on_frame_embedding=fusion,
    )
    _check_unet(config, config_json)
    return config


def _check_unet(config: UNetConfig, config_json: ConfigJson) -> None:
    what = "UNet"
    _expect_range(what, "blocks", len(config.block_out_channels), _MOST_BLOCKS)
    _expect_range(what, "layers in a block", config.layers_per_block, _MOST_LAYERS)
    for title, number in (
        *(("channels", width) for width in config.block_out_channels),
        *(("numbers in a prompt's token", config.context_dim), ("channels of its input", config.in_channels)),
        ("channels of its output", config.out_channels),
    ):
        _expect_range(what, title, number, _WIDEST)
    for width in config.block_out_channels:
        _expect_divisible(what, width, config.num_heads, "heads", config_json)
        _expect_divisible(what, width, config.norm_groups, "norm groups", config_json)
        if config.temporal:
            _expect_divisible(what, width, _TEMPORAL_GROUPS, "groups of its temporal layers", config_json)


@dataclass(frozen=True)
class VaeSizes:
    """Sizes of Stable Diffusion's VAE."""

    widths: tuple[int, ...]
    layers: int
    latent_channels: int
    norm_groups: int
    scaling_factor: float


def vae_sizes(shapes: Shapes, config_json: ConfigJson) -> VaeSizes:
    """Sizes of a VAE with diffusers names.

    Raises:
        CheckpointError: tensors are missing, or sizes do not fit each other.
    """
    blocks = _numbers(shapes, r"encoder\.down_blocks\.(\d+)\.")
    _expect_range("VAE", "blocks", len(blocks), _MOST_BLOCKS)
    names = (f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(len(blocks)))
    layers = len(_numbers(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."))
    _expect_range("VAE", "layers in a block", layers, _MOST_LAYERS)
    sizes = VaeSizes(
        widths=tuple(_shape("VAE", shapes, name, 4)[0] for name in names),
        layers=layers,
        latent_channels=_shape("VAE", shapes, "decoder.conv_in.weight", 4)[1],
        norm_groups=config_json.whole("norm_num_groups", 32, most=1024),
        scaling_factor=config_json.positive("scaling_factor", 0.18215),
    )
    for width in sizes.widths:
        _expect_divisible("VAE", width, sizes.norm_groups, "norm groups", config_json)
    return sizes


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of one of CLIP's two encoders; `projection` and `patch` are the picture's only, `vocabulary` the text's."""

    width: int
    inner: int
    depth: int
    heads: int
    activation: str
    eps: float
    positions: int
    vocabulary: int = 0
    patch: int = 0
    projection: int = 0


def text_encoder_sizes(shapes: Shapes, config_json: ConfigJson) -> ClipSizes:
    """Sizes of a CLIP text encoder under the names `text_model.*`.

    Raises:
        CheckpointError: tensors are missing, or sizes do not fit each other.
    """
    what = "CLIP text encoder"
    vocabulary, width = _shape(what, shapes, "text_model.embeddings.token_embedding.weight", 2)
    positions, _ = _shape(what, shapes, "text_model.embeddings.position_embedding.weight", 2)
    if positions < 77 or vocabulary < 3:
        raise CheckpointError(
            f"The {what} has {positions} positions and {vocabulary} words; the one of Stable Diffusion 1.5 has 77 and "
            "49408. Choose that one."
        )
    return _clip_sizes(
        *(what, shapes, "text_model.", width, config_json),
        default_heads=max(1, width // 64),
        positions=positions,
        vocabulary=vocabulary,
    )


def image_encoder_sizes(shapes: Shapes, config_json: ConfigJson) -> ClipSizes:
    """Sizes of a CLIP image encoder with its projection, under the names `vision_model.*`; `positions` in a row.

    Raises:
        CheckpointError: tensors are missing, or sizes do not fit each other or config.json.
    """
    what = "CLIP image encoder"
    width, _, patch, _ = _shape(what, shapes, "vision_model.embeddings.patch_embedding.weight", 4)
    count, _ = _shape(what, shapes, "vision_model.embeddings.position_embedding.weight", 2)
    projection, _ = _shape(what, shapes, "visual_projection.weight", 2)
    row = round((count - 1) ** 0.5)
    if row < 1 or row**2 != count - 1:
        raise CheckpointError(f"The {what} has {count} positions; a square of patches and one more was expected.")
    return _clip_sizes(
        *(what, shapes, "vision_model.", width, config_json),
        default_heads=12,  # of transformers, for a config.json that says nothing
        positions=row,
        patch=patch,
        projection=projection,
    )


def _clip_sizes(
    what: str, shapes: Shapes, prefix: str, width: int, config_json: ConfigJson, *, default_heads: int, **others: int
) -> ClipSizes:
    depth = len(_numbers(shapes, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."))
    _expect_range(what, "layers", depth, _MOST_DEPTH)
    inner, _ = _shape(what, shapes, f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
    heads = config_json.whole("num_attention_heads", default_heads, most=1024)
    _expect_divisible(what, width, heads, "heads", config_json)
    return ClipSizes(
        width=width,
        inner=inner,
        depth=depth,
        heads=heads,
        activation=config_json.word("hidden_act", "quick_gelu", _ACTIVATIONS),
        eps=config_json.positive("layer_norm_eps", 1e-5),
        **others,
    )


def image_projection_config(shapes: Shapes) -> ImageProjectionConfig:
    """Kind and sizes of an image projection, with or without the prefix `image_proj.` (extra.md 6.2, 6.3).

    Raises:
        CheckpointError: no projection, a damaged one, or one that MuseV cannot use ("faceid-plus", "full-face").
    """
    shapes = {name.removeprefix("image_proj."): shape for name, shape in shapes.items()}
    form = projection_form(shapes)
    what = f"image projection ({form})"

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return _shape(what, shapes, name, axes)

    if form == "plain":
        (out, width), (context,) = shape("proj.weight", 2), shape("norm.weight", 1)
        return ImageProjectionConfig(
            kind="plain", input_dim=width, context_dim=context, num_tokens=_whole(out, context)
        )
    if form == "faceid":
        (out, _), (context,), (_, width) = shape("proj.2.weight", 2), shape("norm.weight", 1), shape("proj.0.weight", 2)
        return ImageProjectionConfig(
            kind="faceid", input_dim=width, context_dim=context, num_tokens=_whole(out, context)
        )
    if form == "plus":
        default = ImageProjectionConfig()
        inner, width = shape("layers.0.0.to_q.weight", 2)
        depth = len(_numbers(shapes, r"layers\.(\d+)\."))
        _expect_range(what, "layers", depth, _MOST_DEPTH)
        return ImageProjectionConfig(
            kind="plus",
            input_dim=shape("proj_in.weight", 2)[1],
            context_dim=shape("proj_out.weight", 2)[0],
            num_tokens=shape("latents", 3)[1],
            depth=depth,
            num_heads=_whole(inner, default.head_dim),  # every published resampler has heads of 64
            ff_mult=_whole(shape("layers.0.1.1.weight", 2)[0], width),
        )
    raise CheckpointError(
        f"The image projection is of the kind {form!r}; MuseV can use 'plain', 'plus' and 'faceid'. "
        "Choose ip-adapter_sd15, ip-adapter-plus_sd15, ip-adapter-faceid_sd15 or MuseV's ip_adapter_image_proj."
    )


def _whole(number: int, divisor: int) -> int:
    if number < divisor or number % divisor:
        raise CheckpointError(f"The image projection's sizes do not fit: {number} is no multiple of {divisor}.")
    return number // divisor


def _block_width(shapes: Shapes, block: int) -> int | None:
    names = (f"down_blocks.{block}.{tensor}" for tensor in ("resnets.0.conv1.weight", "temp_convs.0.conv1.2.weight"))
    return next((width for name in names if (width := size_of(shapes, name, 0)) is not None), None)


def _numbers(shapes: Shapes, pattern: str) -> set[str]:
    """The different numbers at one place of the tensors' names."""
    return {match[1] for name in shapes if (match := re.match(pattern, name))}


def _shape(what: str, shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"The {what} is incomplete: it has no tensor {name}. Download it again.")
    if len(shape) != axes or not all(1 <= n <= _WIDEST for n in shape):
        raise CheckpointError(
            f"The {what} is damaged: its tensor {name} has the shape {list(shape)}, where {axes} axes are expected. "
            "Download it again."
        )
    return tuple(shape)


def _expect_range(what: str, title: str, number: int, most: int) -> None:
    if not 1 <= number <= most:
        raise CheckpointError(f"The {what} has {number} {title}; 1 to {most} can be used. Choose another file.")


def _expect_divisible(what: str, width: int, divisor: int, title: str, config_json: ConfigJson) -> None:
    if width % divisor:
        raise CheckpointError(
            f"The {what} is {width} channels wide, which cannot be divided into {divisor} {title}. Look at "
            f"{config_json.source}: it belongs to another model, or is missing."
        )
