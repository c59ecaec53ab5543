"""THINGS-MEG (Hebart et al. 2023): the published epochs, or the raw CTF recordings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest, write_table
from brain2img.data.pictures import picture_files
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.things import categories, concept_of, splits, stimulus_table
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.folder_listing import inside, matching, spelled, write_not_read
from brain2img.studies.marks import Quality, good_epochs, good_events, in_words
from brain2img.studies.recordings import check_arguments, checked_samples, places, raw_folder
from brain2img.studies.things_meg_recordings import (
    CHANNELS,
    N_TIMES,
    RAW_SFREQ,
    SFREQ,
    TMAX,
    TMIN,
    CTFSession,
    EpochsSession,
    open_ctf,
    open_epochs,
)
from brain2img.studies.things_meg_tables import (
    CATCH,
    attributes,
    attributes_file,
    check_columns,
    check_numbers,
    events_of,
    numbers_of,
    trials_of,
)

if TYPE_CHECKING:
    import mne

log = logging.getLogger(__name__)

FORMS = ("epochs", "ctf")
#: Images of training and test that every subject saw, as published.
N_IMAGES = {"exp": 22248, "test": 200}
#: (subject, session, run) -> when the signal dropped out (s), which the authors fill with the channel's median.
DROPOUTS = {(1, 11, 5): 13.4, (2, 10, 3): 59.8}


class ThingsMEG(Study):
    """Four people looking at THINGS images for 0.5 s every 1.5 s: 271 axial gradiometers (CTF-275), 12 sessions.

    Hebart et al. 2023, https://doi.org/10.7554/eLife.82580; OpenNeuro ds004212, epochs also on figshare. Both forms
    are prepared as the authors did (https://github.com/ViCCo-Group/THINGS-data, MEG/step1_preprocessing.py): 0.1-40 Hz,
    -0.1 to 1.3 s, 200 Hz (every sixth sample). The published epochs are z-scored, each channel of each trial by its
    baseline, and stay so (units "a.u."); from CTF only the mean of the baseline is taken off (tesla).

    The 200 test images are shown once in every session; every other image is shown once. Catch trials are left out.
    Trials in spans marked as bad, and epochs that the file's log calls dropped, stand in ``left_out.parquet`` (subject,
    session, run, stimulus_id, reason), and leave a gap in `repetition`; files that were not read in
    ``not_read.parquet``.

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
    quality
        What becomes of channels and spans marked as bad, and of odd amplitudes: `brain2img.studies.marks`.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    name, modality = "things_meg", "meg"

    def __init__(self, *, form: str = "epochs", subjects: Sequence[int] = (1, 2, 3, 4), n_sessions: int = 12,
                 zero_shot: bool = True, n_val_concepts: int = 100, images: str = "object_images",
                 image_size: int = 500, seed: int = 0, jobs: int = 1,
                 quality: Mapping[str, Any] | None = None) -> None:
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
        self.quality = Quality.of(quality)

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of recordings, tables and images."""
        raw = self._existing(raw)
        files, tables = picture_files(raw / self.images), [self._concepts(raw)]
        for subject in self.subjects:
            tables.append(inside(raw, "sourcedata", f"sample_attributes_P{subject}.csv"))
            if self.form == "epochs":
                files += _parts(raw, subject)
            else:
                runs = inside(raw, f"sub-BIGMEG{subject}")
                files += [path for path in matching(runs, "ses-*/meg/sub-*.ds/**/*") if path.is_file()]
                tables += matching(runs, "ses-*/meg/sub-*_events.tsv")
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
        bads = {f"sub-{subject:02d} {session}": names for subject, recording in tables.items()
                for session, names in recording.bads.items()}
        dropped = {name for names in bads.values() for name in names if self.quality.bad_channels == "drop"}
        channels = tuple(name for name in CHANNELS if name not in dropped)
        if words := in_words(bads, policy=self.quality.bad_channels):
            log.warning("%s", words)
        writer = PreparedWriter(out, study=self.name, any_amplitude=self.quality.amplitudes == "keep")
        write_table(out / "left_out.parquet", pd.concat([
            recording.left_out.assign(subject=f"sub-{subject:02d}") for subject, recording in tables.items()],
            ignore_index=True)[["subject", "session", "run", "stimulus_id", "reason"]])
        for subject, recording in tables.items():
            name = f"sub-{subject:02d}"
            if writer.has_subject(name):
                continue
            trials = recording.trials[recording.trials["stimulus_id"].isin(list(split_of))].reset_index(drop=True)
            trials["split"] = trials["stimulus_id"].map(split_of)
            log.info("%s: %d trials of %d sessions, %d left out", name, len(trials), self.n_sessions,
                     len(recording.left_out))
            sessions = [replace(recording.session(rows), channels=channels)
                        for _, rows in trials.groupby("session", sort=False)]
            words = in_words(recording.bads, policy=self.quality.bad_channels)
            if dropped:
                words = f"bad channels dropped for all: {', '.join(sorted(dropped))}"
            writer.add_sessions(recording.spec(name, channels=channels, words=words), trials=trials, sessions=sessions,
                                jobs=self.jobs)
        writer.finish(stimuli, image_size=self.image_size)
        write_not_read(out, raw, read=[self._concepts(raw), *images.values(), *(
            path for recording in tables.values() for path in recording.files)])

    def _existing(self, raw: Path | None) -> Path:
        return raw_folder(raw, of="THINGS-MEG (OpenNeuro ds004212)", notes="things_meg.md")

    def _concepts(self, raw: Path) -> Path:
        return spelled((raw / self.images).parent / "things_concepts.tsv", under=raw)

    def _epochs(self, raw: Path, subject: int) -> _Recording:
        """Look at the published epochs of a subject."""
        path = inside(raw, "derivatives", "preprocessed", f"preprocessed_P{subject}-epo.fif")
        epochs = open_epochs(path)
        lost = {i: f"dropped from the epochs ({', '.join(why)})" for i, why in enumerate(epochs.drop_log)
                if why and set(why) != {"IGNORED"}}
        if lost and self.quality.bad_spans == "refuse":
            raise ValueError(f"{path}: expected no dropped epochs, got {len(lost)}. Set study.quality.bad_spans=drop.")
        table, kept = epochs.metadata, None
        if table is None or (lost and attributes_file(raw, subject).is_file()):
            table = attributes(raw, subject)
            if lost and len(table) == len(epochs.drop_log):  # of all trials, those dropped too
                kept = np.asarray(epochs.selection)
                missing = table.iloc[[i for i in lost if i not in set(kept)]]
                table = table.iloc[kept]
        if lost:
            log.warning("%s: %d epochs are dropped in the file (%s, ...)", path, len(lost), next(iter(lost.values())))
        table = table.reset_index(drop=True)
        check_columns(table, path=path)
        if len(table) != len(epochs):
            raise ValueError(f"{path}: expected {len(table)} epochs, one for each line of its table, got "
                             f"{len(epochs)}. Fetch it again, with all its parts.")
        check_numbers(numbers_of(table), epochs.events[:, 2], path=path)
        if abs(epochs.info["sfreq"] - SFREQ) > 1e-3 or len(epochs.times) != N_TIMES or abs(epochs.tmin - TMIN) > 1e-6:
            raise ValueError(f"{path}: expected {N_TIMES} samples from {TMIN} s at {SFREQ:g} Hz, got "
                             f"{len(epochs.times)} from {epochs.tmin:g} s at {epochs.info['sfreq']:g} Hz. Give the "
                             "published epochs, or prepare from the recordings with study.form=ctf.")
        bads = _bads(epochs, path=path)
        if bads and self.quality.bad_channels in ("interpolate", "refuse"):
            raise ValueError(f"{path}: expected no channel marked as bad, for z-scored signals cannot be interpolated, "
                             f"got {', '.join(bads)}. Set study.quality.bad_channels=drop or keep, or prepare from the "
                             "recordings with study.form=ctf.")
        place = np.arange(len(table))
        trials = trials_of(table).assign(place=place, order=place if kept is None else kept,
                                       reason=good_epochs(epochs, policy=self.quality.bad_spans, what=str(path)))
        if kept is not None:
            trials = pd.concat([trials, trials_of(missing).assign(
                place=-1, order=missing.index, reason=[lost[i] for i in missing.index])]).sort_values("order")
        return _Recording(path, trials=trials, info=epochs.info, published=True, lost=bool(lost and kept is None),
                          bads={"all sessions": bads}, files=(attributes_file(raw, subject), *_parts(raw, subject)),
                          session=lambda rows: EpochsSession(path, rows["place"].to_numpy(),
                                                             any_amplitude=self.quality.amplitudes == "keep"))

    def _ctf(self, raw: Path, subject: int) -> _Recording:
        """Look at the raw recordings of a subject: tables, length and channels of every run.

        Positions of the sensors on the head are those of the first run.
        """
        table, folder = attributes(raw, subject), inside(raw, f"sub-BIGMEG{subject}")
        trials, infos, files = [], [], [attributes_file(raw, subject)]
        bads: dict[str, list[str]] = {}
        grades: dict[int | None, Path] = {}
        for (session, run), rows in table.groupby(["session_nr", "run_nr"], sort=True):
            stem = f"sub-BIGMEG{subject}_ses-{session:02d}_task-main_run-{run:02d}"
            path, events_path = (inside(folder, f"ses-{session:02d}", "meg", f"{stem}_{rest}")
                                 for rest in ("meg.ds", "events.tsv"))
            recording = open_ctf(path)
            events = events_of(events_path, n=len(rows))
            check_numbers(numbers_of(rows), events["value"].fillna(CATCH).to_numpy(), path=events_path)
            samples = checked_samples(events["sample"], n_times=recording.n_times, tmin=round(TMIN * RAW_SFREQ),
                                      tmax=round(TMAX * RAW_SFREQ), path=events_path, recording=path)
            reasons = good_events(recording, samples, tmin=TMIN, tmax=TMAX, policy=self.quality.bad_spans,
                                  what=str(path))
            recording_bads = _bads(recording, path=path)
            if recording_bads and self.quality.bad_channels == "refuse":
                raise ValueError(f"{path}: expected no channel marked as bad, got {', '.join(recording_bads)}. Set "
                                 "study.quality.bad_channels=interpolate, drop or keep.")
            if recording_bads:
                bads.setdefault(f"session {session}", []).extend(recording_bads)
            grades.setdefault(recording.compensation_grade, path)
            if len(grades) > 1:
                (grade, first), (other, _) = grades.items()
                raise ValueError(f"{path}: expected compensation of grade {grade}, as in {first.name}, got grade "
                                 f"{other}. Bring all runs to one grade (newDs of CTF).")
            infos.append(recording.info)
            files += [path, events_path]
            trials.append(trials_of(rows).assign(place=samples, onset=samples / RAW_SFREQ, path=str(path), n=len(rows),
                                               reason=reasons))
        dropouts = {(session, run): start for (who, session, run), start in DROPOUTS.items() if who == subject}

        def session_of(rows: pd.DataFrame) -> CTFSession:
            return CTFSession(tuple(
                (Path(path), run["place"].to_numpy(), int(run["n"].iloc[0]),
                 dropouts.get((run["session"].iloc[0], run["run"].iloc[0])))
                for path, run in rows.groupby("path", sort=False)), bad_channels=self.quality.bad_channels)

        return _Recording(folder, trials=pd.concat(trials, ignore_index=True), info=infos[0], bads={
            session: sorted(set(names)) for session, names in bads.items()}, files=tuple(files), session=session_of)

    def _checked(self, recording: _Recording, *, subject: int) -> _Recording:
        """Return the recording in the order of sessions, catch trials and bad ones left out, counts checked."""
        trials = recording.trials.sort_values(["session", "run"], kind="stable", ignore_index=True)
        found = sorted(set(trials["session"]))
        if found != list(range(1, self.n_sessions + 1)):
            missing = sorted(set(range(1, self.n_sessions + 1)) - set(found))
            raise ValueError(f"{recording.path}: expected sessions 1 to {self.n_sessions}, got {found}"
                             f"{f' (missing: {missing})' if missing else ''}. Fetch the whole subject, leave it out "
                             "of study.subjects, or set study.n_sessions.")
        shown = trials.loc[trials["part"] == "test", "stimulus_id"].value_counts()
        wrong = shown[(shown > self.n_sessions) if recording.lost else (shown != self.n_sessions)]
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
        trials["repetition"] = trials.groupby("stimulus_id").cumcount()
        bad = trials["reason"] != ""
        return replace(recording, trials=trials[~bad].reset_index(drop=True), left_out=trials[bad])

    def _splits(self, raw: Path, tables: Mapping[int, _Recording]) -> tuple[dict[str, str], dict[str, Path]]:
        """Return stimulus_id -> split, and stimulus_id -> file, over all subjects, in alphabetical order."""
        trials = pd.concat([part for recording in tables.values() for part in (recording.trials, recording.left_out)],
                           ignore_index=True)
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
        files = {i: spelled(folder / c / f"{i}.jpg", under=raw) for i, c in zip(ids, concept, strict=True)}
        return dict(zip(ids, split, strict=True)), files

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of one subject and two sessions."""
        return cls(subjects=(1,), n_sessions=2, n_val_concepts=2)


@dataclass(frozen=True)
class _Recording:
    """What was found of one subject: where, its trials, its sensors, how to read a session's trials, and what is bad.

    `lost` says that trials are missing of which it is not known which; `left_out` are those known to be, with a reason.
    """

    path: Path
    trials: pd.DataFrame
    info: mne.Info
    session: Callable[[pd.DataFrame], EpochsSession | CTFSession]
    bads: dict[str, list[str]]
    files: tuple[Path, ...]
    published: bool = False
    lost: bool = False
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)

    def spec(self, name: str, *, channels: tuple[str, ...], words: str) -> SignalSpec:
        """Return the spec of the prepared signals, and in it the words on bad channels."""
        import mne

        chosen = places(self.info["ch_names"], wanted=channels, path=self.path)
        device = np.array([self.info["chs"][i]["loc"][:3] for i in chosen])
        to_head = self.info["dev_head_t"]
        filtered = ["0.1-40 Hz", "as published, every trial and channel z-scored by its baseline, -0.1 to 0 s", words]
        return SignalSpec(
            subject=name, modality="meg", units="a.u." if self.published else "T", n_channels=len(channels),
            n_times=N_TIMES, sfreq=SFREQ, tmin=TMIN, ch_names=channels, ch_types=("mag",) * len(channels),
            positions=device if to_head is None else mne.transforms.apply_trans(to_head, device),
            filtered="; ".join(part for part in filtered if part and (self.published or part is not filtered[1])))


def _parts(raw: Path, subject: int) -> list[Path]:
    """Return the published epochs of a subject, and their further parts."""
    return matching(raw, f"derivatives/preprocessed/preprocessed_P{subject}-epo*.fif")


def _bads(recording: Any, *, path: Path) -> list[str]:
    """Return the channels of the study that a recording marks as bad."""
    chosen = places(recording.ch_names, wanted=CHANNELS, path=path)
    return [name for name, i in zip(CHANNELS, chosen, strict=True) if recording.ch_names[i] in recording.info["bads"]]
