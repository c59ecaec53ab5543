"""The output of the encoder itself, for encoders that end in the embedding; no weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from brain2img.interfaces import Head
from brain2img.losses import MSE, Loss
from brain2img.records import EmbeddingSpec


class EncoderOutput(Head):
    """Takes the hidden states as the embedding, as brainmagick and the baselines of ATM's retrieval do.

    Parameters
    ----------
    hidden
        ``(L, H)`` of the encoder; as many values as the embedding has.
    spec
        What the embeddings of the space are.
    space
        Name of the space.
    losses
        Name -> loss.
    prediction
        True for the one head whose output is the decoded embedding of the space.

    Raises
    ------
    ValueError
        If the hidden states are not as many values as the embedding.
    """

    def __init__(self, *, hidden: tuple[int, int], spec: EmbeddingSpec, space: str, losses: Mapping[str, Loss],
                 prediction: bool = True) -> None:
        super().__init__()
        if hidden[0] * hidden[1] != spec.size:
            raise ValueError(f"EncoderOutput head of {space!r}: expected an encoder that gives the {spec.size} values "
                             f"of {spec.shape}, got hidden states {tuple(hidden)}. Set encoder.out or "
                             "encoder.n_outputs to the size of the embedding, or choose another head.")
        self.space, self.prediction, self.spec = space, prediction, spec
        self.losses = nn.ModuleDict(losses)

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        return hidden.reshape(len(hidden), *self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 8) to a space of 8 dimensions."""
        return cls(hidden=(1, 8), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", losses={"mse": MSE()})
