"""What a report is made of: the scores of ``outputs/scores/<name>/`` and the folders they came from."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.artifacts import Captions, Predictions, Reconstructions, read_json, read_manifest, read_table, reading
from brain2img.data.prepared import PreparedStudy
from brain2img.meaning import MEANING
from brain2img.report.style import CEILING, KIND, MEAN, STIMULI, Column

log = logging.getLogger(__name__)

RECORD_KEYS = ("study", "subject", "modality", "decoder", "condition", "of", "generator", "space", "metric",
               "direction", "gallery", "repetitions", "transductive", "circular", "value", "low", "high", "n", "chance",
               "chance_kind", *MEANING)
DIFFERENCE_KEYS = ("study", "subject", "of", "generator", "metric", "space", "direction", "circular", "decoder",
                   "baseline", "value", "low", "high", "n", "gallery", "transductive", *MEANING)
_TEXT = ("study", "subject", "modality", "decoder", "baseline", "condition", "of", "generator", "space", "metric",
         "direction", "chance_kind", "label", "unit")
_WHOLE = ("gallery", "repetitions", "n", "decimals")
_FLAGS = ("transductive", "circular", "higher_is_better", "descriptive")
_KIND = ["study", "subject", "decoder", "condition", "of", "generator", "space", "metric", "direction", "gallery",
         "transductive"]


def tidy(table: pd.DataFrame, keys: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return the table with every key there and without missing text, counts and flags; scores may stay NaN."""
    table = table.copy()
    for key in keys:
        if key not in table:
            table[key] = None
    for key in table.columns:
        if key in _TEXT:
            table[key] = table[key].astype(object).where(table[key].notna(), "").astype(str)
        elif key in _WHOLE:
            table[key] = pd.to_numeric(table[key], errors="coerce").fillna(0).astype(int)
        elif key in _FLAGS:
            table[key] = np.array([bool(v) and v == v for v in table[key]], dtype=bool)
        elif key in ("value", "low", "high", "chance", "time", "width"):
            table[key] = pd.to_numeric(table[key], errors="coerce").astype(float)
    return table


class Member:
    """One decoder on one study, and the folders of its stages; a folder that is not there is None.

    Parameters
    ----------
    entry
        An entry of ``members`` in ``summary.json``.
    root
        The outputs folder.
    baseline
        Decoder that differences are taken to.
    """

    def __init__(self, entry: Mapping[str, Any], *, root: Path, baseline: str) -> None:
        self.entry = entry
        self.is_baseline = str(entry["decoder"]) == baseline
        self.root = root
        self.experiment = str(entry.get("experiment") or "")
        self.study = str(entry["study"])
        self.modality = str(entry.get("modality") or "")
        self.decoder = str(entry["decoder"])
        self.protocol = str(entry.get("protocol") or "")
        self.headline: dict[str, str] = {
            key: str((entry.get("headline") or {}).get(key) or "") for key in ("space", "metric", "direction")}
        self._kept: dict[str, Any] = {}
        self.seconds: dict[str, float] = dict(entry.get("seconds") or {})

    def _path(self, path: str | None) -> Path | None:
        if not path:
            return None
        found = self.root / path
        if not found.exists():
            log.warning("report: %s is not there; what it would show is left out", found)
            return None
        return found

    @functools.cached_property
    def prepared(self) -> PreparedStudy | None:
        """The prepared study."""
        path = self._path(self.entry.get("prepared"))
        return None if path is None else PreparedStudy(path)

    @functools.cached_property
    def run(self) -> Path | None:
        """The folder of the training run."""
        return self._path(self.entry.get("run"))

    @functools.cached_property
    def importance(self) -> pd.DataFrame | None:
        """The contribution of every voxel, where it was computed."""
        path = self._path(self.entry.get("importance"))
        return None if path is None else read_table(path / "importance.parquet")

    def predictions(self, condition: str) -> Predictions | None:
        """Return the predictions of a condition."""
        path = (self.entry.get("predictions") or {}).get(condition)
        return self.kept(f"predictions {condition}", lambda: self._open(Predictions, path))

    def generators(self, stage: str) -> list[str]:
        """Return the keys of what made "reconstructions" or "captions", the one chosen first in front."""
        return list(self.entry.get(stage) or {})

    def reconstructions(self, condition: str, generator: str | None = None) -> Reconstructions | None:
        """Return the reconstructed images of a condition, by the first reconstructor unless another is named."""
        return self._made(Reconstructions, "reconstructions", condition, generator)

    def captions(self, condition: str, generator: str | None = None) -> Captions | None:
        """Return the captions of a condition, by the first captioner unless another is named."""
        return self._made(Captions, "captions", condition, generator)

    def _made(self, kind: type, stage: str, condition: str, generator: str | None) -> Any:
        key = next(iter(self.generators(stage)), "") if generator is None else generator
        path = (self.entry.get(stage) or {}).get(key, {}).get(condition)
        return self.kept(f"{stage} {key} {condition}", lambda: self._open(kind, path))

    def _open(self, kind: type, path: str | None) -> Any:
        found = self._path(path)
        return None if found is None else kind(found)

    def kept(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gave when it was first asked for under this key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def logs(self) -> list[pd.DataFrame]:
        """Return the CSV logs of all folds and seeds of the run; empty for a decoder that writes none."""
        if self.run is None:
            return []
        paths = sorted([*self.run.glob("logs/**/metrics.csv"), *self.run.glob("fold-*/logs/**/metrics.csv")])
        tables = []
        for path in paths:
            with reading(path, "a CSV table"):
                try:
                    tables.append(pd.read_csv(path))
                except pd.errors.EmptyDataError:
                    log.warning("report: %s is empty; its curves are left out", path)
        return tables

    def seeds(self) -> list[int]:
        """Return the seed the summary states, and every one named in the manifests of the run."""
        found: set[int] = {self.entry["seed"]} if isinstance(self.entry.get("seed"), int) else set()
        if self.run is None:
            return sorted(found)
        for folder in (self.run, *sorted(self.run.glob("fold-*"))):
            if (folder / "manifest.json").exists():
                _collect_seeds(read_manifest(folder).get("config", {}), found)
        return sorted(found)


def _collect_seeds(value: Any, found: set[int]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("seed", "seeds"):
                found.update(s for s in (item if isinstance(item, list) else [item]) if isinstance(s, int))
            else:
                _collect_seeds(item, found)


class Results:
    """The scores of one evaluation and what they were made from.

    Parameters
    ----------
    folder
        ``outputs/scores/<name>/`` with ``summary.json`` and, where there are any, ``scores.parquet``,
        ``time_course.parquet`` and ``repetitions.parquet``.

    Raises
    ------
    ValueError
        If ``summary.json`` is missing, or names no member.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "summary.json"
        self.summary: dict[str, Any] = read_json(
            path, advice="Run the evaluate stage, with overwrite=true where the file is damaged.")
        root = (self.folder / self.summary.get("outputs", "../..")).resolve()
        self.baseline = str(self.summary.get("baseline") or "")
        self.members = [Member(entry, root=root, baseline=self.baseline) for entry in self.summary.get("members", [])]
        if not self.members:
            raise ValueError(f"{path}: expected at least one entry under members, got none. Run evaluate again.")
        self.all_records = records_of(self.summary)
        # the tables show what all repetitions give; fewer stand in the curve over repetitions
        self.records = most_repetitions(self.all_records)
        self._index: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for r in _dicts(self.records):
            key = tuple(r[k] for k in ("study", "decoder", "condition", "of", "metric", "direction",
                                       "transductive"))
            self._index.setdefault(key, []).append(r)
        self.differences = tidy(pd.DataFrame(self.summary.get("differences") or []), DIFFERENCE_KEYS)
        self.scores = self._table("scores")
        self.time_course = self._table("time_course")
        self.repetitions = self._table("repetitions")
        self.regions = self._table("regions")

    def _table(self, name: str) -> pd.DataFrame | None:
        path = self.folder / f"{name}.parquet"
        table = tidy(read_table(path)) if path.exists() else None
        return None if table is None or table.empty else table

    @property
    def studies(self) -> list[str]:
        """Names of the studies, in the order of the members."""
        return list(dict.fromkeys(member.study for member in self.members))

    @property
    def decoders(self) -> list[str]:
        """Names of all decoders, in the order of the members."""
        return list(dict.fromkeys(member.decoder for member in self.members))

    def members_of(self, study: str) -> list[Member]:
        """Return the members of a study, the baseline last."""
        return sorted((m for m in self.members if m.study == study), key=lambda m: m.is_baseline)

    def main(self, study: str) -> Member:
        """Return the first member of a study that is not the baseline, else the baseline."""
        return self.members_of(study)[0]

    def subjects(self, study: str) -> list[str]:
        """Return the names of the subjects with scores."""
        found = self.records.loc[self.records["study"] == study, "subject"]
        return [s for s in dict.fromkeys(found) if s != MEAN]

    def is_simulated(self, study: str) -> bool:
        """Tell whether an ideal observer is known, which only a simulated study has."""
        return bool(((self.records["study"] == study) & (self.records["decoder"] == CEILING)).any())

    def generators(self, study: str, of: str) -> list[str]:
        """Return the keys of what made the "images" or "captions" of a study, the main one first."""
        table = self.records
        found = table[(table["study"] == study) & (table["of"] == of) & (table["decoder"] != STIMULI)]
        return list(dict.fromkeys(found["generator"]))

    def columns(self, study: str, *, of: str | None = None) -> list[Column]:
        """Return all kinds of score of a study (only those about `of`); the headline first, then those of its space."""
        table = self.records[(self.records["study"] == study) & ~self.records["decoder"].isin([CEILING, STIMULI])]
        table = table if of is None else table[table["of"] == of]
        found = [Column.of_line(line) for line in _dicts(table.drop_duplicates(list(KIND)))]
        head = self.main(study).headline

        def place(column: Column) -> tuple[bool, ...]:
            return (column.transductive, column.metric != head["metric"] or column.space != head["space"]
                    or column.direction != head["direction"], column.direction not in (head["direction"], ""),
                    column.space != head["space"], column.space != "")

        return sorted(found, key=place)

    def headline(self, study: str) -> Column | None:
        """Return the kind of score the study is judged by, with the largest gallery; None where it has no record.

        A circular score is never the one.
        """
        head = self.main(study).headline
        found = [c for c in self.columns(study) if not c.transductive and c.metric == head["metric"]
                 and c.direction == head["direction"] and not self.is_circular(study, c)]
        # the space of an image metric may be written as "" or as the space the images were decoded in
        found = [c for c in found if c.space == head["space"]] or found
        return max(found, key=lambda c: c.gallery, default=None)

    def is_circular(self, study: str, column: Column) -> bool:
        """Tell whether a kind of score is circular for any decoder of a study."""
        table = self.records
        return bool(table.loc[column.among(table) & (table["study"] == study), "circular"].any())

    def record(self, study: str, decoder: str, *, column: Column, condition: str = "decoded",
               subject: str | None = None, generator: str | None = None) -> dict[str, Any] | None:
        """Return one record, or None.

        Parameters
        ----------
        study, decoder, column, condition
            Which score. The ceiling is found in whatever space it stands.
        subject
            Name of a subject; None takes the mean over subjects, or the only subject.
        generator
            Key of the reconstructor or captioner; None takes the first that has the score.
        """
        found = self._index.get((study, decoder, condition, column.of, column.metric, column.direction,
                                 column.transductive), [])
        if generator is not None and decoder != STIMULI:
            found = [r for r in found if r["generator"] == generator]
        if decoder != CEILING:
            found = [r for r in found if r["space"] == column.space and r["gallery"] == column.gallery]
        else:
            found = [r for r in found if r["gallery"] == column.gallery] or found
        return _of_subject(found, subject)

    def difference(self, study: str, decoder: str, *, column: Column, subject: str | None = None
                   ) -> dict[str, Any] | None:
        """Return the paired difference of a decoder to the baseline, or None."""
        table = self.differences
        found = table[(table["study"] == study) & (table["decoder"] == decoder) & (table["metric"] == column.metric)
                      & (table["space"] == column.space) & (table["direction"] == column.direction)
                      & (table["of"] == column.of)]
        return _of_subject(_dicts(found), subject)


def _dicts(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _of_subject(records: list[dict[str, Any]], subject: str | None) -> dict[str, Any] | None:
    """Return the record of a subject; for None that of the mean, or of the only subject there is."""
    rows = [r for r in records if r["subject"] == (subject or MEAN)]
    if not rows and subject is None and len({r["subject"] for r in records}) == 1:
        rows = records
    return rows[0] if rows else None


def records_of(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Return the records of a summary as a table with `RECORD_KEYS`.

    Raises
    ------
    ValueError
        If they do not say what each score means.
    """
    table = pd.DataFrame(summary.get("records") or [])
    if len(table) and not {*MEANING} <= {*table.columns}:
        raise ValueError(f"summary of {summary.get('name')!r}: expected scores that say what they mean "
                         f"({', '.join(MEANING)}), got some of another version. Evaluate again with overwrite=true.")
    return tidy(table, RECORD_KEYS)


def most_repetitions(records: pd.DataFrame) -> pd.DataFrame:
    """Keep, of every kind of score, the record with the most averaged repetitions."""
    return (records.sort_values("repetitions", ascending=False, kind="stable").drop_duplicates(_KIND)
            .sort_index().reset_index(drop=True))
