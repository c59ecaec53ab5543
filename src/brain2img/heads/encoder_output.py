"""The output of the encoder itself, for encoders that end in the embedding; no weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

from torch import Tensor

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class EncoderOutput(Head):
    """Takes the hidden states as the embedding, as brainmagick and the baselines of ATM's retrieval do.

    Parameters
    ----------
    **given
        What every head takes: see `Head`.

    Raises
    ------
    ValueError
        If the hidden states are not as many values as the embedding.
    """

    def __init__(self, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        if self.n_hidden != self.spec.size:
            raise ValueError(f"EncoderOutput head of {self.space!r}: expected an encoder that gives the "
                             f"{self.spec.size} values of {self.spec.shape}, got hidden states {self.hidden}. Set "
                             "encoder.out or encoder.n_outputs to the size of the embedding, or choose another head.")

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        return hidden.reshape(len(hidden), *self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 8) to a space of 8 dimensions."""
        return cls(hidden=(1, 8), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", losses={"mse": MSE()})
