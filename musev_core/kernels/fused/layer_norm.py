"""Residual sum and layer norm in Triton."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from .launching import on_device_of, power_of_2

MAX_CHANNELS = 8192  # a row stays in registers
_TILE = 2048


@triton.jit
def _add_layer_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    out_ptr,
    rows,
    eps,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    valid = channel < C
    inside = (row < rows)[:, None] & valid[None, :]
    at = row[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    total = x.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + at, total, mask=inside)
    x = total.to(tl.float32)
    mean = tl.sum(x, axis=1) / C
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / C + eps)
    weight = tl.load(weight_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    y = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`musev_core.kernels.add_layer_norm` of CUDA tensors, or of CPU tensors in Triton's interpreter."""
    x, residual, weight, bias = (y.contiguous() for y in (x, residual, weight, bias))
    total, out = x.new_empty(x.shape), x.new_empty(x.shape)
    if x.numel() == 0:
        return total, out
    c = x.shape[-1]
    rows = x.numel() // c
    block_c = power_of_2(c, most=MAX_CHANNELS)
    block_r = max(1, _TILE // block_c)
    with on_device_of(x):
        _add_layer_norm[(triton.cdiv(rows, block_r),)](
            x,
            residual,
            weight,
            bias,
            total,
            out,
            rows,
            eps,
            C=c,
            BLOCK_R=block_r,
            BLOCK_C=block_c,
            num_warps=4 if block_c <= 2048 else 8,
        )
    return total, out
