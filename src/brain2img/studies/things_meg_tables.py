"""The tables of THINGS-MEG: the trials of a subject, and the events of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.data.reading import reading
from brain2img.studies.folder_listing import inside

#: Event number of a catch trial in the published files.
CATCH = 999999
COLUMNS = ("trial_type", "session_nr", "run_nr", "image_path", "things_image_nr")


def attributes_file(raw: Path, subject: int) -> Path:
    """Return where the table of a subject's trials is."""
    return inside(raw, "sourcedata", f"sample_attributes_P{subject}.csv")


def attributes(raw: Path, subject: int) -> pd.DataFrame:
    """Return the table of a subject's trials, in the order of presentation."""
    path = attributes_file(raw, subject)
    if not path.is_file():
        raise ValueError(f"{path}: expected the table of this subject's trials, got no such file. Fetch it from "
                         "sourcedata/ of OpenNeuro ds004212.")
    with reading(path, what="table"):
        table = pd.read_csv(path)
    check_columns(table, path=path)
    return table


def check_columns(table: pd.DataFrame, *, path: Path) -> None:
    """Refuse a table of trials without its columns, or with trials of another type."""
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got none of {', '.join(missing)}. "
                         "Give the table as published.")
    unknown = set(table["trial_type"]) - {"exp", "test", "catch"}
    if unknown:
        raise ValueError(f"{path}: expected trials of type exp, test or catch, got {sorted(map(str, unknown))}. "
                         "Give the table as published.")


def trials_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return part (exp, test, catch), stimulus_id, session, run, and onset and duration (s) if the table has them."""
    trials = pd.DataFrame({
        "part": table["trial_type"], "stimulus_id": [Path(str(path)).stem for path in table["image_path"]],
        "session": table["session_nr"].astype(int), "run": table["run_nr"].astype(int)})
    if {"image_on", "image_off"} <= set(table):
        trials["onset"] = table["image_on"].astype(float)
        trials["duration"] = (table["image_off"] - table["image_on"]).astype(float)
    return trials


def events_of(path: Path, *, n: int) -> pd.DataFrame:
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


def numbers_of(table: pd.DataFrame) -> np.ndarray:
    """Return the event number of every trial of a table."""
    return table["things_image_nr"].where(table["trial_type"] != "catch", CATCH).to_numpy()


def check_numbers(expected: np.ndarray, got: np.ndarray, *, path: Path) -> None:
    """Refuse event numbers that are not those of the table of trials."""
    wrong = np.flatnonzero(expected != got)
    if len(wrong):
        first = wrong[0]
        raise ValueError(f"{path}: expected the images of sample_attributes_P*.csv, got other numbers in {len(wrong)} "
                         f"of {len(got)} trials (trial {first}: {expected[first]:g}, not {got[first]:g}). Fetch both "
                         "again.")
