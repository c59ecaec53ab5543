"""Drawings of living things: animals, fruit and plants, in the unit box and tones of `drawing.Pen`."""

from __future__ import annotations

import math
from collections.abc import Callable

from brain2img.simulate.drawing import Pen, mirrored


def _leaf(pen: Pen, x: float, y: float, length: float, turn: float) -> None:
    """Green leaf with its middle vein, starting at (x, y) and pointing to `turn` degrees (0 = right, clockwise)."""
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    outline = [(0, 0), (0.35, -0.24), (0.75, -0.18), (1, 0), (0.75, 0.18), (0.35, 0.24)]
    place = [(x + length * (c * u - s * v), y + length * (s * u + c * v)) for u, v in outline]
    pen.blob(place, tone="leaf")
    pen.line([(x, y), (x + 0.8 * length * c, y + 0.8 * length * s)], tone="leaf_dark", width=0.05)


def _eye(pen: Pen, x: float, y: float, size: float) -> None:
    """Round eye with a white glint."""
    pen.oval((x, y, size, size), tone="white")
    pen.oval((x + 0.15 * size, y, 0.68 * size, 0.68 * size), tone="ink", edge=False)
    pen.oval((x - 0.05 * size, y - 0.25 * size, 0.25 * size, 0.25 * size), tone="white", edge=False)


def _apple(pen: Pen) -> None:
    pen.blob(mirrored([(0, -0.44), (0.34, -0.6), (0.76, -0.44), (0.92, 0.04), (0.72, 0.6), (0.34, 0.92), (0, 0.82)]))
    pen.oval((-0.42, -0.12, 0.16, 0.27), tone="light", turn=20, edge=False)
    pen.blob([(-0.24, -0.47), (0, -0.4), (0.24, -0.47), (0, -0.32)], tone="dark", edge=False)
    pen.line([(0, -0.38), (0.02, -0.65), (0.1, -0.92)], tone="wood_dark", width=0.13, smooth=True)
    _leaf(pen, 0.06, -0.62, 0.62, -22)


def _banana(pen: Pen) -> None:
    pen.blob(
        [(-0.7, -0.82), (-0.86, -0.2), (-0.62, 0.4), (-0.1, 0.78), (0.48, 0.78), (0.92, 0.42), (0.9, 0.24),
         (0.45, 0.3), (0.04, 0.12), (-0.28, -0.28), (-0.48, -0.84)]
    )  # fmt: skip
    pen.blob(
        [(-0.84, -0.1), (-0.62, 0.4), (-0.1, 0.78), (0.48, 0.78), (0.9, 0.44), (0.42, 0.56), (-0.1, 0.46),
            (-0.52, 0.2)],
        tone="dark",
        edge=False,
    )
    pen.line([(-0.6, -0.6), (-0.62, -0.2), (-0.42, 0.14), (-0.06, 0.36), (0.4, 0.46)], tone="light", width=0.08,
        smooth=True)
    pen.polygon([(-0.72, -0.76), (-0.68, -1.0), (-0.52, -1.0), (-0.46, -0.76)], tone="wood_dark")
    pen.oval((0.92, 0.33, 0.09, 0.11), tone="wood_dark")


def _pear(pen: Pen) -> None:
    pen.blob(mirrored([(0, -0.66), (0.27, -0.56), (0.36, -0.12), (0.66, 0.26), (0.66, 0.68), (0.34, 0.94), (0, 0.92)]))
    pen.oval((-0.36, 0.38, 0.13, 0.27), tone="light", turn=18, edge=False)
    pen.line([(0, -0.62), (0.03, -0.78), (0.12, -0.98)], tone="wood_dark", width=0.12, smooth=True)
    _leaf(pen, 0.06, -0.74, 0.6, -8)


def _cherry(pen: Pen) -> None:
    for x, y in ((-0.46, 0.5), (0.48, 0.42)):
        pen.line([(x, y - 0.3), (0.5 * x + 0.08, -0.3), (0.22, -0.86)], tone="leaf_dark", width=0.1, smooth=True,
            edge=True)
    _leaf(pen, 0.22, -0.8, 0.76, 32)
    for x, y in ((-0.46, 0.5), (0.48, 0.42)):
        pen.blob([(x, y - 0.38), (x + 0.26, y - 0.42), (x + 0.46, y), (x + 0.28, y + 0.4), (x, y + 0.46),
                  (x - 0.28, y + 0.4), (x - 0.46, y), (x - 0.26, y - 0.42)])  # fmt: skip
        pen.oval((x - 0.18, y - 0.12, 0.1, 0.15), tone="light", turn=25, edge=False)


def _strawberry(pen: Pen) -> None:
    pen.blob(mirrored([(0, -0.5), (0.5, -0.56), (0.8, -0.2), (0.62, 0.36), (0.28, 0.8), (0, 0.97)]))
    for x, y in ((-0.5, -0.16), (0, -0.08), (0.5, -0.16), (-0.28, 0.2), (0.28, 0.2), (0, 0.48), (-0.22, 0.62),
        (0.24, 0.6)):
        pen.oval((x, y, 0.06, 0.095), tone="cream", edge=False)
    for turn in (160, 126, 90, 54, 20):
        _leaf(pen, 0, -0.6, 0.58 if turn in (160, 20) else 0.42, turn)
    pen.line([(0, -0.6), (0.08, -0.94)], tone="leaf_dark", width=0.13, edge=True)


def _pineapple(pen: Pen) -> None:
    for turn in (-160, -20, -135, -45, -112, -68, -90):
        _leaf(pen, 0, -0.16, 0.82 if abs(turn + 90) < 40 else 0.64, turn)
    pen.oval((0, 0.36, 0.54, 0.62))
    for offset in (-0.66, -0.22, 0.22, 0.66):
        # Diagonal chords of the body, as a unit circle that is then stretched: they end at its border.
        reach = math.sqrt(1 - offset**2) - 0.04
        chord = [((offset + t * reach) / math.sqrt(2), (offset - t * reach) / math.sqrt(2)) for t in (-1, 1)]
        for side in (-1, 1):
            pen.line([(side * 0.54 * u, 0.36 + 0.62 * v) for u, v in chord], tone="dark", width=0.07)
    for x, y in ((0, 0.36), (0, -0.03), (0, 0.75), (-0.33, 0.36), (0.33, 0.36)):
        pen.oval((x, y, 0.06, 0.06), tone="light", edge=False)


def _cat(pen: Pen) -> None:
    pen.line([(0.34, 0.8), (0.8, 0.78), (0.86, 0.4), (0.7, 0.1)], width=0.17, tone="main", smooth=True, edge=True)
    pen.blob(mirrored([(0, -0.05), (0.32, 0.1), (0.5, 0.6), (0.44, 0.95), (0, 0.97)]))
    pen.oval((0, 0.62, 0.22, 0.3), tone="light", edge=False)
    for side in (-1, 1):
        pen.oval((side * 0.24, 0.9, 0.17, 0.1), tone="light")
        pen.polygon([(side * 0.6, -0.98), (side * 0.1, -0.66), (side * 0.62, -0.32)])
        pen.polygon([(side * 0.52, -0.8), (side * 0.28, -0.64), (side * 0.54, -0.48)], tone="blush", edge=False)
    pen.blob(mirrored([(0, -0.74), (0.4, -0.68), (0.66, -0.34), (0.5, 0.02), (0, 0.16)]))
    for side in (-1, 1):
        pen.oval((side * 0.27, -0.32, 0.13, 0.15), tone="white")
        pen.oval((side * 0.27, -0.31, 0.06, 0.12), tone="ink", edge=False)
        for drop in (-0.1, 0.04):
            pen.line([(side * 0.3, -0.06 + drop / 3), (side * 0.82, -0.06 + drop)], tone="edge", width=0.04)
    pen.oval((0, 0.02, 0.26, 0.1), tone="pale", edge=False)
    pen.polygon([(-0.1, -0.12), (0.1, -0.12), (0, 0.0)], tone="blush")


def _elephant(pen: Pen) -> None:
    pen.line([(0.84, 0.0), (0.96, 0.22), (0.94, 0.4)], tone="dark", width=0.08, smooth=True)
    for x in (0.06, 0.6):
        pen.box((x - 0.15, 0.3, x + 0.15, 0.86), tone="dark", radius=0.08)
    pen.oval((0.3, 0.08, 0.62, 0.52))
    for x in (-0.14, 0.42):
        pen.box((x - 0.17, 0.3, x + 0.17, 0.92), radius=0.08)
        for toe in (-0.09, 0.03):
            pen.oval((x + toe + 0.02, 0.87, 0.05, 0.045), tone="pale", edge=False)
    pen.box((-0.12, 0.2, 0.56, 0.5), edge=False)
    pen.line([(-0.62, 0.0), (-0.84, 0.3), (-0.82, 0.68), (-0.6, 0.74)], tone="main", width=0.25, smooth=True, edge=True)
    pen.oval((-0.44, -0.22, 0.43, 0.42))
    pen.oval((-0.68, 0.0, 0.2, 0.2), edge=False)
    pen.line([(-0.6, 0.2), (-0.56, 0.4), (-0.68, 0.46)], tone="white", width=0.1, smooth=True, edge=True)
    pen.blob([(-0.28, -0.62), (0.06, -0.72), (0.26, -0.3), (0.14, 0.14), (-0.1, 0.2), (-0.28, -0.1)], tone="light")
    pen.oval((-0.58, -0.28, 0.075, 0.085), tone="ink", edge=False)
    pen.oval((-0.6, -0.31, 0.026, 0.026), tone="white", edge=False)


def _duck(pen: Pen) -> None:
    pen.blob(
        [(-0.3, 0.0), (-0.1, 0.16), (0.3, 0.12), (0.62, -0.02), (0.96, -0.18), (0.9, 0.4), (0.56, 0.8), (0, 0.9),
            (-0.5, 0.78),
         (-0.72, 0.36), (-0.6, 0.02)]
    )  # fmt: skip
    pen.oval((-0.36, -0.36, 0.43, 0.43))
    pen.oval((-0.38, -0.02, 0.24, 0.2), edge=False)
    pen.blob([(-0.1, 0.34), (0.3, 0.26), (0.66, 0.22), (0.5, 0.56), (0.16, 0.66), (-0.1, 0.54)], tone="light")
    pen.blob([(-0.7, -0.4), (-0.98, -0.36), (-1.0, -0.2), (-0.74, -0.12), (-0.6, -0.24)], tone="flame")
    pen.line([(-0.98, -0.27), (-0.7, -0.26)], tone="wood_dark", width=0.05)
    _eye(pen, -0.46, -0.46, 0.12)


def _fish(pen: Pen) -> None:
    pen.blob([(0.34, 0.0), (0.7, -0.34), (0.97, -0.5), (0.86, 0.0), (0.97, 0.5), (0.7, 0.34)], tone="dark")
    pen.blob([(-0.4, -0.36), (-0.1, -0.82), (0.34, -0.76), (0.3, -0.3)], tone="dark")
    pen.blob([(-0.12, 0.4), (0.08, 0.8), (0.34, 0.72), (0.3, 0.3)], tone="dark")
    pen.blob([(-0.95, 0.02), (-0.62, -0.38), (-0.1, -0.52), (0.34, -0.3), (0.56, 0.0), (0.34, 0.3), (-0.1, 0.52),
        (-0.62, 0.4)])
    pen.blob([(-0.86, 0.12), (-0.3, 0.26), (0.3, 0.14), (0.44, 0.14), (0.3, 0.3), (-0.1, 0.5),
        (-0.6, 0.38)], tone="light", edge=False)
    pen.line([(-0.34, -0.4), (-0.22, 0.0), (-0.36, 0.38)], tone="edge", width=0.06, smooth=True)
    for x, y in ((0.02, -0.18), (0.26, -0.1), (0.06, 0.1), (0.3, 0.1)):
        pen.line([(x, y - 0.1), (x + 0.08, y), (x, y + 0.1)], tone="dark", width=0.06, smooth=True)
    _eye(pen, -0.58, -0.12, 0.15)
    pen.line([(-0.9, 0.14), (-0.76, 0.16)], tone="ink", width=0.05)


def _turtle(pen: Pen) -> None:
    pen.polygon([(0.72, 0.36), (0.98, 0.5), (0.7, 0.52)], tone="pale")
    for x in (-0.4, 0.46):
        pen.blob([(x - 0.2, 0.3), (x + 0.2, 0.3), (x + 0.2, 0.78), (x, 0.84), (x - 0.2, 0.78)], tone="pale")
    pen.line([(-0.5, 0.36), (-0.7, 0.1)], tone="pale", width=0.24, edge=True)
    pen.oval((-0.74, -0.04, 0.24, 0.24), tone="pale")
    pen.box((-0.62, 0.12, -0.42, 0.42), tone="pale", edge=False)
    pen.blob([(-0.58, 0.4), (-0.46, -0.16), (-0.1, -0.54), (0.3, -0.54), (0.66, -0.16), (0.8, 0.4), (0.1, 0.5)])
    pen.polygon([(-0.12, -0.28), (0.34, -0.28), (0.46, 0.06), (0.1, 0.28), (-0.26, 0.06)], tone="light")
    for start, end in (((-0.12, -0.28), (-0.22, -0.44)), ((0.34, -0.28), (0.42, -0.42)), ((0.46, 0.06), (0.72, 0.1)),
        ((-0.26, 0.06), (-0.5, 0.1)), ((0.1, 0.28), (0.1, 0.46))):
        pen.line([start, end], tone="edge", width=0.06)
    pen.line([(-0.58, 0.4), (0.1, 0.5), (0.8, 0.4)], tone="dark", width=0.14, smooth=True, edge=True)
    pen.oval((-0.8, -0.1, 0.06, 0.07), tone="ink", edge=False)
    pen.line([(-0.94, 0.04), (-0.78, 0.08)], tone="ink", width=0.045)


def _butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.blob([(side * x, y) for x, y in ((0.04, 0.1), (0.4, 0.06), (0.78, 0.3), (0.7, 0.78), (0.36, 0.84),
            (0.1, 0.44))], tone="light")
        pen.oval((side * 0.46, 0.46, 0.17, 0.19), tone="dark", edge=False)
        pen.blob([(side * x, y) for x, y in ((0.04, 0.12), (0.16, -0.42), (0.6, -0.86), (0.96, -0.74), (0.9, -0.16),
            (0.5, 0.14))])
        pen.oval((side * 0.58, -0.4, 0.2, 0.24), tone="pale", turn=side * 30)
        pen.oval((side * 0.84, -0.62, 0.07, 0.07), tone="white", edge=False)
        pen.line([(side * 0.03, -0.5), (side * 0.12, -0.76), (side * 0.28, -0.94)], tone="ink", width=0.06, smooth=True)
        pen.oval((side * 0.28, -0.93, 0.06, 0.06), tone="ink", edge=False)
    pen.oval((0, 0.1, 0.1, 0.56), tone="ink", edge=False)
    pen.oval((0, -0.46, 0.13, 0.13), tone="ink", edge=False)


def _tree(pen: Pen) -> None:
    pen.polygon([(-0.16, 0.1), (0.16, 0.1), (0.16, 0.74), (0.3, 0.96), (-0.3, 0.96), (-0.16, 0.74)], tone="wood")
    pen.line([(0.08, 0.5), (0.34, 0.2)], tone="wood", width=0.12, edge=True)
    crown = ((-0.52, 0.04, 0.4), (0.52, 0.04, 0.4), (-0.36, -0.42, 0.42), (0.36, -0.42, 0.42), (0, -0.56, 0.42),
        (0, 0.0, 0.5))
    for x, y, r in crown:
        pen.oval((x, y, r, r))
    for x, y, r in crown:
        pen.oval((x, y, r - 0.05, r - 0.05), edge=False)
    for x, y in ((-0.34, -0.52), (0.28, -0.28), (-0.48, 0.0), (0.12, 0.12), (0.56, 0.06)):
        pen.line([(x - 0.14, y + 0.08), (x, y - 0.05), (x + 0.14, y + 0.04)], tone="light", width=0.09, smooth=True)


def _fir(pen: Pen) -> None:
    pen.box((-0.14, 0.62, 0.14, 0.97), tone="wood")
    for top, bottom, half in ((0.02, 0.72, 0.76), (-0.46, 0.3, 0.6), (-0.97, -0.14, 0.44)):
        pen.polygon([(0, top), (half, bottom), (half * 0.5, bottom - 0.07), (0, bottom + 0.03),
            (-half * 0.5, bottom - 0.07), (-half, bottom)])
        pen.line([(-half * 0.18, top + 0.34), (-half * 0.55, bottom - 0.14)], tone="light", width=0.09)


def _palm(pen: Pen) -> None:
    pen.blob([(-0.3, 0.96), (-0.24, 0.5), (-0.06, 0.0), (0.0, -0.4), (0.16, -0.36), (0.14, 0.06), (0.04, 0.5),
        (0.06, 0.96)], tone="wood")
    for y, x in ((0.68, -0.1), (0.4, -0.04), (0.12, 0.03)):
        pen.line([(x - 0.14, y), (x + 0.15, y + 0.02)], tone="wood_dark", width=0.06)
    fronds = (
        ((0.06, -0.44), (-0.3, -0.86), (-0.7, -0.9), (-0.96, -0.6), (-0.6, -0.66), (-0.3, -0.52)),
        ((0.06, -0.44), (0.4, -0.88), (0.76, -0.9), (0.98, -0.58), (0.64, -0.66), (0.36, -0.52)),
        ((0.06, -0.44), (-0.4, -0.52), (-0.74, -0.28), (-0.84, 0.12), (-0.56, -0.14), (-0.26, -0.26)),
        ((0.06, -0.44), (0.46, -0.52), (0.8, -0.28), (0.9, 0.12), (0.62, -0.14), (0.32, -0.26)),
        ((0.06, -0.44), (-0.08, -0.74), (0.04, -0.99), (0.22, -0.98), (0.28, -0.7)),
    )
    for frond in fronds:
        pen.blob(frond)
    for side in (-1, 1):
        pen.line([(0.06, -0.46), (0.06 + side * 0.34, -0.68), (0.06 + side * 0.72, -0.76)], tone="light", width=0.06,
            smooth=True)
        pen.line([(0.06, -0.42), (0.06 + side * 0.4, -0.38), (0.06 + side * 0.72, -0.12)], tone="light", width=0.06,
            smooth=True)
    for x in (-0.06, 0.2):
        pen.oval((x, -0.36, 0.12, 0.12), tone="wood_dark")


def _cactus(pen: Pen) -> None:
    for arm in (((-0.1, 0.24), (-0.56, 0.2), (-0.6, -0.3)), ((0.1, 0.06), (0.56, 0.02), (0.6, -0.5))):
        pen.line(arm, tone="main", width=0.28, edge=True)
    pen.box((-0.26, -0.92, 0.26, 0.66), radius=0.25)
    for side, y in ((-1, 0.22), (1, 0.04)):
        pen.box((min(side * 0.3, side * 0.1), y - 0.1, max(side * 0.3, side * 0.1), y + 0.1), edge=False)
    for x in (-0.1, 0.1):
        pen.line([(x, -0.66), (x, 0.44)], tone="dark", width=0.06)
    for x, y in ((-0.6, -0.2), (-0.6, 0.04), (0.6, -0.4), (0.6, -0.12), (0, -0.5), (0, -0.1), (0, 0.3)):
        pen.line([(x, y), (x, y - 0.1)], tone="pale", width=0.06)
    pen.oval((0, -0.9, 0.13, 0.11), tone="blush")
    pen.polygon([(-0.4, 0.58), (0.4, 0.58), (0.32, 0.97), (-0.32, 0.97)], tone="wood")
    pen.box((-0.46, 0.5, 0.46, 0.68), tone="wood", radius=0.04)


def _daisy(pen: Pen) -> None:
    pen.line([(0, 0.1), (0.04, 0.5), (0, 0.95)], tone="leaf", width=0.12, smooth=True, edge=True)
    _leaf(pen, 0.02, 0.84, 0.56, -36)
    _leaf(pen, 0.0, 0.84, 0.56, 216)
    for k in range(9):
        angle = 2 * math.pi * k / 9 - math.pi / 2
        pen.oval((0.44 * math.cos(angle), -0.3 + 0.44 * math.sin(angle), 0.26, 0.17), turn=math.degrees(angle))
    pen.oval((0, -0.3, 0.24, 0.24), tone="gold")
    for x, y in ((-0.07, -0.36), (0.08, -0.34), (0, -0.24)):
        pen.oval((x, y, 0.035, 0.035), tone="wood", edge=False)


def _tulip(pen: Pen) -> None:
    pen.line([(0, 0.0), (0, 0.95)], tone="leaf", width=0.12, edge=True)
    pen.blob([(0, 0.94), (-0.34, 0.74), (-0.56, 0.28), (-0.52, 0.1), (-0.26, 0.4)], tone="leaf")
    pen.blob([(0, 0.94), (0.34, 0.74), (0.56, 0.28), (0.52, 0.1), (0.26, 0.4)], tone="leaf")
    pen.polygon([(-0.28, -0.4), (0, -0.97), (0.28, -0.4)], tone="dark")
    for side in (-1, 1):
        pen.blob([(side * x, y) for x, y in ((0.54, -0.9), (0.6, -0.3), (0.36, 0.1), (0, 0.2), (-0.06, -0.1),
            (0.2, -0.5))])
    pen.blob(mirrored([(0, -0.74), (0.26, -0.34), (0.2, 0.04), (0, 0.18)]), tone="light")


LIVING: dict[str, Callable[[Pen], None]] = {
    "cat": _cat,
    "elephant": _elephant,
    "duck": _duck,
    "fish": _fish,
    "turtle": _turtle,
    "butterfly": _butterfly,
    "apple": _apple,
    "banana": _banana,
    "pear": _pear,
    "cherry": _cherry,
    "strawberry": _strawberry,
    "pineapple": _pineapple,
    "tree": _tree,
    "fir": _fir,
    "palm": _palm,
    "cactus": _cactus,
    "daisy": _daisy,
    "tulip": _tulip,
}
