"""EEG and MEG of any BIDS dataset in which pictures were shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest, write_table
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.bids_files import (
    BIDSFile,
    check_entities,
    chosen_subjects,
    dataset_folder,
    datatype_folders,
    matching_files,
    path_in,
    table_of,
)
from brain2img.studies.bids_recordings import (
    BIDSSession,
    Recording,
    Run,
    known_positions,
    open_recording,
    recordings,
    sample_range,
    units_of,
)
from brain2img.studies.bids_stimuli import Holdout, Pictures, Shown
from brain2img.studies.bids_tables import Events, settings_of
from brain2img.studies.folder_listing import write_not_read
from brain2img.studies.marks import Quality, good_events, honour_bad_channels, in_words

log = logging.getLogger(__name__)

DATATYPES = ("eeg", "meg")
_TABLES = (".tsv", ".json")
_SHOWN = 6


class BIDS(Study):
    """EEG or MEG of a BIDS dataset, whose events name the pictures that were shown.

    Gorgolewski et al. 2016, https://doi.org/10.1038/sdata.2016.44; read through MNE-BIDS (Appelhoff et al. 2019,
    https://doi.org/10.21105/joss.01896), hence whatever that reads: BrainVision, EDF, BDF, EEGLAB; FIF (in parts, too),
    CTF, KIT, BTi. Runs are taken one by one, so that memory does not depend on how many there are.

    Parameters
    ----------
    name
        What the study is called: the folder under ``outputs/prepared`` and the `study` of every score.
    datatype
        "eeg" or "meg". Betas of fMRI are read by `brain2img.studies.bids_betas.BIDSBetas`.
    subjects
        Labels, as "01" or 1; None for all who have such recordings.
    entities
        Entity ("ses", "task", "acq", "run", "proc", "desc") -> a value or several that recordings must have; None for
        any. Tasks in which no picture was shown are left out by themselves.
    events
        Arguments of `brain2img.studies.bids_tables.Events`.
    stimuli
        Arguments of `brain2img.studies.bids_tables.Pictures`.
    recording
        Arguments of `brain2img.studies.bids_recordings.Recording`.
    quality
        Arguments of `brain2img.studies.marks.Quality`: what becomes of channels and spans marked as bad.
    split
        Arguments of `brain2img.studies.bids_tables.Holdout`.
    jobs
        Sessions read at the same time.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    def __init__(self, *, name: str = "bids", datatype: str = "eeg", subjects: Sequence[Any] | None = None,
                 entities: Mapping[str, Any] | None = None, events: Mapping[str, Any] | None = None,
                 stimuli: Mapping[str, Any] | None = None, recording: Mapping[str, Any] | None = None,
                 quality: Mapping[str, Any] | None = None, split: Mapping[str, Any] | None = None,
                 jobs: int = 1) -> None:
        if datatype not in DATATYPES:
            raise ValueError(f"study.datatype: expected one of {DATATYPES}, got {datatype!r}. Choose one; betas of "
                             "fMRI are read with study=bids_betas.")
        self.name, self.modality, self.variant = name, datatype, datatype
        self.subjects, self.entities, self.jobs = subjects, check_entities(entities), jobs
        self.events = settings_of(Events, events, name="events")
        self.pictures = settings_of(Pictures, stimuli, name="stimuli")
        self.split = settings_of(Holdout, split, name="split")
        self.quality = Quality.of(quality)
        self.settings = settings_of(Recording, recording, name="recording").of(
            datatype, quality=self.quality)

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of recordings, tables and pictures."""
        root = dataset_folder(raw)
        found = self.pictures.files(root)
        for subject in self._recordings(root):
            for folder in datatype_folders(root, subject, self.modality):
                found += [path for path in sorted(folder.rglob("*")) if path.is_file()]
        found += [path for path in root.glob("*.tsv") if path.is_file()]
        return digest(content_of_files({path_in(root, path): path for path in found}))

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the dataset `raw`; tables and heads are read and checked before any signal."""
        root = dataset_folder(raw)
        shown = Shown(root, self.pictures, self.split)
        runs = {f"sub-{subject}": [self._run(root, file, events, of=list(files)) for file, events in files.items()]
                for subject, files in self._with_pictures(root, self._recordings(root)).items()}
        for subject, mine in runs.items():
            shown.add(subject, [run.trials for run in mine])
        bads = {channel for mine in runs.values() for run in mine for channel in run.bads}
        dropped = bads if self.quality.bad_channels == "drop" else set()
        found = {subject: self._subject(subject, mine, dropped=dropped) for subject, mine in runs.items()}
        trials, stimuli = shown.finish(what=f"study {self.name}")
        notes = [*shown.notes, *self._differences(found)]
        self._list(root, out, runs, stimuli)
        writer = PreparedWriter(out, study=self.name, any_amplitude=self.quality.amplitudes == "keep")
        for subject, whole in found.items():
            if not writer.has_subject(subject):
                table = trials[subject]
                sessions = [self._session(root, rows, whole) for _, rows in table.groupby(
                    table["session"].fillna(""), sort=False)]
                writer.add_sessions(whole.spec, trials=table, sessions=sessions, jobs=self.jobs)
        writer.finish(stimuli, image_size=self.pictures.image_size, notes=notes)

    def _recordings(self, root: Path) -> dict[str, list[BIDSFile]]:
        def of(subject: str) -> list[BIDSFile]:
            found = [recordings(folder, self.modality, files=matching_files(folder, entities=self.entities))
                     for folder in datatype_folders(root, subject, self.modality)]
            return sorted((file for some in found for file in some), key=BIDSFile.order)

        asked = {key: value for key, value in self.entities.items() if value is not None}
        what = f"{self.modality.upper()} recordings{f' of {asked}' if asked else ''}"
        return chosen_subjects(root, self.subjects, files=of, what=what)

    def _with_pictures(self, root: Path, found: Mapping[str, list[BIDSFile]]
                       ) -> dict[str, dict[BIDSFile, tuple[Path, pd.DataFrame]]]:
        """Return subject -> recording -> its events, without the tasks in which nobody saw a picture.

        Raises
        ------
        ValueError
            If a recording of a task with pictures has no events, or nobody saw one.
        """
        tables: dict[BIDSFile, Path | None] = {}
        tasks: dict[str | None, str] = {}
        for files in found.values():
            for file in files:
                tables[file] = table_of(file, root=root, suffix="events")
                try:
                    events = self._shown(tables[file])
                except ValueError as error:
                    tasks.setdefault(file.entities.get("task"), str(error))
                    continue
                if len(events):
                    tasks[file.entities.get("task")] = ""
        taken = [task for task, why in tasks.items() if not why]
        if not taken:
            raise ValueError(next(iter(tasks.values()), None) or (
                f"{root}: expected events with a picture in column {self.events.stimulus_column!r}, got none in any "
                "run. Set study.events.stimulus_column, or correct study.events.where."))
        if left := [str(task) for task in tasks if task not in taken]:
            log.warning("%s: no pictures were shown in task %s, which is left out", root, ", ".join(left))
        chosen: dict[str, dict[BIDSFile, tuple[Path, pd.DataFrame]]] = {}
        for subject, files in found.items():
            mine = {file: self._events(file, tables[file]) for file in files if file.entities.get("task") in taken}
            chosen[subject] = {file: (path, events) for file, (path, events) in mine.items() if len(events)}
            if not chosen[subject]:
                if self.subjects is not None:
                    raise ValueError(f"sub-{subject}: expected recordings with pictures, of task {' or '.join(taken)}, "  # type: ignore[arg-type]
                                     "got none. Leave it out of study.subjects.")
                log.warning("sub-%s has no recordings with pictures and is left out", subject)
                del chosen[subject]
        return chosen

    def _shown(self, path: Path | None) -> pd.DataFrame:
        if path is None:
            raise ValueError("no table of events")
        events = self.events.read(path, split_column=self.split.column)
        return events[events["stimulus"].notna()].reset_index(drop=True)

    def _events(self, file: BIDSFile, path: Path | None) -> tuple[Path, pd.DataFrame]:
        if path is None:
            raise ValueError(f"{file.path}: expected a table of its events, {file.path.name.rpartition('_')[0]}"
                             "_events.tsv, got none. Write it, or choose the runs that have one with study.entities.")
        events = self._shown(path)
        if not len(events):
            log.warning("%s: no event has a picture; this run is left out", path)
        return path, events

    def _run(self, root: Path, file: BIDSFile, events: tuple[Path, pd.DataFrame], *, of: Sequence[BIDSFile]) -> _Run:
        """Look at a run: its head, and which of its events can be cut out."""
        path, table = events
        raw, when = open_recording(file, root=root, settings=self.settings)
        sfreq, asked = float(raw.info["sfreq"]), self.settings.asked
        samples = self.events.samples(table, sfreq=sfreq, path=path, when=when)
        gap = samples < 0 if when is not None and len(when.joints) else np.zeros(len(samples), dtype=bool)
        outside = ((samples < 0) | (samples >= raw.n_times)) & ~gap
        if outside.any():
            raise ValueError(
                f"{path}: expected events within the recording of {raw.n_times / sfreq:.6g} s, got one at "
                f"{table['onset'][outside].iloc[0]:.6g} s in line {table['line'][outside].iloc[0]} "
                f"({int(outside.sum())} in all). {file.path.name} is truncated, or of another run; or choose "
                "study.events.timing.")
        reasons = good_events(raw, samples, tmin=asked.tmin, tmax=asked.tmax, policy=self.quality.bad_spans,
                              what=str(file.path))
        cut = (samples + np.ceil(asked.tmin * sfreq) < 0) | (samples + np.floor(asked.tmax * sfreq) >= raw.n_times)
        reasons[cut] = "reaches over an end of the recording"
        reasons[gap] = "is in a gap of the recording"
        bad = reasons != ""
        if bad.any():
            log.warning("%s: %d of %d epochs are left out (the first %s)", file.path, int(bad.sum()), len(bad),
                        reasons[bad][0])
        bads = honour_bad_channels(raw, policy=self.quality.bad_channels, what=str(file.path)) if (
            self.quality.bad_channels != "interpolate") else list(raw.info["bads"])
        trials = table.assign(session=file.session, run=file.run_name(of), sample=samples, path=str(path),
                              file=str(file.path), onset=table["onset"] if self.events.timing != "sample" else (
                                  samples / sfreq if when is None else when.times(samples)))
        return _Run(file, trials[~bad].reset_index(drop=True), trials.assign(reason=reasons)[bad], sfreq, dict(zip(
            raw.ch_names, raw.get_channel_types(), strict=True)), tuple(bads), raw.info)

    def _subject(self, name: str, runs: Sequence[_Run], *, dropped: set[str]) -> _Subject:
        """Return what all runs of a subject have in common, without the channels `dropped` for everyone."""
        asked = self.settings.asked
        first, rates = runs[0], sorted({run.sfreq for run in runs})
        shared = [channel for channel in first.channels if channel not in dropped
                  and all(channel in run.channels for run in runs)]
        lost = sorted({channel for run in runs for channel in run.channels} - set(shared) - dropped)
        if not shared:
            raise ValueError(f"{name}: expected channels that all its runs have, got none. Choose runs of one system "
                             "with study.entities.")
        kinds = {channel: {run.channels[channel] for run in runs} for channel in shared}
        if several := [channel for channel, some in kinds.items() if len(some) > 1]:
            raise ValueError(f"{name}: expected one type of channel {several[0]} in all runs, got "
                             f"{' and '.join(sorted(kinds[several[0]]))}. Correct channels.tsv.")
        if lost:
            log.warning("%s: %d channels are not in all of its %d runs and are left out (%s)", name, len(lost),
                        len(runs), ", ".join(lost[:_SHOWN]))
        marked = in_words({run.file.path.name: run.bads for run in runs}, policy=self.quality.bad_channels)
        if marked:
            log.warning("%s: %s", name, marked)
        if self.settings.sfreq is None and len(rates) > 1:
            raise ValueError(f"{name}: expected one rate of all runs, got {' and '.join(f'{r:g}' for r in rates)} Hz. "
                             "Set study.recording.sfreq.")
        sfreq = self.settings.sfreq or first.sfreq
        upper = self.settings.band[1]
        if rates[-1] > sfreq and (upper is None or upper > sfreq / 2):
            log.warning("%s: frequencies above %g Hz are taken away by the resampling to %g Hz", name, sfreq / 2, sfreq)
        start, stop = sample_range(asked.tmin, asked.tmax, sfreq=sfreq)
        order = [list(first.channels).index(channel) for channel in shared]
        positions = known_positions(first.info)
        types = tuple(first.channels[channel] for channel in shared)
        words = [self.settings.words(), marked]
        return _Subject(tuple(runs), SignalSpec(
            subject=name, modality=self.modality, units=units_of(types), n_channels=len(shared),
            n_times=stop - start + 1, sfreq=sfreq, tmin=start / sfreq, ch_names=tuple(shared), ch_types=types,
            positions=None if positions is None else positions[order], filtered="; ".join(w for w in words if w)))

    @staticmethod
    def _differences(found: Mapping[str, _Subject]) -> list[str]:
        """Say where subjects differ in channels or rate: not every decoder takes that."""
        first = next(iter(found.values())).spec
        notes = [f"{name} differs from {first.subject}: {difference}." for name, subject in found.items()
                 if (difference := subject.spec.difference(first))]
        for note in notes:
            log.warning("%s Parts that want the same channels of all subjects will refuse them; choose channels with "
                        "data.channels", note)
        return notes

    def _list(self, root: Path, out: Path, runs: Mapping[str, Sequence[_Run]], stimuli: pd.DataFrame) -> None:
        """Write which trials were left out, and which files were not read."""
        left_out = pd.concat([run.left_out.assign(subject=name) for name, mine in runs.items() for run in mine])
        columns = ["subject", "session", "run", "onset", "stimulus", "reason"]
        write_table(out / "left_out.parquet", left_out[columns].reset_index(drop=True))
        read = [path for path in root.iterdir() if path.is_file()] + [Path(file) for file in stimuli["file"]]
        for subject, mine in runs.items():
            stems = tuple(run.file.path.name.rpartition("_")[0].partition("_split-")[0] for run in mine)
            read += [path for path in (root / subject).rglob("sub-*") if path.name.startswith(stems)
                     or path.suffix in _TABLES]
        if (table := self.pictures.table_path(root)) is not None:
            read.append(table)
        write_not_read(out, root, read=read)

    def _session(self, root: Path, rows: pd.DataFrame, subject: _Subject) -> BIDSSession:
        files = {str(run.file.path): run.file for run in subject.runs}
        runs = tuple(Run(files[file], part["sample"].to_numpy(dtype=np.int64))
                     for file, part in rows.groupby("file", sort=False))
        assert subject.spec.sfreq is not None
        return BIDSSession(root, runs, subject.spec.ch_names, subject.spec.sfreq, self.settings)

    @classmethod
    def tiny(cls) -> Self:
        """Return the study of EEG; its files are what makes it small or large."""
        return cls()


@dataclass(frozen=True, eq=False)
class _Run:
    """What was found of a run: its trials and those left out, rate (Hz), channels with types, and those marked bad."""

    file: BIDSFile
    trials: pd.DataFrame
    left_out: pd.DataFrame
    sfreq: float
    channels: Mapping[str, str]
    bads: tuple[str, ...]
    info: Any


@dataclass(frozen=True, eq=False)
class _Subject:
    """A subject's runs in order, and what is prepared of them."""

    runs: tuple[_Run, ...]
    spec: SignalSpec
