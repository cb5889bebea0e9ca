"""Which networks a recipe trains: built, filled, frozen but for what is trained, and written (extra.md 1.5, 1.7)."""

import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import VARIANTS, ImageProjectionConfig, UNetConfig, resized
from ..errors import CheckpointError, MuseVError
from ..loading import (
    ModelFiles,
    load_controlnet,
    load_image_encoder,
    load_projection,
    load_reference_net,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from ..models.blocks import ResNet
from ..models.ip_adapter import image_projection
from ..models.reference_fusion import ReferenceFusion
from ..models.reference_net import ReferenceNet
from ..models.temporal import TemporalConv, TemporalTransformer
from ..models.transformer import SpatialTransformer
from ..models.unet import MuseVUNet
from ..weights.architecture import unet_config_from_shapes
from ..weights.config_json import read_config
from ..weights.files import near_names, read_shapes, read_tensors, select
from ..weights.keymaps import is_motion_name, motion_tensors
from ..weights.layout import find_musev_files, read_base
from . import checkpoints
from .diffusion import DiffusionOptions
from .objective import MotionObjective
from .recipe import ModelRecipe

log = logging.getLogger(__name__)

# what the names of trained modules end with in the original: exactly the layers that MuseV adds (extra.md 1.5)
TRAINED_ENDINGS = (
    *("temp_convs", "temp_attentions", "transformer_in", "frame_embedding", "to_k_ip", "to_v_ip"),
    "refer_emb_attns",
)


def check_models(recipe: ModelRecipe) -> None:
    """Looks at the files a recipe names, which takes no time.

    Raises:
        CheckpointError: one is missing, or something else than it should be.
    """
    read_base(recipe.base, "unet")
    if recipe.musev is not None:
        find_musev_files(recipe.musev, recipe.variant)
    for name in ("reference_net", "image_projection", "image_encoder", "controlnet", "vae", "tokenizer"):
        path = getattr(recipe, name)
        if path is not None and not path.exists():
            raise CheckpointError(f"model.{name}: {path} does not exist.{near_names(path)}")


def build_unet(recipe: ModelRecipe) -> MuseVUNet:
    """The UNet of a recipe in float32: the base model's weights, and MuseV's or new motion layers around them."""
    found = None if recipe.musev is None else find_musev_files(recipe.musev, recipe.variant)
    if found is not None:
        config = unet_config_from_shapes(read_shapes(found.unet), read_config(found.unet.parent))
    else:
        size = {name: tuple(x.shape) for name, x in read_base(recipe.base, "unet").items()}
        config = resized(VARIANTS[recipe.variant], unet_config_from_shapes(size, read_config(recipe.base / "unet")))
    base = read_base(recipe.base, "unet", config=config.spatial())
    unet = MuseVUNet(config)
    start_neutral(unet)
    expected = {name: tuple(x.shape) for name, x in unet.state_dict().items()}
    names = {name for name in expected if not is_motion_name(name)}
    tensors = select(base, {name: expected[name] for name in names}, source=str(recipe.base))
    if found is not None:
        motion = {name: expected[name] for name in expected if name not in names}
        tensors |= select(motion_tensors(read_tensors(found.unet)), motion, source=str(found.unet))
    unet.load_state_dict({name: x.float() for name, x in tensors.items()}, strict=False)
    return unet


def build_reference_net(recipe: ModelRecipe, config: UNetConfig) -> ReferenceNet:
    """The ReferenceNet of a recipe, by default the base model's down path."""
    path = recipe.reference_net
    if path is None and recipe.musev is not None:
        path = find_musev_files(recipe.musev, recipe.variant).referencenet
    if path is not None:
        return load_reference_net(path, config, torch.float32)
    net = ReferenceNet(config)
    shapes = {name: tuple(x.shape) for name, x in net.state_dict().items()}
    tensors = {name: x for name, x in read_base(recipe.base, "unet", config=config.spatial()).items() if name in shapes}
    net.load_state_dict({name: x.float() for name, x in select(tensors, shapes, source=str(recipe.base)).items()})
    return net


def build_projection(recipe: ModelRecipe, config: UNetConfig, image_dim: int = 1024) -> nn.Module:
    """The image projection of a recipe, or a new one, for embeddings of `image_dim` numbers."""
    path = recipe.image_projection
    if path is None and recipe.musev is not None:
        path = find_musev_files(recipe.musev, recipe.variant).image_proj
    if path is None:
        return image_projection(ImageProjectionConfig(input_dim=image_dim, context_dim=config.context_dim))
    net: Any = load_projection(path, torch.float32)
    if (net.config.kind, net.config.input_dim) != ("plain", image_dim):
        raise CheckpointError(
            f"{path} is a {net.config.kind} projection of {net.config.input_dim} numbers, but the image embeddings in "
            f"the data have {image_dim}; choose the image encoder it was made with (CLIP ViT-H for MuseV's)"
        )
    return net


def build_objective(
    recipe: ModelRecipe,
    options: DiffusionOptions,
    *,
    empty_text: Tensor,
    condition_frames: int = 1,
    gradient_checkpointing: bool = False,
    decode: Callable[[Tensor], Tensor] | None = None,
    image_dim: int = 1024,
) -> MotionObjective:
    """Everything that takes part in a training step, with gradients for what the recipe trains."""
    unet = build_unet(recipe)
    config = unet.config
    reference_net = build_reference_net(recipe, config) if config.reference_fusion else None
    projection = build_projection(recipe, config, image_dim) if config.image_prompt else None
    controlnet = load_controlnet(recipe.controlnet) if recipe.controlnet is not None else None
    choose_trained(unet, recipe.train)
    train_reference = recipe.train_reference_net
    if train_reference is None:
        train_reference = recipe.variant != "musev_referencenet_pose"
    for net, trained in ((reference_net, train_reference), (projection, True), (controlnet, False)):
        if net is not None:
            net.requires_grad_(trained)
    if gradient_checkpointing:
        for net in filter(None, (unet, reference_net)):
            checkpoint_activations(net)

    def write(folder: Path, objective: MotionObjective) -> None:
        save_musev(folder, objective, whole=recipe.save == "all", reference=train_reference)
        if recipe.train == "all":
            save_base(folder / "base", recipe, objective.unet)

    return MotionObjective(
        unet,
        options,
        empty_text=empty_text,
        write=write,
        reference_net=reference_net,
        image_projection=projection,
        controlnet=controlnet,
        controlnet_scale=recipe.controlnet_scale,
        condition_frames=condition_frames,
        decode=decode,
    )


def choose_trained(unet: nn.Module, what: str) -> None:
    """Freezes the UNet but for `motion` layers, or nothing of it with `all`."""
    unet.requires_grad_(what == "all")
    for name, module in unet.named_modules():
        if name.endswith(TRAINED_ENDINGS):
            module.requires_grad_(True)


@torch.no_grad()
def start_neutral(net: nn.Module) -> None:
    """Sets the last layer of every added residual branch to zero: training begins at the network without them."""
    for module in net.modules():
        last: Any = None
        if isinstance(module, TemporalConv):
            last = module.conv4["3"]  # type: ignore[operator]
        elif isinstance(module, TemporalTransformer):
            last = module.proj_out
        elif isinstance(module, ReferenceFusion):
            last = module.to_out["0"]
        if last is not None:
            last.weight.zero_()
            last.bias.zero_()


def checkpoint_activations(net: nn.Module) -> None:
    """Lets the large parts of a network compute their activations twice instead of keeping them."""
    for module in net.modules():
        if isinstance(module, ResNet | TemporalConv | SpatialTransformer | TemporalTransformer):
            module.forward = _checkpointed(module.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run


def save_musev(folder: Path, objective: MotionObjective, *, whole: bool, reference: bool) -> None:
    """Weights in the published layout: `unet/`, `referencenet/` if trained, `ip_adapter_image_proj.safetensors`."""
    unet = objective.unet
    tensors = {name: x for name, x in unet.state_dict().items() if whole or is_motion_name(name)}
    checkpoints.save_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    checkpoints.save_json(folder / "unet" / "config.json", unet_json(unet.config))
    if objective.reference_net is not None and reference:
        path = folder / "referencenet" / "diffusion_pytorch_model.safetensors"
        checkpoints.save_tensors(path, objective.reference_net.state_dict())
        checkpoints.save_json(path.with_name("config.json"), unet_json(unet.config.spatial()))
    if objective.image_projection is not None:
        path = folder / "ip_adapter_image_proj.safetensors"
        tensors = objective.image_projection.state_dict()
        checkpoints.save_tensors(path, {f"image_proj.{name}": x for name, x in tensors.items()})


def save_base(folder: Path, recipe: ModelRecipe, unet: MuseVUNet) -> None:
    """The base model with the trained layers, as a diffusers folder: from MuseV's file only motion layers are used."""
    tensors = {name: x for name, x in unet.state_dict().items() if not is_motion_name(name)}
    checkpoints.save_tensors(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    checkpoints.save_json(folder / "unet" / "config.json", unet_json(unet.config.spatial()))
    for part, source, name in (
        ("vae", recipe.vae or recipe.base, "diffusion_pytorch_model.safetensors"),
        ("text_encoder", recipe.base, "model.safetensors"),
    ):
        checkpoints.save_tensors(folder / part / name, read_base(source, part))
        config = read_config(source / part).values
        if not config and part == "vae":  # it may have a folder of its own
            config = read_config(source if source.is_dir() else source.parent).values
        if config:
            checkpoints.save_json(folder / part / "config.json", config)
    tokenizer = recipe.tokenizer or recipe.base / "tokenizer"
    if tokenizer.is_dir():
        shutil.copytree(tokenizer, folder / "tokenizer")


def unet_json(config: UNetConfig) -> dict[str, Any]:
    """The numbers of a network under diffusers' names."""
    return {
        "_class_name": "UNet3DConditionModel" if config.temporal else "UNet2DConditionModel",
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.num_heads,
        "norm_num_groups": config.norm_groups,
        "cross_attention_dim": config.context_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
    }


def frozen_encoders(recipe: ModelRecipe, *, image: bool) -> tuple[Any, Any, Any, Any]:
    """(VAE, tokenizer, text encoder, image encoder or None) of a recipe."""
    if image and recipe.image_encoder is None:
        raise MuseVError(f"training {recipe.variant} on videos needs model.image_encoder, the folder of CLIP ViT-H")
    text_encoder = load_text_encoder(recipe.base, torch.float32)  # first: it says so if there is no base model at all
    tokenizer = load_tokenizer(
        ModelFiles(musev=recipe.musev or recipe.base, base=recipe.base, tokenizer=recipe.tokenizer)
    )
    encoder = load_image_encoder(recipe.image_encoder, torch.float32) if image and recipe.image_encoder else None
    return load_vae(recipe.vae or recipe.base), tokenizer, text_encoder, encoder


def place(nets: Iterable[Any], device: torch.device, dtype: torch.dtype) -> None:
    """Moves frozen networks where they are used."""
    for net in nets:
        if isinstance(net, nn.Module):
            net.to(device=device, dtype=dtype)
