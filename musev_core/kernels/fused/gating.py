"""GEGLU in Triton."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl
from torch import Tensor

from .launching import on_device_of, power_of_2

_TILE = 2048  # outputs of one program


@triton.jit
def _geglu(x_ptr, out_ptr, rows, width, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    blocks = tl.cdiv(width, BLOCK_C)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row[:, None] * (2 * width) + column[None, :]
    value = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + at + width, mask=inside, other=0.0).to(tl.float32)
    y = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + row[:, None] * width + column[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    """`musev_core.kernels.geglu` of a CUDA tensor, or of a CPU tensor in Triton's interpreter."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    if out.numel() == 0:
        return out
    rows = out.numel() // width
    block_c = power_of_2(width, most=256)  # SD1.5's widths are multiples of it
    block_r = _TILE // block_c
    with on_device_of(x):
        grid = (triton.cdiv(rows, block_r) * triton.cdiv(width, block_c),)
        _geglu[grid](x, out, rows, width, BLOCK_R=block_r, BLOCK_C=block_c, num_warps=4)
    return out
