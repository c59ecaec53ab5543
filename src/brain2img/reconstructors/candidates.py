"""Several pictures of a trial, of which the one most like what was decoded is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from brain2img.artifacts import digest
from brain2img.interfaces import Reconstructor, Space
from brain2img.records import EmbeddingSpec, Stimuli


class Candidates(Reconstructor):
    """Makes `n` pictures of every trial and shows the one whose embedding is nearest to the decoded one (cosine).

    As MindEye picks among 16 (https://arxiv.org/abs/2305.18274): by the tokens that were decoded from the brain. The
    true picture is never looked at; picking by it, as the released MindBridge does, would be an oracle.

    Parameters
    ----------
    start
        What makes the pictures; the k-th of a trial are drawn after the first k - 1 by the trial's own generator.
    space
        What embeds them: the backbone of the decoded space.
    by
        Name of that decoded space.
    n
        Pictures of a trial.

    Raises
    ------
    ValueError
        If `n` is less than 2.
    """

    tiny_shapes = {"colour": (3,)}

    def __init__(self, *, start: Reconstructor, space: Space, by: str = "clip", n: int = 8) -> None:
        if n < 2:
            raise ValueError(f"reconstructor.n: expected 2 candidates or more, got {n}. Correct it, or choose the "
                             "reconstructor itself.")
        self.start, self.space, self.by, self.n = start, space, by, n
        self.needs = tuple(dict.fromkeys([*start.needs, by]))

    def uid(self) -> str:
        """Return the identity of all weights."""
        return digest(["candidates", self.start.uid(), self.space.uid()])

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse a decoded space that is not of the backbone which judges, and what `start` refuses.

        Raises
        ------
        ValueError
            If the uids differ.
        """
        self.start.check(specs)
        if specs[self.by].uid != self.space.uid():
            raise ValueError(f"reconstructor.by: expected embeddings of the backbone that judges the candidates (uid "
                             f"{self.space.uid()}), got uid {specs[self.by].uid} in space {self.by!r}. Choose the "
                             "space of this backbone, or the backbone of this space in reconstructor.space.")

    @property
    def fits(self) -> bool:
        """Whether what makes the pictures looks at training stimuli."""
        return self.start.fits

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Show the training stimuli to what makes the pictures; see `interfaces.Reconstructor.fit`."""
        if self.start.fits:
            self.start.fit(embeddings, stimuli)

    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, h, w)`` in [0, 1]; see `interfaces.Reconstructor.reconstruct`."""
        wanted = F.normalize(embeddings[self.by].flatten(1).float(), dim=1)
        best, chosen = torch.full((len(wanted),), -torch.inf), torch.empty(0)
        for _ in range(self.n):
            pictures = self.start.reconstruct(embeddings, generators=generators)
            likeness = (F.normalize(self._embedded(pictures), dim=1) * wanted).sum(dim=1)
            if not len(chosen):
                chosen = pictures.clone()
            better = likeness > best
            chosen[better], best[better] = pictures[better], likeness[better]
        return chosen

    def _embedded(self, pictures: Tensor) -> Tensor:
        """Return the embeddings ``(B, D)`` of pictures as they are written, with 256 levels."""
        pixels = (pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        table = pd.DataFrame({"stimulus_id": [str(row) for row in range(len(pixels))]})
        embedded = self.space.embed(Stimuli(table, lambda rows: pixels[list(rows)]), range(len(pixels)))
        return torch.from_numpy(np.asarray(embedded, dtype=np.float32)).flatten(1)

    @classmethod
    def tiny(cls) -> Self:
        """Return four candidates of one colour each, of which the most like the wanted colour is shown."""
        return cls(start=_OneColour(), space=_MeanColour(), by="colour", n=4)


class _OneColour(Reconstructor):
    """Pictures of one colour each, drawn at random: what `Candidates.tiny` chooses from."""

    needs = ("colour",)

    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        return torch.stack([torch.rand(3, 1, 1, generator=generator).expand(3, 8, 8) for generator in generators])

    @classmethod
    def tiny(cls) -> Self:
        return cls()


class _MeanColour(Space):
    """Mean red, green and blue: what `Candidates.tiny` judges by."""

    name = "colour"

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        return EmbeddingSpec(name=self.name, shape=(3,), uid=self.uid())

    def uid(self) -> str:
        return "mean colour"

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        return stimuli.images(rows).mean(axis=(1, 2), dtype=np.float32)

    @classmethod
    def tiny(cls) -> Self:
        return cls()
