"""MixCo: signals and targets are mixed alike."""

import pytest
import torch

from brain2img.augmentations.mixco import MixCo


def test_signals_are_mixed_by_the_soft_targets():
    x = torch.randn(64, 7, 3)
    mixed, soft_targets = MixCo()(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed, torch.einsum("ij,jct->ict", soft_targets, x))
    torch.testing.assert_close(soft_targets.sum(dim=1), torch.ones(64))
    assert (soft_targets >= 0).all()


def test_about_half_are_mixed_and_lambda_follows_beta():
    x = torch.randn(4000, 1, 1)
    _, soft_targets = MixCo()(x, generator=torch.Generator().manual_seed(0))
    weight = soft_targets.diagonal()
    mixed = weight[weight < 1]
    assert 0.46 < len(mixed) / 4000 < 0.54
    assert abs(mixed.mean().item() - 0.5) < 0.05
    assert abs(mixed.var().item() - 0.25 / 1.3) < 0.02  # ab / ((a + b)^2 (a + b + 1)) at 0.15


def test_fixed_points_keep_their_whole_target():
    one, soft_targets = MixCo(probability=1)(torch.ones(1, 2, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_targets, torch.ones(1, 1))
    torch.testing.assert_close(one, torch.ones(1, 2, 2))


def test_it_is_a_function_of_its_generator():
    x = torch.randn(8, 2, 1)
    first, again = (MixCo()(x, generator=torch.Generator().manual_seed(5))[0] for _ in range(2))
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first, MixCo()(x, generator=torch.Generator().manual_seed(6))[0])


def test_messages():
    with pytest.raises(ValueError, match="MixCo: expected beta above 0"):
        MixCo(beta=0)
