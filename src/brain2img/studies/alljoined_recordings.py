"""Reads the two forms of Alljoined-1.6M, session by session: EDF recordings and flat preprocessed files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.data.pickled import read_pickled
from brain2img.studies.edf import Timing, open_edf
from brain2img.studies.folder_listing import spelled
from brain2img.studies.marks import Quality, good_events
from brain2img.studies.recordings import naming, opened, places

#: The 32 channels in the order of the published files (which call the third "Afz"): so the ``channels.tsv`` of all
#: 1,525 recordings at https://github.com/nemarDatasets/nm000134; the list in its README is not that of the recordings.
CHANNELS = tuple("""
    Cz FCz AFz Fp1 F5 F1 CP5 CP3 CP1 P1 P3 P5 P7 PO7 PO3 O1
    Pz POz Oz O2 PO4 PO8 P8 P6 P4 P2 CP2 CP4 CP6 F2 F6 Fp2
""".split())
#: Rates of the recording and of what is prepared (Hz); first sample and length of an epoch of the recording.
RAW_SFREQ, SFREQ = 256.0, 250.0
RAW_TMIN = round(-0.2 * RAW_SFREQ)
RAW_N_TIMES = round(1.0 * RAW_SFREQ) - RAW_TMIN + 1
#: Partition of a presentation -> the flat file that holds it.
PARTS = {"stim_test": "preprocessed_eeg_test_flat.npy", "stim_train": "preprocessed_eeg_training_flat.npy"}
_KEYS = ("preprocessed_eeg_data", "ch_names", "times")
_CHUNK = 500


@dataclass(frozen=True)
class Marker:
    """A picture's marker: partition and number of the image, sample and time (s) at which it was shown.

    `reason` says why its trial is to be left out: "" where it is not.
    """

    part: str
    number: int
    sample: int
    onset: float = np.nan
    reason: str = ""


def open_block(path: Path, *, unit: str | None = None) -> tuple[Any, Timing]:
    """Open a recording without reading the signals; see `brain2img.studies.edf.open_edf`.

    Raises
    ------
    ValueError
        If it is damaged, of another rate, or lacks channels or their unit.
    """
    raw, timing = open_edf(path, channels=CHANNELS, unit=unit)
    if abs(raw.info["sfreq"] - RAW_SFREQ) > 1e-3:
        raise ValueError(f"{path}: expected {RAW_SFREQ:g} samples per second, got {raw.info['sfreq']:g}. Give the "
                         "recordings as published.")
    return raw, timing


def markers(path: Path, *, quality: Quality) -> tuple[list[Marker], int]:
    """Return the pictures' markers of a recording in order, and its number of samples.

    Annotations read "<partition>,<number of the image>,-1,<number of the marker>"; those of oddballs and responses are
    passed over.
    """
    raw, timing = open_block(path, unit=quality.unit)
    found = []
    for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True):
        part, *fields = str(text).split(",")
        if part not in PARTS:
            continue
        if not fields or not fields[0].isdigit():
            raise ValueError(f"{path}: expected annotations like 'stim_train,123,-1,45', got {str(text)!r}. "
                             "Fetch it again.")
        found.append((part, int(fields[0]), round(onset * RAW_SFREQ)))
    samples = np.array([sample for *_, sample in found], dtype=np.int64)
    reasons = good_events(raw, samples, tmin=RAW_TMIN / RAW_SFREQ, tmax=(RAW_TMIN + RAW_N_TIMES - 1) / RAW_SFREQ,
                          policy=quality.bad_spans, what=str(path))
    return [Marker(*marker, onset=float(time), reason=reason) for marker, time, reason in zip(
        found, timing.times(samples), reasons, strict=True)], int(raw.n_times)


@dataclass(frozen=True, eq=False)
class EDFSession:
    """Reads the blocks of one session one by one: (file, samples of the markers that are kept).

    `unit` is that of channels whose header states none.
    """

    blocks: tuple[tuple[Path, np.ndarray], ...]
    unit: str | None = None

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield one block ``(n, 32, T)`` float32 (V) for each block."""
        import mne

        for path, samples in self.blocks:
            raw, _ = open_block(path, unit=self.unit)
            chosen = places(raw.ch_names, wanted=CHANNELS, path=path)
            with naming(path):
                signals = raw.get_data(picks=chosen)
            for start in range(0, len(samples), _CHUNK):
                window = samples[start:start + _CHUNK, None] + RAW_TMIN + np.arange(RAW_N_TIMES)
                epochs = signals[:, window].transpose(1, 0, 2)
                epochs -= epochs[..., :1 - RAW_TMIN].mean(axis=-1, keepdims=True)
                yield mne.filter.resample(epochs, up=SFREQ, down=RAW_SFREQ, npad="auto", window="auto", pad="edge",
                                          verbose="WARNING").astype(np.float32)


def check_flat(path: Path, *, n: int, table: Path) -> np.ndarray:
    """Check a flat file against the number of trials that `table` has kept, and return its times ``(T,)`` (s).

    Raises
    ------
    ValueError
        If the file is damaged, or its trials, channels or times are not those expected.
    """
    values = read_pickled(path, keys=_KEYS)
    places(values["ch_names"], wanted=CHANNELS, path=path)
    shape, times = values["preprocessed_eeg_data"].shape, np.asarray(values["times"], dtype=float)
    if len(shape) != 3 or shape[0] != n:
        raise ValueError(f"{path}: expected {n} trials, as {table.name} has kept, x channels x samples, got {shape}. "
                         "Fetch both again.")
    if shape[1:] != (len(values["ch_names"]), len(times)) or not np.allclose(np.diff(times) * SFREQ, 1, atol=1e-3):
        raise ValueError(f"{path}: expected {len(values['ch_names'])} channels x {len(times)} samples at {SFREQ:g} Hz, "
                         f"got {shape[1:]} from {times[0]:g} to {times[-1]:g} s. Fetch the folders of 250 Hz, or "
                         "prepare from the recordings with study.form=edf.")
    return times


@dataclass(frozen=True, eq=False)
class FlatSession:
    """Reads the trials of one session from the flat files: partition of each trial, and its place in that file."""

    folder: Path
    parts: tuple[str, ...]
    rows: np.ndarray

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, 32, T)`` float32 in the order of the trials."""
        for start in range(0, len(self.rows), _CHUNK):
            parts, rows = np.array(self.parts[start:start + _CHUNK]), self.rows[start:start + _CHUNK]
            block: np.ndarray | None = None
            for part in dict.fromkeys(parts.tolist()):
                path = spelled(self.folder / PARTS[part], under=self.folder)
                values = read_pickled(path, keys=_KEYS)
                chosen = places(values["ch_names"], wanted=CHANNELS, path=path)
                some = opened(values["preprocessed_eeg_data"])[rows[parts == part]][:, chosen].astype(np.float32)
                block = np.empty((len(rows), *some.shape[1:]), dtype=np.float32) if block is None else block
                block[parts == part] = some
            assert block is not None
            yield block
