"""The page of `check`: what a prepared study holds, lacks and what looks wrong in it, with figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brain2img.data.inspection import Inspection
from brain2img.data.prepared import SPLITS, PreparedStudy
from brain2img.report.drawing import font, wrapped
from brain2img.report.figures import Picture, image_uri, new_figure, save_figure, styled
from brain2img.report.page import Section, write_sections
from brain2img.report.recordings import evoked_figure, noise_ceiling_figure, roi_figure
from brain2img.report.style import PALETTE, modality_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT_COLOURS = {"train": PALETTE[0], "val": "#E69F00", "test": PALETTE[1]}
MOST_PICTURES, ACROSS = 24, 12


def write_inspection(folder: Path, study: PreparedStudy, found: Inspection, *, command: Sequence[str],
                     advice: Sequence[str]) -> Path:
    """Write ``check.html``, one self-contained page, and ``check.png`` with its figures of counts and amplitudes.

    Parameters
    ----------
    folder
        An existing folder.
    study, found
        The study and what was found in it.
    command
        The command that runs the whole chain, and what each of its parts is for.
    advice
        What to know before it is run.

    Returns
    -------
    pathlib.Path
        The page.
    """
    with styled():
        uri = save_figure(_counts(study, found), folder / "check.png")
    pictures = [Picture(uri, "Counts and amplitudes", min_width=620, caption=_CAPTION)]
    if study.has_images:
        pictures.append(_stimuli(study))
    drawn = (draw(study, study.subjects) for draw in (evoked_figure, roi_figure, noise_ceiling_figure))
    pictures += [picture for picture in drawn if picture is not None]
    sections = [Section("What is there", points=found.understood),
                Section("What looks wrong, or needs a thought", warnings=found.wrong),
                Section("What is missing, and what it costs", points=found.missing)]
    path = folder / "check.html"
    write_sections(
        path, title=study.name,
        subtitle=f"{modality_label(study.modality)}: what was understood of this study, before anything is trained",
        sections=[*(section for section in sections if section.points or section.warnings),
                  Section("What it looks like", pictures=pictures),
                  Section("How to run it all", code=" ".join(command), points=advice)])
    return path


_CAPTION = (
    "Above, left: how often each stimulus was shown, by split. Right: the time from one onset to the next within runs; "
    "it should be one peak, or what you planned. Below, left: standard deviation of every channel, sorted; lines far "
    "from the others, or channels far above or below, are worth a look. Right: trials of each session and split.")


def _counts(study: PreparedStudy, found: Inspection) -> Figure:
    figure = new_figure(9.2, 6.4)
    axes = figure.subplots(2, 2)
    _repetitions(study, axes[0, 0])
    _onsets(found, axes[0, 1])
    _spread(study, found, axes[1, 0])
    _sessions(study, axes[1, 1])
    return figure


def _repetitions(study: PreparedStudy, ax: Axes) -> None:
    times = study.trials.groupby(["subject", "stimulus_id", "split"]).size().reset_index(name="n")
    top = int(times["n"].max())
    edges = np.arange(0.5, top + 1.5) if top <= 40 else np.linspace(0.5, top + 0.5, 41)
    ax.hist([times.loc[times["split"] == split, "n"] for split in SPLITS], bins=list(edges), stacked=True,
            color=[SPLIT_COLOURS[split] for split in SPLITS], label=list(SPLITS))
    ax.set(title="repetitions", xlabel="times that a subject saw a stimulus", ylabel="stimuli x subjects")
    ax.legend()


def _onsets(found: Inspection, ax: Axes) -> None:
    steps = np.concatenate([looked.steps for looked in found.looked.values()] or [np.zeros(0)])
    ax.set(title="pace", xlabel="s from one onset to the next", ylabel="trials")
    if not len(steps):
        ax.text(0.5, 0.5, "onsets are not known", transform=ax.transAxes, ha="center", va="center", color="#777777")
        return
    most = float(np.percentile(steps, 99))
    low = min(0.0, float(steps.min()))
    ax.hist(np.clip(steps, low, 1.5 * most if most > 0 else 1.0), bins=40, color=PALETTE[0])
    if low == 0:
        ax.set_xlim(left=0)


def _spread(study: PreparedStudy, found: Inspection, ax: Axes) -> None:
    for i, (subject, looked) in enumerate(found.looked.items()):
        std = np.sort(looked.std)[::-1]
        ax.semilogy(np.arange(1, len(std) + 1), np.where(std > 0, std, np.nan), marker="." if len(std) < 130 else "",
                    lw=1, ms=3, color=PALETTE[i % len(PALETTE)], label=subject if i < 8 else None)
    ax.set(title="amplitude", xlabel="channels, sorted",
           ylabel=f"standard deviation ({study.specs[study.subjects[0]].units})")
    ax.legend(fontsize=8)


def _sessions(study: PreparedStudy, ax: Axes) -> None:
    trials = study.trials.assign(session=study.trials["session"].fillna("?").astype(str))
    counts = trials.groupby(["subject", "session", "split"]).size().unstack("split", fill_value=0)
    shown = counts.iloc[:40]
    bottom = np.zeros(len(shown))
    for split in SPLITS:
        if split in shown:
            ax.bar(range(len(shown)), shown[split], bottom=bottom, color=SPLIT_COLOURS[split], width=0.8)
            bottom += shown[split].to_numpy()
    labels = [f"{subject} {session}" for subject, session in shown.index]
    ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
    ax.set(title="trials", ylabel="trials of a session")
    ax.grid(axis="x", visible=False)


def _stimuli(study: PreparedStudy) -> Picture:
    """Draw some stimuli with their ids, evenly over the table."""
    from PIL import Image, ImageDraw

    n = len(study.stimulus_table)
    places = np.unique(np.linspace(0, n - 1, min(n, MOST_PICTURES)).astype(int))
    cell, words = 110, 12
    rows = math.ceil(len(places) / ACROSS)
    canvas = Image.new("RGB", (min(len(places), ACROSS) * (cell + 8) + 8, rows * (cell + 44) + 8), "white")
    draw = ImageDraw.Draw(canvas)
    for i, place in enumerate(places.tolist()):
        x, y = 8 + i % ACROSS * (cell + 8), 8 + i // ACROSS * (cell + 44)
        image = Image.fromarray(study.stimuli.images([place])[0])
        image.thumbnail((cell, cell))
        image = image if max(image.size) == cell else image.resize(
            (cell * image.width // max(image.size), cell * image.height // max(image.size)))
        canvas.paste(image, (x, y))
        for line, text in enumerate(wrapped(str(study.stimulus_table["stimulus_id"].iloc[place]), cell, words)[:2]):
            draw.text((x, y + cell + 3 + line * 15), text, font=font(words), fill="#444444")
    caption = f"{'All' if len(places) == n else f'{len(places)} of the'} {n} pictures as they are read, with their ids."
    return Picture(image_uri(canvas, kind="WEBP"), "Stimuli", caption=caption, min_width=620)
