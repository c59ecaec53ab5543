"""Pixel correlation of reconstructions with stimuli."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain2img.interfaces import Metric
from brain2img.metrics.pairing import ImagePairs, dot
from brain2img.records import Decoded


def _unit(images: Tensor) -> Tensor:
    """Flatten, centre and scale to unit norm; a constant image becomes zero."""
    flat = images.reshape(len(images), -1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    norm = centred.norm(dim=1, keepdim=True)
    # 8-bit images that vary at all leave far more than rounding
    constant = norm <= 1e-6 * flat.norm(dim=1, keepdim=True)
    return torch.where(constant, torch.zeros_like(centred), centred / norm.clamp_min(torch.finfo(flat.dtype).tiny))


def correlation(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the Pearson correlation ``(P,)`` over all values of ``x[i]`` and ``y[j]``, 0 where one is constant."""
    return dot(_unit(x), _unit(y), i, j)


class PixCorr(Metric):
    """Pearson correlation over the pixels of a reconstruction and its stimulus.

    The PixCorr of the fMRI literature (Ozcelik & VanRullen 2023, https://arxiv.org/abs/2303.05334): RGB values,
    flattened, one correlation per image, then the mean; published at ``size=425, antialias=False`` (torchvision 0.15
    did not filter tensors). At the stimulus' own size it is also the PCC of the digit studies (``name="pcc"``; whose
    papers do not print their formula). The correlation of a constant image is undefined and counts as 0.

    Parameters
    ----------
    name
        Name of the score.
    size
        Side in pixels to which both are resized bilinearly; None for the stimulus' own size.
    antialias
        Whether that resize filters when it shrinks.
    """

    needs = ("images",)
    labels: Mapping[str, str] = {"pixcorr": "PixCorr", "pcc": "PCC"}

    def __init__(self, *, name: str = "pixcorr", size: int | None = None, antialias: bool = True) -> None:
        self.names = (name,)
        self.size = size
        self.antialias = antialias

    def _pairs(self, decoded: Decoded) -> ImagePairs:
        return ImagePairs(decoded, size=self.size, antialias=self.antialias)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every reconstruction, in [-1, 1], see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If there are no images, or not uint8 RGB.
        """
        return self._pairs(decoded).score(self.names[0], compare=correlation)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`."""
        return self._pairs(decoded).chance(self.names[0], compare=correlation, generator=generator)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
