"""A plain MLP on all channels and samples at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import Residual, common_size
from brain2img.records import Features, Grid, SignalSpec


class MLP(Encoder):
    """Flattens channels and samples; Linear, then residual blocks of GELU, Linear and Dropout, then LayerNorm.

    With one block it is the two-layer projector that much work on THINGS-EEG2 since 2024 reads the image embedding
    with: the one of NICE (Song et al. 2024, arXiv:2308.13234), without its convolutions. Any head may follow; with
    ``encoder_output`` and `width` the size of the embedding there is none.

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    bin
        Successive samples that the adapter averages to one of the grid's.
    width
        Width H of the layers and of the output.
    n_blocks
        Residual blocks after the first layer; 0 for a linear map.
    dropout
        At the end of each block.
    norm
        End with the LayerNorm.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], bin: int = 1, width: int = 1024, n_blocks: int = 1,
                 dropout: float = 0.5, norm: bool = True) -> None:
        super().__init__()
        self.grid = Grid(*common_size(specs, what="MLP encoder", bin=bin))
        self.hidden = (1, width)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(self.grid.F * self.grid.T, width),
            *(Residual(nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout)))
              for _ in range(n_blocks)),
            nn.LayerNorm(width) if norm else nn.Identity())

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` to ``(B, 1, H)``; tokens are ignored."""
        return self.layers(features.grid)[:, None]

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, width=8)
