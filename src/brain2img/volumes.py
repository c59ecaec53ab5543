"""Voxels of all subjects on one common volume, cut into cubes: what a decoder over volumes and its adapter agree on.

All is index arithmetic on the `SignalSpec` of the subjects; nothing is learned and nothing is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np

from brain2img.records import Grid, SignalSpec

ALIGNMENTS = ("shape", "affine")
Affine = tuple[tuple[float, ...], ...]


def geometry(spec: SignalSpec, *, needs_affine: bool = False) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return where the voxels of a subject lie: indices ``(C, 3)`` and the shape of the volume.

    Parameters
    ----------
    spec
        The subject's signals.
    needs_affine
        Whether millimetres are needed, too.

    Raises
    ------
    ValueError
        If the study knows no places of its voxels, or if one lies outside the volume.
    """
    what = f"voxels of subject {spec.subject!r}"
    lacking = [name for name in ("ijk", "volume_shape", *(("affine",) if needs_affine else ()))
               if getattr(spec, name) is None]
    if lacking == ["affine"]:
        raise ValueError(f"{what}: expected their places in millimetres, got no affine. The volumes had none when the "
                         "study was prepared (sform_code and qform_code 0): write it into them (FSL's fslcpgeom) and "
                         "prepare again, or choose parts that need none (encoder.align=shape).")
    if lacking or spec.ijk is None or spec.volume_shape is None:
        raise ValueError(f"{what}: expected their places in a volume, got no {' and no '.join(lacking)}. Prepare the "
                         "study from its volumes (NSD: study.form=nifti or hdf5; repackaged forms have lost the "
                         "places), or choose parts that need none (adapter=mindbridge encoder=residual_mlp).")
    shape = np.array(spec.volume_shape)
    ijk = np.asarray(spec.ijk, dtype=np.int64)
    if (ijk < 0).any() or (ijk >= shape).any():
        first = ijk[((ijk < 0) | (ijk >= shape)).any(axis=1)][0]
        raise ValueError(f"{what}: expected ijk within the volume {tuple(shape.tolist())}, got {tuple(first.tolist())}."
                         " Correct the study that wrote this folder.")
    return ijk, (int(shape[0]), int(shape[1]), int(shape[2]))


@dataclass(frozen=True)
class Placement:
    """Which voxels a subject's values on the grid are made of.

    Parameters
    ----------
    places
        ``(n,)`` places ``f * T + t`` in the flat grid; the others stay 0.
    voxels
        ``(n, k)`` the subject's voxels that each of them is interpolated from.
    weights
        ``(n, k)`` float32 their weights; 0 where fewer than k are needed.
    left_out
        Share of the subject's values that falls into patches that were not kept, in [0, 1].
    """

    places: np.ndarray
    voxels: np.ndarray
    weights: np.ndarray
    left_out: float


@dataclass(frozen=True)
class VolumeGrid(Grid):
    """A grid whose columns are cubic patches of a volume that all subjects share: ``F = patch^3``, ``T`` patches.

    Parameters
    ----------
    patch
        Side of a patch (voxels of the common volume).
    shape
        Shape of the common volume; it is padded with zeros behind to whole patches.
    kept
        Numbers of the T patches that hold something of some subject, in C order over the padded volume's patches.
    align
        How a subject's volume is laid onto the common one: "shape" stretches it axis by axis to the same number of
        voxels; "affine" leaves it where its affine says, in millimetres.
    affine
        ``(4, 4)`` from indices of the common volume to millimetres; None with "shape".
    """

    patch: int
    shape: tuple[int, int, int]
    kept: tuple[int, ...]
    align: str = "shape"
    affine: Affine | None = None

    @classmethod
    def of(cls, specs: Mapping[str, SignalSpec], *, patch: int, shape: tuple[int, int, int] | None = None,
           align: str = "shape") -> Self:
        """Return the grid of these subjects.

        Parameters
        ----------
        specs
            Subject -> its signals.
        patch, align
            See the class.
        shape
            Shape of the common volume; None takes the first subject's.

        Raises
        ------
        ValueError
            If there are no subjects, one has no geometry, or a setting is impossible.
        """
        if align not in ALIGNMENTS:
            raise ValueError(f"volume: expected align of {ALIGNMENTS}, got {align!r}. Correct encoder.align.")
        if not specs:
            raise ValueError("volume: expected at least one subject to take the common volume from, got none. "
                             "Give the specs of the subjects.")
        first = next(iter(specs.values()))
        own = geometry(first, needs_affine=align == "affine")[1]
        common = own if shape is None else (int(shape[0]), int(shape[1]), int(shape[2]))
        if patch < 1 or min(common) < 1:
            raise ValueError(f"volume: expected patches and a volume of at least 1 voxel, got {patch} and {common}. "
                             "Correct encoder.patch or encoder.shape.")
        affine: Affine | None = None
        if align == "affine":
            # a common volume of another shape covers the first subject's with larger or smaller voxels
            covering = np.asarray(first.affine, dtype=float) @ _stretch(common, own)
            affine = tuple(tuple(row) for row in covering.tolist())
        whole = cls(patch**3, 0, patch, common, (), align, affine)
        found = [np.unique(whole._patches(whole._interpolated(spec)[0])) for spec in specs.values()]
        kept = tuple(np.unique(np.concatenate(found)).tolist())
        return cls(patch**3, len(kept), patch, common, kept, align, affine)

    @property
    def n_patches(self) -> tuple[int, int, int]:
        """Patches of the padded volume along each axis, kept or not."""
        i, j, k = (-(-n // self.patch) for n in self.shape)
        return i, j, k

    def coordinates(self) -> np.ndarray:
        """Return the place ``(T, 3)`` of every kept patch among `n_patches`."""
        return np.stack(np.unravel_index(np.array(self.kept, dtype=np.int64), self.n_patches), axis=1)

    def placement(self, spec: SignalSpec) -> Placement:
        """Return how the signals of a subject, one of this grid's or a new one, fill the grid.

        Raises
        ------
        ValueError
            If the subject has no geometry, or nothing of it lies in the kept patches.
        """
        targets, voxels, weights = self._interpolated(spec)
        column = {number: t for t, number in enumerate(self.kept)}
        t = np.array([column.get(number, -1) for number in self._patches(targets).tolist()], dtype=np.int64)
        inside = np.stack([n % self.patch for n in np.unravel_index(targets, self.shape)])
        f = np.ravel_multi_index(tuple(inside), (self.patch,) * 3)
        if not (t >= 0).any():
            raise ValueError(f"voxels of subject {spec.subject!r}: expected some within the {self.T} patches of the "
                             "model, got none. Its volume has another orientation or origin than the model's subjects: "
                             "bring it into theirs, or train with encoder.align=affine.")
        return Placement((f * self.T + t)[t >= 0], voxels[t >= 0], weights[t >= 0], float((t < 0).mean()))

    def _patches(self, targets: np.ndarray) -> np.ndarray:
        """Return the number of the patch that each flat index of the common volume lies in."""
        i, j, k = (n // self.patch for n in np.unravel_index(targets, self.shape))
        return np.ravel_multi_index((i, j, k), self.n_patches)

    def _interpolated(self, spec: SignalSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return flat indices ``(n,)`` of the common volume that a subject fills, from which voxels and how much.

        Trilinear; outside of the subject's voxels its volume is 0.
        """
        ijk, shape = geometry(spec, needs_affine=self.align == "affine")
        number = np.full(shape, -1, dtype=np.int64)
        number[tuple(ijk.T)] = np.arange(len(ijk))
        if self.align == "shape":
            matrix = _stretch(self.shape, shape)
        else:
            matrix = np.linalg.inv(np.asarray(spec.affine, dtype=float)) @ np.array(self.affine)
        target = np.indices(self.shape).reshape(3, -1)
        # rounded, because the inverse of an affine leaves 3 as 2.9999999999
        source = np.round(matrix[:3, :3] @ target + matrix[:3, 3:], 6)
        if self.align == "shape":
            source = np.clip(source, 0, np.array(shape)[:, None] - 1)
        below = np.floor(source).astype(np.int64)
        above = source - below
        voxels, weights = [], []
        for corner in product((0, 1), repeat=3):
            at = below + np.array(corner)[:, None]
            weight = np.prod(np.where(np.array(corner)[:, None] == 1, above, 1 - above), axis=0)
            valid = ((at >= 0) & (at < np.array(shape)[:, None])).all(axis=0) & (weight > 0)
            found = np.where(valid, number[tuple(np.where(valid, at, 0))], -1)
            voxels.append(found)
            weights.append(np.where(found >= 0, weight, 0.0))
        voxel, weight = np.stack(voxels, axis=1), np.stack(weights, axis=1)
        filled = np.flatnonzero((voxel >= 0).any(axis=1))
        voxel, weight = voxel[filled], weight[filled]
        order = np.argsort(voxel < 0, axis=1, kind="stable")[:, :int((voxel >= 0).sum(axis=1).max())]
        voxel, weight = (np.take_along_axis(values, order, axis=1) for values in (voxel, weight))
        return filled, np.maximum(voxel, 0), weight.astype(np.float32)


def _stretch(target: tuple[int, ...], source: tuple[int, ...]) -> np.ndarray:
    """Return the ``(4, 4)`` matrix from indices of one volume to those of another that it is stretched over.

    The corners of the volumes meet, not the centres of their corner voxels, as in `torch.nn.functional.interpolate`.
    """
    scale = np.array(source, dtype=float) / np.array(target)
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = 0.5 * scale - 0.5
    return matrix
