"""No trunk at all: heads read the grid as the adapter gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from brain2img.interfaces import Encoder
from brain2img.layers import common_size
from brain2img.records import Features, Grid, SignalSpec


class Identity(Encoder):
    """The grid as hidden states, L = C channels of H = T samples; it has no parameters.

    With a linear head all from signals to embedding is linear. It is also the trunk of ATM's low-level branch (Li et
    al. 2024, arXiv:2403.07721), whose head reads the 63 x 128 values that its adapter gives.

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    bin
        Successive samples that the adapter averages to one of the grid's.
    n_times
        Samples of the grid where the adapter maps onto another number (``adapter=subject_time``); else None.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], bin: int = 1, n_times: int | None = None) -> None:
        super().__init__()
        n_channels, samples = common_size(specs, what="identity encoder", bin=bin)
        self.grid = Grid(n_channels, n_times or samples)
        self.hidden = (self.grid.F, self.grid.T)

    def forward(self, features: Features) -> Tensor:
        """Return the grid ``(B, C, T)``; subject tokens are ignored."""
        return features.grid

    @classmethod
    def tiny(cls) -> Self:
        """Return a trunk for 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec})
