"""Each network: made for what its file holds, compared with it tensor by tensor, and only then given its weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import CheckpointError, naming
from ..models.ip_adapter import FaceProjection, ImageProjection, Resampler, image_projection
from ..models.owned import lay_out_weights
from ..models.reference_net import ReferenceNet
from ..models.unet import MuseVUNet
from ..weights.architecture import (
    image_encoder_sizes,
    image_projection_config,
    text_encoder_sizes,
    unet_config_from_shapes,
    vae_sizes,
)
from ..weights.config_json import ConfigJson, read_config
from ..weights.files import Shape, read_shapes, read_tensors, select, shapes_of
from ..weights.filling import fill
from ..weights.keymaps import (
    controlnet_ldm_to_diffusers,
    fit_text_names,
    ip_attention_names,
    motion_tensors,
    renamed,
    split_ip_adapter,
)
from ..weights.kinds import Family, describe, recognise
from ..weights.layout import MuseVFiles, base_file, read_base
from .files import StrPath

Net = TypeVar("Net")
Projection = ImageProjection | FaceProjection | Resampler
_POSITIONS = "position_ids"  # CLIP's, numbers which are not in the files


@dataclass
class Planned(Generic[Net]):
    """A network that fits its files and waits for its weights; these are mapped, and not read yet.

    Args:
        net: on the meta device.
        parts: (file, its tensors): together all that the network has.
        finish: what to do with the network once it has them.
    """

    net: Net
    parts: list[tuple[StrPath, dict[str, Tensor]]]
    finish: Callable[[Any], object] = lambda net: None

    def load(self, dtype: torch.dtype | None = None) -> Net:
        """The network on the CPU, ready for inference. Once only.

        Raises:
            CheckpointError: weights are NaN or infinite, or become so in `dtype`.
        """
        while self.parts:
            source, tensors = self.parts.pop(0)
            fill(self.net, tensors, source, dtype)  # type: ignore[arg-type]
        self.finish(self.net)
        return self.net


def _on_meta(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return make(*arguments, **options)


def _expected(net: Any) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes_of(net.state_dict()).items() if not name.endswith(_POSITIONS)}


def expect(path: StrPath, families: Sequence[Family], what: str) -> None:
    """Looks at what a file is.

    Raises:
        CheckpointError: it is missing, damaged, or of none of the `families`.
    """
    kind = recognise(read_shapes(path))
    if kind.family not in families:
        raise CheckpointError(f"{what} was expected, but {path} is {describe(kind)}")


def weights_in(folder: Path) -> Path:
    """The one weight file of a component's folder.

    Raises:
        CheckpointError: there is none.
    """
    candidates = [
        p for suffix in ("safetensors", "bin", "pth") for p in sorted(folder.glob(f"*.{suffix}")) if p.is_file()
    ]
    if not candidates:
        raise CheckpointError(f"the folder {folder} holds no .safetensors, .bin or .pth file")
    return candidates[0]


# ------------------------------------------------------------------------------------------ UNet and ReferenceNet


def plan_unet(base: StrPath, found: MuseVFiles, ip_adapter: StrPath | None, face: StrPath | None) -> Planned[MuseVUNet]:
    """MuseV's motion layers around the base model's own weights (musev.md 7).

    Args:
        ip_adapter, face: IP-Adapters whose layers take the place of MuseV's, and stand beside them.
    """
    tensors = read_tensors(found.unet)
    with naming(found.unet):
        config = unet_config_from_shapes(shapes_of(tensors), read_config(found.unet.parent))
    config = replace(config, face_prompt=config.face_prompt or face is not None)
    unet = _on_meta(MuseVUNet, config)
    expected = _expected(unet)
    base_names = set(_on_meta(MuseVUNet, config.spatial()).state_dict())
    parts: list[tuple[StrPath, dict[str, Tensor]]] = [
        (
            base_file(base, "unet"),
            select(
                read_base(base, "unet", config=config.spatial()),
                {name: shape for name, shape in expected.items() if name in base_names},
                source=str(base),
            ),
        )
    ]
    remaining = {name: shape for name, shape in expected.items() if name not in base_names}
    for path, is_face in ((ip_adapter, False), (face, True)):
        if path is None:
            continue
        layers = _ip_attention(path, config, face=is_face)
        parts.append((path, select(layers, {name: remaining.pop(name, ()) for name in layers}, source=path)))
    motion = select(
        motion_tensors(tensors),
        remaining,
        source=found.unet,
        tolerate=("*.ip_adapter_face_to_*", *(("*.to_?_ip.weight",) if ip_adapter is not None else ())),
    )
    parts.append((found.unet, motion))
    return Planned(unet, parts, finish=lay_out_weights)


def _ip_attention(path: StrPath, config: UNetConfig, *, face: bool) -> dict[str, Tensor]:
    with naming(path):
        _, attention = split_ip_adapter(read_tensors(path))
        if not config.image_prompt:
            raise CheckpointError("it cannot be used: this MuseV model has no image prompt layers")
        return ip_attention_names(attention, face=face, config=config.spatial())


def plan_reference_net(path: StrPath, unet: UNetConfig) -> Planned[ReferenceNet]:
    """The ReferenceNet of a UNet; the sizes in its published config.json are wrong and not looked at (musev.md 7)."""
    net = _on_meta(ReferenceNet, unet)
    tensors = select(
        read_tensors(path), _expected(net), source=path, tolerate=("up_blocks.*", "conv_norm_out.*", "conv_out.*")
    )
    return Planned(net, [(path, tensors)], finish=lay_out_weights)


def load_reference_net(path: StrPath, unet: UNetConfig, dtype: torch.dtype) -> ReferenceNet:
    """`plan_reference_net`, loaded."""
    return plan_reference_net(path, unet).load(dtype)


# ------------------------------------------------------------------------------------------ pictures


def plan_projection(path: StrPath) -> Planned[Projection]:
    """The image projection of MuseV or of any IP-Adapter file."""
    with naming(path):
        tensors, _ = split_ip_adapter(read_tensors(path))
        net = _on_meta(image_projection, image_projection_config(shapes_of(tensors)))
    return Planned(net, [(path, select(tensors, _expected(net), source=path))])


def load_projection(path: StrPath, dtype: torch.dtype) -> Projection:
    """`plan_projection`, loaded."""
    return plan_projection(path).load(dtype)


def plan_vae(path: StrPath) -> Planned[Any]:
    """A diffusers `AutoencoderKL`, from a diffusers folder, its `vae` folder, or a single file."""
    from diffusers import AutoencoderKL

    tensors, file = read_base(path, "vae"), base_file(path, "vae")
    with naming(file):
        sizes = vae_sizes(shapes_of(tensors), read_config(file.parent))
    vae = _on_meta(
        AutoencoderKL,
        block_out_channels=sizes.widths,
        layers_per_block=sizes.layers,
        latent_channels=sizes.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.widths),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.widths),
        norm_num_groups=sizes.norm_groups,
        scaling_factor=sizes.scaling_factor,
    )
    return Planned(vae, [(file, select(tensors, _expected(vae), source=file))])


def load_vae(path: StrPath) -> Any:
    """`plan_vae`, loaded in float32."""
    return plan_vae(path).load(torch.float32)


def plan_image_encoder(folder: StrPath) -> Planned[Any]:
    """A transformers `CLIPVisionModelWithProjection` from a folder with config.json and weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"the image encoder is a folder with config.json and weights, but {folder} is none")
    config = read_config(folder)
    if not config.values:
        raise CheckpointError(f"{folder} holds no config.json; the image encoder of IP-Adapter has one")
    path = weights_in(folder)
    expect(path, (Family.CLIP_VISION,), "CLIP's image encoder")
    tensors = read_tensors(path)
    with naming(path):
        sizes = image_encoder_sizes(shapes_of(tensors), config)
    model = _on_meta(
        CLIPVisionModelWithProjection,
        CLIPVisionConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.inner,
            projection_dim=sizes.projection,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            image_size=sizes.patch * sizes.positions,
            patch_size=sizes.patch,
            hidden_act=sizes.activation,
            layer_norm_eps=sizes.eps,
        ),
    )
    tolerate = (f"*{_POSITIONS}", "text_*", "logit_scale")
    tensors = select(tensors, _expected(model), source=path, tolerate=tolerate)
    return Planned(model, [(path, tensors)], finish=_number_positions)


def load_image_encoder(folder: StrPath, dtype: torch.dtype) -> Any:
    """`plan_image_encoder`, loaded."""
    return plan_image_encoder(folder).load(dtype)


# ------------------------------------------------------------------------------------------ text


def plan_text_encoder(path: StrPath) -> Planned[Any]:
    """A CLIP text encoder from a base model, its folder, or a file."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tensors, file = read_base(path, "text_encoder"), base_file(path, "text_encoder")
    with naming(file):
        sizes = text_encoder_sizes(shapes_of(tensors), read_config(file.parent))
    model = _on_meta(
        CLIPTextModel,
        CLIPTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=sizes.inner,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            max_position_embeddings=sizes.positions,
            hidden_act=sizes.activation,
            layer_norm_eps=sizes.eps,
            bos_token_id=sizes.vocabulary - 2,
            eos_token_id=sizes.vocabulary - 1,
        ),
    )
    expected = _expected(model)
    tensors = select(fit_text_names(tensors, expected), expected, source=file, tolerate=("text_projection.*",))
    return Planned(model, [(file, tensors)], finish=_number_positions)


def load_text_encoder(path: StrPath, dtype: torch.dtype) -> Any:
    """`plan_text_encoder`, loaded."""
    return plan_text_encoder(path).load(dtype)


def _number_positions(model: nn.Module) -> None:
    """CLIP's position numbers are not in the files and have no values on the meta device."""
    for module in model.modules():
        positions = getattr(module, _POSITIONS, None)
        if isinstance(positions, Tensor):
            module.register_buffer(_POSITIONS, torch.arange(positions.shape[-1]).expand(positions.shape), False)


# ------------------------------------------------------------------------------------------ control


def plan_controlnet(path: StrPath) -> Planned[Any]:
    """A diffusers `ControlNetModel` from a diffusers folder, its weight file, or a single file with LDM names."""
    from diffusers import ControlNetModel

    root = Path(path)
    file = weights_in(root) if root.is_dir() else root
    expect(file, (Family.CONTROLNET,), "a ControlNet")
    tensors: Mapping[str, Tensor] = read_tensors(file)
    config_json = read_config(file.parent)
    with naming(file):
        if not any(name.startswith("controlnet_cond_embedding.") for name in tensors):
            tensors = {name.removeprefix("control_model."): x for name, x in tensors.items()}
            tensors = renamed(tensors, controlnet_ldm_to_diffusers(), what="a ControlNet for Stable Diffusion 1.5")
            config_json = ConfigJson()
        config = unet_config_from_shapes(shapes_of(tensors), config_json, families=(Family.CONTROLNET,))
    hint = [f"controlnet_cond_embedding.{name}.weight" for name in ("conv_in", "blocks.1", "blocks.3", "blocks.5")]
    missing = [name for name in hint if name not in tensors or tensors[name].ndim != 4]
    if missing:
        raise CheckpointError(f"{file} is damaged: its tensors {', '.join(missing)} are missing or of another shape.")
    attention = config.cross_attention_blocks
    net = _on_meta(
        ControlNetModel,
        in_channels=config.in_channels,
        conditioning_channels=tensors[hint[0]].shape[1],
        conditioning_embedding_out_channels=tuple(tensors[name].shape[0] for name in hint),
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.num_heads,
        norm_num_groups=config.norm_groups,
        controlnet_conditioning_channel_order=config_json.word(
            "controlnet_conditioning_channel_order", "rgb", ("rgb", "bgr")
        ),
        global_pool_conditions=config_json.values.get("global_pool_conditions") is True,
    )
    return Planned(net, [(file, select(tensors, _expected(net), source=file))])


def load_controlnet(path: StrPath, *, dtype: torch.dtype = torch.float32) -> Any:
    """`plan_controlnet`, loaded."""
    return plan_controlnet(path).load(dtype)
