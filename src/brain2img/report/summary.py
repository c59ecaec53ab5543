"""The small tables that end a pipeline on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from brain2img.meaning import Meaning
from brain2img.report.reading import most_repetitions, records_of
from brain2img.report.style import (
    CAPTIONS,
    CEILING,
    CONTROLS,
    IMAGES,
    MEAN,
    STIMULI,
    decoder_label,
    head_of,
    interval,
    number,
)

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

MADE = ((IMAGES, "two_way", "two-way"), (IMAGES, "attribute_accuracy/kind", "object"), (IMAGES, "pixcorr", "PixCorr"),
        (CAPTIONS, "named_kind_and_colour", "caption"))
"""Columns of the table of pictures and captions: of what, metric, and a head so short that eighty characters do."""


def summary_table(summary: Mapping[str, Any]) -> Group:
    """Return the small tables that end a pipeline: the headline score, and pictures and captions where there are any.

    Parameters
    ----------
    summary
        Content of ``summary.json``.
    """
    from rich.console import Group

    records = most_repetitions(records_of(summary))
    members: dict[str, list[Mapping[str, Any]]] = {}
    for member in summary.get("members", []):
        members.setdefault(member["study"], []).append(member)
    made = _made_table(records, members, baseline=str(summary.get("baseline") or ""))
    return Group(_headline_table(records, members), *([made] if made is not None else []))


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold", title_justify="left", pad_edge=False,
                  collapse_padding=True)
    table.add_column("study", no_wrap=True)
    table.add_column("decoder", no_wrap=True)
    return table


def _headline_table(records: pd.DataFrame, members: Mapping[str, list[Mapping[str, Any]]]) -> Table:
    """Return one line per study and decoder, controls dim."""
    table = _table("Means over subjects, with 95 % intervals")
    table.add_column("decoded", no_wrap=True)
    table.add_column("chance", justify="right", no_wrap=True)
    for control in CONTROLS:
        table.add_column(control, justify="right", no_wrap=True, style="dim", header_style="dim")
    for study, found in members.items():
        head = found[0].get("headline") or {}
        of_study = _headline_records(records[records["study"] == study], head)
        decoders = list(dict.fromkeys(m["decoder"] for m in found))
        if (of_study["decoder"] == CEILING).any():
            decoders.append(CEILING)
        meaning = Meaning.of(of_study.iloc[0]) if len(of_study) else Meaning(str(head.get("metric") or ""))
        gallery = int(of_study.loc[of_study["decoder"] != CEILING, "gallery"].max()) if len(of_study) else 0
        # study and score share a column: eighty characters are all there is
        names = [study, f"[dim]{head_of(meaning)}"
                 f"{f' of {gallery}' if gallery > 1 else ''}[/dim]"]
        for i in range(max(len(decoders), len(names))):
            line = (_line(of_study[of_study["decoder"] == decoders[i]], decoders[i], meaning)
                    if i < len(decoders) else [])
            table.add_row(names[i] if i < len(names) else "", *line)
        table.add_section()
    return table


def _made_table(records: pd.DataFrame, members: Mapping[str, list[Mapping[str, Any]]], *, baseline: str
                ) -> Table | None:
    """Return the scores of pictures and captions by the first generator: decoders, then noise, chance and the truth."""
    found = records[records["of"].isin([IMAGES, CAPTIONS]) & ~records["circular"]
                    & records["direction"].isin(["", "image_from_brain"]) & (records["decoder"] != STIMULI)]
    shown = [(of, metric, head) for of, metric, head in MADE
             if ((found["of"] == of) & (found["metric"] == metric)).any()]
    if not shown:
        return None
    table = _table("Pictures, and captions that name object and colour")
    for _, _, head in shown:
        table.add_column(head, justify="right", no_wrap=True)
    for study, entries in members.items():
        decoders = list(dict.fromkeys(m["decoder"] for m in entries))
        first = next((d for d in decoders if d != baseline), decoders[0])
        columns = [_by_decoder(found[(found["study"] == study) & (found["of"] == of) & (found["metric"] == metric)])
                   for of, metric, _ in shown]
        if not any(columns):
            continue
        lines = [(decoder_label(d), "", d, "decoded", "value") for d in decoders]
        lines += [("made from noise", "dim", first, "noise", "value"), ("chance", "dim", first, "decoded", "chance"),
                  ("from the truth", "dim", first, "true", "value")]
        for i, (name, style, decoder, condition, key) in enumerate(lines):
            records_there = [by.get((decoder, condition)) for by in columns]
            cells = ["" if r is None else number(getattr(r, key), Meaning.of(r._asdict())) for r in records_there]
            if any(cells):
                table.add_row(study if i == 0 else "", name, *cells, style=style)
        table.add_section()
    return table


def _by_decoder(records: pd.DataFrame) -> dict[tuple[str, str], Any]:
    """Return (decoder, condition) -> the first generator's record: the mean over subjects, or the only subject."""
    if (records["subject"] == MEAN).any():
        records = records[records["subject"] == MEAN]
    found: dict[tuple[str, str], Any] = {}
    for record in records.itertuples():
        found.setdefault((str(record.decoder), str(record.condition)), record)
    return found


def _headline_records(records: pd.DataFrame, head: Mapping[str, str]) -> pd.DataFrame:
    """Return the headline records of a study: means over subjects, or those of the only subject; largest gallery."""
    found = records[(records["metric"] == (head.get("metric") or "")) & ~records["transductive"]
                    & ~records["circular"] & (records["decoder"] != STIMULI)
                    & (records["direction"] == (head.get("direction") or ""))]
    in_space = (found["space"] == (head.get("space") or "")) | (found["decoder"] == CEILING)
    if (in_space & (found["decoder"] != CEILING)).any():
        found = found[in_space]
    if (found["subject"] == MEAN).any():
        found = found[found["subject"] == MEAN]
    return found.sort_values("gallery", ascending=False, kind="stable").drop_duplicates(["decoder", "condition"])


def _line(records: pd.DataFrame, decoder: str, meaning: Meaning) -> list[str]:
    """Return the cells of one decoder: its name, score and interval, chance, controls."""
    by = {r.condition: r for r in records.itertuples()}
    decoded, name = by.get("decoded"), decoder_label(decoder)
    if decoded is None:
        return [name, "–"]
    span = interval(decoded.low, decoded.high, meaning).removesuffix(" %")
    style = "dim" if decoder == CEILING else "bold"
    return [f"[dim]{name}[/dim]" if decoder == CEILING else name,
            f"[{style}]{number(decoded.value, meaning)}[/{style}]" + (f" [dim]\\[{span}][/dim]" if span else ""),
            number(decoded.chance, meaning) if decoder != CEILING else "",
            *(number(by[c].value, meaning) if c in by else "" for c in CONTROLS)]
