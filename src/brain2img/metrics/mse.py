"""Mean squared error of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
from torch import Tensor

from brain2img.interfaces import Metric
from brain2img.metrics.pairing import ImagePairs, dot
from brain2img.records import Decoded


def squared_error(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the mean squared difference ``(P,)`` of ``x[i]`` and ``y[j]``."""
    # around mid-grey, so that less is lost where the three terms cancel
    flat_x, flat_y = x.reshape(len(x), -1) - 0.5, y.reshape(len(y), -1) - 0.5
    squares = flat_x.square().sum(dim=1)[i] + flat_y.square().sum(dim=1)[j]
    return ((squares - 2 * dot(flat_x, flat_y, i, j)) / flat_x.shape[1]).clamp_min(0)


class MSE(Metric):
    """Mean squared error over the pixels, in [0, 1], of a reconstruction and its stimulus; lower is better.

    Over all three channels; for grey stimuli, whose channels are equal, that is the error of the grey values.

    Parameters
    ----------
    size
        Side in pixels to which both are resized bilinearly; None for the stimulus' own size.
    antialias
        Whether that resize filters when it shrinks.
    """

    names = ("mse",)
    needs = ("images",)
    labels: Mapping[str, str] = {"mse": "MSE"}
    decimals = 4
    higher_is_better = False

    def __init__(self, *, size: int | None = None, antialias: bool = True) -> None:
        self.size = size
        self.antialias = antialias

    def _pairs(self, decoded: Decoded) -> ImagePairs:
        return ImagePairs(decoded, size=self.size, antialias=self.antialias)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every reconstruction, in [0, 1], see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If there are no images, or not uint8 RGB.
        """
        return self._pairs(decoded).score(self.names[0], compare=squared_error)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`."""
        return self._pairs(decoded).chance(self.names[0], compare=squared_error, generator=generator)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
