"""The first token of another head's output, compared with an embedding of one vector; no weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

from torch import Tensor

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class FirstToken(Head):
    """Takes the class token of the tokens that the head `source` has decoded.

    See Through Their Minds (STTM; arXiv:2403.06361, https://github.com/YulongBonjour/STTM) contrasts it with the global
    embedding of the image and, in the joint space of CLIP, with that of a caption. An embedding ``(D,)`` is its own
    first token: ATM (Li et al., NeurIPS 2024, arXiv:2403.07721) contrasts one output with image and text embeddings of
    CLIP, with weights 0.99 and 0.01, and ranks text embeddings by it ("classification"). There both contrasts share a
    learned scale; here that of the text is its own, or fixed.

    Parameters
    ----------
    source
        Name of the head it reads, which must stand before it and give tokens as wide as the space.
    **given
        What every head takes: see `Head`.
    """

    def __init__(self, *, source: str, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        self.source = source

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map the output ``(B, L, D)`` or ``(B, D)`` of `source` to ``(B, D)``; `hidden` is not needed.

        Raises
        ------
        ValueError
            If `source` is no head before this one, or its tokens are of another width.
        """
        if self.source not in done:
            raise ValueError(f"FirstToken head of {self.space!r}: expected source to be a head before it, of "
                             f"{list(done)}, got {self.source!r}. Put head {self.source!r} before it in head=[...].")
        given = done[self.source]
        token = given[:, 0] if given.ndim > 2 else given
        if token.shape[1:] != self.spec.shape:
            raise ValueError(f"FirstToken head of {self.space!r}: expected tokens of shape {self.spec.shape} from head "
                             f"{self.source!r}, got {tuple(token.shape[1:])}. Let both decode the same backbone.")
        return token

    @classmethod
    def tiny(cls) -> Self:
        """Return a head on the first of the tokens of 8 values that the head "backbone" decodes."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", source="backbone",
                   losses={"mse": MSE()})
