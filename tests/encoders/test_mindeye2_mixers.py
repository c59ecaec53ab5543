"""MindEye2's mixers on sequences of one, beside the published layers."""

from __future__ import annotations

import torch
from torch import nn

from brain2img.encoders.mindeye2_mixers import MindEye2Mixers
from brain2img.records import Features


def published(encoder, x, *, dropout):
    """The published blocks: mixer 1 over the width, mixer 2 over the sequence of one, each with its own residual."""
    torch.manual_seed(1)
    width = x.shape[1]
    first_residual, second_residual = x.unsqueeze(1), x.unsqueeze(2)
    y = x.unsqueeze(1)
    for mixer in encoder.mixers:
        first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        norm = nn.LayerNorm(1)
        norm.bias.data = mixer.shift.data
        second = nn.Sequential(norm, mixer.first, nn.GELU(), dropout, mixer.second)
        y = first(y) + first_residual
        first_residual = y
        y = second(y.permute(0, 2, 1)) + second_residual
        second_residual = y
        y = y.permute(0, 2, 1)
    return y


def test_they_are_the_published_blocks_without_what_never_reaches_the_output():
    encoder = MindEye2Mixers(specs={}, width=12).eval()
    for mixer in encoder.mixers:
        nn.init.normal_(mixer.shift)
    x = torch.randn(5, 12)
    got = encoder(Features(x.unsqueeze(-1)))
    torch.testing.assert_close(got, published(encoder, x, dropout=nn.Identity()))
    constant = (got.squeeze(1) - x).detach()
    torch.testing.assert_close(constant, constant[:1, :1].expand_as(constant))
    assert sum(p.numel() for p in encoder.parameters()) == 4 * 5, "24 published, of which four gains are never reached"


def test_training_adds_noise_whose_mean_is_the_constant():
    torch.manual_seed(0)
    encoder, x = MindEye2Mixers(specs={}, width=2000, dropout=0.15), torch.zeros(50, 2000)
    noisy = (encoder.train()(Features(x.unsqueeze(-1)))).squeeze(1).detach()
    constant = encoder.eval()(Features(x.unsqueeze(-1))).squeeze(1).detach()
    expected = sum((m.second.weight * torch.nn.functional.gelu(m.first(m.shift)))**2 * 0.15 / 0.85 for m in
                   encoder.mixers).sqrt().item()
    assert noisy.std().item() > 0.01
    torch.testing.assert_close(noisy.std().item(), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(noisy.mean(), constant.mean(), rtol=0, atol=4 * expected / 100_000**0.5)
