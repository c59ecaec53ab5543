"""What a prepared study holds, what it lacks and what looks wrong in it, in sentences, before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from brain2img.data.prepared import SPLITS, PreparedStudy
from brain2img.data.units import units

MOST_TRIALS, MOST_PICTURES = 400, 3000
"""Trials of a subject, and pictures, that are looked at: of more every second, third, ... one."""
#: Standard deviations (in V, T, T/m) of channels that a brain is usually recorded with.
USUAL = {"V": (2e-7, 3e-4), "T": (1e-15, 5e-12), "T/m": (1e-14, 5e-10)}
FEW_STIMULI, FEW_TRIALS, SMALL = 60, 100, 32


@dataclass(frozen=True)
class Looked:
    """What was looked at of one subject's signals.

    Parameters
    ----------
    std
        ``(C,)`` standard deviation of each channel, in the unit of the spec.
    constant
        Names of channels that never change.
    steps
        Seconds from one onset to the next within runs; empty where onsets are not known.
    """

    std: np.ndarray
    constant: list[str]
    steps: np.ndarray


@dataclass
class Inspection:
    """Sentences about a study, and what its figures show."""

    understood: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    looked: dict[str, Looked] = field(default_factory=dict)

    @property
    def constant(self) -> list[str]:
        """Names of channels that never change in some subject."""
        return list(dict.fromkeys(name for looked in self.looked.values() for name in looked.constant))


def inspect(study: PreparedStudy) -> Inspection:
    """Look at a prepared study; of large ones at a part of the signals and pictures."""
    found = Inspection()
    for subject in study.subjects:
        _subject(study, subject, found)
    _stimuli(study, found)
    _splits(study, found)
    found.understood += study.notes
    return found


def few_stimuli(study: PreparedStudy) -> bool:
    """Tell whether so few stimuli were shown that each should be decoded once, in turns."""
    return study.trials["stimulus_id"].nunique() <= FEW_STIMULI


def _subject(study: PreparedStudy, subject: str, found: Inspection) -> None:
    spec, trials = study.specs[subject], study.trials_of(subject)
    times = trials.groupby("stimulus_id").size()
    sessions = trials["session"].nunique()
    noun = "voxels" if spec.modality == "fmri" else "channels"
    text = (f"{subject}: {len(trials)} trials of {len(times)} stimuli, each shown {_between(times)} "
            f"{'time' if times.max() == 1 else 'times'}" + (f", in {sessions} sessions" if sessions > 1 else "")
            + f"; {spec.n_channels} {noun}")
    if spec.n_times > 1:
        text += (f", {spec.n_times} samples at {spec.sfreq:g} Hz, from {1000 * spec.times[0]:.0f} to "
                 f"{1000 * spec.times[-1]:.0f} ms after onset")
    found.understood.append(f"{text}; in {spec.units}{', whitened already' if spec.whitened else ''}.")
    for name, what in (("session", "signals are scaled over all trials of the subject, and no split by session"),
                       ("onset", "pace and overlap of responses cannot be checked, nor amounts of data in minutes")):
        if trials[name].isna().all():
            found.missing.append(f"{subject}: no {name}s, so that {what} can be made." if name == "session" else
                                 f"{subject}: no {name}s, so that {what}.")
    if spec.modality != "fmri" and not spec.ch_names:
        found.missing.append(f"{subject}: no names of channels, so that none can be chosen by name and order cannot be "
                             "compared between subjects.")
    elif spec.modality != "fmri" and spec.positions is None:
        found.missing.append(f"{subject}: no positions of channels, so that there are no maps of the head.")
    elif spec.modality == "fmri" and not spec.rois:
        found.missing.append(f"{subject}: no regions of voxels, so that results by region cannot be made.")
    for split, mine in trials.groupby("split"):
        of_split = mine.groupby("stimulus_id").size()
        if of_split.max() > 2 * of_split.min():
            found.wrong.append(f"{subject}: some {split} stimuli were shown {int(of_split.max())} times, others "
                               f"{int(of_split.min())} ({of_split.idxmin()!r}): their averages differ in noise.")
    n_train = int((trials["split"] == "train").sum())
    if n_train < FEW_TRIALS:
        found.wrong.append(f"{subject}: {n_train} training trials are few; expect wide intervals, and deep decoders to "
                           "do worse than ridge.")
    steps = _steps(trials)
    window = spec.n_times / spec.sfreq if spec.sfreq else 0.0
    if len(steps) and (steps <= 0).any():
        found.wrong.append(f"{subject}: {int((steps <= 0).sum())} onsets are not after the one before within their "
                           "run. Are runs or sessions mixed up, or is onset not in seconds?")
    elif len(steps) and window and np.median(steps) < window:
        found.wrong.append(f"{subject}: one onset to the next takes {np.median(steps):.3g} s, less than the "
                           f"{window:.3g} s of a trial: it holds responses to the next stimulus, too, and if splits "
                           "alternate, training trials hold the response to test stimuli. Shorten data.window.")
    found.looked[subject] = _signals(study, subject, steps, found)


def _steps(trials: pd.DataFrame) -> np.ndarray:
    onsets = pd.to_numeric(trials["onset"])
    if onsets.isna().all():
        return np.zeros(0)
    known = trials.assign(onset=onsets).dropna(subset="onset").sort_values("row")
    return known.groupby(["session", "run"], dropna=False)["onset"].diff().dropna().to_numpy(dtype=float)


def _signals(study: PreparedStudy, subject: str, steps: np.ndarray, found: Inspection) -> Looked:
    spec, signals = study.specs[subject], study.stored_signals(subject)
    rows = np.arange(0, len(signals), max(1, len(signals) // MOST_TRIALS))
    n, total, square, first = 0, 0.0, 0.0, None
    low, high = np.full(spec.n_channels, np.inf), np.full(spec.n_channels, -np.inf)
    seen: dict[str, int] = {}
    same, peaks, baseline, roughness = [], [], [], []
    before = spec.times < 0 if spec.n_times > 1 else np.zeros(1, dtype=bool)
    for start in range(0, len(rows), 32):
        x = np.asarray(signals[rows[start:start + 32]], dtype=np.float64)
        for row, trial in zip(rows[start:start + 32].tolist(), x, strict=True):
            key = hashlib.sha256(trial.tobytes()).hexdigest()
            if key in seen:
                same.append((seen[key], row))
            seen.setdefault(key, row)
        first = x[:1].mean(axis=(0, 2)) if first is None else first  # so that large offsets do not cancel
        centred = x - first[:, None]
        total, square, n = total + centred.sum(axis=(0, 2)), square + (centred**2).sum(axis=(0, 2)), n + x[:, 0].size
        low, high = np.minimum(low, x.min(axis=(0, 2))), np.maximum(high, x.max(axis=(0, 2)))
        peaks += np.abs(x - x.mean(axis=2, keepdims=True) if x.shape[2] > 1 else centred).max(axis=(1, 2)).tolist()
        if before.sum() > 1:
            baseline.append(x[:, :, before].mean(axis=2))
        if min(x.shape[1:]) >= 8:
            roughness.append((np.square(np.diff(x, axis=2)).mean(), np.square(np.diff(x, axis=1)).mean()))
    std = np.sqrt(np.maximum(square / n - (total / n) ** 2, 0))
    flat = low == high
    names = spec.ch_names or tuple(f"channel {i}" for i in range(spec.n_channels))
    part = "" if len(rows) == len(signals) else f" (in {len(rows)} of {len(signals)} trials)"
    if same:
        found.wrong.append(f"{subject}: {len(same)} trials hold the same signals as another{part} (first: rows "
                           f"{same[0][0]} and {same[0][1]}). Are files or lines there twice?")
    if flat.any():
        found.wrong.append(f"{subject}: {int(flat.sum())} channels never change{part}: "
                           f"{_some([names[i] for i in np.flatnonzero(flat)])}. The command below leaves them out.")
    _amplitudes(study, subject, std[~flat], np.array(names)[~flat], np.array(peaks), part, found)
    if baseline and spec.units in USUAL:
        offset = np.abs(np.concatenate(baseline).mean(axis=0))[~flat]
        share = float(np.median(offset / np.maximum(std[~flat], 1e-30))) if len(offset) else 0.0
        if share > 1:
            found.wrong.append(f"{subject}: the mean before onset is {share:.1f} standard deviations from 0: the "
                               "baseline was not taken off. Take it off before saving the arrays.")
    if roughness:
        over_time, over_channels = np.mean(roughness, axis=0)
        if over_time > 1.5 * over_channels:
            found.wrong.append(f"{subject}: signals change more from sample to sample than from channel to channel. "
                               "Are the two axes exchanged? (study.axes=[trials,samples,channels])")
    return Looked(std, [names[i] for i in np.flatnonzero(flat)], steps)


def _amplitudes(study: PreparedStudy, subject: str, std: np.ndarray, names: np.ndarray, peaks: np.ndarray, part: str,
                found: Inspection) -> None:
    spec = study.specs[subject]
    if not len(std):
        return
    middle = float(np.median(std))
    low, high = USUAL.get(spec.units, (0.0, np.inf))
    if not low <= middle <= high:
        found.wrong.append(f"{subject}: channels have a standard deviation of {middle:.2g} {spec.units}; usual are "
                           f"{low:g} to {high:g} {spec.units}. Is the unit right?")
    loud = std > 8 * middle
    if loud.any() and spec.modality != "fmri":
        found.wrong.append(f"{subject}: {int(loud.sum())} channels are more than 8 times as strong as the middle one: "
                           f"{_some(names[loud].tolist())}. Bad contact, or another kind of channel?")
    wild = peaks > 10 * np.median(peaks)
    if wild.any():
        found.wrong.append(f"{subject}: {int(wild.sum())} trials{part} reach more than 10 times the usual peak. "
                           "Artefacts? They count like all others.")


def _stimuli(study: PreparedStudy, found: Inspection) -> None:
    table = study.stimulus_table
    n = len(table)
    for column, plural in (("concept", "concepts"), ("category", "categories")):
        if table[column].isna().all():
            found.missing.append(f"No {plural} of the stimuli"
                                 + (", so that no split by concept can be made." if column == "concept" else "."))
    captions = int(sum(bool(c) for c in table["captions"]))
    if not captions:
        found.missing.append("No captions, so that captions cannot be scored nor chosen from those of training.")
    kinds = " and ".join(f"{table[column].nunique()} {plural}" for column, plural in
                         (("concept", "concepts"), ("category", "categories")) if table[column].notna().any())
    text = f"{n} stimuli" + (f" of {kinds}" if kinds else "") + (
        f", {'all' if captions == n else captions} with captions" if captions else "")
    if not study.has_images:
        found.missing.append("No pictures: the decoders of the demo need them. Choose spaces of captions, e.g. "
                             "space=[clip_text_vit_h14], with a head for each, and no reconstructor.")
        found.understood.append(f"{text}, without pictures.")
        return
    places = range(0, n, max(1, n // MOST_PICTURES))
    sizes: dict[tuple[int, ...], int] = {}
    seen: dict[str, str] = {}
    twice, dull = [], []
    for place in places:
        image = study.stimuli.images([place])[0]
        stimulus = table["stimulus_id"].iloc[place]
        sizes[image.shape[:2]] = sizes.get(image.shape[:2], 0) + 1
        key = hashlib.sha256(image.tobytes()).hexdigest()
        if key in seen:
            twice.append((seen[key], stimulus))
        seen.setdefault(key, stimulus)
        if np.ptp(image, axis=(0, 1)).max() < 8:
            dull.append(stimulus)
    (height, width), _ = max(sizes.items(), key=lambda item: item[1])
    found.understood.append(f"{text}; pictures are read as {width} x {height} pixels"
                            + (", the largest square in the middle of each" if study.image_size else "") + ".")
    if twice:
        found.wrong.append(f"{len(twice)} pictures are there under two names ({twice[0][0]!r} is {twice[0][1]!r}): one "
                           "could be trained on and the other tested. Give them one stimulus_id.")
    if dull:
        found.wrong.append(f"{len(dull)} pictures are of one colour: {_some(dull)}. Are the files whole?")
    if width != height:
        found.wrong.append(f"Pictures are {width} x {height} pixels, not square: networks see their middle or squeeze "
                           "them. Set study.image_size to read the largest square.")
    if min(width, height) < SMALL:
        found.wrong.append(f"Pictures of {width} x {height} pixels are small; networks see little in them.")


def _splits(study: PreparedStudy, found: Inspection) -> None:
    trials = study.trials
    n = trials["stimulus_id"].nunique()
    table = study.stimulus_table.set_index("stimulus_id")
    concepts = {split: set(table.loc[list(set(mine["stimulus_id"])), "concept"].dropna())
                for split, mine in trials.groupby("split")}
    for split in SPLITS:
        mine = trials[trials["split"] == split]
        if len(mine):
            classes = f" of {_count(len(concepts[split]), 'concept', 'concepts')}" if concepts.get(split) else ""
            shown = _count(mine["stimulus_id"].nunique(), "stimulus", "stimuli")
            found.understood.append(f"Split {split}: {len(mine)} trials of {shown}{classes}.")
    both = concepts.get("train", set()) & concepts.get("test", set())
    if both:
        found.understood.append(f"{len(both)} of {len(concepts['test'])} test concepts are trained on, too, with other "
                                "stimuli: what is tested are new pictures, not new concepts (split.kind=by_concept "
                                "holds out whole concepts).")
    if not (trials["split"] == "test").any():
        found.wrong.append("No trials are in the test split: nothing would be scored. Choose another split, e.g. "
                           "split.kind=by_stimulus.")
    if few_stimuli(study):
        turns = "each" if n <= FEW_STIMULI // 2 else "a part"
        found.wrong.append(f"{n} different stimuli are few: a single test split would hold a handful. The command "
                           f"below leaves {turns} out in turn and scores all {n} together.")
    sizes = table.loc[list(set(trials["stimulus_id"])), "concept"].value_counts()
    if len(sizes) > 1 and sizes.max() > 5 * sizes.min():
        found.wrong.append(f"Concepts are unbalanced: {int(sizes.max())} stimuli of {sizes.idxmax()!r}, "
                           f"{int(sizes.min())} of {sizes.idxmin()!r}. Say what a guess of the commonest would score.")
    seen = trials.groupby("subject")["stimulus_id"].agg(frozenset)
    if seen.nunique() > 1:
        found.understood.append(f"Subjects saw different stimuli; all saw {len(frozenset.intersection(*seen))} of "
                                f"{n}.")
    try:
        units(trials, by="session", concepts={}, what="study")
    except ValueError:
        return
    if trials["session"].nunique() > 1:
        found.understood.append("Sessions share no stimulus, so that whole ones can be held out "
                                "(split.kind=by_session).")


def _between(values: pd.Series) -> str:
    return f"{values.min()}" if values.min() == values.max() else f"{values.min()} to {values.max()}"


def _count(n: int, one: str, several: str) -> str:
    return f"{n} {one if n == 1 else several}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
