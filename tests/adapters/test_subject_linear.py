"""One linear map per subject: what it computes, and that no row reaches another subject's."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.subject_linear import SubjectLinear
from brain2img.records import Grid, SignalSpec


def test_it_is_the_linear_map_of_the_subject():
    adapter = SubjectLinear.tiny()
    x = torch.randn(5, 40, 1)
    layer = adapter.linears["sub-02"][0]
    grid = adapter(x, "sub-02").grid
    torch.testing.assert_close(grid[..., 0], x[..., 0] @ layer.weight.T + layer.bias)
    assert grid.shape == (5, 16, 1)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_input_of_mindeye_is_linear_layernorm_activation(activation):
    adapter = SubjectLinear(specs=SubjectLinear.tiny().specs, grid=Grid(16, 1), bias=False, activation=activation,
                            dropout=0.5)
    x = torch.randn(5, 50, 1)
    linear, norm = adapter.linears["sub-01"][:2]
    assert linear.bias is None
    y = x[..., 0] @ linear.weight.T
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    expected = y * torch.sigmoid(y) if activation == "silu" else F.gelu(y)
    torch.testing.assert_close(adapter.eval()(x, "sub-01").grid[..., 0], expected, atol=1e-5, rtol=1e-5)
    adapter.train()
    share = (adapter(x.expand(5, 50, 1), "sub-01").grid == 0).float().mean()
    assert 0.2 < share < 0.8


def test_parameters_belong_to_one_subject_and_one_can_be_added():
    adapter = SubjectLinear.tiny()
    adapter(torch.randn(3, 50, 1), "sub-01").grid.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters_of("sub-01"))
    assert all(p.grad is None for p in adapter.parameters_of("sub-02"))
    adapter.add_subject(SignalSpec(subject="sub-03", modality="fmri", units="a.u.", n_channels=7, n_times=1))
    assert adapter(torch.randn(2, 7, 1), "sub-03").grid.shape == (2, 16, 1)
    assert [tuple(p.shape) for p in adapter.parameters_of("sub-03")] == [(16, 7), (16,)]


def test_messages():
    adapter = SubjectLinear.tiny()
    for subject in (None, "sub-09"):
        with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got"):
            adapter(torch.randn(3, 50, 1), subject)
    with pytest.raises(ValueError, match=r"subject 'sub-02': expected 40 channels of 1 sample\(s\), got 50 of 1"):
        adapter(torch.randn(3, 50, 1), "sub-02")
    with pytest.raises(ValueError, match="activation: expected one of"):
        SubjectLinear(specs=adapter.specs, grid=Grid(16, 1), activation="relu")
    with pytest.raises(ValueError, match="expected an encoder with a grid of one sample"):
        SubjectLinear(specs=adapter.specs, grid=Grid(16, 2))
    with pytest.raises(ValueError, match="expected at least the 4 samples that are averaged to one, got 3"):
        SubjectLinear(specs={"s": series(n_times=3)}, grid=Grid(16, 1), bin=4)


def series(*, n_times):
    return SignalSpec(subject="s", modality="eeg", units="V", n_channels=7, n_times=n_times, sfreq=1.0)


def test_a_time_series_is_read_whole_in_averages_of_successive_samples():
    adapter = SubjectLinear(specs={"s": series(n_times=5)}, grid=Grid(3, 1), bin=2)
    x = torch.randn(4, 7, 5)
    weight, bias = adapter.parameters_of("s")
    means = torch.stack([x[:, :, 0:2].mean(-1), x[:, :, 2:4].mean(-1)], dim=-1)
    torch.testing.assert_close(adapter(x, "s").grid[:, :, 0], means.reshape(4, 14) @ weight.T + bias)
