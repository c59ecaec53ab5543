"""Several runs side by side: one line a run, grouped by what may be compared, as Markdown, a figure and a page."""

from __future__ import annotations

import logging
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.artifacts import read_manifest
from brain2img.meaning import MEANING, Meaning
from brain2img.metrics.aggregate import differences
from brain2img.metrics.ranking import RankScore
from brain2img.report.figures import Picture, new_figure, save_figure, styled
from brain2img.report.page import Section, Table, write_sections
from brain2img.report.reading import Member, Results
from brain2img.report.style import (
    CONTROLS,
    GREY,
    IMAGES,
    KIND,
    MEAN,
    Column,
    colours,
    column_label,
    decoder_label,
    generator_label,
    number,
)

log = logging.getLogger(__name__)

PICTURES = {"two_way": RankScore.named("two_way").meaning, "pixcorr": Meaning("PixCorr")}
"""Scores of pictures that have a column each."""
TITLE = 60
"""Characters in a line of a panel's title."""


@dataclass
class Group:
    """Runs that may be compared: the same prepared study, and the same score of the same gallery and repetitions.

    Parameters
    ----------
    study, column, repetitions
        What they share.
    lines
        One mapping a run, with plain values: the columns of the table that `table_of` returns.
    scores
        Row-level headline scores of every line, in their order.
    known
        Paired difference of every line to the baseline of its own scores folder, where there is one.
    prepared
        What tells the prepared study from another of its name among the groups; "" where there is none.
    """

    study: str
    column: Column
    repetitions: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    scores: list[pd.DataFrame | None] = field(default_factory=list)
    known: list[dict[str, Any] | None] = field(default_factory=list)
    prepared: str = ""

    @property
    def title(self) -> str:
        """Study, score and repetitions in words."""
        head, about = column_label(self.column)
        many = f"{self.repetitions} repetitions averaged" if self.repetitions > 1 else "single trials"
        study = f"{self.study} ({self.prepared})" if self.prepared else self.study
        return f"{study}: {head}{f' {about}' if about else ''}, {many}"


def compare(found: Sequence[tuple[Results, Member]], *, parameters: Mapping[tuple[str, str], int | None],
            baseline: str, seed: int = 0) -> list[Group]:
    """Put members of several scores folders into groups, with paired differences to the baseline of each group.

    Parameters
    ----------
    found
        Scores and the member of them to show, in the order of the lines.
    parameters
        (Scores folder, experiment) -> live parameters, None where they are not known.
    baseline
        Decoder to which differences are taken: of the same scores folder if it stands there, else the first of the
        group that has a subject in common.
    seed
        Of the bootstrap.

    Raises
    ------
    ValueError
        If a member has no headline score.
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for results, member in found:
        column = _headline(results, member)
        record = None if column is None else results.record(member.study, member.decoder, column=column)
        if column is None or record is None:
            raise ValueError(f"run {results.folder}, {member.decoder}: expected its headline score "
                             f"{member.headline}, got none among its records. Evaluate it again with headline=... that "
                             "it has.")
        identity = _identity(member)
        group = groups.setdefault((member.study, identity, column, record["repetitions"]),
                                  Group(member.study, column, int(record["repetitions"])))
        group.lines.append({
            **_facts(results, member), "parameters": parameters.get((str(results.folder), member.experiment)),
            "study": member.study, "prepared": identity, "metric": column.metric, "space": column.space,
            "direction": column.direction, "gallery": column.gallery, "repetitions": int(record["repetitions"]),
            **{key: record[key] for key in ("value", "low", "high", "n", "chance")},
            **{c: _value(results.record(member.study, member.decoder, column=column, condition=c)) for c in CONTROLS},
            **_pictures(results, member)})
        group.scores.append(_scores(results, member, column))
        group.known.append(results.difference(member.study, member.decoder, column=column))
    titles = Counter(group.title for group in groups.values())
    for group in groups.values():
        _add_differences(group, baseline=baseline, seed=seed)
        if titles[group.title] > 1:
            group.prepared = f"prepared as {str(group.lines[0]['prepared']).rsplit('/', 1)[-1][:24]}"
    return list(groups.values())


def _headline(results: Results, member: Member) -> Column | None:
    """Return the kind of score that a member's own headline names."""
    head = member.headline
    found = [c for c in results.columns(member.study) if not c.transductive and c.metric == head["metric"]
             and c.direction == head["direction"] and not results.is_circular(member.study, c)
             and results.record(member.study, member.decoder, column=c) is not None]
    found = [c for c in found if c.space == head["space"]] or found
    return max(found, key=lambda c: c.gallery, default=None)


def _identity(member: Member) -> str:
    """Return the identity of the prepared study: its manifest's where it is there, else its folder's name."""
    path = str(member.entry.get("prepared") or "")
    folder = member.root / path
    return str(read_manifest(folder)["id"]) if path and (folder / "manifest.json").exists() else path


def _facts(results: Results, member: Member) -> dict[str, Any]:
    subjects = [str(s) for s in member.entry.get("subjects") or results.subjects(member.study)]
    return {"run": member.experiment or results.folder.name, "scores": str(results.folder), "decoder": member.decoder,
            "subjects": subjects, "train_seconds": float(member.seconds.get("train", math.nan))}


def _value(record: Mapping[str, Any] | None) -> float:
    return math.nan if record is None else float(record["value"])


def _pictures(results: Results, member: Member) -> dict[str, Any]:
    """Return two-way and PixCorr of the pictures by the member's first reconstructor that has such scores."""
    table = results.records
    of_member = table[(table["study"] == member.study) & (table["decoder"] == member.decoder) & (table["of"] == IMAGES)
                 & (table["condition"] == "decoded") & ~table["circular"] & ~table["transductive"]
                 & table["direction"].isin(["", "image_from_brain"])]
    first = next((g for g in dict.fromkeys(of_member["generator"]) if g in member.generators("reconstructions")), None)
    found: dict[str, Any] = {"generator": first or ""}
    for metric in PICTURES:
        lines = of_member[(of_member["generator"] == first) & (of_member["metric"] == metric)]
        column = None if lines.empty else Column.of_line(lines.iloc[0])
        record = None if column is None else results.record(member.study, member.decoder, column=column,
                                                            generator=first)
        for key, name in (("value", metric), ("low", f"{metric}_low"), ("high", f"{metric}_high")):
            found[name] = math.nan if record is None else float(record[key])
    return found


def _scores(results: Results, member: Member, column: Column) -> pd.DataFrame | None:
    """Return the row-level headline scores of a member, or None where the folder holds none."""
    if results.scores is None:
        return None
    table = results.scores
    lacking = [key for key in (*KIND, *MEANING) if key not in table]
    if lacking:
        raise ValueError(f"scores {results.folder}: expected columns {', '.join((*KIND, *MEANING))}, got none of "
                         f"{', '.join(lacking)}: an older version wrote it. Evaluate it again with overwrite=true.")
    found = table[column.among(table) & (table["study"] == member.study) & (table["decoder"] == member.decoder)
                  & (table["condition"] == "decoded")]
    most = found.groupby("subject")["repetitions"].transform("max")
    return found[found["repetitions"] == most] if len(found) else None


def _add_differences(group: Group, *, baseline: str, seed: int) -> None:
    """Add the paired difference to the baseline to every line that shares subjects and stimuli with one."""
    for line, scores, known in zip(group.lines, group.scores, group.known, strict=True):
        line |= {"difference": math.nan, "difference_low": math.nan, "difference_high": math.nan, "paired_subjects": 0}
        bases = [(other["scores"] != line["scores"], place) for place, other in enumerate(group.lines)
                 if other["decoder"] == baseline and group.scores[place] is not None
                 and set(other["subjects"]) & set(line["subjects"])]
        if line["decoder"] == baseline or scores is None or not bases:
            continue
        other, place = min(bases)
        base = group.scores[place]
        assert base is not None
        shared = set(zip(base["subject"], base["stimulus_id"], strict=True)) & set(
            zip(scores["subject"], scores["stimulus_id"], strict=True))
        if not shared:
            continue
        if other or known is None or known["baseline"] != baseline:
            both = pd.concat([scores.assign(decoder="this"), base.assign(decoder="baseline")], ignore_index=True)
            found = differences(both, baseline="baseline", generator=np.random.default_rng([seed, 5]))
            known = next((d for d in found if d["subject"] == MEAN), found[0])
        line |= {"difference": known["value"], "difference_low": known["low"], "difference_high": known["high"],
                 "paired_subjects": len({subject for subject, _ in shared})}


def table_of(groups: Sequence[Group]) -> pd.DataFrame:
    """Return all lines as one table, `group` saying which may be compared."""
    return pd.DataFrame([{"group": i, **line, "subjects": " ".join(line["subjects"])}
                         for i, group in enumerate(groups) for line in group.lines])


HEADS = ("run", "decoder", "parameters", "subjects", "score", "chance", "noise / shuffled / mean", "minus {baseline}",
         *(meaning.label for meaning in PICTURES.values()), "training")


def cells(group: Group, *, baseline: str) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the written cells of a group; the best score of the same subjects is bold (``**``)."""
    meaning, best = group.column.meaning, _best(group)
    rows = []
    for i, line in enumerate(group.lines):
        score = _with_interval(line["value"], line["low"], line["high"], meaning)
        apart = " (of {})".format(line["paired_subjects"]) if line["paired_subjects"] not in (
            0, len(line["subjects"])) else ""
        rows.append([
            line["run"], decoder_label(line["decoder"]),
            "–" if line["parameters"] is None else f"{line['parameters']:,}", str(len(line["subjects"])),
            f"**{score}**" if i in best else score, number(line["chance"], meaning, bare=True),
            " / ".join(number(line[c], meaning, bare=True) for c in CONTROLS),
            _with_interval(line["difference"], line["difference_low"], line["difference_high"], meaning,
                           sign=True) + apart,
            *(_with_interval(line[m], line[f"{m}_low"], line[f"{m}_high"], of) for m, of in PICTURES.items()),
            _time(line["train_seconds"])])
    return [head.format(baseline=baseline) for head in HEADS], rows


def _best(group: Group) -> set[int]:
    """Return the places of the best scores, each among the runs of the same subjects, where there are several."""
    found = set()
    for subjects in {tuple(sorted(line["subjects"])) for line in group.lines}:
        places = [i for i, line in enumerate(group.lines) if tuple(sorted(line["subjects"])) == subjects]
        if len(places) > 1:
            sign = group.column.meaning.sign
            found.add(max(places, key=lambda i: sign * group.lines[i]["value"]))
    return found


def _with_interval(value: float, low: float, high: float, meaning: Meaning, *, sign: bool = False) -> str:
    """Write "41.7 [36.5, 47]", proportions in per cent."""
    text = number(value, meaning, sign=sign, bare=True)
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return text
    ends = (number(end, meaning, sign=sign, bare=True) for end in (low, high))
    return f"{text} [{', '.join(ends)}]"


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else (
        f"{seconds / 3600:.1f} h")


def markdown(groups: Sequence[Group], *, baseline: str) -> str:
    """Return every group as a Markdown table under its title."""
    parts = []
    for group in groups:
        heads, rows = cells(group, baseline=baseline)
        lines = [f"**{group.title}**", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join([*parts, note(groups)]) + "\n"


def note(groups: Sequence[Group]) -> str:
    """Return what a reader has to know of the tables."""
    unit = "Proportions in per cent. " if any(g.column.meaning.unit == "%" for g in groups) else ""
    of = ", ".join(dict.fromkeys(generator_label(line["generator"]) for g in groups for line in g.lines
                                 if line["generator"]))
    pictures = f" Pictures: {of}." if of else ""
    return (f"{unit}Means over subjects with 95 % intervals over stimuli; differences are paired by stimulus. Bold: "
            f"the best of the same subjects, which need not be a difference shown.{pictures} Tables of different "
            "studies, galleries or repetitions are not comparable.")


def figure(groups: Sequence[Group], *, baseline: str) -> Any:
    """Draw the scores as dots with intervals, one panel a group; chance is dashed."""
    palette = colours([line["decoder"] for group in groups for line in group.lines], baseline=baseline)
    heights = [0.8 + 0.3 * len(group.lines) + 0.2 * len(textwrap.wrap(group.title, TITLE)) for group in groups]
    with styled():
        drawn = new_figure(8.2, sum(heights))
        axes = drawn.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, group in zip(axes, groups, strict=True):
            scale = group.column.meaning.scale
            for y, line in enumerate(group.lines):
                colour = palette[line["decoder"]]
                if math.isfinite(line["low"]) and math.isfinite(line["high"]):
                    ax.plot([scale * line["low"], scale * line["high"]], [y, y], color=colour, lw=4, alpha=0.4,
                            solid_capstyle="round")
                ax.plot(scale * line["value"], y, "o", color=colour, ms=8, zorder=3)
                ax.plot([scale * line[c] for c in CONTROLS], [y] * len(CONTROLS), "|", color=GREY, ms=7)
            if math.isfinite(group.lines[0]["chance"]):
                ax.axvline(scale * group.lines[0]["chance"], color="#333333", ls="--", lw=1)
            ax.set_yticks(range(len(group.lines)), [f"{line['run']} ({len(line['subjects'])})"
                                                    for line in group.lines])
            ax.set_ylim(len(group.lines) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
            ax.set_title(textwrap.fill(group.title, TITLE), fontsize=10)
            ax.set_xlabel(column_label(group.column)[0] + (" (%)" if scale == 100 else ""))
    return drawn


def write_comparison(folder: Path, groups: Sequence[Group], *, name: str, baseline: str) -> None:
    """Write ``compare.html``, a self-contained page of figure and tables, and ``compare.png`` into `folder`."""
    with styled():
        uri = save_figure(figure(groups, baseline=baseline), folder / "compare.png")
    tables = [Table(*cells(group, baseline=baseline), title=group.title) for group in groups]
    write_sections(folder / "compare.html", title=name, sections=[Section(
        pictures=[Picture(uri, "Scores with intervals", "")], tables=tables, note=note(groups))])
