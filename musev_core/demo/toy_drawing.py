"""Smooth pictures from distances: every edge is one pixel wide, whatever its position (no aliasing, no jumps)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stroke:
    """A thick line with round ends from `start` to `end (n, 2)`, `radius` pixels to each side, of `color (n, 3)`."""

    start: Tensor
    end: Tensor
    radius: float
    color: Tensor


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(size, dtype=torch.float32) + 0.5
    return axis[None, None, :], axis[None, :, None]  # x, y of the pixels' centres


def _paint(canvas: Tensor, coverage: Tensor, color: Tensor) -> None:
    """Lays `color (n, 3)` or `(n, 3, h, w)` over `canvas (n, 3, h, w)` where `coverage (n, h, w)` says."""
    color = color[..., None, None] if color.ndim == 2 else color
    canvas.lerp_(color.expand_as(canvas), coverage[:, None].expand_as(canvas))


def draw_stage(colors: Tensor, places: Tensor, size: int) -> Tensor:
    """Stages `(n, 3, size, size)`: a sky of two colors, a hill and the ground.

    Args:
        colors: `(n, 4, 3)`; places: `(n, 3)`: x and radius of the hill, y of the horizon.
    """
    x, y = _grid(size)
    hill, radius, horizon = (places[:, i, None, None] for i in range(3))
    height = (y / horizon).clamp(max=1)[:, None]
    top, bottom = colors[:, 0, :, None, None], colors[:, 1, :, None, None]
    canvas = (top + (bottom - top) * height).expand(-1, -1, -1, size).clone()
    distance = ((x - hill) ** 2 + (y - horizon) ** 2).sqrt() - radius
    _paint(canvas, (0.5 - distance).clamp(0, 1), colors[:, 2])
    _paint(canvas, (0.5 + y - horizon).clamp(0, 1).expand(-1, -1, size), colors[:, 3])
    return canvas


def draw_strokes(canvas: Tensor, strokes: Sequence[Stroke]) -> None:
    """Draws strokes over `canvas (n, 3, h, w)`, one after another."""
    size = canvas.shape[-1]
    x, y = _grid(size)
    for stroke in strokes:
        along = stroke.end - stroke.start
        length = (along**2).sum(-1).clamp(min=1e-6)[:, None, None]
        dx, dy = x - stroke.start[:, 0, None, None], y - stroke.start[:, 1, None, None]
        ax, ay = along[:, 0, None, None], along[:, 1, None, None]
        part = ((dx * ax + dy * ay) / length).clamp_(0, 1)
        distance = ((dx - part * ax) ** 2 + (dy - part * ay) ** 2).sqrt_()
        _paint(canvas, (stroke.radius + 0.5 - distance).clamp_(0, 1), stroke.color)


def draw_shape(canvas: Tensor, centre: Tensor, shape: Tensor, colors: Tensor) -> None:
    """Draws a textured shape over every picture of `canvas (n, 3, h, w)`.

    Args:
        centre: `(n, 2)`, x and y.
        shape: `(n, 3)`: form (0 ball, 1 box, 2 star), texture (0 plain, 1 striped, 2 ringed), radius.
        colors: `(n, 2, 3)`: the shape's and its texture's.
    """
    x, y = _grid(canvas.shape[-1])
    form, texture, radius = (shape[:, i, None, None] for i in range(3))
    u, v = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    far = (u**2 + v**2).sqrt()
    box = torch.maximum(u.abs(), v.abs()) - 0.88 * radius
    turn = torch.atan2(u, -v)
    star = far - radius * (0.84 + 0.24 * torch.cos(5 * turn))
    distance = torch.where(form == 0, far - radius, torch.where(form == 1, box, star))
    wave = 2 * math.pi / 12.0  # a stripe of each color every 12 pixels, wide enough for latents of 8 pixels
    pattern = torch.where(texture == 1, 2 * torch.sin(wave * v), 0.52 * radius - far)
    pattern = torch.where(texture == 0, -torch.ones_like(pattern), pattern)
    mix = (0.5 + pattern).clamp(0, 1)[:, None]
    first, second = colors[:, 0, :, None, None], colors[:, 1, :, None, None]
    _paint(canvas, (0.5 - distance).clamp(0, 1), first + (second - first) * mix)
