"""A multi-layer perceptron of two layers from the hidden states to an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.layers import activation
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class TwoLayers(Head):
    """Linear, GELU, Linear on the flat hidden states.

    The heads of ViT3D (Neuro-Vision to Language, Shen et al., NeurIPS 2024, arXiv:2404.19438): width 1024, one onto
    CLIP and one onto the latents of the autoencoder. The activation is not published; GELU is our choice.

    Parameters
    ----------
    width
        Width of the hidden layer.
    bounded
        "sigmoid" for values in [0, 1] (pixels), "tanh" for [-1, 1], None for unbounded ones.
    **given
        What every head takes: see `Head`.
    """

    def __init__(self, *, width: int = 1024, bounded: str | None = None, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        self.mlp = nn.Sequential(nn.Linear(self.n_hidden, width), nn.GELU(), nn.Linear(width, self.spec.size))
        self.activation = activation(bounded)

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        return self.activation(self.mlp(hidden.flatten(1))).unflatten(1, self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to a space of 8 dimensions."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", losses={"mse": MSE()},
                   width=12)
