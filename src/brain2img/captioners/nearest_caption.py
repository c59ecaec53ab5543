"""Retrieval as captioning: the caption of the training stimulus whose embedding is nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from torch import Tensor

from brain2img.interfaces import Captioner
from brain2img.layers import Neighbours


class NearestCaption(Captioner):
    """Say the first caption of the training stimulus nearest to the decoded embedding (cosine).

    A baseline every language model must beat: it always reads well and never describes the test stimulus.

    Parameters
    ----------
    space
        Name of the space in which neighbours are sought.
    """

    tiny_shapes = {"clip": (3,)}

    def __init__(self, *, space: str = "clip") -> None:
        self.space, self.needs = space, (space,)
        self._neighbours: Neighbours | None = None
        self._captions: list[str] = []

    def fit(self, embeddings: Mapping[str, np.ndarray], captions: Sequence[Sequence[str]]) -> None:
        """Keep the training stimuli: ``(N, *shape)`` embeddings and their captions.

        Raises
        ------
        ValueError
            If a stimulus has no caption.
        """
        without = [i for i, texts in enumerate(captions) if not len(texts)]
        if without or not len(captions):
            raise ValueError(f"captions of the training stimuli: expected at least one for each, got none for "
                             f"{len(without)} of {len(captions)}. Leave captions out for this study (captioner=[]).")
        self._neighbours = Neighbours(np.asarray(embeddings[self.space], dtype=np.float32))
        self._captions = [texts[0] for texts in captions]

    def caption(self, embeddings: Mapping[str, Tensor]) -> list[str]:
        """Map space -> ``(B, *shape)`` to B captions."""
        assert self._neighbours is not None, "fit before caption"
        return [self._captions[i] for i in self._neighbours.nearest(embeddings[self.space])]

    @classmethod
    def tiny(cls) -> Self:
        """Return an instance that knows four captions in a space of three dimensions."""
        tiny = cls()
        tiny.fit({"clip": np.random.default_rng(0).standard_normal((4, 3))},
                 [["a cat"], ["a red car", "a car"], ["a dog"], ["a house"]])
        return tiny
