"""One linear map per subject onto a shared width: the adapters of MindEye and MindEye2; of time series, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.layers import nonlinearity
from brain2img.records import Features, Grid, SignalSpec


class SubjectLinear(SubjectAdapter):
    """Voxels -> shared width by a linear layer of each subject's own, with or without a nonlinearity after it.

    MindEye2 (Scotti et al., ICML 2024, arXiv:2403.11207, https://github.com/MedARC-AI/MindEyeV2): the linear layer
    alone, which it calls ridge (it is one through weight decay). MindEye (Scotti et al., NeurIPS 2023,
    arXiv:2305.18274, https://github.com/MedARC-AI/fMRI-reconstruction-NSD): Linear, LayerNorm, GELU, Dropout 0.5, the
    input of its model of one subject (``activation: gelu, dropout: 0.5``); its low-level model: Linear without bias,
    LayerNorm, SiLU, Dropout 0.5.

    Of time series all channels and samples are read at once, successive samples averaged first (`bin`).

    Deviation: a subject that is added gets fresh weights and a fresh bias. Upstream a new subject inherits the bias of
    the first subject of the pre-training, because checkpoints are loaded by place and with ``strict=False``.

    Parameters
    ----------
    specs
        Subject -> its signals.
    grid
        ``(shared width, 1)`` of the encoder.
    bias
        Of the linear layer.
    activation
        None, or "gelu" or "silu" after a LayerNorm.
    dropout
        At the end.
    bin
        Successive samples that are averaged to one; what is left over at the end is cut off.

    Raises
    ------
    ValueError
        If the grid has more than one sample, the signals fewer than `bin`, or the activation is unknown.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, bias: bool = True,
                 activation: str | None = None, dropout: float = 0.0, bin: int = 1) -> None:
        super().__init__()
        if grid.T != 1:
            raise ValueError(f"SubjectLinear adapter: expected an encoder with a grid of one sample, got {grid}. "
                             "Choose encoder=residual_mlp, or adapter=subject_token for this encoder.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid, self.bias, self.activation, self.dropout, self.bin = grid, bias, activation, dropout, bin
        self.linears = nn.ModuleDict()
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add a fresh linear layer; see `SubjectAdapter`."""
        if spec.n_times < self.bin:
            raise ValueError(f"SubjectLinear adapter, subject {spec.subject!r}: expected at least the {self.bin} "
                             f"samples that are averaged to one, got {spec.n_times}. Lower adapter.bin.")
        width = self.grid.F
        layers: list[nn.Module] = [nn.Linear(spec.n_channels * (spec.n_times // self.bin), width,
                                             bias=self.bias)]
        if self.activation is not None:
            layers += [nn.LayerNorm(width), nonlinearity(self.activation)]
        self.linears[spec.subject] = nn.Sequential(*layers, nn.Dropout(self.dropout))
        self.specs[spec.subject] = spec

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        return list(self.linears[self.known(subject)].parameters())

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, C_s, T_s)`` to a grid ``(B_s, width, 1)``.

        Raises
        ------
        ValueError
            If the subject is None or unknown, or channels or samples are not those of the subject.
        """
        subject = self.known(subject)
        spec = self.specs[subject]
        if x.shape[1:] != (spec.n_channels, spec.n_times):
            raise ValueError(f"SubjectLinear adapter, subject {subject!r}: expected {spec.n_channels} channels of "
                             f"{spec.n_times} sample(s), got {x.shape[1]} of {x.shape[2]}. Use those that the run was "
                             "trained on.")
        if self.bin > 1:
            x = F.avg_pool1d(x, self.bin)
        return Features(self.linears[subject](x.flatten(1)).unsqueeze(-1))

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (50 voxels) and "sub-02" (40)."""
        specs = {name: SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1)
                 for name, n in (("sub-01", 50), ("sub-02", 40))}
        return cls(specs=specs, grid=Grid(16, 1))
