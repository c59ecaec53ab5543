"""Alljoined-1.6M (Xu et al. 2025): the EDF recordings, or the public folders already preprocessed at 250 Hz."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest, write_table
from brain2img.data.pictures import picture_files
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.reading import reading
from brain2img.data.things import splits, stimulus_table
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
)
from brain2img.studies.folder_listing import inside, matching, write_not_read
from brain2img.studies.marks import Quality
from brain2img.studies.recordings import cap_positions, check_arguments, raw_folder

log = logging.getLogger(__name__)

FORMS = ("edf", "preprocessed")
COLUMNS = ("session", "block_id", "partition", "image_path")
SPLITS = {"stim_test": "test", "stim_train": "train"}
DURATION = 0.1
#: Images of training and test, as published.
N_IMAGES = (16540, 200)
#: A concept of which only the number is known, within its partition.
_UNNAMED = r"(train|test)-\d+"
#: Subject -> (row of its order of stimuli, the row before which it was really shown), as the authors correct it.
MOVED = {6: (73762, 73760)}


class Alljoined(Study):
    """Twenty people looking at THINGS images for 0.1 s every 0.2 s: 32 channels of a consumer cap, 4 sessions.

    Xu et al. 2025, https://arxiv.org/abs/2508.18571; https://huggingface.co/datasets/Alljoined/Alljoined-1.6M. The
    images are those of THINGS-EEG2: 16,540 for training, at least 4 times each, and 200 for the test, at least 80
    times. A session has 19 blocks, the first four of the test. Recordings are prepared as the authors do
    (https://github.com/Alljoined/Alljoined-1.6M), short of whitening and cutting: no filter, -0.2 to 1.0 s around the
    marker, the mean before it taken off, 256 -> 250 Hz. Of several markers on one sample none is kept, for nobody can
    know which picture evoked the response; the authors keep the first. The preprocessed folders are whitened.

    Markers that the cap missed, blocks that are missing, trials the authors dropped and those in spans marked as bad or
    over a gap of the recording stand in ``left_out.parquet`` (subject, session, run, place in the run, stimulus_id,
    reason); `repetition` counts presentations as designed, so that what was lost leaves a gap. What lies in the raw
    folder and was not read stands in ``not_read.parquet``.

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
    quality
        What becomes of spans marked as bad, odd amplitudes and channels without a unit: `brain2img.studies.marks`.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    name, modality = "alljoined", "eeg"

    def __init__(self, *, form: str = "edf", subjects: Sequence[int] = tuple(range(1, 21)), n_sessions: int = 4,
                 n_blocks: int = 19, n_val_concepts: int = 100, images: str = "stimuli/images", image_size: int = 500,
                 seed: int = 0, jobs: int = 1, quality: Mapping[str, Any] | None = None) -> None:
        check_arguments(form=form, forms=FORMS, subjects=subjects)
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
        self.quality = Quality.of(quality)

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of recordings, tables of presentations and images."""
        raw = self._existing(raw)
        pattern = "**/*.edf" if self.form == "edf" else "preprocessed_eeg_*_flat.npy"
        folders = [self._folder(raw, subject) for subject in self.subjects]
        named = {f"{folder.name}/{path.relative_to(folder)}": path for folder in folders
                 for path in matching(folder, pattern)}
        tables = [path for folder in folders for place in (folder, inside(raw, "preprocessed_eeg", folder.name))
                  for path in matching(place, "*.parquet")]
        others = [*tables, *picture_files(raw / self.images), *filter(Path.is_file, [self._names(raw)])]
        return digest(content_of_files(named | {str(path.relative_to(raw)): path for path in others}))

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the data set's folder `raw`, subject by subject and session by session."""
        raw = self._existing(raw)
        read = self._edf if self.form == "edf" else self._preprocessed
        found = {subject: read(raw, subject) for subject in self.subjects}
        stimuli, split = self._stimuli(raw, found)
        writer = PreparedWriter(out, study=self.name, any_amplitude=self.quality.amplitudes == "keep")
        write_table(out / "left_out.parquet", pd.concat([
            recording.left_out.assign(subject=f"sub-{subject:02d}") for subject, recording in found.items()],
            ignore_index=True)[["subject", "session", "run", "place", "stimulus_id", "reason"]])
        for subject, recording in found.items():
            name = f"sub-{subject:02d}"
            if writer.has_subject(name):
                continue
            trials = recording.trials.assign(split=recording.trials["stimulus_id"].map(split), duration=DURATION)
            spec = SignalSpec(subject=name, modality="eeg", n_channels=len(CHANNELS), ch_names=CHANNELS,
                              ch_types=("eeg",) * len(CHANNELS), positions=cap_positions(CHANNELS), sfreq=SFREQ,
                              **recording.spec)
            log.info("%s: %d trials, %d left out", name, len(trials), len(recording.left_out))
            sessions = [recording.session(rows) for _, rows in trials.groupby("session", sort=False)]
            writer.add_sessions(spec, trials=trials, sessions=sessions, jobs=self.jobs)
        writer.finish(stimuli, image_size=self.image_size)
        write_not_read(out, raw, read=[self._names(raw), *map(Path, stimuli["file"]),
                                       *(path for recording in found.values() for path in recording.files)])

    def _existing(self, raw: Path | None) -> Path:
        return raw_folder(raw, of="Alljoined-1.6M", notes="alljoined.md")

    @staticmethod
    def _names(raw: Path) -> Path:
        """Return where the names of concepts and categories are, if they are there."""
        return inside(raw, "preprocessed_eeg", "experiment_metadata_categories.parquet")

    def _folder(self, raw: Path, subject: int) -> Path:
        """Return the folder of a subject's recordings: directly below ``raw_eeg`` or one folder further down."""
        parent = inside(raw, "raw_eeg" if self.form == "edf" else "preprocessed_eeg")
        name = f"sub-{subject:02d}"
        for folder in (*matching(parent, name), *matching(parent, f"*/{name}")):
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
            (in its run), repetition, concept ("train-<number>" where it is not named), and the further `columns`.
        """
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise ValueError(f"{paths[0]}: expected the order of this subject's stimuli, got no such file. Fetch it.")
        with reading(path, what="parquet table"):
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
        table = pd.DataFrame({
            "session": table["session"].astype(int), "run": table["block_id"].astype(int), "part": table["partition"],
            "number": number, "stimulus_id": [f"{n:05d}" for n in number], "concept": concept,
            **{column: table[column] for column in columns}})
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
        orders = [inside(place, "stim_order.parquet")
                  for place in (folder, inside(raw, "preprocessed_eeg", folder.name))]
        path, design = self._design(orders, subject=subject)
        if not set(design["run"]) <= set(range(1, self.n_blocks + 1)):
            raise ValueError(f"{path}: expected blocks 1 to {self.n_blocks}, got {sorted(set(design['run']))}. "
                             "Set study.n_blocks.")
        reasons = pd.Series("", index=design.index)
        samples, onsets = pd.Series(-1, index=design.index), pd.Series(np.nan, index=design.index)
        paths: dict[tuple[int, int], Path] = {}
        for session in range(1, self.n_sessions + 1):
            there = inside(folder, f"session_{session:02d}")
            if not there.is_dir():
                raise ValueError(f"{there}: expected a session, got no such folder. Fetch it, or leave subject "
                                 f"{subject} out of study.subjects.")
            for run in range(1, self.n_blocks + 1):
                planned = design[(design["session"] == session) & (design["run"] == run)]
                files = matching(there, f"block_{run:02d}/*.edf")
                if len(files) > 1:
                    raise ValueError(f"{there / f'block_{run:02d}'}: expected one EDF file, got {len(files)} "
                                     f"({', '.join(f.name for f in files)}). Remove what does not belong there.")
                if not files:
                    log.warning("%s: block %d is missing; its %d trials are left out", there, run, len(planned))
                    reasons[planned.index] = "block missing"
                    continue
                paths[session, run] = files[0]
                matched = _matched(files[0], planned, quality=self.quality)
                samples[planned.index], onsets[planned.index], reasons[planned.index] = matched
        kept = reasons == ""
        trials = design[kept].assign(sample=samples[kept], onset=onsets[kept]).sort_values(
            ["session", "run", "place"], ignore_index=True)

        def session_of(rows: pd.DataFrame) -> EDFSession:
            return EDFSession(tuple((paths[key], block["sample"].to_numpy())
                                    for key, block in rows.groupby(["session", "run"], sort=False)), self.quality.unit)

        self._check_sessions(trials, what=folder)
        n_times = round(RAW_N_TIMES * SFREQ / RAW_SFREQ)
        return _Recording(trials, left_out=design.assign(reason=reasons)[~kept], session=session_of,
                          files=(path, *paths.values()), spec={
            "units": "V", "n_times": n_times, "tmin": RAW_TMIN / RAW_SFREQ, "filtered": "notch of the amplifier"})

    def _preprocessed(self, raw: Path, subject: int) -> _Recording:
        """Look at the preprocessed folder of a subject."""
        folder = self._folder(raw, subject)
        path, design = self._design([inside(folder, "experiment_metadata.parquet"),
                                     inside(folder, "experiment_metadata_categories.parquet")], subject=subject,
                                    columns=["dropped"])
        dropped = design["dropped"].astype(bool)
        trials = design[~dropped].copy()
        times = {}
        for part, file in PARTS.items():
            of_part = trials["part"] == part
            times[part] = check_flat(inside(folder, file), n=int(of_part.sum()), table=path)
            trials.loc[of_part, "sample"] = np.arange(of_part.sum())
        first, second = times.values()
        if not np.allclose(first, second, atol=1e-6):
            raise ValueError(f"{folder}: expected the same times in both files, got "
                             f"{' and '.join(str(t[[0, -1]]) for t in times.values())} s. Fetch them again.")
        trials = trials.sort_values(["session", "run", "place"], ignore_index=True).assign(onset=None)
        self._check_sessions(trials, what=folder)
        return _Recording(trials, left_out=design[dropped].assign(reason="dropped by the authors"),
                          session=lambda rows: FlatSession(folder, tuple(rows["part"]),
                                                           rows["sample"].to_numpy(dtype=int)),
                          files=(path, *(inside(folder, file) for file in PARTS.values())),
                          spec={"units": "a.u.", "n_times": len(first), "tmin": float(first[0]), "whitened": True,
                                "filtered": "notch of the amplifier; as published, whitened session by session"})

    def _check_sessions(self, trials: pd.DataFrame, *, what: Path) -> None:
        found = sorted(set(trials["session"]))
        if found != list(range(1, self.n_sessions + 1)):
            raise ValueError(f"{what}: expected trials in sessions 1 to {self.n_sessions}, got some in {found}. Fetch "
                             "the blocks that are missing, or leave the subject out of study.subjects.")

    def _stimuli(self, raw: Path, found: Mapping[int, _Recording]) -> tuple[pd.DataFrame, dict[str, str]]:
        """Return the stimuli of all subjects, in the order of their numbers, and the split of each."""
        shown = pd.concat([recording.trials for recording in found.values()], ignore_index=True)
        known = shown.drop_duplicates("stimulus_id").sort_values("stimulus_id", ignore_index=True)
        concept_of, category_of = _named(self._names(raw))
        concept = known["number"].map(concept_of).fillna(known["concept"])
        test = known["part"] == "stim_test"
        if (counts := (int((~test).sum()), int(test.sum()))) != N_IMAGES:
            log.warning("%s: %d training and %d test images are shown, where %d and %d are published", raw, *counts,
                        *N_IMAGES)
        split = splits(concept, test=test, n_val_concepts=self.n_val_concepts, seed=self.seed)
        files = {stimulus_id: inside(raw, *Path(self.images).parts, f"{stimulus_id}.jpg")
                 for stimulus_id in known["stimulus_id"]}
        stimuli = stimulus_table(files, concepts=concept.tolist(), category_of=category_of)
        stimuli["captions"] = stimuli["captions"].where(~concept.str.fullmatch(_UNNAMED), "").map(list)
        return stimuli, dict(zip(stimuli["stimulus_id"], split, strict=True))

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of one subject, two sessions and few blocks."""
        return cls(subjects=(1,), n_sessions=2, n_blocks=3, n_val_concepts=2)


@dataclass(frozen=True)
class _Recording:
    """Trials of a subject, what is left out and why, how to read a session's trials, what they are, files read."""

    trials: pd.DataFrame
    left_out: pd.DataFrame
    session: Callable[[pd.DataFrame], Callable[[], Iterator[np.ndarray]]]
    spec: dict[str, Any]
    files: tuple[Path, ...]


def _named(path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """Return the concept of each image by its number, and the category of each concept; none without the file."""
    if not path.is_file():
        return {}, {}
    with reading(path, what="parquet table"):
        table = pd.read_parquet(path)
    file = "image_path" if "image_path" in table else "fname"
    missing = [column for column in (file, "category_name", "super_category") if column not in table]
    if missing:
        raise ValueError(f"{path}: expected the columns image_path or fname, category_name and super_category, got "
                         f"{list(table)}. Fetch it again, or leave it out.")
    table = table.dropna(subset=[file, "category_name"])
    numbers = [int(Path(name).stem) for name in table[file]]
    return (dict(zip(numbers, table["category_name"], strict=True)),
            dict(zip(table["category_name"], table["super_category"], strict=True)))


def _matched(path: Path, planned: pd.DataFrame, *, quality: Quality) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the markers of a block, which may lack some, with the presentations as planned, in order.

    The image is the marker's own; where a marker is lost between two of the same image, either may be called the lost.

    Returns
    -------
    samples, onsets, reasons
        ``(len(planned),)`` sample and time (s) of each presentation's marker (-1 and NaN for none), and why it is left
        out ("" where not).

    Raises
    ------
    ValueError
        If the markers are no subsequence of the plan.
    """
    found, n_times = markers(path, quality=quality)
    plan = list(zip(planned["part"], planned["number"], strict=True))
    samples, onsets = np.full(len(plan), -1), np.full(len(plan), np.nan)
    reasons = np.full(len(plan), "no marker", dtype=object)
    place = 0
    for count, marker in enumerate(found):
        while place < len(plan) and plan[place] != (marker.part, marker.number):
            place += 1
        if place == len(plan):
            raise ValueError(f"{path}: expected markers in the order of stim_order.parquet, got image {marker.number} "
                             f"of {marker.part} as marker {count} at {marker.sample / RAW_SFREQ:.1f} s, which is not "
                             "planned then. Check that the file is of this subject, session and block.")
        samples[place], onsets[place], reasons[place] = marker.sample, marker.onset, marker.reason
        place += 1
    marked = reasons != "no marker"
    first, count_at = np.unique(samples[marked], return_counts=True)
    reasons[marked & np.isin(samples, first[count_at > 1])] = "several markers on one sample"
    cut = marked & ((samples + RAW_TMIN < 0) | (samples + RAW_TMIN + RAW_N_TIMES > n_times))
    reasons[cut] = "cut off by an end of the recording"
    return samples, onsets, reasons
