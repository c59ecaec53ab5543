"""Figure, table and page of a sweep over amounts of a new subject's data."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.artifacts import writing
from brain2img.report.figures import new_figure, styled
from brain2img.report.style import PALETTE, interval, metric_label, number

LABELS = {"adapted": "adapted from the other subjects", "dedicated": "trained on this subject alone"}
COLOURS = {"adapted": PALETTE[0], "dedicated": PALETTE[3]}

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:15px/1.5 sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:
collapse}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid #ddd}img{max-width:100%}small{color:#666}
</style><h1>{{ title }}</h1><p>{{ what }}</p><img alt="Accuracy over trials" src="data:image/png;base64,{{ image }}">
<table><tr><th>trials</th><th>minutes</th>{% for name in models %}<th>{{ name }}</th>{% endfor %}<th>difference</th>
<th>chance</th></tr>{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table><p><small>{{ how }}</small></p></html>
"""


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
    from jinja2 import Environment, StrictUndefined

    image = figure(table[table["metric"] == "top1"], subject=facts["subject"])
    with writing(folder / "sweep.png") as temporary:
        temporary.write_bytes(image)
    first = table.iloc[0]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE).render(
        title=f"{facts['subject']} with ever more data", models=[LABELS[m] for m in LABELS],
        lines=_lines(table, differences), image=base64.b64encode(image).decode(),
        what=f"Study {facts['study']}, split {facts['split']}: {facts['run']} (trained on {len(facts['known'])} other "
             f"subjects) adapted by {facts['mode']}, and models of the same parts trained on the same trials alone.",
        how=f"{metric_label('top1')}, image from brain, among {first['gallery']} stimuli in {facts['space']}, "
            f"{first['repetitions']:g} repetitions averaged; means over {facts['n_draws']} random subset(s), 95 % "
            "bootstrap intervals over stimuli, differences paired by stimulus (in points). Minutes count the "
            "time from one onset to the next.")
    with writing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _lines(table: pd.DataFrame, differences: pd.DataFrame) -> list[list[str]]:
    lines = []
    top1 = table[table["metric"] == "top1"]
    for trials, group in top1.groupby("trials"):
        of = group.set_index("model")
        change = differences[(differences["metric"] == "top1") & (differences["trials"] == trials)].iloc[0]
        cells = [f"{number(of.at[m, 'value'], metric='top1')} "
                 f"[{interval(of.at[m, 'low'], of.at[m, 'high'], metric='top1')}]" for m in LABELS]
        minutes = of["minutes"].iloc[0]
        lines.append([str(trials), f"{minutes:.1f}" if np.isfinite(minutes) else "–", *cells,
                      f"{number(change['difference'], metric='top1', sign=True)} "
                      f"[{interval(change['low'], change['high'], metric='top1', sign=True)}]",
                      number(of["chance"].iloc[0], metric="top1")])
    return lines


def figure(table: pd.DataFrame, *, subject: str) -> bytes:
    """Return a PNG of accuracy over trials: both models with their intervals, chance, minutes above."""
    with styled():
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
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
