"""SimpleConv: dilated residual convolutions over time, with or without a last step that aggregates time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.records import Features, Grid, SignalSpec

KERNEL, GATE = 3, 3
"""Samples of the convolutions, and of those before a gated linear unit."""
FINALS, AGGREGATES = ("complex", "linear"), ("mean", "linear", "attention")
ATTENTION = 256
"""Width of the attention over time."""


class SimpleConv(Encoder):
    """Residual convolutions over time whose dilation doubles, with gated linear units between them.

    brainmagick (Défossez et al., Nature Machine Intelligence 2023, arXiv:2208.12266, https://github.com/
    facebookresearch/brainmagick): every layer is a convolution of 3 samples with dilation 1, 2, 4, 8, 16, 1, ..., batch
    norm and GELU, plus its input where the width is the same; after every second one a convolution of 3 samples to
    twice the width and a gated linear unit; two 1 x 1 convolutions at the end. Its input, channels that all subjects
    share, comes from ``adapter=spatial_attention``. Parameters are named as published (``sequence.0.0.weight``,
    ``glus.1.0.weight``, ``final.2.weight``).

    With `aggregate` it is the MEG image decoder's (Benchetrit, Banville & King, ICLR 2024, arXiv:2310.19812: 4 layers,
    affine aggregation with weights over time that all channels share) and neuroai's SimpleConvTimeAgg
    (https://github.com/facebookresearch/neuroai: `final` null, which leaves out norm and GELU of the last layer; there
    attention over time is Bahdanau's with width 256).

    Deviations: none in what is computed. The last 1 x 1 convolution is exchanged with the aggregation after it, which
    is exact as both are linear in the channels, and saves a product of the size of the whole signal. Arrays lie in
    memory with channels last, in which norms, gates and 1 x 1 convolutions need no copies.

    Parameters
    ----------
    specs
        Subject -> its signals; T must be the same for all.
    channels
        F of the grid, which the adapter maps every subject to; published 270.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published.
    hidden
        Width of the convolutions.
    depth, period
        Layers, and after how many of them the dilation starts again from 1.
    glu
        Layers between two gates; 0 for none.
    final
        "complex": 1 x 1 convolution to twice the width, GELU, 1 x 1 convolution; "linear": the last of these alone;
        None: the last of the layers has width `out`.
    out
        Width H of the output.
    aggregate
        None keeps time, ``(T, H)``; "mean", "linear" (affine) or "attention" give ``(1, H)``.
    dropout
        After every layer; published 0.

    Raises
    ------
    ValueError
        If samples differ between subjects, `bin` leaves none, or `final` or `aggregate` is unknown.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], channels: int = 270, bin: int = 1, hidden: int = 320,
                 depth: int = 10, period: int = 5, glu: int = 2, final: str | None = "complex", out: int = 1024,
                 aggregate: str | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if final not in (*FINALS, None):
            raise ValueError(f"SimpleConv encoder: expected final of {FINALS} or null, got {final!r}. "
                             "Correct encoder.final.")
        if aggregate not in (*AGGREGATES, None):
            raise ValueError(f"SimpleConv encoder: expected aggregate of {AGGREGATES} or null, got {aggregate!r}. "
                             "Correct encoder.aggregate.")
        sizes = {name: spec.n_times for name, spec in specs.items()}
        n_times = next(iter(sizes.values())) // bin
        if len(set(sizes.values())) != 1 or n_times < 1:
            raise ValueError(f"SimpleConv encoder: expected the same samples for all subjects, at least bin = {bin}, "
                             f"got {sizes}. Select the same window for all, or a smaller encoder.bin.")
        self.grid, self.hidden, self.aggregate = Grid(channels, n_times), (1 if aggregate else n_times, out), aggregate
        widths = [channels, *[hidden] * depth]
        if final is None:
            widths[-1] = out
        self.sequence, self.glus = nn.ModuleList(), nn.ModuleList()
        for k, (before, after) in enumerate(itertools.pairwise(widths)):
            dilation = 2 ** (k % period)
            layers: list[nn.Module] = [
                nn.Conv1d(before, after, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation)]
            if final is not None or k < depth - 1:
                layers += [nn.BatchNorm1d(after), nn.GELU(), nn.Dropout(dropout)]
            self.sequence.append(nn.Sequential(*layers))
            gated = glu and (k + 1) % glu == 0
            self.glus.append(nn.Sequential(nn.Conv1d(after, 2 * after, GATE, padding=GATE // 2), nn.GLU(dim=-1))
                             if gated else nn.Identity())
        self.final = nn.Sequential()
        if final == "complex":
            self.final = nn.Sequential(nn.Conv1d(hidden, 2 * hidden, 1), nn.GELU())
        if final is not None:
            self.final.append(nn.ConvTranspose1d(hidden * (1 + (final == "complex")), out, 1))
        if aggregate == "linear":
            self.time = nn.Linear(n_times, 1)
        elif aggregate == "attention":
            self.keys, self.scores = nn.Linear(out, ATTENTION), nn.Linear(ATTENTION, 1)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, F, T)`` to ``(B, T, H)``, or to ``(B, 1, H)`` where time is aggregated; no tokens."""
        x = features.grid.transpose(1, 2).contiguous()  # channels last from here on
        for layers, gate in zip(self.sequence, self.glus, strict=True):
            x = self._gated(self._layer(x, cast(nn.Sequential, layers)), gate)
        if not len(self.final):
            return self._aggregated(x, None, None)
        if len(self.final) > 1:
            x = self.final[1](_convolved(x, cast(nn.Conv1d, self.final[0])))
        last = cast(nn.ConvTranspose1d, self.final[-1])
        return self._aggregated(x, last.weight.squeeze(-1).T, last.bias)

    def _layer(self, x: Tensor, layers: nn.Sequential) -> Tensor:
        """Map ``(B, T, before)`` to ``(B, T, after)``: convolution, norm, GELU, plus the input where it fits."""
        y = _convolved(x, cast(nn.Conv1d, layers[0]))
        for layer in list(layers)[1:]:
            y = layer(y.flatten(0, 1)).view_as(y)
        return x + y if x.shape == y.shape else y

    def _gated(self, x: Tensor, gate: nn.Module) -> Tensor:
        return gate[1](_convolved(x, cast(nn.Conv1d, gate[0]))) if isinstance(gate, nn.Sequential) else x

    def _aggregated(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return the aggregate over time of ``weight x + bias`` for ``(B, T, before)``; None is the identity."""
        scale: Tensor | float = 1.0  # what the weights over time add up to
        if self.aggregate == "mean":
            x = x.mean(dim=1, keepdim=True)
        elif self.aggregate == "linear":
            x, scale = self.time.weight @ x, self.time.weight.sum()
        elif self.aggregate == "attention":
            keys, offset = (None, None) if weight is None else (
                self.keys.weight @ weight, self.keys.bias + self.keys.weight @ cast(Tensor, bias))
            scores = self.scores(torch.tanh(self.keys(x) if keys is None else F.linear(x, keys, offset)))
            x = scores.softmax(dim=1).transpose(1, 2) @ x
        if weight is not None:
            x = F.linear(x, weight, cast(Tensor, bias) * scale)
        return x + self.time.bias if self.aggregate == "linear" else x

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 8 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="meg", units="T", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, channels=8, hidden=6, depth=4, period=2, out=7, aggregate="linear")


def _convolved(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Return the convolution of ``(B, T, before)`` over time, ``(B, T, after)``."""
    if conv.kernel_size == (1,):
        return F.linear(x, conv.weight.squeeze(-1), conv.bias)
    # as a picture of one row: the library computes pictures, but not rows, with channels last
    y = F.conv2d(x.transpose(1, 2).unsqueeze(2), conv.weight.unsqueeze(2), conv.bias,
                 padding=(0, int(conv.padding[0])), dilation=(1, conv.dilation[0]))
    return y.squeeze(2).transpose(1, 2).contiguous()
