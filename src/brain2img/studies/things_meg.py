"""THINGS-MEG (Hebart et al. 2023): the published epochs, or the raw CTF recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.file_names import is_junk
from brain2img.data.pictures import picture_files
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.reading import reading
from brain2img.data.things import categories, concept_of, splits, stimulus_table
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.recordings import check_arguments, places, raw_folder
from brain2img.studies.things_meg_recordings import (
    CHANNELS,
    N_TIMES,
    RAW_SFREQ,
    SFREQ,
    TMIN,
    CTFSession,
    EpochsSession,
    check_extent,
    open_ctf,
    open_epochs,
)

if TYPE_CHECKING:
    import mne

log = logging.getLogger(__name__)

FORMS = ("epochs", "ctf")
#: Event number of a catch trial in the published files.
CATCH = 999999
#: Images of training and test that every subject saw, as published.
N_IMAGES = {"exp": 22248, "test": 200}
COLUMNS = ("trial_type", "session_nr", "run_nr", "image_path", "things_image_nr")
#: (subject, session, run) -> when the signal dropped out (s), which the authors fill with the channel's median.
DROPOUTS = {(1, 11, 5): 13.4, (2, 10, 3): 59.8}


class ThingsMEG(Study):
    """Four people looking at THINGS images for 0.5 s every 1.5 s: 271 axial gradiometers (CTF-275), 12 sessions.

    Hebart et al. 2023, https://doi.org/10.7554/eLife.82580; OpenNeuro ds004212, epochs also on figshare. Both forms
    are prepared as the authors did (https://github.com/ViCCo-Group/THINGS-data, MEG/step1_preprocessing.py): 0.1-40 Hz,
    -0.1 to 1.3 s, 200 Hz (every sixth sample). The published epochs are z-scored, each channel of each trial by its
    baseline, and stay so (units "a.u."); from CTF only the mean of the baseline is taken off (tesla).

    The 200 test images are shown once in every session; every other image is shown once. Catch trials are left out.

    Parameters
    ----------
    form
        "epochs": ``derivatives/preprocessed/preprocessed_P<n>-epo.fif`` (and its parts -1, -2, ...). "ctf":
        ``sub-BIGMEG<n>/ses-<ss>/meg/*_meg.ds`` and ``*_events.tsv``, ``sourcedata/sample_attributes_P<n>.csv``.
    subjects
        Numbers of the subjects.
    n_sessions
        Sessions that every subject must have.
    zero_shot
        Leave out the training images of the 200 test concepts, as all published 200-way results do.
    n_val_concepts
        Training concepts whose images are held out for validation, the same for all subjects.
    images
        Folder of the THINGS images, ``<concept>/<image>.jpg``, relative to the raw folder; ``things_concepts.tsv``
        beside it is read for categories where it is there.
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

    name, modality = "things_meg", "meg"

    def __init__(self, *, form: str = "epochs", subjects: Sequence[int] = (1, 2, 3, 4), n_sessions: int = 12,
                 zero_shot: bool = True, n_val_concepts: int = 100, images: str = "object_images",
                 image_size: int = 500, seed: int = 0, jobs: int = 1) -> None:
        check_arguments(form=form, forms=FORMS, subjects=subjects)
        self.form = form
        self.variant = form
        self.subjects = list(subjects)
        self.n_sessions = n_sessions
        self.zero_shot = zero_shot
        self.n_val_concepts = n_val_concepts
        self.images = images
        self.image_size = image_size
        self.seed = seed
        self.jobs = jobs

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of recordings, tables and images."""
        raw = self._existing(raw)
        files, tables = picture_files(raw / self.images), [self._concepts(raw)]
        for subject in self.subjects:
            tables.append(raw / "sourcedata" / f"sample_attributes_P{subject}.csv")
            if self.form == "epochs":
                files += sorted(self._epochs_file(raw, subject).parent.glob(f"preprocessed_P{subject}-epo*.fif"))
            else:
                runs = raw / f"sub-BIGMEG{subject}"
                files += sorted(p for p in runs.glob("ses-*/meg/sub-*.ds/**/*") if p.is_file() and not is_junk(p.name))
                tables += sorted(runs.glob("ses-*/meg/sub-*_events.tsv"))
        files += [path for path in tables if path.is_file()]
        return digest(content_of_files({str(path.relative_to(raw)): path for path in files}))

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the data set's folder `raw`, subject by subject and session by session."""
        raw = self._existing(raw)
        read = self._epochs if self.form == "epochs" else self._ctf
        tables = {subject: self._checked(read(raw, subject), subject=subject) for subject in self.subjects}
        split_of, images = self._splits(raw, tables)
        stimuli = stimulus_table(images, concepts=[concept_of(image) for image in images],
                                 category_of=categories(self._concepts(raw)))
        writer = PreparedWriter(out, study=self.name)
        for subject, recording in tables.items():
            name = f"sub-{subject:02d}"
            if writer.has_subject(name):
                continue
            trials = recording.trials[recording.trials["stimulus_id"].isin(list(split_of))].reset_index(drop=True)
            trials["split"] = trials["stimulus_id"].map(split_of)
            trials["repetition"] = trials.groupby("stimulus_id").cumcount()
            log.info("%s: %d trials of %d sessions", name, len(trials), self.n_sessions)
            sessions = [recording.session(rows) for _, rows in trials.groupby("session", sort=False)]
            writer.add_sessions(recording.spec(name, published=self.form == "epochs"), trials=trials, sessions=sessions,
                                jobs=self.jobs)
        writer.finish(stimuli, image_size=self.image_size)

    def _existing(self, raw: Path | None) -> Path:
        return raw_folder(raw, of="THINGS-MEG (OpenNeuro ds004212)", notes="things_meg.md")

    def _concepts(self, raw: Path) -> Path:
        return (raw / self.images).parent / "things_concepts.tsv"

    @staticmethod
    def _epochs_file(raw: Path, subject: int) -> Path:
        return raw / "derivatives" / "preprocessed" / f"preprocessed_P{subject}-epo.fif"

    def _epochs(self, raw: Path, subject: int) -> _Recording:
        """Look at the published epochs of a subject."""
        path = self._epochs_file(raw, subject)
        epochs = open_epochs(path)
        table = epochs.metadata
        if table is None:
            table = _attributes(raw, subject)
        table = table.reset_index(drop=True)
        _check_columns(table, path=path)
        if len(table) != len(epochs):
            raise ValueError(f"{path}: expected {len(table)} epochs, one for each line of its table, got "
                             f"{len(epochs)}. Fetch it again, with all its parts.")
        expected = table["things_image_nr"].where(table["trial_type"] != "catch", CATCH).to_numpy()
        _check_numbers(expected, epochs.events[:, 2], path=path)
        if abs(epochs.info["sfreq"] - SFREQ) > 1e-3 or len(epochs.times) != N_TIMES or abs(epochs.tmin - TMIN) > 1e-6:
            raise ValueError(f"{path}: expected {N_TIMES} samples from {TMIN} s at {SFREQ:g} Hz, got "
                             f"{len(epochs.times)} from {epochs.tmin:g} s at {epochs.info['sfreq']:g} Hz. Give the "
                             "published epochs, or prepare from the recordings with study.form=ctf.")
        places(epochs.ch_names, wanted=CHANNELS, path=path)
        trials = _trials(table).assign(place=np.arange(len(table)))
        return _Recording(path, trials=trials, info=epochs.info, session=lambda rows: EpochsSession(
            path, rows["place"].to_numpy()))

    def _ctf(self, raw: Path, subject: int) -> _Recording:
        """Look at the raw recordings of a subject: tables, length and channels of every run.

        Positions of the sensors on the head are those of the first run.
        """
        table = _attributes(raw, subject)
        trials, infos = [], []
        for (session, run), rows in table.groupby(["session_nr", "run_nr"], sort=True):
            stem = f"sub-BIGMEG{subject}_ses-{session:02d}_task-main_run-{run:02d}"
            path = raw / f"sub-BIGMEG{subject}" / f"ses-{session:02d}" / "meg" / f"{stem}_meg.ds"
            recording = open_ctf(path)
            events = _events(path.with_name(f"{stem}_events.tsv"), n=len(rows))
            expected = rows["things_image_nr"].where(rows["trial_type"] != "catch", CATCH).to_numpy()
            _check_numbers(expected, events["value"].fillna(CATCH).to_numpy(),
                           path=path.with_name(f"{stem}_events.tsv"))
            samples = events["sample"].to_numpy().astype(int)
            check_extent(samples, recording.n_times, path=path)
            infos.append(recording.info)
            trials.append(_trials(rows).assign(place=samples, onset=samples / RAW_SFREQ, path=str(path), n=len(rows)))
        dropouts = {(session, run): start for (who, session, run), start in DROPOUTS.items() if who == subject}

        def session_of(rows: pd.DataFrame) -> CTFSession:
            return CTFSession(tuple(
                (Path(path), run["place"].to_numpy(), int(run["n"].iloc[0]),
                 dropouts.get((run["session"].iloc[0], run["run"].iloc[0])))
                for path, run in rows.groupby("path", sort=False)))

        return _Recording(raw / f"sub-BIGMEG{subject}", trials=pd.concat(trials, ignore_index=True), info=infos[0],
                          session=session_of)

    def _checked(self, recording: _Recording, *, subject: int) -> _Recording:
        """Return the recording in the order of sessions, catch trials left out, counts checked."""
        trials = recording.trials.sort_values(["session", "run"], kind="stable", ignore_index=True)
        found = sorted(set(trials["session"]))
        if found != list(range(1, self.n_sessions + 1)):
            missing = sorted(set(range(1, self.n_sessions + 1)) - set(found))
            raise ValueError(f"{recording.path}: expected sessions 1 to {self.n_sessions}, got {found}"
                             f"{f' (missing: {missing})' if missing else ''}. Fetch the whole subject, leave it out "
                             "of study.subjects, or set study.n_sessions.")
        shown = trials.loc[trials["part"] == "test", "stimulus_id"].value_counts()
        wrong = shown[shown != self.n_sessions]
        if not len(shown) or len(wrong):
            got = f"{wrong.iloc[0]} trials of {wrong.index[0]!r}" if len(wrong) else "no test trials"
            raise ValueError(f"{recording.path}: expected every test image in {self.n_sessions} trials of subject "
                             f"{subject}, one a session, got {got}. Fetch the files again.")
        for part, published in N_IMAGES.items():
            n = trials.loc[trials["part"] == part, "stimulus_id"].nunique()
            if n != published:
                log.warning("%s: subject %d saw %d images of type %s, where %d are published", recording.path, subject,
                            n, part, published)
        trials = trials[trials["part"] != "catch"].reset_index(drop=True)
        return replace(recording, trials=trials)

    def _splits(self, raw: Path, tables: Mapping[int, _Recording]) -> tuple[dict[str, str], dict[str, Path]]:
        """Return stimulus_id -> split, and stimulus_id -> file, over all subjects, in alphabetical order."""
        trials = pd.concat([recording.trials for recording in tables.values()], ignore_index=True)
        stimuli = trials.drop_duplicates("stimulus_id").sort_values("stimulus_id")
        parts = trials.groupby("stimulus_id")["part"].nunique()
        if (parts > 1).any():
            raise ValueError(f"image {parts.index[parts > 1][0]!r}: expected to be shown as a test image or as a "
                             "training image, got both. Correct sample_attributes_P*.csv.")
        concept = stimuli["stimulus_id"].map(concept_of)
        test = stimuli["part"] == "test"
        if self.zero_shot:
            kept = test | ~concept.isin(set(concept[test]))
            stimuli, concept, test = stimuli[kept], concept[kept], test[kept]
        split = splits(concept, test=test, n_val_concepts=self.n_val_concepts, seed=self.seed)
        ids = stimuli["stimulus_id"].tolist()
        folder = raw / self.images
        files = {i: folder / c / f"{i}.jpg" for i, c in zip(ids, concept, strict=True)}
        return dict(zip(ids, split, strict=True)), files

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of one subject and two sessions."""
        return cls(subjects=(1,), n_sessions=2, n_val_concepts=2)


@dataclass(frozen=True)
class _Recording:
    """What was found of one subject: where, its trials, its sensors, and how to read a session's trials."""

    path: Path
    trials: pd.DataFrame
    info: mne.Info
    session: Callable[[pd.DataFrame], Callable[[], Iterator[np.ndarray]]]

    def spec(self, name: str, *, published: bool) -> SignalSpec:
        """Return the spec of the prepared signals."""
        import mne

        chosen = places(self.info["ch_names"], wanted=CHANNELS, path=self.path)
        device = np.array([self.info["chs"][i]["loc"][:3] for i in chosen])
        to_head = self.info["dev_head_t"]
        return SignalSpec(
            subject=name, modality="meg", units="a.u." if published else "T", n_channels=len(CHANNELS), n_times=N_TIMES,
            sfreq=SFREQ, tmin=TMIN, ch_names=CHANNELS, ch_types=("mag",) * len(CHANNELS),
            positions=device if to_head is None else mne.transforms.apply_trans(to_head, device),
            filtered="0.1-40 Hz" + ("; as published, every trial and channel z-scored by its baseline, -0.1 to 0 s"
                                    if published else ""))


def _attributes(raw: Path, subject: int) -> pd.DataFrame:
    """Return the table of a subject's trials, in the order of presentation."""
    path = raw / "sourcedata" / f"sample_attributes_P{subject}.csv"
    if not path.is_file():
        raise ValueError(f"{path}: expected the table of this subject's trials, got no such file. Fetch it from "
                         "sourcedata/ of OpenNeuro ds004212.")
    with reading(path, what="table"):
        table = pd.read_csv(path)
    _check_columns(table, path=path)
    return table


def _check_columns(table: pd.DataFrame, *, path: Path) -> None:
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got none of {', '.join(missing)}. "
                         "Give the table as published.")
    unknown = set(table["trial_type"]) - {"exp", "test", "catch"}
    if unknown:
        raise ValueError(f"{path}: expected trials of type exp, test or catch, got {sorted(map(str, unknown))}. "
                         "Give the table as published.")


def _trials(table: pd.DataFrame) -> pd.DataFrame:
    """Return part (exp, test, catch), stimulus_id, session, run, and onset and duration (s) if the table has them."""
    trials = pd.DataFrame({
        "part": table["trial_type"], "stimulus_id": [Path(str(path)).stem for path in table["image_path"]],
        "session": table["session_nr"].astype(int), "run": table["run_nr"].astype(int)})
    if {"image_on", "image_off"} <= set(table):
        trials["onset"] = table["image_on"].astype(float)
        trials["duration"] = (table["image_off"] - table["image_on"]).astype(float)
    return trials


def _events(path: Path, *, n: int) -> pd.DataFrame:
    """Return the events of a run: sample (onset by the optical sensor) and value (number of the image, or none)."""
    if not path.is_file():
        raise ValueError(f"{path}: expected the events of this run, got no such file. Fetch it again.")
    with reading(path, what="table"):
        events = pd.read_csv(path, sep="\t")
    if not {"sample", "value"} <= set(events):
        raise ValueError(f"{path}: expected the columns sample and value, got {list(events)}. Fetch it again.")
    if len(events) != n:
        raise ValueError(f"{path}: expected {n} trials by sample_attributes_P*.csv, got {len(events)}. "
                         "Fetch both again.")
    return events


def _check_numbers(expected: np.ndarray, got: np.ndarray, *, path: Path) -> None:
    wrong = np.flatnonzero(expected != got)
    if len(wrong):
        first = wrong[0]
        raise ValueError(f"{path}: expected the images of sample_attributes_P*.csv, got other numbers in {len(wrong)} "
                         f"of {len(got)} trials (trial {first}: {expected[first]:g}, not {got[first]:g}). Fetch both "
                         "again.")
