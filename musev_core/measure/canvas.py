"""A small canvas for charts: smooth shapes, sharp text, numbers on an axis."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Color = tuple[int, int, int]
Point = tuple[float, float]

PAPER: Color = (250, 250, 247)
INK: Color = (38, 43, 51)
FADED: Color = (112, 119, 130)
GRID: Color = (225, 226, 222)
CONDITION: Color = (226, 178, 26)  # condition frames
# told apart by colour-blind eyes in neighbouring pairs too (after M. Okabe, K. Ito: Color universal design, 2008)
SERIES: tuple[Color, ...] = ((74, 124, 186), (236, 156, 70), (84, 170, 150), (206, 106, 152), (120, 190, 226))
SMOOTH = 3  # shapes are drawn this much larger and then reduced


class Canvas:
    """Draws in pixels from the top left corner; `picture()` is the result. Text lies above all shapes."""

    def __init__(self, width: int, height: int, *, background: Color = PAPER):
        from PIL import Image, ImageDraw

        self.width, self.height = width, height
        self._image = Image.new("RGB", (width * SMOOTH, height * SMOOTH), background)
        self._draw = ImageDraw.Draw(self._image)
        self._texts: list[tuple[Point, str, Color, float, str]] = []

    def box(self, left: float, top: float, right: float, bottom: float, color: Color, *, radius: float = 0) -> None:
        """A filled rectangle, with round corners if wished; nothing if it is empty."""
        x0, y0, x1, y1 = (round(v * SMOOTH) for v in (left, top, right, bottom))
        if x1 > x0 and y1 > y0:
            self._draw.rounded_rectangle((x0, y0, x1 - 1, y1 - 1), round(radius * SMOOTH), fill=color)

    def line(self, points: Sequence[Point], color: Color, *, width: float = 1) -> None:
        """Straight strokes from point to point."""
        scaled = [(x * SMOOTH, y * SMOOTH) for x, y in points]
        if len(scaled) > 1:
            self._draw.line(scaled, fill=color, width=max(1, round(width * SMOOTH)), joint="curve")

    def text(self, x: float, y: float, text: str, *, color: Color = INK, size: float = 13, anchor: str = "la") -> None:
        """One line of text; `anchor` is Pillow's: l, m, r and a (top), m, s (base line)."""
        self._texts.append(((x, y), text, color, size, anchor))

    def picture(self) -> Tensor:
        """float32 `(1, height, width, 3)`, 0..1."""
        from PIL import Image, ImageDraw, ImageFont

        image = self._image.resize((self.width, self.height), Image.Resampling.BOX)
        draw = ImageDraw.Draw(image)
        for at, text, color, size, anchor in self._texts:
            draw.text(at, text, fill=color, font=ImageFont.load_default(size), anchor=anchor)
        return torch.from_numpy(np.asarray(image).copy())[None].float() / 255


def text_width(text: str, size: float = 13) -> float:
    """Of a line as `Canvas.text` draws it, in pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size).getlength(text)


def tint(color: Color, amount: float) -> Color:
    """`color` mixed with the paper; amount 0 is the paper, 1 the colour."""
    red, green, blue = (round(p + (c - p) * amount) for c, p in zip(color, PAPER, strict=True))
    return red, green, blue


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, at most `most` + 1 of them."""
    span = high - low
    if span <= 0 or most < 1:
        return [low]
    unit = 10 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= most)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
