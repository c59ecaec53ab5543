"""The subject adapter of MindBridge: voxels of any number -> one vector of a common meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.layers import Bottleneck
from brain2img.records import BrainBatch, Features, Grid, SignalSpec

POOLS = ("max", "avg", "linear")
WIDEST = 4
"""Widest window of max pooling that is taken value by value; beyond it the library's own pooling is faster."""


class Pooling(nn.Module):
    """Adaptive pooling of the voxels of one subject to a common number; it has no parameters.

    Window k of `size` covers the voxels from floor(k V / size) to ceil((k + 1) V / size), without the last. "max" and
    "avg" are adaptive pooling over these windows; "linear" resizes the row of voxels by linear interpolation. The
    maximum is taken by selecting the first, second, ... voxel of all windows, which gives the bits of
    `torch.nn.functional.adaptive_max_pool1d` about ten times faster on a CPU.

    Parameters
    ----------
    n_voxels
        V of the subject.
    size
        Length after pooling.
    pool
        "max", "avg" or "linear".
    """

    places: Tensor

    def __init__(self, n_voxels: int, size: int, *, pool: str) -> None:
        super().__init__()
        self.n_voxels, self.size, self.pool = n_voxels, size, pool
        k = torch.arange(size)
        first, end = k * n_voxels // size, -((-(k + 1) * n_voxels) // size)
        width = torch.arange(n_voxels // size + 2)[:, None]  # no window is wider
        self.register_buffer("places", torch.minimum(first + width, end - 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B_s, V, 1)`` to ``(B_s, size)``; what is pooled already, ``(B_s, size, 1)``, stays as it is."""
        if x.shape[1] == self.size:
            return x.squeeze(-1)
        if self.pool == "avg":
            return F.adaptive_avg_pool1d(x.transpose(1, 2), self.size).squeeze(1)
        if self.pool == "linear":
            return F.interpolate(x.transpose(1, 2), size=self.size, mode="linear", align_corners=False).squeeze(1)
        if len(self.places) > WIDEST:
            return F.adaptive_max_pool1d(x.transpose(1, 2), self.size).squeeze(1)
        values, every = x.squeeze(-1), self.places.to(x.device)
        pooled = values.index_select(1, every[0])
        for places in every[1:]:
            pooled = torch.maximum(pooled, values.index_select(1, places))
        return pooled


class MindBridge(SubjectAdapter):
    """Adaptive pooling over voxels and an embedder of each subject's own, with reconstruction and cycle.

    MindBridge (Wang et al., CVPR 2024, arXiv:2404.07850, https://github.com/littlepure2333/MindBridge). Embedder:
    bottleneck adapter, Linear, LayerNorm, GELU, Dropout. Builder, back to the pooled voxels: Linear, LayerNorm, GELU,
    bottleneck adapter. Names and order of the parameters are the published ones (``embedder.<subject>.0.down_proj``).

    Two auxiliary losses, both mean squared errors: `reconstruction` of the pooled voxels from the embedding, and
    `cycle`: for a random pair of subjects, the embedding of one goes through builder and embedder of the other and
    should come back, both ends being trained. Builder of one subject after embedder of another is also how a subject's
    pooled voxels are synthesised for a stimulus that the other saw (`synthesise`). The paper describes training on
    such pairs, the released code has no more of it than the cycle; `synthetic` adds the losses of the heads on them.

    Deviations: subjects may have different numbers of trials in a batch (upstream cuts the batch into equal parts, so
    that trials reach the wrong embedder where it is not); signals are pooled after normalisation; a trial is every
    repetition (upstream takes one repetition of every image per epoch, in turn).

    Parameters
    ----------
    specs
        Subject -> its signals; T must be 1 (single-trial betas).
    grid
        ``(hidden width, 1)`` of the encoder.
    pool_size
        Length after pooling; published 8192. Signals with fewer voxels are stretched to it.
    pool
        "max" as published, or "avg" or "linear" (resized), the variants of its ablation.
    bottleneck
        Width of the bottleneck adapter.
    dropout
        After the embedder.
    reconstruction, cycle
        Weights of the auxiliary losses; 1 when published with several subjects, 0 with one.
    known_in_losses
        What trials of known subjects do in reset-tuning: False, they feed the cycle alone; True, as released, they
        stand in all losses beside the new subject's: as further rows of the contrast, and in every mean.
    average_pooled
        Average the repetitions of a stimulus after pooling, as published, and not before it: of maxima of noisy voxels
        the mean is higher than the maximum of their means. It concerns validation and test.
    synthetic
        Weight of the losses of the heads on synthetic pairs: in every batch all trials of each subject are also
        synthesised as trials of another one, in random cyclic order. They count as data: no gradient reaches their
        synthesis.

    Raises
    ------
    ValueError
        If the signals have more than one sample, the grid more than one, or `pool` is unknown.
    """

    has_fixed_part = True

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, pool_size: int = 8192, pool: str = "max",
                 bottleneck: int = 128, dropout: float = 0.5, reconstruction: float = 1.0, cycle: float = 1.0,
                 known_in_losses: bool = False, average_pooled: bool = False, synthetic: float = 0.0) -> None:
        super().__init__()
        if grid.T != 1:
            raise ValueError(f"MindBridge adapter: expected an encoder with a grid of one sample, got {grid}. "
                             "Choose encoder=residual_mlp, or adapter=subject_token for this encoder.")
        if pool not in POOLS:
            raise ValueError(f"MindBridge adapter: expected pool 'max', 'avg' or 'linear', got {pool!r}. "
                             "Correct adapter.pool.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid = grid
        self.pool_size, self.pool, self.bottleneck, self.dropout = pool_size, pool, bottleneck, dropout
        self.weights = {"reconstruction": reconstruction, "cycle": cycle}
        self.known_in_losses, self.average_after, self.synthetic = known_in_losses, average_pooled, synthetic
        self.pooling, self.embedder, self.builder = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add a fresh embedder (and builder); see `SubjectAdapter`."""
        if spec.n_times != 1:
            raise ValueError(f"MindBridge adapter, subject {spec.subject!r}: expected one value per voxel (T = 1), got "
                             f"{spec.n_times} samples. Choose adapter=subject_token for time series.")
        size, hidden = self.pool_size, self.grid.F
        self.specs[spec.subject] = spec
        self.pooling[spec.subject] = Pooling(spec.n_channels, size, pool=self.pool)
        self.embedder[spec.subject] = nn.Sequential(
            Bottleneck(size, bottleneck=self.bottleneck), nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Dropout(self.dropout))
        if any(self.weights.values()) or self.synthetic:
            self.builder[spec.subject] = nn.Sequential(
                nn.Linear(hidden, size), nn.LayerNorm(size), nn.GELU(), Bottleneck(size, bottleneck=self.bottleneck))

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        self.known(subject)
        parts = [modules[subject] for modules in (self.embedder, self.builder) if subject in modules]
        return [p for part in parts for p in part.parameters()]

    def pooled(self, x: Tensor, subject: str) -> Tensor:
        """Map ``(B_s, V, 1)``, or pooled voxels ``(B_s, pool_size, 1)``, to ``(B_s, pool_size)``.

        Raises
        ------
        ValueError
            If the subject is unknown, or V is not the number of voxels that the adapter was built for.
        """
        n_voxels = self.specs[self.known(subject)].n_channels
        if x.shape[1] not in (n_voxels, self.pool_size):
            raise ValueError(
                f"MindBridge adapter, subject {subject!r}: expected {n_voxels} voxels (or {self.pool_size} pooled), "
                f"got {x.shape[1]}. Use the voxels (study, ROI set, data.channels) that the adapter was built for.")
        return self.pooling[subject](x)

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, V, 1)`` to a grid ``(B_s, hidden, 1)``; an unseen subject (None) is a ValueError."""
        subject = self.known(subject)
        return Features(self.embedder[subject](self.pooled(x, subject)).unsqueeze(-1))

    def once(self, x: Tensor, subject: str) -> Tensor:
        """Return pooled voxels ``(B_s, pool_size, 1)``; see `SubjectAdapter.once`."""
        return self.pooled(x, subject).unsqueeze(-1)

    def auxiliary_losses(self, batch: BrainBatch, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Return the weighted `reconstruction` and `cycle` losses; see the class."""
        losses: dict[str, Tensor] = {}
        embedded = {subject: f.grid.squeeze(-1) for subject, f in features.items()}
        if self.weights["reconstruction"]:
            built = torch.cat([self.builder[s](e) for s, e in embedded.items()])
            given = torch.cat([self.pooled(batch.signals[s], s) for s in embedded])
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

    def synthesise(self, x: Tensor, *, source: str, target: str) -> Tensor:
        """Return what `target` is expected to show where `source` showed `x`, without dropout.

        Parameters
        ----------
        x
            ``(B_s, V, 1)`` signals of `source`, or its pooled voxels ``(B_s, pool_size, 1)``.
        source, target
            Names of two subjects; the same twice for the reconstruction of its own voxels.

        Returns
        -------
        torch.Tensor
            ``(B_s, pool_size)`` pooled voxels of `target`.

        Raises
        ------
        ValueError
            If a subject is unknown, or the adapter has no builders.
        """
        if not self.builder:
            raise ValueError("MindBridge adapter: expected builders for synthesis, got none. Train with "
                             "adapter.reconstruction, adapter.cycle or adapter.synthetic above 0.")
        layers = cast(nn.Sequential, self.embedder[self.known(source)])[:-1]  # dropout is the last
        return self.builder[self.known(target)](layers(self.pooled(x, source)))

    def synthetic_trials(self, batch: BrainBatch, features: Mapping[str, Features]) -> tuple[Features, Tensor] | None:
        """Return embeddings of every trial as one of another subject, and their places in the batch; see the class."""
        if not self.synthetic or len(features) < 2:
            return None
        order = [list(features)[i] for i in torch.randperm(len(features)).tolist()]
        grids = []
        for source, target in zip(order, order[1:] + order[:1], strict=True):
            with torch.no_grad():
                voxels = self.synthesise(batch.signals[source], source=source, target=target)
            grids.append(self.embedder[target](voxels).unsqueeze(-1))
        return Features(torch.cat(grids)), torch.cat([batch.rows[source] for source in order])

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (50 voxels) and "sub-02" (40)."""
        specs = {name: SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1)
                 for name, n in (("sub-01", 50), ("sub-02", 40))}
        return cls(specs=specs, grid=Grid(16, 1), pool_size=32, bottleneck=4)
