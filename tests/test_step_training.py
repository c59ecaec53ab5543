from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.step_training import StepPlan, train


def regression(*, stop_after: int | None = None):
    """A model with dropout, and a loss that uses the generator; interrupted after so many calls."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((50, 4)).astype(np.float32))
    y = x.sum(dim=1, keepdim=True)
    calls = []

    def loss(rows, generator):
        calls.append(rows)
        if stop_after is not None and len(calls) > stop_after:
            raise KeyboardInterrupt
        noise = 0.01 * torch.randn(len(rows), 4, generator=generator)
        return {"mse": (model(x[rows] + noise) - y[rows]).square().mean()}

    return model, loss, calls


PLAN = StepPlan(steps=23, batch_size=8, lr=0.01, warmup=5, ema=0.9, checkpoint_every=4)


@pytest.mark.parametrize("ema", [0.9, None])
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, ema):
    plan = StepPlan(steps=23, batch_size=8, lr=0.01, warmup=5, ema=ema, checkpoint_every=4)
    model, loss, _ = regression()
    train(model, loss, n_items=50, plan=plan, folder=tmp_path / "whole", description="whole")
    for stop_after in (6, 7):
        interrupted, loss, _ = regression(stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted, loss, n_items=50, plan=plan, folder=tmp_path / "parts", description="parts")
    torch.manual_seed(99)  # what happens in between does not matter
    resumed, loss, calls = regression()
    train(resumed, loss, n_items=50, plan=plan, folder=tmp_path / "parts", description="parts")
    assert len(calls) == 23 - 8
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not resumed.training
    assert pd.read_csv(tmp_path / "parts" / "losses.csv")["step"].tolist() == [4, 8, 12, 16, 20, 23]


def test_it_learns_and_leaves_the_global_generator_alone(tmp_path):
    model, loss, _ = regression()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(model, loss, n_items=50, folder=tmp_path, description="longer",
          plan=StepPlan(steps=400, batch_size=25, lr=0.02, weight_decay=0.0, ema=0.98))
    assert torch.equal(torch.random.get_rng_state(), before)
    rows = np.arange(50)
    assert float(loss(rows, torch.Generator())["mse"]) < 0.5  # the variance of the target is 4


def test_every_epoch_takes_every_item_once_in_a_new_order():
    plan = StepPlan(steps=10, batch_size=5, lr=1.0)
    taken = np.concatenate([plan.indices(step, n_items=20) for step in range(8)])
    first, second = taken[:20], taken[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()


def test_the_learning_rate_rises_and_falls():
    plan = StepPlan(steps=100, batch_size=1, lr=2.0, warmup=10)
    assert plan.lr_at(0) == pytest.approx(0.2)
    assert plan.lr_at(10) == pytest.approx(2.0)
    assert plan.lr_at(55) == pytest.approx(1.0)
    assert plan.lr_at(99) < 0.01


def test_messages(tmp_path):
    model, loss, _ = regression()
    train(model, loss, n_items=50, plan=PLAN, folder=tmp_path, description="first")
    other = StepPlan(steps=24, batch_size=8, lr=0.01, warmup=5, ema=0.9, checkpoint_every=4)
    with pytest.raises(ValueError, match=r"expected one of the same plan and model, got another .steps: 23 there, 24"):
        train(model, loss, n_items=50, plan=other, folder=tmp_path, description="second")
    with pytest.raises(ValueError, match=r"got another .the layers of the model"):
        train(torch.nn.Linear(2, 2), loss, n_items=50, plan=PLAN, folder=tmp_path, description="third")
    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1"):
        train(model, lambda rows, generator: {"x": sum(p.sum() for p in model.parameters()) * float("nan")},
              n_items=50, plan=PLAN, folder=tmp_path / "nan", description="nan")
    with pytest.raises(ValueError, match="expected ema between 0 and 1 or none, got 1"):
        StepPlan(steps=1, batch_size=1, lr=1.0, ema=1)
    with pytest.raises(ValueError, match="expected steps, batch_size and checkpoint_every of 1 or more, got 0, 1"):
        StepPlan(steps=0, batch_size=1, lr=1.0)
