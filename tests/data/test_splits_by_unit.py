"""Splits by stimulus, concept and session, and in turns: no stimulus crosses them, over all subjects together."""

from __future__ import annotations

import pandas as pd
import pytest

from brain2img.data.trials import Split, number_of_folds
from brain2img.data.units import units

CONCEPTS = {f"s{i:02d}": f"c{i // 3}" for i in range(24)}
SESSIONS = {stimulus: f"{i // 6}" for i, stimulus in enumerate(CONCEPTS)}


def trials(*, shared: bool = False) -> pd.DataFrame:
    """Return two subjects' trials: every stimulus twice, in one session, or in two."""
    lines = [(subject, stimulus, SESSIONS[stimulus] if not (shared and again) else "other")
             for subject in ("a", "b") for stimulus in CONCEPTS for again in range(2)]
    return pd.DataFrame(lines, columns=["subject", "stimulus_id", "session"]).assign(split="train", row=0)


def parts(assigned: pd.Series, of: dict[str, str], table: pd.DataFrame) -> dict[str, set[str]]:
    """Return split -> the units in it, after asserting that no stimulus and no unit is divided."""
    units = table["stimulus_id"].map(of)
    assert (assigned.groupby(table["stimulus_id"]).nunique() == 1).all()
    assert (assigned.groupby(units).nunique() == 1).all()
    return {split: set(units[assigned == split]) for split in ("train", "val", "test")}


@pytest.mark.parametrize(("kind", "of", "expected"), [
    ("by_stimulus", {s: s for s in CONCEPTS}, (17, 2, 5)), ("by_concept", CONCEPTS, (5, 1, 2)),
    ("by_session", SESSIONS, (2, 1, 1))])
def test_a_share_of_the_units_is_held_out_whole(kind, of, expected):
    table = trials()
    split = Split(kind=kind, test_fraction=0.2, val_fraction=0.1, seed=3)
    found = parts(split.assign(table, what="x", concepts=CONCEPTS), of, table)
    assert tuple(len(found[name]) for name in ("train", "val", "test")) == expected
    again = split.assign(table.sample(frac=1, random_state=0), what="x", concepts=CONCEPTS)
    assert parts(again, of, table.loc[again.index]) == found, "whatever the order of the trials"
    others = parts(Split(kind=kind, seed=4).assign(table, what="x", concepts=CONCEPTS), of, table)
    assert others["test"] != found["test"]


@pytest.mark.parametrize(("by", "of", "n"), [("concept", CONCEPTS, 4), ("session", SESSIONS, 4),
                                             ("stimulus", {s: s for s in CONCEPTS}, 5)])
def test_folds_test_every_unit_once(by, of, n):
    table, tested = trials(), []
    for fold in range(n):
        split = Split(kind="kfold", by=by, n_folds=n, fold=fold, val_fraction=0.1)
        tested += parts(split.assign(table, what="x", concepts=CONCEPTS), of, table)["test"]
    assert sorted(tested) == sorted(set(of.values()))


def test_every_stimulus_is_left_out_once():
    table, tested = trials(), []
    n = number_of_folds({"kind": "leave_one_stimulus_out"}, table, concepts={})
    assert n == 24
    for fold in range(n):
        assigned = Split(kind="leave_one_stimulus_out", fold=fold).assign(table, what="x")
        assert (assigned == "test").sum() == 4, "of both subjects"
        tested += sorted(set(table["stimulus_id"][assigned == "test"]))
    assert sorted(tested) == sorted(CONCEPTS)
    with pytest.raises(ValueError, match=r"expected split.fold 0..23, one for each stimulus, got 24"):
        Split(kind="leave_one_stimulus_out", fold=24).assign(table, what="x")


def test_numbers_of_folds():
    table = trials()
    assert [number_of_folds({"kind": kind, "n_folds": 7}, table, concepts={})
            for kind in ("study", "by_concept", "kfold", "in_subject")] == [1, 1, 7, 2]


def test_sessions_that_share_stimuli_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"in one session .* got 24 of 24 in several \('s00' in 0 and other\). What is "
                                         r"tested would have been trained on: split by stimulus"):
        Split(kind="by_session").assign(trials(shared=True), what="x")
    with pytest.raises(ValueError, match=r"expected the session of every trial .* got none for 96 trials"):
        Split(kind="by_session").assign(trials().assign(session=None), what="x")


def test_what_has_no_concepts_or_too_few_units_is_refused():
    with pytest.raises(ValueError, match=r"expected concepts of the stimuli .* Name them in the column 'concept'"):
        Split(kind="by_concept").assign(trials(), what="x", concepts={})
    with pytest.raises(ValueError, match=r"at least 9 concepts or sessions for 9 folds, got 8. Lower split.n_folds"):
        Split(kind="kfold", by="concept", n_folds=9).assign(trials(), what="x", concepts=CONCEPTS)
    with pytest.raises(ValueError, match="expected at least 2 concepts or sessions for a split, got 1"):
        Split(kind="by_concept").assign(trials(), what="x", concepts=dict.fromkeys(CONCEPTS, "one"))


def test_a_stimulus_without_concept_stands_for_itself():
    some = {s: c for s, c in CONCEPTS.items() if s > "s02"} | {"s00": None}
    table = trials()
    assigned = Split(kind="kfold", by="concept", n_folds=10).assign(table, what="x", concepts=some)
    assert parts(assigned, {s: some.get(s) or s for s in CONCEPTS}, table)["test"]


@pytest.mark.parametrize(("settings", "message"), [
    ({"by": "run"}, r"split.by: expected one of \('stimulus', 'concept', 'session'\), got 'run'"),
    ({"test_fraction": 1.0}, "split.test_fraction: expected a share from 0 to below 1, got 1.0"),
    ({"val_fraction": -0.1}, "split.val_fraction: expected a share"),
    ({"kind": "by_run"}, "a part held out .'by_stimulus', 'by_concept', 'by_session'.")])
def test_settings_out_of_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Split(**settings)


@pytest.mark.parametrize(("by", "expected"), [("stimulus", "s00"), ("concept", "concept c0")])
def test_what_is_the_same_under_two_names_is_one_unit(by, expected):
    found = units(trials(), by=by, concepts=CONCEPTS, what="x", same_as={"s23": "s00"})
    assert found["s23"] == found["s00"] == expected
    with pytest.raises(ValueError, match=r"got 1 of 23 in several \('s00' in 0 and 3\)"):
        units(trials(), by="session", concepts={}, what="x", same_as={"s23": "s00"})
