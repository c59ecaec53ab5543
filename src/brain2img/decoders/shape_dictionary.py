"""Plausible variants of training shapes: the image prior of `brain2img.decoders.shape_posterior`.

Affine, elastic and stroke-width changes; elastic distortion of digits after Simard et al. 2003,
https://doi.org/10.1109/ICDAR.2003.1227801.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Standard deviations of the random changes that make dictionary shapes at jitter 1. Lengths are in pixels of a
# 28-pixel-wide image, rotation in radians, stretch and extent logs of a scale, ink an intensity.
_ROTATION, _STRETCH, _SHEAR, _ELASTIC, _CENTRE, _EXTENT, _INK = 0.10, 0.15, 0.15, 0.7, 0.3, 0.03, 0.12


def smoothing(side: int, sigma: float) -> Array:
    """Matrix (side, side) that blurs one image axis by a Gaussian of ``sigma`` pixels, with zeros outside the image."""
    kernel = np.exp(-0.5 * ((np.arange(side)[:, None] - np.arange(side)) / max(sigma, 1e-3)) ** 2)
    return (kernel / kernel[side // 2].sum()).astype(np.float32)


def _sample(images: Array, rows: Array, cols: Array) -> Array:
    """Bilinear values of ``images`` (n, h, h) at float positions ``rows``, ``cols`` (n, h, h); zero outside."""
    count, side, _ = images.shape
    top, left = np.floor(rows), np.floor(cols)
    down, right = (rows - top).astype(np.float32), (cols - left).astype(np.float32)
    width = side + 3
    flat = np.pad(images, ((0, 0), (1, 2), (1, 2))).ravel()
    start = (np.clip(top, -1, side) + 1).astype(np.int64) * width + (np.clip(left, -1, side) + 1).astype(np.int64)
    start += (np.arange(count) * width * width)[:, None, None]
    upper = flat[start] * (1 - right) + flat[start + 1] * right
    lower = flat[start + width] * (1 - right) + flat[start + width + 1] * right
    return upper * (1 - down) + lower * down


def _placement(images: Array) -> tuple[Array, Array, Array]:
    """Row and column of the centre of mass and longer side of the bounding box (pixels) of each image (n, h, h)."""
    side = images.shape[1]
    grid, mass = np.arange(side), images.sum((1, 2)) + 1e-9
    row, col = images.sum(2) @ grid / mass, images.sum(1) @ grid / mass
    inks = [images.max(axis) > 0.35 for axis in (2, 1)]
    lengths = [np.where(ink.any(1), side - ink[:, ::-1].argmax(1) - ink.argmax(1), side) for ink in inks]
    return row, col, np.maximum(*lengths)


def jittered(images: Array, jitter: float, rng: np.random.Generator) -> Array:
    """One random variant of each image (n, h, h) in [0, 1], put back at its own centre of mass and extent."""
    count, side, _ = images.shape
    unit, middle = side / 28, (side - 1) / 2
    y, x = np.mgrid[:side, :side].astype(np.float32) - np.float32(middle)
    angle, shear = (rng.normal(0, s, (count, 1, 1)).astype(np.float32) for s in (jitter * _ROTATION, jitter * _SHEAR))
    scale_y, scale_x = (np.exp(rng.normal(0, jitter * _STRETCH, (count, 1, 1))).astype(np.float32) for _ in range(2))
    # a smooth displacement field of unit variance: white noise on a 6 x 6 grid, interpolated by Gaussians
    knots = np.exp(-0.5 * (np.linspace(0, 5, side)[:, None] - np.arange(6)) ** 2)
    knots = (knots / np.sqrt((knots**2).sum(1, keepdims=True))).astype(np.float32)
    wobble = jitter * _ELASTIC * unit * (knots @ rng.standard_normal((2, count, 6, 6), np.float32) @ knots.T)
    rows = np.cos(angle) * scale_y * y - np.sin(angle) * scale_x * x + middle + wobble[0]
    cols = (np.sin(angle) + shear) * scale_y * y + np.cos(angle) * scale_x * x + middle + wobble[1]
    warped = _sample(images, rows, cols)
    # Stimulus sets are centred and size-normalised (MNIST: centre of mass, 20-pixel box), so variants must be too.
    row, col, extent = _placement(images)
    row_now, col_now, extent_now = _placement(warped)
    row, col = (at + rng.normal(0, jitter * _CENTRE * unit, count) for at in (row, col))
    zoom = (extent_now / (extent * np.exp(rng.normal(0, jitter * _EXTENT, count))))[:, None, None].astype(np.float32)
    rows = row_now[:, None, None] + (y + middle - row[:, None, None]) * zoom
    cols = col_now[:, None, None] + (x + middle - col[:, None, None]) * zoom
    blur = smoothing(side, 0.6 * unit)
    warped = blur @ _sample(warped, rows, cols) @ blur.T
    threshold = np.clip(rng.normal(0.45, jitter * _INK, (count, 1, 1)), 0.25, 0.7).astype(np.float32)
    return np.clip((warped - threshold) * np.float32(2.2) + np.float32(0.5), 0, 1)
