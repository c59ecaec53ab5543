"""The prepared study on disk: writer, memory-mapped reader, validation.

``spec.json``, ``signals_<subject>.npy`` ``(n_trials, C, T)`` float32, ``trials.parquet``, ``stimuli.parquet`` and
``images.npy`` or ``stimuli/``, as `brain2img.interfaces.Study.prepare` leaves them. Signals carry no
fitted statistics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts import (
    ArrayWriter,
    StoredRows,
    digest,
    read_array,
    read_json,
    read_manifest,
    read_table,
    safe_name,
    write_json,
    write_table,
)
from brain2img.data.amplitudes import SI, PlausibleSession
from brain2img.data.images import PACKED, StimulusImages, bring_in
from brain2img.data.same_stimuli import content, notice
from brain2img.data.sessions import Session, write_sessions
from brain2img.records import SignalSpec, Stimuli

log = logging.getLogger(__name__)

TRIAL_COLUMNS = ("subject", "session", "run", "onset", "duration", "stimulus_id", "repetition", "split", "row")
STIMULUS_COLUMNS = ("stimulus_id", "kind", "file", "pointer", "concept", "category", "captions", "attributes",
                    "content", "same_as")
SPLITS = ("train", "val", "test")
_IMAGES_AT_A_TIME = 64
#: Type of channels without one, by their unit.
_TYPES = {"V": "eeg", "T": "mag", "T/m": "grad"}
_CURE = "Correct the unit in the files"
_SWITCH = ", or, where you know that the numbers are right, go on with study.quality.amplitudes=keep"


class PreparedWriter:
    """Writes a prepared study subject by subject; a subject that is whole is not written again.

    Parameters
    ----------
    out
        Existing working folder.
    study
        Name of the study.
    any_amplitude
        Whether EEG and MEG may have amplitudes that no head has (see `brain2img.data.amplitudes`); None where they may
        not and the study has no setting `quality.amplitudes` for messages to name.
    """

    def __init__(self, out: Path, *, study: str, any_amplitude: bool | None = None) -> None:
        self.out = Path(out)
        self.study = study
        self.any_amplitude = any_amplitude
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
            If shapes disagree, a trial holds NaN or infinite values, or amplitudes are implausible.
        """
        self._add(spec, trials=trials, counts={"": len(trials)}, sessions=[lambda: signals], jobs=1)

    def add_sessions(self, spec: SignalSpec, *, trials: pd.DataFrame, sessions: Sequence[Session],
                     jobs: int = 1) -> None:
        """Write one subject session by session; after an interruption, sessions that are whole are not read again.

        Parameters
        ----------
        spec
            What the signals are.
        trials
            As for `add_subject`; the trials of a session stand together, in the order of `sessions`.
        sessions
            ``sessions[i]()`` yields blocks ``(n, C, T)`` of the trials of session i in order: as many trials as
            ``trials["session"]`` says.
        jobs
            Sessions read at the same time; above 1 in processes of their own, to which `sessions` must be picklable.

        Raises
        ------
        ValueError
            If shapes disagree, or a trial holds NaN or infinite values.
        """
        named = trials["session"].fillna("").astype(str)
        counts = named.groupby(named, sort=False).size().to_dict()
        changes = int(named.ne(named.shift()).sum())
        assert changes == len(counts) == len(sessions), f"{len(sessions)} readers of {changes} sessions"
        self._add(spec, trials=trials, counts=counts, sessions=sessions, jobs=jobs)

    def _add(self, spec: SignalSpec, *, trials: pd.DataFrame, counts: Mapping[str, int], sessions: Sequence[Session],
             jobs: int) -> None:
        name = safe_name(spec.subject)
        trials = trials.assign(subject=spec.subject, row=np.arange(len(trials)))
        for column in TRIAL_COLUMNS:
            if column not in trials:
                trials[column] = None
        trials = trials[list(TRIAL_COLUMNS)]
        physical = spec.modality in ("eeg", "meg") and set(spec.units.split(" and ")) <= set(SI) and not spec.whitened
        if physical and not self.any_amplitude:
            what, cure = f"signals of subject {spec.subject!r}", _CURE + ("" if self.any_amplitude is None else _SWITCH)
            types = spec.ch_types or (_TYPES[spec.units],) * spec.n_channels
            sessions = [PlausibleSession(session, ch_types=types, what=f"{what}, session {label!r}" if label else what,
                                         cure=cure) for session, label in zip(sessions, counts, strict=True)]
        write_sessions(self.out / f"signals_{name}.npy", shape=(len(trials), spec.n_channels, spec.n_times),
                       names=list(counts), counts=list(counts.values()), sessions=sessions, jobs=jobs,
                       identity=digest([spec.to_json(), trials.astype(str).to_dict("list")]),
                       what=f"signals of subject {spec.subject!r}")
        write_table(self._subjects / f"{name}.parquet", trials)
        write_json(self._subjects / f"{name}.json", spec.to_json())

    def add_images(self, images: Iterable[np.ndarray], *, n: int, shape: tuple[int, ...]) -> None:
        """Pack pictures into ``images.npy``; what an interrupted call has packed is not packed again.

        `finish` is then given stimuli whose `file` is "images.npy" and whose `pointer` is the place in `images`.

        Parameters
        ----------
        images
            ``(h, w, 3)`` or ``(h, w)`` uint8 (0..255) each, one at a time; of a Sequence only those that are still
            missing are read.
        n
            Number of pictures.
        shape
            ``(h, w, 3)`` or ``(h, w)``.

        Raises
        ------
        ValueError
            If the number or the shape of the pictures disagrees.
        """
        if (self.out / PACKED).exists():
            return
        writer = ArrayWriter(self.out, {"images": ((n, *shape), "uint8")})
        begun = writer.done
        log.info("study %s: packs %d pictures, %d of which are packed", self.study, n, begun)
        rest = (images[i] for i in range(begun, len(images))) if isinstance(images, Sequence) else islice(
            images, begun, None)
        while block := list(islice(rest, _IMAGES_AT_A_TIME)):
            for image in block:
                if image.shape != shape or image.dtype != np.uint8:
                    raise ValueError(f"images of study {self.study}: expected uint8 pictures of {shape}, got "
                                     f"{image.dtype} of {image.shape} after {writer.done} others. Correct the study.")
            if writer.done + len(block) > n:
                raise ValueError(f"images of study {self.study}: expected {n}, got more. Correct the study.")
            writer.write({"images": np.stack(block)})
        if writer.done != n:
            raise ValueError(f"images of study {self.study}: expected {n}, got {writer.done}. Correct the study.")
        writer.close()

    def finish(self, stimuli: pd.DataFrame, *, images: np.ndarray | None = None,
               image_size: int | None = None, notes: Sequence[str] = ()) -> None:
        """Write the tables and validate the whole.

        Parameters
        ----------
        stimuli
            One line per stimulus with `STIMULUS_COLUMNS`; `attributes` as dictionaries, `file` and `pointer` (see
            `brain2img.data.images`) are filled in when `images` is given, and what tells stimuli by their content (see
            `brain2img.data.same_stimuli`) always.
        images
            ``(N, h, w)`` or ``(N, h, w, 3)`` uint8 in the order of `stimuli`.
        image_size
            Side (pixels) to which pictures that are files are brought when read, and rows of HDF5 files when they are
            packed; None leaves them as they are, which needs them to be of one size.
        notes
            What was understood, left out or assumed, in sentences; `check` shows them.
        """
        stimuli = stimuli.copy()
        if images is not None:
            self.add_images(images, n=len(images), shape=images.shape[1:])
            stimuli["file"], stimuli["pointer"] = PACKED, np.arange(len(stimuli))
        for column in STIMULUS_COLUMNS:
            if column not in stimuli:
                stimuli[column] = None
        stimuli["attributes"] = [json.dumps(a or {}, sort_keys=True) for a in stimuli["attributes"]]
        StimulusImages(self.out, stimuli).check()
        bring_in(self.out, stimuli, size=image_size, pack=self.add_images)
        pictures = StimulusImages(self.out, stimuli, size=image_size)
        stimuli[["content", "same_as"]] = content(stimuli, pictures)
        notice(stimuli, what=f"study {self.study}")
        write_table(self.out / "stimuli.parquet", stimuli[list(STIMULUS_COLUMNS)])
        specs = {}
        tables = []
        for path in sorted(self._subjects.glob("*.json")):
            values = read_json(path, keys=("subject",))
            specs[values["subject"]] = values
            tables.append(read_table(path.with_suffix(".parquet")))
        write_json(self.out / "spec.json", {"study": self.study, "image_size": image_size, "subjects": specs,
                                            **({"notes": list(notes)} if notes else {})})
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
        values = read_json(self.folder / "spec.json", keys=("study", "subjects"))
        self.name: str = values["study"]
        self.image_size: int | None = values.get("image_size")
        self.notes: list[str] = values.get("notes", [])
        self.specs = {name: SignalSpec.from_json(spec) for name, spec in values["subjects"].items()}
        self.trials = read_table(self.folder / "trials.parquet", columns=TRIAL_COLUMNS)
        self.stimulus_table = read_table(self.folder / "stimuli.parquet", columns=STIMULUS_COLUMNS)
        self.stimulus_table["attributes"] = [json.loads(a) for a in self.stimulus_table["attributes"]]
        self.stimulus_table["captions"] = [[] if c is None else list(c) for c in self.stimulus_table["captions"]]
        same = self.stimulus_table.get("same_as", self.stimulus_table["stimulus_id"])  # older folders do not say
        self.same_as: dict[str, str] = dict(zip(self.stimulus_table["stimulus_id"], same, strict=True))

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
        return read_array(self._signals(subject))

    def stored_signals(self, subject: str) -> StoredRows:
        """Return the same to be read trial by trial: what was read does not stay mapped, hence in memory."""
        return StoredRows(self._signals(subject))

    def _signals(self, subject: str) -> Path:
        if subject not in self.specs:
            raise ValueError(f"study {self.name}: expected a subject of {self.subjects}, got {subject!r}. "
                             "Choose one of these.")
        return self.folder / f"signals_{safe_name(subject)}.npy"

    def trials_of(self, subject: str) -> pd.DataFrame:
        """Return the trials of a subject in the order of its signals."""
        return self.trials[self.trials["subject"] == subject].sort_values("row", ignore_index=True)

    @property
    def concepts(self) -> dict[str, str | None]:
        """Stimulus id -> its concept."""
        return dict(zip(self.stimulus_table["stimulus_id"], self.stimulus_table["concept"], strict=True))

    @property
    def has_images(self) -> bool:
        """Whether the stimuli have pictures."""
        return bool(self.stimulus_table["file"].notna().any())

    @property
    def stimuli(self) -> Stimuli:
        """All stimuli, in the order of ``stimuli.parquet``."""
        return self.stimuli_of(self.stimulus_table["stimulus_id"])

    def stimuli_of(self, stimulus_ids: Sequence[str]) -> Stimuli:
        """Return the stimuli with the given ids, in that order, images read lazily."""
        places = pd.Index(self.stimulus_table["stimulus_id"]).get_indexer(pd.Index(list(stimulus_ids)))
        assert (places >= 0).all(), "unknown stimulus id"
        table = self.stimulus_table.iloc[places].reset_index(drop=True)

        return Stimuli(table, StimulusImages(self.folder, table, size=self.image_size))

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
        StimulusImages(self.folder, self.stimulus_table).check()
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
