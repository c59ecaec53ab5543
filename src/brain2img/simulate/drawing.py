"""A pen for flat cartoon objects: filled shapes in unit coordinates, on a transparent tile with a dark outline.

Every object of the simulated study is drawn in the box [-1, 1] x [-1, 1] (x to the right, y down) and in named tones
derived from one main colour, so that a drawing says nothing about where, how large or in which colour it will appear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Points = Sequence[tuple[float, float]]

#: Supersampling: everything is drawn this many times larger and averaged down, which is the antialiasing.
OVERSAMPLING = 4

#: The tile reaches a little beyond the unit box, so that the outline of a shape at its border is not cut.
_REACH = 1.16

#: Tones that belong to the thing and not to its colour: leaves are green on a blue apple too.
_FIXED_TONES: dict[str, RGB] = {
    "ink": (38, 32, 44),
    "white": (252, 252, 250),
    "cream": (250, 234, 200),
    "leaf": (88, 168, 78),
    "leaf_dark": (52, 122, 66),
    "wood": (146, 98, 58),
    "wood_dark": (104, 68, 42),
    "glass": (190, 228, 246),
    "metal": (158, 166, 180),
    "gold": (250, 204, 72),
    "flame": (252, 150, 46),
    "blush": (244, 150, 160),
    "dough": (226, 172, 104),
}


def mix(first: RGB, *, second: RGB, weight: float) -> RGB:
    """Blend two colours linearly.

    Parameters
    ----------
    first, second : tuple of int
        Colours, RGB in 0..255.
    weight : float
        Share of `second`, in [0, 1].

    Returns
    -------
    tuple of int
        RGB in 0..255.
    """
    red, green, blue = (round(a + (b - a) * weight) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=64)
def tones(colour: RGB) -> dict[str, RGB]:
    """Name the tones a drawing may use, given the main colour of the object.

    Parameters
    ----------
    colour : tuple of int
        Main colour, RGB in 0..255.

    Returns
    -------
    dict
        Tone name -> RGB: ``main``, ``light``, ``pale``, ``dark``, ``edge`` and fixed ones (``ink``, ``leaf``, ...).
    """
    red, green, blue = colour
    gloomy = 0.30 * red + 0.59 * green + 0.11 * blue < 70
    derived = {
        "main": colour,
        "light": mix(colour, second=(255, 255, 255), weight=0.30 if gloomy else 0.45),
        "pale": mix(colour, second=(255, 255, 255), weight=0.72),
        "dark": mix(colour, second=(18, 12, 34), weight=0.60 if gloomy else 0.32),
        # Inner lines of a black object would vanish in a dark tone, so there they are drawn in a lighter one.
        "edge": (mix(colour, second=(255, 255, 255), weight=0.42) if gloomy
                 else mix(colour, second=(24, 16, 34), weight=0.72)),
    }
    return _FIXED_TONES | derived


def mirrored(points: Points) -> list[tuple[float, float]]:
    """Complete the right half of a symmetric outline.

    Parameters
    ----------
    points : sequence of (float, float)
        Right half from the top to the bottom, unit coordinates; points on the axis (x = 0) are not doubled.

    Returns
    -------
    list of (float, float)
        The closed outline, clockwise.
    """
    return list(points) + [(-x, y) for x, y in reversed(points) if abs(x) > 1e-9]


@lru_cache(maxsize=4096)
def _smooth(points: tuple[tuple[float, float], ...], closed: bool) -> np.ndarray:
    """Catmull-Rom curve through `points`: array (n, 2) in unit coordinates, seven points a span."""
    knots = np.asarray(points, dtype=np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([knots[:1], knots, knots[-1:]])
    t = np.linspace(0.0, 1.0, 7, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (knots[i : len(knots) - 3 + i, None, :] for i in range(4))
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, knots[-1:]])


@lru_cache(maxsize=4096)
def _oval(x: float, y: float, rx: float, ry: float, turn: float) -> np.ndarray:
    """Ellipse as a polygon: array (40, 2) in unit coordinates; `turn` in degrees, clockwise."""
    angle = np.linspace(0.0, 2 * math.pi, 40, endpoint=False)
    u, v = rx * np.cos(angle), ry * np.sin(angle)
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return np.stack([x + c * u - s * v, y + s * u + c * v], axis=1)


@lru_cache(maxsize=1024)
def _rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Rectangle with round corners as a polygon: array (n, 2) in unit coordinates."""
    if radius <= 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    quarter = np.linspace(0.0, math.pi / 2, 7)
    left, right, top, bottom = x0 + radius, x1 - radius, y0 + radius, y1 - radius
    arcs = []
    for k, (cx, cy) in enumerate(((right, bottom), (left, bottom), (left, top), (right, top))):
        angle = quarter + k * math.pi / 2
        arcs.append(np.stack([cx + radius * np.cos(angle), cy + radius * np.sin(angle)], axis=1))
    return np.concatenate(arcs)


class Pen:
    """Draws one object on its own transparent tile, in unit coordinates and named tones.

    Parameters
    ----------
    diameter : float
        Side of the unit box, in pixels of the oversampled picture.
    colour : tuple of int
        Main colour of the object, RGB in 0..255.
    picture : int
        Side of the oversampled picture, in pixels; widths of lines follow it, so that they do not depend on the object.
    """

    def __init__(self, diameter: float, *, colour: RGB, picture: int) -> None:
        self._unit = diameter / 2
        self._side = max(8, math.ceil(2 * _REACH * self._unit))
        self._tones = tones(colour)
        self._tile = Image.new("RGBA", (self._side, self._side), (*colour, 0))
        self._draw = ImageDraw.Draw(self._tile)
        # 0.7 pixel of a 64-pixel picture, thinner in a small object, where such a line would swallow the details.
        self._edge = max(1, round(min(picture * 0.7 / 64, 0.055 * self._unit)))
        self._outline = max(1, round(picture * 1.0 / 64))
        self._halo = max(1, round(picture * 0.6 / 64))

    def _pixels(self, points: np.ndarray | Points) -> list[tuple[float, float]]:
        """Unit coordinates (n, 2) -> pixels of the tile."""
        scaled = np.asarray(points, dtype=np.float64) * self._unit + self._side / 2
        return [(x, y) for x, y in scaled.tolist()]

    def _fill(self, points: np.ndarray | Points, tone: str | None, edge: bool) -> None:
        """Fill a polygon with a tone (None cuts a hole) and draw its border."""
        pixels = self._pixels(points)
        self._draw.polygon(pixels, fill=(0, 0, 0, 0) if tone is None else self._tones[tone])
        if edge and tone is not None:
            self._draw.line([*pixels, *pixels[:2]], fill=self._tones["edge"], width=self._edge, joint="curve")

    def oval(self, geometry: tuple[float, float, float, float], *, tone: str | None = "main", turn: float = 0.0,
             edge: bool = True) -> None:
        """Draw an ellipse.

        Parameters
        ----------
        geometry : tuple of float
            Centre x, centre y, radius x, radius y, in units.
        tone : str or None
            Tone of the inside; None cuts a hole.
        turn : float
            Rotation about the centre in degrees, clockwise.
        edge : bool
            Draw the border.
        """
        self._fill(_oval(*geometry, turn), tone, edge)

    def polygon(self, points: Points, *, tone: str | None = "main", edge: bool = True) -> None:
        """Draw a polygon with straight sides; `points` in units, the rest as in `oval`."""
        self._fill(points, tone, edge)

    def blob(self, points: Points, *, tone: str | None = "main", edge: bool = True) -> None:
        """Draw a closed smooth curve through `points` (units); the rest as in `oval`."""
        self._fill(_smooth(tuple(points), True), tone, edge)

    def box(self, corners: tuple[float, float, float, float], *, tone: str | None = "main", radius: float = 0.0,
            edge: bool = True) -> None:
        """Draw a rectangle x0, y0, x1, y1 with corners of the given `radius` (units); the rest as in `oval`."""
        self._fill(_rounded(*corners, radius), tone, edge)

    def line(self, points: Points, *, tone: str = "edge", width: float = 0.06, smooth: bool = False,
             edge: bool = False) -> None:
        """Draw a line with round ends.

        Parameters
        ----------
        points : sequence of (float, float)
            Points in units.
        tone : str
            Tone of the line.
        width : float
            Width in units.
        smooth : bool
            Bend the line through the points instead of connecting them straight.
        edge : bool
            Draw a border along the line.
        """
        pixels = self._pixels(_smooth(tuple(points), False) if smooth else points)
        inner = max(1, round(width * self._unit))
        strokes = [(inner + 2 * self._edge, "edge"), (inner, tone)] if edge else [(inner, tone)]
        for stroke, name in strokes:
            colour = self._tones[name]
            self._draw.line(pixels, fill=colour, width=stroke, joint="curve")
            for x, y in (pixels[0], pixels[-1]):
                r = stroke / 2
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def stamp(self, canvas: Image.Image, *, centre: tuple[float, float]) -> None:
        """Put the finished object on a picture: pale halo, dark outline, soft shading, then the object.

        Parameters
        ----------
        canvas : PIL.Image.Image
            Oversampled picture, mode RGB; changed in place.
        centre : tuple of float
            Where the middle of the unit box goes, in pixels of the canvas.
        """
        pad = self._outline + self._halo
        alpha = np.pad(np.asarray(self._tile.getchannel("A")), pad)
        dark = _dilate(alpha, radius=self._outline)
        pale = _dilate(dark, radius=self._halo)
        corner = (round(centre[0] - self._side / 2) - pad, round(centre[1] - self._side / 2) - pad)
        # The outline must show on the night sky as on snow: dark against pale backgrounds, its halo against dark ones.
        canvas.paste((250, 248, 242), corner, Image.fromarray(pale))
        canvas.paste(_FIXED_TONES["ink"], corner, Image.fromarray(dark))
        shade = _shade().resize(self._tile.size, Image.Resampling.BILINEAR)
        shaded = ImageChops.multiply(self._tile.convert("RGB"), shade)
        canvas.paste(shaded, (corner[0] + pad, corner[1] + pad), self._tile.getchannel("A"))


def _dilate(mask: np.ndarray, *, radius: int) -> np.ndarray:
    """Grow a mask (h, w) uint8 by `radius` pixels; crosses and squares alternate, which gives an octagon."""
    grown = mask
    for step in range(radius):
        wide = grown.copy()
        np.maximum(wide[:, 1:], grown[:, :-1], out=wide[:, 1:])
        np.maximum(wide[:, :-1], grown[:, 1:], out=wide[:, :-1])
        source = wide if step % 2 else grown
        tall = wide.copy()
        np.maximum(tall[1:], source[:-1], out=tall[1:])
        np.maximum(tall[:-1], source[1:], out=tall[:-1])
        grown = tall
    return grown


@lru_cache(maxsize=1)
def _shade() -> Image.Image:
    """Soft light from the upper left, as a grey RGB picture to multiply with."""
    y, x = np.mgrid[0:32, 0:32] / 31.0
    depth = np.clip((x + 1.6 * y) / 2.6 - 0.35, 0.0, 1.0) / 0.65
    grey = (255 - 46 * depth).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
