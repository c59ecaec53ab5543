"""The MindBridge translator."""

import torch

from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.records import Features


def test_published_size_and_names():
    with torch.device("meta"):
        encoder = ResidualMLP(specs={})
    assert sum(p.numel() for p in encoder.parameters()) == 16_801_792
    assert tuple(encoder.state_dict()["mlp.3.1.weight"].shape) == (2048,)
    assert len(encoder.state_dict()) == 16


def test_every_block_adds_to_its_input():
    encoder, x = ResidualMLP.tiny().eval(), torch.randn(3, 16, 1)
    expected = x[..., 0]
    for linear, norm, gelu, _ in encoder.mlp:
        expected = expected + gelu(norm(linear(expected)))
    torch.testing.assert_close(encoder(Features(x))[:, 0], expected)
    assert encoder.hidden == (1, 16)
