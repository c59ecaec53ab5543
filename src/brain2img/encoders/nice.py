"""NICE: temporal and spatial convolution, with or without attention among channels before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import Residual, TemporalSpatial, common_size, normal_weights
from brain2img.records import Features, Grid, SignalSpec

POOLED = 30
"""Samples that a step of the published scale of attention stands for: scores are divided by sqrt(int(T / 30))."""
SPATIAL = (None, "self_attention", "graph_attention")


class SelfAttention(nn.Module):
    """Self-attention among channels, whose tokens are the channels and whose linear layers mix channels (NICE-SA).

    With q and k Linear, LayerNorm and Dropout of the channels at every sample, scores are s_cm = sum_t q_ct k_mt /
    sqrt(int(T / 30)), and the output is a Linear, LayerNorm and Dropout of sum_m softmax_m(s_cm) x_mt.

    Parameters
    ----------
    n_channels, n_times
        Size ``(C, T)`` of the input.
    dropout
        After every linear layer.
    as_published
        Sum the weights without x_mt, as the published product (``bocs,bocm->bocs``) does: they add to 1 and cancel,
        x itself goes on, and the weights of query and key do nothing.

    Initial weights are Xavier-normal; `NICE` draws them anew where it draws them as published.
    """

    def __init__(self, n_channels: int, n_times: int, *, dropout: float, as_published: bool) -> None:
        super().__init__()
        self.as_published, self.scale = as_published, math.sqrt(max(1, n_times // POOLED))
        linears = [nn.Linear(n_channels, n_channels) for _ in range(3)]
        for linear in linears:
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.query, self.key, self.projection = (
            nn.Sequential(linear, nn.LayerNorm(n_channels), nn.Dropout(dropout)) for linear in linears)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C, T)``."""
        steps = x.transpose(1, 2)
        weights = (self.query(steps).transpose(1, 2) @ self.key(steps) / self.scale).softmax(dim=-1)
        mixed = x * weights.sum(dim=-1, keepdim=True) if self.as_published else weights @ x
        return self.projection(mixed.transpose(1, 2)).transpose(1, 2)


class GraphAttention(nn.Module):
    """Graph attention over the fully connected channels (NICE-GA).

    Veličković et al. 2018, arXiv:1710.10903, as torch_geometric's ``GATConv`` with one head, which adds an edge from
    every node to itself: with h_c = W x_c, the output is sum_m softmax_m(LeakyReLU_0.2(a . h_m + b . h_c)) h_m + bias.

    Parameters
    ----------
    n_times
        Samples T: the features of a channel.
    as_published
        Join the channels of the first trial of a batch alone, as the published edges, which are not repeated for the
        other trials of the batch, do; a channel of those has its edge to itself, hence h_c + bias.
    """

    def __init__(self, n_times: int, *, as_published: bool) -> None:
        super().__init__()
        self.as_published = as_published
        self.lin = nn.Linear(n_times, n_times, bias=False)
        self.att_src, self.att_dst = (nn.Parameter(torch.empty(1, n_times)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(n_times))
        for weight in (self.lin.weight, self.att_src, self.att_dst):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, C, T)``."""
        h = self.lin(x)
        joined = h[:1] if self.as_published else h
        source, goal = (joined @ a.T for a in (self.att_src, self.att_dst))  # B, C, 1
        weights = F.leaky_relu(goal + source.transpose(1, 2), 0.2).softmax(dim=-1)
        return torch.cat([weights @ joined, h[len(joined):]]) + self.bias


class NICE(Encoder):
    """The encoder of Song et al. (ICLR 2024, arXiv:2308.13234, https://github.com/eeyhsong/NICE-EEG).

    Convolutions over time and then over channels, 1 x 1 projection, named as there (``tsconv.0.weight``,
    ``projection.0.weight``); before them none, self-attention (NICE-SA) or graph attention (NICE-GA) among channels as
    a residual branch. It goes with `brain2img.heads.projector.Projector`. The number of channels is that of the signals
    (the published attention layers hold 64, whatever the data).

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    spatial
        None, "self_attention" or "graph_attention".
    as_published
        Whether the attention has the fault of the published code, see `SelfAttention` and `GraphAttention`, and
        self-attention its initial weights, those of the convolutions. False mends it.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published.
    n_filters
        Filters of the convolutions: the hidden width H.
    kernel, pool, stride
        Samples of the temporal convolution, of the pooling window and of its step.
    dropout
        In and after the attention, and after the convolutions.
    initial_std
        Standard deviation of the initial weights of the convolutions; published 0.02. None for the layers' own.

    Raises
    ------
    ValueError
        If `spatial` is unknown, channels or samples differ between subjects, or the window is too short.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], spatial: str | None = None, as_published: bool = False,
                 bin: int = 1, n_filters: int = 40, kernel: int = 25, pool: int = 51, stride: int = 5,
                 dropout: tuple[float, float] = (0.3, 0.5), initial_std: float | None = 0.02) -> None:
        super().__init__()
        if spatial not in SPATIAL:
            raise ValueError(f"NICE encoder: expected spatial of {SPATIAL}, got {spatial!r}. Correct encoder.spatial.")
        n_channels, n_times = common_size(specs, what="NICE encoder", bin=bin)
        self.grid = Grid(n_channels, n_times)
        layers: list[nn.Module] = []
        if spatial == "self_attention":
            layers = [nn.LayerNorm(n_times), SelfAttention(n_channels, n_times, dropout=dropout[0],
                                                           as_published=as_published)]
        elif spatial == "graph_attention":
            layers = [GraphAttention(n_times, as_published=as_published)]
        self.spatial = Residual(nn.Sequential(*layers, nn.Dropout(dropout[0]))) if layers else nn.Identity()
        self.tsconv = TemporalSpatial(n_channels, n_times, n_filters=n_filters, kernel=kernel, pool=pool, stride=stride,
                                      dropout=dropout[1])
        self.projection = nn.Sequential(nn.Conv2d(n_filters, n_filters, (1, 1)))
        self.hidden = (self.tsconv.n_steps, n_filters)
        if initial_std is not None:
            drawn = [self.spatial] if as_published and spatial == "self_attention" else []
            for part in (*drawn, self.tsconv, self.projection):
                normal_weights(part, std=initial_std)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` to ``(B, L, H)``, time first; subject tokens are ignored."""
        return self.projection(self.tsconv(self.spatial(features.grid))).squeeze(-1).transpose(1, 2)

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 5 channels and 80 samples with self-attention."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, spatial="self_attention", n_filters=8)
