"""The trunk of MindEye2 as it is published: what its mixers do to a sequence of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.records import Features, Grid, SignalSpec


class ConstantMixer(nn.Module):
    """LayerNorm, Linear, GELU, Dropout and Linear over one value: a constant, and in training noise.

    LayerNorm of a single value is its bias, whatever the value: ``w2 drop(gelu(w1 shift + b1)) + b2``. The gain of the
    norm is never reached and left out.

    Parameters
    ----------
    dropout
        After the GELU, of every value on its own.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.dropout, self.shift = dropout, nn.Parameter(torch.zeros(1))
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, H)`` to constants ``(B, H)``."""
        hidden = F.gelu(self.first(self.shift)).expand_as(x)
        return self.second(F.dropout(hidden, self.dropout, self.training).unsqueeze(-1)).squeeze(-1)


class MindEye2Mixers(Encoder):
    """Four mixer blocks on sequences of one, as in MindEye2 (Scotti et al. 2024, arXiv:2403.11207).

    Each adds the constant of its second mixer (`ConstantMixer`) to the input; the first mixers, 134,283,264 weights at
    width 4096, never reach the output and are left out. In evaluation the trunk is the input plus four constants, which
    the bias of the next layer could hold as well: ``encoder=mindeye2`` (`ResidualMLP` without blocks) is this without
    the noise that their dropout adds in training.

    Parameters
    ----------
    specs
        Subject -> its signals; not needed.
    width
        Width: the grid is ``(width, 1)``.
    n_blocks
        Blocks; published 4.
    dropout
        Published 0.15.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], width: int = 4096, n_blocks: int = 4,
                 dropout: float = 0.15) -> None:
        super().__init__()
        self.grid, self.hidden = Grid(width, 1), (1, width)
        self.mixers = nn.ModuleList(ConstantMixer(dropout=dropout) for _ in range(n_blocks))

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, width, 1)`` to ``(B, 1, width)``; subject tokens are ignored."""
        x = features.grid.squeeze(-1)
        for mixer in self.mixers:
            x = x + mixer(x)
        return x.unsqueeze(1)

    @classmethod
    def tiny(cls) -> Self:
        """Return two blocks of width 16."""
        return cls(specs={}, width=16, n_blocks=2)
