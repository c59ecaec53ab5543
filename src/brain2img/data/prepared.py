"""The prepared study on disk: writer, memory-mapped reader, validation.

``spec.json``, ``signals_<subject>.npy`` ``(n_trials, C, T)`` float32, ``trials.parquet``, ``stimuli.parquet`` and
``images.npy``, as `brain2img.interfaces.Study.prepare` leaves them. Signals carry no fitted statistics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts import ArrayWriter, digest, read_array, read_manifest, safe_name, write_json, write_table
from brain2img.records import SignalSpec, Stimuli

log = logging.getLogger(__name__)

TRIAL_COLUMNS = ("subject", "session", "run", "onset", "duration", "stimulus_id", "repetition", "split", "row")
STIMULUS_COLUMNS = ("stimulus_id", "kind", "file", "pointer", "concept", "category", "captions", "attributes")
SPLITS = ("train", "val", "test")


class PreparedWriter:
    """Writes a prepared study subject by subject; a subject that is whole is not written again.

    Parameters
    ----------
    out
        Existing working folder.
    study
        Name of the study.
    """

    def __init__(self, out: Path, *, study: str) -> None:
        self.out = Path(out)
        self.study = study
        self._subjects = self.out / "subjects"
        self._subjects.mkdir(exist_ok=True)

    def has_subject(self, subject: str) -> bool:
        """Tell whether a subject was already written whole (by an interrupted call)."""
        return (self._subjects / f"{safe_name(subject)}.json").exists()

    def add_subject(self, spec: SignalSpec, *, trials: pd.DataFrame, signals: Iterable[np.ndarray]) -> None:
        """Write one subject.

        Parameters
        ----------
        spec
            What the signals are.
        trials
            One line per trial with `TRIAL_COLUMNS` less `row` and `subject`, which are filled in here.
        signals
            Blocks ``(n, C, T)`` in the order of `trials`, any number of trials each; never all in memory.

        Raises
        ------
        ValueError
            If shapes disagree, or a trial holds NaN or infinite values.
        """
        name = safe_name(spec.subject)
        what = f"signals of subject {spec.subject!r}"
        trials = trials.assign(subject=spec.subject, row=np.arange(len(trials)))
        for column in TRIAL_COLUMNS:
            if column not in trials:
                trials[column] = None
        shape = (len(trials), spec.n_channels, spec.n_times)
        writer = ArrayWriter(self.out, {f"signals_{name}": (shape, "float32")})
        writer.done = 0  # a subject is the unit of continuing: its blocks come from a generator that starts anew
        for block in signals:
            if block.shape[1:] != shape[1:] or writer.done + len(block) > len(trials):
                raise ValueError(f"{what}: expected at most {len(trials) - writer.done} more trials of {shape[1:]}, "
                                 f"got a block of {block.shape}. Check the raw files against the study's notes.")
            bad = ~np.isfinite(block).all(axis=(1, 2))
            if bad.any():
                raise ValueError(
                    f"{what}: expected finite values, got NaN or infinity in {int(bad.sum())} trials (first: trial "
                    f"{writer.done + int(np.flatnonzero(bad)[0])}). Repair or drop them in the raw files.")
            writer.write({f"signals_{name}": block})
        if writer.done != len(trials):
            raise ValueError(f"{what}: expected {len(trials)} trials, got {writer.done}. "
                             "Check the raw files against the study's notes.")
        writer.close()
        write_table(self._subjects / f"{name}.parquet", trials[list(TRIAL_COLUMNS)])
        write_json(self._subjects / f"{name}.json", spec.to_json())

    def finish(self, stimuli: pd.DataFrame, *, images: np.ndarray | None = None) -> None:
        """Write the tables and validate the whole.

        Parameters
        ----------
        stimuli
            One line per stimulus with `STIMULUS_COLUMNS`; `attributes` as dictionaries, `file` and `pointer` are
            filled in when `images` is given.
        images
            ``(N, h, w)`` or ``(N, h, w, 3)`` uint8 in the order of `stimuli`.
        """
        stimuli = stimuli.copy()
        if images is not None:
            writer = ArrayWriter(self.out, {"images": (images.shape, "uint8")})
            writer.done = 0
            writer.write({"images": images})
            writer.close()
            stimuli["file"], stimuli["pointer"] = "images.npy", np.arange(len(stimuli))
        for column in STIMULUS_COLUMNS:
            if column not in stimuli:
                stimuli[column] = None
        stimuli["attributes"] = [json.dumps(a or {}, sort_keys=True) for a in stimuli["attributes"]]
        write_table(self.out / "stimuli.parquet", stimuli[list(STIMULUS_COLUMNS)])
        specs = {}
        tables = []
        for path in sorted(self._subjects.glob("*.json")):
            values = json.loads(path.read_text())
            specs[values["subject"]] = values
            tables.append(pd.read_parquet(path.with_suffix(".parquet")))
        write_json(self.out / "spec.json", {"study": self.study, "subjects": specs})
        write_table(self.out / "trials.parquet", pd.concat(tables, ignore_index=True))
        PreparedStudy(self.out, finished=False).validate()


class PreparedStudy:
    """Reads a prepared study; signals and images stay on disk.

    Parameters
    ----------
    folder
        ``outputs/prepared/<study>/<variant>``.
    finished
        Whether to insist on the manifest.
    """

    def __init__(self, folder: Path | str, *, finished: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="prepared study") if finished else {}
        values = json.loads((self.folder / "spec.json").read_text())
        self.name: str = values["study"]
        self.specs = {name: SignalSpec.from_json(spec) for name, spec in values["subjects"].items()}
        self.trials = pd.read_parquet(self.folder / "trials.parquet")
        self.stimulus_table = pd.read_parquet(self.folder / "stimuli.parquet")
        self.stimulus_table["attributes"] = [json.loads(a) for a in self.stimulus_table["attributes"]]
        self.stimulus_table["captions"] = [[] if c is None else list(c) for c in self.stimulus_table["captions"]]

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, in the order of ``spec.json``."""
        return list(self.specs)

    @property
    def modality(self) -> str:
        """The modality all subjects share, or "mixed"."""
        found = {spec.modality for spec in self.specs.values()}
        return found.pop() if len(found) == 1 else "mixed"

    def signals(self, subject: str) -> np.ndarray:
        """Return the memory-mapped ``(n_trials, C, T)`` float32 signals of a subject, in the units of its spec."""
        if subject not in self.specs:
            raise ValueError(f"study {self.name}: expected a subject of {self.subjects}, got {subject!r}. "
                             "Choose one of these.")
        return read_array(self.folder / f"signals_{safe_name(subject)}.npy")

    def trials_of(self, subject: str) -> pd.DataFrame:
        """Return the trials of a subject in the order of its signals."""
        return self.trials[self.trials["subject"] == subject].sort_values("row", ignore_index=True)

    @property
    def stimuli(self) -> Stimuli:
        """All stimuli, in the order of ``stimuli.parquet``."""
        return self.stimuli_of(self.stimulus_table["stimulus_id"])

    def stimuli_of(self, stimulus_ids: Sequence[str]) -> Stimuli:
        """Return the stimuli with the given ids, in that order, images read lazily."""
        places = pd.Index(self.stimulus_table["stimulus_id"]).get_indexer(pd.Index(list(stimulus_ids)))
        assert (places >= 0).all(), "unknown stimulus id"
        table = self.stimulus_table.iloc[places].reset_index(drop=True)

        def read(rows: Sequence[int]) -> np.ndarray:
            images = read_array(self.folder / "images.npy")
            return np.asarray(images[table["pointer"].to_numpy()[list(rows)].astype(int)])

        return Stimuli(table, read)

    def split_hashes(self) -> dict[str, str]:
        """Return a hash of the stimulus ids of every split, for manifests."""
        return {split: digest(sorted(set(group["stimulus_id"]))) for split, group in self.trials.groupby("split")}

    def validate(self) -> None:
        """Check that the parts fit each other and that no stimulus crosses splits.

        Raises
        ------
        ValueError
            Naming subject, file or stimulus.
        """
        check_splits(self.trials, what=f"study {self.name}")
        known = set(self.stimulus_table["stimulus_id"])
        if len(known) != len(self.stimulus_table):
            twice = self.stimulus_table["stimulus_id"][self.stimulus_table["stimulus_id"].duplicated()].iloc[0]
            raise ValueError(f"stimuli.parquet of study {self.name}: expected every stimulus_id once, got {twice!r} "
                             "twice. Correct the study.")
        unknown = set(self.trials["stimulus_id"]) - known
        if unknown:
            raise ValueError(f"trials.parquet of study {self.name}: expected stimuli of stimuli.parquet, got "
                             f"{len(unknown)} others ({sorted(unknown)[0]!r}, ...). Correct the study.")
        for subject, spec in self.specs.items():
            shape = (len(self.trials_of(subject)), spec.n_channels, spec.n_times)
            signals = self.signals(subject)
            if signals.shape != shape:
                raise ValueError(f"signals of subject {subject!r}: expected shape {shape} by trials.parquet and "
                                 f"spec.json, got {signals.shape}. Prepare the study again with overwrite=true.")


def check_splits(trials: pd.DataFrame, *, what: str) -> None:
    """Refuse a table of trials in which a stimulus crosses splits, or a subject has no training trials.

    Raises
    ------
    ValueError
        Naming the stimulus and its splits, or the subject.
    """
    unknown = set(trials["split"]) - set(SPLITS)
    if unknown:
        raise ValueError(f"{what}: expected splits of {SPLITS}, got {sorted(map(str, unknown))}. Correct the study.")
    crossing = trials.groupby("stimulus_id")["split"].nunique()
    crossing = crossing[crossing > 1]
    if len(crossing):
        first = crossing.index[0]
        where = sorted(set(trials.loc[trials["stimulus_id"] == first, "split"]))
        raise ValueError(
            f"{what}: expected every stimulus in one split over all subjects, got {len(crossing)} in several "
            f"({first!r} in {' and '.join(where)}). Test results would be leaked: correct the split.")
    for subject, group in trials.groupby("subject", sort=False):
        if not (group["split"] == "train").any():
            raise ValueError(f"{what}: expected training trials of every subject, got none of subject {subject!r}. "
                             "Leave this subject out, or correct the split.")


def check_signals(signals: Mapping[str, np.ndarray], *, specs: Mapping[str, SignalSpec]) -> None:
    """Refuse signals with NaN, infinite or constant channels.

    Parameters
    ----------
    signals
        Subject -> ``(n, C, T)``.
    specs
        Subject -> its spec, for the names of channels.

    Raises
    ------
    ValueError
        Naming the subject and the channels.
    """
    for subject, x in signals.items():
        finite = np.isfinite(x).all(axis=(0, 2))
        constant = np.ptp(x, axis=(0, 2)) == 0
        for bad, word in ((~finite, "NaN or infinite"), (constant & finite, "constant")):
            if bad.any():
                places = np.flatnonzero(bad)
                names = specs[subject].ch_names
                shown = ", ".join(names[i] if names else f"channel {i}" for i in places[:5])
                raise ValueError(
                    f"signals of subject {subject!r}: expected finite, varying channels, got {len(places)} {word} "
                    f"({shown}{', ...' if len(places) > 5 else ''}). Drop them with data.exclude_channels, or repair "
                    "them in the raw files.")
