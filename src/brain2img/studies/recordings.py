"""What the readers of EEG and MEG recordings share: folders, damaged files, channels by name, large arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.data.pickled import ArrayInFile
from brain2img.data.reading import reading


def check_arguments(*, form: str, forms: Sequence[str], subjects: Sequence[int]) -> None:
    """Refuse a form that is none of `forms`, and subjects that are none or the same.

    Raises
    ------
    ValueError
        Naming the argument.
    """
    if form not in forms:
        raise ValueError(f"study.form: expected one of {tuple(forms)}, got {form!r}. Choose one of these.")
    if not subjects or len(set(subjects)) != len(subjects):
        raise ValueError(f"study.subjects: expected different numbers, e.g. [1,2,3], got {list(subjects)}. "
                         "Correct study.subjects.")


def raw_folder(raw: Path | None, *, of: str, notes: str) -> Path:
    """Return the folder of raw files that was given, absolute.

    Raises
    ------
    ValueError
        If there is none.
    """
    if raw is None or not Path(raw).is_dir():
        raise ValueError(f"raw: expected the folder of {of}, got "
                         f"{'nothing' if raw is None else f'{raw}, which is no folder'}. Give raw=<folder>; "
                         f"data_prep/{notes} says where to get it.")
    return Path(raw).resolve()


def naming(path: Path) -> AbstractContextManager[None]:
    """Turn whatever MNE raises of a file into a ValueError that names it and says why."""
    return reading(path, what="recording", cure="Fetch it again, with all its parts.")


def checked_samples(samples: pd.Series, *, n_times: int, tmin: int, tmax: int, path: Path,
                    recording: Path) -> np.ndarray:
    """Return the samples of a recording's events as whole numbers, refusing what cannot be.

    Parameters
    ----------
    samples
        One for each line of a table of events, in its order.
    n_times
        Samples of the recording.
    tmin, tmax
        First and last sample of a trial, relative to its event.
    path, recording
        The table and the recording, for messages. The first line of the table is its line 2, after the header.

    Raises
    ------
    ValueError
        Naming the table and the line: no sample or no number, no whole number, negative, two events on one sample,
        earlier than the event before, or a trial that is cut off by an end of the recording.
    """
    numbers = pd.to_numeric(samples, errors="coerce").to_numpy(dtype=float)
    before = np.concatenate([[-np.inf], numbers[:-1]])
    for wrong, expected in (
            (~np.isfinite(numbers), "a number"), (numbers % 1 != 0, "a whole number"),
            (numbers < 0, "0 or more"), (numbers == before, "another one than that of the event before"),
            (numbers < before, "a later one than that of the event before"),
            (numbers + tmin < 0, f"at least {-tmin}, where a trial begins in the recording"),
            (numbers + tmax >= n_times, f"less than {n_times - tmax}, where a trial ends in {recording.name}")):
        if wrong.any():
            line = int(np.argmax(wrong))
            value = samples.iloc[line]
            raise ValueError(f"{path}, line {line + 2}: expected {expected} as the sample of the event, got "
                             f"{'none' if pd.isna(value) else value} ({wrong.sum()} such of {len(samples)} events). "
                             "Correct the table, or fetch it and the recording again.")
    return numbers.astype(np.int64)


def places(ch_names: Sequence[str], *, wanted: Sequence[str], path: Path) -> list[int]:
    """Return where the wanted channels are among those of a file, whatever their order there.

    The serial number that CTF appends to a name ("MLC11-1609") does not count, nor do capitals ("Afz").

    Raises
    ------
    ValueError
        If channels are missing, have other names or are there twice, naming the file and some of them.
    """
    names = [re.sub(r"-\d+$", "", name).lower() for name in ch_names]
    missing = [name for name in wanted if names.count(name.lower()) != 1]
    if missing:
        raise ValueError(f"{path}: expected the {len(wanted)} channels of the study, each once, got {len(missing)} of "
                         f"them missing or twice ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}) among "
                         f"{len(names)}. Give the files as published.")
    return [names.index(name.lower()) for name in wanted]


def check_multipliers(info: Any, *, chosen: Sequence[int], path: Path) -> None:
    """Refuse a FIF file whose channels are in multiples of their unit, which MNE reads as the unit itself.

    Raises
    ------
    ValueError
        Naming the file and the first such channel.
    """
    for channel in (info["chs"][i] for i in chosen):
        if int(channel["unit_mul"]):
            raise ValueError(f"{path}: expected channels in their unit, got {channel['ch_name']} in 10^"
                             f"{int(channel['unit_mul'])} of it (unit_mul). Scale the signals, and set unit_mul to 0.")


def cap_positions(ch_names: Sequence[str]) -> np.ndarray:
    """Return where EEG channels are on MNE's template head, ``(C, 3)`` in metres, head coordinates."""
    import mne

    info = mne.create_info(list(ch_names), 1.0, "eeg", verbose="WARNING").set_montage("colin27_1005", verbose="WARNING")
    return np.array([channel["loc"][:3] for channel in info["chs"]])


def opened(array: Any) -> np.ndarray:
    """Return an array of a pickled dictionary, mapped where it was left in its file."""
    return array.open() if isinstance(array, ArrayInFile) else np.asarray(array)
