"""Repetitions that go through a fixed function one by one, and are averaged then."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brain2img.adapters.mindbridge import MindBridge
from brain2img.records import Grid


@pytest.fixture
def pooling(toy):
    data = toy()
    adapter = MindBridge(specs=data.specs, grid=Grid(4, 1), pool_size=3, bottleneck=2, average_pooled=True)
    return data, adapter


def test_single_trials_are_pooled_and_their_results_averaged(pooling):
    data, adapter = pooling
    items = data.items("test")
    assert items["n_averaged"].max() > 1, "the test has something to average"
    batch = data.batch(items, before_average=adapter.once)
    plain = data.batch(items)
    shifts = []
    for subject, rows in batch.rows.items():
        for x, row in zip(batch.signals[subject], rows.tolist(), strict=True):
            trials = [adapter.once(torch.from_numpy(data.signals(subject, [[trial]])), subject)[0]
                      for trial in items["trial_ids"].iloc[row]]
            torch.testing.assert_close(x, torch.stack(trials).mean(0))
        shifts.append(batch.signals[subject] - adapter.once(plain.signals[subject], subject))
    assert min(shift.min() for shift in shifts) > -1e-5, "a mean of maxima is no less than the maximum of the means"
    assert max(shift.max() for shift in shifts) > 0.01
    assert batch.stimulus_ids == plain.stimulus_ids


def test_chunks_of_validation_and_noise_are_averaged_likewise(pooling):
    data, adapter = pooling
    whole = data.batch(data.items("val"), before_average=adapter.once)
    parts = list(data.eval_loader("val", batch_size=7, before_average=adapter.once))
    for subject in whole.signals:
        assert torch.cat([part.signals[subject] for part in parts if subject in part.signals]).shape == \
            whole.signals[subject].shape
    items = data.items("test").assign(n_averaged=400)
    noise = data.batch(items.iloc[:3], noise=np.random.default_rng(0), before_average=adapter.once)
    single = data.batch(items.iloc[:3].assign(n_averaged=1), noise=np.random.default_rng(1))
    for subject, x in noise.signals.items():
        assert x.shape[1:] == (3, 1)
        pooled = adapter.once(single.signals[subject], subject)
        assert (x.mean() - pooled.mean()).abs() < 3 * pooled.std(), "of single trials, not of their small mean"
        assert x.mean() > 0.1, "maxima of noise"


def test_without_it_signals_are_averaged(pooling):
    assert pooling[1].average_after
    assert not MindBridge.tiny().average_after
