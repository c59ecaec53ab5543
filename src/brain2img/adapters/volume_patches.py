"""Voxels of any subject as 3-D patches of one common volume; no subject has weights of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.records import Features, Grid, SignalSpec
from brain2img.volumes import Placement, VolumeGrid

log = logging.getLogger(__name__)


class _Filled(nn.Module):
    """A `Placement` as tensors that move with the model and are not saved: they follow from the spec."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        for name in ("places", "voxels", "weights"):
            self.register_buffer(name, torch.from_numpy(getattr(placement, name)), persistent=False)


class VolumePatches(SubjectAdapter):
    """Puts voxels back into their volume, brings it to the common one and cuts it into cubes.

    The input of ViT3D (Neuro-Vision to Language, Shen et al., NeurIPS 2024, arXiv:2404.19438): the volume of every
    subject is resized to that of the first (trilinear; NSD: 83 x 104 x 81), padded with zeros to whole patches of 14^3,
    and only patches that touch the union of the subjects' masks are kept. Nothing is learned here, so the model has no
    weights of any subject's own: a subject it was not trained on needs only its spec (`add_subject`).

    All settings belong to the encoder, whose grid says which patches there are. Of the published augmentation, mixing
    trials of the same stimulus, nothing is here.

    Parameters
    ----------
    specs
        Subject -> its signals, with `ijk` and `volume_shape`; T must be 1 (single-trial betas).
    grid
        The `brain2img.volumes.VolumeGrid` of the encoder: F voxels a patch, T patches.

    Raises
    ------
    ValueError
        If the grid is another kind, or a subject has no geometry or a time axis.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid) -> None:
        super().__init__()
        if not isinstance(grid, VolumeGrid):
            raise ValueError(f"volume_patches adapter: expected an encoder that takes patches of a volume, got one with"
                             f" the grid {grid}. Choose encoder=vit3d, or adapter=mindbridge for this encoder.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid: VolumeGrid = grid
        self.placements = nn.ModuleDict()
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Look up where the voxels of a subject go; what lies outside the model's patches is left out, with a warning.

        See `SubjectAdapter`.
        """
        if spec.n_times != 1:
            raise ValueError(f"volume_patches adapter, subject {spec.subject!r}: expected one value per voxel (T = 1), "
                             f"got {spec.n_times} samples. Average them, or choose adapter=subject_token.")
        placement = self.grid.placement(spec)
        if placement.left_out:
            log.warning("volume_patches adapter, subject %r: %.1f %% of its volume lie outside the %d patches that the "
                        "model was built with, and are left out", spec.subject, 100 * placement.left_out, self.grid.T)
        self.specs[spec.subject] = spec
        self.placements[spec.subject] = _Filled(placement)

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """Return nothing: no subject has weights of its own."""
        self._known(subject)
        return []

    def _known(self, subject: str | None) -> str:
        if subject is None or subject not in self.specs:
            raise ValueError(f"volume_patches adapter: expected one of the subjects {sorted(self.specs)}, got "
                             f"{subject!r}. Any subject can be decoded once its voxels have places: hand its spec to "
                             "add_subject, which needs no training.")
        return subject

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, V, 1)`` to a grid ``(B_s, F, T)``; of a subject without a spec (None) nobody knows the places."""
        spec = self.specs[self._known(subject)]
        if x.shape[1:] != (spec.n_channels, 1):
            raise ValueError(f"volume_patches adapter, subject {subject!r}: expected signals of ({spec.n_channels}, 1),"
                             f" got {tuple(x.shape[1:])}. Use the channels and window that the model was built for.")
        filled = self.placements[spec.subject]
        places, voxels, weights = (cast(Tensor, getattr(filled, name)) for name in ("places", "voxels", "weights"))
        # gathered, not scattered: sums in a fixed order on every device
        values = (x[:, :, 0][:, voxels] * weights).sum(dim=2)
        grid = x.new_zeros(len(x), self.grid.F * self.grid.T)
        grid[:, places] = values
        return Features(grid.view(len(x), self.grid.F, self.grid.T))

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (50 voxels) and "sub-02" (40) with volumes of two sizes."""
        rng = np.random.default_rng(0)
        specs = {}
        for name, n, shape in (("sub-01", 50, (6, 5, 7)), ("sub-02", 40, (5, 6, 6))):
            flat = np.sort(rng.permutation(np.prod(shape))[:n])
            specs[name] = SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=1,
                                     ijk=np.stack(np.unravel_index(flat, shape), axis=1), volume_shape=shape)
        return cls(specs=specs, grid=VolumeGrid.of(specs, patch=3))
