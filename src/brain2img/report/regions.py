"""What single regions tell: a table and a figure with one row for every set of ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from brain2img.report.figures import Picture, new_figure, styled, to_uri
from brain2img.report.reading import Results
from brain2img.report.style import EMBEDDINGS, GREY, IMAGES, MEAN, Column, column_label, number, with_interval

SHOWN = ("two_way", "pixcorr", "attribute_accuracy")
"""Scores of pictures that stand beside the headline, where they are there."""
Kind = tuple[Column, pd.DataFrame]


def _kinds(table: pd.DataFrame, headline: Mapping[str, str]) -> list[Kind]:
    """Return the kinds of score to show, the headline's first, and the records of each: subjects' means where known."""
    table = table[~table["transductive"].astype(bool) & ~table["circular"].astype(bool)]
    many = table["subject"].eq(MEAN).any()
    table = table[table["subject"].eq(MEAN)] if many else table
    first = table[(table["of"] == EMBEDDINGS) & (table["space"] == headline["space"])
                  & (table["metric"] == headline["metric"]) & (table["direction"] == headline["direction"])]
    found = [first]
    pictures = table[(table["of"] == IMAGES) & table["direction"].isin(["", "image_from_brain"])]
    for metric in SHOWN:
        of_metric = pictures[pictures["metric"] == metric]
        if len(of_metric):  # of several reconstructors the first
            found.append(of_metric[of_metric["generator"] == of_metric["generator"].iloc[0]])
    kinds = []
    for rows in found:
        if rows.empty:
            continue
        kinds.append((Column.of_line(rows.iloc[0]), rows.drop_duplicates(["region"]).set_index("region")))
    return kinds


def _head(column: Column) -> str:
    metric, about = column_label(column)
    what = "pictures, " if column.of == IMAGES else ""
    return f"{what}{metric}{f' {about}' if about else ''}"


def regions_table(table: pd.DataFrame, *, headline: Mapping[str, str]) -> str:
    """Return a Markdown table: one row for every set, its voxels, and scores with 95 % intervals beside chance.

    Parameters
    ----------
    table
        ``regions.parquet``.
    headline
        Space, metric and direction of the score that stands first.

    Raises
    ------
    ValueError
        If the headline was not scored.
    """
    kinds = _checked(table, headline)
    lines = [["set", "labels", "voxels", *(f"{_head(c)} (chance {_chance(rows, c)})" for c, rows in kinds)]]
    for region in kinds[0][1].index:
        row = kinds[0][1].loc[region]
        cells = [with_interval(rows.loc[region], c.meaning) if region in rows.index else "–" for c, rows in kinds]
        lines.append([str(region), str(row["labels"]).replace("!", "not "), str(int(row["voxels"])), *cells])
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(lines[0]), *text[1:]])


def _chance(rows: pd.DataFrame, column: Column) -> str:
    return number(float(rows["chance"].mean()), column.meaning)


def _checked(table: pd.DataFrame, headline: Mapping[str, str]) -> Sequence[Kind]:
    kinds = _kinds(table, headline)
    if not kinds or kinds[0][0].metric != headline["metric"] or kinds[0][0].of != EMBEDDINGS:
        known = sorted(set(zip(table["space"], table["metric"], table["direction"], strict=True)))
        raise ValueError(f"regions: expected scores of the headline {dict(headline)}, got only {known[:12]}. Set "
                         "headline=... to one of these, or choose its metric.")
    return kinds


def regions_figure(table: pd.DataFrame, *, headline: Mapping[str, str], study: str) -> Picture:
    """Draw the score of every set with its interval, single subjects as ticks, and chance."""
    kinds = _checked(table, headline)
    with styled():
        uri = to_uri(_figure(table, kinds))
    first = table.iloc[0]
    others = {"ridge": "a ridge that sees nothing else", "refit": "a decoder trained on nothing else",
              "mask": "the trained decoder, all other voxels held at their mean"}[str(first["method"])]
    voxels = "all voxels but those of the set" if first["part"] == "without" else "the voxels of one set of regions"
    return Picture(uri, f"Scores by region, {study}", title=study, min_width=520, caption=(
        f"What {voxels} tell, read by {others}: means over subjects with 95 % intervals over stimuli (single subjects "
        "as ticks), number of voxels in brackets, chance dashed. Sets differ in size and noise as well as in what they "
        "carry."))


def regions_figures(results: Results) -> list[Picture]:
    """Return the figure of every study and decoder whose regions were scored."""
    if results.regions is None:
        return []
    pictures = []
    for study in results.studies:
        table = results.regions[results.regions["study"] == study]
        for decoder, of_decoder in table.groupby("decoder", sort=False):
            member = next((m for m in results.members_of(study) if m.decoder == decoder), results.main(study))
            pictures.append(regions_figure(of_decoder, headline=member.headline, study=f"{study}, {decoder}"))
    return pictures


def save_regions_figure(table: pd.DataFrame, path: Path, *, headline: Mapping[str, str]) -> None:
    """Write the figure of `regions_figure` as a PNG."""
    kinds = _checked(table, headline)
    with styled():
        _figure(table, kinds).savefig(path, dpi=150)


def _figure(table, kinds: Sequence[Kind]):
    names = list(kinds[0][1].index)
    figure = new_figure(8.2, 0.9 + 0.32 * len(names))
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, (column, rows) in zip(axes, kinds, strict=True):
        scale = column.meaning.scale
        for y, name in enumerate(names):
            if name not in rows.index:
                continue
            row = rows.loc[name]
            ax.plot([scale * row["low"], scale * row["high"]], [y, y], color="#0072B2", lw=4, alpha=0.4,
                    solid_capstyle="round")
            ax.plot(scale * row["value"], y, "o", color="#0072B2", ms=7, zorder=3)
            same = table[(table["region"] == name) & (table["subject"] != MEAN)]
            for key in ("of", "generator", "space", "metric", "direction"):
                same = same[same[key] == row[key]]
            if len(same) > 1:
                ax.plot(scale * same["value"], [y + 0.3] * len(same), "|", color=GREY, ms=6)
        ax.axvline(scale * float(rows["chance"].mean()), color="#333333", ls="--", lw=1)
        metric, about = column_label(column)
        ax.set_xlabel(f"{'pictures: ' if column.of == IMAGES else ''}{metric}{' (%)' if scale > 1 else ''}\n{about}")
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(names)), [f"{n} ({int(kinds[0][1].loc[n, 'voxels'])})" for n in names])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure
