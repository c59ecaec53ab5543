"""Pairs of reconstructions and stimuli, matched or re-paired at random; used by the image metrics, no plug-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from brain2img.metrics.tables import chance_line, check, score_lines
from brain2img.records import Decoded

N_REPAIRINGS = 200

Compare = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps images x ``(U, c, h, w)`` and y ``(V, c, h, w)`` in [0, 1] and P pairs of places in them to P values."""

_GREY = (0.2125, 0.7154, 0.0721)  # the weights of skimage.color.rgb2gray
_VALUES_AT_ONCE = 1 << 23
_VALUES_FOR_CHANCE = 1 << 25


def repairings(truth: np.ndarray, n_gallery: int, *, generator: np.random.Generator,
               n: int = N_REPAIRINGS) -> np.ndarray:
    """Give every decoded row another row's stimulus, n times.

    A re-pairing is a random permutation of the rows' stimuli, as in a permutation test: now and then a row keeps its
    own, so that the level errs upwards (by 1 / number of rows). With a single stimulus decoded, stimuli are drawn from
    the gallery instead.

    Returns
    -------
    numpy.ndarray
        ``(n, rows)`` places in the gallery.
    """
    truth = np.asarray(truth)
    if (truth == truth[0]).all():
        return generator.integers(n_gallery, size=(n, len(truth)))
    return generator.permuted(np.tile(truth, (n, 1)), axis=1)


def pairs_for_chance(decoded: Decoded, *, most: int,
                     generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of `N_REPAIRINGS` re-pairings, or `most` of them at random where there are more.

    Returns
    -------
    rows, stimuli, counts
        Decoded rows, places in the gallery, and how often the pair occurs; each pair is there once.
    """
    stimuli = repairings(decoded.truth, len(decoded.gallery_ids), generator=generator)
    rows = np.broadcast_to(np.arange(len(decoded)), stimuli.shape)
    codes = (rows * len(decoded.gallery_ids) + stimuli).ravel()
    if len(codes) > most:
        codes = generator.choice(codes, most, replace=False)
    codes, counts = np.unique(codes, return_counts=True)
    return *np.divmod(codes, len(decoded.gallery_ids)), counts


def dot(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the inner products ``(P,)`` of ``x[i]`` ``(P, D)`` with ``y[j]``, through one matrix where that pays."""
    if len(i) * 4 > len(x) * len(y):
        return (x @ y.T)[i, j]
    return torch.einsum("pd,pd->p", x[i], y[j])


@dataclass(frozen=True)
class ImagePairs:
    """Reconstructions and stimuli brought to one size.

    Parameters
    ----------
    decoded
        Holds `images` and `gallery_images`.
    size
        Side in pixels to which both are resized; None for the size of the stimuli.
    antialias
        Whether the bilinear resize filters when it shrinks (it makes no difference when it enlarges).
    grey
        Whether colours are first turned into luminance.
    least
        Smallest side that can be compared.

    Raises
    ------
    ValueError
        If there are no images, or they are not ``(n, h, w, 3)`` uint8, or smaller than `least`.
    """

    decoded: Decoded
    size: int | None = None
    antialias: bool = True
    grey: bool = False
    least: int = 1

    def __post_init__(self) -> None:
        check(self.decoded)
        for what, images, n in (("reconstructions", self.decoded.images, len(self.decoded)),
                                ("stimuli", self.decoded.gallery_images, len(self.decoded.gallery_ids))):
            if images is None:
                raise ValueError(f"{what}: expected images, got none. Run the reconstruct stage, or leave the image "
                                 "metrics out.")
            if images.ndim != 4 or images.shape[0] != n or images.shape[3] != 3 or images.dtype != np.uint8:
                raise ValueError(f"{what}: expected ({n}, h, w, 3) uint8 images, got {images.shape} {images.dtype}. "
                                 "Make this folder again with overwrite=true.")
        if min(self.shape) < self.least:
            raise ValueError(f"images: expected sides of at least {self.least} pixels for this metric, got "
                             f"{self.shape}. Set its size.")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width at which images are compared."""
        images = self.decoded.gallery_images
        assert images is not None
        return (self.size, self.size) if self.size is not None else (images.shape[1], images.shape[2])

    def _prepare(self, images: np.ndarray, dtype: torch.dtype) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(dtype) / 255
        x = (x @ torch.tensor(_GREY, dtype=dtype))[:, None] if self.grey else x.permute(0, 3, 1, 2)
        if x.shape[2:] != self.shape:
            shrinks = x.shape[2] > self.shape[0] or x.shape[3] > self.shape[1]
            x = functional.interpolate(x, size=self.shape, mode="bilinear", align_corners=False,
                                       antialias=self.antialias and shrinks)
        return x

    def values(self, rows: np.ndarray, stimuli: np.ndarray, *, compare: Compare,
               dtype: torch.dtype = torch.float64) -> np.ndarray:
        """Return ``(P,)`` values of P pairs of a decoded row and a gallery place, a bounded number at a time."""
        found, true = self.decoded.images, self.decoded.gallery_images
        assert found is not None
        assert true is not None
        n = max(1, _VALUES_AT_ONCE // (self.shape[0] * self.shape[1] * (1 if self.grey else 3)))
        values = np.empty(len(rows))
        for start in range(0, len(rows), n):
            part = slice(start, start + n)
            (x, i), (y, j) = (np.unique(places[part], return_inverse=True) for places in (rows, stimuli))
            values[part] = compare(self._prepare(found[x], dtype), self._prepare(true[y], dtype),
                                   torch.from_numpy(i), torch.from_numpy(j)).numpy()
        return values

    def score(self, metric: str, *, compare: Compare) -> pd.DataFrame:
        """Return the lines of every decoded row with its own stimulus, see `interfaces.Metric.score`."""
        values = self.values(np.arange(len(self.decoded)), np.asarray(self.decoded.truth), compare=compare)
        return score_lines(values, metric=metric)

    def chance(self, metric: str, *, compare: Compare, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over `N_REPAIRINGS` re-pairings, in float32, see `interfaces.Metric.chance`.

        Where that would take more than half a second (200 rows of 64 x 64 pixels), over a random part of its pairs:
        at 64 x 64 the 8,000 that are left give the mean a standard error of about 0.0015.
        """
        most = max(N_REPAIRINGS, _VALUES_FOR_CHANCE // (self.shape[0] * self.shape[1]))
        rows, stimuli, counts = pairs_for_chance(self.decoded, most=most, generator=generator)
        values = self.values(rows, stimuli, compare=compare, dtype=torch.float32)
        return chance_line(float(np.average(values, weights=counts)), "re-pairing", metric=metric)
