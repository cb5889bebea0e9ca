"""ComfyUI's own objects, tiny and made in the process: for tests under tests/comfyui."""

import comfy.ldm.models.autoencoder
import comfy.sd
import torch


def tiny_vae(*, levels: int = 4, channels: int = 4, seed: int = 0) -> comfy.sd.VAE:
    """A VAE with seeded weights in float32; 4 levels and 4 channels are Stable Diffusion's 1/8 and 4."""
    config = {
        "embed_dim": channels,
        "ddconfig": {
            "double_z": True,
            "z_channels": channels,
            "resolution": 64,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1] * levels,
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }
    shapes = comfy.ldm.models.autoencoder.AutoencoderKL(**config).state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in shapes.items():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        weights[name] = noise * scale + (
            1.0 if tensor.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
        )
    return comfy.sd.VAE(sd=weights, config={"params": config}, dtype=torch.float32)
