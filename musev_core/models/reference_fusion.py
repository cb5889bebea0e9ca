"""How the UNet looks at ReferenceNet features (musev.md 2.5, 2.7)."""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .attention import AttentionFunction, frames_as_rows, heads_first, heads_last
from .conditions import ClipConditions
from .layers import Group, Layers


class ReferenceFusion(nn.Module):
    """`x + attention(x, [reference tokens, own tokens])`; every frame sees the same reference, of any spatial size."""

    def __init__(self, layers: Layers, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.name = layers.name
        self.attention: AttentionFunction = layers.attention
        self.to_q = layers.linear("to_q", channels, channels, bias=False)
        self.to_k = layers.linear("to_k", channels, channels, bias=False)
        self.to_v = layers.linear("to_v", channels, channels, bias=False)
        self.to_out = Group(_0=layers.at("to_out").linear("0", channels, channels))

    def forward(self, x: Tensor, reference: Tensor, clip: ClipConditions) -> Tensor:
        """`x (b, t, h, w, c)`; `reference (rows, pictures, h', w', c)`."""
        b, t = x.shape[:2]
        rows = reference.shape[0]
        ref_k, ref_v = self.constants(reference, clip)
        h = rearrange(x, "b t h w c -> b t (h w) c")
        own_k, own_v = self.to_k(h), self.to_v(h)

        def beside(shared: Tensor, own: Tensor) -> Tensor:  # (rows, m, c), (b, t, n, c) -> (b t, heads, m + n, d)
            shared = repeat(shared, "rows m c -> (rows windows) t m c", windows=b // rows, t=t)
            return heads_first(frames_as_rows(torch.cat([shared, own], dim=2)), self.heads)

        q = heads_first(frames_as_rows(self.to_q(h)), self.heads)
        out = heads_last(self.attention(q, beside(ref_k, own_k), beside(ref_v, own_v)))
        out = rearrange(self.to_out["0"](out), "(b t) (h w) c -> b t h w c", b=b, h=x.shape[2])
        return x + out if clip.reference_scale == 1 else torch.add(x, out, alpha=clip.reference_scale)

    def constants(self, reference: Tensor, clip: ClipConditions) -> tuple[Tensor, Tensor]:
        """Keys and values `(rows, tokens, c)` of the reference."""

        def project() -> tuple[Tensor, Tensor]:
            tokens = rearrange(reference, "b p h w c -> b (p h w) c")
            return self.to_k(tokens), self.to_v(tokens)

        return clip.once((self.name, "reference", reference.shape[0]), project)


def reference_indices(layers_per_block: int, block: int, final: bool) -> range:
    """Which ReferenceNet residuals feed a down block's fusion layers.

    The final block has no downsampler, and its own count enters the start as well, so it gets residuals of the block
    before it, and the last ones are never used. The released weights were trained with this (musev.md 2.7).
    """
    count = layers_per_block + (0 if final else 1)
    start = 1 + count * block
    return range(start, start + count)
