"""The mean embedding of several views of a picture: blurred, of low resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from brain2img.artifacts import digest
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, Stimuli

KINDS = ("plain", "blur", "low_resolution")


class MeanOfViews(Space):
    """What a backbone makes of several views of each picture, averaged.

    The multi-view image prior of NeuroBridge and the blur of UBP (2503.04207): EEG tells blurred pictures better than
    sharp ones. In retrieval the gallery is embedded likewise.

    Parameters
    ----------
    space
        The backbone: a space of images.
    views
        Name -> strength, in the order of averaging: ``plain`` (any strength), ``blur`` (standard deviation of a
        Gaussian in pixels of 224), ``low_resolution`` (side in pixels to which the picture is averaged and from which
        it is brought back, bilinear). A name may be followed by a number to be used again (``blur2``).
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If there is no view, one is unknown or its strength is not positive.
    """

    def __init__(self, *, space: Space, views: Mapping[str, float], name: str = "views") -> None:
        for view, strength in views.items():
            if view.rstrip("0123456789") not in KINDS or strength <= 0:
                raise ValueError(f"space {name!r}: expected views of {KINDS} with a strength above 0, got {view}: "
                                 f"{strength}. Correct space.{name}.views.")
        if not views:
            raise ValueError(f"space {name!r}: expected at least one view of {KINDS}, got none. Set "
                             f"space.{name}.views.")
        self.space, self.views, self.name = space, dict(views), name

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return the spec of the backbone, with the number of views."""
        return dataclasses.replace(self.space.spec(stimuli), name=self.name, n_views=len(self.views),
                                   view_rule="mean" if len(self.views) > 1 else "single", uid=self.uid())

    def uid(self) -> str:
        """Return the identity of backbone and views."""
        return digest(["views", self.space.uid(), list(self.views.items())])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return the mean over the views, ``(n, *shape)`` float32."""
        images = torch.from_numpy(np.ascontiguousarray(stimuli.images(rows))).permute(0, 3, 1, 2).float() / 255
        embeddings = []
        for view, strength in self.views.items():
            seen = self._seen(images, kind=view.rstrip("0123456789"), strength=strength)
            pixels = _Pictures((seen * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
            shown = Stimuli(stimuli.table.iloc[list(rows)].reset_index(drop=True), pixels.take)
            embeddings.append(self.space.embed(shown, range(len(pixels))))
        return np.asarray(np.mean(embeddings, axis=0), dtype=np.float32)

    @staticmethod
    def _seen(images: Tensor, *, kind: str, strength: float) -> Tensor:
        """Return one view of images ``(n, 3, h, w)`` in [0, 1]."""
        if kind == "blur":
            sigma = strength * images.shape[-1] / 224
            # three standard deviations on each side, less than the picture
            radius = max(1, min(round(3 * sigma), min(images.shape[-2:]) - 1))
            return gaussian_blur(images, [2 * radius + 1] * 2, [sigma, sigma])
        if kind == "low_resolution":
            small = F.interpolate(images, size=int(strength), mode="area")
            return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return images

    @classmethod
    def tiny(cls) -> Self:
        """Return three views, of which only the mean colour is embedded."""
        return cls(space=_MeanColour(), views={"plain": 1, "blur": 7, "low_resolution": 16})


class _Pictures:
    """Pictures ``(n, h, w, 3)`` in memory, read as `Stimuli` reads them."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, places: Sequence[int]) -> np.ndarray:
        return self.pixels[list(places)]


class _MeanColour(Space):
    """Mean red, green and blue: what `MeanOfViews.tiny` looks at."""

    name = "colour"

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        return EmbeddingSpec(name=self.name, shape=(3,), dtype="float32", uid=self.uid())

    def uid(self) -> str:
        return "mean colour"

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        return stimuli.images(rows).mean(axis=(1, 2), dtype=np.float32) / 255

    @classmethod
    def tiny(cls) -> Self:
        return cls()
