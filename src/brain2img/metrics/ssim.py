"""Structural similarity of reconstructions with stimuli."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain2img.interfaces import Metric
from brain2img.metrics.pairing import ImagePairs
from brain2img.records import Decoded

KINDS = ("field", "default")
_C1, _C2 = 0.01**2, 0.03**2


def _taps(kind: str, dtype: torch.dtype) -> Tensor:
    if kind == "default":
        return torch.full((7,), 1 / 7, dtype=dtype)
    weights = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=dtype) / 1.5) ** 2)
    return weights / weights.sum()


def _mean(images: Tensor, taps: Tensor) -> Tensor:
    """Filter ``(P, h, w)`` along both axes, where the whole window lies inside the image."""
    for axis in (1, 2):
        size = images.shape[axis] - len(taps) + 1
        filtered = taps[0] * images.narrow(axis, 0, size)
        for shift in range(1, len(taps)):
            filtered.add_(images.narrow(axis, shift, size), alpha=float(taps[shift]))
        images = filtered
    return images


def structural_similarity(x: Tensor, y: Tensor, i: Tensor, j: Tensor, *, kind: str) -> Tensor:
    """Return the SSIM ``(P,)`` of grey ``x[i]`` and ``y[j]`` ``(P, 1, h, w)`` in [0, 1].

    Means and variances of each image are computed once, however many pairs it is in.
    """
    taps = _taps(kind, x.dtype)
    unbiased = 49 / 48 if kind == "default" else 1.0
    x, y = x[:, 0], y[:, 0]
    mean_x, mean_y = _mean(x, taps), _mean(y, taps)
    power_x, power_y = _mean(x * x, taps) - mean_x**2, _mean(y * y, taps) - mean_y**2
    values = torch.empty(len(i), dtype=x.dtype)
    n = max(1, (1 << 17) // x[0].numel())  # what stays in the processor's cache
    for start in range(0, len(i), n):
        a, b = i[start:start + n], j[start:start + n]
        product = mean_x[a] * mean_y[b]
        covariance = (_mean(x[a] * y[b], taps) - product) * unbiased
        above = (2 * product + _C1) * (2 * covariance + _C2)
        below = (mean_x[a] ** 2 + mean_y[b] ** 2 + _C1) * ((power_x[a] + power_y[b]) * unbiased + _C2)
        values[start:start + n] = (above / below).mean(dim=(1, 2))
    return values


class SSIM(Metric):
    """Structural similarity index of the grey values of a reconstruction and its stimulus.

    Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861; equal to ``skimage.metrics.structural_similarity`` with
    ``data_range=1`` on ``rgb2gray`` images. The reported value depends on the window, so it is an argument:

    - "field": Gaussian window (sigma 1.5, 11 taps), population covariance, as in the fMRI literature (MindEye,
      https://arxiv.org/abs/2305.18274), published at ``size=425, antialias=False``. Scripts that ran scikit-image
      below 0.20 averaged one-dimensional SSIMs of image columns instead; that variant is not offered.
    - "default": scikit-image's defaults (7 x 7 uniform window, sample covariance), for the digit studies.

    Parameters
    ----------
    kind
        "field" or "default".
    name
        Name of the score.
    size
        Side in pixels to which both are resized bilinearly; None for the stimulus' own size.
    antialias
        Whether that resize filters when it shrinks.

    Raises
    ------
    ValueError
        If `kind` is unknown.
    """

    needs = ("images",)
    labels: Mapping[str, str] = {"ssim": "SSIM"}

    def __init__(self, *, kind: str = "field", name: str = "ssim", size: int | None = None,
                 antialias: bool = True) -> None:
        if kind not in KINDS:
            raise ValueError(f"ssim: expected a kind of {KINDS}, got {kind!r}. Correct metric.ssim.kind.")
        self.kind = kind
        self.names = (name,)
        self.size = size
        self.antialias = antialias

    def _pairs(self, decoded: Decoded) -> ImagePairs:
        return ImagePairs(decoded, size=self.size, antialias=self.antialias, grey=True,
                          least=len(_taps(self.kind, torch.float64)))

    def _compare(self, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return structural_similarity(x, y, i, j, kind=self.kind)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every reconstruction, in [-1, 1], see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If there are no images, or not uint8 RGB, or smaller than the window.
        """
        return self._pairs(decoded).score(self.names[0], compare=self._compare)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`."""
        return self._pairs(decoded).chance(self.names[0], compare=self._compare, generator=generator)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
