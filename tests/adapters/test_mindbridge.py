"""The MindBridge adapter: published sizes, identity start, auxiliary losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.mindbridge import MindBridge
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


def test_pooling_has_the_published_windows_and_stretches_short_signals():
    adapter = MindBridge.tiny()
    x = torch.randn(3, 50, 1)
    windows = [(math.floor(k * 50 / 32), math.ceil((k + 1) * 50 / 32)) for k in range(32)]
    torch.testing.assert_close(adapter.pooled(x), torch.stack([x[:, a:b, 0].amax(1) for a, b in windows], dim=1))
    assert adapter.pooled(torch.randn(3, 20, 1)).shape == (3, 32)
    adapter.pool = "avg"
    torch.testing.assert_close(adapter.pooled(x), torch.stack([x[:, a:b, 0].mean(1) for a, b in windows], dim=1))


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
    error = torch.cat([(adapter.builder[s](f.grid[..., 0]) - adapter.pooled(signals[s])).flatten()
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


def test_messages():
    adapter = MindBridge.tiny()
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got None"):
        adapter(torch.randn(2, 50, 1), None)
    with pytest.raises(ValueError, match=r"subject 'x'.*T = 1.*got 7 samples"):
        adapter.add_subject(spec("x", 10, 7))
    with pytest.raises(ValueError, match="expected an encoder with a grid of one sample"):
        MindBridge(specs={}, grid=Grid(8, 5))
    with pytest.raises(ValueError, match="expected pool 'max' or 'avg', got 'min'"):
        MindBridge(specs={}, grid=Grid(8, 1), pool="min")
