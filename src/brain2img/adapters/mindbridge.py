"""The subject adapter of MindBridge: voxels of any number -> one vector of a common meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.layers import Bottleneck
from brain2img.records import BrainBatch, Features, Grid, SignalSpec

POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {"max": F.adaptive_max_pool1d, "avg": F.adaptive_avg_pool1d}


class MindBridge(SubjectAdapter):
    """Adaptive pooling over voxels and an embedder of each subject's own, with reconstruction and cycle.

    MindBridge (Wang et al., CVPR 2024, arXiv:2404.07850, https://github.com/littlepure2333/MindBridge). Embedder:
    bottleneck adapter, Linear, LayerNorm, GELU, Dropout. Builder, back to the pooled voxels: Linear, LayerNorm, GELU,
    bottleneck adapter. Names and order of the parameters are the published ones (``embedder.<subject>.0.down_proj``).

    Two auxiliary losses, both mean squared errors: `reconstruction` of the pooled voxels from the embedding, and
    `cycle`: for a random pair of subjects, the embedding of one goes through builder and embedder of the other and
    should come back. Deviations: subjects may have different numbers of trials in a batch (upstream cuts the batch
    into equal parts), and pooling is done here, not in the data set.

    Parameters
    ----------
    specs
        Subject -> its signals; T must be 1 (single-trial betas).
    grid
        ``(hidden width, 1)`` of the encoder.
    pool_size
        Length after pooling; published 8192. Signals with fewer voxels are stretched to it.
    pool
        "max" as published, or "avg".
    bottleneck
        Width of the bottleneck adapter.
    dropout
        After the embedder.
    reconstruction, cycle
        Weights of the auxiliary losses; with both 0 there are no builders.

    Raises
    ------
    ValueError
        If the signals have more than one sample, the grid more than one, or `pool` is unknown.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, pool_size: int = 8192, pool: str = "max",
                 bottleneck: int = 128, dropout: float = 0.5, reconstruction: float = 1.0, cycle: float = 1.0) -> None:
        super().__init__()
        if grid.T != 1:
            raise ValueError(f"MindBridge adapter: expected an encoder with a grid of one sample, got {grid}. "
                             "Choose encoder=residual_mlp, or adapter=subject_token for this encoder.")
        if pool not in POOLS:
            raise ValueError(f"MindBridge adapter: expected pool 'max' or 'avg', got {pool!r}. "
                             "Correct adapter.pool.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid = grid
        self.pool_size, self.pool, self.bottleneck, self.dropout = pool_size, pool, bottleneck, dropout
        self.weights = {"reconstruction": reconstruction, "cycle": cycle}
        self.embedder, self.builder = nn.ModuleDict(), nn.ModuleDict()
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add a fresh embedder (and builder); see `SubjectAdapter`."""
        if spec.n_times != 1:
            raise ValueError(f"MindBridge adapter, subject {spec.subject!r}: expected one value per voxel (T = 1), got "
                             f"{spec.n_times} samples. Choose adapter=subject_token for time series.")
        size, hidden = self.pool_size, self.grid.F
        self.specs[spec.subject] = spec
        self.embedder[spec.subject] = nn.Sequential(
            Bottleneck(size, bottleneck=self.bottleneck), nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Dropout(self.dropout))
        if any(self.weights.values()):
            self.builder[spec.subject] = nn.Sequential(
                nn.Linear(hidden, size), nn.LayerNorm(size), nn.GELU(), Bottleneck(size, bottleneck=self.bottleneck))

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        self._known(subject)
        parts = [modules[subject] for modules in (self.embedder, self.builder) if subject in modules]
        return [p for part in parts for p in part.parameters()]

    def _known(self, subject: str | None) -> str:
        if subject is None or subject not in self.embedder:
            raise ValueError(f"MindBridge adapter: expected one of the subjects {sorted(self.embedder)}, got "
                             f"{subject!r}. Every subject needs an embedder of its own: adapt the run to this one.")
        return subject

    def pooled(self, x: Tensor) -> Tensor:
        """Map ``(B_s, V, 1)`` to ``(B_s, pool_size)``."""
        return POOLS[self.pool](x.transpose(1, 2), self.pool_size).squeeze(1)

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, V, 1)`` to a grid ``(B_s, hidden, 1)``; an unseen subject (None) is a ValueError."""
        return Features(self.embedder[self._known(subject)](self.pooled(x)).unsqueeze(-1))

    def auxiliary_losses(self, batch: BrainBatch, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Return the weighted `reconstruction` and `cycle` losses; see the class."""
        losses: dict[str, Tensor] = {}
        embedded = {subject: f.grid.squeeze(-1) for subject, f in features.items()}
        if self.weights["reconstruction"]:
            built = torch.cat([self.builder[s](e) for s, e in embedded.items()])
            given = torch.cat([self.pooled(batch.signals[s]) for s in embedded])
            losses["reconstruction"] = self.weights["reconstruction"] * F.mse_loss(built, given)
        if self.weights["cycle"] and len(embedded) > 1:
            # the global generator, as for dropout: the decoder seeds it anew in every epoch
            a, b = (list(embedded)[i] for i in torch.randperm(len(embedded))[:2].tolist())
            back = self.embedder[b](self.builder[b](embedded[a]))
            losses["cycle"] = self.weights["cycle"] * F.mse_loss(back, embedded[a])
        return losses

    def adaptation_losses(self, known: Mapping[str, Features], subject: str) -> dict[str, Tensor]:
        """Return the weighted `cycle` loss from known subjects to a new one, as reset-tuning has it.

        The embedding of a known subject's trial goes through the new subject's builder ("novel" voxels of a stimulus
        that this subject may never have seen) and embedder, and should come back. Upstream its gradient ends at the
        frozen parts, as here.
        """
        if not self.weights["cycle"] or not known:
            return {}
        embedded = torch.cat([f.grid.squeeze(-1) for f in known.values()])
        back = self.embedder[subject](self.builder[subject](embedded))
        return {"cycle": self.weights["cycle"] * F.mse_loss(back, embedded)}

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (50 voxels) and "sub-02" (40)."""
        specs = {name: SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1)
                 for name, n in (("sub-01", 50), ("sub-02", 40))}
        return cls(specs=specs, grid=Grid(16, 1), pool_size=32, bottleneck=4)
