"""Group norm of channels-last video in Triton.

A sample (a frame, or a clip) is a matrix of `positions` rows and C channels. Where one group fits into registers, one
kernel does everything. Else three do: mean and sum of squared deviations of each channel over a share of the rows,
merged pairwise (Chan, Golub, LeVeque 1983); the same of each group; the normalisation. Nowhere is a square of a mean
subtracted from a mean of squares.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launching import on_device_of, power_of_2

_GROUP_IN_REGISTERS = 16384
_PROGRAMS = 2048  # enough to fill a large GPU
_ROWS = 64
_CHANNELS = 64


@triton.jit
def _load(x_ptr, shift_ptr, row, channel, inside, area, frames, shift_b, shift_t, C: tl.constexpr, SHIFT: tl.constexpr):
    """Elements of x as float32, with their frame's shift; `row` counts (b, t, h, w)."""
    x = tl.load(x_ptr + row[:, None] * C + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        frame = row // area
        at = (frame // frames) * shift_b + (frame % frames) * shift_t
        x += tl.load(shift_ptr + at[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def _store(out_ptr, y, row, channel, inside, C: tl.constexpr, SILU: tl.constexpr):
    if SILU:
        y = y * tl.sigmoid(y)
    tl.store(out_ptr + row[:, None] * C + channel[None, :], y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _whole_group(
    x_ptr, shift_ptr, weight_ptr, bias_ptr, out_ptr, positions, eps, area, frames, shift_b, shift_t,
    C: tl.constexpr, D: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    groups: tl.constexpr = C // D
    sample = (tl.program_id(0) // groups).to(tl.int64)
    position = tl.arange(0, BLOCK_S)
    member = tl.arange(0, BLOCK_D)
    channel = (tl.program_id(0) % groups) * D + member
    inside = (position < positions)[:, None] & (member < D)[None, :]
    row = sample * positions + position
    x = _load(x_ptr, shift_ptr, row, channel, inside, area, frames, shift_b, shift_t, C, SHIFT)
    count = positions * D * 1.0  # a size of 1 arrives as a constant, which has no `to`
    centred = tl.where(inside, x - tl.sum(tl.sum(x, axis=1), axis=0) / count, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(centred * centred, axis=1), axis=0) / count + eps)
    weight = tl.load(weight_ptr + channel, mask=member < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=member < D, other=0.0).to(tl.float32)
    y = centred * (scale * weight)[None, :] + bias[None, :]
    _store(out_ptr, y, row, channel, inside, C, SILU)


@triton.jit
def _share_moments(
    x_ptr, shift_ptr, moments_ptr, positions, share, shares, area, frames, shift_b, shift_t,
    C: tl.constexpr, SHIFT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each channel over `share` rows: moments (samples, shares, 2, C)."""
    sample = (tl.program_id(0) // shares).to(tl.int64)
    first = (tl.program_id(0) % shares) * share
    last = tl.minimum(first + share, positions)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    mean = tl.zeros((BLOCK_C,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(first, last, BLOCK_S):
        position = start + tl.arange(0, BLOCK_S)
        inside = (position < last)[:, None] & valid[None, :]
        row = sample * positions + position
        x = _load(x_ptr, shift_ptr, row, channel, inside, area, frames, shift_b, shift_t, C, SHIFT)
        before = (start - first).to(tl.float32)
        count = tl.minimum(last - start, BLOCK_S).to(tl.float32)
        tile_mean = tl.sum(x, axis=0) / count
        centred = tl.where(inside, x - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        squares += tl.sum(centred * centred, axis=0) + delta * delta * (before * (count / (before + count)))
        mean += delta * (count / (before + count))
    at = moments_ptr + tl.program_id(0).to(tl.int64) * (2 * C) + channel
    tl.store(at, mean, mask=valid)
    tl.store(at + C, squares, mask=valid)


@triton.jit
def _group_moments(
    moments_ptr, weight_ptr, factors_ptr, positions, share, shares, eps,
    C: tl.constexpr, D: tl.constexpr, BLOCK_SHARES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The mean of each channel's group, and what to multiply with: factors (samples, 2, C)."""
    groups: tl.constexpr = C // D
    sample = (tl.program_id(0) // groups).to(tl.int64)
    part = tl.arange(0, BLOCK_SHARES)
    member = tl.arange(0, BLOCK_D)
    channel = (tl.program_id(0) % groups) * D + member
    inside = (part < shares)[:, None] & (member < D)[None, :]
    at = moments_ptr + (sample * shares + part)[:, None] * (2 * C) + channel[None, :]
    means = tl.load(at, mask=inside, other=0.0)
    squares = tl.load(at + C, mask=inside, other=0.0)
    rows = tl.maximum(tl.minimum(positions - part * share, share), 0).to(tl.float32)[:, None]
    count = positions * D * 1.0
    mean = tl.sum(tl.sum(means * rows, axis=1), axis=0) / count
    delta = tl.where(inside, means - mean, 0.0)
    variance = tl.sum(tl.sum(squares + delta * delta * rows, axis=1), axis=0) / count
    weight = tl.load(weight_ptr + channel, mask=member < D, other=0.0).to(tl.float32)
    at = factors_ptr + sample * (2 * C) + channel
    tl.store(at, tl.zeros((BLOCK_D,), dtype=tl.float32) + mean, mask=member < D)
    tl.store(at + C, weight / tl.sqrt(variance + eps), mask=member < D)


@triton.jit
def _normalise(
    x_ptr, shift_ptr, factors_ptr, bias_ptr, out_ptr, positions, area, frames, shift_b, shift_t,
    C: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(positions, BLOCK_S)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    position = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = channel < C
    inside = (position < positions)[:, None] & valid[None, :]
    row = sample * positions + position
    x = _load(x_ptr, shift_ptr, row, channel, inside, area, frames, shift_b, shift_t, C, SHIFT)
    at = factors_ptr + sample * (2 * C) + channel
    mean = tl.load(at, mask=valid, other=0.0)
    factor = tl.load(at + C, mask=valid, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * factor[None, :] + bias[None, :]
    _store(out_ptr, y, row, channel, inside, C, SILU)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    over_time: bool,
    silu: bool = True,
    shift: Tensor | None = None,
) -> Tensor:
    """`musev_core.kernels.group_norm_silu` of a CUDA tensor, or of a CPU tensor in Triton's interpreter."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = x.new_empty(x.shape)
    if out.numel() == 0:
        return out
    b, t, h, w, c = x.shape
    samples, positions = (b, t * h * w) if over_time else (b * t, h * w)
    shift_b = shift_t = 0
    if shift is not None:
        shift = shift.contiguous()
        shift_b = shift.stride(0) if shift.shape[0] > 1 else 0
        shift_t = shift.stride(1) if shift.shape[1] > 1 else 0
    source = (x, x if shift is None else shift)
    frame = (h * w, t, shift_b, shift_t)
    flags = {"C": c, "SHIFT": shift is not None}
    d = c // groups
    block_d = triton.next_power_of_2(d)
    with on_device_of(x):
        block_s = triton.next_power_of_2(positions)
        if block_s * block_d <= _GROUP_IN_REGISTERS:
            block = {"D": d, "SILU": silu, "BLOCK_S": block_s, "BLOCK_D": block_d}
            warps = 4 if block_s * block_d <= _GROUP_IN_REGISTERS // 4 else 8
            _whole_group[(samples * groups,)](
                *source, weight, bias, out, positions, eps, *frame, **flags, **block, num_warps=warps
            )
            return out
        block_s, block_c = power_of_2(positions, most=_ROWS), power_of_2(c, most=_CHANNELS)
        columns = triton.cdiv(c, block_c)
        # as many shares as fill the GPU, but no more than the kernel that merges them holds at once
        shares = max(1, min(_PROGRAMS // (samples * columns), _GROUP_IN_REGISTERS // block_d))
        share = triton.cdiv(triton.cdiv(positions, shares), block_s) * block_s
        shares = triton.cdiv(positions, share)
        moments = x.new_empty(samples, shares, 2, c, dtype=torch.float32)
        factors = x.new_empty(samples, 2, c, dtype=torch.float32)
        tile = {"BLOCK_S": block_s, "BLOCK_C": block_c}
        _share_moments[(samples * shares, columns)](
            *source, moments, positions, share, shares, *frame, **flags, **tile, num_warps=4
        )
        block = {"D": d, "BLOCK_SHARES": triton.next_power_of_2(shares), "BLOCK_D": block_d}
        _group_moments[(samples * groups,)](
            moments, weight, factors, positions, share, shares, eps, C=c, **block, num_warps=4
        )
        tiles = triton.cdiv(positions, block_s)
        _normalise[(samples * tiles, columns)](
            *source, factors, bias, out, positions, *frame, **flags, SILU=silu, **tile, num_warps=4
        )
    return out
