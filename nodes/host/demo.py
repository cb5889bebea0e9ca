"""The demo model as ComfyUI's own objects, built from its classes with the demo's small numbers."""

import json
import os
import tempfile
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import torch
from torch import Tensor, nn

from ...musev_core.config import UNetConfig
from ...musev_core.demo import sizes
from ...musev_core.demo.showcase import standard_films
from ...musev_core.weights.keymaps import unet_ldm_to_diffusers, vae_ldm_to_diffusers
from .networks import HostedIPAdapter, HostedReferenceNet, Motion, ip_adapter_from, motion_from, reference_net_from

NAME = "the demo model"

# Red, green, blue (-1..1) of the demo VAE's four latent channels, and of none: what a quick preview shows.
# A least-squares fit on 300 pictures of the toy world's training split.
_LATENT_RGB = [[-0.19, -0.23, -0.37], [-0.17, -0.13, -0.02], [-0.19, -0.03, 0.23], [0.11, 0.11, 0.10]]
_LATENT_RGB_BIAS = [0.41, 0.38, 0.35]


def comfy_unet_config(config: UNetConfig) -> dict[str, Any]:
    """ComfyUI's description of a Stable Diffusion UNet of these sizes."""
    widths, layers = config.block_out_channels, config.layers_per_block
    cross = [int(x) for x in config.cross_attention_blocks]
    return {
        "image_size": 32,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": widths[0],
        "num_res_blocks": [layers] * len(widths),
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_heads": config.num_heads,
        "context_dim": config.context_dim,
        "transformer_depth": [x for x in cross for _ in range(layers)],
        "transformer_depth_output": [x for x in cross for _ in range(layers + 1)],  # taken from the end
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }


def model(tensors: dict[str, Tensor]) -> Any:
    """MODEL: the Stable Diffusion part of the demo's UNet."""
    comfy_config = comfy.supported_models.SD15(comfy_unet_config(sizes.UNET))
    comfy_config.unet_config["num_heads"] = sizes.UNET.num_heads
    comfy_config.set_inference_dtype(torch.float32, None)
    previews = comfy_config.latent_format  # an object of its own, in every model
    previews.latent_rgb_factors, previews.latent_rgb_factors_bias = _LATENT_RGB, _LATENT_RGB_BIAS
    previews.taesd_decoder_name = None  # TAESD decodes Stable Diffusion's latents
    base = comfy.model_base.BaseModel(comfy_config, model_type=comfy.model_base.ModelType.V_PREDICTION)
    names = unet_ldm_to_diffusers(sizes.UNET)
    base.diffusion_model.load_state_dict({theirs: tensors[ours] for theirs, ours in names.items()})
    _regroup(base.diffusion_model)
    return _patcher(base, comfy.model_management.unet_offload_device())


def clip(tensors: dict[str, Tensor]) -> Any:
    """CLIP: the demo's text encoder behind ComfyUI's tokenizer."""
    config = {**sizes.TEXT, "model_type": "clip_text_model", "eos_token_id": sizes.TEXT["eos_token_id"]}
    encoder = partial(comfy.sd1_clip.SDClipModel, textmodel_json_config=config)
    target = SimpleNamespace(
        params={}, clip=partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder), tokenizer=comfy.sd1_clip.SD1Tokenizer
    )
    made = comfy.sd.CLIP(target, parameters=sum(x.numel() for x in tensors.values()))
    made.load_sd(tensors)
    return made


def vae(tensors: dict[str, Tensor]) -> Any:
    """VAE of factor 8 with four latent channels."""
    widths = sizes.VAE["block_out_channels"]
    config = {
        "embed_dim": sizes.LATENT_CHANNELS,
        "ddconfig": {
            "double_z": True,
            "z_channels": sizes.LATENT_CHANNELS,
            "resolution": sizes.VAE["sample_size"],
            "in_channels": 3,
            "out_ch": 3,
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": sizes.VAE["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }
    names = vae_ldm_to_diffusers(len(widths), sizes.VAE["layers_per_block"])
    # the names list a shortcut for every resnet, though only those that change the width have one
    ldm = {theirs: _as(tensors[ours], theirs) for theirs, ours in names.items() if ours in tensors}
    made = comfy.sd.VAE(sd=ldm, config={"params": config}, dtype=torch.float32)
    _regroup(made.first_stage_model)
    return made


def _as(tensor: Tensor, name: str) -> Tensor:
    """The attention of ComfyUI's VAE has 1x1 convolutions where diffusers has linear layers."""
    return tensor[:, :, None, None] if ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2 else tensor


def clip_vision(tensors: dict[str, Tensor]) -> Any:
    """CLIP_VISION: the demo's image encoder."""
    # older versions of ComfyUI want a file
    handle, path = tempfile.mkstemp(suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({**sizes.VISION, "model_type": "clip_vision_model"}, file)
        made = comfy.clip_vision.ClipVisionModel(path)
    finally:
        os.unlink(path)
    made.load_sd(tensors)
    return made


def control_net(tensors: dict[str, Tensor]) -> Any:
    """CONTROL_NET for the toy world's pose pictures."""
    unet = comfy_unet_config(sizes.UNET)
    unet.pop("out_channels")
    unet.pop("transformer_depth_output")
    net = comfy.cldm.cldm.ControlNet(hint_channels=3, **unet, operations=comfy.ops.manual_cast, dtype=torch.float32)
    net.load_state_dict(_control_names(tensors, net.state_dict()))
    _regroup(net)
    made = comfy.controlnet.ControlNet(
        net, load_device=comfy.model_management.get_torch_device(), manual_cast_dtype=None
    )
    return made


def _control_names(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet's tensors under ComfyUI's names."""
    names = {theirs: ours for theirs, ours in unet_ldm_to_diffusers(sizes.UNET).items() if theirs in expected}
    hints = len({name.split(".")[2] for name in tensors if name.startswith("controlnet_cond_embedding.blocks.")})
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("controlnet_down_blocks.")})
    for kind in ("weight", "bias"):
        names[f"input_hint_block.0.{kind}"] = f"controlnet_cond_embedding.conv_in.{kind}"
        for i in range(hints):
            names[f"input_hint_block.{2 * i + 2}.{kind}"] = f"controlnet_cond_embedding.blocks.{i}.{kind}"
        names[f"input_hint_block.{2 * hints + 2}.{kind}"] = f"controlnet_cond_embedding.conv_out.{kind}"
        for i in range(blocks):
            names[f"zero_convs.{i}.0.{kind}"] = f"controlnet_down_blocks.{i}.{kind}"
        names[f"middle_block_out.0.{kind}"] = f"controlnet_mid_block.{kind}"
    return {theirs: tensors[ours] for theirs, ours in names.items()}


def motion(tensors: dict[str, Tensor]) -> Motion:
    """MUSEV_MOTION."""
    return motion_from(tensors, sizes.UNET, NAME, torch.float32)


def reference_net(tensors: dict[str, Tensor]) -> HostedReferenceNet:
    """MUSEV_REFERENCENET."""
    return reference_net_from(tensors, sizes.UNET, NAME, torch.float32)


def ip_adapter(tensors: dict[str, Tensor]) -> HostedIPAdapter:
    """MUSEV_IPADAPTER: MuseV's own projection."""
    return ip_adapter_from(tensors, {}, NAME)


def _regroup(net: nn.Module) -> None:
    """The demo's group norms have fewer groups than the 32 which ComfyUI builds in; weights do not depend on it."""
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = sizes.NORM_GROUPS


def _patcher(net: nn.Module, offload: torch.device) -> Any:
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(net, load_device=comfy.model_management.get_torch_device(), offload_device=offload)


def picture() -> Tensor:
    """IMAGE `(1, 64, 64, 3)`: the start picture of the demo's first film."""
    return standard_films()[0].image.float() / 255
