"""A residual multi-layer perceptron on one vector per trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.records import Features, Grid, SignalSpec


class ResidualMLP(Encoder):
    """Blocks of Linear, LayerNorm, GELU, Dropout, each added to its input.

    The translator of MindBridge (Wang et al., CVPR 2024, arXiv:2404.07850): 4 blocks of width 2048, dropout 0.15.
    Parameters are named as there (``mlp.<block>.0.weight``).

    Parameters
    ----------
    specs
        Subject -> its signals; not needed.
    width
        Width of all layers: the grid is ``(width, 1)``.
    n_blocks
        Number of blocks.
    dropout
        After every block.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], width: int = 2048, n_blocks: int = 4,
                 dropout: float = 0.15) -> None:
        super().__init__()
        self.grid, self.hidden = Grid(width, 1), (1, width)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout))
            for _ in range(n_blocks))

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, width, 1)`` to ``(B, 1, width)``; subject tokens are ignored."""
        x = features.grid.squeeze(-1)
        for block in self.mlp:
            x = x + block(x)
        return x.unsqueeze(1)

    @classmethod
    def tiny(cls) -> Self:
        """Return two blocks of width 16."""
        return cls(specs={}, width=16, n_blocks=2)
