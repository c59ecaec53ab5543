"""Writes a simulated study in the layouts of THINGS-EEG2, for tests and benchmarks: the known answer, as raw files."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
from PIL import Image

from brain2img.data.prepared import PreparedStudy
from brain2img.simulate.sensors import EEG_CHANNELS

SFREQ, TMIN, N_TIMES, TARGET = 1000, -0.2, 1201, 99999


def write_form(folder: Path, study: PreparedStudy, *, form: str) -> None:
    """Write `study` in a form of the published study ("raw", "preprocessed"), pictures every 0.2 s."""
    if form == "raw":
        write_things_eeg2(study, folder, soa=0.2)
    else:
        write_preprocessed(study, folder)


def write_things_eeg2(study: PreparedStudy, raw: Path, *, soa: float = 1.25, target_every: int = 100,
                      pause: float = 0.0, channels: Sequence[str] = EEG_CHANNELS) -> pd.DataFrame:
    """Write the images and the raw recordings: ``sub-<ss>/ses-<ss>/raw_eeg_{training,test}.npy``, at any size.

    Parameters
    ----------
    study
        The prepared simulated study, of EEG recorded at 1000 Hz from -0.2 to (but without) 1.001 s, all 63 channels.
        Its training and validation stimuli become training images, trials in their order.
    raw
        Folder to write into.
    soa
        Seconds from one picture to the next. From 1.201 on, the recording holds every epoch whole; below, each only
        until the next begins, as after 0.2 s in the published study.
    target_every
        After so many pictures comes a target, code 99999.
    pause
        Seconds without a picture after each target; the published recordings have one after every sequence of 20.
    channels
        Order of the channels in the files; "stim" is the last.

    Returns
    -------
    pandas.DataFrame
        One line per stimulus: stimulus_id, part ("training" or "test"), name (of the image, without ending), code.
    """
    images = _write_images(study, raw / "image_set")
    codes = images.set_index("stimulus_id")["code"]
    for subject in study.subjects:
        places = _places(study, subject, channels)
        trials = study.trials_of(subject)
        for number, (_, of_session) in enumerate(trials.groupby("session", sort=False), start=1):
            folder = raw / "raw_data" / subject / f"ses-{number:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            for part, some in (("training", of_session[of_session["split"] != "test"]),
                               ("test", of_session[of_session["split"] == "test"])):
                onsets, targets, n = _timing(len(some), soa=soa, target_every=target_every, pause=pause)
                shape = (len(channels) + 1, n)
                values = {"raw_eeg_data": _Later(shape), "ch_names": [*channels, "stim"], "sfreq": SFREQ,
                          "ch_types": ["eeg"] * len(channels) + ["stim"], "highpass": 0.01, "lowpass": 100}
                path = folder / f"raw_eeg_{part}.npy"
                offset = _begin(path, values, n_bytes=8 * shape[0] * n)
                data = np.memmap(path, mode="r+", offset=offset, shape=(8 * shape[0] * n,), dtype=np.uint8)
                recording = np.ndarray(shape, np.float64, buffer=data)
                _fill(recording, study.signals(subject), some["row"].to_numpy(), places=places, onsets=onsets,
                      reach=round(soa * SFREQ))
                recording[-1, onsets] = codes[some["stimulus_id"]].to_numpy()
                recording[-1, targets] = TARGET
    return images


def write_preprocessed(study: PreparedStudy, raw: Path, *, channels: Sequence[str] = EEG_CHANNELS,
                       seed: int = 20200220) -> pd.DataFrame:
    """Write the images and the public folders: ``sub-<ss>/preprocessed_eeg_{training,test}.npy``, plain pickles.

    The published chain, with scikit-learn and SciPy: epochs at 250 Hz, cut to 0 to 0.996 s, every session whitened by
    the mean over its training images, repetitions in a random order that all images share, float64.

    Parameters
    ----------
    study, raw, channels
        As for `write_things_eeg2`; the stimuli of a part must have been shown equally often. A subject is held in
        memory.
    seed
        Seed of the order of repetitions.

    Returns
    -------
    pandas.DataFrame
        As from `write_things_eeg2`.
    """
    from scipy.linalg import fractional_matrix_power
    from sklearn.discriminant_analysis import _cov

    images = _write_images(study, raw / "image_set")
    for subject in study.subjects:
        places = _places(study, subject, channels)
        trials = study.trials_of(subject).merge(images, on="stimulus_id")
        signals = np.empty((len(trials), len(channels), 250))
        for _, of_session in trials.groupby("session", sort=False):
            rows = of_session["row"].to_numpy()
            x = resampled(study.signals(subject)[rows])[:, places, 50:]
            training = x[of_session["part"].to_numpy() == "training"]
            sigma = np.mean([_cov(trial.T, shrinkage="auto") for trial in training], axis=0)
            signals[rows] = fractional_matrix_power(sigma, -0.5) @ x
        folder = raw / "Preprocessed_data_250Hz" / subject
        folder.mkdir(parents=True, exist_ok=True)
        for part, of_part in trials.sort_values("row").groupby("part"):
            rows = np.array([group["row"].tolist() for _, group in of_part.groupby("code")])
            order = np.random.default_rng(seed).permutation(rows.shape[1])
            values = {"preprocessed_eeg_data": signals[rows[:, order]], "ch_names": list(channels),
                      "times": np.round(np.arange(-50, 250) / 250, 3)}
            with (folder / f"preprocessed_eeg_{part}.npy").open("wb") as file:
                pickle.dump(values, file, protocol=4)
    return images


def resampled(epochs: np.ndarray) -> np.ndarray:
    """Return ``(n, C, 1201)`` epochs at 1000 Hz as MNE brings them to 250 Hz, ``(n, C, 300)``, baseline taken off."""
    info = mne.create_info(epochs.shape[1], SFREQ, "eeg")
    made = mne.EpochsArray(epochs.astype(np.float64), info, tmin=TMIN, baseline=(None, 0), verbose="error")
    return np.asarray(made.resample(250, verbose="error").get_data(copy=False))


def _places(study: PreparedStudy, subject: str, channels: Sequence[str]) -> list[int]:
    spec = study.specs[subject]
    assert (spec.sfreq, spec.n_times, round(spec.tmin, 3)) == (SFREQ, N_TIMES, TMIN), "1000 Hz, -0.2 to 1.001 s"
    return [spec.ch_names.index(name) for name in channels]


def _timing(n_trials: int, *, soa: float, target_every: int, pause: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the samples at which pictures and targets come, and the length of the recording."""
    step, before = round(soa * SFREQ), round(-TMIN * SFREQ)
    ended = np.arange(n_trials) // target_every  # sequences before each picture
    onsets = before + (np.arange(n_trials) + ended) * step + ended * round(pause * SFREQ)
    targets = onsets[target_every - 1::target_every] + step
    n_targets = n_trials // target_every
    return onsets, targets, before + (n_trials + n_targets) * step + n_targets * round(pause * SFREQ) + N_TIMES


def _fill(recording: np.ndarray, signals: np.ndarray, rows: np.ndarray, *, places: list[int], onsets: np.ndarray,
          reach: int) -> None:
    """Write trials into the zeros of a continuous recording ``(C + 1, n)`` float64, volts, each once.

    `reach` is how many samples of a trial are written after its onset unless it is the last.
    """
    before, end = round(-TMIN * SFREQ), 0
    for row, onset in zip(rows, onsets, strict=True):
        start = max(onset - before, end)  # what precedes a picture belongs to the picture before
        end = onset + (N_TIMES - before if onset == onsets[-1] else min(reach, N_TIMES - before))
        recording[:-1, start:end] = signals[row][places, start - onset + before:end - onset + before]


class _Later:
    """Pickles as a float64 array of a shape whose content is not there yet: `_begin` leaves room for it."""

    mark = b"what the array holds comes here!" * 8  # over 255 bytes, which are pickled in another way

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = np.empty(0).__reduce__()
        return *reduced[:2], (1, self.shape, np.dtype(np.float64), False, self.mark)


def _begin(path: Path, values: dict[str, Any], *, n_bytes: int) -> int:
    """Write what `np.save` writes of a dictionary with a `_Later`, zeros for its content; returns where they begin.

    A recording of the real size is thus never in memory. Protocol 3, that of the published files, has no frames, and
    of large bytes their length alone goes before them.
    """
    mark = b"B" + struct.pack("<I", len(_Later.mark)) + _Later.mark
    head, tail = pickle.dumps(np.array(values, dtype=object), protocol=3).split(mark)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(head + b"B" + struct.pack("<I", n_bytes))
        offset = file.tell()
        file.seek(n_bytes, os.SEEK_CUR)
        file.write(tail)
    return offset


def _write_images(study: PreparedStudy, folder: Path) -> pd.DataFrame:
    """Write images, ``image_metadata.npy`` and ``things_concepts.tsv``; returns names and codes."""
    splits = study.trials.drop_duplicates("stimulus_id").set_index("stimulus_id")["split"]
    table = study.stimulus_table[study.stimulus_table["stimulus_id"].isin(splits.index)]
    table = table.assign(concept=table["concept"].str.replace(" ", "_"),
                         part=np.where(table["stimulus_id"].map(splits) == "test", "test", "training"))
    lines: list[pd.DataFrame] = []
    metadata: dict[str, list[str]] = {}
    for part, short in (("training", "train"), ("test", "test")):
        mine = table[table["part"] == part].sort_values(["concept", "stimulus_id"], ignore_index=True)
        number, within = mine.groupby("concept").ngroup() + 1, mine.groupby("concept").cumcount() + 1
        mine["folder"] = [f"{n:05d}_{concept}" for n, concept in zip(number, mine["concept"], strict=True)]
        letter = "s" if part == "test" else "b"  # as in most names of THINGS
        mine["name"] = [f"{concept}_{n:02d}{letter}" for n, concept in zip(within, mine["concept"], strict=True)]
        mine["code"] = np.arange(1, len(mine) + 1)
        pictures = study.stimuli_of(mine["stimulus_id"].tolist())
        for row, (place, name) in enumerate(zip(mine["folder"], mine["name"], strict=True)):
            path = folder / f"{part}_images" / place / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.images([row])[0]).save(path, quality=98, subsampling=0)
        metadata |= {f"{short}_img_concepts": mine["folder"].tolist(), f"{short}_img_concepts_THINGS":
                     mine["folder"].tolist(), f"{short}_img_files": (mine["name"] + ".jpg").tolist()}
        lines.append(mine)
    np.save(folder / "image_metadata.npy", np.array(metadata, dtype=object), allow_pickle=True)
    images = pd.concat(lines, ignore_index=True)
    images.drop_duplicates("concept")[["concept", "category"]].rename(
        columns={"concept": "uniqueID", "category": "Top-down Category (manual selection)"}).to_csv(
        folder / "things_concepts.tsv", sep="\t", index=False)
    return images[["stimulus_id", "part", "name", "code"]]
