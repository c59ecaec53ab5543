"""The reordered convolutions of NICE and ATM against the published layers one after the other, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from brain2img.layers import TemporalSpatial


@pytest.mark.parametrize("at_once", [3, 100])
def test_outputs_gradients_and_running_statistics_equal_the_published_order(at_once):
    torch.manual_seed(0)
    ours = TemporalSpatial(7, 120, n_filters=8, kernel=9, pool=11, stride=3, dropout=0.0).double()
    ours.at_once = at_once
    published = nn.Sequential(*[copy.deepcopy(layer) for layer in ours])
    for _ in range(2):
        x = (3 + torch.randn(10, 7, 120, dtype=torch.double)).requires_grad_()
        copied = x.detach().clone().requires_grad_()
        found, expected = ours(x), published(copied[:, None]).transpose(2, 3)
        torch.testing.assert_close(found, expected)
        towards = torch.randn(found.shape, dtype=torch.double)
        for output in (found, expected):
            (output * towards).sum().backward()
        torch.testing.assert_close(x.grad, copied.grad)
        for (name, p), q in zip(ours.named_parameters(), published.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-9, rtol=1e-7, msg=name)
        for (name, p), q in zip(ours.named_buffers(), published.buffers(), strict=True):
            torch.testing.assert_close(p, q, msg=name)
    ours.eval()
    published.eval()
    torch.testing.assert_close(ours(x), published(x[:, None]).transpose(2, 3))
