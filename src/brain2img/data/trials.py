"""Which trials belong to which split, and how repetitions are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from brain2img.data.prepared import check_splits


@dataclass(frozen=True, kw_only=True)
class Split:
    """How trials are divided.

    Parameters
    ----------
    kind
        "study": as the data set defines it. "kfold": repeated k-fold cross-validation by stimulus over all trials of
        the study, whatever its own split says.
    n_folds, fold
        Number of folds and the one that is the test split ("kfold" only).
    seed
        Seed of the shuffling into folds, and of the validation part.
    val_fraction
        Share of the training stimuli split off for validation ("kfold" only).
    """

    kind: str = "study"
    n_folds: int = 1
    fold: int = 0
    seed: int = 0
    val_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("study", "kfold"):
            raise ValueError(f"split.kind: expected 'study' or 'kfold', got {self.kind!r}. Choose one of these.")
        if self.kind == "kfold" and not 0 <= self.fold < self.n_folds:
            raise ValueError(f"split.fold: expected 0..{self.n_folds - 1}, got {self.fold}. Choose one of these.")

    def assign(self, trials: pd.DataFrame, *, what: str) -> pd.Series:
        """Return the split ("train", "val", "test") of every trial, by stimulus over all subjects together.

        Raises
        ------
        ValueError
            If there are fewer stimuli than folds, a stimulus crosses splits or a subject has no training trials.
        """
        if self.kind == "study":
            check_splits(trials, what=what)
            return trials["split"]
        stimuli = np.array(sorted(set(trials["stimulus_id"])))
        if len(stimuli) < max(2, self.n_folds):
            raise ValueError(f"{what}: expected at least {max(2, self.n_folds)} stimuli for {self.n_folds} folds, got "
                             f"{len(stimuli)}. Lower split.n_folds.")
        order = np.random.default_rng([self.seed, 20250]).permutation(len(stimuli))
        folds = np.array_split(order, self.n_folds)
        split = np.full(len(stimuli), "train", dtype=object)
        split[folds[self.fold]] = "test"
        rest = order[~np.isin(order, folds[self.fold])]
        n_val = round(self.val_fraction * len(rest))
        split[rest[:n_val]] = "val"
        assigned = trials["stimulus_id"].map(dict(zip(stimuli, split, strict=True)))
        check_splits(trials.assign(split=assigned), what=what)
        return assigned


def averaged(trials: pd.DataFrame, *, n_averaged: int | None = None, n_draws: int = 1,
             seed: int = 0) -> pd.DataFrame:
    """Group trials into rows whose signals are averaged before decoding.

    Parameters
    ----------
    trials
        Trials of one split, with subject, stimulus_id and row.
    n_averaged
        How many repetitions are averaged; all by default. Stimuli with fewer repetitions are left out.
    n_draws
        How many random subsets of `n_averaged` repetitions are drawn for each stimulus.
    seed
        Seed of the drawing.

    Returns
    -------
    pandas.DataFrame
        subject, stimulus_id, n_averaged, draw, trial_ids (list of `row`, places in the subject's signals).
    """
    lines = []
    for (subject, stimulus), group in trials.groupby(["subject", "stimulus_id"], sort=False):
        rows = group["row"].to_numpy()
        if n_averaged is None:
            lines.append((subject, stimulus, len(rows), 0, rows.tolist()))
            continue
        if len(rows) < n_averaged:
            continue
        for draw in range(n_draws):
            rng = np.random.default_rng([seed, draw, int(rows[0]), len(rows)])
            lines.append((subject, stimulus, n_averaged, draw, np.sort(rng.permutation(rows)[:n_averaged]).tolist()))
    return pd.DataFrame(lines, columns=["subject", "stimulus_id", "n_averaged", "draw", "trial_ids"])


def select_subjects(trials: pd.DataFrame, subjects: list[str] | None, *, known: list[str]) -> pd.DataFrame:
    """Return the trials of the chosen subjects (all by default).

    Raises
    ------
    ValueError
        If a subject is unknown.
    """
    if subjects is None:
        return trials
    unknown = sorted(set(subjects) - set(known))
    if unknown:
        raise ValueError(f"data.subjects: expected subjects of {known}, got {unknown}. Choose some of these.")
    return trials[trials["subject"].isin(subjects)]


def channel_indices(names: tuple[str, ...], *, n: int, keep: list[str] | None, exclude: list[str],
                    subject: str) -> np.ndarray:
    """Return the places of the channels to use; names may hold shell wildcards ("PO*", "M[LRZ]O*").

    Raises
    ------
    ValueError
        If a named channel does not exist.
    """
    labels = names or tuple(f"channel {i}" for i in range(n))

    def expanded(patterns: list[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            matching = [pattern] if pattern in labels else [name for name in labels if fnmatchcase(name, pattern)]
            if not matching:
                raise ValueError(f"channels of subject {subject!r}: expected names of {', '.join(labels[:6])}, ..., "
                                 f"got {pattern}. Correct data.channels or data.exclude_channels.")
            found += [name for name in matching if name not in found]
        return found

    places: Mapping[str, int] = {name: i for i, name in enumerate(labels)}
    excluded = set(expanded(exclude))
    wanted = list(labels) if keep is None else expanded(keep)
    return np.array([places[name] for name in wanted if name not in excluded], dtype=int)
