"""The mixer of ATM's MLP baseline: linear layers over samples and over channels in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import common_size
from brain2img.records import Features, Grid, SignalSpec


class Mixer(Encoder):
    """LayerNorm, Linear, GELU and Dropout over samples, then over channels, several times; one vector at the end.

    The "Projector" of the MLP baseline of https://github.com/dongyangli-del/EEG_Image_decode (Li et al., NeurIPS 2024,
    arXiv:2403.07721): samples 250 -> 1024 and channels 63 -> 64, two more such layers at these widths, then LayerNorm
    and Linear without the rest, channels to 1. With the head ``encoder_output`` its output is the embedding; upstream
    normalises it there, and the losses do here.

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published.
    width, channels
        Widths over samples, which is that of the output, and over channels.
    n_layers
        Layers at these widths after the first.
    dropout
        After every GELU.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], bin: int = 1, width: int = 1024, channels: int = 64,
                 n_layers: int = 2, dropout: float = 0.25) -> None:
        super().__init__()
        n_channels, n_times = common_size(specs, what="Mixer encoder", bin=bin)
        self.grid, self.hidden = Grid(n_channels, n_times), (1, width)

        def mapped(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(before), nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout))

        samples, sensors = [n_times] + [width] * n_layers, [n_channels] + [channels] * n_layers
        self.over_samples = nn.ModuleList([*(mapped(n, width) for n in samples), mapped(width, width)[:2]])
        self.over_channels = nn.ModuleList([*(mapped(n, channels) for n in sensors), mapped(channels, 1)[:2]])

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` to ``(B, 1, H)``; tokens are ignored."""
        x = features.grid
        for over_samples, over_channels in zip(self.over_samples, self.over_channels, strict=True):
            x = over_channels(over_samples(x).transpose(1, 2)).transpose(1, 2)
        return x

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, width=8, channels=4)
