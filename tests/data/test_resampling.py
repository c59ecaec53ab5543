"""Repetitions averaged in training: what is drawn, from what alone it follows, and what a batch then holds."""

import numpy as np
import pytest

from brain2img.data.dataset import EpochSampler, Resampling


def drawn(data, *, epoch, seed=0, batch=32):
    items = data.single_trials("train")
    sampler = EpochSampler(len(items), batch_size=batch, seed=seed)
    sampler.set_epoch(epoch)
    resampling = Resampling(items, sampler=sampler)
    return items, [(place, trials) for places in sampler for place, trials in
                   zip(places, resampling(places), strict=True)]


def test_every_trial_is_averaged_with_repetitions_of_its_own_stimulus_and_subject(toy):
    data = toy(modality="eeg", n_times=4)
    known = {(s, row): stimulus for s, row, stimulus in data.trials[["subject", "row", "stimulus_id"]].to_numpy()}
    items, found = drawn(data, epoch=0)
    assert len(found) == 160  # 5 batches of 32 of the 160 training trials
    sizes = np.zeros(3)
    for place, trials in found:
        subject, stimulus = items.loc[place, ["subject", "stimulus_id"]]
        assert items.loc[place, "trial_ids"][0] in trials
        assert {known[subject, row] for row in trials} == {stimulus}
        assert len(set(trials)) == len(trials)
        sizes[len(trials)] += 1
    # one or both of two repetitions, each with probability 1/2: 99.9 % of 160 draws lie within 59..101
    assert 59 <= sizes[1] <= 101


def test_draws_follow_from_seed_and_epoch_alone(toy):
    data = toy(modality="eeg", n_times=4)
    first, again, later, other = (drawn(data, **how)[1] for how in (
        {"epoch": 3}, {"epoch": 3}, {"epoch": 4}, {"epoch": 3, "seed": 1}))
    assert first == again
    assert sorted(first) != sorted(later)
    assert sorted(first) != sorted(other)


def test_batches_hold_the_means(toy):
    data = toy(modality="eeg", n_times=4)
    batch = next(iter(data.train_loader(batch_size=160, seed=5, repetitions="resample")))
    singles = {s: data.signals(s, [[r] for r in range(100)]) for s in data.subjects}
    for subject, x in batch.signals.items():
        ids = [batch.stimulus_ids[i] for i in batch.rows[subject]]
        for value, stimulus in zip(x.numpy(), ids, strict=True):
            rows = data.trials[(data.trials["subject"] == subject)
                               & (data.trials["stimulus_id"] == stimulus)]["row"].to_numpy()
            candidates = [singles[subject][rows[:1]].mean(0), singles[subject][rows[1:]].mean(0),
                          singles[subject][rows].mean(0)]
            assert min(np.abs(value - c).max() for c in candidates) < 1e-6


def test_the_mean_of_all_repetitions_makes_one_row_of_each(toy):
    data = toy(modality="eeg", n_times=4)
    loader = data.train_loader(batch_size=1000, seed=0, repetitions="mean")
    assert len(next(iter(loader))) == 80  # 40 stimuli of two subjects
    with pytest.raises(ValueError, match=r"trainer.repetitions: expected one of .*got 'twice'"):
        data.train_loader(batch_size=8, seed=0, repetitions="twice")
