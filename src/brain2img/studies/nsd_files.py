"""NSD as its authors publish it: regions, and betas session by session.

Allen et al. 2022, https://doi.org/10.1038/s41593-021-00962-x; layout by the data manual, https://cvnlab.slite.page.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.data.reading import reading
from brain2img.records import SignalSpec
from brain2img.studies.geometry import Geometry, as_labels, as_mask, geometry_of, open_volume, read_volume
from brain2img.studies.nsd_design import DESIGN, HELD_BACK, Design, existing, n_sessions, subject_name

#: Betas are stored as int16: percent signal change times this.
SCALE = 300
_BETAS = {"betas_fithrf": "single-trial betas of GLMsingle with fitted responses (b2)",
          "betas_fithrf_GLMdenoise_RR": "single-trial betas of GLMsingle with fitted responses, GLMdenoise and ridge "
                                        "regression (b3)"}
_BLOCK_BYTES = 64_000_000


@dataclass(frozen=True)
class Voxels:
    """Which voxels of a volume of `shape` are taken, in the order of the flattened (C order) volume.

    `ijk` is ``(C, 3)``, `affine` ``(4, 4)`` to millimetres or None where no file says, `rois` a label for each voxel,
    `files` what told them.
    """

    ijk: np.ndarray
    affine: np.ndarray | None
    shape: tuple[int, int, int]
    rois: tuple[str, ...]
    files: tuple[Path, ...] = ()

    @classmethod
    def read(cls, raw: Path, subject: int, *, voxels: str, like: Geometry | None = None) -> Voxels:
        """Read masks, labels and their table.

        Parameters
        ----------
        raw
            Root of the data set.
        subject
            1 to 8.
        voxels
            "<set>" or "<set>:<labels>": a region set of ``roi/``, or "brain"; and the set whose names are the voxels'
            labels (by default the same; of "brain", HCP_MMP1).
        like
            The grid of the betas, into which all volumes are turned. None is that of betas which do not tell theirs
            (HDF5): the mask's, with axes to the right, to the front and upwards, as NSD's authors write all volumes.

        Raises
        ------
        ValueError
            If a volume or a table is missing or damaged, or they do not fit each other.
        """
        name, _, atlas = voxels.partition(":")
        atlas = atlas or ("HCP_MMP1" if name == "brain" else name)
        folder = f"nsddata/ppdata/{subject_name(subject)}/func1pt8mm"
        cure = "Fetch it, or choose another set with study.voxels."
        path = existing(raw, f"{folder}/brainmask.nii.gz" if name == "brain" else f"{folder}/roi/{name}.nii.gz",
                        cure=cure)
        grid = like or geometry_of(open_volume(path), path).in_ras()
        inside = as_mask(read_volume(path, like=grid)[0], path)
        # edges of the volume that a session did not cover
        covered = sorted((raw / folder).glob("valid_session*.nii.gz")) if name == "brain" else []
        for each in covered:
            inside &= as_mask(read_volume(each, like=grid)[0], each)
        if not inside.any():
            raise ValueError(f"{path}: expected voxels that every session covers, got none by {covered[0].parent}/"
                             "valid_session*. Give the files of one subject.")
        ijk = np.argwhere(inside)
        regions = existing(raw, f"{folder}/roi/{atlas}.nii.gz", cure=cure)
        numbers = as_labels(read_volume(regions, like=grid)[0][inside], regions)
        names, table = _label_names(raw, subject, atlas=atlas, largest=int(numbers.max()))
        if unknown := sorted({int(n) for n in np.unique(numbers) if n > 0} - set(names)):
            raise ValueError(f"{atlas} of {subject_name(subject)}: expected the {len(names)} labels of its table, got "
                             f"{unknown[0]}, which is not there. Fetch the volume and the table again.")
        return cls(ijk, grid.affine, grid.shape, tuple(names[n] if n > 0 else "" for n in numbers.tolist()),
                   (path, *covered, regions, *table))

    def in_session(self, path: Path) -> Voxels:
        """Return where the voxels are in the volumes of a session, whose axes may lie otherwise.

        Raises
        ------
        ValueError
            If a NIfTI's grid is another one.
        """
        if path.suffix == ".hdf5":
            return self
        grid = geometry_of(open_volume(path), path)
        mine = Geometry(self.files[0], self.shape, self.affine)
        return replace(self, ijk=grid.indices_of(self.ijk, of=mine), shape=grid.shape, affine=grid.affine)


def _label_names(raw: Path, subject: int, *, atlas: str, largest: int) -> tuple[dict[int, str], list[Path]]:
    """Return the names of an atlas' labels, and their table; a set of one label needs none and carries its own name."""
    both = atlas.removeprefix("lh.").removeprefix("rh.")  # the sets of a hemisphere share the table
    places = [f"nsddata/freesurfer/{who}/label/{both}.mgz.ctab" for who in (subject_name(subject), "fsaverage")]
    places.append(f"nsddata/templates/{both}.ctab")
    if largest <= 1 and not any((raw / place).exists() for place in places):
        return {1: atlas}, []
    path = existing(raw, *places, cure="Fetch this table of labels, or take others with study.voxels=<set>:<labels>.")
    with reading(path, what="table of labels"):
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        return {int(line[0]): line[1] for line in lines}, [path]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected lines of a number and a name, got others ({error}). "
                         "Give the table as published.") from error


@dataclass(frozen=True)
class BetaSession:
    """Reads one session's betas, voxels cut out as the file is read.

    Parameters
    ----------
    path
        ``betas_sessionNN.nii.gz``, ``.nii`` or ``.hdf5``.
    voxels
        Which to take.
    places
        Trials of the session (from 0, ascending) to take.
    """

    path: Path
    voxels: Voxels
    places: np.ndarray

    def check(self, *, n_trials: int) -> None:
        """Refuse a file that is not n int16 volumes that the mask fits; only its head is read.

        Raises
        ------
        ValueError
            Naming the file.
        """
        if self.path.suffix == ".hdf5":
            with _betas(self.path) as data:
                shape, dtype, scaled = data.shape[:0:-1] + data.shape[:1], data.dtype, False
        else:
            image = open_volume(self.path)
            shape, dtype = _four_axes(image.shape), image.get_data_dtype()
            scaled = (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0)
        if dtype.newbyteorder("=") != np.int16 or scaled:
            raise ValueError(f"{self.path}: expected int16 (percent signal change x {SCALE}), got "
                             f"{'scaled ' if scaled else ''}{dtype}. Give the betas as NSD publishes them.")
        if len(shape) != 4 or shape[:3] != self.voxels.shape:
            raise ValueError(f"{self.path}: expected volumes of {self.voxels.shape} like the mask's, got {shape[:3]}. "
                             "Fetch masks and betas of one space (func1pt8mm) and one subject.")
        if shape[3] != n_trials:
            raise ValueError(f"{self.path}: expected {n_trials} trials by nsd_expdesign.mat, got {shape[3]}. "
                             "Give the session as published, and its design.")

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, C, 1)`` float32 of percent signal change."""
        for first, block in (self._hdf5() if self.path.suffix == ".hdf5" else self._nifti()):
            mine = self.places[(self.places >= first) & (self.places < first + len(block))] - first
            if len(mine):
                yield (block[mine].astype(np.float32) / SCALE)[:, :, None]

    def _nifti(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number of the first trial and ``(n, C)`` int16, in one pass through the file."""
        image = open_volume(self.path)
        n, dtype, size = _four_axes(image.shape)[3], image.get_data_dtype(), 2 * int(np.prod(self.voxels.shape))
        flat = np.ravel_multi_index(tuple(self.voxels.ijk.T), self.voxels.shape, order="F")
        step = max(1, _BLOCK_BYTES // size)
        with (gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb")) as file:
            with reading(self.path, what="NIfTI file"):
                file.seek(image.dataobj.offset)
            for first in range(0, n, step):
                with reading(self.path, what="NIfTI file"):
                    data = file.read(size * min(step, n - first))
                    if len(data) < size * min(step, n - first):
                        raise EOFError(f"it ends in trial {first + len(data) // size + 1} of {n}")
                yield first, np.frombuffer(data, dtype=dtype).reshape(-1, size // 2)[:, flat]
            with reading(self.path, what="NIfTI file"):
                file.read(1)  # a .gz keeps its check sum behind the last volume

    def _hdf5(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the same; the data set is ``(n, z, y, x)`` and read along its chunks, each of them once."""
        i, j, k = self.voxels.ijk.T
        with _betas(self.path) as data:
            n = len(data)
            chunks = data.chunks or (1, *data.shape[1:])
            if chunks[0] * data.shape[1] <= n * chunks[1]:  # a row of chunks in this direction is the smaller one
                step = max(1, _BLOCK_BYTES // (2 * int(np.prod(data.shape[1:])) * chunks[0])) * chunks[0]
                for first in range(0, n, step):
                    with reading(self.path, what="HDF5 file"):
                        volumes = data[first:first + step]
                    yield first, volumes[:, k, j, i]
                return
            out = np.empty((n, len(i)), dtype=np.int16)  # chunks of all trials of some voxels: slice by slice
            box = tuple(slice(int(a.min()), int(a.max()) + 1) for a in (j, i))
            for z in range(0, data.shape[1], chunks[1]):
                here = np.flatnonzero((k >= z) & (k < z + chunks[1]))
                if len(here):
                    with reading(self.path, what="HDF5 file"):
                        part = data[:, z:z + chunks[1], box[0], box[1]]
                    out[:, here] = part[:, k[here] - z, j[here] - box[0].start, i[here] - box[1].start]
        step = max(1, _BLOCK_BYTES // (4 * len(i)))
        for first in range(0, n, step):
            yield first, out[first:first + step]


@contextmanager
def _betas(path: Path) -> Iterator[Any]:
    """Open the data set ``betas``."""
    import h5py

    with reading(path, what="HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with reading(path, what="HDF5 file with the data set 'betas'"):
            data = file["betas"]
            if not isinstance(data, h5py.Dataset):
                raise KeyError("'betas' is a group")
        yield data


def _four_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape ``(x, y, z, n)`` of what may have further axes of length 1, or be a single volume."""
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 3 else shape


class Published:
    """The layout of NSD's authors.

    Parameters
    ----------
    raw
        Root of the data set.
    suffixes
        Endings that a session may have, (".nii.gz", ".nii") or (".hdf5",).
    betas
        Folder of the betas: "betas_fithrf" or "betas_fithrf_GLMdenoise_RR".
    voxels
        As for `Voxels.read`.
    sessions
        As for `n_sessions`.
    shared
        Which of the pictures that all subjects see are the test: 1000, or the 982 of the first release (of the others
        no trial is used, for they are no training pictures either).
    """

    def __init__(self, raw: Path, *, suffixes: Sequence[str], betas: str, voxels: str, sessions: str | int,
                 shared: int) -> None:
        self.raw, self.suffixes, self.betas, self.voxels, self.sessions = raw, suffixes, betas, voxels, sessions
        self.design = Design.read(existing(raw, *DESIGN, cure="Fetch it; docs/studies/nsd.md says from where."))
        self._test = self.design.shared if shared == 1000 else self.design.shared_early
        self._voxels: dict[int, Voxels] = {}

    def files(self, subjects: Sequence[int]) -> list[Path]:
        """Return the betas.

        Raises
        ------
        ValueError
            If a session is missing.
        """
        return [path for subject in subjects for path in self._files(subject)]

    def small_files(self, subjects: Sequence[int]) -> list[Path]:
        """Return the files that say what the betas are of, apart from the design."""
        ceilings = [self._folder(subject) / "ncsnr.nii.gz" for subject in subjects]
        return [*(path for subject in subjects for path in self._taken(subject).files),
                *(path for path in ceilings if path.exists())]

    def _files(self, subject: int) -> list[Path]:
        n = n_sessions(subject, sessions=self.sessions, of=self.design.n_sessions)
        places = [[self._folder(subject) / f"betas_session{session:02d}{suffix}" for suffix in self.suffixes]
                  for session in range(1, n + 1)]
        paths = [next((place for place in some if place.is_file()), some[0]) for some in places]
        if missing := [path for path in paths if not path.is_file()]:
            raise ValueError(
                f"{missing[0]}: expected the {n} sessions of {subject_name(subject)}, got no such file "
                f"({len(missing)} missing in all). Fetch it, or take fewer with study.sessions ('early' leaves out the "
                f"last {HELD_BACK} of each subject, which the first release held back).")
        return paths

    def _folder(self, subject: int) -> Path:
        return self.raw / f"nsddata_betas/ppdata/{subject_name(subject)}/func1pt8mm/{self.betas}"

    def _taken(self, subject: int) -> Voxels:
        if subject not in self._voxels:
            first = self._files(subject)[0]
            grid = None if first.suffix == ".hdf5" else geometry_of(open_volume(first), first)
            self._voxels[subject] = Voxels.read(self.raw, subject, voxels=self.voxels,
                                                like=None if grid is None or grid.affine is None else grid)
        return self._voxels[subject]

    def trials(self, subject: int) -> pd.DataFrame:
        """Return the trials as `Design.trials`, with their split ("train" or "test")."""
        trials = self.design.trials(subject, sessions=len(self._files(subject)))
        trials["split"] = np.where(trials["image"].isin(self._test), "test", "train")
        left_out = (trials["split"] == "train") & trials["image"].isin(self.design.shared)
        return trials[~left_out].reset_index(drop=True)

    def spec(self, subject: int, trials: pd.DataFrame) -> SignalSpec:
        """Return what the signals are.

        The noise ceiling is the share of variance of the average over the repetitions of the test pictures,
        ``s^2 / (s^2 + mean(1 / n))``, s being the published noise-ceiling signal-to-noise ratio (ncsnr) and n the
        repetitions of a test picture (data manual; Allen et al. 2022).
        """
        voxels = self._taken(subject)
        path, ceiling = self._folder(subject) / "ncsnr.nii.gz", None
        if path.exists():
            grid = Geometry(voxels.files[0], voxels.shape, voxels.affine)
            ncsnr = read_volume(path, like=grid)[0][tuple(voxels.ijk.T)]
            square = np.nan_to_num(ncsnr.astype(np.float64)) ** 2
            repetitions = trials[trials["split"] == "test"].groupby("image").size()
            ceiling = square / (square + ((1 / repetitions).mean() if len(repetitions) else 1.0))
        return SignalSpec(
            subject=subject_name(subject), modality="fmri", units="percent signal change",
            n_channels=len(voxels.ijk), n_times=1, ijk=voxels.ijk, affine=voxels.affine, volume_shape=voxels.shape,
            rois=voxels.rois, noise_ceiling=ceiling, filtered=_BETAS.get(self.betas, self.betas))

    def readers(self, subject: int, trials: pd.DataFrame) -> list[BetaSession]:
        """Return a reader for every session of `trials`, the heads of all files checked.

        Raises
        ------
        ValueError
            If a file holds another number of trials, other volumes or no int16.
        """
        voxels = self._taken(subject)
        readers = []
        for session, path in enumerate(self._files(subject), start=1):
            mine = trials.loc[trials["session"] == session, "place"].to_numpy()
            reader = BetaSession(path, voxels.in_session(path), mine)
            reader.check(n_trials=int(self.design.pattern[session - 1].sum()))
            if len(mine):
                readers.append(reader)
        return readers
