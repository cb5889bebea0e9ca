"""Attention over the frames of a window in Triton."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from .launching import on_device_of

MAX_FRAMES = 32


@triton.jit
def _temporal_attention(
    qkv_ptr,
    out_ptr,
    positions,
    scale,
    T: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # One program has all frames of one position and head. The head is cut into blocks of channels, because padding 40
    # or 160 channels to a power of two would cost more than the loop.
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0) % HEADS
    pixel = (tl.program_id(0) // HEADS).to(tl.int64)
    row = (pixel // positions) * (T * positions) + pixel % positions
    frame = tl.arange(0, BLOCK_T)
    rows = row + frame.to(tl.int64) * positions
    exists = frame < T
    channel = tl.arange(0, BLOCK_D)

    scores = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for start in tl.static_range(0, D, BLOCK_D):
        inside = exists[:, None] & (start + channel < D)[None, :]
        at = qkv_ptr + rows[:, None] * (3 * C) + head * D + start + channel[None, :]
        q = tl.load(at, mask=inside, other=0.0)
        k = tl.load(at + C, mask=inside, other=0.0)
        scores += tl.dot(q, tl.trans(k), input_precision="ieee")

    scores = tl.where(exists[None, :], scores * scale, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    weights = weights.to(qkv_ptr.dtype.element_ty)

    for start in tl.static_range(0, D, BLOCK_D):
        inside = exists[:, None] & (start + channel < D)[None, :]
        at = rows[:, None] * (3 * C) + 2 * C + head * D + start + channel[None, :]
        v = tl.load(qkv_ptr + at, mask=inside, other=0.0)
        y = tl.dot(weights, v, input_precision="ieee")
        at = rows[:, None] * C + head * D + start + channel[None, :]
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def temporal_attention(qkv: Tensor, heads: int) -> Tensor:
    """`musev_core.kernels.temporal_attention` of a CUDA tensor, or of a CPU tensor in Triton's interpreter.

    At most `MAX_FRAMES` frames.
    """
    qkv = qkv.contiguous()
    b, t, n, c = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    out = qkv.new_empty(b, t, n, c)
    if out.numel() == 0:
        return out
    d = c // heads
    with on_device_of(qkv):
        _temporal_attention[(b * n * heads,)](
            qkv,
            out,
            n,
            d**-0.5,
            T=t,
            HEADS=heads,
            D=d,
            BLOCK_T=16 if t <= 16 else 32,
            BLOCK_D=32 if d % 32 == 0 else 16,  # 16 is the least a matrix product takes
            num_warps=1 if t <= 16 else 2,
        )
    return out
