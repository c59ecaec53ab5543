"""Which trials belong to which split, and how repetitions are averaged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from brain2img.data.prepared import check_splits
from brain2img.data.same_stimuli import POLICIES, settle
from brain2img.data.units import UNITS, divided, units

OVER_SUBJECTS = ("in_subject", "leave_one_subject_out")
"""Kinds of split of which fold k is about subject k of those chosen, in their order."""
HOLDOUTS = {f"by_{unit}": unit for unit in UNITS}
"""Kinds that hold out a share of the stimuli, and the unit that is not divided."""
KINDS = ("study", *HOLDOUTS, "kfold", "leave_one_stimulus_out", *OVER_SUBJECTS)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How trials are divided.

    Parameters
    ----------
    kind
        "study": as the data set defines it, all subjects together. "by_stimulus", "by_concept", "by_session": shares
        `test_fraction` and `val_fraction` of the stimuli, concepts or sessions are held out, whatever the study's own
        split says. "kfold": repeated k-fold cross-validation over them, units as `by` says; "leave_one_stimulus_out": a
        fold for every stimulus. "in_subject": fold k trains and tests on
        one subject alone. "leave_one_subject_out": fold k trains and validates on all others, and tests on the test
        stimuli of the one left out; test stimuli are trained on from no subject. The recordings of its training
        stimuli become the split "unseen": statistics of its signals come from them (the published convention), and
        what was shown in them is used by nobody. Both follow the study's own division of the stimuli.
    n_folds, fold
        Number of folds ("kfold") and the one that is the test split, or the subject's.
    by
        What is never divided between folds ("kfold"): a "stimulus", a "concept" or a "session".
    seed
        Seed of the shuffling into folds, and of the validation part.
    test_fraction
        Share of the stimuli, concepts or sessions that is the test split ("by_..." only).
    val_fraction
        Share of the others split off for validation (folds and "by_...").
    prior_fraction
        Share of the validation stimuli that is kept from early stopping: split "prior", for fitting a prior on.
    held_out
        (part, number of parts): this part of the training stimuli becomes the split "held_out", so that a decoder
        trained on the rest predicts it as if it were new. None for none.
    train_trials
        So many training trials of every subject are kept, the others become the split "unused": how well a subject can
        be decoded with less data. None keeps all. Validation and test stay whole, so that scores can be compared.
    train_order
        Which ones: "random" (of one seed, fewer trials are a part of more), or "first" in the order of recording, as
        with the first sessions alone; published runs take the first n of a folder (MindBridge).
    train_seed
        Seed of the random choice.
    duplicates
        What is done with stimuli that are the same under several ids: "refuse" and "drop" keep them together wherever
        stimuli are divided; where the study's own split divides them, one is an error, and the other leaves copies out
        as `same_stimuli.settle` says. "keep" takes them for different stimuli.
    """

    kind: str = "study"
    n_folds: int = 1
    fold: int = 0
    by: str = "stimulus"
    seed: int = 0
    test_fraction: float = 0.2
    val_fraction: float = 0.0
    prior_fraction: float = 0.0
    held_out: tuple[int, int] | None = None
    train_trials: int | None = None
    train_order: str = "random"
    train_seed: int = 0
    duplicates: str = "refuse"

    def __post_init__(self) -> None:
        if self.duplicates not in POLICIES:
            raise ValueError(f"split.duplicates: expected one of {POLICIES}, got {self.duplicates!r}. Choose one of "
                             "these.")
        if self.train_order not in ("random", "first"):
            raise ValueError(f"split.train_order: expected 'random' or 'first', got {self.train_order!r}. Choose one "
                             "of these.")
        if self.train_trials is not None and self.train_trials < 1:
            raise ValueError(f"split.train_trials: expected 1 or more, or null for all, got {self.train_trials}. "
                             "Correct it.")
        if self.kind not in KINDS:
            raise ValueError("split.kind: expected 'study' or 'kfold', a part held out "
                             f"{tuple(HOLDOUTS)}, 'leave_one_stimulus_out', or with subjects as folds one of "
                             f"{OVER_SUBJECTS}, got {self.kind!r}. Choose one of these.")
        if self.by not in UNITS:
            raise ValueError(f"split.by: expected one of {UNITS}, got {self.by!r}. Choose one of these.")
        for name in ("test_fraction", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"split.{name}: expected a share from 0 to below 1, got {getattr(self, name)}. "
                                 "Correct it.")
        if self.kind == "kfold" and not 0 <= self.fold < self.n_folds:
            raise ValueError(f"split.fold: expected 0..{self.n_folds - 1}, got {self.fold}. Choose one of these.")
        if not 0 <= self.prior_fraction <= 1:
            raise ValueError(f"split.prior_fraction: expected a share between 0 and 1, got {self.prior_fraction}. "
                             "Correct it.")

    def assign(self, trials: pd.DataFrame, *, what: str, concepts: Mapping[str, str | None] | None = None,
               same_as: Mapping[str, str] | None = None) -> pd.Series:
        """Return the split of every trial, by stimulus over all subjects together.

        Parameters
        ----------
        trials
            Trials of the study, with subject, stimulus_id and split.
        what
            What messages call the study.
        concepts
            Stimulus id -> concept. What is set aside for a prior, and what is held out, is chosen by concept where the
            test concepts are new to the decoder, else by stimulus: the prior shall meet what the test brings.
        same_as
            Stimulus id -> id of the first stimulus that is the same, as `PreparedStudy.same_as`; each stands for itself
            by default.

        Returns
        -------
        pandas.Series
            "train", "val" or "test"; "prior", "held_out", "unseen" and "unused" where these are asked for.

        Raises
        ------
        ValueError
            If there are fewer stimuli than folds or parts, a stimulus crosses splits, a subject has no training trials
            or fewer than asked for, or one is to be left out of one.
        """
        same_as = {} if same_as is None or self.duplicates == "keep" else same_as
        assigned = self._set_aside(trials, what=what, concepts=concepts or {}, same_as=same_as)
        if self.train_trials is not None:
            assigned = self._limited(trials, assigned, what=what)
        return self._of_subject(trials, assigned, what=what) if self.kind in OVER_SUBJECTS else assigned

    def _of_subject(self, trials: pd.DataFrame, assigned: pd.Series, *, what: str) -> pd.Series:
        subjects = list(trials["subject"].unique())
        if self.kind == "leave_one_subject_out" and len(subjects) < 2:
            raise ValueError(f"{what}: expected two subjects or more for split.kind=leave_one_subject_out, got "
                             f"{subjects}. Choose more with data.subjects=[...], or split.kind=in_subject.")
        if not 0 <= self.fold < len(subjects):
            raise ValueError(f"{what}: expected split.fold 0..{len(subjects) - 1}, one for each of its subjects, got "
                             f"{self.fold}. Choose one of these.")
        mine = trials["subject"] == subjects[self.fold]
        if self.kind == "in_subject":
            return assigned.where(mine, "unused")
        own = assigned.where(assigned == "test", "unused").mask(assigned == "train", "unseen")
        return own.where(mine, assigned.mask(assigned == "test", "unused"))

    def _limited(self, trials: pd.DataFrame, assigned: pd.Series, *, what: str) -> pd.Series:
        assigned = assigned.copy()
        for subject, mine in trials[assigned == "train"].groupby("subject"):
            if len(mine) < (self.train_trials or 0):
                raise ValueError(f"{what}, subject {subject!r}: expected at least the {self.train_trials} training "
                                 f"trials asked for, got {len(mine)}. Ask for at most {len(mine)}, or for all (null).")
            places = mine.sort_values("row").index.to_numpy()
            if self.train_order == "random":
                places = places[np.random.default_rng([self.train_seed, 41]).permutation(len(places))]
            assigned.loc[places[self.train_trials:]] = "unused"
        return assigned

    def _set_aside(self, trials: pd.DataFrame, *, what: str, concepts: Mapping[str, str | None],
                   same_as: Mapping[str, str]) -> pd.Series:
        assigned = self._folds(trials, what=what, concepts=concepts, same_as=same_as)
        assigned = settle(trials.assign(split=assigned), same_as=same_as, duplicates=self.duplicates, what=what)
        if self.prior_fraction == 0 and self.held_out is None:
            return assigned
        split = dict(zip(trials["stimulus_id"], assigned, strict=True))
        unit = grouping(split, concepts, same_as=same_as)
        if self.prior_fraction:
            groups = _shuffled({unit[s] for s in split if split[s] == "val"}, seed=self.seed)
            if not groups:
                raise ValueError(f"{what}: expected validation stimuli, of which split.prior_fraction="
                                 f"{self.prior_fraction} are set aside, got none. Set split.val_fraction (kind=kfold), "
                                 "or fit the prior on out-of-fold predictions (prior_fit.source=out_of_fold).")
            aside = set(groups[:max(1, round(self.prior_fraction * len(groups)))])
            split |= {s: "prior" for s in split if split[s] == "val" and unit[s] in aside}
        if self.held_out is not None:
            part, n_parts = self.held_out
            groups = _shuffled({unit[s] for s in split if split[s] == "train"}, seed=self.seed)
            if not 2 <= n_parts <= len(groups):
                raise ValueError(f"{what}: expected 2 to {len(groups)} parts of the training stimuli, of which each is "
                                 f"held out once, got {n_parts}. Correct prior_fit.folds.")
            out = set(np.array_split(np.array(groups, dtype=object), n_parts)[part])
            split |= {s: "held_out" for s in split if split[s] == "train" and unit[s] in out}
        assigned = trials["stimulus_id"].map(split)
        for subject in trials["subject"].unique():
            if not ((trials["subject"] == subject) & (assigned == "train")).any():
                raise ValueError(f"{what}: expected training trials of every subject beside those held out, got none "
                                 f"of subject {subject!r}. Raise prior_fit.folds, or leave this subject out.")
        return assigned

    def _folds(self, trials: pd.DataFrame, *, what: str, concepts: Mapping[str, str | None],
               same_as: Mapping[str, str]) -> pd.Series:
        if self.kind in ("study", *OVER_SUBJECTS):
            check_splits(trials, what=what)
            return trials["split"]
        unit = units(trials, by=HOLDOUTS.get(self.kind, self.by if self.kind == "kfold" else "stimulus"),
                     concepts=concepts, same_as=same_as, what=what)
        n_folds = len(set(unit.values())) if self.kind == "leave_one_stimulus_out" else self.n_folds
        if self.kind not in HOLDOUTS and not 0 <= self.fold < n_folds:
            raise ValueError(f"{what}: expected split.fold 0..{n_folds - 1}, one for each stimulus, got {self.fold}. "
                             "Choose one of these.")
        split = divided(unit, n_folds=n_folds, fold=self.fold, seed=self.seed, val_fraction=self.val_fraction,
                        test_fraction=self.test_fraction if self.kind in HOLDOUTS else None, what=what)
        assigned = trials["stimulus_id"].map(split)
        check_splits(trials.assign(split=assigned), what=what)
        return assigned


def number_of_folds(split: Mapping[str, Any], trials: pd.DataFrame, *, concepts: Mapping[str, str | None],
                    same_as: Mapping[str, str] | None = None) -> int:
    """Return how many folds the ``split`` of a configuration has on the trials of the chosen subjects."""
    kind = split["kind"]
    if kind == "kfold":
        return int(split.get("n_folds", 1))
    if kind == "leave_one_stimulus_out":
        same_as = None if split.get("duplicates") == "keep" else same_as
        return len(set(units(trials, by="stimulus", concepts=concepts, same_as=same_as, what="split").values()))
    return trials["subject"].nunique() if kind in OVER_SUBJECTS else 1


def grouping(split: Mapping[str, str], concepts: Mapping[str, str | None], *,
             same_as: Mapping[str, str]) -> dict[str, str]:
    """Return stimulus id -> what must not be divided: its concept where no test concept is trained on, else itself.

    Parameters
    ----------
    split
        Stimulus id -> split.
    concepts
        Stimulus id -> concept; a stimulus without one stands for itself.
    same_as
        Stimulus id -> id of the first that is the same, for which it counts.
    """
    first = {s: same_as.get(s, s) for s in split}
    concept = {s: f"concept {concepts[f]}" if concepts.get(f) else f for s, f in first.items()}
    of = {name: {concept[s] for s in split if split[s] == name} for name in ("train", "test")}
    return concept if of["test"].isdisjoint(of["train"]) else first


def _shuffled(groups: set[str], *, seed: int) -> list[str]:
    return list(np.random.default_rng([seed, 31]).permutation(np.array(sorted(groups), dtype=object)))


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


def at_most(items: pd.DataFrame, n: int, *, seed: int) -> pd.DataFrame:
    """Return the rows of `averaged` with at most `n` repetitions each, drawn at random."""
    kept = [np.sort(np.random.default_rng([seed, int(ids[0]), len(ids)]).permutation(ids)[:n]).tolist()
            for ids in items["trial_ids"]]
    return items.assign(trial_ids=kept, n_averaged=[len(ids) for ids in kept])


def limit_of(asked: int | str | None, trials: pd.DataFrame, *, what: str) -> int | None:
    """Return how many training trials an amount of data is.

    Parameters
    ----------
    asked
        A number of trials; a time as "30min" or "1.5h", which counts the time from one onset to the next within runs
        and neither pauses nor set-up (NSD's session, an "hour" in published tables, is 750 trials, 50 minutes so); None
        for all.
    trials
        Trials of the subject, with session, run and onset where a time is asked for.
    what
        What messages call the subject.

    Raises
    ------
    ValueError
        If it is none of these, or a time where the onsets are not known.
    """
    if asked is None or (isinstance(asked, int) and not isinstance(asked, bool) and asked > 0):
        return asked
    number, unit = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(min|h)", str(asked).strip()), {"min": 60.0, "h": 3600.0}
    if number is None or float(number[1]) == 0:
        raise ValueError(f"trials: expected a number above 0, a time such as 30min or 1.5h, or null for all, got "
                         f"{asked!r}. Correct trials=.")
    seconds = seconds_per_trial(trials)
    if seconds is None:
        raise ValueError(f"{what}: expected onsets of trials, which trials={asked} needs, got none. Ask for a number "
                         "of trials.")
    return max(1, round(float(number[1]) * unit[number[2]] / seconds))


def seconds_per_trial(trials: pd.DataFrame) -> float | None:
    """Return the median time from one onset to the next within runs (s), or None where onsets are not known."""
    steps = trials.assign(onset=pd.to_numeric(trials["onset"])).sort_values(["session", "run", "onset"]).groupby(
        ["session", "run"], dropna=False)["onset"].diff()
    return float(steps.median()) if steps.notna().any() else None


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


def session_names(trials: pd.DataFrame) -> pd.Series:
    """Return the session of each trial as a string, "" where it is not known."""
    return trials["session"].astype(object).map(lambda name: "" if pd.isna(name) else str(name))


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
