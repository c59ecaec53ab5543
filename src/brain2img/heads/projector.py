"""The residual projector of NICE and ATM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.layers import Residual, activation, normal_weights
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class Projector(Head):
    """Linear, residual of GELU, Linear and Dropout, LayerNorm: ``Proj_eeg`` of NICE and ATM.

    Song et al. (ICLR 2024, https://github.com/eeyhsong/NICE-EEG) and Li et al. (NeurIPS 2024,
    https://github.com/dongyangli-del/EEG_Image_decode); parameters are named as there (``proj.1.fn.1.weight``).

    Parameters
    ----------
    width
        Width of the projector. None takes the size of the embedding and ends with the LayerNorm, as published; a
        number adds a linear map to the embedding, which large or bounded spaces (pixels) need: LayerNorm fixes mean
        and variance of each output vector.
    dropout
        In the residual part.
    bounded
        "sigmoid" for values in [0, 1] (pixels), "tanh" for [-1, 1], None for unbounded ones.
    initial_std
        Standard deviation of the initial weights; 0.02 in NICE. None for PyTorch's own, as in ATM.
    **given
        What every head takes: see `Head`.
    """

    def __init__(self, *, width: int | None = None, dropout: float = 0.5, bounded: str | None = None,
                 initial_std: float | None = None, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        size = width or self.spec.size
        self.proj = nn.Sequential(
            nn.Linear(self.n_hidden, size),
            Residual(nn.Sequential(nn.GELU(), nn.Linear(size, size), nn.Dropout(dropout))), nn.LayerNorm(size))
        self.output = nn.Identity() if width is None else nn.Linear(size, self.spec.size)
        self.activation = activation(bounded)
        if initial_std is not None:
            normal_weights(self, std=initial_std)

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        return self.activation(self.output(self.proj(hidden.flatten(1)))).unflatten(1, self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to a space of 8 dimensions."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny", losses={"mse": MSE()})
