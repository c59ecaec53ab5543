"""Tables of scores on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brain2img.report.made import ALONE, alone, made_columns
from brain2img.report.reading import Results
from brain2img.report.sentences import is_alarming
from brain2img.report.style import (
    CAPTIONS,
    CEILING,
    CONDITION_LABELS,
    CONDITIONS,
    CONTROLS,
    EMBEDDINGS,
    IMAGES,
    MADE_METRICS,
    MEAN,
    STIMULI,
    Column,
    column_label,
    decoder_label,
    generator_label,
    interval,
    number,
)

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
    """One line of a table; `kind` is "decoded", "control", "alone", "true", "ceiling" or "chance"."""

    decoder: str
    label: str
    condition: str
    kind: str
    cells: list[Cell]
    subject: str = ""
    generator: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores of one study; `note` says what the scores are taken from."""

    title: str
    heads: list[tuple[str, str]]
    rows: list[Row]
    chance: list[str]
    subjects: list[Row] = field(default_factory=list)
    others: list[dict[str, str]] = field(default_factory=list)
    note: str = ""


def score_tables(results: Results, study: str) -> list[ScoreTable]:
    """Return the tables of one study: what was decoded, the pictures and the captions; those that have scores."""
    return [table for of in (EMBEDDINGS, IMAGES, CAPTIONS) if (table := score_table(results, study, of=of)).heads]


def score_table(results: Results, study: str, *, of: str = EMBEDDINGS) -> ScoreTable:
    """Return one table of a study: decoders and conditions by kinds of score, means over subjects.

    Pictures and captions have a line for everything that made some; conditions stand there for the first maker, and
    those that are the same for every decoder once.
    """
    columns = results.columns(study, of=of) if of == EMBEDDINGS else made_columns(results, study, of)
    head = results.main(study).headline
    if of == EMBEDDINGS:
        main = [c for c in columns if c.direction in (head["direction"], "")
                and (c.space in (head["space"], "") or c.metric == "attribute_accuracy")][:MAIN_COLUMNS]
    else:
        main = [c for c in columns if c.direction in ("", "image_from_brain")][:MAIN_COLUMNS]
    main = main or columns[:MAIN_COLUMNS]
    decoders = list(dict.fromkeys(m.decoder for m in results.members_of(study)))
    makers: list[str] = [""] if of == EMBEDDINGS else results.generators(study, of)
    rows = []
    for condition in CONDITIONS:
        same = of != EMBEDDINGS and condition in ("mean", "true")
        for decoder in decoders[:1] if same else decoders:
            for generator in makers if condition == "decoded" else makers[:1]:
                row = _row(results, study, decoder, condition=condition, columns=main, generator=generator)
                if row is not None:
                    rows.append(row)
    if of != EMBEDDINGS and makers:
        rows += _alone(results, study, decoders[0], columns=main, generator=makers[0])
    ceiling = _row(results, study, CEILING if of == EMBEDDINGS else STIMULI, condition="decoded", columns=main)
    if ceiling is not None:
        rows.insert(sum(r.condition == "decoded" for r in rows) if of == EMBEDDINGS else len(rows), ceiling)
    subjects = []
    if len(results.subjects(study)) > 1:
        for subject in results.subjects(study):
            for decoder in [*decoders, *([CEILING] if of == EMBEDDINGS else [])]:
                row = _row(results, study, decoder, condition="decoded", columns=main, subject=subject,
                           generator=makers[0] if makers else None)
                if row is not None:
                    subjects.append(row)
    titles = {EMBEDDINGS: "What was decoded", IMAGES: "Pictures made from it", CAPTIONS: "Captions made from it"}
    return ScoreTable(title=titles[of], heads=[column_label(c) for c in main], rows=rows,
                      chance=[_chance(results, study, c, decoders) for c in main], subjects=subjects,
                      others=_others(results, study, [c for c in columns if c not in main], makers),
                      note=_note(results, study, of))


def _note(results: Results, study: str, of: str) -> str:
    """Say how many images the scores of pictures or captions are taken from, beside those that were decoded."""
    table = results.records[(results.records["study"] == study) & (results.records["subject"] != MEAN)]
    n, whole = (table.loc[table["of"] == kind, "n"].max() for kind in (of, EMBEDDINGS))
    if of == EMBEDDINGS or not n > 0:
        return ""
    some = f" of the {whole:.0f}" if whole > n else ""
    choice = " Two-way choices are among the same." if any(c.gallery for c in results.columns(study, of=of)) else ""
    return f"n = {n:.0f}{some} test images of each subject.{choice}"


def _alone(results: Results, study: str, decoder: str, *, columns: list[Column], generator: str) -> list[Row]:
    """Return the line that says what the generator reaches by itself: the better of its conditions without a brain."""
    found = [alone(results, study, decoder, column=c, generator=generator) for c in columns]
    if all(pair is None for pair in found):
        return []
    cells = [Cell(value="") if pair is None else Cell(
        value=number(pair[1]["value"], c.meaning),
        interval=interval(pair[1]["low"], pair[1]["high"], c.meaning))
        for c, pair in zip(columns, found, strict=True)]
    return [Row(decoder="", label="the generator alone", kind="alone", cells=cells,
                generator=generator_label(generator), condition=f"the better of {' and '.join(ALONE)}")]


def _chance(results: Results, study: str, column: Column, decoders: list[str]) -> str:
    """Return the chance level of a column, as a range where re-pairing gives each decoder its own."""
    records = (results.record(study, d, column=column) for d in decoders)
    texts = sorted({number(r["chance"], column.meaning) for r in records
                    if r is not None and math.isfinite(r["chance"])})
    return "" if not texts else texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"


def _row(results: Results, study: str, decoder: str, *, condition: str, columns: list[Column],
         subject: str | None = None, generator: str | None = None) -> Row | None:
    records = [results.record(study, decoder, column=c, condition=condition, subject=subject, generator=generator)
               for c in columns]
    if all(r is None for r in records):
        return None
    cells = []
    for column, record in zip(columns, records, strict=True):
        if record is None:
            cells.append(Cell(value=""))
            continue
        cells.append(Cell(
            value=number(record["value"], column.meaning),
            interval=interval(record["low"], record["high"], column.meaning),
            mark="↻" if record["circular"] and condition == "decoded" else "",
            best=condition == "decoded" and decoder not in (CEILING, STIMULI) and not record["circular"]
            and _is_best(results, study, column, record, subject),
            alarm=is_alarming(record)))
    kind = ("ceiling" if decoder in (CEILING, STIMULI) else "decoded" if condition == "decoded"
            else "control" if condition in CONTROLS else "true")
    words = {CEILING: "knows the generator", STIMULI: "a reconstruction without a fault"}
    return Row(decoder=decoder, label=decoder_label(decoder), kind=kind, cells=cells, subject=subject or "",
               generator=generator_label(generator or ""), condition=words.get(decoder, CONDITION_LABELS[condition]))


def _is_best(results: Results, study: str, column: Column, record: Mapping[str, Any], subject: str | None) -> bool:
    members = results.members_of(study)
    makers: list[str | None] = [*results.generators(study, column.of)] if column.of != EMBEDDINGS else [None]
    records = (results.record(study, m.decoder, column=column, subject=subject, generator=g)
               for m in members for g in makers)
    values = [r["value"] for r in records if r is not None and math.isfinite(r["value"])]
    if len(values) < 2:
        return False
    return bool(record["value"] == (max(values) if column.meaning.higher_is_better else min(values)))


def _others(results: Results, study: str, columns: list[Column], makers: list[str]) -> list[dict[str, str]]:
    lines = []
    for column in columns:
        for member, generator in ((m, g) for m in results.members_of(study) for g in makers):
            record = results.record(study, member.decoder, column=column, generator=generator)
            if record is None:
                continue
            lines.append({
                "metric": column.meaning.label, "about": column_label(column)[1],
                "generator": generator_label(generator),
                "decoder": member.decoder, "label": decoder_label(member.decoder),
                "value": number(record["value"], column.meaning) + (" ↻" if record["circular"] else ""),
                "interval": interval(record["low"], record["high"], column.meaning),
                "chance": number(record["chance"], column.meaning),
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
            column = Column.of_line(r._asdict())._replace(gallery=0, transductive=False)
            meaning = column.meaning
            low, high = sorted((meaning.sign * r.low, meaning.sign * r.high))
            verdict = ("" if not math.isfinite(low + high) else "better" if low > 0 else "worse" if high < 0
                       else "no difference shown")
            lines.append({
                "study": study, "subject": "mean over subjects" if r.subject == MEAN and len(subjects) != 1
                else subjects[0] if r.subject == MEAN else r.subject,
                "decoder": r.decoder, "label": decoder_label(r.decoder),
                "baseline": decoder_label(r.baseline), "metric": meaning.label, "about": column_label(column)[1],
                "value": number(r.value, meaning, sign=True) + (" ↻" if r.circular else ""),
                "interval": interval(r.low, r.high, meaning, sign=True), "verdict": verdict,
                "headline": headline is not None and (r.metric, r.space, r.direction, r.of) == (
                    headline.metric, headline.space, headline.direction, headline.of),
                "generator": generator_label(r.generator), "main": _is_main(results, r)})
    return sorted(lines, key=lambda line: (results.studies.index(line["study"]), not line["headline"]))


def _is_main(results: Results, r: Any) -> bool:
    """Tell whether a difference is worth a line before the reader unfolds the others."""
    if r.of == EMBEDDINGS:
        return not r.space or r.metric == "attribute_accuracy"
    return (r.metric in MADE_METRICS and r.direction in ("", "image_from_brain") and not r.circular
            and r.generator == results.generators(r.study, r.of)[0])
