"""Trials that are kept after the part of an adapter without parameters."""

from __future__ import annotations

import numpy as np
import torch

from brain2img.adapters.mindbridge import MindBridge
from brain2img.data.once import KeptTrials
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.losses import MSE
from brain2img.records import Grid


def test_each_trial_is_computed_once_and_read_back_in_any_order(toy, tmp_path):
    data, calls = toy(), []

    def function(x, subject):
        calls.append((subject, len(x)))
        return x[:, ::2] * 2

    kept = KeptTrials(data, function, folder=tmp_path)
    for rows in ([5, 3], [3, 9, 5, 4], [9, 3], [4, 4]):
        for subject in ("sub-01", "sub-02"):
            expected = 2 * data.signals(subject, [[row] for row in rows])[:, ::2]
            np.testing.assert_array_equal(kept(subject, np.array(rows)), expected)
    assert calls == [("sub-01", 2), ("sub-02", 2), ("sub-01", 2), ("sub-02", 2)]
    assert list(tmp_path.glob("tmp*")) == []


def test_training_ends_with_the_same_bits_as_when_every_epoch_pools(toy, tmp_path):
    states, data = [], toy()
    calls = []
    for fixed in (True, False):
        torch.manual_seed(0)
        adapter = MindBridge(specs=data.specs, grid=Grid(8, 1), pool_size=6, bottleneck=2)
        adapter.has_fixed_part = fixed
        adapter.once = lambda x, s, pool=adapter.once: calls.append(len(x)) or pool(x, s)
        head = LinearHead(hidden=(1, 8), spec=data.target_specs["code"], space="code", losses={"mse": MSE()})
        decoder = DeepDecoder(adapter=adapter, encoder=ResidualMLP(specs={}, width=8, n_blocks=1),
                              heads={"code": head}, training={"max_epochs": 4, "batch_size": 20, "ema": None,
                                                              "accelerator": "cpu"})
        decoder.fit(data, folder=tmp_path / str(fixed))
        states.append(decoder.module.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert sum(calls) == 160  # every training trial of both subjects, in four epochs
