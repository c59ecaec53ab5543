"""The earlier ATM-S: attention over time steps, then temporal and spatial convolution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import TemporalSpatial, common_size
from brain2img.records import Features, Grid, SignalSpec


class ATMTime(Encoder):
    """The ATM-S encoder as its code stood in May 2024 (Li et al., NeurIPS 2024, arXiv:2403.07721).

    https://github.com/Alljoined/EEG_Image_decode keeps that state. Tokens are the T time steps of C values each, not
    channels as the paper has it: a sinusoidal code of the step is added, one post-norm transformer layer (one head,
    ReLU) follows, then a Linear over time that all subjects share ("subject-wise"; its table has one row), and the
    convolutions of `brain2img.encoders.atm`. The encoder that feeds its image generator has ``kernel=5 pool=17``.

    Left out, since no forward pass reaches them: a second copy of the transformer layer (276,539 weights at 63
    channels, without gradient) and the projector of images (2,101,248).

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published.
    feedforward
        Width of the feed-forward part.
    n_filters
        Filters of the convolutions: the hidden width H.
    kernel, pool, stride
        Samples of the temporal convolution, of the pooling window and of its step.
    dropout
        In the attention layer, and after the convolutions.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects, or the window is too short for kernel and pool.
    """

    positions: Tensor

    def __init__(self, *, specs: Mapping[str, SignalSpec], bin: int = 1, feedforward: int = 2048, n_filters: int = 40,
                 kernel: int = 25, pool: int = 51, stride: int = 5, dropout: tuple[float, float] = (0.1, 0.5)) -> None:
        super().__init__()
        n_channels, n_times = common_size(specs, what="earlier ATM encoder", bin=bin)
        self.grid = Grid(n_channels, n_times)
        self.register_buffer("positions", sinusoidal(n_times, n_channels))
        self.attn_layer = nn.TransformerEncoderLayer(n_channels, 1, feedforward, dropout[0], batch_first=True)
        self.subject_wise_linear = nn.Linear(n_times, n_times)
        self.tsconv = TemporalSpatial(n_channels, n_times, n_filters=n_filters, kernel=kernel, pool=pool, stride=stride,
                                      dropout=dropout[1])
        self.projection = nn.Sequential(nn.Conv2d(n_filters, n_filters, (1, 1)))
        self.hidden = (self.tsconv.n_steps, n_filters)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` to ``(B, L, H)``, time first; subject tokens are ignored."""
        x = self.attn_layer(features.grid.transpose(1, 2) + self.positions)
        x = self.subject_wise_linear(x.transpose(1, 2))
        return self.projection(self.tsconv(x)).squeeze(-1).transpose(1, 2)

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, feedforward=16, n_filters=8)


def sinusoidal(n: int, width: int) -> Tensor:
    """Return ``(n, width)`` codes of steps (Vaswani et al. 2017): sines in even columns, cosines in odd ones."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(n)[:, None] * rate
    code = torch.zeros(n, width)
    code[:, 0::2], code[:, 1::2] = angle.sin(), angle.cos()[:, :width // 2]
    return code
