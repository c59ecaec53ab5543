"""A person's own study: arrays of signals, a table of trials, and a folder of pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.pictures import SUFFIXES
from brain2img.data.prepared import SPLITS, PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.trials import Split
from brain2img.interfaces import Study
from brain2img.records import MODALITIES, SignalSpec
from brain2img.studies.arrays_files import (
    ARRAYS,
    AXES,
    SignalFile,
    files_in,
    likely,
    numbers,
    open_signals,
    read_table,
    table_named,
)
from brain2img.studies.arrays_stimuli import Channels, read_channels, read_stimuli

log = logging.getLogger(__name__)

#: Unit -> what signals are stored in, the factor, and the standard deviations (in it) that recordings can have.
UNITS: Mapping[str, tuple[str, float, tuple[float, float]]] = {
    "V": ("V", 1.0, (1e-8, 1e-2)), "mV": ("V", 1e-3, (1e-8, 1e-2)), "uV": ("V", 1e-6, (1e-8, 1e-2)),
    "T": ("T", 1.0, (1e-16, 1e-9)), "pT": ("T", 1e-12, (1e-16, 1e-9)), "fT": ("T", 1e-15, (1e-16, 1e-9)),
    "T/m": ("T/m", 1.0, (1e-15, 1e-8)), "a.u.": ("a.u.", 1.0, (0.0, np.inf)),
    "psc": ("percent signal change", 1.0, (0.0, 1e4))}
_KNOWN = ("subject", "stimulus_id", "session", "run", "onset", "duration", "repetition", "split", "row")
_SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}


class Arrays(Study):
    """Signals as arrays, one file a subject, with tables beside them; ``docs/own_data.md`` describes the folder.

    ``signals_<subject>.npy|.mat|.h5`` hold trials x channels x samples (or trials x channels: betas of voxels).
    ``trials.csv|.tsv|.parquet`` has a line for each trial, in the order of the signals: subject, stimulus_id; where
    known session, run, onset (s), duration (s), repetition, split; `row` where the order is another or trials of the
    array are left out. ``stimuli/`` has a picture named by each stimulus_id, or ``stimuli.csv`` names its file,
    captions, concept and category. ``channels.csv`` (or ``channels_<subject>.csv``): see `read_channels`.

    Signals are taken as they are: neither filtered nor baseline-corrected. Voxels that never change are left out.

    Parameters
    ----------
    name
        Name of the study: its folder, and what tables call it.
    modality
        "fmri", "eeg" or "meg".
    units
        What the numbers are: one of `UNITS`; stored in V, T or T/m.
    sfreq
        Samples per second (Hz), where there are several.
    tmin
        Time of the first sample from the onset of the stimulus (s; negative before it), where there are several.
    axes
        What the axes of the arrays are, where they are not trials x channels x samples.
    variable
        Name of the array in files that hold several.
    image_size
        Side (pixels) in which pictures are read: their largest square in the middle. None: all are of one size.
    whitened
        Whether channels were decorrelated already, so that each is a mixture.
    holdout
        Shares ``test_fraction`` and ``val_fraction`` of the stimuli, and ``seed``, of the split that is made where the
        trials have no column `split`.

    Raises
    ------
    ValueError
        If what the files cannot say is not given, or is not possible.
    """

    def __init__(self, *, name: str = "arrays", modality: str | None = None, units: str | None = None,
                 sfreq: float | None = None, tmin: float | None = None, axes: Sequence[str] | None = None,
                 variable: str | None = None, image_size: int | None = None, whitened: bool = False,
                 holdout: Mapping[str, Any] | None = None) -> None:
        if modality not in MODALITIES:
            raise ValueError(f"study.modality: expected one of {', '.join(MODALITIES)}, which the arrays cannot say, "
                             f"got {modality or 'nothing'}. Type study.modality=eeg, or another one.")
        if units is None or units not in UNITS:
            raise ValueError(f"study.units: expected what the numbers are, one of {', '.join(UNITS)}, got "
                             f"{units or 'nothing'}. Type study.units=uV, or another one; psc is percent signal "
                             "change, a.u. no unit.")
        if sfreq is not None and not 0 < sfreq < 1e5:
            raise ValueError(f"study.sfreq: expected samples per second (Hz), got {sfreq}. Correct it.")
        if axes is not None and sorted(axes) not in (sorted(AXES), sorted(AXES[:2])):
            raise ValueError(f"study.axes: expected {list(AXES)} in the order of the array, got {list(axes)}. "
                             "Correct it.")
        self.name, self.modality, self.units, self.sfreq, self.tmin = name, modality, units, sfreq, tmin
        self.axes, self.variable, self.image_size, self.whitened = axes, variable, image_size, whitened
        self.holdout = {"test_fraction": 0.2, "val_fraction": 0.1, "seed": 0} | dict(holdout or {})

    # ---- what there is

    def _existing(self, raw: Path | None) -> Path:
        if raw is None or not Path(raw).is_dir():
            raise ValueError(f"raw: expected the folder with signals_<subject>.npy, trials.csv and stimuli/, got "
                             f"{'nothing' if raw is None else f'{raw}, which is no folder'}. Give raw=<folder>; "
                             "brain2img new_study raw=<new folder> writes an example.")
        return Path(raw).resolve()

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of all files."""
        raw = self._existing(raw)
        files = [path for path in sorted(raw.rglob("*")) if path.is_file() and not path.name.startswith((".", "~"))
                 and path.suffix.lower() in (*ARRAYS, *SUFFIXES, ".csv", ".tsv", ".parquet", ".gz", ".nii")]
        return digest(content_of_files({str(path.relative_to(raw)): path for path in files}))

    def _signals(self, raw: Path) -> dict[str, Path]:
        """Return subject -> its file."""
        found: dict[str, Path] = {}
        for path in files_in(raw, ARRAYS):
            if not path.stem.lower().startswith("signals_"):
                continue
            subject = path.stem[len("signals_"):]
            if subject in found:
                raise ValueError(f"{raw}: expected one file of signals of subject {subject!r}, got "
                                 f"{found[subject].name} and {path.name}. Keep one of them.")
            found[subject] = path
        if not found:
            there = ", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder"
            raise ValueError(f"{raw}: expected signals_<subject>.npy (or .mat, .h5), got {there}. Name the array of "
                             "every subject so, e.g. signals_sub-01.npy.")
        return found

    def _trials(self, raw: Path, subjects: Sequence[str]) -> tuple[pd.DataFrame, Path]:
        path = table_named(raw, "trials")
        if path is None:
            raise ValueError(f"{raw}: expected a table trials.csv (or .tsv, .parquet) with a line for each trial, got "
                             "none. Write one with the columns subject and stimulus_id.")
        trials = read_table(path, needs=["stimulus_id"] if len(subjects) == 1 else ["subject", "stimulus_id"],
                            known=_KNOWN)
        if "subject" not in trials:
            trials["subject"] = subjects[0]
        elif trials["subject"].isna().any():
            raise ValueError(f"{path}: expected the subject in every line, got none in "
                             f"{int(trials['subject'].isna().sum())}. Fill the column.")
        unknown = sorted(set(trials["subject"]) - set(subjects))
        if unknown:
            raise ValueError(f"{path}: expected the subjects of the files signals_<subject> ({', '.join(subjects)}), "
                             f"got {unknown[0]!r}.{likely(unknown[0], subjects)} Name subjects in the table as in the "
                             "names of the files.")
        lacking = sorted(set(subjects) - set(trials["subject"]))
        if lacking:
            raise ValueError(f"{path}: expected trials of every file of signals, got none of subject {lacking[0]!r}. "
                             "Add its trials, or move its file away.")
        for name in ("onset", "duration", "repetition", "row"):
            if name in trials:
                trials[name] = numbers(trials, name, path=path, whole=name in ("repetition", "row"))
        _refuse_duplicates(trials, path)
        return trials, path

    # ---- prepare

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the folder `raw`; all files are checked before the first is read whole."""
        raw = self._existing(raw)
        files = self._signals(raw)
        trials, path = self._trials(raw, list(files))
        stimuli, notes = read_stimuli(raw, sorted(set(trials["stimulus_id"])), image_size=self.image_size,
                                      trials=path.name)
        if "repetition" not in trials:
            trials["repetition"] = trials.groupby(["subject", "stimulus_id"]).cumcount()
        opened = {subject: self._open(raw, file, trials[trials["subject"] == subject])
                  for subject, file in files.items()}
        split, said = self._split(trials, path, stimuli)
        notes.append(said)
        writer = PreparedWriter(out, study=self.name)
        for subject, source in opened.items():
            if writer.has_subject(subject):
                notes += source.notes
                continue
            spec, channels = self._spec(subject, source, _Moments.of(source, factor=UNITS[self.units][1]))
            log.info("%s: %d trials, %d channels, %d samples", subject, len(source.rows), spec.n_channels, spec.n_times)
            split_trials = source.trials.drop(columns="row", errors="ignore").assign(split=split)  # by their index
            writer.add_subject(spec, trials=split_trials,
                               signals=source.file.blocks(source.rows, channels, factor=UNITS[self.units][1]))
            notes += source.notes
        for note in notes:
            log.info("%s", note)
        writer.finish(stimuli, image_size=self.image_size, notes=notes)

    def _split(self, trials: pd.DataFrame, path: Path, stimuli: pd.DataFrame) -> tuple[pd.Series, str]:
        """Return the split of every trial: that of the table, or one by stimulus; and what is said of it."""
        if "split" in trials and trials["split"].notna().any():
            split = trials["split"].map(lambda s: _SPLIT_NAMES.get(s.lower(), s.lower()) if s else "")
            if bad := sorted(set(split) - set(SPLITS)):
                raise ValueError(f"{path}: expected {', '.join(SPLITS)} in every line of the column 'split', got "
                                 f"{bad[0] or 'empty ones'!r}. Correct it, or remove the column: stimuli are then held "
                                 "out at random.")
            return split, "The split is that of the column 'split'."
        concepts = dict(zip(stimuli["stimulus_id"], stimuli["concept"], strict=True))
        split = Split(kind="by_stimulus", **self.holdout).assign(trials.assign(split="train"), concepts=concepts,
                                                                 what=f"study {self.name}")
        of = {name: trials.loc[split == name, "stimulus_id"].nunique() for name in SPLITS}
        return split, (f"The trials have no column 'split'; stimuli are held out at random: {of['test']} for test, "
                       f"{of['val']} for validation, {of['train']} are left for training "
                       f"(study.holdout.seed={self.holdout['seed']}).")

    def _open(self, raw: Path, path: Path, trials: pd.DataFrame) -> _Source:
        """Open the signals of a subject and check their shape against trials and channels."""
        file = open_signals(path, variable=self.variable, axes=self.axes)
        channels = read_channels(raw, path.stem[len("signals_"):])
        sizes = dict(zip(AXES, file.shape, strict=True))
        stored = f"{path.name}: {' x '.join(f'{sizes[axis]} {axis}' for axis in AXES)}"
        notes = []
        if "row" in trials and trials["row"].notna().all():
            rows = trials["row"].to_numpy(dtype=int)
            if rows.min() < 0 or rows.max() >= sizes["trials"]:
                raise ValueError(f"{stored}: expected rows 0 to {sizes['trials'] - 1} in the column 'row' of the "
                                 f"trials, got {rows.min()} to {rows.max()}. Count from 0, or give the whole array.")
            if len(rows) < sizes["trials"]:
                notes.append(f"{path.name}: {sizes['trials'] - len(rows)} of {sizes['trials']} trials are in no line "
                             "of the table and left out.")
        else:
            rows = np.arange(len(trials))
            if len(trials) != sizes["trials"]:
                raise ValueError(f"{stored}: expected {len(trials)} trials, the lines of this subject in the table, "
                                 f"got {sizes['trials']}." + self._turned(file, len(trials), "trials")
                                 + " Correct the table, or say in a column 'row' (from 0) which trial of the array "
                                   "each line is.")
        if channels is not None and len(channels) != sizes["channels"]:
            raise ValueError(f"{stored}: expected {len(channels)} channels, the lines of {channels.path.name}, got "
                             f"{sizes['channels']}." + self._turned(file, len(channels), "channels")
                             + " Correct the table or the array.")
        if channels is None and self.axes is None and 1 < sizes["samples"] < sizes["channels"]:
            raise ValueError(f"{stored}: expected more samples than channels, got fewer, as of an array whose last two "
                             "axes are exchanged. Say which axis is which: study.axes=[trials,samples,channels], or "
                             "study.axes=[trials,channels,samples] if this is right.")
        if sizes["samples"] > 1 and (self.sfreq is None or self.tmin is None):
            lacking = [f"study.{name}=<{what}>" for name, what, value in (
                ("sfreq", "samples per second", self.sfreq),
                ("tmin", "time of the first sample from stimulus onset in s, e.g. -0.2", self.tmin)) if value is None]
            raise ValueError(f"{stored}: expected the sampling rate and the time of the first sample, which the array "
                             f"cannot say, got none. Type {' '.join(lacking)}.")
        return _Source(file, rows, trials, channels, notes)

    def _turned(self, file: SignalFile, n: int, axis: str) -> str:
        """Say which other axis has the number of trials or channels that is expected, where one has."""
        sizes = [int(size) for size in file.array.shape]
        if sizes.count(n) != 1:
            return ""
        names = list(self.axes or AXES[:len(sizes)])
        other = names[sizes.index(n)]
        swapped = [{axis: other, other: axis}.get(name, name) for name in names]
        return f" The axis of {other} has {n}: if the array is turned round, type study.axes=[{','.join(swapped)}]."

    def _spec(self, subject: str, source: _Source, moments: _Moments) -> tuple[SignalSpec, np.ndarray]:
        """Return what is stored, and which channels of the file; refuses amplitudes that its units make impossible."""
        unit, _, (least, most) = UNITS[self.units]
        n_channels = source.file.shape[1]
        kept = source.channels.kept if source.channels is not None else np.ones(n_channels, dtype=bool)
        constant = kept & (moments.low == moments.high)
        middle = float(np.median(moments.std[kept & ~constant])) if (kept & ~constant).any() else 0.0
        if middle and not least <= middle <= most:
            raise ValueError(f"{source.file.path}: expected standard deviations of channels between {least:g} and "
                             f"{most:g} {unit}, got {middle:.3g} {unit} with study.units={self.units}. Give the units "
                             f"of the numbers in the file ({', '.join(UNITS)}; a.u. if they were scaled).")
        said = ""
        if constant.any() and self.modality == "fmri":
            kept, said = kept & ~constant, f"{int(constant.sum())} voxels that never change are left out"
            source.notes.append(f"{subject}: {said}.")
        elif constant.any():
            names = source.channels.names if source.channels is not None else ()
            shown = [names[i] if names else f"channel {i}" for i in np.flatnonzero(constant)[:8]]
            source.notes.append(f"{subject}: {int(constant.sum())} channels never change ({', '.join(shown)}); leave "
                                f"them out with \"data.exclude_channels=[{','.join(shown)}]\".")
        places = np.flatnonzero(kept)
        several = source.file.shape[2] > 1
        facts = source.channels.facts(places, meeg=self.modality != "fmri") if source.channels is not None else {}
        return SignalSpec(subject=subject, modality=self.modality, units=unit, n_channels=len(places),
                          n_times=source.file.shape[2], sfreq=self.sfreq if several else None,
                          tmin=float(self.tmin or 0.0) if several else 0.0, whitened=self.whitened,
                          filtered=f"as given{'; ' + said if said else ''}", **facts), places

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of EEG; its files are what makes it small or large."""
        return cls(modality="eeg", units="uV", sfreq=100.0, tmin=0.0)


@dataclass(frozen=True)
class _Source:
    """The signals of a subject, which of their trials are taken, and the trials and channels themselves."""

    file: SignalFile
    rows: np.ndarray
    trials: pd.DataFrame
    channels: Channels | None
    notes: list[str]


@dataclass(frozen=True)
class _Moments:
    """Smallest and largest value and standard deviation of every channel."""

    low: np.ndarray
    high: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, source: _Source, *, factor: float) -> _Moments:
        """Read the trials once; refuses those that are not finite, naming the first."""
        n_channels, done = source.file.shape[1], 0
        low, high = np.full(n_channels, np.inf), np.full(n_channels, -np.inf)
        total, square, n = np.zeros(n_channels), np.zeros(n_channels), 0
        used = source.channels.kept if source.channels is not None else np.ones(n_channels, dtype=bool)
        for x in source.file.blocks(source.rows, np.arange(n_channels), factor=factor):
            bad = ~np.isfinite(x).all(axis=2) & used
            if bad.any():
                trial, channel = np.argwhere(bad)[0]
                names = source.channels.names if source.channels is not None else ()
                raise ValueError(f"{source.file.path}: expected finite numbers, got NaN or infinity, first in trial "
                                 f"{source.rows[done + trial]}, channel {names[channel] if names else channel} "
                                 f"(counted from 0; in {int(bad.any(axis=1).sum())} of these {len(x)} trials). Repair "
                                 "them, or leave these trials out with a column 'row' in the table of trials.")
            x = x.astype(np.float64)
            low, high = np.minimum(low, x.min(axis=(0, 2))), np.maximum(high, x.max(axis=(0, 2)))
            total, square, n = total + x.sum(axis=(0, 2)), square + (x**2).sum(axis=(0, 2)), n + x[:, 0].size
            done += len(x)
        return cls(low, high, np.sqrt(np.maximum(square / n - (total / n) ** 2, 0)))


def _refuse_duplicates(trials: pd.DataFrame, path: Path) -> None:
    """Refuse two lines for one trial; lines that tell nothing apart are repetitions."""
    for keys in (["subject", "row"], ["subject", "session", "run", "onset"],
                 ["subject", "stimulus_id", "session", "run", "repetition"]):
        there = [key for key in keys if key in trials and trials[key].notna().all()]
        if keys[-1] not in there:
            continue
        twice = trials[trials.duplicated(there)]
        if len(twice):
            first = ", ".join(f"{key} {twice[key].iloc[0]:g}" if key in ("row", "onset", "repetition") else
                              f"{key} {twice[key].iloc[0]}" for key in there)
            raise ValueError(f"{path}: expected every trial in one line, got {len(twice)} lines again (first: {first}, "
                             f"line {int(twice.index[0]) + 2}). Remove what stands there twice, or correct the column "
                             f"{keys[-1]!r}.")
