"""Figure, table and page of a sweep over amounts of a new subject's data."""

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

LABELS = {"adapted": "adapted from the other subjects", "dedicated": "trained on this subject alone"}
TOP1 = RankScore.named("top1").meaning
COLOURS = {"adapted": PALETTE[0], "dedicated": PALETTE[3]}


def write_sweep(folder: Path, table: pd.DataFrame, differences: pd.DataFrame, *, facts: Mapping[str, Any]) -> None:
    """Write ``sweep.png`` and ``report.html`` into `folder`.

    Parameters
    ----------
    folder
        Where they go.
    table
        One line per model ("adapted", "dedicated"), amount and metric: trials, minutes, value, low, high (proportions
        in [0, 1]), chance, gallery, repetitions.
    differences
        One line per amount and metric: difference, low, high.
    facts
        What the page tells: run, subject, known, mode, space, split, study, n_draws.
    """
    with styled():
        uri = save_figure(figure(table[table["metric"] == "top1"], subject=facts["subject"]), folder / "sweep.png")
    first = table.iloc[0]
    write_sections(folder / "report.html", title=f"{facts['subject']} with ever more data", sections=[Section(
        text=f"Study {facts['study']}, split {facts['split']}: {facts['run']} (trained on {len(facts['known'])} other "
             f"subjects) adapted by {facts['mode']}, and models of the same parts trained on the same trials alone.",
        pictures=[Picture(uri, "Accuracy over trials", "")],
        tables=[Table(["trials", "minutes", *LABELS.values(), "difference", "chance"], _lines(table, differences))],
        note=f"{TOP1.label}, image from brain, among {first['gallery']} stimuli in {facts['space']}, "
             f"{first['repetitions']:g} repetitions averaged; means over {facts['n_draws']} random subset(s), 95 % "
             "bootstrap intervals over stimuli, differences paired by stimulus (in points). Minutes count the "
             "time from one onset to the next.")])


def _lines(table: pd.DataFrame, differences: pd.DataFrame) -> list[list[str]]:
    lines = []
    top1 = table[table["metric"] == "top1"]
    for trials, group in top1.groupby("trials"):
        of = group.set_index("model")
        change = differences[(differences["metric"] == "top1") & (differences["trials"] == trials)].iloc[0]
        cells = [with_interval(of.loc[m], TOP1) for m in LABELS]
        minutes = of["minutes"].iloc[0]
        lines.append([str(trials), f"{minutes:.1f}" if np.isfinite(minutes) else "–", *cells,
                      with_interval(change, TOP1, key="difference", sign=True),
                      number(of["chance"].iloc[0], TOP1)])
    return lines


def figure(table: pd.DataFrame, *, subject: str) -> Figure:
    """Draw accuracy over trials: both models with their intervals, chance, minutes above."""
    drawn = new_figure(6.4, 4.0)
    ax = drawn.add_subplot()
    for model, lines in table.sort_values("trials").groupby("model"):
        x, y = lines["trials"].to_numpy(), 100 * lines["value"].to_numpy()
        ax.plot(x, y, "o-", color=COLOURS[str(model)], label=LABELS[str(model)])
        ax.fill_between(x, 100 * lines["low"], 100 * lines["high"], color=COLOURS[str(model)], alpha=0.18, lw=0)
    ax.axhline(100 * table["chance"].iloc[0], color="#777777", ls=":", lw=1, label="chance")
    amounts = table.drop_duplicates("trials").sort_values("trials")
    ax.set(xscale="log", xlabel="training trials of this subject", ylabel="top-1, image from brain (%)",
           title=f"{subject}: adapted or trained alone")
    ax.set_xticks(amounts["trials"], [str(n) for n in amounts["trials"]])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    if amounts["minutes"].notna().all():
        above = ax.secondary_xaxis("top")
        above.set_xticks(amounts["trials"], [f"{m:.0f}" if m >= 10 else f"{m:.1f}" for m in amounts["minutes"]])
        above.set_xlabel("minutes of presentation")
        above.minorticks_off()
    ax.legend(loc="upper left")
    return drawn
