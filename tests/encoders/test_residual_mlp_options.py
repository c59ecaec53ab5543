"""The trunk of MindEye's low-level model."""

import torch

from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.records import Features


def test_without_biases_and_with_silu_it_equals_a_plain_evaluation():
    torch.manual_seed(0)
    trunk = ResidualMLP(specs={}, width=6, n_blocks=2, activation="silu", bias=False, dropout=0.25).eval()
    x = torch.randn(4, 6, 1)
    y = x[..., 0]
    for block in trunk.mlp:
        assert block[0].bias is None
        z = y @ block[0].weight.T
        z = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        y = y + z * torch.sigmoid(z)
    torch.testing.assert_close(trunk(Features(x))[:, 0], y, atol=1e-5, rtol=1e-5)
