"""Figure, tables and page of a scaling law: accuracy over amounts of training data, by hardware."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brain2img.meaning import Meaning
from brain2img.metrics.ranking import RankScore
from brain2img.metrics.scaling_law import FARTHEST
from brain2img.report.figures import Picture, new_figure, save_figure, styled
from brain2img.report.page import Section, Table, write_sections
from brain2img.report.style import PALETTE, number, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"trials": "training trials per subject", "subjects": "subjects trained together"}


def write_scaling(folder: Path, tables: Mapping[str, pd.DataFrame], *, facts: Mapping[str, Any]) -> None:
    """Write ``scaling.png`` and ``report.html`` into `folder`.

    Parameters
    ----------
    folder
        Where they go.
    tables
        "scaling", "fits", "extrapolated" and "needed" of `brain2img.analyses.scaling.tabulated`.
    facts
        What the page tells: study, label, split, axis, link, space, n_draws, use_flagged.
    """
    axis, measured = AXES[facts["axis"]], tables["scaling"]
    with styled():
        uri = save_figure(figure(tables, axis=axis), folder / "scaling.png")
    scale = "accuracy" if facts["link"] == "identity" else "log odds of accuracy"
    flagged = ("are marked (*) and fitted all the same, as asked" if facts["use_flagged"]
               else "are marked (*) and left out of the fit")
    write_sections(folder / "report.html", title=f"{facts['label']}: accuracy over {axis}", sections=[Section(
        text=f"Study {facts['study']}, split {facts['split']}, image from brain, among {measured['gallery'].iloc[0]} "
             f"stimuli in {facts['space']}, {measured['repetitions'].iloc[0]:g} repetitions averaged.",
        pictures=[Picture(uri, f"Accuracy over {axis}", "")],
        tables=[
            Table(["hardware", axis, *(_meaning(m).label for m in measured["metric"].unique())], _measured(measured),
                  "Measured", f"Means over {facts['n_draws']} random subset(s) (one of all data), 95 % bootstrap "
                  f"intervals over stimuli. Points at chance or near the ceiling {flagged}."),
            Table(["hardware", "metric", "intercept", "slope per doubling", "R²", "points", "largest amount",
                   "predicted from the others", "measured", "agrees"], _fits(tables["fits"]), "Fitted law",
                  f"{scale} = intercept + slope log2(amount), by least squares; 95 % bootstrap intervals over stimuli "
                  "and random subsets (with one subset, over stimuli alone). Agrees: the interval of measured minus "
                  "predicted holds 0."),
            Table(["hardware", axis, "metric", "predicted"], _extrapolated(tables["extrapolated"]), "Extrapolated",
                  "Not measured: what the law says beyond the largest amount of the fit, clipped to chance and 100 %. "
                  "The band holds the uncertainty of the line, not that the law itself may end."),
            Table(["hardware", "metric", "accuracy", axis], _needed(tables["needed"]), "Amount needed",
                  "Where the law reaches an accuracy; (e): extrapolated, outside the amounts of the fit. What lies "
                  f"beyond {FARTHEST:g} times the largest amount is not stated.")])])


def _meaning(metric: str) -> Meaning:
    return RankScore.named(metric).meaning


def _measured(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for (hardware, amount), group in table.groupby(["hardware", "amount"], sort=False):
        lines.append([str(hardware), f"{amount:,}", *(
            with_interval(p, _meaning(p["metric"])) + (f" * {p['flag']}" if p["flag"] else "")
            for p in group.to_dict("records"))])
    return lines


def _fits(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for p in table.itertuples():
        meaning = _meaning(str(p.metric))
        cells = [str(p.hardware), meaning.label]
        if p.n_points < 3:
            lines.append([*cells, "no law: too few points between chance and ceiling", *[""] * 7])
            continue
        for name in ("intercept", "slope"):
            value, low, high = (getattr(p, f"{name}{end}") for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f} to {high:.3f}]")
        cells += [f"{p.r2:.3f}", f"{p.n_points} of {p.n_points + p.left_out}"]
        predicted = with_interval(p._asdict(), meaning, key="foretold", ends=("foretold_low", "foretold_high"))
        lines.append([*cells, f"{p.held_out:,.0f}", predicted, number(p.measured, meaning),
                      "yes" if p.agrees else "no"])
    return lines


def _extrapolated(table: pd.DataFrame) -> list[list[str]]:
    if table.empty:
        return []
    return [[str(p["hardware"]), f"{p['amount']:,}", meaning.label, with_interval(p, meaning)]
            for p in table[table["extrapolation"]].to_dict("records") for meaning in [_meaning(p["metric"])]]


def _needed(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for p in table.itertuples():
        def written(amount: float, p: Any = p) -> str:
            far = FARTHEST * p.largest
            return f"over {far:,.0f}" if amount > far else f"{amount:,.0f}" if amount >= 1 else "under 1"
        outside = " (e)" if not p.smallest <= p.amount <= p.largest else ""
        meaning = _meaning(str(p.metric))
        lines.append([str(p.hardware), meaning.label, number(p.accuracy, meaning),
                      f"{written(p.amount)} [{written(p.low)} to {written(p.high)}]{outside}"])
    return lines


def figure(tables: Mapping[str, pd.DataFrame], *, axis: str) -> Figure:
    """Draw a panel per metric, points with intervals, laws with bands, dashed where extrapolated."""
    measured, laws = tables["scaling"], tables["extrapolated"]
    metrics, hardware = list(measured["metric"].unique()), list(measured["hardware"].unique())
    drawn = new_figure(3.6 * len(metrics), 3.6 + 0.22 * -(-len(hardware) // 3))
    panels = drawn.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(panels, metrics, strict=True):
        for i, name in enumerate(hardware):
            colour, marker = PALETTE[i % len(PALETTE)], "osD^vP"[i % 6]
            points = measured[(measured["hardware"] == name) & (measured["metric"] == metric)]
            for hollow in (False, True):
                some = points[(points["flag"] != "") == hollow]
                if some.empty:
                    continue
                value = 100 * some["value"].to_numpy()
                around = np.maximum(0, [value - 100 * some["low"], 100 * some["high"] - value])
                beside = some["amount"] * 2 ** (0.13 * (i - (len(hardware) - 1) / 2))  # none hides another
                ax.errorbar(beside, value, yerr=around, fmt=marker, ms=4.5, lw=1.2, color=colour,
                            mfc="white" if hollow else colour)
            ax.plot([], [], marker=marker, color=colour, label=name)
            law = laws[(laws["hardware"] == name) & (laws["metric"] == metric)].sort_values("amount") \
                if len(laws) else laws
            if law.empty:
                continue
            inside = law[~law["extrapolation"]]
            beyond = pd.concat([inside.tail(1), law[law["extrapolation"]]])
            ax.plot(inside["amount"], 100 * inside["value"], color=colour, lw=1.4)
            ax.plot(beyond["amount"], 100 * beyond["value"], color=colour, lw=1.4, ls="--")
            ax.fill_between(law["amount"], 100 * law["low"], 100 * law["high"], color=colour, alpha=0.13, lw=0)
        ax.axhline(100 * measured.loc[measured["metric"] == metric, "chance"].iloc[0], color="#777777", ls=":",
                   lw=1, label="chance")
        ax.set(xlabel=axis, ylabel=f"{_meaning(metric).label} (%)")
        ax.set_xscale("log", base=2)
        amounts = sorted({*measured["amount"], *(laws["amount"] if len(laws) else ())})
        ax.set_xticks(amounts, [f"{a:,.0f}" for a in amounts], rotation=45, ha="right")
        ax.minorticks_off()
        ax.set_ylim(bottom=45 if metric == "two_way" else 0)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    drawn.suptitle("Hollow: at chance or near the ceiling; dashed: extrapolated", fontsize=9)
    return drawn
