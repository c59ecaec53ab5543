"""Retrieval as reconstruction: the training image whose embedding is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from brain2img.interfaces import Reconstructor
from brain2img.layers import Neighbours
from brain2img.records import Stimuli


class NearestTrainingImage(Reconstructor):
    """Show the training stimulus nearest to the decoded embedding (cosine).

    A baseline every generator must beat: it always looks perfect and never shows the test stimulus.

    Parameters
    ----------
    space
        Name of the space in which neighbours are sought.
    size
        Height and width of the images.
    """

    tiny_shapes = {"clip": (3,)}

    def __init__(self, *, space: str = "clip", size: int = 64) -> None:
        self.space, self.size, self.needs = space, size, (space,)
        self._neighbours: Neighbours | None = None
        self._stimuli: Stimuli | None = None

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Keep the ``(N, *shape)`` embeddings of the N training stimuli, and where their pictures are."""
        self._neighbours = Neighbours(np.asarray(embeddings[self.space], dtype=np.float32))
        self._stimuli = stimuli

    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1]."""
        assert self._neighbours is not None, "fit before reconstruct"
        assert self._stimuli is not None, "fit before reconstruct"
        nearest = self._neighbours.nearest(embeddings[self.space])
        images = torch.from_numpy(self._stimuli.images(nearest)).permute(0, 3, 1, 2).float() / 255
        if images.shape[-1] != self.size:
            images = torch.nn.functional.interpolate(images, size=(self.size, self.size), mode="bicubic",
                                                     align_corners=False, antialias=True).clamp(0, 1)
        return images

    @classmethod
    def tiny(cls) -> Self:
        """Return an instance that knows four images in a space of three dimensions."""
        tiny = cls(size=8)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        tiny.fit({"clip": rng.standard_normal((4, 3))}, Stimuli(pd.DataFrame(index=range(4)), images.__getitem__))
        return tiny
