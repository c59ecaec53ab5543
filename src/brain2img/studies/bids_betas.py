"""Single-trial maps of fMRI (betas of volumes or parcels) of any BIDS derivative."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.bids_files import (
    RUN_ENTITIES,
    BIDSFile,
    check_entities,
    chosen_subjects,
    dataset_folder,
    datatype_folders,
    matching_files,
    path_in,
    table_of,
)
from brain2img.studies.bids_maps import MAPS, NONZERO, VOLUMES, Columns, MapFile, MapSession, chosen_columns, open_maps
from brain2img.studies.bids_stimuli import Holdout, Pictures, Shown
from brain2img.studies.bids_tables import Events, settings_of

log = logging.getLogger(__name__)

#: Suffixes of what is no map of a trial.
_OTHER = ("bold", "cbv", "sbref", "boldref", "mask", "dseg", "probseg", "events", "physio", "stim", "regressors",
          "timeseries", "motion", "xfm", "T1w", "T2w")
_COMPARED = ("space", "res", "den")
_NO_BETAS = ("betas of single trials are expected, time series are not fitted here: fit them with GLMsingle "
             "(https://glmsingle.readthedocs.io) or least squares separate in nilearn, and save one map a trial; "
             "docs/studies/bids_betas.md shows how")


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Where the maps are.

    Parameters
    ----------
    derivative
        Folder of the derivative, relative to the dataset ("derivatives/glmsingle"); None: the dataset itself, or the
        only folder under ``derivatives/`` that has maps.
    suffix
        What their names end in ("betas", "statmap"); None: the only suffix there is, other than those of time series.
    units
        What the numbers are, in words: "percent signal change", "a.u."
    """

    derivative: str | None = None
    suffix: str | None = None
    units: str = "a.u."


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Which voxels are taken of volumes, and what they are called.

    Parameters
    ----------
    mask
        Volume, relative to the dataset, "sub-*" standing for the subject; "nonzero": voxels that are finite and not 0
        in the first map of every file. None: the masks of the derivative in the space of the maps, where there is one
        kind; their common voxels are taken.
    atlas
        Volume of labels, named likewise; None: no labels.
    labels
        Table of its names (index, name), or of the columns of parcels; None: the one of the same name beside it.
    """

    mask: str | None = None
    atlas: str | None = None
    labels: str | None = None

    def path(self, setting: str, *, root: Path, subject: str) -> Path | None:
        """Return the file that a setting names for a subject.

        Raises
        ------
        ValueError
            If it is not there.
        """
        value = getattr(self, setting)
        if value is None or value == NONZERO:
            return None
        path = root / str(value).replace("sub-*", f"sub-{subject}")
        if not path.is_file():
            raise ValueError(f"{path}: expected a file, by study.voxels.{setting}, got no such file. Correct "
                             f"study.voxels.{setting}; sub-* stands for the subject.")
        return path


class BIDSBetas(Study):
    """Single-trial betas of fMRI in a BIDS derivative, whose events name the pictures that were shown.

    A file holds the maps of a run (or of a session) in the order of its events: NIfTI of four axes, CIFTI (dense or
    parcels), ``.npy`` trials x parcels, ``.tsv`` with a column for each parcel; or one volume a trial, named by a
    column of the events. Time series are not fitted here.

    Parameters
    ----------
    name
        What the study is called: the folder under ``outputs/prepared`` and the `study` of every score.
    subjects
        Labels, as "01" or 1; None for all who have maps.
    entities
        Entity ("ses", "task", "run", "space", "desc", "stat", ...) -> a value or several that maps must have.
    maps
        Arguments of `Maps`.
    events
        Arguments of `brain2img.studies.bids_tables.Events`. The table beside the maps counts before the dataset's.
    stimuli
        Arguments of `brain2img.studies.bids_tables.Pictures`.
    voxels
        Arguments of `Voxels`.
    split
        Arguments of `brain2img.studies.bids_tables.Holdout`.
    jobs
        Sessions read at the same time.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    modality, variant = "fmri", "fmri"

    def __init__(self, *, name: str = "bids", subjects: Sequence[Any] | None = None,
                 entities: Mapping[str, Any] | None = None, maps: Mapping[str, Any] | None = None,
                 events: Mapping[str, Any] | None = None, stimuli: Mapping[str, Any] | None = None,
                 voxels: Mapping[str, Any] | None = None, split: Mapping[str, Any] | None = None,
                 jobs: int = 1) -> None:
        self.name, self.subjects, self.entities, self.jobs = name, subjects, check_entities(entities), jobs
        self.maps = settings_of(Maps, maps, name="maps")
        self.events = settings_of(Events, events, name="events")
        self.pictures = settings_of(Pictures, stimuli, name="stimuli")
        self.voxels = settings_of(Voxels, voxels, name="voxels")
        self.split = settings_of(Holdout, split, name="split")

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of maps, events, masks, labels and pictures."""
        root = dataset_folder(raw)
        derivative = self._derivative(root)
        found = self.pictures.files(root)
        for subject in self._files(root, derivative):
            found += [path for folder in datatype_folders(derivative, subject, "func")
                      for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
            for place in {root, derivative}:
                found += (place / f"sub-{subject}").rglob("*.tsv")
            found += [path for setting in ("mask", "atlas", "labels")
                      if (path := self.voxels.path(setting, root=root, subject=subject))]
        return digest(content_of_files({path_in(root, path): path for path in found}))

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the dataset `raw`; tables and heads are read and checked before any map."""
        root = dataset_folder(raw)
        derivative = self._derivative(root)
        shown = Shown(root, self.pictures, self.split)
        found: dict[str, tuple[Columns, SignalSpec]] = {}
        for subject, files in self._files(root, derivative).items():
            name = f"sub-{subject}"
            parts = [self._trials(root, derivative, file, of=files) for file in files]
            heads = {str(head.path): head for _, some in parts for head in some}
            if not sum(len(trials) for trials, _ in parts):
                raise ValueError(f"{name}: expected events with a picture in column {self.events.stimulus_column!r}, "
                                 "got none. Set study.events.stimulus_column, or leave it out of study.subjects.")
            shown.add(name, [trials for trials, _ in parts if len(trials)])
            masks = self._masks(root, derivative, subject, of=next(iter(heads.values())))
            columns = chosen_columns(list(heads.values()), masks=masks, what=name,
                                     **{key: self.voxels.path(key, root=root, subject=subject)
                                        for key in ("atlas", "labels")})
            found[name] = columns, self._spec(name, columns)
        trials, stimuli = shown.finish(what=f"study {self.name}")
        writer = PreparedWriter(out, study=self.name)
        for name, (columns, spec) in found.items():
            if not writer.has_subject(name):
                table = trials[name]
                sessions = [_session(rows, columns) for _, rows in table.groupby(table["session"].fillna(""),
                                                                                sort=False)]
                writer.add_sessions(spec, trials=table, sessions=sessions, jobs=self.jobs)
        writer.finish(stimuli, image_size=self.pictures.image_size, notes=shown.notes)

    def _derivative(self, root: Path) -> Path:
        """Return the folder of the derivative whose maps are taken."""
        if self.maps.derivative is not None:
            folder = root / self.maps.derivative
            if not folder.is_dir():
                raise ValueError(f"{folder}: expected the derivative, by study.maps.derivative, got no such folder. "
                                 "Correct study.maps.derivative.")
            return folder
        below = root / "derivatives"
        folders = [root, *sorted(path for path in (below.iterdir() if below.is_dir() else ()) if path.is_dir())]
        having = [folder for folder in folders if any(
            self._is_map(file) for sub in folder.glob("sub-*") if sub.is_dir()
            for place in datatype_folders(folder, sub.name.removeprefix("sub-"), "func")
            for file in matching_files(place, entities=self.entities))]
        if len(having) != 1:
            got = " and ".join(str(folder.relative_to(root)) for folder in having) or "none"
            raise ValueError(f"{root}: expected maps of single trials in the dataset or in one folder of derivatives/, "
                             f"got {got}. {'Choose one with study.maps.derivative' if having else _NO_BETAS}.")
        return having[0]

    def _is_map(self, file: BIDSFile) -> bool:
        extension = file.extension.lower()
        if self.maps.suffix is not None:
            return file.suffix == self.maps.suffix and extension in MAPS
        return file.suffix not in _OTHER and extension in MAPS[:-1]

    def _files(self, root: Path, derivative: Path) -> dict[str, list[BIDSFile]]:
        """Return label of a subject -> its files of maps in order, or the tables that name one for each trial."""
        alone = self.events.file_column is not None
        entities = {key: value for key, value in self.entities.items() if not alone or key in ("ses", *RUN_ENTITIES)}

        def within(folder: Path, subject: str) -> list[BIDSFile]:
            found = [file for place in datatype_folders(folder, subject, "func")
                     for file in matching_files(place, entities=entities)
                     if (file.suffix == "events" and file.extension == ".tsv" if alone else self._is_map(file))]
            return sorted(found, key=BIDSFile.order)

        def of(subject: str) -> list[BIDSFile]:
            return within(derivative, subject) or (within(root, subject) if alone else [])

        files = chosen_subjects(derivative, self.subjects, files=of, what="maps of single trials")
        several = [file for some in files.values() for file in some]
        for what, values in (("suffix", {file.suffix for file in several}), *(
                (key, {str(file.entities.get(key)) for file in several}) for key in (*_COMPARED, "desc", "stat"))):
            if len(values) > 1:
                setting = "study.maps.suffix" if what == "suffix" else f"study.entities.{what}"
                raise ValueError(f"{derivative}: expected maps of one {what}, got {', '.join(sorted(values)[:8])}. "
                                 f"Choose one with {setting}.")
        return files

    def _masks(self, root: Path, derivative: Path, subject: str, *, of: MapFile) -> list[Path] | str:
        """Return the masks of a subject: that of the settings, or those of the derivative in the space of its maps."""
        if of.grid is None or self.voxels.mask == NONZERO:
            return NONZERO
        if (path := self.voxels.path("mask", root=root, subject=subject)) is not None:
            return [path]
        map_file = BIDSFile.of(of.path)
        space = {key: map_file.entities.get(key) for key in _COMPARED} if map_file else {}
        found = [file for kind in ("func", "anat") for folder in datatype_folders(derivative, subject, kind)
                 for file in matching_files(folder, entities={}) if file.suffix == "mask"
                 and file.extension.lower() in VOLUMES
                 and all(file.entities.get(key) == value for key, value in space.items())]
        kinds = sorted({f"{file.entities.get('desc')} {file.entities.get('label', '')}".strip() for file in found})
        if len(kinds) != 1:
            raise ValueError(
                f"{derivative / f'sub-{subject}'}: expected masks of one kind in the space of the maps "
                f"({of.path.name}), got {', '.join(kinds) or 'none'}. Name one with study.voxels.mask=<file>, "
                f"sub-* standing for the subject, or take study.voxels.mask={NONZERO}.")
        return [file.path for file in found]

    def _trials(self, root: Path, derivative: Path, file: BIDSFile, *, of: Sequence[BIDSFile]
                ) -> tuple[pd.DataFrame, list[MapFile]]:
        """Return the trials of a file that show a picture, with `file` and `place` in it, and the heads of the maps."""
        events, path = (self._events(root, derivative, file) if self.events.file_column is None else
                        (self.events.read(file.path, split_column=self.split.column), file.path))
        if self.events.file_column is None:
            head = open_maps(file.path)
            if len(events) != head.n:
                cure = ("If every trial has its own file, name it in a column of the events: study.events.file_column"
                        if head.n == 1 else "Choose the events that were fitted with study.events.where, or put a "
                        "table of them beside the maps")
                raise ValueError(
                    f"{file.path}: expected {len(events)} maps, one for each event of {path.name}, got {head.n} "
                    f"({int(events['stimulus'].notna().sum())} events have a picture). {cure}.")
            heads, places, names = [head], np.arange(head.n), [str(file.path)] * head.n
        else:
            own = events[self.events.file_column]
            where = [next((place for folder in (path.parent, derivative, root) if name is not None and pd.notna(name)
                           and (place := folder / str(name)).is_file()), None) for name in own]
            if missing := [str(name) for name, place in zip(own, where, strict=True)
                           if place is None and name is not None and pd.notna(name)]:
                raise ValueError(f"{path}: expected the files of column {self.events.file_column!r} beside it or in "
                                 f"{derivative}, got no {missing[0]} ({len(missing)} of {len(own)} are missing). "
                                 "Correct the column.")
            events = events[[place is not None for place in where]].reset_index(drop=True)
            names = [str(place) for place in where if place is not None]
            heads, places = [open_maps(Path(name)) for name in dict.fromkeys(names)], np.zeros(len(names), dtype=int)
            if several := [head for head in heads if head.n != 1]:
                raise ValueError(f"{several[0].path}: expected one map, by study.events.file_column, got "
                                 f"{several[0].n}. Set study.events.file_column=null.")
        trials = events.assign(session=file.session, run=file.run_name(of), path=str(path), file=names, place=places)
        return trials[trials["stimulus"].notna()].reset_index(drop=True), heads

    def _events(self, root: Path, derivative: Path, file: BIDSFile) -> tuple[pd.DataFrame, Path]:
        """Return the events of a file: beside it, else of the dataset; of all runs where a file holds a session."""
        path = table_of(file, root=derivative, suffix="events")
        folder = root / file.path.parent.relative_to(derivative)
        if path is None and root != derivative:
            path = table_of(file, root=root, suffix="events", folder=folder)
        if path is not None:
            return self.events.read(path, split_column=self.split.column), path
        wanted = {key: file.entities.get(key) for key in ("task", "acq") if key in file.entities}
        runs = sorted((other for other in matching_files(folder, entities=wanted) if other.suffix == "events"
                       and other.extension == ".tsv"), key=BIDSFile.order)
        if not runs or "run" in file.entities:
            raise ValueError(f"{file.path}: expected a table of its events, a line a map, beside it or in {folder}, "
                             "got none. Write it as <name>_events.tsv.")
        log.info("%s: its events are those of %d runs, one after the other", file.path, len(runs))
        parts = [self.events.read(run.path, split_column=self.split.column) for run in runs]
        return pd.concat(parts, ignore_index=True), runs[0].path

    def _spec(self, name: str, columns: Columns) -> SignalSpec:
        n = len(next(iter(columns.of.values())))
        grid = columns.grid
        return SignalSpec(subject=name, modality="fmri", units=self.maps.units, n_channels=n, n_times=1,
                          ijk=columns.ijk, rois=columns.rois, affine=None if grid is None else grid.affine,
                          volume_shape=None if grid is None else grid.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return the study; its files are what makes it small or large."""
        return cls()


def _session(rows: pd.DataFrame, columns: Columns) -> MapSession:
    """Return the reader of the trials `rows`: consecutive ones of a file at a time."""
    changes = (rows["file"] != rows["file"].shift()).cumsum()
    return MapSession(tuple((Path(part["file"].iloc[0]), part["place"].to_numpy(), columns.of[Path(
        part["file"].iloc[0])]) for _, part in rows.groupby(changes, sort=False)))
