"""The golden set's models as ComfyUI's own objects: the networks of size `comfy` with the weights of FORMAT.md."""

from functools import cache
from pathlib import Path

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch
from musev_pack.nodes.host import networks

from musev_core.config import UNetConfig
from musev_core.weights.keymaps import motion_tensors, unet_ldm_to_diffusers

from . import golden_models
from .golden_replay import GoldenSet

SIZE = "comfy"
CPU = torch.device("cpu")


@cache
def goldens() -> GoldenSet:
    return GoldenSet(Path(__file__).parents[1] / "goldens" / "public")


def comfy_unet_config(config: UNetConfig) -> dict:
    """ComfyUI's description of a Stable Diffusion UNet of these sizes."""
    widths, layers = config.block_out_channels, config.layers_per_block
    cross = [int(x) for x in config.cross_attention_blocks]
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": widths[0],
        "num_res_blocks": [layers] * len(widths),
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_heads": config.num_heads,
        "context_dim": config.context_dim,
        "transformer_depth": [x for x in cross for _ in range(layers)],
        # ComfyUI pops them from the end
        "transformer_depth_output": [x for x in cross for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }


def base_model(weights: dict[str, torch.Tensor], config: UNetConfig, dtype=torch.float32, cast=None):
    """A MODEL with diffusers-named weights."""
    comfy_config = comfy.supported_models.SD15(comfy_unet_config(config))
    comfy_config.unet_config["num_heads"] = config.num_heads  # SD15 has set its own 8
    comfy_config.set_inference_dtype(dtype, cast)
    model = comfy.model_base.BaseModel(comfy_config)
    names = unet_ldm_to_diffusers(config)
    model.diffusion_model.load_state_dict({theirs: weights[ours].to(dtype) for theirs, ours in names.items()})
    model.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def golden_unet(arch: str, face_layers: bool = False):
    return golden_models.unet(arch, SIZE, 0, face_layers)


def golden_base(dtype=torch.float32, cast=None):
    """The MODEL of the golden set; a new one every time."""
    return base_model(golden_unet("musev").state_dict(), golden_models.size_config(SIZE), dtype, cast)


@cache
def motion_file(arch: str, folder: Path) -> str:
    from safetensors.torch import save_file

    path = folder / f"{arch}.safetensors"
    save_file(motion_tensors(golden_unet(arch).state_dict()), path)
    return str(path)


def golden_motion(arch: str, folder: Path, dtype=torch.float32) -> networks.Motion:
    """A motion model, loaded from a motion-only file."""
    return networks.load_motion(motion_file(arch, folder), dtype)


def conditioning(text: torch.Tensor) -> list:
    return [[text, {}]]
