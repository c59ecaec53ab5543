"""How a subject's training trials are limited to an amount."""

from __future__ import annotations

import pandas as pd
import pytest

from brain2img.data.paired import PairedData, PairedSampler
from brain2img.data.trials import Split, limit_of, seconds_per_trial


def rows(data, split):
    return {s: set(g["row"]) for s, g in data.trials[data.trials["split"] == split].groupby("subject")}


def test_smaller_amounts_are_parts_of_larger_ones_and_nothing_else_changes(toy):
    whole, many, few = toy(), toy(split={"train_trials": 40}), toy(split={"train_trials": 10})
    other = toy(split={"train_trials": 10, "train_seed": 1})
    for subject in whole.subjects:
        assert len(rows(few, "train")[subject]) == len(rows(other, "train")[subject]) == 10
        assert rows(few, "train")[subject] < rows(many, "train")[subject] < rows(whole, "train")[subject]
        assert rows(few, "train")[subject] | rows(few, "unused")[subject] == rows(whole, "train")[subject]
    assert rows(few, "train") != rows(other, "train")
    assert rows(few, "val") == rows(whole, "val")
    assert rows(few, "test") == rows(whole, "test")


def test_first_is_the_order_of_recording(toy):
    data = toy(split={"train_trials": 5, "train_order": "first"})
    everything = toy().trials
    for subject, mine in rows(data, "train").items():
        train = everything[(everything["subject"] == subject) & (everything["split"] == "train")]
        assert mine == set(sorted(train["row"])[:5])


def test_statistics_come_from_the_trials_that_are_used(toy):
    few = toy(split={"train_trials": 8}, normalisation={"scale": "subject"})
    for subject in few.subjects:
        used = sorted(rows(few, "train")[subject])
        x = few.study.stored_signals(subject)[used]
        assert few.normalisers[subject].state["mean"].ravel() == pytest.approx(x.mean(axis=(0, 2)), rel=1e-4)


def test_amounts_that_cannot_be_had_are_refused(toy):
    with pytest.raises(ValueError, match=r"subject 'sub-01': expected at least the 81 training trials .*, got 80"):
        toy(split={"train_trials": 81})
    with pytest.raises(ValueError, match=r"split.train_trials: expected 1 or more, or null for all, got 0"):
        Split(train_trials=0)
    with pytest.raises(ValueError, match=r"split.train_order: expected 'random' or 'first', got 'last'"):
        Split(train_order="last")


def test_a_time_is_counted_from_onset_to_onset():
    trials = pd.DataFrame({"session": [1] * 4 + [2] * 3, "run": 1, "onset": [0, 4, 8, 12, 0, 4, 8]})
    assert seconds_per_trial(trials) == 4
    assert limit_of("30min", trials, what="x") == 450
    assert limit_of("1.5h", trials, what="x") == 1350
    assert limit_of(7, trials, what="x") == 7
    assert limit_of(None, trials, what="x") is None
    for wrong in ("many", 0, -3, "0h", "3 days", True):
        with pytest.raises(ValueError, match=r"trials: expected a number above 0, a time such as 30min or 1.5h"):
            limit_of(wrong, trials, what="x")
    with pytest.raises(ValueError, match=r"x: expected onsets of trials, which trials=1h needs, got none"):
        limit_of("1h", trials.assign(onset=None), what="x")


def test_paired_batches_bring_known_subjects_in_turn_and_leave_the_new_ones_order(toy):
    data = toy()
    target, sources = toy(seed=1, split={"train_trials": 12}), data
    target.trials = target.trials[target.trials["subject"] == "sub-01"]
    paired = PairedData(target, sources=sources)
    loader, plain = paired.train_loader(batch_size=4, seed=3), target.train_loader(batch_size=4, seed=3)
    met = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        plain.sampler.set_epoch(epoch)
        for batch, alone in zip(loader, plain, strict=True):
            assert batch.stimulus_ids == alone.stimulus_ids
            assert batch.signals["sub-01"].equal(alone.signals["sub-01"])
            (name, x), = batch.sources.signals.items()
            assert x.shape == (4, 12, 1)
            assert len(batch.sources.stimulus_ids) == 4
            assert batch.sources.targets.keys() == batch.targets.keys()
            known = sources.signals(name, [[r] for r in sorted(rows(sources, "train")[name])])
            assert all(any((known[i] == trial.numpy()).all() for i in range(len(known))) for trial in x)
            met.append(name)
    assert met == ["sub-01", "sub-02"] * 3
    again = PairedSampler(12, batch_size=4, seed=3, sources={"a": 80})
    assert list(again) == list(PairedSampler(12, batch_size=4, seed=3, sources={"a": 80}))
