"""The kinds of objects of the simulated study: their categories, their colours, and how one is put on a picture."""

from __future__ import annotations

from PIL import Image

from brain2img.simulate.drawing import RGB, Pen
from brain2img.simulate.shapes_built import BUILT
from brain2img.simulate.shapes_living import LIVING
from brain2img.simulate.shapes_things import THINGS

#: Kinds of each category. The order is part of the partition of concepts (`scenes.concepts`): do not change it.
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "elephant", "duck", "fish", "turtle", "butterfly"),
    "fruit": ("apple", "banana", "pear", "cherry", "strawberry", "pineapple"),
    "plant": ("tree", "fir", "palm", "cactus", "daisy", "tulip"),
    "vehicle": ("car", "bus", "train", "boat", "airplane", "rocket"),
    "building": ("house", "castle", "lighthouse", "windmill", "tent", "church"),
    "household": ("mug", "teapot", "chair", "lamp", "clock", "umbrella"),
    "clothing": ("hat", "shirt", "trousers", "dress", "shoe", "sock"),
    "dessert": ("cake", "cupcake", "donut", "lollipop", "popsicle", "candy"),
}

#: Kind of object -> its superordinate category; 48 kinds, six of each of eight categories.
KINDS: dict[str, str] = {kind: category for category, kinds in _CATEGORIES.items() for kind in kinds}

#: Name of a colour -> RGB in 0..255. The order is part of the partition of concepts too.
COLOURS: dict[str, RGB] = {
    "red": (222, 44, 48),
    "orange": (250, 138, 24),
    "yellow": (252, 220, 52),
    "green": (58, 172, 76),
    "blue": (40, 104, 222),
    "purple": (138, 66, 184),
    "pink": (250, 142, 190),
    "brown": (134, 84, 48),
    "white": (246, 246, 248),
    "black": (52, 50, 58),
}

_DRAWINGS = LIVING | BUILT | THINGS
assert set(_DRAWINGS) == set(KINDS)


def draw_object(
    canvas: Image.Image, *, kind: str, colour: str, centre: tuple[float, float], scale: float
) -> None:
    """Draw one object on an oversampled picture.

    Parameters
    ----------
    canvas : PIL.Image.Image
        Square picture, mode RGB, changed in place.
    kind : str
        A key of `KINDS`.
    colour : str
        A key of `COLOURS`.
    centre : tuple of float
        Middle of the object, as fractions of the picture's side: x to the right, y down, in [0, 1].
    scale : float
        Side of the object's box as a fraction of the picture's side, in (0, 1].

    Raises
    ------
    ValueError
        If the kind or the colour is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of object: expected one of {', '.join(KINDS)}, got {kind!r}. "
                         "Choose one of shapes.KINDS.")
    if colour not in COLOURS:
        raise ValueError(f"colour: expected one of {', '.join(COLOURS)}, got {colour!r}. Choose one of shapes.COLOURS.")
    side = canvas.width
    pen = Pen(scale * side, colour=COLOURS[colour], picture=side)
    _DRAWINGS[kind](pen)
    pen.stamp(canvas, centre=(centre[0] * side, centre[1] * side))
