"""The MLP against its layers written out."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.encoders.mlp import MLP
from brain2img.records import Features, Grid, SignalSpec


def spec(name="sub-01", n_channels=4):
    return SignalSpec(subject=name, modality="eeg", units="V", n_channels=n_channels, n_times=30, sfreq=100.0)


@pytest.mark.parametrize("n_blocks", [0, 1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_equals_its_layers_written_out(n_blocks, norm):
    encoder = MLP(specs={"sub-01": spec()}, bin=2, width=6, n_blocks=n_blocks, norm=norm).eval()
    assert encoder.grid == Grid(4, 15)
    x = torch.randn(5, 4, 15)
    y = x.reshape(5, 60) @ encoder.layers[1].weight.T + encoder.layers[1].bias
    for block in encoder.layers[2:2 + n_blocks]:
        y = y + F.gelu(y) @ block.fn[1].weight.T + block.fn[1].bias
    expected = F.layer_norm(y, (6,), encoder.layers[-1].weight, encoder.layers[-1].bias) if norm else y
    torch.testing.assert_close(encoder(Features(x)), expected[:, None])


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="MLP encoder: expected the same channels and samples for all subjects"):
        MLP(specs={"a": spec("a"), "b": spec("b", 5)})
