"""What must not be divided between splits: a stimulus, all stimuli of a concept, or all of a session."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

UNITS = ("stimulus", "concept", "session")


def units(trials: pd.DataFrame, *, by: str, concepts: Mapping[str, str | None], what: str,
          same_as: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return stimulus id -> its unit, in the order of the ids: the one place that says what belongs together.

    Parameters
    ----------
    trials
        Trials of all subjects, with stimulus_id, and session where it is the unit.
    by
        "stimulus": each is a unit. "concept": all stimuli of a concept are one; a stimulus without a concept stands for
        itself. "session": all stimuli of a session are one, whoever saw them; sessions of the same name are the same.
    concepts
        Stimulus id -> concept.
    what
        What messages call the study.
    same_as
        Stimulus id -> id of the first that is the same, for which it counts; each stands for itself by default.

    Raises
    ------
    ValueError
        If `by` is unknown, no stimulus has a concept, trials have no session, or a stimulus was shown in several.
    """
    ids = sorted(set(trials["stimulus_id"]))
    first = {stimulus: (same_as or {}).get(stimulus, stimulus) for stimulus in ids}
    if by == "stimulus":
        return first
    if by == "concept":
        if not any(concepts.get(stimulus) for stimulus in ids):
            raise ValueError(f"{what}: expected concepts of the stimuli for a split by concept, got none. Name them in "
                             "the column 'concept' of the study's stimuli, or split by stimulus.")
        return {s: f"concept {concepts[f]}" if concepts.get(f) else f"stimulus {f}" for s, f in first.items()}
    if by != "session":
        raise ValueError(f"split.by: expected one of {UNITS}, got {by!r}. Choose one of these.")
    if trials["session"].isna().any():
        raise ValueError(f"{what}: expected the session of every trial for a split by session, got none for "
                         f"{int(trials['session'].isna().sum())} trials. Name it in the column 'session' of the "
                         "trials, or split by stimulus.")
    of = trials["session"].astype(str).groupby(trials["stimulus_id"].map(first)).agg(
        lambda sessions: sorted(set(sessions)))
    shared = of[of.map(len) > 1]
    if len(shared):
        raise ValueError(f"{what}: expected every stimulus in one session for a split by session, got "
                         f"{len(shared)} of {len(of)} in several ({shared.index[0]!r} in "
                         f"{' and '.join(shared.iloc[0][:4])}). What is tested would have been trained on: split by "
                         "stimulus or by concept (split.kind=by_stimulus; of folds split.by=stimulus).")
    return {stimulus: f"session {of[first[stimulus]][0]}" for stimulus in ids}


def divided(unit: Mapping[str, str], *, n_folds: int, fold: int, test_fraction: float | None, val_fraction: float,
            seed: int, what: str) -> dict[str, str]:
    """Return stimulus id -> "train", "val" or "test", whole units in each.

    Parameters
    ----------
    unit
        What `units` returns.
    n_folds, fold
        Parts of the units, of which one is the test split, where `test_fraction` is None.
    test_fraction
        Share of the units that is the test split, at least one of them; None for folds.
    val_fraction
        Share of the other units that becomes the validation split; at least one for a `test_fraction`, if two are left.
    seed
        Seed of the order in which units are drawn.
    what
        What messages call the study.

    Raises
    ------
    ValueError
        If there are fewer units than folds or parts.
    """
    names = np.array(sorted(set(unit.values())))
    noun = "stimuli" if set(unit.values()) <= set(unit) else "concepts or sessions"
    least = 2 if test_fraction is not None else max(2, n_folds)
    if len(names) < least:
        cure = ("Lower split.n_folds" if test_fraction is None else "Split by stimulus" if noun != "stimuli" else
                "Add stimuli, or give the split with the trials")
        raise ValueError(f"{what}: expected at least {least} {noun} for "
                         f"{'a split' if test_fraction is not None else f'{n_folds} folds'}, got {len(names)}. {cure}.")
    order = np.random.default_rng([seed, 20250]).permutation(len(names))
    if test_fraction is None:
        test = np.array_split(order, n_folds)[fold]
    else:
        test = order[:min(len(names) - 1, max(1, round(test_fraction * len(names))))]
    rest = order[~np.isin(order, test)]
    n_val = round(val_fraction * len(rest))
    if test_fraction is not None and val_fraction and len(rest) > 1:
        n_val = min(max(1, n_val), len(rest) - 1)
    split = np.full(len(names), "train", dtype=object)
    split[test] = "test"
    split[rest[:n_val]] = "val"
    of = dict(zip(names, split, strict=True))
    return {stimulus: of[name] for stimulus, name in unit.items()}
