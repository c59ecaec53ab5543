"""Losses against plain evaluations of their formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brain2img.losses import L1, MMD, MSE, Cosine, InfoNCE, SoftCLIP


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 2, 5, generator=generator), torch.randn(6, 2, 5, generator=generator)


def unit(x):
    x = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def log_softmax(row):
    return row - np.log(np.exp(row - row.max()).sum()) - row.max()


def cross_entropy(logits, share):
    return np.mean([-sum(q * v for q, v in zip(qs, log_softmax(row), strict=True))
                    for qs, row in zip(share, logits, strict=True)])


def test_info_nce_is_the_clip_loss(pair):
    predicted, target = pair
    logits = unit(predicted) @ unit(target).T / 0.2
    expected = [np.mean([-log_softmax(row)[i] for i, row in enumerate(each)]) for each in (logits, logits.T)]
    assert InfoNCE(temperature=0.2)(predicted, target).item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert InfoNCE(temperature=0.2, symmetric=False)(predicted, target).item() == pytest.approx(expected[0], rel=1e-5)
    # and torch's own cross entropy
    logits = F.normalize(predicted.flatten(1), dim=1) @ F.normalize(target.flatten(1), dim=1).T / 0.2
    rows = torch.arange(6)
    torch.testing.assert_close(InfoNCE(temperature=0.2)(predicted, target),
                               (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2)


def test_info_nce_takes_rows_of_one_stimulus_as_joint_positives(pair):
    predicted, target = pair
    target[3] = target[0]
    same = torch.eye(6, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    logits = unit(predicted) @ unit(target).T / 0.07
    share = np.asarray(same, dtype=float) / np.asarray(same).sum(axis=1, keepdims=True)
    expected = (cross_entropy(logits, share) + cross_entropy(logits.T, share.T)) / 2
    assert InfoNCE()(predicted, target, same=same).item() == pytest.approx(expected, rel=1e-5)
    # a duplicated stimulus does not stand against itself: a perfect decoder reaches the least possible value, ln 2
    perfect = InfoNCE(temperature=0.01)(target, target, same=same)
    assert perfect.item() == pytest.approx(2 * math.log(2) / 6, rel=1e-4)


def test_info_nce_with_mixco_is_bimixco(pair):
    predicted, target = pair
    weight, perm = np.array([0.9, 1.0, 0.3, 1.0, 0.6, 0.2]), [2, 1, 0, 5, 3, 4]
    logits = unit(predicted) @ unit(target).T / 0.006
    forward = np.mean([-w * log_softmax(row)[i] - (1 - w) * log_softmax(row)[k]
                       for i, (row, w, k) in enumerate(zip(logits, weight, perm, strict=True))])
    # Scotti et al. 2023: from a stimulus j to its own trial, and to the trials it was mixed into
    backward = np.mean([-weight[j] * log_softmax(row)[j]
                        - sum((1 - weight[i]) * log_softmax(row)[i] for i in range(6) if perm[i] == j)
                        for j, row in enumerate(logits.T)])
    soft_targets = torch.diag(torch.tensor(weight))
    for i, k in enumerate(perm):
        soft_targets[i, k] += 1 - weight[i]
    value = InfoNCE(temperature=0.006, learnable=False)(predicted, target, soft_targets=soft_targets,
                                                        same=torch.eye(6, dtype=torch.bool))
    assert value.item() == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_legacy_atm_uses_the_raw_scale_and_the_raw_prediction(pair):
    predicted, target = pair
    loss = InfoNCE(normalise="legacy_atm")
    logits = math.log(1 / 0.07) * predicted.flatten(1).numpy().astype(float) @ unit(target).T
    expected = (cross_entropy(logits, np.eye(6)) + cross_entropy(logits.T, np.eye(6))) / 2
    assert loss(predicted, target).item() == pytest.approx(expected, rel=1e-5)
    assert loss.scale.item() == pytest.approx(2.6593, abs=1e-4)


def test_target_normalisation_is_the_brainmagick_loss(pair):
    predicted, target = pair
    loss = InfoNCE(normalise="target", temperature=1.0, learnable=False, symmetric=False)
    expected = cross_entropy(predicted.flatten(1).numpy().astype(float) @ unit(target).T, np.eye(6))
    assert loss(predicted, target).item() == pytest.approx(expected, rel=1e-5)
    assert not list(loss.parameters())


def test_learned_factor_is_clamped_at_100():
    loss = InfoNCE()
    assert loss.factor.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        loss.scale.fill_(9.0)
    assert loss.factor.item() == 100.0


def test_soft_clip_is_the_published_formula(pair):
    predicted, target = pair
    p, t = unit(predicted), unit(target)
    share = np.exp([log_softmax(row) for row in t @ t.T / 0.005])
    expected = (cross_entropy(p @ t.T / 0.005, share) + cross_entropy(t @ p.T / 0.005, share)) / 2
    assert SoftCLIP()(predicted, target).item() == pytest.approx(expected, rel=1e-4)
    same = torch.ones(6, 6, dtype=torch.bool)
    assert SoftCLIP()(predicted, target, same=same).item() == pytest.approx(expected, rel=1e-4)
    unmixed = SoftCLIP()(predicted, target, soft_targets=torch.eye(6))
    assert unmixed.item() == pytest.approx(expected, rel=1e-4)


def test_mse_on_unit_vectors_is_two_minus_two_cosine_over_width(pair):
    predicted, target = pair
    cosine = (unit(predicted) * unit(target)).sum(axis=1)
    assert MSE(normalise=True)(predicted, target).item() == pytest.approx((2 * (1 - cosine) / 10).mean(), rel=1e-5)
    assert Cosine()(predicted, target).item() == pytest.approx((1 - cosine).mean(), rel=1e-5)
    torch.testing.assert_close(MSE()(predicted, target), F.mse_loss(predicted, target))
    torch.testing.assert_close(MSE(normalise="target")(predicted, target),
                               F.mse_loss(predicted, target / target.flatten(1).norm(dim=1)[:, None, None]))
    with pytest.raises(ValueError, match="MSE normalise: expected true, false or 'target', got 'predicted'"):
        MSE(normalise="predicted")


@pytest.mark.parametrize("loss", [MSE(), MSE(normalise=True), Cosine()])
def test_the_target_of_a_mixture_is_the_mixture_of_targets(pair, loss):
    predicted, target = pair
    soft_targets = torch.softmax(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    mixed = torch.einsum("ij,jkl->ikl", soft_targets, target)
    torch.testing.assert_close(loss(predicted, target, soft_targets=soft_targets), loss(predicted, mixed))


def test_the_latents_of_mindeye2_are_compared_before_mixing(pair):
    predicted, target = pair
    n = len(target)
    soft_targets = 0.7 * torch.eye(n) + 0.3 * torch.eye(n).roll(1, 0)
    plain = F.l1_loss(predicted.flatten(1), target.flatten(1))
    torch.testing.assert_close(L1(mixed=False)(predicted, target, soft_targets=soft_targets), plain)
    assert (L1()(predicted, target, soft_targets=soft_targets) - plain).abs() > 1e-4


@pytest.mark.parametrize("loss", [InfoNCE(), InfoNCE(normalise="legacy_atm"), SoftCLIP(), MSE(), Cosine()])
def test_losses_do_not_depend_on_the_order_of_trials(pair, loss):
    predicted, target = pair
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    soft = torch.softmax(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    same = torch.eye(6, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    torch.testing.assert_close(
        loss(predicted[order], target[order], soft_targets=soft[order][:, order], same=same[order][:, order]),
        loss(predicted, target, soft_targets=soft, same=same))


def test_messages():
    with pytest.raises(ValueError, match=r"InfoNCE normalise: expected 'both'.*got 'brain'"):
        InfoNCE(normalise="brain")
    with pytest.raises(ValueError, match=r"InfoNCE temperature: expected a number above 0, got 0"):
        InfoNCE(temperature=0)
    with pytest.raises(ValueError, match=r"SoftCLIP temperature: expected a number above 0, got -1"):
        SoftCLIP(temperature=-1)


def test_mmd_equals_its_definition():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=rng), torch.randn(7, 5, generator=rng) + 1
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    both = torch.cat([a, b])
    width = torch.stack([((p - q) ** 2).sum() for p in both for q in both]).mean()

    def kernel(p, q):
        return sum(torch.exp(-((p - q) ** 2).sum() / (f * width)) for f in (0.5, 2.0)) / 2

    def mean(left, right):
        return sum(kernel(p, q) for p in left for q in right) / len(left) / len(right)

    expected = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    torch.testing.assert_close(MMD(factors=[0.5, 2.0])(x, y), expected)
    torch.testing.assert_close(MMD()(x, 3 * x[torch.randperm(7)]), torch.tensor(0.0), atol=1e-6, rtol=0)  # no pairs
    with pytest.raises(ValueError, match="factors"):
        MMD(factors=[0.0])
