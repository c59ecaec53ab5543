"""Figures of scores: decoders and conditions, training curves, accuracy over time and over repetitions."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from brain2img.artifacts import writing
from brain2img.meaning import Meaning
from brain2img.metrics.ranking import RankScore
from brain2img.report.reading import Member, Results
from brain2img.report.style import (
    CEILING,
    CONTROLS,
    GREY,
    MEAN,
    colours,
    column_label,
    decoder_label,
    modality_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#777777", "axes.labelcolor": "#333333", "xtick.color": "#555555", "ytick.color": "#555555",
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "legend.fontsize": 9, "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "figure.facecolor": "white"}


@dataclass(frozen=True)
class Picture:
    """A picture for the page: data URI, alternative text, caption, and the narrowest width it is readable at (px)."""

    uri: str
    alt: str
    caption: str
    title: str = ""
    min_width: int = 0


def new_figure(width: float, height: float, **layout: Any) -> Figure:
    """Return an empty figure (inches) that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout.get("layout", "constrained"))
    FigureCanvasAgg(figure)
    return figure


def styled() -> Any:
    """Return the context in which every figure is drawn."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def to_uri(figure: Figure, *, dpi: int = 150) -> str:
    """Render a figure to a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    buffer.seek(0)
    # a palette is enough for lines and dots, and a third of the size
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    return image_uri(image)


def save_figure(figure: Figure, path: Path) -> str:
    """Write a figure as a PNG, and return it as a data URI for a page."""
    with writing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return to_uri(figure)


def image_uri(image: Image, *, kind: str = "PNG") -> str:
    """Return a picture as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({} if kind == "PNG" else {"quality": 88}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _label(meaning: Meaning) -> str:
    return meaning.label + (" (%)" if meaning.unit == "%" else "")


def scores_figure(results: Results, study: str) -> Picture | None:
    """Draw the headline score: decoders, their controls, the ceiling and chance, with every subject as a dot."""
    column = results.headline(study)
    if column is None:
        return None
    members = results.members_of(study)
    palette = colours(results.decoders, baseline=results.baseline)
    lines: list[tuple[str, str, str, bool]] = [(m.decoder, "decoded", decoder_label(m.decoder), True) for m in members]
    if results.record(study, CEILING, column=column) is not None:
        lines.insert(0, (CEILING, "decoded", decoder_label(CEILING), True))
    lines += [(m.decoder, c, f"{decoder_label(m.decoder)}, {c}", False) for m in members for c in CONTROLS]
    found = [(line, results.record(study, line[0], column=column, condition=line[1])) for line in lines]
    shown = [(line, r) for line, r in found if r is not None and math.isfinite(r["value"])]
    if not shown:
        return None
    scale = column.meaning.scale
    with styled():
        figure = new_figure(8.2, 0.75 + 0.3 * len(shown))
        ax = figure.add_subplot()
        for y, ((decoder, condition, _, strong), record) in enumerate(shown):
            colour = palette[decoder] if strong else GREY
            low, high = record["low"], record["high"]
            if math.isfinite(low) and math.isfinite(high):
                ax.plot([scale * low, scale * high], [y, y], color=colour, lw=4 if strong else 2, alpha=0.4,
                        solid_capstyle="round")
            ax.plot(scale * record["value"], y, "o", color=colour, ms=8 if strong else 5, zorder=3)
            dots = [results.record(study, decoder, column=column, condition=condition, subject=s)
                    for s in results.subjects(study)]
            values = [scale * d["value"] for d in dots if d is not None]
            if strong and len(values) > 1:
                ax.plot(values, [y + 0.27] * len(values), "|", color=colour, ms=6, alpha=0.8)
        chance = next((r["chance"] for line, r in shown if line[0] != CEILING and math.isfinite(r["chance"])), math.nan)
        if math.isfinite(chance):
            ax.axvline(scale * chance, color="#333333", ls="--", lw=1)
            ax.annotate("chance", (scale * chance, -0.75), xytext=(3, 0), textcoords="offset points", fontsize=8,
                        color="#333333", va="center")
        ax.set_yticks(range(len(shown)), [line[2] for line, _ in shown])
        ax.set_ylim(len(shown) - 0.5, -1)
        ax.grid(axis="y", visible=False)
        head, about = column_label(column)
        ax.set_xlabel(f"{head}{f' {about}' if about else ''}{' (%)' if scale == 100 else ''}")
        if scale == 100:
            ax.set_xlim(left=min(0.0, ax.get_xlim()[0] if chance > 0 else 0.0))
        uri = to_uri(figure)
    many = len(results.subjects(study)) > 1
    kinds = {r["chance_kind"] for line, r in shown if line[0] != CEILING}
    controls = ("which should sit on the dashed line of chance" if kinds == {"analytic"} else
                "of which “shuffled” should sit on the dashed line of chance; “mean” is what one guess for every image "
                "reaches")
    return Picture(uri, f"{column.meaning.label} of decoders and controls, {study}", min_width=460, caption=(
        f"{'Means over subjects' if many else 'Scores'} (dots) with 95 % intervals (bars)"
        f"{', single subjects as ticks below' if many else ''}. Grey: controls, {controls}. A decoder is of use where "
        "its bar lies clear of them, and better than another where the table of differences says so, not where bars "
        "look apart."))


def training_figure(results: Results, study: str) -> Picture | None:
    """Draw training and validation loss, and what was validated, of every decoder that logs them."""
    logged = [(m, m.logs()) for m in results.members_of(study)]
    logged = [(m, [t for t in tables if "epoch" in t]) for m, tables in logged]
    logged = [(m, tables) for m, tables in logged if tables]
    if not logged:
        return None
    score = _validated(logged)
    palette = colours(results.decoders, baseline=results.baseline)
    with styled():
        figure = new_figure(8.2, 3.0)
        axes = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
        for member, tables in logged:
            for table in tables:
                alpha, colour = (1.0 if len(tables) == 1 else 0.5), palette[member.decoder]
                for ax, name, style in ((axes[0], "train/loss", ":"), (axes[0], "val/loss", "-"),
                                        (axes[-1], score, "-")):
                    if name and name in table:
                        curve = table.groupby("epoch")[name].mean().dropna()
                        ax.plot(curve.index, curve * (100 if name == score else 1), style,
                                color=colour, alpha=alpha, lw=1.6, marker="." if len(curve) < 4 else "")
        axes[0].set(title="Loss", xlabel="epoch")
        axes[0].plot([], [], ":", color="#555555", label="training")
        axes[0].plot([], [], "-", color="#555555", label="validation")
        axes[0].legend()
        if score:
            axes[1].set(title=f"Validation, {_label(RankScore.named(score.split('/')[1]).meaning)}", xlabel="epoch")
            for member, _ in logged:
                axes[1].plot([], [], color=palette[member.decoder], label=decoder_label(member.decoder))
            axes[1].legend()
        uri = to_uri(figure)
    folds = max(len(tables) for _, tables in logged)
    note = f" One line for each of the {folds} folds or seeds." if folds > 1 else ""
    return Picture(uri, f"Training curves, {study}", min_width=460, title=study, caption=(
        "Loss over epochs (dotted: training, solid: validation)" + (", and the score on validation images" if score
                                                                    else "") + ". Where the solid loss rises while the "
        f"dotted one falls, the decoder has begun to learn the training trials by heart.{note} Test images "
        "play no part here."))


def _validated(logged: Sequence[tuple[Member, list[pd.DataFrame]]]) -> str:
    """Return the validated accuracy to draw beside the loss, ``val/<accuracy>``: the headline's where it was logged."""
    names = [c for _, tables in logged for t in tables for c in t.columns
             if c.startswith("val/") and RankScore.is_name(c.split("/")[1]) and t[c].notna().any()]
    wanted = logged[0][0].headline["metric"]
    return ([n for n in names if n.split("/")[1] == wanted] or names or [""])[0]


def _band(ax: Axes, table: pd.DataFrame, *, x: str, colour: str, scale: float, label: str, marker: str = "") -> None:
    table = table.sort_values(x)
    ax.plot(table[x], scale * table["value"], color=colour, lw=2, label=label, marker=marker, ms=5)
    if {"low", "high"} <= set(table.columns):
        ax.fill_between(table[x], scale * table["low"], scale * table["high"], color=colour, alpha=0.2, lw=0)


def _curves(results: Results, table: pd.DataFrame, *, x: str, marker: str = ""
            ) -> list[tuple[Figure, Axes, str, Meaning]]:
    """Draw one figure per study of `table`: mean over subjects with its band, single subjects thin, chance dashed."""
    drawn = []
    palette = colours(results.decoders, baseline=results.baseline)
    for study in results.studies:
        rows = table[table["study"] == study]
        if rows.empty:
            continue
        head = results.main(study).headline
        kinds = list(rows.groupby(["metric", *(["direction"] if "direction" in rows else []), "space"], sort=False))
        # one kind of score per figure: the headline's where it is there
        kinds.sort(key=lambda kind: sum(a == head[k] for k, a in (("metric", kind[0][0]), ("space", kind[0][-1]))),
                   reverse=True)
        name, rows = kinds[0]
        meaning = RankScore.named(str(name[0])).meaning
        scale = meaning.scale
        figure = new_figure(8.2, 3.2)
        ax = figure.add_subplot()
        for decoder in dict.fromkeys(rows["decoder"]):
            of_decoder = rows[rows["decoder"] == decoder]
            subjects = [s for s in dict.fromkeys(of_decoder["subject"]) if s != MEAN]
            shown = MEAN if (of_decoder["subject"] == MEAN).any() or not subjects else subjects[0]
            mean = of_decoder[of_decoder["subject"] == shown]
            colour = palette.get(str(decoder), GREY)
            for subject in subjects if len(subjects) > 1 else []:
                one = of_decoder[of_decoder["subject"] == subject].sort_values(x)
                ax.plot(one[x], scale * one["value"], color=colour, lw=0.8, alpha=0.4)
            if not (of_decoder["subject"] == MEAN).any() and len(subjects) > 1:
                # an interval of the mean cannot be had from those of the subjects, who share their stimuli
                mean = of_decoder.groupby(x, as_index=False)["value"].mean()
            _band(ax, mean, x=x, colour=colour, scale=scale, label=decoder_label(str(decoder)), marker=marker)
        chance = rows["chance"].dropna() if "chance" in rows else pd.Series(dtype=float)
        if len(chance):
            ax.axhline(scale * chance.iloc[0], color="#333333", ls="--", lw=1, label="chance")
        space = str(name[-1])
        ax.set_ylabel(_label(meaning) + (f"\nin {space}" if space else ""))
        drawn.append((figure, ax, study, meaning))
    return drawn


def time_course_figures(results: Results) -> list[Picture]:
    """Draw the score of decoders that see only a short window, over the time of the window."""
    if results.time_course is None:
        return []
    table = results.time_course.assign(ms=1000 * results.time_course["time"])
    pictures = []
    with styled():
        for figure, ax, study, meaning in _curves(results, table, x="ms"):
            width = 1000 * table.loc[table["study"] == study, "width"].dropna().median() if "width" in table else np.nan
            ax.axvline(0, color="#999999", lw=1)
            ax.set_xlabel("centre of the window, ms after the image comes on")
            ax.legend(loc="upper right")
            window = f"{width:.0f} ms wide" if math.isfinite(width) else "short"
            pictures.append(Picture(to_uri(figure), f"Time course of decoding, {study}", min_width=460, title=study,
                                    caption=(
                f"{meaning.label} of decoders that see one window ({window}) of the "
                f"{modality_label(results.main(study).modality)} at a time. {_lines(table[table['study'] == study])} "
                "Before the image comes on (0 ms) the curve has to lie on the dashed "
                "line of chance, save for half a window.")))
    return pictures


def _lines(table: pd.DataFrame) -> str:
    """Say what the lines of `_curves` are."""
    if table["subject"].nunique() == 1:
        return "With its 95 % interval."
    band = " with its 95 % interval" if (table["subject"] == MEAN).any() else ""
    return f"Thick: mean over subjects{band}; thin: single subjects."


def repetitions_figures(results: Results) -> list[Picture]:
    """Draw the score over the number of averaged repetitions."""
    if results.repetitions is None:
        return []
    pictures = []
    with styled():
        for figure, ax, study, meaning in _curves(results, results.repetitions, x="repetitions", marker="o"):
            ticks = sorted(set(results.repetitions.loc[results.repetitions["study"] == study, "repetitions"]))
            if ticks[-1] >= 8 * max(ticks[0], 1):
                ax.set_xscale("log")
            ax.set_xticks(ticks, [str(t) for t in ticks])
            ax.minorticks_off()
            ax.set_xlabel("repetitions of a test image averaged before decoding")
            ax.legend()
            pictures.append(Picture(to_uri(figure), f"Accuracy over repetitions, {study}", min_width=460, title=study,
                                    caption=(
                f"{meaning.label} when the recordings of 1, 2, ... repetitions of a test image are averaged. "
                f"{_lines(results.repetitions[results.repetitions['study'] == study])} A curve that "
                "still climbs at its right end is limited by noise in the recordings; one that is "
                "flat, by the decoder.")))
    return pictures


