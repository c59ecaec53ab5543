"""NSD as others pass it on: the "averaged" webdataset, and the betas of all trials with behaviour tars.

Both hold the voxels of `nsdgeneral` (func1pt8mm) and nothing about where they lie. Nothing is unpacked: members are
read out of the tars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.data.file_names import is_junk
from brain2img.data.pictures import picture_size, pictures_from, read_picture
from brain2img.data.reading import reading
from brain2img.records import SignalSpec
from brain2img.studies.nsd_design import DURATION, HELD_BACK, existing, n_sessions, subject_name
from brain2img.studies.webdatasets import array, files_of, samples

_ROWS = 64  # trials read at once


def _shards(folder: Path, pattern: str) -> list[Path]:
    """Return the tars ``<pattern with a number for *>`` in the order of their numbers, which have no gap."""
    expression = re.compile(re.escape(pattern).replace(r"\*", "([0-9]+)"))
    found = {int(match[1]): path for path in folder.glob(pattern) if (match := expression.fullmatch(path.name))}
    for number in range(max(found, default=0) + 1):
        if number not in found:
            raise ValueError(f"{folder / pattern.replace('*', str(number))}: expected every tar up to number "
                             f"{max(found, default=0)}, got no such file. Fetch it.")
    return [found[number] for number in range(len(found))]


class Averaged:
    """The set of MindEye1 and MindBridge: a sample per picture, with its (up to) three repetitions.

    ``webdataset_avg_split/{train,val,test}/<split>_subj0S_N.tar``, or unpacked, ``<split>/subj0S/``. Despite its name
    the repetitions are not averaged: ``nsdgeneral.npy`` is ``(3, V)``, and pictures shown less often have equal rows.
    Those are taken once, so that a trial is a trial. Which session a trial is of is not told.

    MindEye1: https://github.com/MedARC-AI/fMRI-reconstruction-NSD, MindBridge: https://github.com/littlepure2333/MindBridge.
    """

    def __init__(self, raw: Path) -> None:
        self.root = raw / "webdataset_avg_split"
        self._found: dict[int, tuple[pd.DataFrame, int, tuple[int, int, int]]] = {}

    def files(self, subjects: Sequence[int]) -> list[Path]:
        """Return its tars, or what was unpacked from them."""
        sources = [source for subject in subjects for _, source in self._sources(subject)]
        return [path for source in sources for path in (files_of(source) if source.is_dir() else [source])]

    def _sources(self, subject: int) -> list[tuple[str, Path]]:
        name, found = subject_name(subject), []
        for split in ("train", "val", "test"):
            unpacked = self.root / split / name
            if unpacked.is_dir():
                found.append((split, unpacked))
            else:
                found += [(split, path) for path in _shards(self.root / split, f"{split}_{name}_*.tar")]
        return found

    def trials(self, subject: int) -> pd.DataFrame:
        """Return the trials: image, session ("all"), split, place (sample, row), source; all tars are read through.

        Raises
        ------
        ValueError
            If a tar is missing, truncated or hostile, or samples contradict each other.
        """
        rows: list[tuple[int, str, str, int]] = []
        voxels: dict[int, tuple[Path, str]] = {}
        sizes: dict[tuple[int, int], tuple[Path, str]] = {}
        count = {"train": 0, "val": 0, "test": 0}
        for split, source in self._sources(subject):
            for key, members in samples(source):
                betas = _repetitions(members, source=source, key=key)
                image = int(array(members, "coco73k.npy", source=source, key=key).ravel()[0])
                voxels.setdefault(betas.shape[1], (source, key))
                sizes.setdefault(_size(members, source=source, key=key), (source, key))
                rows += [(image, "all", split, len(rows) + i) for i in range(len(betas))]
                count[split] += 1
        there: dict[str, dict[Any, tuple[Path, str]]] = {"number of voxels": voxels, "size of pictures": sizes}
        for what, firsts in there.items():
            if len(firsts) > 1:
                source, key = list(firsts.values())[1]
                raise ValueError(f"{source}: expected one {what} for {subject_name(subject)}, got "
                                 f"{' and '.join(map(str, firsts))} (the last in {key}). Give the tars as published.")
        trials = pd.DataFrame(rows, columns=["image", "session", "split", "place"])
        self._check(subject, trials, count=count)
        height, width = next(iter(sizes))
        self._found[subject] = trials, next(iter(voxels)), (height, width, 3)
        return trials

    def _check(self, subject: int, trials: pd.DataFrame, *, count: Mapping[str, int]) -> None:
        twice = trials.groupby("image")["split"].nunique()
        if (twice > 1).any():
            raise ValueError(f"{self.root}: expected every picture of {subject_name(subject)} in one split, got number "
                             f"{twice.index[twice > 1][0]} in several. Fetch the tars of one version again.")
        if sum(count.values()) != trials["image"].nunique():
            raise ValueError(f"{self.root}: expected a sample per picture of {subject_name(subject)}, got "
                             f"{sum(count.values())} samples of {trials['image'].nunique()}. Fetch the tars again.")
        for path in self.root.glob(f"*metadata_{subject_name(subject)}.json"):
            if is_junk(path.name):
                continue
            with reading(path, what="JSON file"):
                totals = json.loads(path.read_text()).get("totals", {})
            for split, n in totals.items():
                if split in count and n != count[split]:
                    raise ValueError(f"{self.root / split}: expected {n} pictures of {subject_name(subject)} by "
                                     f"{path.name}, got {count[split]}. Fetch the missing tars.")

    def spec(self, subject: int, trials: pd.DataFrame) -> SignalSpec:
        """Return what the signals are."""
        return SignalSpec(
            subject=subject_name(subject), modality="fmri", units="a.u.", n_channels=self._found[subject][1], n_times=1,
            rois=("nsdgeneral",) * self._found[subject][1],
            filtered="webdataset_avg_split of MindEye1: single repetitions, z-scored by its authors (over which trials "
                     "is not documented), sessions not told")

    def readers(self, subject: int, trials: pd.DataFrame) -> list[AveragedTrials]:
        """Return the reader of all trials."""
        return [AveragedTrials(tuple(source for _, source in self._sources(subject)))]

    def shape(self, subjects: Iterable[int]) -> tuple[int, int, int]:
        """Return the shape of the pictures, the same for all subjects."""
        shapes = {self._found[subject][2] for subject in subjects}
        if len(shapes) > 1:
            raise ValueError(f"{self.root}: expected pictures of one size, got {sorted(shapes)}. "
                             "Fetch the tars of one version again.")
        return shapes.pop()

    def pictures(self, subjects: Iterable[int]) -> Iterator[np.ndarray]:
        """Yield the picture ``(h, w, 3)`` uint8 of every stimulus in the order of its first trial."""
        done: set[int] = set()
        for subject in subjects:
            for _, source in self._sources(subject):
                for key, members in samples(source):
                    image = int(array(members, "coco73k.npy", source=source, key=key).ravel()[0])
                    if image not in done:
                        done.add(image)
                        yield read_picture(_picture(members), within=source, what=f"picture in {key}")


@dataclass(frozen=True)
class AveragedTrials:
    """Reads the repetitions of all samples of some tars or folders, in their order."""

    sources: tuple[Path, ...]

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, V, 1)`` float32."""
        for source in self.sources:
            block: list[np.ndarray] = []
            for key, members in samples(source):
                block.append(_repetitions(members, source=source, key=key))
                if len(block) == _ROWS:
                    yield np.concatenate(block)[:, :, None]
                    block = []
            if block:
                yield np.concatenate(block)[:, :, None]


def _repetitions(members: Mapping[str, bytes], *, source: Path, key: str) -> np.ndarray:
    """Return the different rows ``(n, V)`` float32 of ``nsdgeneral.npy``."""
    betas = np.atleast_2d(array(members, "nsdgeneral.npy", source=source, key=key)).astype(np.float32)
    if betas.ndim != 2:
        raise ValueError(f"{source}: expected (repetitions, voxels) in {key}.nsdgeneral.npy, got {betas.shape}. "
                         "Give the tars as published.")
    _, first = np.unique(betas, axis=0, return_index=True)
    return betas[np.sort(first)]


def _picture(members: Mapping[str, bytes]) -> bytes:
    return members.get("jpg") or members.get("png") or b""


def _size(members: Mapping[str, bytes], *, source: Path, key: str) -> tuple[int, int]:
    """Return height and width of a sample's picture."""
    return picture_size(_picture(members), within=source, what=f"picture in {key}")


class AllBetas:
    """The set of MindEye2: the betas of all trials, and behaviour tars that say what was shown.

    ``betas_all_subj0S*.hdf5`` (``betas (n_trials, V)``), ``wds/subj0S/train/<session>.tar`` and
    ``wds/subj0S/{new_test,test}/0.tar``: the shared pictures of all sessions, or those of the first release.

    MindEye2: https://github.com/MedARC-AI/MindEyeV2; columns of ``behav.npy``: picture (from 0), subject, session, run,
    trial, row of the betas, ..., shared (the last).

    Parameters
    ----------
    raw
        Where these lie.
    shared
        1000 or 982: which test tar is read.
    sessions
        As for `nsd_design.n_sessions`.
    """

    def __init__(self, raw: Path, *, shared: int, sessions: str | int) -> None:
        self.raw, self.sessions = raw, sessions
        self.test = "new_test" if shared == 1000 else "test"
        self._size: dict[int, int] = {}

    def files(self, subjects: Sequence[int]) -> list[Path]:
        """Return its files, without the pictures."""
        return [path for subject in subjects for path in (self._betas(subject), *self._tars(subject))]

    def _betas(self, subject: int) -> Path:
        found = sorted(self.raw.glob(f"betas_all_{subject_name(subject)}*.hdf5"))
        if len(found) != 1:
            raise ValueError(f"{self.raw}/betas_all_{subject_name(subject)}*.hdf5: expected one file, got "
                             f"{', '.join(path.name for path in found) or 'none'}. Fetch it, or move the others away.")
        return found[0]

    def _tars(self, subject: int) -> list[Path]:
        """Return the tar of the test, then those of the training sessions asked for."""
        folder = self.raw / "wds" / subject_name(subject)
        test = existing(self.raw, f"wds/{subject_name(subject)}/{self.test}/0.tar", cure="Fetch it.")
        tars = _shards(folder / "train", "*.tar")
        wanted = n_sessions(subject, sessions=self.sessions) if isinstance(self.sessions, int) else (
            len(tars) - HELD_BACK * (self.sessions == "early"))
        if not 1 <= wanted <= len(tars):
            raise ValueError(f"{folder / 'train'}: expected the tars of {wanted} sessions, got {len(tars)}. "
                             "Fetch them, or take fewer with study.sessions.")
        return [test, *tars[:wanted]]

    def trials(self, subject: int) -> pd.DataFrame:
        """Return the trials in the order of recording: image, session, run, duration, split, place (row of the betas).

        Raises
        ------
        ValueError
            If a file is missing, truncated or hostile, or they contradict each other.
        """
        rows = []
        test, *train = self._tars(subject)
        for path in (test, *train):
            for key, members in samples(path):
                behaviour = array(members, "behav.npy", source=path, key=key)
                if behaviour.size != 17:
                    raise ValueError(f"{path}: expected 17 numbers in {key}.behav.npy, got {behaviour.size}. "
                                     "Give the tars as published.")
                image, who, session, run, _, place, *_, shared = behaviour.ravel().astype(int).tolist()
                if who != subject or bool(shared) != (path == test):
                    raise ValueError(
                        f"{path}: expected trials of {subject_name(subject)} with "
                        f"{'shared' if path == test else 'own'} pictures, got subject {who} and a "
                        f"{'shared' if shared else 'own'} picture in {key}. Give the tars as published.")
                rows.append((image, session, run, DURATION, "test" if path == test else "train", place))
        trials = pd.DataFrame(rows, columns=["image", "session", "run", "duration", "split", "place"])
        if self.sessions == "all" and trials["session"].max() > len(train):
            raise ValueError(f"{train[-1].parent}: expected the tars of {trials['session'].max()} sessions by {test}, "
                             f"got {len(train)}. Fetch the others, or take fewer with study.sessions.")
        trials = trials[trials["session"] <= len(train)].sort_values("place", ignore_index=True)
        self._check(subject, trials)
        return trials

    def _check(self, subject: int, trials: pd.DataFrame) -> None:
        path = self._betas(subject)
        n, self._size[subject] = AllBetasSession(path, np.array([], dtype=int)).shape
        if trials["place"].duplicated().any() or not trials["place"].between(0, n - 1).all():
            raise ValueError(f"{path}: expected a row of its own for every trial of the tars, got {len(trials)} trials "
                             f"(rows up to {trials['place'].max()}) for {n} rows. Fetch betas and tars of one version.")
        if self.test == "new_test" and self.sessions == "all" and len(trials) != n:
            raise ValueError(f"{path}: expected a trial in the tars for each of {n} rows, got {len(trials)}. Fetch the "
                             "tars again, or say how many sessions to take with study.sessions.")
        if not trials["session"].is_monotonic_increasing:
            raise ValueError(f"{path}: expected sessions one after the other by the tars, got them mixed. "
                             "Fetch the tars again.")

    def spec(self, subject: int, trials: pd.DataFrame) -> SignalSpec:
        """Return what the signals are."""
        return SignalSpec(
            subject=subject_name(subject), modality="fmri", units="a.u.", n_channels=self._size[subject], n_times=1,
            rois=("nsdgeneral",) * self._size[subject],
            filtered="betas of all trials of MindEye2: betas_fithrf, z-scored by its authors by session and voxel, "
                     "over all trials by their notebook, without the shared pictures by their paper")

    def readers(self, subject: int, trials: pd.DataFrame) -> list[AllBetasSession]:
        """Return a reader for every session of `trials`."""
        path = self._betas(subject)
        return [AllBetasSession(path, group["place"].to_numpy()) for _, group in trials.groupby("session")]


@dataclass(frozen=True)
class AllBetasSession:
    """Reads rows (ascending) of ``betas`` ``(n_trials, V)``."""

    path: Path
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of voxels."""
        import h5py

        with reading(self.path, what="HDF5 file with the data set 'betas'"), h5py.File(self.path, "r") as file:
            shape = tuple(int(n) for n in file["betas"].shape)
        if len(shape) != 2:
            raise ValueError(f"{self.path}: expected (trials, voxels) in 'betas', got {shape}. Give the file of "
                             "MindEye2.")
        return shape

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, V, 1)`` float32."""
        import h5py

        with reading(self.path, what="HDF5 file"):
            file = h5py.File(self.path, "r")
        with file:
            for first in range(int(self.rows[0]), int(self.rows[-1]) + 1, _ROWS):
                mine = self.rows[(self.rows >= first) & (self.rows < first + _ROWS)]
                if len(mine):
                    with reading(self.path, what="HDF5 file"):
                        block = file["betas"][first:int(mine[-1]) + 1]
                    yield block[mine - first].astype(np.float32)[:, :, None]


def packed_pictures(path: Path, rows: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield rows of ``coco_images_224_float16.hdf5`` (``images (n, 3, h, w)`` in [0, 1]) as ``(h, w, 3)`` uint8."""
    import h5py

    with reading(path, what="HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        for row in rows:
            with reading(path, what="HDF5 file with the data set 'images'"):
                image = np.asarray(file["images"][row], dtype=np.float32)
            yield pictures_from(image.transpose(1, 2, 0), expected="0..1", what=f"{path}, row {row} of 'images'")
