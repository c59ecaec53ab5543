"""Drawings of vehicles and buildings, in the unit box and tones of `drawing.Pen`."""

from __future__ import annotations

from collections.abc import Callable

from brain2img.simulate.drawing import Pen, mirrored


def _wheel(pen: Pen, x: float, y: float, radius: float) -> None:
    """Tyre with a metal hub."""
    pen.oval((x, y, radius, radius), tone="ink")
    pen.oval((x, y, 0.5 * radius, 0.5 * radius), tone="metal", edge=False)


def _arch(pen: Pen, x: float, top: float, bottom: float, half: float, tone: str) -> None:
    """Door or window with a round top."""
    pen.polygon(
        [(x - half, bottom), (x - half, top + half), (x - 0.7 * half, top + 0.3 * half), (x, top),
         (x + 0.7 * half, top + 0.3 * half), (x + half, top + half), (x + half, bottom)],
        tone=tone,
    )  # fmt: skip


def _car(pen: Pen) -> None:
    pen.polygon([(-0.56, -0.06), (-0.36, -0.5), (0.28, -0.5), (0.58, -0.06)])
    pen.polygon([(-0.42, -0.06), (-0.28, -0.38), (-0.04, -0.38), (-0.04, -0.06)], tone="glass")
    pen.polygon([(0.06, -0.06), (0.06, -0.38), (0.22, -0.38), (0.43, -0.06)], tone="glass")
    pen.blob([(-0.93, 0.0), (-0.5, -0.1), (0.5, -0.1), (0.86, 0.02), (0.97, 0.22), (0.93, 0.4), (0, 0.43),
        (-0.93, 0.4)])
    pen.box((-0.9, 0.28, 0.92, 0.4), tone="dark", edge=False)
    pen.oval((0.86, 0.14, 0.09, 0.08), tone="gold")
    pen.line([(0.04, 0.08), (0.18, 0.08)], tone="edge", width=0.06)
    for x in (-0.5, 0.52):
        _wheel(pen, x, 0.4, 0.25)


def _bus(pen: Pen) -> None:
    pen.box((-0.97, -0.6, 0.97, 0.46), radius=0.16)
    for x in (-0.84, -0.42, 0.0):
        pen.box((x, -0.42, x + 0.34, -0.06), tone="glass", radius=0.05)
    pen.box((0.44, -0.42, 0.66, 0.38), tone="glass", radius=0.04)
    pen.box((0.75, -0.42, 0.97, -0.02), tone="glass", radius=0.05)
    pen.box((-0.95, 0.08, 0.4, 0.2), tone="light", edge=False)
    pen.oval((0.9, 0.28, 0.07, 0.07), tone="gold")
    for x in (-0.56, 0.24):
        _wheel(pen, x, 0.46, 0.22)


def _train(pen: Pen) -> None:
    for x, y, r in ((0.3, -0.88, 0.12), (0.06, -0.84, 0.15), (0.58, -0.76, 0.13)):
        pen.oval((x, y, r, 0.9 * r), tone="white")
    pen.polygon([(0.42, -0.16), (0.46, -0.5), (0.34, -0.66), (0.82, -0.66), (0.7, -0.5), (0.74, -0.16)], tone="dark")
    pen.oval((0.12, -0.2, 0.15, 0.17), tone="gold")
    pen.box((-0.4, -0.18, 0.86, 0.34), radius=0.14)
    pen.line([(-0.2, -0.04), (0.74, -0.04)], tone="light", width=0.09)
    pen.box((-0.84, -0.56, -0.26, 0.36))
    pen.box((-0.7, -0.38, -0.4, -0.06), tone="glass", radius=0.04)
    pen.box((-0.97, -0.7, -0.14, -0.54), tone="dark", radius=0.06)
    pen.box((-0.92, 0.3, 0.88, 0.48), tone="dark", radius=0.04)
    pen.polygon([(0.78, 0.34), (1.0, 0.76), (0.66, 0.76)], tone="metal")
    _wheel(pen, -0.54, 0.5, 0.29)
    for x in (0.06, 0.48):
        _wheel(pen, x, 0.58, 0.21)
    pen.line([(-0.54, 0.54), (0.48, 0.58)], tone="metal", width=0.07)


def _boat(pen: Pen) -> None:
    pen.line([(0.02, -0.9), (0.02, 0.5)], tone="wood", width=0.1, edge=True)
    pen.blob([(0.1, -0.84), (0.5, -0.4), (0.76, 0.24), (0.4, 0.3), (0.1, 0.28), (0.16, -0.3)], tone="light")
    pen.polygon([(-0.08, -0.7), (-0.08, 0.28), (-0.7, 0.28)], tone="white")
    pen.polygon([(-0.96, 0.42), (0.96, 0.42), (0.66, 0.88), (-0.62, 0.88)])
    pen.polygon([(-0.85, 0.6), (0.84, 0.6), (0.78, 0.7), (-0.78, 0.7)], tone="light", edge=False)
    pen.polygon([(0.02, -0.98), (0.3, -0.9), (0.02, -0.8)])


def _airplane(pen: Pen) -> None:
    pen.polygon([(0.02, -0.1), (0.3, -0.66), (0.46, -0.66), (0.36, -0.1)], tone="dark")
    pen.polygon([(0.52, -0.08), (0.78, -0.62), (0.97, -0.62), (0.92, 0.0)])
    pen.blob([(-0.97, 0.1), (-0.8, -0.14), (-0.4, -0.24), (0.3, -0.2), (0.92, -0.1), (0.9, 0.04), (0.3, 0.28),
        (-0.4, 0.32), (-0.84, 0.26)])
    pen.blob([(-0.95, 0.16), (-0.4, 0.18), (0.3, 0.14), (0.86, 0.04), (0.3, 0.27), (-0.4, 0.31),
        (-0.82, 0.26)], tone="light", edge=False)
    pen.blob([(-0.86, -0.06), (-0.64, -0.18), (-0.6, 0.0), (-0.84, 0.04)], tone="glass")
    for x in (-0.4, -0.2, 0.0, 0.2, 0.4):
        pen.oval((x, -0.04, 0.065, 0.075), tone="glass")
    pen.polygon([(-0.22, 0.12), (0.16, 0.12), (0.52, 0.78), (0.32, 0.8)], tone="dark")
    pen.polygon([(0.66, 0.0), (0.84, 0.0), (0.99, 0.24), (0.87, 0.25)], tone="dark")


def _rocket(pen: Pen) -> None:
    pen.blob(mirrored([(0, 0.56), (0.22, 0.58), (0.18, 0.78), (0, 0.99)]), tone="flame")
    pen.blob(mirrored([(0, 0.58), (0.1, 0.6), (0.08, 0.72), (0, 0.84)]), tone="gold", edge=False)
    for side in (-1, 1):
        pen.polygon([(side * 0.28, 0.04), (side * 0.68, 0.44), (side * 0.68, 0.76), (side * 0.24, 0.52)], tone="dark")
    pen.blob(mirrored([(0, -0.98), (0.2, -0.74), (0.36, -0.3), (0.38, 0.14), (0.26, 0.58), (0, 0.62)]))
    pen.polygon([(0, -0.97), (0.12, -0.86), (0.27, -0.58), (-0.27, -0.58), (-0.12, -0.86)], tone="pale")
    pen.oval((0, -0.2, 0.22, 0.22), tone="metal")
    pen.oval((0, -0.2, 0.15, 0.15), tone="glass", edge=False)
    pen.box((-0.07, 0.24, 0.07, 0.74), tone="dark", radius=0.05)


def _house(pen: Pen) -> None:
    pen.box((0.36, -0.82, 0.6, -0.3), tone="wood_dark")
    pen.box((-0.7, -0.16, 0.7, 0.9))
    pen.polygon([(-0.95, -0.1), (0, -0.92), (0.95, -0.1)], tone="dark")
    pen.line([(-0.7, -0.2), (0, -0.78), (0.7, -0.2)], tone="light", width=0.06)
    pen.box((-0.18, 0.24, 0.22, 0.9), tone="wood", radius=0.03)
    pen.oval((0.12, 0.58, 0.045, 0.045), tone="gold", edge=False)
    for x in (-0.58, 0.34):
        pen.box((x, 0.12, x + 0.26, 0.44), tone="glass")
        pen.line([(x + 0.13, 0.12), (x + 0.13, 0.44)], tone="white", width=0.05)


def _castle(pen: Pen) -> None:
    for x in (-0.66, 0.66):
        pen.line([(x, -0.6), (x, -0.96)], tone="ink", width=0.05)
        pen.polygon([(x, -0.98), (x + 0.28, -0.88), (x, -0.76)], tone="light")
    pen.box((-0.5, -0.08, 0.5, 0.92))
    for x in (-0.3, 0.0, 0.3):
        pen.box((x - 0.08, -0.24, x + 0.08, -0.02))
        pen.box((x - 0.06, -0.08, x + 0.06, 0.04), edge=False)
    for x in (-0.66, 0.66):
        pen.box((x - 0.28, -0.42, x + 0.28, 0.92))
        for shift in (-0.23, 0.0, 0.23):
            pen.box((x + shift - 0.1, -0.66, x + shift + 0.1, -0.36))
        pen.box((x - 0.33, -0.5, x + 0.33, -0.34), tone="dark")
        _arch(pen, x, -0.14, 0.2, 0.09, "ink")
        for dx, y in ((-0.12, 0.44), (0.1, 0.66)):
            pen.line([(x + dx - 0.07, y), (x + dx + 0.07, y)], tone="dark", width=0.07)
    _arch(pen, 0, 0.24, 0.92, 0.25, "wood_dark")
    for x in (-0.1, 0.1):
        pen.line([(x, 0.36), (x, 0.88)], tone="ink", width=0.045)


def _lighthouse(pen: Pen) -> None:
    pen.polygon([(-0.98, -0.9), (-0.2, -0.66), (-0.98, -0.38)], tone="gold", edge=False)
    pen.polygon([(0.98, -0.9), (0.2, -0.66), (0.98, -0.38)], tone="gold", edge=False)
    pen.polygon([(-0.25, -0.42), (0.25, -0.42), (0.44, 0.84), (-0.44, 0.84)])
    for top, bottom in ((-0.14, 0.16), (0.46, 0.74)):
        left, right = 0.25 + 0.19 * (top + 0.42) / 1.26, 0.25 + 0.19 * (bottom + 0.42) / 1.26
        pen.polygon([(-left, top), (left, top), (right, bottom), (-right, bottom)], tone="white")
    pen.box((-0.17, -0.8, 0.17, -0.44), tone="gold")
    pen.line([(0, -0.78), (0, -0.46)], tone="wood", width=0.05)
    pen.box((-0.36, -0.5, 0.36, -0.38), tone="dark", radius=0.03)
    pen.polygon([(-0.26, -0.76), (0, -0.99), (0.26, -0.76)], tone="dark")
    _arch(pen, 0, 0.5, 0.84, 0.12, "wood_dark")
    pen.blob([(-0.66, 0.94), (-0.5, 0.8), (0, 0.8), (0.5, 0.8), (0.66, 0.94), (0, 0.96)], tone="metal")


def _windmill(pen: Pen) -> None:
    pen.polygon([(-0.28, -0.2), (0.28, -0.2), (0.46, 0.95), (-0.46, 0.95)])
    pen.line([(-0.34, 0.3), (0.34, 0.3)], tone="dark", width=0.08)
    pen.blob(mirrored([(0, -0.56), (0.26, -0.44), (0.36, -0.16), (0, -0.14)]), tone="dark")
    _arch(pen, 0, 0.5, 0.95, 0.15, "wood_dark")
    pen.box((-0.09, 0.02, 0.09, 0.2), tone="glass")
    for dx, dy in ((1, -1), (1, 1), (-1, 1), (-1, -1)):
        # A sail lies along the diagonal (dx, dy) and to one side of it.
        u, v = (0.66 * dx, 0.66 * dy), (-0.2 * dy, 0.2 * dx)
        hub = (0.0, -0.26)
        sail = [(0.3, 0.0), (1.0, 0.0), (1.0, 1.0), (0.3, 1.0)]
        pen.polygon([(hub[0] + a * u[0] + b * v[0], hub[1] + a * u[1] + b * v[1]) for a, b in sail], tone="white")
        for a in (0.53, 0.76):
            start = (hub[0] + a * u[0], hub[1] + a * u[1])
            pen.line([start, (start[0] + v[0], start[1] + v[1])], tone="metal", width=0.04)
        pen.line([hub, (hub[0] + u[0], hub[1] + u[1])], tone="wood_dark", width=0.08)
    pen.oval((0, -0.26, 0.1, 0.1), tone="wood")


def _tent(pen: Pen) -> None:
    pen.line([(-0.08, -0.82), (0.0, -0.7), (0.1, -0.86)], tone="wood", width=0.08)
    pen.polygon([(0, -0.74), (0.52, -0.6), (0.98, 0.62), (0.72, 0.76)], tone="dark")
    pen.polygon([(0, -0.74), (0.72, 0.76), (-0.9, 0.76)])
    pen.polygon([(0, -0.74), (-0.52, 0.76), (-0.9, 0.76)], tone="light")
    pen.polygon([(-0.02, -0.34), (0.26, 0.76), (-0.3, 0.76)], tone="ink")
    pen.polygon([(-0.02, -0.34), (-0.04, 0.3), (-0.3, 0.76)], tone="cream")
    pen.polygon([(-0.02, -0.34), (0.02, 0.3), (0.26, 0.76)], tone="cream")
    for x in (-0.97, 0.86):
        pen.line([(x, 0.84), (x + 0.07, 0.66)], tone="wood_dark", width=0.08)


def _church(pen: Pen) -> None:
    pen.box((-0.1, 0.06, 0.92, 0.92))
    pen.polygon([(-0.1, 0.1), (0.04, -0.36), (0.84, -0.36), (1.0, 0.1)], tone="dark")
    pen.box((-0.7, -0.28, -0.02, 0.92))
    pen.polygon([(-0.8, -0.24), (-0.36, -0.8), (0.08, -0.24)], tone="dark")
    pen.line([(-0.36, -0.76), (-0.36, -1.02)], tone="gold", width=0.08)
    pen.line([(-0.47, -0.93), (-0.25, -0.93)], tone="gold", width=0.08)
    pen.oval((-0.36, 0.04, 0.15, 0.15), tone="glass")
    pen.line([(-0.36, -0.08), (-0.36, 0.16)], tone="white", width=0.04)
    _arch(pen, -0.36, 0.4, 0.92, 0.18, "wood_dark")
    for x in (0.24, 0.62):
        _arch(pen, x, 0.28, 0.68, 0.11, "glass")


BUILT: dict[str, Callable[[Pen], None]] = {
    "car": _car,
    "bus": _bus,
    "train": _train,
    "boat": _boat,
    "airplane": _airplane,
    "rocket": _rocket,
    "house": _house,
    "castle": _castle,
    "lighthouse": _lighthouse,
    "windmill": _windmill,
    "tent": _tent,
    "church": _church,
}
