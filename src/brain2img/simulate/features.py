"""What the simulated recordings are made from: features of a stimulus's pixels and of its attributes.

Nothing here comes from a backbone, so that decoding into a backbone's space is not circular. All scaling constants are
fixed: the features of a stimulus depend on that stimulus alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from brain2img.simulate.shapes import COLOURS, KINDS

if TYPE_CHECKING:
    from brain2img.simulate.scenes import Scene

#: Pixels are brought to this side before anything is computed, and maps have this side.
SIDE = 64
GRID = 16

_ORIENTATIONS = (0, 45, 90, 135)
#: Standard deviation of the two scales of contrast (pixels of 64).
_SCALES = {"fine": 1.0, "coarse": 3.0}
#: Map -> mean and standard deviation over scenes (256 training scenes, all places together).
MAPS: dict[str, tuple[float, float]] = {
    **{f"fine_{angle}": (0.021, 0.03) for angle in _ORIENTATIONS},
    **{f"coarse_{angle}": (0.025, 0.031) for angle in _ORIENTATIONS},
    "red": (0.087, 0.116), "green": (0.067, 0.105), "blue": (0.09, 0.109), "yellow": (0.101, 0.145),
    "luminance": (0.601, 0.237),
}
_N_HUES = 12
#: Mean and standard deviation over scenes of a bin of hue, and of energy in a cell.
_HUE_SCALE = (0.023, 0.053)
_ENERGY_SCALE = (0.044, 0.032)
#: Shape moment of the figure -> mean and standard deviation over scenes.
_MOMENTS = {"area": (0.258, 0.079), "x": (0.503, 0.078), "y": (0.489, 0.103), "width": (0.226, 0.039),
            "height": (0.216, 0.047), "slant": (0.0, 0.26), "red": (0.56, 0.103), "green": (0.512, 0.087),
            "blue": (0.495, 0.1)}
_ATTRIBUTE_SCALES = {"scale": (0.484, 0.109), "x": (0.5, 0.173), "y": (0.5, 0.16)}
#: Share of scenes with a second object.
_SECOND = 0.5
#: Width of the vectors that stand for names.
_KIND_WIDTH, _COLOUR_WIDTH, _BACKGROUND_WIDTH, _SECOND_WIDTH = 32, 5, 6, 12


@dataclass(frozen=True, kw_only=True)
class StimulusFeatures:
    """Features of n stimuli, each column with mean near 0 and standard deviation near 1 over scenes.

    Parameters
    ----------
    maps
        ``(n, M, 16, 16)`` float32, not negative: RMS contrast of four orientations at two scales, the four opponent
        colours and luminance (`MAPS`), for receptive fields; first axis of a map downwards, second to the right.
    low
        ``(n, p_low)`` float32: the maps on an 8 x 8 grid, standardised (pixels only).
    middle
        ``(n, p_middle)`` float32: orientation energy on a 4 x 4 grid, histogram of hues, moments and colour of the
        figure (pixels only).
    high
        ``(n, p_high)`` float32: the attributes. Each kind has a vector of which half the variance is its category's.
    names
        "low", "middle" and "high" -> name of every column; "maps" -> name of every map.
    """

    maps: np.ndarray
    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    names: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.low)


def stimulus_features(scenes: Sequence[Scene], images: np.ndarray) -> StimulusFeatures:
    """Compute the features of stimuli.

    Parameters
    ----------
    scenes
        The n scenes: their attributes.
    images
        ``(n, s, s, 3)`` uint8 (0..255) renderings, s a multiple of 64.

    Returns
    -------
    StimulusFeatures
        In the order of `scenes`.

    Raises
    ------
    ValueError
        If the images are not square or their side is not a multiple of 64.
    """
    side = images.shape[1]
    if images.ndim != 4 or images.shape[2] != side or side % SIDE:
        raise ValueError(f"images of the simulated study: expected (n, s, s, 3) with s a multiple of {SIDE}, got "
                         f"{images.shape}. Set study.image_size to 64 or 128.")
    assert len(scenes) == len(images)
    parts = [_pixel_features(images[start:start + 128]) for start in range(0, len(images), 128)]
    maps, low, middle = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    codes = [attribute_code(scene.attributes) for scene in scenes]
    high = np.array([list(code.values()) for code in codes], dtype=np.float32)
    cells = [f"{name}@{row},{column}" for name in MAPS for row in range(8) for column in range(8)]
    return StimulusFeatures(maps=maps, low=low, middle=middle, high=high, names={
        "maps": tuple(MAPS), "low": tuple(cells), "middle": _middle_names(), "high": tuple(codes[0])})


def _pixel_features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return maps, low and middle features of a block of images."""
    rgb = _pool(images.transpose(0, 3, 1, 2).astype(np.float32) / 255, SIDE)
    maps = contrast_maps(rgb)
    mean, deviation = (np.array(column, dtype=np.float32) for column in zip(*MAPS.values(), strict=True))
    low = (_pool(maps, 8) - mean[:, None, None]) / deviation[:, None, None]

    energy = np.sqrt(_pool(maps[:, :4] ** 2, 4) + _pool(maps[:, 4:8] ** 2, 4))
    hues = (_hue_histogram(rgb) - _HUE_SCALE[0]) / _HUE_SCALE[1]
    centre, spread = (np.array(column, dtype=np.float32) for column in zip(*_MOMENTS.values(), strict=True))
    moments = (_figure_moments(rgb) - centre) / spread
    energy = (energy - _ENERGY_SCALE[0]) / _ENERGY_SCALE[1]
    middle = np.concatenate([energy.reshape(len(images), -1), hues, moments], axis=1)
    return maps, low.reshape(len(images), -1), middle.astype(np.float32)


def _pool(maps: np.ndarray, side: int) -> np.ndarray:
    """Average the last two axes over equal blocks down to `side`."""
    block = maps.shape[-1] // side
    return maps.reshape(*maps.shape[:-2], side, block, side, block).mean(axis=(-3, -1))


def contrast_maps(rgb: np.ndarray) -> np.ndarray:
    """Return local contrast and opponent colours.

    Parameters
    ----------
    rgb
        ``(n, 3, 64, 64)`` in [0, 1].

    Returns
    -------
    numpy.ndarray
        ``(n, M, 16, 16)`` float32, not negative, in the order of `MAPS`. Contrast is the root mean square over a cell
        of the gradient of luminance at that scale, weighted with cos^2 of the angle to the map's orientation.
    """
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    maps = []
    for sigma in _SCALES.values():
        # Derivatives of a Gaussian, times sigma, so that both scales have the same unit.
        down, right = (sigma * gaussian_filter1d(
            gaussian_filter1d(luminance, sigma, axis=axis, order=1, mode="nearest"), sigma, axis=3 - axis,
            mode="nearest") for axis in (1, 2))
        power = right**2 + down**2
        for angle in np.deg2rad(_ORIENTATIONS):
            along = (np.cos(angle) * right + np.sin(angle) * down) ** 2
            maps.append(np.sqrt(_pool(along**2 / (power + 1e-8), GRID)))
    red_green, blue_yellow = red - green, blue - (red + green) / 2
    maps += [_pool(np.maximum(m, 0), GRID) for m in (red_green, -red_green, blue_yellow, -blue_yellow, luminance)]
    return np.stack(maps, axis=1).astype(np.float32)


def _hue_histogram(rgb: np.ndarray) -> np.ndarray:
    """Return ``(n, 12)`` shares of the pixels by hue, each pixel weighted with its chroma (max - min)."""
    top, chroma = rgb.max(axis=1), np.ptp(rgb, axis=1)
    safe = np.maximum(chroma, 1e-6)
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    hue = np.where(top == red, (green - blue) / safe % 6,
                   np.where(top == green, (blue - red) / safe + 2, (red - green) / safe + 4)) * (_N_HUES / 6)
    # Linear interpolation between neighbouring bins, so that the histogram is continuous in the pixels.
    below = np.floor(hue).astype(int)
    share = hue - below
    first = np.arange(len(rgb))[:, None, None] * _N_HUES
    histogram = np.zeros(len(rgb) * _N_HUES)
    for bins, weight in ((below, 1 - share), (below + 1, share)):
        histogram += np.bincount((first + bins % _N_HUES).ravel(), weights=(chroma * weight).ravel(),
                                 minlength=len(histogram))
    return histogram.reshape(len(rgb), _N_HUES) / SIDE**2


def _figure_moments(rgb: np.ndarray) -> np.ndarray:
    """Return ``(n, 9)`` area, centre, extent, slant and colour of what differs from the border of the picture."""
    sides = (rgb[..., :2].mean(axis=-1) + rgb[..., -2:].mean(axis=-1))[..., :, None] / 2
    ends = (rgb[..., :2, :].mean(axis=-2) + rgb[..., -2:, :].mean(axis=-2))[..., None, :] / 2
    # A background may change from top to bottom or from left to right: take the nearer of both guesses.
    difference = np.minimum(np.abs(rgb - sides).mean(axis=1), np.abs(rgb - ends).mean(axis=1))
    weight = np.clip(difference / 0.2, 0, 1) + 1e-6
    total = weight.sum(axis=(1, 2))
    place = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    across, down = weight.sum(axis=1) / total[:, None], weight.sum(axis=2) / total[:, None]
    x, y = across @ place, down @ place
    width, height = np.sqrt(across @ place**2 - x**2), np.sqrt(down @ place**2 - y**2)
    slant = (np.einsum("nij,i,j->n", weight, place, place) / total - x * y) / (width * height)
    colour = np.einsum("nij,ncij->cn", weight, rgb) / total
    return np.stack([total / SIDE**2, x, y, width, height, slant, *colour], axis=1)


def _middle_names() -> tuple[str, ...]:
    energy = [f"energy_{angle}@{row},{column}" for angle in _ORIENTATIONS for row in range(4) for column in range(4)]
    return (*energy, *(f"hue_{k}" for k in range(_N_HUES)), *(f"figure_{name}" for name in _MOMENTS))


def attribute_code(attributes: dict[str, Any]) -> dict[str, float]:
    """Return the numbers that stand for a scene's attributes.

    Parameters
    ----------
    attributes
        Of one scene: kind, colour, background, scale, x, y, second_kind, second_colour ("none" where there
        is no second object).

    Returns
    -------
    dict of str to float
        Name of the column -> value. Kinds, colours and backgrounds add up, so that a combination never seen is a sum of
        parts that were.
    """
    colour, second = attributes["colour"], attributes["second_kind"]
    two = second != "none"
    parts = {"kind": kind_vector(attributes["kind"]),
             "colour": np.concatenate([_opponent(colour), _vector("colour", colour, _COLOUR_WIDTH)]),
             "background": _vector("background", attributes["background"], _BACKGROUND_WIDTH),
             "second_kind": kind_vector(second)[:_SECOND_WIDTH] if two else np.zeros(_SECOND_WIDTH),
             "second_colour": _opponent(attributes["second_colour"]) if two else np.zeros(3)}
    code = {f"{name}_{k}": float(value) for name, values in parts.items() for k, value in enumerate(values)}
    for name, (mean, deviation) in _ATTRIBUTE_SCALES.items():
        code[name] = (float(attributes[name]) - mean) / deviation
    code["n_objects"] = float((two - _SECOND) / np.sqrt(_SECOND * (1 - _SECOND)))
    return code


def kind_vector(kind: str) -> np.ndarray:
    """Return the ``(32,)`` semantic vector of a kind: half the variance is its category's, half its own."""
    own, shared = (_vector(group, name, _KIND_WIDTH) for group, name in (("kind", kind), ("category", KINDS[kind])))
    return np.sqrt(0.5) * (own + shared)


def _vector(group: str, name: str, width: int) -> np.ndarray:
    """Return a standard normal vector that depends on the name alone."""
    seed = int.from_bytes(hashlib.sha256(f"{group}/{name}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(width)


def _opponent(colour: str) -> np.ndarray:
    """Return ``(3,)`` luminance, red-green and blue-yellow of a colour, standardised over the ten colours."""
    rgb = np.array(list(COLOURS.values())) / 255
    to_opponent = np.array([[0.299, 0.587, 0.114], [1, -1, 0], [-0.5, -0.5, 1]]).T
    code = rgb @ to_opponent
    return ((code - code.mean(axis=0)) / code.std(axis=0))[list(COLOURS).index(colour)]
