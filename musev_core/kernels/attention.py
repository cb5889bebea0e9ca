"""Attention over the frames of a window, straight from the fused projection."""

import torch
from torch import Tensor

from ..errors import MuseVError
from .operators import operator
from .selection import active, launchable, wide


def temporal_attention(qkv: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(d)) v` over t, separately at each of the n positions and in each head (musev.md 2.4).

    `qkv (b, t, n, 3 c)` holds q, k and v one after another in the last axis, each with its heads one after another.
    The fused kernel takes up to 32 frames; longer windows run the reference.

    Returns:
        `(b, t, n, c)`, contiguous, in qkv's type.

    Raises:
        MuseVError: if the last axis does not hold q, k and v of that many heads.
    """
    if qkv.ndim != 4:
        raise MuseVError(f"temporal_attention needs qkv (b, t, n, 3 c), but its shape is {tuple(qkv.shape)}")
    if heads < 1 or qkv.shape[3] % (3 * heads):
        raise MuseVError(f"a last axis of {qkv.shape[3]} does not hold q, k and v of {heads} heads")
    return (_operator if active(qkv) else reference)(qkv, heads)


def reference(qkv: Tensor, heads: int) -> Tensor:
    """`temporal_attention` in plain torch."""
    parts = qkv.to(wide(qkv.dtype)).unflatten(-1, (3, heads, -1))
    q, k, v = parts.permute(3, 0, 2, 4, 1, 5).unbind()  # (b, n, heads, t, d)
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
    return (weights @ v).permute(0, 3, 1, 2, 4).flatten(3).to(qkv.dtype).contiguous()


def _run(qkv: Tensor, heads: int) -> Tensor:
    if not launchable(qkv):
        return reference(qkv, heads)
    from .fused.attention import MAX_FRAMES
    from .fused.attention import temporal_attention as fused

    return fused(qkv, heads) if qkv.shape[1] <= MAX_FRAMES else reference(qkv, heads)


def _shape(qkv: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


_operator = operator("temporal_attention(Tensor qkv, int heads) -> Tensor", _run, _shape)
