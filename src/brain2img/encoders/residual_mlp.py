"""A residual multi-layer perceptron on one vector per trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import nonlinearity
from brain2img.records import Features, Grid, SignalSpec


class ResidualMLP(Encoder):
    """Blocks of Linear, LayerNorm, GELU, Dropout, each added to its input.

    The translator of MindBridge (Wang et al., CVPR 2024, arXiv:2404.07850): 4 blocks of width 2048, dropout 0.15.
    Parameters are named as there (``mlp.<block>.0.weight``). Also the trunk of MindEye (Scotti et al. 2023,
    arXiv:2305.18274): 4 blocks of width 4096, dropout 0.15; its low-level model has no biases, SiLU and dropout 0.25.

    With no blocks the trunk is the identity, and all from voxels to embedding is linear. This is what MindEye2 (Scotti
    et al. 2024, arXiv:2403.11207) computes: its 4 mixer blocks work on sequences of one, over which LayerNorm returns
    its bias, so that their output is the input and four constants, which the next layer's bias holds as well. The
    134,283,264 published weights of their first mixers (at width 4096) have zero gradient and are left out here.

    Parameters
    ----------
    specs
        Subject -> its signals; not needed.
    width
        Width of all layers: the grid is ``(width, 1)``.
    n_blocks
        Number of blocks; 0 for a linear model.
    dropout
        After every block.
    activation
        "gelu" or "silu".
    bias
        Of the linear layers.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], width: int = 2048, n_blocks: int = 4,
                 dropout: float = 0.15, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        self.grid, self.hidden = Grid(width, 1), (1, width)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width, bias=bias), nn.LayerNorm(width), nonlinearity(activation),
                          nn.Dropout(dropout))
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
