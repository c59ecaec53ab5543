"""Events of a BIDS dataset: what was shown when."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from brain2img.studies.bids_files import read_table, wanted_values
from brain2img.studies.edf import Timing

log = logging.getLogger(__name__)

Kind = TypeVar("Kind")

TIMINGS = ("auto", "onset", "sample")


def settings_of(kind: type[Kind], given: Mapping[str, Any] | None, *, name: str) -> Kind:
    """Return the settings ``study.<name>`` as a record, those that are not given at their defaults.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(given or {}) - set(known)):
        raise ValueError(f"study.{name}: expected the settings {', '.join(known)}, got {', '.join(unknown)}. Correct "
                         f"study.{name}.")
    return kind(**(given or {}))


@dataclass(frozen=True, kw_only=True)
class Events:
    """How ``*_events.tsv`` is read.

    Parameters
    ----------
    stimulus_column
        Column that tells the picture: its file under ``stimuli/``, or its id. Events without a value are left out.
    where
        Column -> a value or several, of which an event must have one; None for all events.
    timing
        What tells the time of an event: "onset" (s) or "sample" (number of the sample). "auto": the onset, after it was
        compared with the sample where there is one.
    file_column
        Column that names the file of a trial's map (betas of one file per trial); None: a file holds all of a run.
    """

    stimulus_column: str = "stim_file"
    where: Mapping[str, Any] | None = None
    timing: str = "auto"
    file_column: str | None = None

    def __post_init__(self) -> None:
        if self.timing not in TIMINGS:
            raise ValueError(f"study.events.timing: expected one of {TIMINGS}, got {self.timing!r}. Choose one.")

    def read(self, path: Path, *, split_column: str | None = None) -> pd.DataFrame:
        """Return the events chosen by `where`, with those that show no picture.

        Returns
        -------
        pandas.DataFrame
            Columns of the file as strings, and `stimulus` (None where there is none), `onset` and `duration` (s, NaN
            where there is none) and `line` (of the file, from 1).

        Raises
        ------
        ValueError
            If a column is not there, or no event is left.
        """
        table = read_table(path)
        table["line"] = np.arange(len(table)) + 2
        named = {"study.events.stimulus_column": self.stimulus_column, "study.split.column": split_column,
                 "study.events.file_column": self.file_column}
        for setting, column in named.items():
            if column is not None and column not in table and setting != "study.split.column":
                raise ValueError(f"{path}: expected the column {column!r}, got {', '.join(table.columns[:-1])}. Set "
                                 f"{setting} to one of these.")
        for column, value in (self.where or {}).items():
            table = table[_with_values(table, column, wanted_values(value), path=path)]
        for column in ("onset", "duration"):
            table[column] = pd.to_numeric(table[column], errors="coerce") if column in table else np.nan
        return table.assign(stimulus=table[self.stimulus_column]).reset_index(drop=True)

    def samples(self, events: pd.DataFrame, *, sfreq: float, path: Path, when: Timing | None = None) -> np.ndarray:
        """Return at which samples of the recording events were, whole numbers from 0.

        Parameters
        ----------
        events
            Events as `read` returns them.
        sfreq
            Rate of the recording (Hz).
        path
            Their file.
        when
            When the samples were taken, of a recording that may have gaps; -1 is returned for an event in one.

        Raises
        ------
        ValueError
            If a time is missing, or onsets and samples disagree by more than one sample and the rounding of a ms.
        """
        said = pd.to_numeric(events["sample"], errors="coerce") if "sample" in events else None
        if self.timing == "sample":
            if said is None:
                raise ValueError(f"{path}: expected the column 'sample', by study.events.timing, got none. Set "
                                 "study.events.timing=onset.")
            return np.rint(self._known(said, events, column="sample", path=path)).astype(np.int64)
        onsets = self._known(events["onset"], events, column="onset", path=path)
        samples = np.rint(onsets * sfreq).astype(np.int64) if when is None else when.samples(onsets)
        if self.timing == "auto" and said is not None and said.notna().any():
            apart = np.abs(samples - said.to_numpy(dtype=float))
            if np.nanmax(apart) > 1 + 1e-3 * sfreq:
                worst = int(np.nanargmax(apart))
                raise ValueError(
                    f"{path}: expected columns onset and sample that agree at {sfreq:g} Hz, got onset "
                    f"{onsets[worst]:g} s (sample {samples[worst]}) and sample {said.iloc[worst]:g} in line "
                    f"{events['line'].iloc[worst]}. Choose the one that is right with study.events.timing=onset or "
                    "sample.")
        return samples

    def _known(self, values: pd.Series, events: pd.DataFrame, *, column: str, path: Path) -> np.ndarray:
        unknown = events.loc[values.isna() | ~np.isfinite(values.astype(float)), "line"]
        if len(unknown):
            raise ValueError(f"{path}: expected a number in column {column!r} of every event with a picture, got none "
                             f"in line {unknown.iloc[0]} ({len(unknown)} in all). Correct the table, or choose the "
                             "events with study.events.where.")
        return values.to_numpy(dtype=float)


def _with_values(table: pd.DataFrame, column: str, values: Sequence[Any], *, path: Path) -> pd.Series:
    if column not in table:
        raise ValueError(f"{path}: expected the column {column!r}, by study.events.where, got "
                         f"{', '.join(table.columns[:-1])}. Correct study.events.where.")
    chosen = table[column].map(lambda cell: any(_same(cell, value) for value in values))
    if not chosen.any():
        raise ValueError(f"{path}: expected events whose {column} is {' or '.join(map(str, values))}, got only "
                         f"{', '.join(map(str, table[column].dropna().unique()[:8])) or 'none'}. Correct "
                         "study.events.where.")
    return chosen.astype(bool)


def _same(cell: Any, value: Any) -> bool:
    """Tell whether a cell has a value; numbers are compared as numbers."""
    try:
        return str(cell) == str(value) or float(cell) == float(value)
    except (TypeError, ValueError):
        return False
