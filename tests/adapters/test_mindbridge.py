"""The MindBridge adapter: published sizes, identity start, auxiliary losses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.mindbridge import MindBridge, Pooling
from brain2img.layers import Bottleneck
from brain2img.records import BrainBatch, Grid, SignalSpec


def spec(name, n_channels, n_times=1):
    return SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n_channels, n_times=n_times, sfreq=1.0)


def test_published_sizes_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        adapter = MindBridge(specs={"1": spec("1", 15724)}, grid=Grid(2048, 1))
    count = {name: sum(p.numel() for p in part["1"].parameters())
             for name, part in (("embedder", adapter.embedder), ("builder", adapter.builder))}
    assert count == {"embedder": 18_888_832, "builder": 18_907_264}
    shapes = {k: tuple(v.shape) for k, v in adapter.state_dict().items()}
    assert len(shapes) == 16
    assert shapes["embedder.1.0.down_proj.weight"] == (128, 8192)
    assert shapes["embedder.1.2.weight"] == (2048,)
    assert shapes["builder.1.3.up_proj.bias"] == (8192,)


@pytest.mark.parametrize(("n_voxels", "size"), [(50, 32), (20, 32), (32, 32), (15724, 8192), (12682, 8192), (64, 32),
                                                (70, 32), (500, 32)])
def test_pooling_has_the_published_windows_and_stretches_short_signals(n_voxels, size):
    x = torch.randn(3, n_voxels, 1)
    windows = [(math.floor(k * n_voxels / size), math.ceil((k + 1) * n_voxels / size)) for k in range(size)]
    pooled = Pooling(n_voxels, size, pool="max")(x)
    assert torch.equal(pooled, F.adaptive_max_pool1d(x[..., 0], size))
    assert torch.equal(pooled, torch.stack([x[:, a:b, 0].amax(1) for a, b in windows], dim=1))
    torch.testing.assert_close(Pooling(n_voxels, size, pool="avg")(x),
                               torch.stack([x[:, a:b, 0].mean(1) for a, b in windows], dim=1))


@pytest.mark.parametrize("n_voxels", [50, 20])
def test_linear_pooling_is_the_interpolation_of_numpy(n_voxels):
    x = torch.randn(3, n_voxels, 1)
    places = (np.arange(32) + 0.5) * n_voxels / 32 - 0.5
    expected = np.stack([np.interp(places, np.arange(n_voxels), row) for row in x[..., 0].numpy()])
    np.testing.assert_allclose(Pooling(n_voxels, 32, pool="linear")(x), expected, atol=1e-5)


def test_the_windows_of_nsd_are_those_of_the_notes():
    for n_voxels, of_three, of_two in ((15724, 7528, 664), (14278, 6084, 2108), (13039, 4846, 3346),
                                       (12682, 4488, 3704)):
        places = Pooling(n_voxels, 8192, pool="max").places
        width = (places[-1] - places[0] + 1).bincount(minlength=4)
        assert (width[3].item(), width[2].item()) == (of_three, of_two)


def test_what_is_pooled_once_is_not_pooled_again():
    adapter = MindBridge.tiny().eval()
    x = torch.randn(4, 50, 1)
    once = adapter.once(x, "sub-01")
    assert once.shape == (4, 32, 1)
    assert torch.equal(adapter(once, "sub-01").grid, adapter(x, "sub-01").grid)


def test_bottleneck_starts_as_the_identity_and_learns():
    layer, x = Bottleneck(12, bottleneck=3), torch.randn(4, 12)
    torch.testing.assert_close(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.up_proj.weight.grad.abs().max() > 0


def test_forward_and_auxiliary_losses_follow_the_formulas():
    adapter = MindBridge.tiny().eval()
    signals = {"sub-01": torch.randn(5, 50, 1), "sub-02": torch.randn(2, 40, 1)}
    features = {s: adapter(x, s) for s, x in signals.items()}
    assert {s: tuple(f.grid.shape) for s, f in features.items()} == {"sub-01": (5, 16, 1), "sub-02": (2, 16, 1)}
    batch = BrainBatch(signals=signals, rows={}, stimulus_ids=[])
    losses = adapter.auxiliary_losses(batch, features)
    error = torch.cat([(adapter.builder[s](f.grid[..., 0]) - adapter.pooled(signals[s], s)).flatten()
                       for s, f in features.items()])
    torch.testing.assert_close(losses["reconstruction"], error.square().mean())
    cycles = []
    for a, b in (("sub-01", "sub-02"), ("sub-02", "sub-01")):
        e = features[a].grid[..., 0]
        cycles.append(F.mse_loss(adapter.embedder[b](adapter.builder[b](e)), e).item())
    assert min(abs(losses["cycle"].item() - c) for c in cycles) < 1e-6


def test_auxiliary_losses_are_weighted_and_can_be_left_out():
    specs = {"a": spec("a", 30), "b": spec("b", 20)}
    without = MindBridge(specs=specs, grid=Grid(8, 1), pool_size=16, bottleneck=2, reconstruction=0, cycle=0)
    assert len(without.builder) == 0
    signals = {s: torch.randn(3, spec.n_channels, 1) for s, spec in specs.items()}
    batch = BrainBatch(signals=signals, rows={}, stimulus_ids=[])
    assert without.auxiliary_losses(batch, {s: without(x, s) for s, x in signals.items()}) == {}
    torch.manual_seed(0)
    one = MindBridge(specs=specs, grid=Grid(8, 1), pool_size=16, bottleneck=2, cycle=0).eval()
    features = {s: one(x, s) for s, x in signals.items()}
    losses = one.auxiliary_losses(batch, features)
    one.weights["reconstruction"] = 3.0
    torch.testing.assert_close(3 * losses["reconstruction"], one.auxiliary_losses(batch, features)["reconstruction"])
    assert set(losses) == {"reconstruction"}


def test_parameters_belong_to_one_subject_and_subjects_can_be_added():
    adapter = MindBridge.tiny()
    before = sum(p.numel() for p in adapter.parameters())
    adapter.add_subject(spec("sub-03", 33))
    new = sum(p.numel() for p in adapter.parameters_of("sub-03"))
    assert before + new == sum(p.numel() for p in adapter.parameters())
    assert not set(adapter.parameters_of("sub-01")) & set(adapter.parameters_of("sub-03"))
    assert adapter(torch.randn(2, 33, 1), "sub-03").grid.shape == (2, 16, 1)


def test_synthesis_is_the_builder_of_one_after_the_embedder_of_the_other():
    adapter = MindBridge.tiny().train()
    x = torch.randn(4, 50, 1)
    made = adapter.synthesise(x, source="sub-01", target="sub-02")
    adapter.eval()
    torch.testing.assert_close(made, adapter.builder["sub-02"](adapter(x, "sub-01").grid[..., 0]))
    without = MindBridge(specs={"a": spec("a", 30)}, grid=Grid(8, 1), pool_size=16, reconstruction=0, cycle=0)
    with pytest.raises(ValueError, match="expected builders for synthesis, got none"):
        without.synthesise(torch.randn(1, 30, 1), source="a", target="a")


def test_synthetic_trials_take_the_targets_of_the_trials_they_are_made_of():
    adapter = MindBridge(specs={"a": spec("a", 30), "b": spec("b", 20), "c": spec("c", 25)}, grid=Grid(8, 1),
                         pool_size=16, bottleneck=2, synthetic=0.5).eval()
    batch = BrainBatch(signals={"a": torch.randn(3, 30, 1), "b": torch.randn(1, 20, 1), "c": torch.randn(2, 25, 1)},
                       rows={"a": torch.tensor([5, 0, 2]), "b": torch.tensor([1]), "c": torch.tensor([4, 3])},
                       stimulus_ids=list("uvwxyz"))
    features = {s: adapter(x, s) for s, x in batch.signals.items()}
    made, places = adapter.synthetic_trials(batch, features)
    assert sorted(places.tolist()) == list(range(6))
    for subject, rows in batch.rows.items():
        mine = torch.stack([made.grid[places == row][0] for row in rows])
        others = [adapter.embedder[other](adapter.synthesise(batch.signals[subject], source=subject, target=other))
                  for other in "abc" if other != subject]
        assert any(torch.allclose(mine[..., 0], other, atol=1e-6) for other in others)
    adapter.train()
    adapter.synthetic_trials(batch, features)[0].grid.sum().backward()
    assert all(p.grad is None for p in adapter.builder.parameters())  # the made-up voxels are data
    adapter.synthetic = 0.0
    assert adapter.synthetic_trials(batch, features) is None


def test_messages():
    adapter = MindBridge.tiny()
    with pytest.raises(ValueError, match=r"subject 'sub-01': expected 50 voxels \(or 32 pooled\), got 40"):
        adapter(torch.randn(2, 40, 1), "sub-01")
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got None"):
        adapter(torch.randn(2, 50, 1), None)
    with pytest.raises(ValueError, match=r"subject 'x'.*T = 1.*got 7 samples"):
        adapter.add_subject(spec("x", 10, 7))
    with pytest.raises(ValueError, match="expected an encoder with a grid of one sample"):
        MindBridge(specs={}, grid=Grid(8, 5))
    with pytest.raises(ValueError, match="expected pool 'max', 'avg' or 'linear', got 'min'"):
        MindBridge(specs={}, grid=Grid(8, 1), pool="min")
