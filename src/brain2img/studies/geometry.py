"""Where the voxels of a volume lie: volumes are compared by their affines and turned into one order of axes.

Two files of one shape need not be of one orientation. A volume here is brought to a reference's grid if that takes no
more than turning axes around and permuting them, and refused otherwise: nothing is interpolated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.data.reading import reading

log = logging.getLogger(__name__)

#: Share of a voxel by which grids may differ anywhere: affines are float32, and quaternions round.
TOLERANCE = 0.05
#: How far from a whole number a label may be: float copies of label volumes hold 0.9999.
_LABEL_TOLERANCE = 0.01
_RESAMPLE = ("Resample it (labels and masks by nearest neighbour: nilearn.image.resample_to_img(..., "
             "interpolation='nearest'), AFNI's 3dresample or FSL's flirt -applyxfm -usesqform)")


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume.

    Parameters
    ----------
    path
        The file that says so.
    shape
        Voxels along the three axes.
    affine
        ``(4, 4)`` from indices to millimetres, x to the right, y to the front, z upwards; None where the file does not
        say (NIfTI with ``sform_code`` and ``qform_code`` 0, Analyze, HDF5).
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray | None

    def __str__(self) -> str:
        if self.affine is None:
            return f"{self.shape} without an affine"
        from nibabel.affines import voxel_sizes
        from nibabel.orientations import aff2axcodes

        axes = "".join(code or "?" for code in aff2axcodes(self.affine))
        sizes = " x ".join(f"{size:.4g}" for size in voxel_sizes(self.affine))
        first = ", ".join(f"{x:.4g}" for x in self.affine[:3, 3])
        return f"{self.shape} {axes} with voxels of {sizes} mm, the first at ({first}) mm"

    def turn_to(self, other: Geometry) -> np.ndarray:
        """Return the orientation ``(3, 2)`` of nibabel that turns an array of this grid into one of the other.

        Parameters
        ----------
        other
            The reference. Where one of the two has no affine, the axes are taken to lie alike, with a warning.

        Raises
        ------
        ValueError
            If the grids are not the same voxels in another order.
        """
        from nibabel.affines import apply_affine
        from nibabel.orientations import inv_ornt_aff, io_orientation

        if self.affine is None or other.affine is None:
            if self.shape != other.shape:
                raise ValueError(f"{self.path}: expected a volume of {other.shape} like {other.path}, got {self.shape}."
                                 " Give the files of one space and one subject.")
            _say_unknown(self.path.parent if self.affine is None else other.path, other.path)
            return np.array([[0, 1], [1, 1], [2, 1]])
        turn = io_orientation(np.linalg.inv(other.affine) @ self.affine)
        if not np.isnan(turn).any():
            turn = turn.astype(int)
            shape = tuple(self.shape[int(axis)] for axis in np.argsort(turn[:, 0]))
            if shape == other.shape:
                corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape) - 1)
                mine = apply_affine(self.affine @ inv_ornt_aff(turn, self.shape), corners)
                apart = apply_affine(np.linalg.inv(other.affine), mine) - corners
                if np.abs(apart).max() <= TOLERANCE:
                    return turn
        raise ValueError(
            f"{self.path}: expected the voxels of {other.path}, {other}, in any order of the axes, got {self}; affines "
            f"{_rounded(other.affine)} and {_rounded(self.affine)}. {_RESAMPLE}; if the two are known to match voxel "
            "by voxel and only the affine is wrong, copy it (FSL's fslcpgeom).")

    def in_ras(self) -> Geometry:
        """Return the same grid with its axes to the right, to the front and upwards."""
        from nibabel.orientations import inv_ornt_aff, io_orientation

        if self.affine is None:
            return self
        turn = io_orientation(self.affine)
        i, j, k = (self.shape[int(axis)] for axis in np.argsort(turn[:, 0]))
        return Geometry(self.path, (i, j, k), self.affine @ inv_ornt_aff(turn, self.shape))

    def indices_of(self, ijk: np.ndarray, *, of: Geometry) -> np.ndarray:
        """Return the indices ``(n, 3)`` that voxels `ijk` of the grid `of` have in this one.

        Raises
        ------
        ValueError
            If the grids are not the same voxels in another order.
        """
        from nibabel.affines import apply_affine
        from nibabel.orientations import inv_ornt_aff

        found = apply_affine(inv_ornt_aff(self.turn_to(of), self.shape), ijk)
        return np.asarray(np.rint(found), dtype=np.int64)


@lru_cache
def _say_unknown(which: Path, like: Path) -> None:
    """Say once that a file, or those of a folder, have no affine."""
    log.warning("%s: no affine (sform_code and qform_code are 0, or a format without one); the axes are taken to lie "
                "as they are stored, in the order of %s", which, like)


def _rounded(affine: np.ndarray) -> list[list[float]]:
    rows: list[list[float]] = np.round(affine[:3], 3).tolist()
    return rows


def geometry_of(image: Any, path: Path) -> Geometry:
    """Return the grid of an image that nibabel has opened; of four axes and more the first three.

    A NIfTI's sform counts before its qform, as in nibabel, FSL and SPM; where they contradict each other, that is
    said in the log.

    Raises
    ------
    ValueError
        If it is no volume, or its affine is none.
    """
    shape = tuple(int(n) for n in image.shape)
    # CIFTI-2 has greyordinates in place of voxels
    if len(shape) < 3 or getattr(image, "affine", None) is None:
        raise ValueError(f"{path}: expected a volume of three axes, got {type(image).__name__} of {shape}. Give a "
                         "volume; surfaces and greyordinates have no voxels.")
    affine = np.asarray(image.affine, dtype=float) if _has_affine(image) else None
    grid = Geometry(path, (shape[0], shape[1], shape[2]), affine)
    if affine is None:
        return grid
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"{path}: expected an affine that leads from voxels to millimetres, got {affine.tolist()}. "
                         "Write the right one into the file (FSL's fslcpgeom copies one).")
    if (other := _contradicting(image)) is not None:
        log.warning("%s: sform and qform contradict each other (%s by the sform, which is taken; %s by the qform)",
                    path, grid, Geometry(path, grid.shape, other))
    return grid


def _has_affine(image: Any) -> bool:
    """Return whether the head says where the voxels lie; nibabel makes an affine up where it does not."""
    head = image.header
    if hasattr(head, "get_sform"):
        return bool(head["sform_code"] > 0 or head["qform_code"] > 0)
    if "goodRASFlag" in head:  # MGH
        return bool(head["goodRASFlag"] > 0)
    # Analyze, as SPM wrote it: in the head, or in a .mat beside
    return hasattr(head, "get_origin_affine") and (
        bool(np.any(head["origin"])) or not np.allclose(image.affine, head.get_best_affine()))


def _contradicting(image: Any) -> np.ndarray | None:
    """Return the affine of the qform where it puts voxels elsewhere than the sform does."""
    head = image.header
    if not hasattr(head, "get_sform") or not (head["sform_code"] > 0 and head["qform_code"] > 0):
        return None
    sform, qform = head.get_sform(), head.get_qform()
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(image.shape[:3]) - 1)[:, None]
    apart = np.abs((sform - qform) @ np.vstack([corners, np.ones(8)])).max()
    return qform if apart > TOLERANCE * float(np.min(head.get_zooms()[:3])) else None


def open_volume(path: Path) -> Any:
    """Open an image of any format of nibabel; its head is read.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    import nibabel

    with reading(path, what="NIfTI volume"):
        return nibabel.load(path)


def read_volume(path: Path, *, like: Geometry | None = None) -> tuple[np.ndarray, Geometry]:
    """Read one volume in the order of axes of a reference.

    Parameters
    ----------
    path
        A file that nibabel reads: ``.nii``, ``.nii.gz``, ``.mgz``, ``.hdr`` with ``.img``.
    like
        The reference's grid; None leaves the volume as it is stored.

    Returns
    -------
    tuple
        ``(x, y, z)`` numbers, further axes of length 1 being dropped; and the grid they are on, `like` where given.

    Raises
    ------
    ValueError
        If the file cannot be read, holds several volumes or no numbers, or is on another grid than the reference.
    """
    image = open_volume(path)
    grid = geometry_of(image, path)
    shape = image.shape
    if any(n != 1 for n in shape[3:]):
        raise ValueError(f"{path}: expected one volume of three axes, got {shape}. Give one volume "
                         "(nilearn.image.index_img takes one out of several).")
    with reading(path, what="NIfTI volume"):
        values = np.asarray(image.dataobj).reshape(grid.shape)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numbers, got {values.dtype}. Give a mask, labels or a map, not a picture.")
    return (values, grid) if like is None else (turned(values, grid, like=like), like)


def turned(values: np.ndarray, grid: Geometry, *, like: Geometry) -> np.ndarray:
    """Return an array ``(x, y, z, ...)`` of a grid in the order of axes of another.

    Raises
    ------
    ValueError
        If the grids are not the same voxels in another order.
    """
    from nibabel.orientations import apply_orientation

    turn = grid.turn_to(like)
    if not np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        log.info("%s: turned into the order of axes of %s (%s)", grid.path, like.path, like)
    return np.asarray(apply_orientation(values, turn))


def as_mask(values: np.ndarray, path: Path) -> np.ndarray:
    """Return which voxels of a mask count, those above 0; NaN does not, which is said in the log.

    Raises
    ------
    ValueError
        If there are none.
    """
    if values.dtype.kind == "f" and (n := int(np.isnan(values).sum())):
        log.warning("%s: %d voxels of the mask are NaN and count as outside", path, n)
    inside = values > 0
    if not inside.any():
        raise ValueError(f"{path}: expected voxels above 0, got none. Give another mask, or repair this one.")
    return np.asarray(inside)


def as_labels(values: np.ndarray, path: Path) -> np.ndarray:
    """Return whole numbers int64 for labels stored as floats; NaN becomes 0, which is said in the log.

    Raises
    ------
    ValueError
        If one is between two labels: the volume was interpolated.
    """
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    if n := int(np.isnan(values).sum()):
        log.warning("%s: %d voxels are labelled NaN and count as having no label", path, n)
    filled = np.nan_to_num(values.astype(np.float64), nan=0.0)
    whole = np.rint(filled)
    between = np.abs(filled - whole) > _LABEL_TOLERANCE
    if between.any():
        raise ValueError(f"{path}: expected whole numbers as labels, got {filled[between][0]:g} and "
                         f"{int(between.sum())} such voxels in all. It was interpolated: resample the original by "
                         "nearest neighbour.")
    return whole.astype(np.int64)
