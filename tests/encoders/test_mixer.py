"""The mixer against its products written out, and its sizes."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.encoders.mixer import Mixer
from brain2img.records import Features, SignalSpec


def spec(name="sub-01", n_channels=63, n_times=250):
    return SignalSpec(subject=name, modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0)


def test_equals_its_products_written_out():
    encoder = Mixer(specs={"s": spec(n_channels=3, n_times=10)}, width=6, channels=4, n_layers=1).eval().double()
    x = torch.randn(5, 3, 10, dtype=torch.float64)
    y = x
    for k in range(3):
        for pattern, part in (("bct,dt->bcd", encoder.over_samples[k]), ("bct,dc->bdt", encoder.over_channels[k])):
            axis = 2 if pattern.startswith("bct,dt") else 1
            norm, linear = part[0], part[1]
            z = (y - y.mean(axis, keepdim=True)) / (y.var(axis, unbiased=False, keepdim=True) + 1e-5).sqrt()
            assert (norm.weight == 1).all()
            bias = linear.bias if axis == 2 else linear.bias[:, None]
            y = torch.einsum(pattern, z, linear.weight) + bias
            y = F.gelu(y) if k < 2 else y
    torch.testing.assert_close(encoder(Features(x)), y)
    assert y.shape == (5, *encoder.hidden)


def test_sizes_are_those_of_the_published_layers():
    encoder = Mixer(specs={"s": spec()})
    assert [tuple(part[1].weight.shape) for part in encoder.over_samples] == [(1024, 250), *[(1024, 1024)] * 3]
    assert [tuple(part[1].weight.shape) for part in encoder.over_channels] == [(64, 63), (64, 64), (64, 64), (1, 64)]
    assert [len(part) for part in encoder.over_samples] == [4, 4, 4, 2]


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="Mixer encoder: expected the same channels and samples for all subjects"):
        Mixer(specs={"a": spec("a"), "b": spec("b", 5)})
