"""Figure, tables and page of a scaling law: accuracy over amounts of training data, by hardware."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.artifacts import writing
from brain2img.metrics.scaling_law import FARTHEST
from brain2img.report.figures import new_figure, styled
from brain2img.report.style import PALETTE, interval, metric_label, number

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:
collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid #ddd}td:first-child{text-align:left}
img{max-width:100%}small{color:#666}</style><h1>{{ title }}</h1><p>{{ what }}</p>
<img alt="Accuracy over {{ axis }}" src="data:image/png;base64,{{ image }}">
{% for name, head, lines, note in tables %}<h2>{{ name }}</h2><table><tr>{% for cell in head %}<th>{{ cell }}</th>
{% endfor %}</tr>{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table><p><small>{{ note }}</small></p>{% endfor %}</html>
"""
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
    from jinja2 import Environment, StrictUndefined

    axis, measured = AXES[facts["axis"]], tables["scaling"]
    image = figure(tables, axis=axis)
    with writing(folder / "scaling.png") as temporary:
        temporary.write_bytes(image)
    scale = "accuracy" if facts["link"] == "identity" else "log odds of accuracy"
    flagged = ("are marked (*) and fitted all the same, as asked" if facts["use_flagged"]
               else "are marked (*) and left out of the fit")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE).render(
        title=f"{facts['label']}: accuracy over {axis}", axis=axis, image=base64.b64encode(image).decode(),
        what=f"Study {facts['study']}, split {facts['split']}, image from brain, among {measured['gallery'].iloc[0]} "
             f"stimuli in {facts['space']}, {measured['repetitions'].iloc[0]:g} repetitions averaged.",
        tables=[
            ("Measured", ["hardware", axis, *map(metric_label, measured["metric"].unique())], _measured(measured),
             f"Means over {facts['n_draws']} random subset(s) (one of all data), 95 % bootstrap intervals over "
             f"stimuli. Points at chance or near the ceiling {flagged}."),
            ("Fitted law", ["hardware", "metric", "intercept", "slope per doubling", "R²", "points", "largest amount",
                            "foretold from the others", "measured", "agrees"], _fits(tables["fits"]),
             f"{scale} = intercept + slope log2(amount), by least squares; 95 % bootstrap intervals over stimuli and "
             "random subsets (with one subset, over stimuli alone). Agrees: the interval of measured minus foretold "
             "holds 0."),
            ("Extrapolated", ["hardware", axis, "metric", "foretold"], _extrapolated(tables["extrapolated"]),
             "Not measured: what the law says beyond the largest amount of the fit, clipped to chance and 100 %. The "
             "band holds the uncertainty of the line, not that the law itself may end."),
            ("Amount needed", ["hardware", "metric", "accuracy", axis], _needed(tables["needed"]),
             f"Where the law reaches an accuracy; (e): extrapolated, outside the amounts of the fit. What lies "
             f"beyond {FARTHEST:g} times the largest amount is not stated.")])
    with writing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _measured(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for (hardware, amount), group in table.groupby(["hardware", "amount"], sort=False):
        lines.append([str(hardware), f"{amount:,}", *(
            f"{number(p.value, metric=p.metric)} [{interval(p.low, p.high, metric=p.metric)}]"
            f"{f' * {p.flag}' if p.flag else ''}" for p in group.itertuples())])
    return lines


def _fits(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for p in table.itertuples():
        cells = [str(p.hardware), metric_label(str(p.metric))]
        if p.n_points < 3:
            lines.append([*cells, "no law: too few points between chance and ceiling", *[""] * 7])
            continue
        for name in ("intercept", "slope"):
            value, low, high = (getattr(p, f"{name}{end}") for end in ("", "_low", "_high"))
            cells.append(f"{value:.3f} [{low:.3f} to {high:.3f}]")
        cells += [number(p.r2, metric="r2"), f"{p.n_points} of {p.n_points + p.left_out}"]
        metric = str(p.metric)
        lines.append([*cells, f"{p.held_out:,.0f}", f"{number(p.foretold, metric=metric)} "
                      f"[{interval(p.foretold_low, p.foretold_high, metric=metric)}]",
                      number(p.measured, metric=metric), "yes" if p.agrees else "no"])
    return lines


def _extrapolated(table: pd.DataFrame) -> list[list[str]]:
    if table.empty:
        return []
    return [[str(p.hardware), f"{p.amount:,}", metric_label(str(p.metric)),
             f"{number(p.value, metric=p.metric)} [{interval(p.low, p.high, metric=p.metric)}]"]
            for p in table[table["extrapolation"]].itertuples()]


def _needed(table: pd.DataFrame) -> list[list[str]]:
    lines = []
    for p in table.itertuples():
        def written(amount: float, p: Any = p) -> str:
            far = FARTHEST * p.largest
            return f"over {far:,.0f}" if amount > far else f"{amount:,.0f}" if amount >= 1 else "under 1"
        outside = " (e)" if not p.smallest <= p.amount <= p.largest else ""
        lines.append([str(p.hardware), metric_label(str(p.metric)), number(p.accuracy, metric=p.metric),
                      f"{written(p.amount)} [{written(p.low)} to {written(p.high)}]{outside}"])
    return lines


def figure(tables: Mapping[str, pd.DataFrame], *, axis: str) -> bytes:
    """Return a PNG: a panel per metric, points with intervals, laws with bands, dashed where extrapolated."""
    measured, laws = tables["scaling"], tables["extrapolated"]
    metrics, hardware = list(measured["metric"].unique()), list(measured["hardware"].unique())
    with styled():
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
            ax.set(xlabel=axis, ylabel=f"{metric_label(metric)} (%)")
            ax.set_xscale("log", base=2)
            amounts = sorted({*measured["amount"], *(laws["amount"] if len(laws) else ())})
            ax.set_xticks(amounts, [f"{a:,.0f}" for a in amounts], rotation=45, ha="right")
            ax.minorticks_off()
            ax.set_ylim(bottom=45 if metric == "two_way" else 0)
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        drawn.suptitle("Hollow: at chance or near the ceiling; dashed: extrapolated", fontsize=9)
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
