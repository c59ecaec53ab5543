"""Pixel decoding: the decoded small image, enlarged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Generator, Tensor

from brain2img.interfaces import Reconstructor


class PixelDecoding(Reconstructor):
    """Clip the decoded `space` to [0, 1] and enlarge it: no prior, hence nothing that did not come from the brain.

    Parameters
    ----------
    size
        Height and width of the images.
    space
        Name of a space of shape ``(3 or 1, s, s)`` with values in [0, 1].
    """

    tiny_shapes = {"pixels": (3, 8, 8)}

    def __init__(self, *, size: int = 64, space: str = "pixels") -> None:
        self.size, self.space, self.needs = size, space, (space,)

    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1], bicubic."""
        small = embeddings[self.space].float().clamp(0, 1)
        if small.ndim != 4 or small.shape[1] not in (1, 3):
            raise ValueError(f"space {self.space!r}: expected images (B, 3 or 1, s, s), got {tuple(small.shape)}. "
                             "Choose a pixel space with reconstructor.space.")
        if small.shape[-1] != self.size:
            small = torch.nn.functional.interpolate(small, size=(self.size, self.size), mode="bicubic",
                                                    align_corners=False).clamp(0, 1)
        return small.expand(-1, 3, -1, -1)

    @classmethod
    def tiny(cls) -> Self:
        """Return 8 x 8 images."""
        return cls(size=8)
