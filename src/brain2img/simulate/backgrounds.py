"""The eight backgrounds of the simulated study: a smooth gradient and a few quiet elements, never the same twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from brain2img.simulate.drawing import RGB, mix


class _Canvas:
    """Picture in fractions of its side (x to the right, y down, 0..1), with a generator for what varies."""

    def __init__(self, side: int, *, generator: np.random.Generator) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self.image)
        self._generator = generator

    def vary(self, low: float, high: float) -> float:
        """Uniform number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def gradient(self, stops: list[tuple[float, RGB]]) -> None:
        """Fill from the first to the last stop (y, colour), top to bottom; outside the stops nothing changes."""
        for (y0, top), (y1, bottom) in pairwise(stops):
            first, last = round(y0 * self.side), round(y1 * self.side)
            if last <= first:
                continue
            share = np.linspace(0.0, 1.0, last - first)[:, None, None]
            column = (np.array(top) * (1 - share) + np.array(bottom) * share).round().astype(np.uint8)
            strip = Image.fromarray(column).resize((self.side, last - first), Image.Resampling.NEAREST)
            self.image.paste(strip, (0, first))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """Ellipse with centre (x, y)."""
        s = self.side
        self._draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """Axis-parallel rectangle."""
        s = self.side
        self._draw.rectangle((x0 * s, y0 * s, x1 * s - 1, y1 * s - 1), fill=colour)

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        """Filled polygon."""
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)

    def line(self, points: list[tuple[float, float]], colour: RGB, width: float) -> None:
        """Polyline."""
        pixels = [(x * self.side, y * self.side) for x, y in points]
        self._draw.line(pixels, fill=colour, width=max(1, round(width * self.side)), joint="curve")

    def hills(self, y: float, height: float, colour: RGB, *, waves: float = 1.2) -> None:
        """Fill below a soft wavy line at about `y`, with a random phase."""
        phase, other = self.vary(0, 2 * math.pi), self.vary(0, 2 * math.pi)
        ridge = []
        for k in range(33):
            x = k / 32
            swing = 0.7 * math.sin(2 * math.pi * waves * x + phase) + 0.3 * math.sin(4.6 * math.pi * waves * x + other)
            ridge.append((x, y + height * swing))
        self.polygon([*ridge, (1.0, 1.0), (0.0, 1.0)], colour)

    def cloud(self, x: float, y: float, size: float, colour: RGB) -> None:
        """Flat-bottomed cloud of three puffs."""
        for dx, dy, r in ((-0.5, 0.05, 0.32), (0.0, -0.12, 0.45), (0.48, 0.05, 0.34)):
            self.oval(x + dx * size, y + dy * size, r * size, r * size * 0.8, colour)
        self.box(x - 0.6 * size, y + 0.1 * size, x + 0.6 * size, y + 0.31 * size, colour)

    def clouds(self, colour: RGB, *, low: float, high: float) -> None:
        """Two clouds, one on each side, between the heights `low` and `high`."""
        self.cloud(self.vary(0.04, 0.4), self.vary(low, high), self.vary(0.14, 0.2), colour)
        self.cloud(self.vary(0.6, 0.96), self.vary(low, high), self.vary(0.14, 0.2), colour)


def _meadow(c: _Canvas) -> None:
    horizon = c.vary(0.42, 0.52)
    c.gradient([(0, (138, 200, 244)), (0.6, (214, 238, 252)), (1, (214, 238, 252))])
    c.clouds((250, 252, 255), low=0.1, high=0.26)
    c.hills(horizon, 0.05, (150, 206, 120))
    c.hills(horizon + 0.16, 0.035, (122, 190, 94))
    c.hills(horizon + 0.36, 0.03, (104, 174, 80), waves=0.8)
    for k in range(9):
        x, y = (k + c.vary(0.1, 0.9)) / 9, c.vary(horizon + 0.2, 0.97)
        colour: RGB = ((252, 244, 160), (250, 250, 250), (248, 190, 210))[k % 3]
        c.oval(x, y, 0.013, 0.013, colour)


def _beach(c: _Canvas) -> None:
    horizon, shore = c.vary(0.3, 0.36), c.vary(0.52, 0.6)
    c.gradient([(0, (120, 204, 240)), (horizon, (222, 244, 250))])
    c.oval(c.vary(0.1, 0.9), c.vary(0.1, 0.18), 0.075, 0.075, (255, 240, 150))
    c.gradient([(horizon, (60, 170, 196)), (1, (120, 220, 214))])
    c.hills(shore, 0.022, (248, 252, 250), waves=1.6)
    c.hills(shore + 0.035, 0.022, (250, 228, 172), waves=1.6)
    c.hills(shore + 0.24, 0.03, (244, 216, 152), waves=0.9)
    for _ in range(10):
        c.oval(c.vary(0, 1), c.vary(shore + 0.12, 0.99), 0.008, 0.006, (222, 190, 128))


def _night(c: _Canvas) -> None:
    c.gradient([(0, (14, 18, 54)), (0.75, (52, 56, 118)), (1, (84, 76, 140))])
    for k in range(26):
        r = 0.011 if k % 5 == 0 else 0.0065
        c.oval(c.vary(0, 1), c.vary(0, 0.78), r, r, (255, 250, 214))
    x, y = c.vary(0.12, 0.88), c.vary(0.13, 0.2)
    c.oval(x, y, 0.085, 0.085, (250, 240, 190))
    c.oval(x + 0.04, y - 0.022, 0.072, 0.072, (22, 26, 66))
    c.hills(0.86, 0.035, (34, 40, 84))
    c.hills(0.93, 0.02, (22, 26, 60))


def _desert(c: _Canvas) -> None:
    horizon = c.vary(0.44, 0.54)
    c.gradient([(0, (252, 196, 120)), (0.6, (254, 232, 186)), (1, (254, 232, 186))])
    c.oval(c.vary(0.12, 0.88), c.vary(0.14, 0.24), 0.1, 0.1, (255, 246, 206))
    x = c.vary(0.0, 0.7)
    c.polygon([(x, horizon + 0.1), (x + 0.05, horizon - 0.12), (x + 0.24, horizon - 0.12),
        (x + 0.3, horizon + 0.1)], (220, 150, 98))
    c.hills(horizon, 0.045, (236, 178, 108))
    c.hills(horizon + 0.15, 0.05, (226, 160, 88), waves=0.9)
    c.hills(horizon + 0.34, 0.04, (212, 142, 74), waves=0.8)


def _snow(c: _Canvas) -> None:
    horizon = c.vary(0.46, 0.54)
    c.gradient([(0, (168, 190, 216)), (0.6, (226, 234, 244)), (1, (226, 234, 244))])
    shift = c.vary(-0.1, 0.1)
    for x, h in ((0.1, 0.24), (0.5, 0.32), (0.92, 0.26)):
        x += shift
        c.polygon([(x - 0.36, horizon + 0.08), (x, horizon - h), (x + 0.36, horizon + 0.08)], (158, 174, 202))
        c.polygon([(x - 0.11, horizon - 0.68 * h), (x, horizon - h), (x + 0.11, horizon - 0.68 * h),
            (x, horizon - 0.6 * h)], (246, 249, 253))
    c.hills(horizon + 0.04, 0.03, (234, 240, 248))
    c.hills(horizon + 0.22, 0.035, (246, 249, 253), waves=0.9)
    for _ in range(22):
        c.oval(c.vary(0, 1), c.vary(0, 1), 0.009, 0.009, (255, 255, 255))


def _room(c: _Canvas) -> None:
    floor, wall = c.vary(0.66, 0.72), (206, 188, 206)
    c.gradient([(0, wall), (floor, (222, 208, 220))])
    for k in range(8):
        c.box(k / 8, 0, k / 8 + 1 / 16, floor, mix(wall, second=(232, 220, 230), weight=0.6))
    x = c.vary(0.06, 0.62)
    c.box(x, 0.1, x + 0.32, 0.42, (250, 250, 250))
    c.box(x + 0.025, 0.125, x + 0.295, 0.395, (176, 218, 240))
    c.box(x + 0.15, 0.1, x + 0.17, 0.42, (250, 250, 250))
    c.box(x, 0.25, x + 0.32, 0.27, (250, 250, 250))
    c.gradient([(floor, (190, 140, 98)), (1, (166, 116, 78))])
    for k in range(1, 4):
        y = floor + (1 - floor) * k / 4
        c.line([(0, y), (1, y)], (150, 102, 68), 0.008)
    c.box(0, floor - 0.035, 1, floor, (246, 240, 240))


def _sea(c: _Canvas) -> None:
    horizon = c.vary(0.24, 0.32)
    c.gradient([(0, (150, 196, 226)), (horizon, (232, 240, 240))])
    c.clouds((248, 250, 252), low=0.07, high=0.15)
    c.gradient([(horizon, (52, 130, 180)), (1, (14, 66, 124))])
    for row in range(6):
        y, shift = horizon + 0.07 + row * 0.12, c.vary(0, 0.3)
        colour = mix((130, 196, 222), second=(40, 106, 164), weight=row / 7)
        for k in range(-1, 4):
            x = shift + k * 0.3 + 0.05 * (row % 2)
            c.line([(x + 0.02 * t, y + 0.014 * math.sin(math.pi * t / 3.5)) for t in range(8)], colour, 0.014)


def _city(c: _Canvas) -> None:
    c.gradient([(0, (92, 70, 148)), (0.36, (222, 104, 140)), (0.68, (252, 172, 112)), (1, (255, 214, 130))])
    c.oval(c.vary(0.15, 0.85), c.vary(0.5, 0.6), 0.13, 0.13, (255, 232, 160))
    x = -c.vary(0.0, 0.08)
    k = 0
    while x < 1:
        width, top = c.vary(0.1, 0.17), c.vary(0.56, 0.78)
        c.box(x, top, x + width, 1, (104, 66, 118) if k % 2 else (84, 54, 104))
        for row in range(int((0.98 - top) / 0.075)):
            for column in (0.24, 0.62):
                if c.vary(0, 1) < 0.6:
                    left, upper = x + column * width, top + 0.03 + row * 0.075
                    c.box(left, upper, left + 0.024, upper + 0.034, (250, 206, 130))
        x, k = x + width, k + 1


#: Background -> how a caption names it, and its drawing.
BACKGROUNDS: dict[str, tuple[str, Callable[[_Canvas], None]]] = {
    "meadow": ("in a meadow", _meadow),
    "beach": ("on a beach", _beach),
    "night": ("at night", _night),
    "desert": ("in a desert", _desert),
    "snow": ("in the snow", _snow),
    "room": ("in a room", _room),
    "sea": ("at sea", _sea),
    "city": ("in a city", _city),
}


def draw_background(name: str, *, side: int, generator: np.random.Generator) -> Image.Image:
    """Draw one background.

    Parameters
    ----------
    name : str
        A key of `BACKGROUNDS`.
    side : int
        Side of the square picture, in pixels.
    generator : numpy.random.Generator
        Decides what varies: horizon, hills, clouds, stars, skyline.

    Returns
    -------
    PIL.Image.Image
        Picture (side, side), mode RGB.

    Raises
    ------
    ValueError
        If the background is unknown.
    """
    if name not in BACKGROUNDS:
        raise ValueError(f"background: expected one of {', '.join(BACKGROUNDS)}, got {name!r}. "
                         "Choose one of BACKGROUNDS.")
    canvas = _Canvas(side, generator=generator)
    BACKGROUNDS[name][1](canvas)
    return canvas.image
