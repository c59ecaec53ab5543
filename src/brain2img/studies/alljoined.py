"""Alljoined-1.6M (Xu et al. 2025): the EDF recordings, or the public folders already preprocessed at 250 Hz."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest, file_digest, write_table
from brain2img.data.prepared import PreparedWriter
from brain2img.data.things import caption_of, validation_concepts
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.alljoined_recordings import (
    CHANNELS,
    PARTS,
    RAW_N_TIMES,
    RAW_SFREQ,
    RAW_TMIN,
    SFREQ,
    EDFSession,
    FlatSession,
    check_flat,
    markers,
    positions,
)

log = logging.getLogger(__name__)

FORMS = ("edf", "preprocessed")
COLUMNS = ("session", "block_id", "partition", "image_path")
SPLITS = {"stim_test": "test", "stim_train": "train"}
DURATION = 0.1
#: Images of training and test, as published.
N_IMAGES = (16540, 200)
#: Subject -> (row of its order of stimuli, the row before which it was really shown), as the authors correct it.
MOVED = {6: (73762, 73760)}


class Alljoined(Study):
    """Twenty people looking at THINGS images for 0.1 s every 0.2 s: 32 channels of a consumer cap, 4 sessions.

    Xu et al. 2025, https://arxiv.org/abs/2508.18571; https://huggingface.co/datasets/Alljoined/Alljoined-1.6M. The
    images are those of THINGS-EEG2: 16,540 for training, 4 or 5 times each, and 200 for the test, 80 times. A session
    has 19 blocks of about five minutes, the first four of the test. Recordings are prepared as the authors do
    (https://github.com/Alljoined/Alljoined-1.6M), short of whitening and cutting: no filter, -0.2 to 1.0 s around the
    marker, the mean before it taken off, 256 -> 250 Hz. Of several markers on one sample none is kept, for nobody can
    know which picture evoked the response; the authors keep the first. The preprocessed folders are whitened.

    Markers that the cap missed, blocks that are missing and trials the authors dropped stand in ``left_out.parquet``
    (subject, session, run, place in the run, stimulus_id, reason); `repetition` counts presentations as designed, so
    that what was lost leaves a gap.

    Parameters
    ----------
    form
        "edf": ``raw_eeg/sub-<ss>/session_<ss>/block_<bb>/*.edf`` and ``stim_order.parquet``. "preprocessed":
        ``preprocessed_eeg/sub-<ss>/preprocessed_eeg_{training,test}_flat.npy`` and ``experiment_metadata.parquet``.
    subjects
        Numbers of the subjects.
    n_sessions, n_blocks
        Sessions that every subject must have; blocks of a session, of which some may be missing (form "edf").
    n_val_concepts
        Training concepts whose images are held out for validation, the same for all subjects.
    images
        Folder of the images, ``<number>.jpg``, relative to the raw folder.
    image_size
        Side (pixels) in which images are read.
    seed
        Seed of the choice of validation concepts.
    jobs
        Sessions read at the same time.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    name = "alljoined"

    def __init__(self, *, form: str = "edf", subjects: Sequence[int] = tuple(range(1, 21)), n_sessions: int = 4,
                 n_blocks: int = 19, n_val_concepts: int = 100, images: str = "stimuli/images", image_size: int = 500,
                 seed: int = 0, jobs: int = 1) -> None:
        if form not in FORMS:
            raise ValueError(f"study.form: expected one of {FORMS}, got {form!r}. Choose one of these.")
        if not subjects or len(set(subjects)) != len(subjects):
            raise ValueError(f"study.subjects: expected different numbers, e.g. [1,2,3], got {list(subjects)}. "
                             "Correct study.subjects.")
        self.form = form
        self.variant = form
        self.subjects = list(subjects)
        self.n_sessions = n_sessions
        self.n_blocks = n_blocks
        self.n_val_concepts = n_val_concepts
        self.images = images
        self.image_size = image_size
        self.seed = seed
        self.jobs = jobs

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of names and sizes of the recordings, and of the tables of presentations."""
        raw = self._existing(raw)
        pattern = "**/*.edf" if self.form == "edf" else "preprocessed_eeg_*_flat.npy"
        folders = [self._folder(raw, subject) for subject in self.subjects]
        return digest([[[folder.name, str(path.relative_to(folder)), path.stat().st_size]
                        for folder in folders for path in sorted(folder.glob(pattern))],
                       [file_digest(path) for path in sorted(raw.glob("*/sub-*/*.parquet"))]])

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the data set's folder `raw`, subject by subject and session by session."""
        raw = self._existing(raw)
        read = self._edf if self.form == "edf" else self._preprocessed
        found = {subject: read(raw, subject) for subject in self.subjects}
        stimuli = self._stimuli(raw, found)
        split = dict(zip(stimuli["stimulus_id"], stimuli["split"], strict=True))
        writer = PreparedWriter(out, study=self.name)
        write_table(out / "left_out.parquet", pd.concat([
            recording.left_out.assign(subject=f"sub-{subject:02d}") for subject, recording in found.items()],
            ignore_index=True)[["subject", "session", "run", "place", "stimulus_id", "reason"]])
        for subject, recording in found.items():
            name = f"sub-{subject:02d}"
            if writer.has_subject(name):
                continue
            trials = recording.trials.assign(split=recording.trials["stimulus_id"].map(split), duration=DURATION)
            spec = SignalSpec(subject=name, modality="eeg", n_channels=len(CHANNELS), ch_names=CHANNELS,
                              ch_types=("eeg",) * len(CHANNELS), positions=positions(), sfreq=SFREQ, **recording.spec)
            log.info("%s: %d trials, %d left out", name, len(trials), len(recording.left_out))
            sessions = [recording.session(rows) for _, rows in trials.groupby("session", sort=False)]
            writer.add_sessions(spec, trials=trials, sessions=sessions, jobs=self.jobs)
        writer.finish(stimuli.drop(columns="split"), image_size=self.image_size)

    def _existing(self, raw: Path | None) -> Path:
        if raw is None or not Path(raw).is_dir():
            raise ValueError(f"study.raw: expected the folder of Alljoined-1.6M, got "
                             f"{'nothing' if raw is None else f'{raw}, which is no folder'}. Give study.raw=<folder>; "
                             "data_prep/alljoined.md says where to get it.")
        return Path(raw).resolve()

    def _folder(self, raw: Path, subject: int) -> Path:
        """Return the folder of a subject's recordings: directly below ``raw_eeg`` or one folder further down."""
        parent = raw / ("raw_eeg" if self.form == "edf" else "preprocessed_eeg")
        name = f"sub-{subject:02d}"
        for folder in (parent / name, *sorted(parent.glob(f"*/{name}"))):
            if folder.is_dir():
                return folder
        raise ValueError(f"{parent / name}: expected the files of this subject, got no such folder. Fetch them, or "
                         "leave the subject out of study.subjects.")

    def _design(self, paths: Sequence[Path], *, subject: int, columns: Sequence[str] = ()) -> tuple[Path, pd.DataFrame]:
        """Read the first of the tables of presentations that is there, in the order of presentation.

        Returns
        -------
        path, table
            The table with session, run, part ("stim_train" or "stim_test"), number (of the image), stimulus_id, place
            (in its run), repetition, concept, and the further `columns`.
        """
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(f"{paths[0]}: expected the order of this subject's stimuli, got no such file. Fetch it.")
        table = pd.read_parquet(path).reset_index(drop=True)
        missing = [column for column in (*COLUMNS, *columns) if column not in table]
        if missing or not {"category_name", "category_num"} & set(table):
            raise ValueError(f"{path}: expected the columns {', '.join((*COLUMNS, *columns))} and category_num or "
                             f"category_name, got {list(table)}. Fetch it again.")
        if path.name == "stim_order.parquet" and subject in MOVED and MOVED[subject][0] < len(table):
            source, target = MOVED[subject]
            table = table.iloc[np.insert(np.delete(np.arange(len(table)), source), target, source)]
        table = table[table["partition"].isin(list(SPLITS))].sort_values("session", kind="stable", ignore_index=True)
        number = table["image_path"].map(lambda value: int(Path(str(value)).stem))
        concept = (table["category_name"].astype(str) if "category_name" in table else
                   table["partition"].str.removeprefix("stim_") + "-" + table["category_num"].astype(str))
        table = table.assign(run=table["block_id"].astype(int), session=table["session"].astype(int), number=number,
                             part=table["partition"], stimulus_id=[f"{n:05d}" for n in number], concept=concept)
        sessions = sorted(set(table["session"]))
        if sessions != list(range(1, self.n_sessions + 1)):
            raise ValueError(f"{path}: expected sessions 1 to {self.n_sessions}, got {sessions}. Fetch it again, or "
                             "set study.n_sessions.")
        table["place"] = table.groupby(["session", "run"]).cumcount()
        table["repetition"] = table.groupby("stimulus_id").cumcount()
        return path, table

    def _edf(self, raw: Path, subject: int) -> _Recording:
        """Look at the recordings of a subject: which presentations have a marker, and where."""
        folder = self._folder(raw, subject)
        path, design = self._design([folder / "stim_order.parquet",
                                     raw / "preprocessed_eeg" / folder.name / "stim_order.parquet"], subject=subject)
        if not set(design["run"]) <= set(range(1, self.n_blocks + 1)):
            raise ValueError(f"{path}: expected blocks 1 to {self.n_blocks}, got {sorted(set(design['run']))}. "
                             "Set study.n_blocks.")
        reasons = pd.Series("", index=design.index)
        samples = pd.Series(-1, index=design.index)
        paths: dict[tuple[int, int], Path] = {}
        for session in range(1, self.n_sessions + 1):
            there = folder / f"session_{session:02d}"
            if not there.is_dir():
                raise ValueError(f"{there}: expected a session, got no such folder. Fetch it, or leave subject "
                                 f"{subject} out of study.subjects.")
            for run in range(1, self.n_blocks + 1):
                planned = design[(design["session"] == session) & (design["run"] == run)]
                files = sorted((there / f"block_{run:02d}").glob("*.edf"))
                if len(files) > 1:
                    raise ValueError(f"{there / f'block_{run:02d}'}: expected one EDF file, got {len(files)} "
                                     f"({', '.join(f.name for f in files)}). Remove what does not belong there.")
                if not files:
                    log.warning("%s: block %d is missing; its %d trials are left out", there, run, len(planned))
                    reasons[planned.index] = "block missing"
                    continue
                paths[session, run] = files[0]
                found, why = _matched(files[0], planned)
                samples[planned.index], reasons[planned.index] = found, why
        kept = reasons == ""
        trials = design[kept].assign(sample=samples[kept], onset=samples[kept] / RAW_SFREQ).sort_values(
            ["session", "run", "place"], ignore_index=True)

        def session_of(rows: pd.DataFrame) -> EDFSession:
            blocks = rows.groupby(["session", "run"], sort=False)
            return EDFSession(tuple((paths[key], block["sample"].to_numpy()) for key, block in blocks))

        self._check_sessions(trials, what=folder)
        n_times = round(RAW_N_TIMES * SFREQ / RAW_SFREQ)
        return _Recording(trials, left_out=design.assign(reason=reasons)[~kept], session=session_of, spec={
            "units": "V", "n_times": n_times, "tmin": RAW_TMIN / RAW_SFREQ, "filtered": "notch of the amplifier"})

    def _preprocessed(self, raw: Path, subject: int) -> _Recording:
        """Look at the preprocessed folder of a subject."""
        folder = self._folder(raw, subject)
        path, design = self._design([folder / "experiment_metadata.parquet",
                                     folder / "experiment_metadata_categories.parquet"], subject=subject,
                                    columns=["dropped"])
        dropped = design["dropped"].astype(bool)
        trials = design[~dropped].copy()
        times = {}
        for part, file in PARTS.items():
            mine = trials["part"] == part
            times[part] = check_flat(folder / file, n=int(mine.sum()), table=path)
            trials.loc[mine, "sample"] = np.arange(mine.sum())
        first, second = times.values()
        if not np.allclose(first, second, atol=1e-6):
            raise ValueError(f"{folder}: expected the same times in both files, got "
                             f"{' and '.join(str(t[[0, -1]]) for t in times.values())} s. Fetch them again.")
        trials = trials.sort_values(["session", "run", "place"], ignore_index=True).assign(onset=None)
        self._check_sessions(trials, what=folder)
        return _Recording(trials, left_out=design[dropped].assign(reason="dropped by the authors"),
                          session=lambda rows: FlatSession(folder, tuple(rows["part"]),
                                                           rows["sample"].to_numpy(dtype=int)),
                          spec={"units": "a.u.", "n_times": len(first), "tmin": float(first[0]), "whitened": True,
                                "filtered": "notch of the amplifier; as published, whitened session by session"})

    def _check_sessions(self, trials: pd.DataFrame, *, what: Path) -> None:
        found = sorted(set(trials["session"]))
        if found != list(range(1, self.n_sessions + 1)):
            raise ValueError(f"{what}: expected trials in sessions 1 to {self.n_sessions}, got some in {found}. Fetch "
                             "the blocks that are missing, or leave the subject out of study.subjects.")

    def _stimuli(self, raw: Path, found: Mapping[int, _Recording]) -> pd.DataFrame:
        """Return the stimuli of all subjects, in the order of their numbers, and their splits."""
        shown = pd.concat([recording.trials for recording in found.values()], ignore_index=True)
        known = shown.drop_duplicates("stimulus_id").sort_values("stimulus_id", ignore_index=True)
        concept, category = known["concept"], pd.Series([None] * len(known), dtype=object)
        table = raw / "preprocessed_eeg" / "experiment_metadata_categories.parquet"
        named = "category_name" in known
        if table.is_file():
            names = pd.read_parquet(table).drop_duplicates("image_path")
            names.index = pd.Index([int(Path(str(path)).stem) for path in names["image_path"]])
            if "category_name" in names:
                named, concept = True, known["number"].map(names["category_name"].to_dict()).fillna(concept)
            if "super_category" in names:
                category = known["number"].map(names["super_category"].to_dict())
        test = known["part"] == "stim_test"
        if (counts := (int((~test).sum()), int(test.sum()))) != N_IMAGES:
            log.warning("%s: %d training and %d test images are shown, where %d and %d are published", raw, *counts,
                        *N_IMAGES)
        held_out = validation_concepts(concept[~test], n=self.n_val_concepts, seed=self.seed)
        files = [raw / self.images / f"{stimulus_id}.jpg" for stimulus_id in known["stimulus_id"]]
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise ValueError(f"{missing[0]}: expected an image there, got none ({len(missing)} of {len(files)} images "
                             "are missing). Unpack stimuli.zip there, or set study.images.")
        return pd.DataFrame({
            "stimulus_id": known["stimulus_id"], "kind": "image", "file": [str(path) for path in files],
            "concept": concept, "category": category, "attributes": [{}] * len(known),
            "captions": [[caption_of(name)] if named else [] for name in concept],
            "split": np.where(test, "test", np.where(concept.isin(held_out), "val", "train"))})

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of one subject, two sessions and few blocks."""
        return cls(subjects=(1,), n_sessions=2, n_blocks=3, n_val_concepts=2)


@dataclass(frozen=True)
class _Recording:
    """Trials of a subject, presentations that are left out and why, how to read a session's trials, what they are."""

    trials: pd.DataFrame
    left_out: pd.DataFrame
    session: Callable[[pd.DataFrame], Callable[[], Iterator[np.ndarray]]]
    spec: dict[str, Any]


def _matched(path: Path, planned: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Match the markers of a block, which may lack some, with the presentations as planned, in order.

    The image is the marker's own; where a marker is lost between two of the same image, either may be called the lost.

    Returns
    -------
    samples, reasons
        ``(len(planned),)`` sample of each presentation's marker (-1 for none), and why it is left out ("" where not).

    Raises
    ------
    ValueError
        If the markers are no subsequence of the plan.
    """
    found, n_times = markers(path)
    plan = list(zip(planned["part"], planned["number"], strict=True))
    samples = np.full(len(plan), -1)
    reasons = np.full(len(plan), "no marker", dtype=object)
    place = 0
    for count, marker in enumerate(found):
        while place < len(plan) and plan[place] != (marker.part, marker.number):
            place += 1
        if place == len(plan):
            raise ValueError(f"{path}: expected markers in the order of stim_order.parquet, got image {marker.number} "
                             f"of {marker.part} as marker {count} at {marker.sample / RAW_SFREQ:.1f} s, which is not "
                             "planned then. Check that the file is of this subject, session and block.")
        samples[place], reasons[place] = marker.sample, ""
        place += 1
    marked = samples >= 0
    first, count_at = np.unique(samples[marked], return_counts=True)
    reasons[marked & np.isin(samples, first[count_at > 1])] = "several markers on one sample"
    cut = marked & ((samples + RAW_TMIN < 0) | (samples + RAW_TMIN + RAW_N_TIMES > n_times))
    reasons[cut] = "cut off by an end of the recording"
    return samples, reasons
