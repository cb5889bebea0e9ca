"""Spatial transformer of Stable Diffusion with MuseV's additions (musev.md 2.6)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import kernels
from .attention import AttentionFunction, frames_as_rows, heads_first, heads_last
from .conditions import ClipConditions
from .hooks import ForwardHooks
from .layers import Group, Layers, add_and_norm, norm_silu, per_frame, to_batch


def take_frames(x: Tensor, frames: Sequence[int]) -> Tensor:
    """Frames of `x (b, t, ...)` by number, without index tensors: those would stall a GPU."""
    first, count = frames[0], len(frames)
    if list(frames) == list(range(first, first + count)):
        return x[:, first : first + count]
    return torch.cat([x[:, i : i + 1] for i in frames], dim=1)


# keys and values (rows, heads, tokens, d), scale, and a mask (1 or t, H, W) or None
AttentionTerm = tuple[Tensor, Tensor, float, Tensor | None]


class SelfAttention(nn.Module):
    """Attention among the tokens of a frame, and from every frame to the condition frames.

    "Reference only": the condition frames' keys and values of the same layer are appended to every frame's, also to
    their own, without parameters of its own.
    """

    def __init__(self, layers: Layers, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention: AttentionFunction = layers.attention
        self.to_q = layers.linear("to_q", channels, channels, bias=False)
        self.to_k = layers.linear("to_k", channels, channels, bias=False)
        self.to_v = layers.linear("to_v", channels, channels, bias=False)
        self.to_out = Group(_0=layers.at("to_out").linear("0", channels, channels))

    def forward(self, x: Tensor, condition_frames: Sequence[int] = (), extra_tokens: Tensor | None = None) -> Tensor:
        """`x (b, t, n, c)`; `extra_tokens (b, m, c)` are seen by every frame."""
        b, t, _, c = x.shape
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        shared = []
        if condition_frames:
            shared.append(tuple(rearrange(take_frames(y, condition_frames), "b t n c -> b 1 (t n) c") for y in (k, v)))
        if extra_tokens is not None:
            shared.append((self.to_k(extra_tokens)[:, None], self.to_v(extra_tokens)[:, None]))
        if shared:
            k = torch.cat([k, *(s[0].expand(b, t, -1, c) for s in shared)], dim=2)
            v = torch.cat([v, *(s[1].expand(b, t, -1, c) for s in shared)], dim=2)
        q, k, v = (heads_first(frames_as_rows(y), self.heads) for y in (q, k, v))
        out = self.to_out["0"](heads_last(self.attention(q, k, v)))
        return rearrange(out, "(b t) n c -> b t n c", b=b)


class CrossAttention(nn.Module):
    """Attention to the prompt, plus a decoupled term each for image and face tokens (IP-Adapter, arXiv:2308.06721)."""

    def __init__(
        self, layers: Layers, channels: int, heads: int, context_dim: int, *, image_prompt: bool, face_prompt: bool
    ):
        super().__init__()
        self.heads = heads
        self.name = layers.name
        self.attention: AttentionFunction = layers.attention
        self.to_q = layers.linear("to_q", channels, channels, bias=False)
        self.to_k = layers.linear("to_k", context_dim, channels, bias=False)
        self.to_v = layers.linear("to_v", context_dim, channels, bias=False)
        self.to_out = Group(_0=layers.at("to_out").linear("0", channels, channels))
        self.image_prompt = image_prompt
        self.face_prompt = face_prompt
        if image_prompt:
            self.to_k_ip = layers.linear("to_k_ip", context_dim, channels, bias=False)
            self.to_v_ip = layers.linear("to_v_ip", context_dim, channels, bias=False)
        if face_prompt:
            self.ip_adapter_face_to_k_ip = layers.linear("ip_adapter_face_to_k_ip", context_dim, channels, bias=False)
            self.ip_adapter_face_to_v_ip = layers.linear("ip_adapter_face_to_v_ip", context_dim, channels, bias=False)

    def forward(self, x: Tensor, clip: ClipConditions, batch: int, size: tuple[int, int]) -> Tensor:
        """`x (b, t, n, c)` of `size (h, w)` to `(batch, t, n, c)`, where batch is the clip's rows times windows."""
        q = to_batch(self.to_q(x), batch)
        (key, value, _, _), *pictures = self.constants(clip)
        return self.to_out["0"](self.add_terms(self.look(q, key, value), q, pictures, size))

    def look(self, q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `q (b, t, n, c)`: all queries of a row share its keys, whatever frame or window they are of."""
        rows = heads_first(q.reshape(key.shape[0], -1, q.shape[-1]), self.heads)
        return heads_last(self.attention(rows, key, value)).view(q.shape)

    def add_terms(self, out: Tensor, q: Tensor, terms: Sequence[AttentionTerm], size: tuple[int, int]) -> Tensor:
        """What the image and face tokens add to `out (b, t, n, c)`."""
        for key, value, scale, mask in terms:
            term = self.look(q, key, value)
            if mask is not None:
                weights = F.interpolate(mask[:, None].to(term), size, mode="bilinear", antialias=True)
                term = term * rearrange(weights, "t 1 h w -> 1 t (h w) 1")
            out = torch.add(out, term, alpha=scale)
        return out

    def constants(self, clip: ClipConditions) -> list[AttentionTerm]:
        """Every kind of tokens, text first."""
        return [self.text_term(clip), *self.picture_terms(clip)]

    def text_term(self, clip: ClipConditions) -> AttentionTerm:
        """The prompt's keys and values."""
        return *self._projected(clip, "text", clip.text, self.to_k, self.to_v), 1.0, None

    def picture_terms(self, clip: ClipConditions) -> list[AttentionTerm]:
        """Keys and values of image and face tokens, where they are in use."""
        found: list[AttentionTerm] = []
        if self.image_prompt and clip.image_tokens is not None and clip.image_scale > 0:
            tokens = self._projected(clip, "image", clip.image_tokens, self.to_k_ip, self.to_v_ip)
            found.append((*tokens, clip.image_scale, clip.image_mask))
        if self.face_prompt and clip.face_tokens is not None and clip.face_scale > 0:
            to_k, to_v = self.ip_adapter_face_to_k_ip, self.ip_adapter_face_to_v_ip
            found.append((*self._projected(clip, "face", clip.face_tokens, to_k, to_v), clip.face_scale, None))
        return found

    def _projected(
        self, clip: ClipConditions, what: str, tokens: Tensor, to_k: Any, to_v: Any
    ) -> tuple[Tensor, Tensor]:
        def project() -> tuple[Tensor, Tensor]:
            rows = tokens.flatten(0, -3)  # a prompt per frame becomes rows of its own
            return heads_first(to_k(rows), self.heads), heads_first(to_v(rows), self.heads)

        return project() if what == "text" and not clip.keep_text else clip.once((self.name, what), project)


class FeedForward(nn.Module):
    """GEGLU: half of the first projection gates the other half (arXiv:2002.05202)."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        net = layers.at("net")
        proj = net.at("0").linear("proj", channels, 8 * channels)
        self.net = Group(_0=Group(proj=proj), _2=net.linear("2", 4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., c)`."""
        x = self.net["0"]["proj"](x)
        if kernels.active(x):
            return self.net["2"](kernels.geglu(x))
        value, gate = x.chunk(2, dim=-1)
        gate = F.gelu(gate)
        # the widest activation of the network: multiplied in place where no gradient needs both factors
        return self.net["2"](value * gate if torch.is_grad_enabled() else gate.mul_(value))


class TransformerBlock(nn.Module):
    """Self attention, cross attention, feed forward, each on a normed copy and added back."""

    def __init__(self, layers: Layers, channels: int, heads: int, context_dim: int, **prompts: bool):
        super().__init__()
        self.norm1 = layers.layer_norm("norm1", channels)
        self.attn1 = SelfAttention(layers.at("attn1"), channels, heads)
        self.norm2 = layers.layer_norm("norm2", channels)
        self.attn2 = CrossAttention(layers.at("attn2"), channels, heads, context_dim, **prompts)
        self.norm3 = layers.layer_norm("norm3", channels)
        self.ff = FeedForward(layers.at("ff"), channels)
        self.name = layers.name

    def forward(
        self,
        x: Tensor,
        clip: ClipConditions,
        condition_frames: Sequence[int],
        extra_tokens: Tensor | None,
        batch: int,
        size: tuple[int, int],
    ) -> Tensor:
        """`x (b, t, n, c)` to `(batch, t, n, c)`: the guidance branches part at the cross attention."""
        x, h = add_and_norm(self.norm2, x, self.attn1(self.norm1(x), condition_frames, extra_tokens))
        x, h = add_and_norm(self.norm3, to_batch(x, batch), self.attn2(h, clip, batch, size))
        return x + self.ff(h)


class SpatialTransformer(nn.Module):
    """One transformer block over the pixels of each frame, between 1x1 convolutions."""

    def __init__(
        self,
        layers: Layers,
        channels: int,
        heads: int,
        context_dim: int,
        groups: int,
        *,
        image_prompt: bool = False,
        face_prompt: bool = False,
    ):
        super().__init__()
        self.norm = layers.group_norm("norm", groups, channels, eps=1e-6)
        self.proj_in = layers.conv2d("proj_in", channels, channels, kernel=1)
        block = TransformerBlock(
            layers.at("transformer_blocks", 0),
            channels,
            heads,
            context_dim,
            image_prompt=image_prompt,
            face_prompt=face_prompt,
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = layers.conv2d("proj_out", channels, channels, kernel=1)

    def forward(
        self,
        x: Tensor,
        clip: ClipConditions,
        condition_frames: Sequence[int] = (),
        extra_tokens: Tensor | None = None,
        batch: int | None = None,
        hooks: ForwardHooks | None = None,
    ) -> Tensor:
        """`x (b, t, h, w, c)`, or fewer rows than `batch` if the guidance branches are still one.

        `extra_tokens (b, m, c)` are further keys of the self attention.
        """
        batch = batch or x.shape[0]
        size = (x.shape[2], x.shape[3])
        h = per_frame(self.proj_in, norm_silu(self.norm, x, silu=False))
        h = rearrange(h, "b t h w c -> b t (h w) c")
        for block in self.transformer_blocks:
            own: TransformerBlock = block  # type: ignore[assignment]
            changed = None if hooks is None else hooks.transformer_block(own, h, clip, condition_frames, batch, size)
            h = own(h, clip, condition_frames, extra_tokens, batch, size) if changed is None else changed
        h = rearrange(h, "b t (h w) c -> b t h w c", h=size[0])
        return to_batch(x, batch) + per_frame(self.proj_out, h)
