"""The projector of MindEye: another head's tokens -> the output that is trained by contrast."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Self, Unpack

from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class TokenProjector(Head):
    """Three times LayerNorm, GELU, Linear, on every token that the head `source` has decoded.

    MindEye (Scotti et al., NeurIPS 2023, arXiv:2305.18274, https://github.com/MedARC-AI/fMRI-reconstruction-NSD), there
    on 257 tokens of 768 with width 2048, and MindEye2 (arXiv:2403.11207), 256 tokens of 1664 with width 1664. What
    comes in (the "backbone" output) conditions the prior, what comes out is compared with the true embeddings by
    BiMixCo and SoftCLIP, and is what retrieval uses. Parameters are named as there (``projector.{0,2,3,5,6,8}``).

    Parameters
    ----------
    source
        Name of the head it builds on, which must stand before it and give embeddings of the same shape.
    width
        Of the two layers in between.
    **given
        What every head takes: see `Head`.
    """

    def __init__(self, *, source: str, width: int = 2048, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        self.source = source
        sizes = (self.spec.shape[-1], width, width, self.spec.shape[-1])
        self.projector = nn.Sequential(*(layer for a, b in pairwise(sizes)
                                         for layer in (nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b))))

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map the output ``(B, *shape)`` of `source` to ``(B, *shape)``; `hidden` is not needed.

        Raises
        ------
        ValueError
            If `source` is no head before this one, or gives another shape.
        """
        if self.source not in done:
            raise ValueError(f"TokenProjector head of {self.space!r}: expected source to be a head before it, of "
                             f"{list(done)}, got {self.source!r}. Put head {self.source!r} before it in head=[...].")
        given = done[self.source]
        if given.shape[1:] != self.spec.shape:
            raise ValueError(f"TokenProjector head of {self.space!r}: expected embeddings of shape {self.spec.shape} "
                             f"from head {self.source!r}, got {tuple(given.shape[1:])}. Let both decode the same "
                             "backbone.")
        return self.projector(given)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head on 3 tokens of 8 values that the head "backbone" decodes."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(3, 8)), space="tiny", source="backbone",
                   losses={"mse": MSE()}, width=16)
