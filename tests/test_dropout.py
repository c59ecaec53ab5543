"""Dropout by random bytes, and what is computed anew in the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brain2img.layers import Dropout, dropout, recomputed


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_a_share_is_zeroed_the_others_are_scaled_and_gradients_follow(p):
    torch.manual_seed(0)
    x = (1 + torch.rand(301, 103, dtype=torch.double)).requires_grad_()  # no multiple of 8 values
    y = dropout(x, p)
    kept = y != 0
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert kept.double().mean(dim=0).std() > 0
    torch.testing.assert_close(y, torch.where(kept, x / (1 - p), 0.0))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], kept.double() / (1 - p))
    assert not torch.equal(dropout(x, p) != 0, kept)
    torch.manual_seed(0)
    torch.rand(301, 103, dtype=torch.double)
    torch.testing.assert_close(dropout(x, p), y)


def test_other_shares_are_those_of_pytorch():
    x = torch.rand(40, 5)
    torch.manual_seed(1)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(1)
    torch.testing.assert_close(dropout(x, 0.3), expected)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_what_is_computed_anew_draws_the_same_numbers():
    w, x = torch.randn(4, 4, requires_grad=True), torch.randn(6, 4)
    gradients = []
    for how in (recomputed, lambda function, *given, random: function(*given)):
        torch.manual_seed(2)
        y = how(lambda a, b: dropout(a @ b, 0.5), x, w, random=True)
        torch.rand(3)  # other draws in between
        gradients.append(torch.autograd.grad(y.square().sum(), w)[0])
    torch.testing.assert_close(*gradients)
