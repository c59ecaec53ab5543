"""Figure, table and page of an ablation: one factor off at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brain2img.metrics.ranking import RankScore
from brain2img.report.figures import Picture, new_figure, save_figure, styled
from brain2img.report.page import Section, Table, write_sections
from brain2img.report.style import PALETTE, number, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP1 = RankScore.named("top1").meaning
HEAD = ("", "seeds", "validation", "minus recipe", "test", "minus recipe", "top-5, test")


def write_ablation(folder: Path, table: pd.DataFrame, *, facts: Mapping[str, Any]) -> None:
    """Write ``ablation.png`` and ``report.html`` into `folder`.

    Parameters
    ----------
    folder
        Where they go.
    table
        One line per row, split ("val", "test") and metric ("top1", "top5"): row, label, value, low, high, difference,
        difference_low, difference_high (proportions in [0, 1]), n_seeds, seed_sd, gallery, repetitions.
    facts
        What the page tells: study, subjects, n_train (training trials), ceiling (top-1 of the ideal observer or None).
    """
    with styled():
        drawn = figure(table[table["metric"] == "top1"], ceiling=facts["ceiling"])
        uri = save_figure(drawn, folder / "ablation.png")
    galleries = {split: group.iloc[0] for split, group in table.groupby("split")}
    write_sections(folder / "report.html", title="One factor off at a time", sections=[Section(
        text=f"Study {facts['study']}, {len(facts['subjects'])} subject(s), {facts['n_train']:,} training trials. "
             + closed(table, ceiling=facts["ceiling"]),
        pictures=[Picture(uri, "Top-1 of every row", "")], tables=[Table(HEAD, lines(table))],
        note=f"{TOP1.label}, image from brain, among {galleries['val']['gallery']} validation and "
             f"{galleries['test']['gallery']} test stimuli; {galleries['val']['repetitions']:g} and "
             f"{galleries['test']['repetitions']:g} repetitions averaged; every query is scored alone. Means over "
             "subjects and seeds (± standard deviation of the seeds), 95 % bootstrap intervals over stimuli, "
             "differences paired by subject and stimulus, in points. An ensemble is the mean of similarities that "
             "were standardised for each query alone.")])


def lines(table: pd.DataFrame) -> list[list[str]]:
    """Return the cells of every row, in the columns of `HEAD`."""
    found = []
    for row in table["row"].drop_duplicates():
        of_row = table[table["row"] == row].set_index(["split", "metric"])
        cells = [str(of_row["label"].iloc[0]), str(of_row["n_seeds"].iloc[0])]
        for split in ("val", "test"):
            line = of_row.loc[(split, "top1")]
            spread = f" ± {100 * line['seed_sd']:.1f}" if np.isfinite(line["seed_sd"]) else ""
            cells.append(with_interval(line, TOP1).replace(" [", f"{spread} [", 1))
            same = row == table["row"].iloc[0]
            cells.append("" if same else with_interval(line, TOP1, key="difference", sign=True, ends=(
                "difference_low", "difference_high")))
        found.append([*cells, number(of_row.loc[("test", "top5")]["value"], TOP1)])
    return found


def closed(table: pd.DataFrame, *, ceiling: float | None) -> str:
    """Say which share of the distance between baseline and ceiling the recipe closes on the test split."""
    of = table[(table["split"] == "test") & (table["metric"] == "top1")].set_index("row")["value"]
    if ceiling is None or "baseline" not in of or ceiling <= of["baseline"]:
        return ""
    shares = {row: (of[row] - of["baseline"]) / (ceiling - of["baseline"])
              for row in of.index if row.startswith("recipe")}
    best = sorted(shares, key=lambda row: -shares[row])[:3]
    return (f"The ideal observer, who knows the generator, finds {100 * ceiling:.1f} % of the test stimuli. Of the "
            f"distance from the baseline to that the recipe closes {100 * shares['recipe']:.0f} %; most is closed by "
            + ", ".join(f"{row} ({100 * shares[row]:.0f} %)" for row in best) + ".")


def figure(table: pd.DataFrame, *, ceiling: float | None) -> Figure:
    """Draw top-1 of every row on validation and test, with intervals; the recipe's as lines."""
    rows = list(table["row"].drop_duplicates())
    drawn = new_figure(7.2, 0.9 + 0.34 * len(rows))
    ax = drawn.add_subplot()
    for shift, (split, colour) in enumerate((("val", PALETTE[3]), ("test", PALETTE[0]))):
        of_split = table[table["split"] == split].set_index("row").loc[rows]
        y = np.arange(len(rows)) + 0.24 * (shift - 0.5)
        x = 100 * of_split["value"].to_numpy()
        around = np.abs(100 * of_split[["low", "high"]].to_numpy().T - x)
        ax.errorbar(x, y, xerr=around, fmt="o", ms=4, lw=1.4, color=colour,
                    label={"val": "validation", "test": "test"}[split])
        ax.axvline(x[0], color=colour, lw=0.8, ls=":")
    if ceiling is not None:
        ax.axvline(100 * ceiling, color="#777777", lw=1, label="ideal observer (test)")
    labels = table.drop_duplicates("row").set_index("row")["label"]
    ax.set_yticks(range(len(rows)), [labels[row] for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="top-1, image from brain (%)", xlim=(0, None))
    drawn.legend(loc="outside lower center", ncols=3)
    return drawn
