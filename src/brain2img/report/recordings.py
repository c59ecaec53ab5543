"""Figures of the recordings: evoked responses of EEG and MEG, regions and noise ceilings of fMRI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from brain2img.data.prepared import PreparedStudy
from brain2img.records import SignalSpec
from brain2img.report.figures import Picture, new_figure, styled, to_uri
from brain2img.report.style import GREY, count, modality_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = (0.1, 0.17, 0.35)
"""Seconds after onset at which maps are drawn: the early, middle and late responses to a picture."""
MAX_TRIALS = 800
MAX_VOXELS = 6000
UNITS = {"V": (1e6, "µV"), "T": (1e15, "fT"), "T/m": (1e13, "fT/cm")}
ROI_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#4D4D4D", "#8C6D00",
               "#7F3C8D", "#80BA5A", "#A5AA99")


def evoked_figure(prepared: PreparedStudy, subjects: Sequence[str]) -> Picture | None:
    """Draw the mean response to the test images: all channels over time, and maps at `TIMES`."""
    specs = [prepared.specs[s] for s in subjects if s in prepared.specs]
    specs = [s for s in specs if s.modality in ("eeg", "meg") and s.n_times > 1]
    if not specs:
        return None
    spec = specs[0]
    same = [s for s in specs if s.ch_names == spec.ch_names and s.n_times == spec.n_times]
    # subjects whose channels differ cannot be averaged: the first stands for all
    averages = [_average(prepared, s.subject) for s in same]
    evoked = np.mean([a for a, _ in averages], axis=0)
    n_trials = sum(n for _, n in averages)
    scale, unit = UNITS.get(spec.units, (1.0, spec.units))
    x = scale * evoked
    ms = 1000 * spec.times
    moments = [t for t in TIMES if spec.times[0] <= t <= spec.times[-1]]
    maps = spec.positions is not None and spec.n_channels >= 8 and bool(moments)
    with styled():
        figure = new_figure(8.2, 5.6 if maps else 3.2)
        grid = figure.add_gridspec(2 if maps else 1, 3, height_ratios=[1.15, 1] if maps else [1])
        ax = figure.add_subplot(grid[0, :])
        for line, colour in zip(x, _channel_colours(spec), strict=True):
            ax.plot(ms, line, color=colour, lw=0.6, alpha=0.8)
        ax.plot(ms, x.std(axis=0), color="black", lw=2, label="global field power")
        ax.axvline(0, color="#999999", lw=1)
        ax.set(xlabel="ms after the image comes on", ylabel=unit, xlim=(ms[0], ms[-1]))
        ax.legend(loc="upper right")
        if maps:
            limit = float(np.percentile(np.abs(x[:, spec.times > 0]), 99.5)) or 1.0
            for i, moment in enumerate(moments):
                place = int(np.argmin(np.abs(spec.times - moment)))
                ax.axvline(ms[place], color="#555555", lw=0.8, ls=":")
                below = figure.add_subplot(grid[1, i])
                image = topography(x[:, place], spec, below, limit=limit)
                below.set_title(f"{ms[place]:.0f} ms", loc="center")
            bar = figure.colorbar(image, ax=figure.axes[1:], shrink=0.7, label=unit)
            bar.outline.set_visible(False)
        uri = to_uri(figure)
    who = (f"the mean over {len(same)} subjects" if len(same) > 1 else f"subject {spec.subject}")
    legend = (" The maps show the head from above, nose up, on one colour scale." if maps else "")
    return Picture(uri, f"Evoked response, {prepared.name}", title=prepared.name, min_width=520, caption=(
        f"Mean {modality_label(spec.modality)} response to the test images ({who}, {count(n_trials, 'trial')}). Above: "
        "every channel, coloured by its place on the head, and the global field power (standard deviation over "
        f"channels).{legend} A response to pictures begins over the back of the head near 100 ms and spreads forward "
        "and to the sides; nothing should stand out before 0 ms."))


def _average(prepared: PreparedStudy, subject: str) -> tuple[np.ndarray, int]:
    """Return the mean ``(C, T)`` over test trials (training trials where there are none), and how many."""
    trials = prepared.trials_of(subject)
    rows = trials.loc[trials["split"] == "test", "row"].to_numpy()
    rows = rows if len(rows) else trials["row"].to_numpy()
    # evenly spread: enough for a clean mean without reading gigabytes
    rows = np.sort(rows)[np.linspace(0, len(rows) - 1, min(len(rows), MAX_TRIALS)).astype(int)]
    signals = prepared.signals(subject)
    total = np.zeros(signals.shape[1:])
    for start in range(0, len(rows), 100):
        total += signals[rows[start:start + 100]].sum(axis=0, dtype=np.float64)
    return total / len(rows), len(rows)


def _channel_colours(spec: SignalSpec) -> np.ndarray | list[str]:
    if spec.positions is None:
        return [GREY] * spec.n_channels
    places = np.asarray(spec.positions, dtype=float)
    span = np.ptp(places, axis=0)
    return 0.85 * (places - places.min(axis=0)) / np.where(span > 0, span, 1)


def topography(values: np.ndarray, spec: SignalSpec, ax: Axes, *, limit: float) -> Any:
    """Draw one value per channel ``(C,)`` on the head from above, nose up, on a scale of -limit to limit."""
    import mne

    positions = np.asarray(spec.positions, dtype=float)
    # planar gradiometers share a place: the map shows the root of their summed squares
    keys = np.round(positions, 3)
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    if len(first) < len(positions):
        values = np.sqrt(np.bincount(group.ravel(), weights=values ** 2))
        positions = positions[first]
    image, _ = mne.viz.plot_topomap(
        values, _flat(positions), axes=ax, show=False, cmap="RdBu_r", vlim=(-limit, limit),
        sensors="k." if len(values) < 100 else "k,", contours=limit * np.array([-0.6, -0.2, 0.2, 0.6]),
        sphere=(0.0, 0.0, 0.0, 1.0), extrapolate="head" if spec.modality == "eeg" else "local")
    return image


def _flat(positions: np.ndarray) -> np.ndarray:
    """Lay sensors ``(C, 3)`` out flat by their angle from the vertical: ``(C, 2)``, all within a head of radius 1."""
    equations = np.column_stack([2 * positions, np.ones(len(positions))])
    centre = np.linalg.lstsq(equations, (positions ** 2).sum(axis=1), rcond=None)[0][:3]  # of the sphere through them
    centre[:2] = (positions.min(axis=0) + positions.max(axis=0))[:2] / 2
    x, y, z = (positions - centre).T
    angle, around = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    return 0.95 * (angle / angle.max())[:, None] * np.column_stack([np.cos(around), np.sin(around)])


def roi_figure(prepared: PreparedStudy, subjects: Sequence[str]) -> Picture | None:
    """Draw where the voxels of the first subject with known positions lie, coloured by region, from three sides."""
    spec = next((prepared.specs[s] for s in subjects if s in prepared.specs
                 and prepared.specs[s].ijk is not None), None)
    if spec is None or spec.ijk is None:
        return None
    # nobody says that these are template coordinates, so the outline of a template brain would only mislead
    xyz, corners = _places(spec)
    rois = np.array(spec.rois if spec.rois else ("",) * len(xyz))
    names = [r for r in dict.fromkeys(spec.rois) if r][:len(ROI_COLOURS)]
    palette = dict(zip(names, ROI_COLOURS, strict=False))
    keep = np.linspace(0, len(xyz) - 1, min(len(xyz), MAX_VOXELS)).astype(int)
    ends = ("left – right", "back – front", "down – up") if spec.affine is not None else ("i", "j", "k")
    unit = "mm" if spec.affine is not None else "voxels"
    with styled():
        figure = new_figure(8.2, 3.4)
        for ax, (a, b, side) in zip(figure.subplots(1, 3), (
                (1, 2, "from the side"), (0, 2, "from behind"), (0, 1, "from above")), strict=True):
            if corners is not None:
                x, y = corners[:, a], corners[:, b]
                ax.plot([x[0], x[1], x[1], x[0], x[0]], [y[0], y[0], y[1], y[1], y[0]], color="#CCCCCC", lw=1)
            # far voxels first, so that near ones lie on top
            depth = 3 - a - b
            order = keep[np.argsort(xyz[keep, depth] * (-1 if side == "from behind" else 1))]
            ax.scatter(xyz[order, a], xyz[order, b], s=9, alpha=0.75, lw=0,
                       color=[palette.get(str(rois[i]), "#BBBBBB") for i in order])
            ax.set(title=side, xlabel=f"{ends[a]} ({unit})", ylabel=f"{ends[b]} ({unit})")
            ax.set_aspect("equal", adjustable="datalim")
        if names:
            from matplotlib.lines import Line2D

            marks = [Line2D([], [], marker="o", ls="", color=palette[n], ms=6,
                            label=f"{n} ({int((rois == n).sum())})") for n in names]
            figure.legend(handles=marks, ncols=min(len(names), 8), fontsize=8, handletextpad=0.1, columnspacing=1.2,
                          loc="outside lower center")
        uri = to_uri(figure)
    box = " Grey: the volume they come from." if corners is not None else ""
    return Picture(uri, f"Voxels by region, {prepared.name}", title=prepared.name, min_width=560, caption=(
        f"The {spec.n_channels:,} voxels of subject {spec.subject} that the decoders read".replace(",", " ")
        + (", coloured by region (number of voxels in brackets)" if names else "") + f".{box}"))


def _places(spec: SignalSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the voxels' places ``(C, 3)``, in mm where the affine is known, and two corners of the volume."""
    ijk = np.asarray(spec.ijk, dtype=float)
    corners = None if spec.volume_shape is None else np.array([[0, 0, 0], np.array(spec.volume_shape) - 1.0])
    if spec.affine is None:
        return ijk, corners
    rotation, shift = spec.affine[:3, :3].T, spec.affine[:3, 3]
    return ijk @ rotation + shift, None if corners is None else corners @ rotation + shift


def noise_ceiling_figure(prepared: PreparedStudy, subjects: Sequence[str]) -> Picture | None:
    """Draw the noise ceiling of the voxels of every region and subject."""
    specs = [prepared.specs[s] for s in subjects if s in prepared.specs]
    specs = [s for s in specs if s.noise_ceiling is not None and np.isfinite(s.noise_ceiling).any()]
    if not specs:
        return None
    names = [r for r in dict.fromkeys(r for s in specs for r in s.rois) if r] or [""]
    with styled():
        figure = new_figure(8.2, 2.9)
        ax = figure.add_subplot()
        width = 0.8 / len(specs)
        for j, spec in enumerate(specs):
            ceiling = np.asarray(spec.noise_ceiling, dtype=float)
            rois = np.array(spec.rois) if spec.rois else np.full(len(ceiling), "")
            groups = [ceiling[(rois == n) & np.isfinite(ceiling)] for n in names]
            places = [i - 0.4 + width * (j + 0.5) for i in range(len(names))]
            boxes = ax.boxplot([g if len(g) else [np.nan] for g in groups], positions=places, widths=0.85 * width,
                               showfliers=False, patch_artist=True, medianprops={"color": "white", "lw": 1.6},
                               whiskerprops={"color": "#999999"}, showcaps=False, manage_ticks=False)
            for i, box in enumerate(boxes["boxes"]):
                box.set(facecolor=ROI_COLOURS[i % len(ROI_COLOURS)] if names != [""] else GREY, edgecolor="none",
                        alpha=0.9)
        ax.set_xticks(range(len(names)), [n or "all voxels" for n in names])
        ax.set(ylim=(0, None), ylabel="noise ceiling\n(share of variance)")
        ax.grid(axis="x", visible=False)
        uri = to_uri(figure)
    many = f" Boxes of one colour, left to right: {', '.join(s.subject for s in specs)}." if len(specs) > 1 else ""
    return Picture(uri, f"Noise ceiling, {prepared.name}", title=prepared.name, min_width=460, caption=(
        "Share of a voxel's variance that the picture explains at best (box: middle half of the voxels, white line: "
        f"median, whiskers: range without outliers).{many} No decoder can get more out of a region than this "
        "leaves."))
