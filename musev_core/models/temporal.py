"""MuseV's layers over time: convolution (musev.md 2.3) and transformer (musev.md 2.4)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import kernels
from .attention import AttentionFunction
from .conditions import ClipConditions
from .embeddings import FrameEmbedding
from .layers import Group, Layers, add_and_norm, conv_over_time, norm_silu, scaled_residual
from .transformer import FeedForward

MAX_KERNEL_FRAMES = 32  # of the fused temporal attention
TEMPORAL_CONV_GROUPS = 32  # whatever the rest of the network uses
# where norm and convolution stand in the stages of the published files; a dropout sits at index 2 of the later ones
_STAGES = {"conv1": ("0", "2"), "conv2": ("0", "3"), "conv3": ("0", "3"), "conv4": ("0", "3")}


class TemporalConv(nn.Module):
    """Four convolutions over time, `x + |w| * conv(x)` with one learned weight.

    The group norms' statistics span time as well, so a frame's result depends on the window it is in (musev.md 8.4).
    """

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        for stage, (norm, conv) in _STAGES.items():
            place = layers.at(stage)
            leaves = {
                f"_{norm}": place.group_norm(norm, TEMPORAL_CONV_GROUPS, channels, eps=1e-5),
                f"_{conv}": place.temporal_conv(conv, channels, channels),
            }
            setattr(self, stage, Group(**leaves))
        self.temporal_weight = layers.parameter("temporal_weight", 1)
        self.name = layers.name

    def forward(self, x: Tensor, clip: ClipConditions, strength: Tensor | None = None) -> Tensor:
        """`(b, t, h, w, c)`; `strength (1)` or `(t, 1, 1, 1)` multiplies what is added."""
        h = x
        for stage, (norm, conv) in _STAGES.items():
            layer: Group = getattr(self, stage)
            h = conv_over_time(layer[conv], norm_silu(layer[norm], h, over_time=True))
        weight = self.constants(clip, h)
        return scaled_residual(x, h, weight if strength is None else weight * strength)

    def constants(self, clip: ClipConditions, like: Tensor) -> Tensor:
        """`|w|` as `like` is: a host which loads a model in parts may have left it elsewhere."""
        return clip.once((self.name, "weight"), lambda: self.temporal_weight.abs().to(like))


class TemporalSelfAttention(nn.Module):
    """Full attention over the frames of a window, separately at every pixel."""

    def __init__(self, layers: Layers, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.name = layers.name
        self.attention: AttentionFunction = layers.attention
        self.to_q = layers.linear("to_q", channels, channels, bias=False)
        self.to_k = layers.linear("to_k", channels, channels, bias=False)
        self.to_v = layers.linear("to_v", channels, channels, bias=False)
        self.to_out = Group(_0=layers.at("to_out").linear("0", channels, channels))
        # `to_q`, `to_k` and `to_v` in one piece of memory which is theirs, see `join_projections`
        self.projection: Tensor | None
        self.register_buffer("projection", None, persistent=False)

    def forward(self, x: Tensor, clip: ClipConditions) -> Tensor:
        """`(b, t, n, c)`."""
        if x.shape[1] <= MAX_KERNEL_FRAMES and (weight := self.constants(clip, x)) is not None:
            return self.to_out["0"](kernels.temporal_attention(F.linear(x, weight), self.heads))

        def pixels_as_heads(y: Tensor) -> Tensor:  # a view: nothing is copied to bring time inside
            return rearrange(y, "b t n (heads d) -> b (n heads) t d", heads=self.heads)

        q, k, v = (pixels_as_heads(project(x)) for project in (self.to_q, self.to_k, self.to_v))
        out = rearrange(self.attention(q, k, v), "b (n heads) t d -> b t n (heads d)", heads=self.heads)
        return self.to_out["0"](out)

    def constants(self, clip: ClipConditions, like: Tensor) -> Tensor | None:
        """The three projections as one, `(3 c, c)`, for activations like these; None where no kernel is to read it.

        The weights themselves where they are joined, which know of no gradient; otherwise a copy of them, kept in
        `clip`.
        """
        if not self._has_plain_projections() or not kernels.active(like, *(p.weight for p in self._projections())):
            return None
        copy = clip.once((self.name, "projection"), self._copy_unless_joined)
        return self.projection if copy is None else copy

    def join_projections(self) -> None:
        """Moves the weights of the three projections next to each other, so that no clip needs a copy of them.

        Names and values stay. A host's layers are left alone, and so are projections of different types.
        """
        if not self._has_plain_projections() or len({layer.weight.dtype for layer in self._projections()}) > 1:
            return
        joined = torch.cat([layer.weight.detach() for layer in self._projections()])
        for layer, part in zip(self._projections(), joined.chunk(3), strict=True):
            layer.weight.data = part
        self.projection = joined

    def _projections(self) -> tuple[Any, Any, Any]:
        return self.to_q, self.to_k, self.to_v

    def _has_plain_projections(self) -> bool:
        return all(getattr(type(layer), "forward", None) is nn.Linear.forward for layer in self._projections())

    def _copy_unless_joined(self) -> Tensor | None:
        weights = [layer.weight for layer in self._projections()]
        # weights which were replaced since then, by a copy of the module or other parameters, are joined no longer
        if self.projection is not None and all(map(_same_memory, weights, self.projection.chunk(3))):
            return None
        return torch.cat(weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TemporalSelfAttention":
        """What `to`, `half` and the like call: they move every parameter on its own, so the three are joined again."""
        was_joined, self.projection = self.projection is not None, None
        super()._apply(fn, recurse)
        if was_joined:
            self.join_projections()
        return self


def _same_memory(a: Tensor, b: Tensor) -> bool:
    # not `Tensor.is_set_to` and not `data_ptr`, which know nothing of fake tensors
    def place(x: Tensor) -> tuple[Any, ...]:
        return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()

    return place(a) == place(b)


class TemporalTransformerBlock(nn.Module):
    """Two self attentions over time (the second stands where cross attention usually does) and a feed forward."""

    def __init__(self, layers: Layers, channels: int, heads: int):
        super().__init__()
        self.norm1 = layers.layer_norm("norm1", channels)
        self.attn1 = TemporalSelfAttention(layers.at("attn1"), channels, heads)
        self.norm2 = layers.layer_norm("norm2", channels)
        self.attn2 = TemporalSelfAttention(layers.at("attn2"), channels, heads)
        self.norm3 = layers.layer_norm("norm3", channels)
        self.ff = FeedForward(layers.at("ff"), channels)

    def forward(self, x: Tensor, clip: ClipConditions) -> Tensor:
        """`(b, t, n, c)`."""
        x, h = add_and_norm(self.norm2, x, self.attn1(self.norm1(x), clip))
        x, h = add_and_norm(self.norm3, x, self.attn2(h, clip))
        return x + self.ff(h)


class TemporalTransformer(nn.Module):
    """`x + |w| * transformer(x + frame embedding)` over the frames of a window."""

    def __init__(self, layers: Layers, channels: int, heads: int, groups: int, frame_embed_dim: int):
        super().__init__()
        self.norm = layers.group_norm("norm", groups, channels, eps=1e-6)
        self.proj_in = layers.linear("proj_in", channels, channels)
        self.frame_emb_proj = layers.linear("frame_emb_proj", frame_embed_dim, channels)
        self.transformer_blocks = nn.ModuleList(
            [TemporalTransformerBlock(layers.at("transformer_blocks", 0), channels, heads)]
        )
        self.proj_out = layers.linear("proj_out", channels, channels)
        self.temporal_weight = layers.parameter("temporal_weight", 1)
        self.name = layers.name

    def forward(
        self, x: Tensor, frames: FrameEmbedding, clip: ClipConditions, strength: Tensor | None = None
    ) -> Tensor:
        """`x (b, t, h, w, c)`; `strength (1)` or `(t, 1, 1, 1)` multiplies what is added."""
        h = norm_silu(self.norm, x, over_time=True, silu=False)
        h = self.proj_in(rearrange(h, "b t h w c -> b t (h w) c"))
        embedding, weight = self.constants(frames, clip, x)
        h = h + embedding[:, :, None]
        for block in self.transformer_blocks:
            h = block(h, clip)
        weight = weight if strength is None else weight * strength
        h = rearrange(self.proj_out(h), "b t (h w) c -> b t h w c", h=x.shape[2])
        return scaled_residual(x, h, weight)

    def constants(self, frames: FrameEmbedding, clip: ClipConditions, like: Tensor) -> tuple[Tensor, Tensor]:
        """The projected frame embedding `(1 or b, t, c)`, and `|w|`; those of the attention layers are made ready."""
        for module in self.transformer_blocks.modules():
            if isinstance(module, TemporalSelfAttention):
                module.constants(clip, like)
        weight = clip.once((self.name, "weight"), lambda: self.temporal_weight.abs().to(like))
        return frames.projected(self.name, self.frame_emb_proj, clip), weight
