"""Small images as a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from PIL import Image

from brain2img.artifacts import digest
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, Stimuli


class Pixels(Space):
    """The stimulus as a small image, area-averaged.

    Parameters
    ----------
    size
        Height and width.
    grey
        One luminance channel (ITU-R 601) instead of three colours.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, size: int = 16, grey: bool = False, name: str = "pixels") -> None:
        self.size, self.grey, self.name = size, grey, name

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(3 or 1, size, size)``, values in [0, 1]."""
        return EmbeddingSpec(name=self.name, shape=(1 if self.grey else 3, self.size, self.size), dtype="float16",
                             value_range=(0.0, 1.0), uid=self.uid())

    def uid(self) -> str:
        """Return the identity of size and colours."""
        return digest(["pixels", self.size, self.grey])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, 3 or 1, size, size)`` float32 in [0, 1]."""
        mode = "L" if self.grey else "RGB"
        images = [Image.fromarray(image).convert(mode) for image in stimuli.images(rows)]
        if any(image.size != (self.size, self.size) for image in images):
            images = [image.resize((self.size, self.size), Image.Resampling.BOX) for image in images]
        array = np.stack([np.asarray(image, dtype=np.float32) for image in images]) / 255
        return array[:, None] if self.grey else np.moveaxis(array, -1, 1)

    @classmethod
    def tiny(cls) -> Self:
        """Return 4 x 4 pixels."""
        return cls(size=4)
