"""Draws a grid of pictures with the sentences below them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain2img.report.grid import Grid

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

CELL, GAP, GROUP_GAP, LABEL, EDGE = 190, 10, 34, 250, 28
WORDS, LINE, MOST_LINES = 21, 25, 6
"""Size of the sentences below pictures, distance of their lines, and how many of these a sentence may take."""


def draw_grid(grid: Grid) -> Image:
    """Draw a grid: groups of trials side by side, lines below each other, on white."""
    from PIL import Image, ImageDraw

    n = len(grid.trials)
    left, top = EDGE + LABEL, 128 + (LINE if any(grid.heads) else 0)
    captions = [[wrapped(tile.caption, CELL, WORDS, bold=tile.right) for tile in line.tiles] for line in grid.lines]
    heights = [CELL + GAP + (LINE * max(map(len, texts)) + GAP if any(texts) else 0) for texts in captions]
    width = left + n * (CELL + GAP) + (len(grid.groups) - 1) * GROUP_GAP + EDGE
    canvas = Image.new("RGB", (width, top + sum(heights) + 18), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((EDGE, 24), grid.title, fill="#222222", font=font(30, bold=True))
    columns, x = [], left
    for word, size in grid.groups:
        end = x + size * (CELL + GAP) - GAP
        draw.text(((x + end) / 2, 90), word, fill="#444444", font=font(26), anchor="ms")
        draw.line([(x, 106), (end, 106)], fill="#999999", width=2)
        columns += [x + i * (CELL + GAP) for i in range(size)]
        x = end + GROUP_GAP
    for x, head in zip(columns, grid.heads, strict=True):
        draw.text((x + CELL / 2, 116), head, fill="#666666", font=font(20), anchor="mt")
    y = top
    for line, texts, height in zip(grid.lines, captions, heights, strict=True):
        colour = grid.colours.get(line.decoder, "#444444")
        draw.rectangle([EDGE, y, EDGE + 6, y + CELL], fill=colour)
        sub = wrapped(line.sub, LABEL - 30, WORDS)
        middle = y + (CELL - LINE * len(sub)) / 2
        draw.text((EDGE + 20, middle), line.label, fill="#222222", font=font(26, bold=True), anchor="lm")
        for i, text in enumerate(sub):
            draw.text((EDGE + 20, middle + 34 + i * LINE), text, fill="#666666", font=font(WORDS), anchor="lm")
        for x, tile, lines in zip(columns, line.tiles, texts, strict=True):
            if tile.image is None:
                draw.rectangle([x, y, x + CELL - 1, y + CELL - 1], fill="#F2F2F2")
                draw.text((x + CELL / 2, y + CELL / 2), "none", fill="#999999", font=font(20), anchor="mm")
            else:
                canvas.paste(_fit(tile.image), (x, y))
            if tile.right:
                draw.rectangle([x - 5, y - 5, x + CELL + 4, y + CELL + 4], outline=colour, width=5)
            for i, text in enumerate(lines):
                draw.text((x + CELL / 2, y + CELL + 8 + i * LINE), text, font=font(WORDS, bold=tile.right),
                          fill=colour if tile.right else "#555555", anchor="ma")
        y += height
    return canvas


def wrapped(text: str, width: int, size: int, *, bold: bool = False) -> list[str]:
    """Break a sentence into lines of at most `width` pixels; what does not fit into `MOST_LINES` ends with "…"."""
    face = font(size, bold=bold)
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES - 1], f"{lines[MOST_LINES - 1]} …"]
    return lines


def save_grids(grids: Sequence[Image], path: Path) -> None:
    """Write grids below each other into one PNG."""
    from PIL import Image

    canvas = Image.new("RGB", (max(g.width for g in grids), sum(g.height for g in grids)), "white")
    y = 0
    for grid in grids:
        canvas.paste(grid, (0, y))
        y += grid.height
    canvas.save(path)


def _fit(image: np.ndarray) -> Image:
    from PIL import Image

    # the pixels of tiny images are worth seeing; larger ones look better smoothed
    how = Image.Resampling.NEAREST if max(image.shape[:2]) <= 32 else Image.Resampling.BICUBIC
    return Image.fromarray(image).convert("RGB").resize((CELL, CELL), how)


@functools.lru_cache(maxsize=16)
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """Return the font of all drawings in a size (pixels)."""
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")), size)

