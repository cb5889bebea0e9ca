"""ReferenceNet: the down path and mid block of a Stable Diffusion UNet, as an image encoder (musev.md 3)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import UNetConfig
from .blocks import CallState, DownBlock, MidBlock
from .conditions import ClipConditions, ReferenceFeatures
from .embeddings import EmbeddingMLP
from .layers import Layers, new_layers, per_frame


class ReferenceNet(nn.Module):
    """Features of reference pictures at every resolution.

    Args:
        config: sizes; only the spatial part of it is built.
        layers: where the leaf layers come from; new ones by default.
    """

    def __init__(self, config: UNetConfig, layers: Layers | None = None):
        super().__init__()
        layers = layers or Layers(new_layers())
        config = config.spatial()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = layers.conv2d("conv_in", config.in_channels, widths[0])
        self.time_embedding = EmbeddingMLP(layers.at("time_embedding"), widths[0], config.time_embed_dim)
        self.down_blocks = nn.ModuleList(
            DownBlock(layers.at("down_blocks", i), i, widths[max(i - 1, 0)], width, config)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(layers.at("mid_block"), widths[-1], config)

    def forward(self, latents: Tensor, context: Tensor) -> ReferenceFeatures:
        """Features of clean latents at time step 0.

        Args:
            latents: `(rows, 4, pictures, h, w)`, scaled VAE means, no noise.
            context: `(rows, tokens, dim)`: image prompt tokens if there are any, otherwise the text.
        """
        x = rearrange(latents, "b c p h w -> b p h w c")
        emb = self.time_embedding(x.new_zeros(1, 1), x.dtype)
        state = CallState(ClipConditions(text=context), F.silu(emb), None, (), x.shape[0])
        x = per_frame(self.conv_in, x)
        residuals = [x]
        for block in self.down_blocks:
            x, new = block(x, state)
            residuals += new
        return ReferenceFeatures(tuple(residuals), self.mid_block(x, state))
