"""One linear map from the hidden states to an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.layers import activation
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class LinearHead(Head):
    """Flattens the hidden states and maps them linearly, as the heads of MindBridge (Wang et al. 2024) do.

    Parameters
    ----------
    bounded
        "sigmoid" for values in [0, 1] (pixels), "tanh" for [-1, 1], None for unbounded ones.
    **given
        What every head takes: see `Head`.
    """

    def __init__(self, *, bounded: str | None = None, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        self.linear = nn.Linear(self.n_hidden, self.spec.size)
        self.activation = activation(bounded)

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        return self.activation(self.linear(hidden.flatten(1))).unflatten(1, self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to a space of 8 dimensions."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", losses={"mse": MSE()})
