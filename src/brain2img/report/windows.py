"""Figures and page of decoding from windows in time, regions and single sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brain2img.metrics.ranking import RankScore
from brain2img.records import SignalSpec
from brain2img.report.figures import Picture, new_figure, save_figure, styled
from brain2img.report.page import Section, Table, write_sections
from brain2img.report.recordings import topography
from brain2img.report.style import MEAN, PALETTE, number, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALPHA = 0.05
HOW = {"train": "the run's own decoder trained anew for each window or region, on nothing else",
       "ridge": "ridge fitted anew for each window or region, on nothing else",
       "mask": "the trained run, with everything outside of a window or region set to 0, the training mean; it has "
               "never met such input, so low scores need not mean that little is there"}


def write_windows(folder: Path, tables: Mapping[str, pd.DataFrame], *, spec: SignalSpec,
                  regions: Mapping[str, Sequence[str]], facts: Mapping[str, Any]) -> None:
    """Write ``report.html`` and its figures (PNG) into `folder`.

    Parameters
    ----------
    folder
        Where they go.
    tables
        "windows", "peaks" and "clusters" of `brain2img.metrics.curves`.
    spec
        Signals of one subject: where its sensors are.
    regions
        Region -> its channels.
    facts
        What the page tells: run, study, how, label.
    """
    table = tables["windows"]
    shown = table[table["subject"] == (MEAN if (table["subject"] == MEAN).any() else table["subject"].iloc[0])]
    with styled():
        pictures = [Picture(save_figure(drawn, folder / f"{name}.png"), title, caption, title)
                    for name, title, drawn, caption in _figures(shown, tables, spec, regions)]
    n = table.loc[table["subject"] != MEAN, "subject"].nunique()
    write_sections(folder / "report.html", title=f"When and where: {facts['run']}", sections=[Section(
        text=f"Study {facts['study']}, decoder {facts['label']}: {HOW[facts['how']]}.", pictures=pictures,
        tables=[_scores(shown), _peaks(tables["peaks"])],
        note=f"Image from brain among {int(table['gallery'].max())} test stimuli, cosine, all repetitions averaged; "
             f"{'means over ' + str(n) + ' subjects' if n > 1 else 'one subject'}; 95 % bootstrap intervals over "
             "stimuli, which say nothing about other subjects.")])


def _figures(shown: pd.DataFrame, tables: Mapping[str, pd.DataFrame], spec: SignalSpec,
             regions: Mapping[str, Sequence[str]]) -> list[tuple[str, str, Figure, str]]:
    kinds, found = set(shown["kind"]), []
    if "sliding" in kinds:
        found.append(("time_course", "Time course", _time_course(shown, tables["clusters"]),
                      "Two-way identification from one window at a time, at its centre, with 95 % intervals. Bars: "
                      f"clusters above chance (p < {ALPHA}). " + onset_sentence(tables["clusters"])))
        if shown["space"].nunique() > 1:
            found.append(("normalised", "Which space when", _normalised(shown, tables["peaks"]),
                          "The same curves above chance, each divided by its own peak. Dots: peak (full) and half "
                          "maximum (open), with 95 % intervals."))
    if "growing" in kinds:
        found.append(("growing", "Growing windows", _growing(shown),
                      "Top-1 from windows that begin at onset, at their ends, with 95 % intervals."))
    if "region" in kinds:
        found.append(("regions", "Regions", _regions(shown, spec, regions),
                      "Two-way identification from the channels of one region alone; maps: two-way above 50 %, every "
                      "sensor in the colour of its region."))
    if "sensor" in kinds and spec.positions is not None:
        found.append(("sensors", "Single sensors", _sensors(shown, spec),
                      "What two-way identification loses (in points) when one sensor is set to 0; what neighbours "
                      "know, too, is not lost."))
    return found


def onset_sentence(clusters: pd.DataFrame) -> str:
    """Say in which window each space is first decoded above chance, with the cluster's p and the unit of the test."""
    if clusters.empty:
        return "No cluster of windows above chance."
    unit, n = clusters["unit"].iloc[0], clusters["n_units"].iloc[0]
    words = []
    for space, group in clusters.groupby("space", sort=False):
        over = group[group["p"] < ALPHA]
        words.append(f"{space}: none" if over.empty else
                     f"{space}: {1000 * over['first_start'].iloc[0]:.0f} to {1000 * over['first_stop'].iloc[0]:.0f} ms "
                     f"(p = {over['p'].iloc[0]:.4f})")
    return (f"First window of the first such cluster: {'; '.join(words)}. Units of the permutation test: {n} "
            f"{'subjects' if unit == 'subject' else 'stimuli'}; p belongs to the cluster, not to its ends.")


def _lines(shown: pd.DataFrame, kind: str, metric: str) -> list[tuple[str, str, pd.DataFrame]]:
    """Return space, its colour, and its windows in order with `time` in ms."""
    table = shown[(shown["kind"] == kind) & (shown["metric"] == metric)]
    time = 1000 * (table["stop"] if kind == "growing" else (table["start"] + table["stop"]) / 2)
    table = table.assign(time=time).sort_values("time")
    return [(space, PALETTE[i % len(PALETTE)], table[table["space"] == space])
            for i, space in enumerate(dict.fromkeys(shown["space"]))]


def _draw(ax: Axes, lines: Sequence[tuple[str, str, pd.DataFrame]]) -> None:
    for space, colour, line in lines:
        ax.plot(line["time"], 100 * line["value"], "o-", ms=3, color=colour, label=space)
        ax.fill_between(line["time"], 100 * line["low"], 100 * line["high"], color=colour, alpha=0.18, lw=0)
    ax.axhline(100 * lines[0][2]["chance"].iloc[0], color="#333333", ls="--", lw=1, label="chance")


def _time_course(shown: pd.DataFrame, clusters: pd.DataFrame) -> Figure:
    drawn = new_figure(6.8, 4.0)
    ax = drawn.add_subplot()
    lines = _lines(shown, "sliding", "two_way")
    _draw(ax, lines)
    bottom, top = ax.get_ylim()
    step = 0.035 * (top - bottom)
    for i, (space, colour, _) in enumerate(lines, start=1):
        for first, cluster in enumerate(clusters[(clusters["space"] == space) & (clusters["p"] < ALPHA)].itertuples()):
            ends = [500 * (cluster.first_start + cluster.first_stop), 500 * (cluster.last_start + cluster.last_stop)]
            ax.plot(ends, [bottom - i * step] * 2, color=colour, lw=4, solid_capstyle="butt")
            if first == 0:
                ax.plot(ends[0], bottom - i * step, marker="|", ms=11, mew=2, color=colour)
                ax.annotate(f"{ends[0]:.0f} ms", (ends[0], bottom - i * step), xytext=(-6, 0), ha="right", va="center",
                            textcoords="offset points", fontsize=8, color=colour)
    left, right = ax.get_xlim()
    ax.set(xlabel="centre of the window (ms after the image comes on)", ylabel="two-way (%)", title="Sliding windows",
           ylim=(bottom - (len(lines) + 1) * step, top), xlim=(left - 0.06 * (right - left), right))
    ax.legend(loc="upper right")
    return drawn


def _normalised(shown: pd.DataFrame, peaks: pd.DataFrame) -> Figure:
    drawn = new_figure(6.8, 4.0)
    ax = drawn.add_subplot()
    for i, (space, colour, line) in enumerate(_lines(shown, "sliding", "two_way")):
        above = line["value"] - line["chance"]
        ax.plot(line["time"], above / above.max(), color=colour, label=space)
        own = peaks[(peaks["kind"] == "sliding") & (peaks["space"] == space) & (peaks["later_than"] == "")]
        for mark in own.itertuples():
            y = (1.06 if mark.what == "peak" else 0.5) + 0.045 * i
            ax.plot([1000 * mark.low, 1000 * mark.high], [y, y], color=colour, lw=1.5)
            ax.plot(1000 * mark.time, y, "o", color=colour, mfc=colour if mark.what == "peak" else "white", ms=6)
    ax.axhline(0, color="#333333", ls="--", lw=1)
    ax.set(xlabel="centre of the window (ms after the image comes on)", ylabel="two-way above chance, share of peak",
           title="Which space is decoded when")
    ax.legend(loc="upper right")
    return drawn


def _growing(shown: pd.DataFrame) -> Figure:
    drawn = new_figure(6.8, 3.8)
    ax = drawn.add_subplot()
    _draw(ax, _lines(shown, "growing", "top1"))
    ax.set(xlabel="end of the window (ms after the image comes on)", ylabel="top-1 (%)", title="Windows from onset on")
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper left")
    return drawn


def _regions(shown: pd.DataFrame, spec: SignalSpec, regions: Mapping[str, Sequence[str]]) -> Figure:
    table = shown[(shown["metric"] == "two_way") & shown["kind"].isin(["region", "whole"])]
    spaces, names = list(dict.fromkeys(table["space"])), ["all", *regions]
    inside = [i for i, name in enumerate(spec.ch_names) if any(name in channels for channels in regions.values())]
    maps = spec.positions is not None and len(inside) >= 8
    drawn = new_figure(max(6.8, 2.4 * len(spaces)), 6.2 if maps else 3.6)
    grid = drawn.add_gridspec(2 if maps else 1, len(spaces), height_ratios=[1.1, 1] if maps else [1])
    ax = drawn.add_subplot(grid[0, :])
    for i, space in enumerate(spaces):
        of = table[table["space"] == space].set_index("name").loc[names]
        x = np.arange(len(names)) + 0.8 * ((i + 0.5) / len(spaces) - 0.5)
        value, low, high = (100 * of[key].to_numpy() for key in ("value", "low", "high"))
        ax.bar(x, value - 50, bottom=50, width=0.8 / len(spaces), color=PALETTE[i % len(PALETTE)], label=space)
        ax.errorbar(x, value, yerr=np.maximum([value - low, high - value], 0), fmt="none", ecolor="#333333", lw=1)
    ax.axhline(50, color="#333333", ls="--", lw=1, label="chance")
    ax.set_xticks(range(len(names)), [f"{n}\n({len(regions[n]) if n in regions else spec.n_channels})" for n in names])
    ax.set(ylabel="two-way (%)", title="Regions (number of channels)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if maps:
        here = spec.select(np.array(inside))
        of_channel = {channel: name for name, channels in regions.items() for channel in channels}
        values = {space: table[table["space"] == space].set_index("name")["value"] for space in spaces}
        arrays = {s: np.array([100 * (v[of_channel[c]] - 0.5) for c in here.ch_names]) for s, v in values.items()}
        _maps(drawn, grid, 1, arrays, here, label="two-way above 50 % (points)")
    return drawn


def _sensors(shown: pd.DataFrame, spec: SignalSpec) -> Figure:
    table = shown[(shown["kind"] == "sensor") & (shown["metric"] == "two_way")]
    arrays = {space: 100 * group.set_index("name")["drop"].loc[list(spec.ch_names)].to_numpy()
              for space, group in table.groupby("space", sort=False)}
    drawn = new_figure(max(4.2, 3.2 * len(arrays)), 3.4)
    _maps(drawn, drawn.add_gridspec(1, len(arrays)), 0, arrays, spec, label="loss (points)")
    return drawn


def _maps(drawn: Figure, grid: Any, row: int, arrays: Mapping[str, np.ndarray], spec: SignalSpec, *,
          label: str) -> None:
    limit = max(float(np.abs(values).max()) for values in arrays.values()) or 1.0
    axes = []
    for i, (space, values) in enumerate(arrays.items()):
        axes.append(drawn.add_subplot(grid[row, i]))
        image = topography(values, spec, axes[-1], limit=limit)
        axes[-1].set_title(space, loc="center")
    bar = drawn.colorbar(image, ax=axes, shrink=0.7, label=label)
    bar.outline.set_visible(False)


def _scores(shown: pd.DataFrame) -> Table:
    """Return the table of all windows and regions."""
    meanings = {m: RankScore.named(m).meaning for m in dict.fromkeys(shown["metric"])}
    lines = []
    for (kind, name, space), group in shown[shown["kind"] != "sensor"].groupby(["kind", "name", "space"], sort=False):
        of = group.set_index("metric")
        unit = " ms" if kind in ("growing", "sliding") else ""
        lines.append([f"{kind} {name}{unit}", space, *(with_interval(of.loc[m], of_m) for m, of_m in meanings.items())])
    chance = shown.groupby("metric")["chance"].first()
    return Table(["decoded from", "space", *(f"{meaning.label} (chance {number(chance[m], meaning)})"
                                             for m, meaning in meanings.items())], lines)


def _peaks(peaks: pd.DataFrame) -> Table:
    """Return the table of peaks and half maxima."""
    words = {"peak": "peak", "half": "half maximum"}
    return Table(["windows", "space", "what", "ms", "95 %"], [
        [p.kind, p.space, words[p.what] + (f", later than {p.later_than} by" if p.later_than else ""),
         f"{1000 * p.time:.0f}", f"{1000 * p.low:.0f} to {1000 * p.high:.0f}"] for p in peaks.itertuples()])
