"""Maps of responses, one a trial: NIfTI volumes, CIFTI, NumPy arrays and tables of parcels; masks and atlases."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.data.reading import reading
from brain2img.studies.bids_files import read_table
from brain2img.studies.geometry import Geometry, as_labels, as_mask, geometry_of, open_volume, read_volume

log = logging.getLogger(__name__)

VOLUMES = (".nii", ".nii.gz")
CIFTI = (".dscalar.nii", ".dtseries.nii", ".pscalar.nii", ".ptseries.nii")
#: Endings that maps can have.
MAPS = (*VOLUMES, *CIFTI, ".npy", ".tsv")
#: Mask that stands for the voxels which are finite and not 0 in the first map of every file.
NONZERO = "nonzero"
_BLOCK_BYTES = 64_000_000


@dataclass(frozen=True, eq=False)
class MapFile:
    """The head of a file of maps.

    Parameters
    ----------
    path
        The file.
    n
        Maps in it.
    names
        Label of every column: parcel or structure; () where the file has none.
    n_columns
        Columns, for files other than volumes.
    grid
        Where the voxels lie, for volumes.
    identity
        What columns are, where it can be compared between files: axis of a CIFTI file.
    """

    path: Path
    n: int
    names: tuple[str, ...] = ()
    n_columns: int = 0
    grid: Geometry | None = None
    identity: Any = None


def open_maps(path: Path) -> MapFile:
    """Read the head of a file of maps.

    Raises
    ------
    ValueError
        If it is damaged or holds something else.
    """
    name = path.name.lower()
    if name.endswith(".npy"):
        values = _array(path)
        return MapFile(path, len(values), n_columns=values.shape[1])
    if name.endswith(".tsv"):
        table = read_table(path)
        return MapFile(path, len(table), names=tuple(map(str, table.columns)), n_columns=len(table.columns))
    image = open_volume(path)
    if name.endswith(CIFTI):
        with reading(path, what="CIFTI file"):
            trials, columns = image.header.get_axis(0), image.header.get_axis(1)
        labels = getattr(columns, "name", ())
        return MapFile(path, len(trials), names=tuple(str(label).removeprefix("CIFTI_STRUCTURE_") for label in labels),
                       n_columns=len(columns), identity=columns)
    grid = geometry_of(image, path)
    if len(image.shape) > 4 and any(n != 1 for n in image.shape[4:]):
        raise ValueError(f"{path}: expected volumes in four axes, the last one of trials, got {image.shape}. Save it "
                         "so.")
    return MapFile(path, int(image.shape[3]) if len(image.shape) > 3 else 1, grid=grid)


def _array(path: Path) -> np.ndarray:
    with reading(path, what="array of numbers"):
        values: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected numbers of trials x parcels (or voxels), got {values.dtype} of "
                         f"{values.shape}. Save them as an array of two axes.")
    return values


def read_maps(path: Path, rows: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks ``(n, C)`` float32 of some maps of a file.

    Parameters
    ----------
    path
        The file.
    rows
        Maps that are taken, ascending.
    columns
        ``(C,)`` places of columns, or ``(C, 3)`` indices of voxels in the order of axes of this file.
    """
    name = path.name.lower()
    if name.endswith(".npy"):
        step = max(1, _BLOCK_BYTES // (8 * max(1, len(columns))))
        values = _array(path)
        for at in range(0, len(rows), step):
            yield np.asarray(values[rows[at:at + step]], dtype=np.float32)[:, columns]
        return
    if name.endswith(".tsv"):
        table = read_table(path)
        try:
            yield table.to_numpy(dtype=np.float32, na_value=np.nan)[rows][:, columns]
        except ValueError as error:
            raise ValueError(f"{path}: expected numbers in every column, got others ({error}). Leave only parcels in "
                             "this table; events stand in their own.") from error
        return
    import nibabel

    # kept open: what is compressed is then read forwards once, not from its beginning for every block
    with reading(path, what="NIfTI file"):
        image: Any = nibabel.load(path, keep_file_open=True)
    if name.endswith(CIFTI):
        step = max(1, _BLOCK_BYTES // (8 * image.shape[1]))
        for at in range(0, len(rows), step):
            with reading(path, what="CIFTI file"):
                block = np.asarray(image.dataobj[rows[at]:rows[min(at + step, len(rows)) - 1] + 1], dtype=np.float32)
            yield block[rows[at:at + step] - rows[at]][:, columns]
        return
    i, j, k = columns.T
    if len(image.shape) == 3:
        with reading(path, what="NIfTI file"):
            volume = np.asarray(image.dataobj)
        yield volume[i, j, k].astype(np.float32)[None]
        return
    step = max(1, _BLOCK_BYTES // (8 * int(np.prod(image.shape[:3]))))
    for first in range(0, image.shape[3], step):
        mine = rows[(rows >= first) & (rows < first + step)] - first
        with reading(path, what="NIfTI file"):
            volumes = np.asarray(image.dataobj[..., first:first + step])
        if len(mine):
            yield volumes.reshape(*image.shape[:3], -1)[i, j, k].T[mine].astype(np.float32)


@dataclass(frozen=True, eq=False)
class MapSession:
    """Reads the maps of one session: file, maps of it that are taken, and their columns."""

    parts: tuple[tuple[Path, np.ndarray, np.ndarray], ...]

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, C, 1)`` float32."""
        for path, rows, columns in self.parts:
            for block in read_maps(path, rows, columns):
                yield block[..., None]


@dataclass(frozen=True, eq=False)
class Columns:
    """What is taken of every file of a subject.

    Parameters
    ----------
    of
        File -> ``(C,)`` columns, or ``(C, 3)`` voxels in its own order of axes.
    rois
        Label of every column, or ().
    ijk, grid
        Voxels ``(C, 3)`` in the grid of the first file, and that grid; None where there are no volumes.
    """

    of: dict[Path, np.ndarray]
    rois: tuple[str, ...]
    ijk: np.ndarray | None = None
    grid: Geometry | None = None


def chosen_columns(files: Sequence[MapFile], *, masks: Sequence[Path] | str, atlas: Path | None, labels: Path | None,
                   what: str) -> Columns:
    """Return what is taken of the files of a subject: voxels within the masks, or all parcels.

    Volumes are compared by affine with the first file: other orders of the axes are followed, other grids refused.
    Voxels that are not finite in the first map of a file are left out.

    Parameters
    ----------
    files
        Heads of all files.
    masks
        Volumes whose common voxels are taken, or `NONZERO`; not used where the files are no volumes.
    atlas, labels
        Volume of labels and the table of their names; of files that are no volumes the table names the columns.
    what
        What messages call the subject.

    Raises
    ------
    ValueError
        If files do not fit each other, or nothing is left.
    """
    first = files[0]
    if first.grid is None:
        return _parcels(files, labels=labels, what=what)
    if other := [file.path for file in files if file.grid is None]:
        raise ValueError(f"{other[0]}: expected a volume like {first.path.name}, got another kind of file. Choose one "
                         "kind with study.entities and study.maps.suffix.")
    if isinstance(masks, str):
        inside = np.ones(first.grid.shape, dtype=bool)
    else:
        inside = np.logical_and.reduce([as_mask(read_volume(path, like=first.grid)[0], path) for path in masks])
        if not inside.any():
            raise ValueError(f"{what}: expected voxels that all of its {len(masks)} masks have, got none. Choose one "
                             "with study.voxels.mask.")
    ijk = np.argwhere(inside)
    own = {file.path: file.grid.indices_of(ijk, of=first.grid) for file in files if file.grid is not None}
    kept = np.ones(len(ijk), dtype=bool)
    for path, voxels in own.items():
        values = next(read_maps(path, np.array([0]), voxels))[0]
        kept &= np.isfinite(values) & ((values != 0) | (masks != NONZERO))
    if not kept.any():
        raise ValueError(f"{what}: expected voxels that are finite in all its files, got none. Give another mask with "
                         "study.voxels.mask.")
    if masks != NONZERO and not kept.all():
        log.warning("%s: %d of %d voxels of the mask are NaN in a file and are left out", what, int((~kept).sum()),
                    len(kept))
    ijk = ijk[kept]
    rois = () if atlas is None else atlas_labels(atlas, ijk, grid=first.grid, table=labels)
    return Columns({path: voxels[kept] for path, voxels in own.items()}, rois, ijk, first.grid)


def _parcels(files: Sequence[MapFile], *, labels: Path | None, what: str) -> Columns:
    first = files[0]
    for file in files:
        same = file.n_columns == first.n_columns and file.names == first.names and (
            first.identity is None or file.identity == first.identity)
        if file.grid is not None or not same:
            raise ValueError(f"{file.path}: expected the {first.n_columns} columns of {first.path.name}, got "
                             f"{file.n_columns}{'' if file.n_columns != first.n_columns else ' others'}. Choose files "
                             "of one space and one atlas with study.entities.")
    names = first.names
    if labels is not None:
        names = tuple(label_names(labels).values())
        if len(names) != first.n_columns:
            raise ValueError(f"{labels}: expected the names of the {first.n_columns} columns of {first.path.name}, got "
                             f"{len(names)}. Correct study.voxels.labels.")
    columns = np.arange(first.n_columns)
    finite = np.ones(len(columns), dtype=bool)
    for file in files:
        finite &= np.isfinite(next(read_maps(file.path, np.array([0]), columns))[0])
    if not finite.all():
        log.warning("%s: %d of %d columns are NaN in a file and are left out", what, int((~finite).sum()), len(finite))
    if not finite.any():
        raise ValueError(f"{what}: expected columns that are finite in all its files, got none. Correct the files.")
    kept = columns[finite]
    return Columns({file.path: kept for file in files}, tuple(names[i] for i in kept) if names else ())


def atlas_labels(path: Path, ijk: np.ndarray, *, grid: Geometry, table: Path | None) -> tuple[str, ...]:
    """Return the label of every voxel, "" for none.

    Parameters
    ----------
    path
        Volume of whole numbers.
    ijk, grid
        Voxels ``(C, 3)`` and the grid they are of.
    table
        Names of the numbers; None for a table of the same name beside the volume.

    Raises
    ------
    ValueError
        If the atlas is on another grid, or has numbers without a name.
    """
    numbers = as_labels(read_volume(path, like=grid)[0], path)[tuple(ijk.T)]
    stem = path.name.partition(".nii")[0]
    beside = [path.with_name(f"{stem}{ending}") for ending in (".tsv", ".txt", ".ctab", ".lut")]
    found = table or next((place for place in beside if place.is_file()), None)
    if found is None:
        raise ValueError(f"{path}: expected a table of its labels, {beside[0].name} with the columns index and name, "
                         "got none. Write it there, or set study.voxels.labels.")
    names = label_names(found)
    unknown = sorted({int(n) for n in np.unique(numbers) if n != 0} - set(names))
    if unknown:
        raise ValueError(f"{found}: expected names of all labels of {path.name}, got none of {unknown[:5]}. Correct "
                         "the table, or set study.voxels.labels.")
    if not (numbers != 0).any():
        raise ValueError(f"{path}: expected labels within the mask, got none. Give the atlas in the space of the maps.")
    return tuple(names[n] if n else "" for n in numbers.tolist())


def label_names(path: Path) -> dict[int, str]:
    """Return number -> name of a table of labels: BIDS (index, name), or lines of a number and a name (a LUT).

    Raises
    ------
    ValueError
        If it is neither.
    """
    if path.suffix.lower() in (".tsv", ".csv"):
        table = read_table(path)
        index = next((column for column in ("index", "label", "id") if column in table), None)
        name = next((column for column in ("name", "abbreviation") if column in table), None)
        if name is None:
            raise ValueError(f"{path}: expected the columns index and name, got {', '.join(table.columns)}. Rename "
                             "them.")
        numbers = range(len(table)) if index is None else [int(float(number)) for number in table[index]]
        return dict(zip(numbers, table[name].fillna("").astype(str), strict=True))
    lines = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    try:
        return {int(line[0]): line[1] for line in lines}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected lines of a number and a name, got others ({error}). Correct "
                         "the table.") from error
