"""The subject adapter of See Through Their Minds: voxels -> a shared width, linearly, then residual blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.layers import Residual
from brain2img.records import Features, Grid, SignalSpec


class STTM(SubjectAdapter):
    """Linear, LayerNorm, GELU, Dropout and residual blocks of Linear, LayerNorm, GELU, Dropout, each subject's own.

    See Through Their Minds (STTM; arXiv:2403.06361, AAAI 2025, https://github.com/YulongBonjour/STTM). All that is
    trained for a new subject there is this part: ``brain2img adapt mode=adapter``.

    Parameters
    ----------
    specs
        Subject -> its signals; T must be 1 (single-trial or averaged betas).
    grid
        ``(hidden width, 1)`` of the encoder; published 4096.
    n_blocks
        Residual blocks; 1 in the published training script, 2 by default of the published class.
    dropout
        After the linear map: 0.5, and 0.65 for GOD.
    block_dropout
        In the residual blocks.
    noise
        Standard deviation of Gaussian noise added to the (z-scored) voxels in training; published 0.01.

    Raises
    ------
    ValueError
        If the signals or the grid have more than one sample.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, n_blocks: int = 1, dropout: float = 0.5,
                 block_dropout: float = 0.15, noise: float = 0.01) -> None:
        super().__init__()
        if grid.T != 1:
            raise ValueError(f"STTM adapter: expected an encoder with a grid of one sample, got {grid}. "
                             "Choose encoder=residual_mlp.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid, self.n_blocks, self.noise = grid, n_blocks, noise
        self.dropout, self.block_dropout = dropout, block_dropout
        self.subjects = nn.ModuleDict()
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add a fresh input projection and residual blocks; see `SubjectAdapter`."""
        if spec.n_times != 1:
            raise ValueError(f"STTM adapter, subject {spec.subject!r}: expected one value per voxel (T = 1), got "
                             f"{spec.n_times} samples. Choose adapter=subject_token for time series.")
        width = self.grid.F
        self.specs[spec.subject] = spec
        self.subjects[spec.subject] = nn.Sequential(
            nn.Sequential(nn.Linear(spec.n_channels, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(self.dropout)),
            *(Residual(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(),
                                     nn.Dropout(self.block_dropout))) for _ in range(self.n_blocks)))

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        return list(self.subjects[self.known(subject)].parameters())

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, V, 1)`` to a grid ``(B_s, width, 1)``; an unseen subject (None) is a ValueError."""
        name, n_voxels = self.known(subject), x.shape[1]
        if n_voxels != self.specs[name].n_channels:
            raise ValueError(f"STTM adapter, subject {name!r}: expected {self.specs[name].n_channels} voxels, got "
                             f"{n_voxels}. Use the voxels that the adapter was built for.")
        x = x.squeeze(-1)
        if self.training and self.noise:
            # the global generator, as for dropout: the decoder seeds it anew in every epoch
            x = x + self.noise * torch.randn_like(x)
        return Features(self.subjects[name](x).unsqueeze(-1))

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (50 voxels) and "sub-02" (40)."""
        specs = {name: SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1)
                 for name, n in (("sub-01", 50), ("sub-02", 40))}
        return cls(specs=specs, grid=Grid(16, 1))
