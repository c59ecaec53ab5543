"""The two pathways of See Through Their Minds: a high-level one, and a pixel-wise one that it guides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import Residual, nonlinearity
from brain2img.records import Features, Grid, SignalSpec


class STTM(Encoder):
    """Residual blocks for the high level, as many for the low level, and the sum of both, merged, for the latents.

    See Through Their Minds (STTM; arXiv:2403.06361, AAAI 2025, https://github.com/YulongBonjour/STTM). High level: 4
    blocks of Linear, LayerNorm, GELU, Dropout 0.15, width 4096. Low level (Voxel2SD): 4 such blocks with SiLU on the
    output of a subject's adapter; the high-level feature is added to the result, and one more block, with a residual
    connection, merges them. A learned null stands for the high-level feature where there is none (`guided` false), and
    in training, with probability `p_null`, another one for the low-level path, so that the merging learns to use the
    guide. Hidden state 0 is the high-level feature (``state: 0`` of `TokenAttention`), 1 the merged one (``state: 1``
    of `LatentDecoder`).

    Our notes do not say whether nulls are drawn by trial or by batch (here by trial), what the merging block is (here
    one as the others of its path) and whether the latents' loss reaches the high level through the guide (here it does
    not, unless `detach` is false). Deviation: both pathways read the same adapter, trained by the losses of both; so a
    new subject needs one, as there.

    Parameters
    ----------
    specs
        Subject -> its signals; not needed.
    width
        Width of all layers: the grid is ``(width, 1)``.
    n_blocks
        Blocks of either pathway.
    dropout
        After every block.
    p_null
        Share of the trials whose low-level path is replaced in training.
    guided
        Whether the high-level feature guides the low level.
    detach
        Whether the guide is a constant for the low level's losses.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], width: int = 4096, n_blocks: int = 4, dropout: float = 0.15,
                 p_null: float = 0.4, guided: bool = True, detach: bool = True) -> None:
        super().__init__()
        self.grid, self.hidden = Grid(width, 1), (2, width)
        self.p_null, self.detach = p_null, detach

        def block(activation: str) -> Residual:
            return Residual(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nonlinearity(activation),
                                          nn.Dropout(dropout)))

        self.high = nn.Sequential(*(block("gelu") for _ in range(n_blocks)))
        self.low = nn.Sequential(*(block("silu") for _ in range(n_blocks)))
        self.null_low = nn.Parameter(0.02 * torch.randn(width))
        self.null_high = None if guided else nn.Parameter(0.02 * torch.randn(width))
        self.merge = block("silu")

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, width, 1)`` to ``(B, 2, width)``: high level, and low level as it is guided by it."""
        x = features.grid.squeeze(-1)
        high, low = self.high(x), self.low(x)
        if self.training and self.p_null:
            # the global generator, as for dropout: the decoder seeds it anew in every epoch
            null = torch.rand(len(x), 1, device=x.device) < self.p_null
            low = torch.where(null, self.null_low.to(low), low)
        guide = self.null_high if self.null_high is not None else high.detach() if self.detach else high
        return torch.stack([high, self.merge(low + guide)], dim=1)

    @classmethod
    def tiny(cls) -> Self:
        """Return one block a pathway, of width 16."""
        return cls(specs={}, width=16, n_blocks=1)
