"""The numbers of the demo model's networks: small, and such that ComfyUI's own classes can be built with them.

A VAE of factor 8, 8 heads, and CLIP's 49408 tokens are what ComfyUI's Stable Diffusion 1.5 comes with; the rest is
small. Group norms have 8 groups instead of 32: with two channels in a group, a norm cannot pass on a constant color.
The weights of a norm do not depend on it, so a host sets `num_groups` of the norms it built with 32.
"""

from typing import Any

from ..config import MUSEV_REFERENCENET, ImageProjectionConfig, UNetConfig, resized

WIDTH = 64  # of every network
NORM_GROUPS = 8
LATENT_CHANNELS = 4
SCALING_FACTOR = 0.18215

UNET = resized(
    MUSEV_REFERENCENET,
    UNetConfig(
        block_out_channels=(WIDTH, WIDTH),
        cross_attention_blocks=(True, True),
        layers_per_block=1,
        num_heads=8,
        norm_groups=NORM_GROUPS,
        context_dim=WIDTH,
    ),
)

VAE: dict[str, Any] = {
    "block_out_channels": (WIDTH // 2, WIDTH, WIDTH, WIDTH),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": LATENT_CHANNELS,
    "norm_num_groups": NORM_GROUPS,
    "scaling_factor": SCALING_FACTOR,
    "sample_size": 64,
}

TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": WIDTH,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}

VISION: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": WIDTH,
}

PROJECTION = ImageProjectionConfig(input_dim=WIDTH, context_dim=WIDTH)

CONTROLNET: dict[str, Any] = {
    "block_out_channels": UNET.block_out_channels,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "layers_per_block": UNET.layers_per_block,
    "attention_head_dim": UNET.num_heads,
    "cross_attention_dim": WIDTH,
    "norm_num_groups": NORM_GROUPS,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
}
