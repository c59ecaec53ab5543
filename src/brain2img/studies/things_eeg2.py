"""THINGS-EEG2 (Gifford et al. 2022): the raw recordings, or the public folders already preprocessed at 250 Hz."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.pickled import read_pickled
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.sessions import Session
from brain2img.data.things import categories, concept_of, splits, stimulus_table
from brain2img.interfaces import Study
from brain2img.records import SignalSpec
from brain2img.studies.folder_listing import inside, matching, spelled, write_not_read
from brain2img.studies.recordings import cap_positions, check_arguments, opened, places, raw_folder

log = logging.getLogger(__name__)

#: The 63 channels that all published results use, in their order; the recording has the reference Fz beside them.
CHANNELS = tuple("""
    Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9
    FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 Cz C2
    C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5
    P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2
""".split())
PARTS = ("training", "test")
FORMS = ("raw", "preprocessed")
#: Rate of the recording and of what is prepared (Hz), window (s), code of a target (a picture to be reported).
RAW_SFREQ, SFREQ, TMIN, TMAX, TARGET = 1000, 250, -0.2, 1.0, 99999
DURATION = 0.1
#: Presentations of an image that the authors draw from a session, and the seed of their draw.
DRAWN, DRAW_SEED = {"training": 2, "test": 20}, 20200220
_RAW_KEYS = ("raw_eeg_data", "ch_names", "ch_types", "sfreq")
_PREPROCESSED_KEYS = ("preprocessed_eeg_data", "ch_names", "times")
#: Seconds of a recording, and trials of a preprocessed file, read at a time.
_SECONDS, _TRIALS = 20, 400


class ThingsEEG2(Study):
    """Ten people looking at THINGS images for 0.1 s every 0.2 s: 63 channels, 4 sessions.

    Gifford et al. 2022, https://doi.org/10.1016/j.neuroimage.2022.119754; https://osf.io/3jk45. 16,540 training images
    (10 of each of 1,654 concepts) are shown four times, twice in each of two sessions; 200 test images, each of a
    concept of its own, 20 times in every session; in every session 170 training and 56 test presentations more fill the
    last sequences. Raw recordings are prepared as the authors do (https://github.com/gifale95/eeg_encoding), with the
    window of the 63-channel pipelines (https://github.com/eeyhsong/NICE-EEG): -0.2 to 1.0 s around onset, the mean
    before onset taken off, resampled to 250 Hz. Nothing is whitened. Targets are left out.

    The preprocessed folders are whitened, their repetitions shuffled over sessions: session and onset are unknown.

    Parameters
    ----------
    form
        "raw": ``sub-<ss>/ses-<ss>/raw_eeg_{training,test}.npy``. "preprocessed":
        ``sub-<ss>/preprocessed_eeg_{training,test}.npy``. The subjects lie in the raw folder or in a folder of it.
    subjects
        Numbers of the subjects.
    n_sessions
        Sessions that every subject must have (form "raw").
    repetitions
        Part ("training", "test") -> times that each of its images was shown at least, over all sessions.
    drawn
        Keep only the presentations that the published files hold: two of a training and twenty of a test image in a
        session, drawn as the authors do (form "raw"; the preprocessed folders hold no others).
    n_val_concepts
        Training concepts whose images are held out for validation, the same for all subjects.
    images
        Folder with ``training_images/<number>_<concept>/<image>.jpg`` and ``test_images/...``, relative to the raw
        folder; ``image_metadata.npy`` (order of the images) and ``things_concepts.tsv`` (categories) are read where
        they are there.
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

    name, modality = "things_eeg2", "eeg"

    def __init__(self, *, form: str = "raw", subjects: Sequence[int] = tuple(range(1, 11)), n_sessions: int = 4,
                 repetitions: Mapping[str, int] | None = None, drawn: bool = False, n_val_concepts: int = 100,
                 images: str = "image_set", image_size: int = 500, seed: int = 0, jobs: int = 1) -> None:
        self.repetitions = {"training": 4, "test": 80} | dict(repetitions or {})
        check_arguments(form=form, forms=FORMS, subjects=subjects)
        if set(self.repetitions) != set(PARTS):
            raise ValueError(f"study.repetitions: expected the parts {PARTS}, got {sorted(self.repetitions)}. "
                             "Correct it.")
        self.form = form
        self.variant = form
        self.subjects = [f"sub-{number:02d}" for number in subjects]
        self.n_sessions = n_sessions
        self.drawn = drawn
        self.n_val_concepts = n_val_concepts
        self.images = images
        self.image_size = image_size
        self.seed = seed
        self.jobs = jobs

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of recordings and images, and of the images' categories."""
        raw = self._existing(raw)
        folders = [self._folder(raw, subject) for subject in self.subjects]
        files = [path for folder in folders for path in matching(folder, "**/*_eeg_*.npy")]
        images = self._images(raw)
        named = {"/".join(path.parts[-3:]): path for path in files}
        named |= {f"{part}/{name}": path for part in images for name, path in images[part].items()
                  if path.is_file()}
        return digest([content_of_files(named), {part: list(found) for part, found in images.items()},
                       self._categories(raw)])

    def _existing(self, raw: Path | None) -> Path:
        return raw_folder(raw, of="THINGS-EEG2", notes="things_eeg2.md")

    def _categories(self, raw: Path) -> dict[str, str]:
        return categories(inside(raw, *Path(self.images).parts, "things_concepts.tsv"))

    def _folder(self, raw: Path, subject: str) -> Path:
        """Return the folder of a subject: the one that holds files of the form asked for."""
        pattern = "ses-*" if self.form == "raw" else "preprocessed_eeg_*.npy"
        for folder in (*matching(raw, subject), *matching(raw, f"*/{subject}")):
            if matching(folder, pattern):
                return folder
        raise ValueError(f"{raw}: expected {subject}/{pattern} in it or in a folder of it, got nothing. Fetch the "
                         "subject, leave it out of study.subjects, or correct study.form.")

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the folder `raw`."""
        raw = self._existing(raw)
        images = self._images(raw)
        files = {name: path for part in PARTS for name, path in images[part].items()}
        stimuli = stimulus_table(files, concepts=[concept_of(name) for name in files],
                                 category_of=self._categories(raw))
        split = dict(zip(files, splits(stimuli["concept"], test=stimuli["stimulus_id"].isin(list(images["test"])),
                                       n_val_concepts=self.n_val_concepts, seed=self.seed), strict=True))
        names = {part: list(found) for part, found in images.items()}

        writer = PreparedWriter(out, study=self.name)
        # Files of all subjects are checked before the first of them is prepared.
        check = _recordings if self.form == "raw" else _preprocessed
        todo = {subject: check(self._folder(raw, subject), study=self, names=names)
                for subject in self.subjects if not writer.has_subject(subject)}
        for subject, found in todo.items():
            trials = found.trials.assign(split=found.trials["stimulus_id"].map(split), duration=DURATION)
            spec = SignalSpec(subject=subject, modality="eeg", n_channels=len(CHANNELS), ch_names=CHANNELS,
                              ch_types=("eeg",) * len(CHANNELS), positions=cap_positions(CHANNELS), sfreq=float(SFREQ),
                              **found.spec)
            log.info("%s: %d trials in %d sessions", subject, len(trials), len(found.sessions))
            writer.add_sessions(spec, trials=trials, sessions=found.sessions, jobs=self.jobs)
        writer.finish(stimuli, image_size=self.image_size)
        folder = inside(raw, *Path(self.images).parts)
        write_not_read(out, raw, read=[inside(folder, "things_concepts.tsv"), inside(folder, "image_metadata.npy"),
                                       *files.values(), *(path for subject in self.subjects for path in _files(
                                           self._folder(raw, subject), form=self.form))])

    def _images(self, raw: Path) -> dict[str, dict[str, Path]]:
        """Return part -> name of each image without ending -> its path, in the order of the codes in the recordings."""
        folder = inside(raw, *Path(self.images).parts)
        metadata = inside(folder, "image_metadata.npy")
        found: dict[str, dict[str, Path]] = {}
        for part, short in (("training", "train"), ("test", "test")):
            place = inside(folder, f"{part}_images")
            if metadata.is_file():
                keys = (f"{short}_img_concepts", f"{short}_img_files")
                values = read_pickled(metadata, keys=keys)
                paths = [spelled(place / str(concept) / str(file), under=folder)
                         for concept, file in zip(*(values[key] for key in keys), strict=True)]
            else:
                paths = [p for p in matching(place, "*/[!.]*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")]
            found[part] = {path.stem: path for path in paths}
            if len(found[part]) != len(paths) or not paths:
                raise ValueError(f"{place}: expected images of different names in <number>_<concept> folders, got "
                                 f"{len(paths)} images of {len(found[part])} names. Unpack {part}_images.zip of "
                                 "https://osf.io/y63gw there, or set study.images.")
        both = set(map(concept_of, found["training"])) & set(map(concept_of, found["test"]))
        if both:
            raise ValueError(f"{folder}: expected test images of other concepts than the training images, got "
                             f"{sorted(both)[0]!r} among both. Fetch the images again, or correct study.images.")
        return found

    @classmethod
    def tiny(cls) -> Self:
        """Return the study of one subject; its files are what makes it small or large."""
        return cls(subjects=(1,), n_val_concepts=1)


@dataclass(frozen=True)
class _Subject:
    """Trials of a subject, a reader for each of its sessions, and what its signals are."""

    trials: pd.DataFrame
    sessions: list[Session]
    spec: dict[str, Any]


def _files(folder: Path, *, form: str) -> list[Path]:
    """Return the files of a subject that are read in a form."""
    return [path for part in PARTS for path in matching(
        folder, f"ses-*/raw_eeg_{part}.npy" if form == "raw" else f"preprocessed_eeg_{part}.npy")]


# ---- form "raw"


def _recordings(folder: Path, *, study: ThingsEEG2, names: Mapping[str, list[str]]) -> _Subject:
    """Check the recordings of a subject and read their events; signals are read session by session later."""
    expected = {f"ses-{number:02d}" for number in range(1, study.n_sessions + 1)}
    there = {path.name.lower() for path in matching(folder, "ses-*")}
    if there != expected:
        raise ValueError(f"{folder}: expected the sessions {', '.join(sorted(expected))}, got "
                         f"{', '.join(sorted(there))}. Fetch what is missing, or set study.n_sessions.")
    tables: list[pd.DataFrame] = []
    sessions: list[Session] = []
    for session in sorted(expected):
        onsets = {}
        for part in PARTS:
            path = inside(folder, session, f"raw_eeg_{part}.npy")
            samples, codes = _events(path)
            wrong = (codes < 1) | (codes > len(names[part]))
            if wrong.any():
                raise ValueError(f"{path}: expected codes of the {len(names[part])} {part} images in 'stim', 1 to "
                                 f"{len(names[part])}, got {codes[wrong][0]}. Give the images of this study with "
                                 "study.images, or fetch the file again.")
            if study.drawn:
                kept = _drawn(codes, n=DRAWN[part])
                samples, codes = samples[kept], codes[kept]
            onsets[path] = samples
            tables.append(pd.DataFrame({"stimulus_id": [names[part][code - 1] for code in codes], "run": part,
                                        "session": session.removeprefix("ses-"), "onset": samples / RAW_SFREQ}))
        sessions.append(_Session(onsets))
    trials = pd.concat(tables, ignore_index=True)
    trials["repetition"] = trials.groupby("stimulus_id").cumcount()
    for part in PARTS:
        shown = trials.loc[trials["run"] == part, "stimulus_id"].value_counts().reindex(names[part], fill_value=0)
        fewest, least = shown.idxmin(), int(shown.min())
        if least < study.repetitions[part]:
            mine = trials[trials["stimulus_id"] == fewest].groupby("session").size()
            per_session = ", ".join(f"{session}: {mine.get(session.removeprefix('ses-'), 0)}"
                                    for session in sorted(expected))
            raise ValueError(f"{folder}/ses-*/raw_eeg_{part}.npy: expected every {part} image at least "
                             f"{study.repetitions[part]} times, got {least} of {fewest} ({per_session}). A file is "
                             "incomplete, or of another image set: fetch it again, or set study.repetitions.")
    spec = {"units": "V", "n_times": round((TMAX - TMIN) * SFREQ), "tmin": TMIN, "filtered": "0.01-100 Hz on line"}
    return _Subject(trials, sessions, spec)


def _drawn(codes: np.ndarray, *, n: int) -> np.ndarray:
    """Return the places, in order, of the at most n presentations of each image that the authors draw in a session."""
    from sklearn.utils import shuffle

    where = (np.flatnonzero(codes == code) for code in np.unique(codes))
    return np.sort(np.concatenate([shuffle(mine, random_state=DRAW_SEED)[:n] for mine in where]))


def _read_raw(path: Path) -> dict[str, Any]:
    """Return the dictionary of a recording, checked."""
    values = read_pickled(path, keys=_RAW_KEYS)
    if float(values["sfreq"]) != RAW_SFREQ:
        raise ValueError(f"{path}: expected {RAW_SFREQ} Hz, got {values['sfreq']} Hz. Fetch the file as published: "
                         "onsets and filters would differ.")
    names = list(values["ch_names"])
    places(names, wanted=CHANNELS, path=path)
    if "stim" not in names:
        raise ValueError(f"{path}: expected a channel 'stim' with codes of images, got none. Fetch the file again.")
    shape = values["raw_eeg_data"].shape
    if len(shape) != 2 or shape[0] != len(names):
        raise ValueError(f"{path}: expected raw_eeg_data of {len(names)} channels x samples, got {shape}. Fetch "
                         "the file again.")
    return values


def _events(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return sample and code of every image of a recording, targets and what is cut off by its ends left out."""
    import mne

    values = _read_raw(path)
    stim = np.asarray(opened(values["raw_eeg_data"])[list(values["ch_names"]).index("stim")], dtype=float)
    raw = mne.io.RawArray(stim[None], mne.create_info(["stim"], RAW_SFREQ, "stim"), verbose="WARNING")
    try:
        events = mne.find_events(raw, stim_channel="stim", verbose="WARNING")
    except ValueError as error:
        raise ValueError(f"{path}: expected codes of images in 'stim', got a channel MNE finds no events in ({error}). "
                         "Fetch the file again.") from error
    events = events[events[:, 2] != TARGET]
    whole = (events[:, 0] + round(TMIN * RAW_SFREQ) >= 0) & (events[:, 0] + round(TMAX * RAW_SFREQ) < len(stim))
    if not whole.all():
        log.warning("%s: %d images are shown too near to an end of the recording; they are left out", path,
                    int((~whole).sum()))
    return events[whole, 0].astype(np.int64), events[whole, 2].astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Session:
    """Reads the trials of one session: path of a recording -> ``(n,)`` samples of its onsets."""

    onsets: dict[Path, np.ndarray]

    def __call__(self) -> Iterator[np.ndarray]:
        for path, onsets in self.onsets.items():
            values = _read_raw(path)
            chosen = places(values["ch_names"], wanted=CHANNELS, path=path)
            for some in np.split(onsets, np.flatnonzero(np.diff(onsets // (_SECONDS * RAW_SFREQ))) + 1):
                if len(some):
                    yield _epochs(values["raw_eeg_data"], some, chosen=chosen, path=path)


def _epochs(recording: Any, onsets: np.ndarray, *, chosen: list[int], path: Path) -> np.ndarray:
    """Return ``(n, 63, 300)`` epochs (V), the mean before onset taken off, at 250 Hz; only their stretch is read."""
    start, stop = int(onsets[0]) + round(TMIN * RAW_SFREQ), int(onsets[-1]) + round(TMAX * RAW_SFREQ) + 1
    data = np.asarray(opened(recording)[:, start:stop], dtype=np.float64)[chosen]
    bad = ~np.isfinite(data).all(axis=1)
    if bad.any():
        raise ValueError(f"{path}: expected finite values, got NaN or infinity in {CHANNELS[int(np.argmax(bad))]}, at "
                         f"{start / RAW_SFREQ:.0f} to {stop / RAW_SFREQ:.0f} s. Fetch the file again, or repair it.")
    chain = _chain()
    epochs = np.stack([data[:, first:first + len(chain)] for first in onsets - onsets[0]])
    return (epochs.reshape(-1, len(chain)) @ chain).reshape(len(epochs), len(data), -1).astype(np.float32)


@cache
def _chain() -> np.ndarray:
    """Return ``(1201, 300)``: what MNE makes of each sample of an epoch when it takes off the baseline and resamples.

    Both are linear and the same for every channel: one product does for all epochs what MNE does channel by channel.
    """
    import mne

    samples = np.eye(round((TMAX - TMIN) * RAW_SFREQ) + 1)[:, None]
    info = mne.create_info(1, RAW_SFREQ, "eeg")
    epochs = mne.EpochsArray(samples, info, tmin=TMIN, baseline=(None, 0), verbose="WARNING")
    return np.asarray(epochs.resample(SFREQ, verbose="WARNING").get_data(copy=False)[:, 0])


# ---- form "preprocessed"


def _preprocessed(folder: Path, *, study: ThingsEEG2, names: Mapping[str, list[str]]) -> _Subject:
    """Check the two preprocessed files of a subject; they are read later, some conditions at a time."""
    tables, times = [], {}
    for part in PARTS:
        path = inside(folder, f"preprocessed_eeg_{part}.npy")
        values = read_pickled(path, keys=_PREPROCESSED_KEYS)
        places(values["ch_names"], wanted=CHANNELS, path=path)
        shape = values["preprocessed_eeg_data"].shape
        expected = (len(names[part]), study.repetitions[part], len(values["ch_names"]))
        if len(shape) != 4 or shape[:3] != expected:
            raise ValueError(f"{path}: expected preprocessed_eeg_data of images x repetitions x channels "
                             f"{expected} x samples, got {shape}. Fetch the file again, or set study.images or "
                             "study.repetitions.")
        # `times` still has the samples before onset, which were cut off the signals
        times[part] = np.asarray(values["times"], dtype=float)[-shape[3]:]
        if len(times[part]) != shape[3] or not np.allclose(np.diff(times[part]) * SFREQ, 1, atol=1e-3):
            step = np.diff(np.asarray(values["times"], dtype=float)).mean() if len(values["times"]) > 1 else np.nan
            raise ValueError(f"{path}: expected {shape[3]} samples at {SFREQ} Hz, got {len(values['times'])} times at "
                             f"{1 / step:.6g} Hz. Fetch the folders of 250 Hz, or prepare the raw files.")
        tables.append(pd.DataFrame({"stimulus_id": np.repeat(names[part], shape[1]),
                                    "repetition": np.tile(np.arange(shape[1]), shape[0])}))
    if not np.array_equal(times["training"], times["test"]):
        raise ValueError(f"{folder}: expected the same times in both files, got {times['training'][[0, -1]]} and "
                         f"{times['test'][[0, -1]]} s. Fetch them again.")
    trials = pd.concat(tables, ignore_index=True).assign(session=None, run=None, onset=None)
    spec = {"units": "a.u.", "n_times": len(times["test"]), "tmin": float(times["test"][0]), "whitened": True,
            "filtered": "0.01-100 Hz on line"}
    return _Subject(trials, [_Preprocessed(folder)], spec)


@dataclass(frozen=True)
class _Preprocessed:
    """Reads the preprocessed trials of a subject: training, then test, repetitions of an image together."""

    folder: Path

    def __call__(self) -> Iterator[np.ndarray]:
        for part in PARTS:
            path = inside(self.folder, f"preprocessed_eeg_{part}.npy")
            values = read_pickled(path, keys=_PREPROCESSED_KEYS)
            chosen = places(values["ch_names"], wanted=CHANNELS, path=path)
            n_conditions, n_repetitions, _, n_times = values["preprocessed_eeg_data"].shape
            step = max(1, _TRIALS // n_repetitions)
            for start in range(0, n_conditions, step):
                data = opened(values["preprocessed_eeg_data"])[start:start + step]
                yield np.asarray(data, dtype=np.float32)[:, :, chosen].reshape(-1, len(chosen), n_times)
