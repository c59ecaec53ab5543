"""What changes from epoch to epoch: epochs and temperatures of the published recipe, pure functions of the epoch."""

import numpy as np
import pytest
import torch

from brain2img.augmentations.mixco import MixCo
from brain2img.losses import L1, InfoNCE, PriorLoss, SoftCLIP
from brain2img.priors.affine import Affine
from brain2img.records import EmbeddingSpec
from brain2img.schedule import cosine_ramp, epochs_between

NONE = torch.Generator()


@pytest.mark.parametrize(("n_epochs", "mixing"), [(240, 79), (150, 49), (10, 3), (100, 33), (3, 0), (1, 0)])
def test_bimixco_gives_way_to_soft_clip_as_published(n_epochs, mixing):
    bimixco, soft_clip = InfoNCE(temperature=0.006, learnable=False, stop=0.33), SoftCLIP(start=0.33)
    mixco = MixCo(stop=0.33)
    active = []
    for epoch in range(n_epochs):
        for loss in (bimixco, soft_clip):
            loss.begin_epoch(epoch, n_epochs, generator=NONE)
        mixco.begin_epoch(epoch, n_epochs)
        assert bimixco.active != soft_clip.active
        _, soft_targets = mixco(torch.randn(8, 2, 1), generator=torch.Generator().manual_seed(0))
        assert (soft_targets is not None) == bimixco.active
        active.append(bimixco.active)
    assert active == [True] * mixing + [False] * (n_epochs - mixing)


def test_the_temperature_follows_half_a_cosine_over_the_epochs_of_soft_clip():
    loss = SoftCLIP(temperature=[0.004, 0.0075], start=0.33)
    # Scotti et al. 2023: end + (start - end) / 2 * (1 + cos(pi i / (n - 1))), i = 0 .. n - 1, n = 240 - 79
    i = np.arange(161)
    expected = 0.0075 + (0.004 - 0.0075) / 2 * (1 + np.cos(np.pi * i / 160))
    order = [79, 239, 159, 100, 80]  # a resumed fit meets any epoch first
    for epoch in order:
        loss.begin_epoch(epoch, 240, generator=NONE)
        assert loss.temperature == pytest.approx(expected[epoch - 79], rel=1e-12)
    assert (expected[0], expected[-1]) == pytest.approx((0.004, 0.0075))
    p, t = torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(loss(p, t), SoftCLIP(temperature=loss.temperature)(p, t))


def test_shares_become_epochs_without_rounding_errors():
    assert epochs_between(0.29, 0.57, n_epochs=100) == range(29, 57)  # 0.29 * 100 is 28.99... in binary
    assert [e for a, b in ((0, 0.1), (0.1, 0.7), (0.7, 1)) for e in epochs_between(a, b, n_epochs=10)] == [*range(10)]
    assert cosine_ramp(2.0, 5.0, step=0, n_steps=1) == pytest.approx(2)
    assert cosine_ramp(2.0, 5.0, step=1, n_steps=3) == pytest.approx(3.5)


def test_l1_is_the_mean_absolute_error():
    p, t = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    share = torch.tensor([[0.7, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.2, 0, 0, 0.8]])
    plain = sum(abs(a - b) for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True)) / 72
    assert L1()(p, t).item() == pytest.approx(plain, rel=1e-5)
    mixed = torch.einsum("ij,jchw->ichw", share, t)
    assert L1()(p, t, soft_targets=share).item() == pytest.approx((p - mixed).abs().mean().item(), rel=1e-5)


def test_messages():
    for make in (lambda: SoftCLIP(start=0.6, stop=0.5), lambda: InfoNCE(start=-0.1), lambda: MixCo(stop=0.0)):
        with pytest.raises(ValueError, match="schedule: expected shares 0 <= start < stop <= 1"):
            make()
    for temperature in ([0.004, 0.0], [0.1], -1.0):
        with pytest.raises(ValueError, match="SoftCLIP temperature: expected a number above 0, got"):
            SoftCLIP(temperature=temperature)
    with pytest.raises(ValueError, match="PriorLoss: expected a prior to train jointly"):
        PriorLoss(prior=None)
    with pytest.raises(ValueError, match="Affine: expected a prior that can be trained jointly"):
        PriorLoss(prior=Affine()).prepare(EmbeddingSpec(name="t", shape=(4,)))
