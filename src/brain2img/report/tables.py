"""Tables of scores: for the page, and the small one that ends a pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from brain2img.report.reading import Results, most_repetitions, records_of
from brain2img.report.sentences import is_alarming
from brain2img.report.style import (
    BASELINE,
    CEILING,
    CONDITION_LABELS,
    CONDITIONS,
    CONTROLS,
    DIRECTION_LABELS,
    MEAN,
    Column,
    column_label,
    decoder_label,
    interval,
    is_lower_better,
    metric_label,
    number,
)

if TYPE_CHECKING:
    from rich.table import Table

MAIN_COLUMNS = 8
"""More columns than this do not fit a page; the others stand in the full list below the table."""


@dataclass(frozen=True)
class Cell:
    """One value of a table: text, its interval, and marks."""

    value: str = "–"
    interval: str = ""
    mark: str = ""
    best: bool = False
    alarm: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table; `kind` is "decoded", "control", "true", "ceiling" or "chance"."""

    decoder: str
    label: str
    condition: str
    kind: str
    cells: list[Cell]
    subject: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores of one study."""

    heads: list[tuple[str, str]]
    rows: list[Row]
    chance: list[str]
    subjects: list[Row] = field(default_factory=list)
    others: list[dict[str, str]] = field(default_factory=list)


def score_table(results: Results, study: str) -> ScoreTable:
    """Return the table of one study: decoders and conditions by kinds of score, means over subjects."""
    columns = results.columns(study)
    head = results.main(study).headline
    main = [c for c in columns if c.direction in (head["direction"], "")
            and (c.space in (head["space"], "") or c.metric == "attribute_accuracy")][:MAIN_COLUMNS]
    main = main or columns[:MAIN_COLUMNS]
    decoders = [m.decoder for m in results.members_of(study)]
    rows = []
    for condition in CONDITIONS:
        for decoder in dict.fromkeys(decoders):
            row = _row(results, study, decoder, condition=condition, columns=main)
            if row is not None:
                rows.append(row)
    ceiling = _row(results, study, CEILING, condition="decoded", columns=main)
    if ceiling is not None:
        rows.insert(sum(r.condition == "decoded" for r in rows), ceiling)
    subjects = []
    if len(results.subjects(study)) > 1:
        for subject in results.subjects(study):
            for decoder in [*dict.fromkeys(decoders), CEILING]:
                row = _row(results, study, decoder, condition="decoded", columns=main, subject=subject)
                if row is not None:
                    subjects.append(row)
    return ScoreTable(heads=[column_label(c) for c in main], rows=rows,
                      chance=[_chance(results, study, c, decoders) for c in main], subjects=subjects,
                      others=_others(results, study, [c for c in columns if c not in main]))


def _chance(results: Results, study: str, column: Column, decoders: list[str]) -> str:
    """Return the chance level of a column, as a range where re-pairing gives each decoder its own."""
    records = (results.record(study, d, column=column) for d in decoders)
    texts = sorted({number(r["chance"], metric=column.metric) for r in records
                    if r is not None and math.isfinite(r["chance"])})
    return "" if not texts else texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def _row(results: Results, study: str, decoder: str, *, condition: str, columns: list[Column],
         subject: str | None = None) -> Row | None:
    records = [results.record(study, decoder, column=c, condition=condition, subject=subject) for c in columns]
    if all(r is None for r in records):
        return None
    cells = []
    for column, record in zip(columns, records, strict=True):
        if record is None:
            cells.append(Cell(value=""))
            continue
        cells.append(Cell(
            value=number(record["value"], metric=column.metric),
            interval=interval(record["low"], record["high"], metric=column.metric),
            mark="↻" if record["circular"] and condition == "decoded" else "",
            best=condition == "decoded" and decoder != CEILING and _is_best(results, study, column, record, subject),
            alarm=is_alarming(record)))
    kind = ("ceiling" if decoder == CEILING else "decoded" if condition == "decoded"
            else "control" if condition in CONTROLS else "true")
    return Row(decoder=decoder, label=decoder_label(decoder), kind=kind, cells=cells, subject=subject or "",
               condition="knows the generator" if decoder == CEILING else CONDITION_LABELS[condition])


def _is_best(results: Results, study: str, column: Column, record: Mapping[str, Any], subject: str | None) -> bool:
    members = results.members_of(study)
    records = (results.record(study, m.decoder, column=column, subject=subject) for m in members)
    values = [r["value"] for r in records if r is not None and math.isfinite(r["value"])]
    if len(values) < 2:
        return False
    return bool(record["value"] == (min(values) if is_lower_better(column.metric) else max(values)))


def _others(results: Results, study: str, columns: list[Column]) -> list[dict[str, str]]:
    lines = []
    for column in columns:
        for member in results.members_of(study):
            record = results.record(study, member.decoder, column=column)
            if record is None:
                continue
            lines.append({
                "metric": metric_label(column.metric), "about": column_label(column)[1],
                "decoder": member.decoder, "label": decoder_label(member.decoder),
                "value": number(record["value"], metric=column.metric) + (" ↻" if record["circular"] else ""),
                "interval": interval(record["low"], record["high"], metric=column.metric),
                "chance": number(record["chance"], metric=column.metric),
                "chance_kind": record["chance_kind"]})
    return lines


def difference_table(results: Results) -> list[dict[str, Any]]:
    """Return one line for every paired difference to the baseline that is a mean over subjects (or of the only one)."""
    table = results.differences
    lines = []
    for study in results.studies:
        found = table[table["study"] == study]
        subjects = [s for s in dict.fromkeys(found["subject"]) if s != MEAN]
        shown = found[found["subject"] == MEAN] if (found["subject"] == MEAN).any() else found
        headline = results.headline(study)
        for r in shown.itertuples():
            low, high = sorted((r.low, r.high)) if not is_lower_better(r.metric) else sorted((-r.low, -r.high))
            verdict = ("" if not math.isfinite(low + high) else "better" if low > 0 else "worse" if high < 0
                       else "no difference shown")
            where = ", ".join(filter(None, (f"in {r.space}" if r.space else "",
                                            DIRECTION_LABELS.get(r.direction, r.direction))))
            lines.append({
                "study": study, "subject": "mean over subjects" if r.subject == MEAN and len(subjects) != 1
                else subjects[0] if r.subject == MEAN else r.subject,
                "decoder": r.decoder, "label": decoder_label(r.decoder),
                "baseline": decoder_label(r.baseline or BASELINE), "metric": metric_label(r.metric), "about": where,
                "value": number(r.value, metric=r.metric, sign=True),
                "interval": interval(r.low, r.high, metric=r.metric, sign=True), "verdict": verdict,
                "headline": headline is not None and (r.metric, r.space, r.direction) == (
                    headline.metric, headline.space, headline.direction),
                "main": not r.space or r.metric == "attribute_accuracy"})
    return sorted(lines, key=lambda line: (results.studies.index(line["study"]), not line["headline"]))


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the small table that ends a pipeline: one line per study and decoder, controls dim.

    Parameters
    ----------
    summary
        Content of ``summary.json``.
    """
    from rich import box
    from rich.table import Table

    records = most_repetitions(records_of(summary))
    table = Table(title="Means over subjects, with 95 % intervals", box=box.SIMPLE_HEAD, title_style="bold",
                  title_justify="left", pad_edge=False, collapse_padding=True)
    table.add_column("study", no_wrap=True)
    table.add_column("decoder", no_wrap=True)
    table.add_column("decoded", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    for control in CONTROLS:
        table.add_column(control, justify="right", no_wrap=True, style="dim", header_style="dim")
    members: dict[str, list[Mapping[str, Any]]] = {}
    for member in summary.get("members", []):
        members.setdefault(member["study"], []).append(member)
    for study, found in members.items():
        head = found[0].get("headline") or {}
        mine = _headline_records(records[records["study"] == study], head)
        decoders = list(dict.fromkeys(m["decoder"] for m in found))
        if (mine["decoder"] == CEILING).any():
            decoders.append(CEILING)
        metric = head.get("metric") or ""
        gallery = int(mine.loc[mine["decoder"] != CEILING, "gallery"].max()) if len(mine) else 0
        # study and score share a column: eighty characters are all there is
        names = [study, f"[dim]{metric_label(metric)}{' ↓' if is_lower_better(metric) else ''}"
                 f"{f' of {gallery}' if gallery > 1 else ''}[/dim]"]
        for i in range(max(len(decoders), len(names))):
            line = _line(mine[mine["decoder"] == decoders[i]], decoders[i], metric) if i < len(decoders) else []
            table.add_row(names[i] if i < len(names) else "", *line)
        table.add_section()
    return table


def _headline_records(records: pd.DataFrame, head: Mapping[str, str]) -> pd.DataFrame:
    """Return the headline records of a study: means over subjects, or those of the only subject; largest gallery."""
    found = records[(records["metric"] == (head.get("metric") or "")) & ~records["transductive"]
                    & (records["direction"] == (head.get("direction") or ""))]
    in_space = (found["space"] == (head.get("space") or "")) | (found["decoder"] == CEILING)
    if (in_space & (found["decoder"] != CEILING)).any():
        found = found[in_space]
    if (found["subject"] == MEAN).any():
        found = found[found["subject"] == MEAN]
    return found.sort_values("gallery", ascending=False, kind="stable").drop_duplicates(["decoder", "condition"])


def _line(records: pd.DataFrame, decoder: str, metric: str) -> list[str]:
    """Return the cells of one decoder: its name, score and interval, chance, controls."""
    by = {r.condition: r for r in records.itertuples()}
    decoded, name = by.get("decoded"), decoder_label(decoder)
    if decoded is None:
        return [name, "–"]
    span = interval(decoded.low, decoded.high, metric=metric).removesuffix(" %")
    style = "dim" if decoder == CEILING else "bold"
    return [f"[dim]{name}[/dim]" if decoder == CEILING else name,
            f"[{style}]{number(decoded.value, metric=metric)}[/{style}]" + (f" [dim]\\[{span}][/dim]" if span else ""),
            number(decoded.chance, metric=metric) if decoder != CEILING else "",
            *(number(by[c].value, metric=metric) if c in by else "" for c in CONTROLS)]
