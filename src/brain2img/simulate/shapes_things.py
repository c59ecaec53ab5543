"""Drawings of household things, clothes and desserts, in the unit box and tones of `drawing.Pen`."""

from __future__ import annotations

import math
from collections.abc import Callable

from brain2img.simulate.drawing import Pen, mirrored


def _mug(pen: Pen) -> None:
    for x in (-0.4, -0.06):
        pen.line([(x, -0.56), (x + 0.08, -0.68), (x - 0.02, -0.8), (x + 0.06, -0.94)], tone="white", width=0.09,
            smooth=True)
    pen.oval((0.54, 0.2, 0.42, 0.42))
    pen.oval((0.54, 0.2, 0.22, 0.22), tone=None)
    pen.box((-0.78, -0.38, 0.5, 0.9), radius=0.18)
    pen.box((-0.78, -0.38, 0.5, 0.2), radius=0.04, edge=False)
    pen.box((-0.76, 0.24, 0.48, 0.46), tone="light", edge=False)
    pen.oval((-0.14, -0.38, 0.64, 0.15), tone="pale")
    pen.oval((-0.14, -0.36, 0.52, 0.09), tone="wood_dark", edge=False)


def _teapot(pen: Pen) -> None:
    pen.line([(0.44, -0.14), (0.92, -0.22), (0.9, 0.36), (0.4, 0.46)], tone="dark", width=0.14, smooth=True, edge=True)
    pen.blob([(-0.4, 0.5), (-0.7, 0.36), (-0.84, -0.1), (-0.98, -0.26), (-0.7, -0.3), (-0.56, 0.0), (-0.36, 0.14)])
    pen.blob(mirrored([(0, -0.42), (0.42, -0.32), (0.64, 0.14), (0.5, 0.62), (0.3, 0.78), (0, 0.8)]))
    pen.box((-0.34, 0.72, 0.34, 0.86), tone="dark", radius=0.05)
    pen.blob(mirrored([(0, -0.62), (0.24, -0.54), (0.38, -0.34), (0, -0.28)]), tone="light")
    pen.oval((0, -0.7, 0.11, 0.11), tone="dark")
    pen.oval((-0.3, 0.08, 0.1, 0.2), tone="light", turn=20, edge=False)
    for k in range(5):
        angle = 2 * math.pi * k / 5
        pen.oval((0.14 + 0.13 * math.cos(angle), 0.28 + 0.13 * math.sin(angle), 0.085, 0.085), tone="white", edge=False)
    pen.oval((0.14, 0.28, 0.07, 0.07), tone="gold", edge=False)


def _chair(pen: Pen) -> None:
    for x, foot in ((-0.3, 0.74), (0.52, 0.74)):
        pen.box((x - 0.08, 0.1, x + 0.08, foot), tone="dark")
    for x in (-0.5, 0.34):
        pen.box((x - 0.09, -0.96, x + 0.09, 0.2), radius=0.06)
    for y in (-0.78, -0.38):
        pen.box((-0.46, y - 0.12, 0.3, y + 0.12), tone="light", radius=0.03)
    pen.polygon([(-0.6, 0.0), (0.44, 0.0), (0.72, 0.3), (-0.7, 0.3)])
    pen.box((-0.7, 0.28, 0.72, 0.42), tone="dark", radius=0.03)
    for x in (-0.6, 0.62):
        pen.box((x - 0.09, 0.38, x + 0.09, 0.97))


def _lamp(pen: Pen) -> None:
    pen.line([(0, 0.0), (0, 0.78)], tone="metal", width=0.13, edge=True)
    pen.oval((0, 0.44, 0.2, 0.24), tone="dark")
    pen.blob(mirrored([(0, 0.72), (0.3, 0.78), (0.5, 0.92), (0, 0.96)]), tone="dark")
    pen.polygon([(-0.6, 0.08), (0.6, 0.08), (0.34, 0.3), (-0.34, 0.3)], tone="gold", edge=False)
    pen.polygon([(-0.4, -0.92), (0.4, -0.92), (0.76, 0.1), (-0.76, 0.1)])
    pen.polygon([(-0.27, -0.84), (-0.06, -0.84), (-0.14, 0.02), (-0.52, 0.02)], tone="light", edge=False)
    pen.polygon([(-0.75, 0.02), (0.75, 0.02), (0.78, 0.14), (-0.78, 0.14)], tone="pale")
    pen.line([(0.44, 0.14), (0.44, 0.46)], tone="metal", width=0.05)
    pen.oval((0.44, 0.48, 0.06, 0.06), tone="gold")


def _clock(pen: Pen) -> None:
    for side in (-1, 1):
        pen.line([(side * 0.4, 0.66), (side * 0.6, 0.94)], tone="dark", width=0.17, edge=True)
        pen.oval((side * 0.46, -0.66, 0.34, 0.24), tone="dark", turn=side * 36)
    pen.line([(0, -0.6), (0, -0.9)], tone="metal", width=0.1)
    pen.box((-0.2, -0.98, 0.2, -0.82), tone="metal", radius=0.05)
    pen.oval((0, 0.1, 0.76, 0.76))
    pen.oval((0, 0.1, 0.55, 0.55), tone="white")
    for k in range(12):
        angle = 2 * math.pi * k / 12
        size = 0.06 if k % 3 == 0 else 0.03
        pen.oval((0.45 * math.cos(angle), 0.1 + 0.45 * math.sin(angle), size, size), tone="ink", edge=False)
    pen.line([(0, 0.1), (0, -0.24)], tone="ink", width=0.09)
    pen.line([(0, 0.1), (0.24, 0.24)], tone="ink", width=0.09)


def _umbrella(pen: Pen) -> None:
    pen.line([(0, -0.96), (0, -0.7)], tone="metal", width=0.09)
    pen.line([(0, -0.1), (0, 0.72), (0.12, 0.9), (0.32, 0.86), (0.38, 0.66)], tone="wood", width=0.12, smooth=True,
        edge=True)
    dome = [(math.cos(math.pi + math.pi * k / 16), 0.0 + 0.8 * math.sin(math.pi + math.pi * k / 16)) for k in range(17)]
    scallops = []
    for x0, x1 in ((1.0, 0.42), (0.42, -0.42), (-0.42, -1.0)):
        scallops += [(x0 + (x1 - x0) * t, 0.02 - 0.16 * math.sin(math.pi * t)) for t in (0.15, 0.3, 0.5, 0.7, 0.85,
            1.0)]
    pen.polygon([(0.97 * x, y) for x, y in [*dome, *scallops]])
    pen.blob([(0, -0.8), (0.3, -0.5), (0.41, 0.0), (0.2, -0.12), (0, -0.14), (-0.2, -0.12), (-0.41, 0.0),
        (-0.3, -0.5)], tone="light")
    pen.line([(-0.52, -0.5), (-0.72, -0.2)], tone="light", width=0.09)


def _hat(pen: Pen) -> None:
    pen.oval((0, 0.5, 0.96, 0.28))
    pen.oval((0, 0.46, 0.92, 0.2), tone="dark", edge=False)
    pen.polygon([(-0.56, -0.72), (0.56, -0.72), (0.5, 0.5), (-0.5, 0.5)], edge=False)
    pen.oval((0, 0.5, 0.5, 0.13), edge=False)
    pen.polygon([(-0.52, 0.14), (0.52, 0.14), (0.5, 0.5), (0.26, 0.58), (0, 0.61), (-0.26, 0.58),
        (-0.5, 0.5)], tone="pale")
    for side in (-1, 1):
        pen.line([(side * 0.56, -0.72), (side * 0.5, 0.48)], tone="edge", width=0.04)
    pen.oval((0, -0.72, 0.56, 0.15), tone="light")
    pen.line([(-0.36, -0.46), (-0.32, 0.06)], tone="light", width=0.13)


def _shirt(pen: Pen) -> None:
    pen.polygon(
        mirrored([(0.2, -0.8), (0.5, -0.72), (0.98, -0.26), (0.7, 0.08), (0.5, -0.12), (0.52, 0.88)]),
    )
    for side in (-1, 1):
        pen.line([(side * 0.5, -0.12), (side * 0.48, -0.34)], tone="edge", width=0.05)
        pen.line([(side * 0.88, -0.22), (side * 0.68, 0.0)], tone="light", width=0.1)
    pen.oval((0, -0.8, 0.24, 0.18), tone="dark")
    pen.box((-0.24, -1.05, 0.24, -0.83), tone=None)
    pen.box((-0.52, 0.2, 0.52, 0.42), tone="light", edge=False)
    pen.line([(-0.5, 0.78), (0.5, 0.78)], tone="dark", width=0.07)


def _trousers(pen: Pen) -> None:
    pen.polygon([(-0.5, -0.92), (0.5, -0.92), (0.68, 0.94), (0.14, 0.94), (0, -0.1), (-0.14, 0.94), (-0.68, 0.94)])
    pen.polygon([(-0.5, -0.92), (0.5, -0.92), (0.53, -0.7), (-0.53, -0.7)], tone="dark")
    pen.box((-0.1, -0.92, 0.1, -0.7), tone="gold")
    pen.line([(0, -0.66), (0, -0.1)], tone="edge", width=0.05)
    for side in (-1, 1):
        pen.line([(side * 0.26, -0.66), (side * 0.34, -0.46), (side * 0.54, -0.4)], tone="edge", width=0.05,
            smooth=True)
        pen.line([(side * 0.32, -0.1), (side * 0.4, 0.7)], tone="light", width=0.07)
        pen.line([(side * 0.19, 0.84), (side * 0.62, 0.84)], tone="light", width=0.12)


def _dress(pen: Pen) -> None:
    for side in (-1, 1):
        pen.line([(side * 0.24, -0.6), (side * 0.2, -0.94)], tone="main", width=0.1, edge=True)
    pen.blob([(-0.2, -0.1), (0.2, -0.1), (0.5, 0.4), (0.82, 0.8), (0.42, 0.94), (0, 0.86), (-0.42, 0.94),
        (-0.82, 0.8), (-0.5, 0.4)])
    pen.polygon(mirrored([(0, -0.5), (0.18, -0.66), (0.38, -0.62), (0.3, -0.32), (0.26, 0.0)]))
    for side in (-1, 1):
        pen.line([(side * 0.1, 0.14), (side * 0.26, 0.76)], tone="dark", width=0.07)
    for x, y in ((-0.56, 0.64), (0, 0.6), (0.56, 0.64), (-0.3, 0.34), (0.3, 0.34)):
        pen.oval((x, y, 0.08, 0.08), tone="pale", edge=False)
    pen.box((-0.27, -0.1, 0.27, 0.06), tone="pale", radius=0.03)


def _shoe(pen: Pen) -> None:
    pen.blob([(-0.88, -0.5), (-0.6, -0.44), (-0.3, -0.56), (-0.06, -0.46), (0.3, -0.08), (0.8, 0.08), (0.97, 0.4),
        (0.4, 0.52), (-0.86, 0.5), (-0.92, 0.0)])
    pen.blob([(0.46, 0.04), (0.8, 0.08), (0.97, 0.4), (0.6, 0.46), (0.42, 0.24)], tone="light")
    pen.polygon([(-0.88, -0.34), (-0.64, -0.3), (-0.68, 0.36), (-0.9, 0.36)], tone="dark", edge=False)
    pen.blob([(-0.5, 0.3), (-0.2, 0.1), (0.2, 0.22), (0.3, 0.32), (-0.1, 0.24)], tone="pale", edge=False)
    pen.box((-0.94, 0.36, 0.99, 0.62), tone="white", radius=0.12)
    for x, y in ((-0.1, -0.34), (0.08, -0.16), (0.26, 0.0)):
        pen.line([(x - 0.16, y + 0.1), (x + 0.08, y - 0.08)], tone="white", width=0.09)


def _sock(pen: Pen) -> None:
    pen.blob(
        [(-0.28, -0.6), (0.1, -0.7), (0.4, -0.6), (0.38, 0.0), (0.42, 0.42), (0.2, 0.68), (-0.24, 0.86),
            (-0.66, 0.92), (-0.84, 0.64),
         (-0.62, 0.4), (-0.3, 0.22), (-0.26, -0.1)]
    )  # fmt: skip
    pen.blob([(-0.84, 0.64), (-0.62, 0.42), (-0.46, 0.6), (-0.46, 0.88), (-0.66, 0.92)], tone="pale")
    pen.blob([(0.4, 0.14), (0.44, 0.42), (0.22, 0.66), (0.12, 0.42), (0.2, 0.2)], tone="pale")
    for y in (-0.34, -0.06):
        pen.line([(-0.24, y), (0.36, y)], tone="light", width=0.13)
    pen.box((-0.36, -0.94, 0.48, -0.56), tone="dark", radius=0.09)
    for x in (-0.16, 0.06, 0.28):
        pen.line([(x, -0.84), (x, -0.66)], tone="edge", width=0.05)


def _cake(pen: Pen) -> None:
    for x in (-0.42, 0, 0.42):
        pen.box((x - 0.07, -0.68, x + 0.07, -0.2), tone="white")
        pen.blob([(x, -1.0), (x + 0.1, -0.8), (x, -0.7), (x - 0.1, -0.8)], tone="flame")
    pen.oval((0, 0.8, 0.97, 0.17), tone="white")
    pen.box((-0.78, -0.1, 0.78, 0.8), tone="light", radius=0.08)
    pen.box((-0.76, 0.42, 0.76, 0.56), tone="cream", edge=False)
    pen.polygon(
        [(-0.78, -0.2), (0.78, -0.2), (0.78, 0.2), (0.66, 0.28), (0.52, 0.12), (0.36, 0.34), (0.2, 0.12), (0, 0.3),
            (-0.2, 0.12), (-0.38, 0.36),
         (-0.54, 0.12), (-0.68, 0.26), (-0.78, 0.18)]
    )  # fmt: skip
    pen.oval((0, -0.2, 0.78, 0.16))


def _cupcake(pen: Pen) -> None:
    pen.polygon([(-0.66, 0.2), (0.66, 0.2), (0.44, 0.95), (-0.44, 0.95)], tone="dough")
    for x in (-0.38, -0.13, 0.13, 0.38):
        pen.line([(x, 0.3), (x * 0.74, 0.9)], tone="wood", width=0.06)
    pen.blob(mirrored([(0, -0.02), (0.6, -0.04), (0.82, 0.16), (0.6, 0.34), (0, 0.36)]))
    pen.blob(mirrored([(0, -0.42), (0.44, -0.4), (0.62, -0.16), (0.4, 0.04), (0, 0.08)]))
    pen.blob(mirrored([(0, -0.76), (0.28, -0.64), (0.36, -0.44), (0, -0.28)]))
    for x, y in ((-0.5, 0.16), (0.14, 0.2), (0.42, -0.16), (-0.26, -0.16), (0.1, -0.46)):
        pen.line([(x, y), (x + 0.12, y - 0.07)], tone="pale", width=0.08)
    pen.oval((0, -0.8, 0.17, 0.17), tone="blush")


def _donut(pen: Pen) -> None:
    pen.oval((0, 0.06, 0.94, 0.9), tone="dough")
    outer = [(0.84 + 0.05 * math.cos(8 * a), a) for a in (2 * math.pi * k / 48 for k in range(48))]
    pen.polygon([(r * math.cos(a), -0.02 + 0.94 * r * math.sin(a)) for r, a in outer])
    pen.oval((0, 0.02, 0.34, 0.32), tone="dough")
    pen.oval((0, 0.06, 0.25, 0.23), tone=None)
    sprinkles = ((-0.56, -0.36, 40, "white"), (-0.1, -0.62, 100, "gold"), (0.38, -0.5, 20, "white"),
        (0.62, -0.04, 80, "glass"),
                 (0.5, 0.44, 140, "gold"), (0.02, 0.58, 10, "white"), (-0.46, 0.44, 60, "glass"),
                     (-0.64, 0.06, 110, "gold"))  # fmt: skip
    for x, y, turn, tone in sprinkles:
        dx, dy = 0.09 * math.cos(math.radians(turn)), 0.09 * math.sin(math.radians(turn))
        pen.line([(x - dx, y - dy), (x + dx, y + dy)], tone=tone, width=0.09)


def _lollipop(pen: Pen) -> None:
    pen.line([(0, 0.2), (0, 0.94)], tone="white", width=0.12, edge=True)
    pen.oval((0, -0.3, 0.66, 0.66))
    spiral = [(0.052 * a * math.cos(a), -0.3 + 0.052 * a * math.sin(a)) for a in (0.45 * k for k in range(25))]
    pen.line(spiral, tone="pale", width=0.13, smooth=True)
    pen.polygon([(0, 0.42), (-0.34, 0.24), (-0.34, 0.6)], tone="light")
    pen.polygon([(0, 0.42), (0.34, 0.24), (0.34, 0.6)], tone="light")
    pen.oval((0, 0.42, 0.09, 0.09), tone="dark")


def _popsicle(pen: Pen) -> None:
    pen.box((-0.13, 0.4, 0.13, 0.97), tone="dough", radius=0.12)
    pen.box((-0.5, -0.95, 0.5, 0.56), radius=0.44)
    pen.box((-0.5, -0.2, 0.5, 0.56), radius=0.1)
    pen.box((-0.47, -0.4, 0.47, 0.1), edge=False)
    for x in (-0.2, 0.2):
        pen.line([(x, -0.5), (x, 0.3)], tone="dark", width=0.13)
    pen.line([(-0.36, -0.4), (-0.36, -0.1)], tone="light", width=0.09)
    for x, y, r in ((0.5, -0.86, 0.16), (0.3, -0.96, 0.15), (0.56, -0.62, 0.14)):
        pen.oval((x, y, r, r), tone=None)


def _candy(pen: Pen) -> None:
    for side in (-1, 1):
        fan = [(0.4, 0.0), (0.8, -0.46), (0.86, -0.2), (0.99, -0.22), (0.9, 0.0), (0.99, 0.22), (0.86, 0.2),
            (0.8, 0.46)]
        pen.polygon([(side * x, y) for x, y in fan], tone="light")
        for y in (-0.2, 0.2):
            pen.line([(side * 0.54, y * 0.3), (side * 0.78, y)], tone="dark", width=0.05)
    pen.oval((0, 0, 0.54, 0.54))
    for x in (-0.26, 0.14):
        pen.blob([(x - 0.06, -0.46), (x + 0.16, -0.46), (x + 0.02, 0.0), (x + 0.14, 0.46), (x - 0.08, 0.46),
            (x - 0.2, 0.0)], tone="pale", edge=False)
    pen.line([(-0.3, -0.26), (-0.16, -0.38)], tone="white", width=0.08)


THINGS: dict[str, Callable[[Pen], None]] = {
    "mug": _mug,
    "teapot": _teapot,
    "chair": _chair,
    "lamp": _lamp,
    "clock": _clock,
    "umbrella": _umbrella,
    "hat": _hat,
    "shirt": _shirt,
    "trousers": _trousers,
    "dress": _dress,
    "shoe": _shoe,
    "sock": _sock,
    "cake": _cake,
    "cupcake": _cupcake,
    "donut": _donut,
    "lollipop": _lollipop,
    "popsicle": _popsicle,
    "candy": _candy,
}
