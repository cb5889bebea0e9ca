"""From an image encoder's output to prompt tokens (musev.md 3, extra.md 6.2)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import ImageProjectionConfig
from .attention import heads_first, heads_last


class ImageProjection(nn.Module):
    """One picture embedding to a few tokens; MuseV's own and the plain IP-Adapter."""

    def __init__(self, config: ImageProjectionConfig):
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.input_dim, config.num_tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim, eps=1e-5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """`(n, input_dim)` to `(n, tokens, context_dim)`."""
        return self.norm(rearrange(self.proj(embeddings), "n (tokens c) -> n tokens c", tokens=self.config.num_tokens))


class FaceProjection(nn.Module):
    """A face recognition embedding to a few tokens (IP-Adapter FaceID)."""

    def __init__(self, config: ImageProjectionConfig):
        super().__init__()
        self.config = config
        self.proj = nn.Sequential(
            nn.Linear(config.input_dim, 2 * config.input_dim),
            nn.GELU(),
            nn.Linear(2 * config.input_dim, config.num_tokens * config.context_dim),
        )
        self.norm = nn.LayerNorm(config.context_dim, eps=1e-5)

    def forward(self, embeddings: Tensor) -> Tensor:
        """`(n, input_dim)` to `(n, tokens, context_dim)`."""
        return self.norm(rearrange(self.proj(embeddings), "n (tokens c) -> n tokens c", tokens=self.config.num_tokens))


class PerceiverAttention(nn.Module):
    """Learned queries look at the picture's tokens and at each other."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """`x (n, tokens, dim)`, `latents (n, queries, dim)`."""
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (heads_first(y, self.heads) for y in (self.to_q(latents), k, v))
        return self.to_out(heads_last(F.scaled_dot_product_attention(q, k, v)))


class Resampler(nn.Module):
    """All tokens of a picture to a few: IP-Adapter plus and plus-face (a Perceiver, arXiv:2103.03206)."""

    def __init__(self, config: ImageProjectionConfig):
        super().__init__()
        self.config = config
        dim = config.context_dim
        self.latents = nn.Parameter(torch.randn(1, config.num_tokens, dim) / dim**0.5)
        self.proj_in = nn.Linear(config.input_dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        hidden = config.ff_mult * dim
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, config.num_heads, config.head_dim),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, hidden, bias=False),
                        nn.GELU(),
                        nn.Linear(hidden, dim, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(n, picture tokens, input_dim)` to `(n, tokens, context_dim)`."""
        latents = self.latents.expand(hidden_states.shape[0], -1, -1)
        x = self.proj_in(hidden_states)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        return self.norm_out(self.proj_out(latents))


_CLASSES = {"plain": ImageProjection, "faceid": FaceProjection, "plus": Resampler}


def image_projection(config: ImageProjectionConfig) -> ImageProjection | FaceProjection | Resampler:
    """The projection a config describes."""
    return _CLASSES[config.kind](config)
