"""Reads the two forms of THINGS-MEG, session by session: published epochs (FIF) and raw recordings (CTF)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.data.amplitudes import spread
from brain2img.simulate.sensors import helmet
from brain2img.studies.marks import honour_bad_channels
from brain2img.studies.recordings import check_multipliers, naming, places

#: Window (s) and rate (Hz) of the published epochs, rate of the recording, band (Hz).
TMIN, TMAX, SFREQ, RAW_SFREQ, BAND = -0.1, 1.3, 200.0, 1200.0, (0.1, 40.0)
N_TIMES = round((TMAX - TMIN) * SFREQ) + 1
#: Channel of the triggers, and their value for a picture.
TRIGGERS, TRIGGER = "UPPT001", 64
#: The 271 gradiometers in alphabetical order, as the CTF files have them.
CHANNELS = tuple(helmet()[0])
_DROPOUT = 0.2  # s
_CHUNK = 100
#: Least and greatest spread of z-scored signals, which is about 1.
_Z_SCORED = (0.05, 50.0)


@dataclass(frozen=True, eq=False)
class EpochsSession:
    """Reads the trials of one session from the published epochs: those in `rows`, of some channels.

    `any_amplitude` lets pass what does not look z-scored.
    """

    path: Path
    rows: np.ndarray
    channels: tuple[str, ...] = CHANNELS
    any_amplitude: bool = False

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, 271, T)`` float32 of the trials in `rows`, in that order."""
        epochs = open_epochs(self.path)
        chosen = places(epochs.ch_names, wanted=self.channels, path=self.path)
        for start in range(0, len(self.rows), _CHUNK):
            with naming(self.path):
                block = epochs[self.rows[start:start + _CHUNK]].get_data(copy=False, verbose="WARNING")
            block = block[:, chosen]
            found = spread(block, ch_types=("mag",) * len(chosen))["mag"]
            if not self.any_amplitude and not _Z_SCORED[0] <= found <= _Z_SCORED[1]:
                raise ValueError(f"{self.path}: expected z-scored signals, which spread by about 1, got {found:.3g} "
                                 "(robust standard deviation, median over channels). Give the epochs as published, "
                                 "prepare from the recordings with study.form=ctf, or go on with "
                                 "study.quality.amplitudes=keep.")
            yield block.astype(np.float32)


@dataclass(frozen=True, eq=False)
class CTFSession:
    """Reads the runs of one session one by one.

    Parameters
    ----------
    runs
        Folder, samples of the onsets that are kept, triggers that must be there, start of a drop-out (s) or None.
    channels
        Those that are read.
    bad_channels
        What becomes of those marked as bad: `brain2img.studies.marks.honour_bad_channels`.
    """

    runs: tuple[tuple[Path, np.ndarray, int, float | None], ...]
    channels: tuple[str, ...] = CHANNELS
    bad_channels: str = "keep"

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield one block ``(n, 271, T)`` float32 (T) for each run."""
        import mne

        first, step = round(TMIN * RAW_SFREQ), round(RAW_SFREQ / SFREQ)
        length = round((TMAX - TMIN) * RAW_SFREQ) + 1
        for path, onsets, n_triggers, dropout in self.runs:
            raw = open_ctf(path)
            chosen = places(raw.ch_names, wanted=self.channels, path=path)
            honour_bad_channels(raw, policy=self.bad_channels, what=str(path))
            with naming(path):
                signals = raw.get_data(picks=[*chosen, raw.ch_names.index(TRIGGERS)])
            _check_triggers(signals[-1], n_triggers, path=path)
            signals = signals[:-1]
            if dropout is not None:
                start = round(dropout * RAW_SFREQ)
                signals[:, start:start + round(_DROPOUT * RAW_SFREQ)] = np.median(signals, axis=1, keepdims=True)
            signals = mne.filter.filter_data(signals, RAW_SFREQ, *BAND, copy=False, verbose="WARNING")
            block = np.empty((len(onsets), len(signals), N_TIMES), dtype=np.float32)
            for trial, onset in zip(block, onsets, strict=True):
                epoch = signals[:, onset + first:onset + first + length]
                trial[:] = epoch[:, ::step] - epoch[:, :1 - first].mean(axis=1, keepdims=True)
            del signals
            yield block


def open_epochs(path: Path) -> Any:
    """Open published epochs without reading the signals."""
    import mne

    if not path.is_file():
        raise ValueError(f"{path}: expected the published epochs of this subject, got no such file. Fetch it, or leave "
                         "the subject out of study.subjects.")
    with naming(path):
        epochs = mne.read_epochs(path, preload=False, verbose="WARNING")
    check_multipliers(epochs.info, chosen=range(len(epochs.ch_names)), path=path)
    return epochs


def open_ctf(path: Path) -> Any:
    """Open a CTF recording without reading the signals."""
    import mne

    if not path.is_dir():
        raise ValueError(f"{path}: expected a recording, by sample_attributes_P*.csv, got no such folder. Fetch this "
                         "run, or leave the subject out of study.subjects.")
    if path.suffix != ".ds":
        raise ValueError(f"{path}: expected a folder that ends in .ds, as MNE wants it, got {path.suffix!r}. Rename "
                         "it.")
    with naming(path):
        raw = mne.io.read_raw_ctf(path, verbose="WARNING")
    if abs(raw.info["sfreq"] - RAW_SFREQ) > 1e-3:
        raise ValueError(f"{path}: expected {RAW_SFREQ:g} samples per second, got {raw.info['sfreq']:g}. Give the "
                         "recordings as published.")
    places(raw.ch_names, wanted=CHANNELS, path=path)
    if TRIGGERS not in raw.ch_names:
        raise ValueError(f"{path}: expected the channel {TRIGGERS} of the triggers, got none. Give the recordings as "
                         "published.")
    return raw


def _check_triggers(channel: np.ndarray, n: int, *, path: Path) -> None:
    begins = np.diff(channel == TRIGGER, prepend=False) & (channel == TRIGGER)
    if begins.sum() != n:
        raise ValueError(f"{path}: expected {n} triggers of value {TRIGGER} by its events.tsv, got {begins.sum()}. "
                         "Fetch both again.")
