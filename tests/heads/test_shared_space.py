"""The head that learns a space of its own: its image side, its freezing, and the true embeddings it leaves behind."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from brain2img.heads.shared_space import SharedSpace
from brain2img.layers import StandardParts
from brain2img.losses import InfoNCE
from brain2img.records import EmbeddingSpec

SPEC = EmbeddingSpec(name="layers", shape=(30,), parts={"early": 20, "late": 10})


def made(**changes):
    torch.manual_seed(0)
    return SharedSpace(hidden=(2, 8), spec=SPEC, space="layers", losses={"info_nce": InfoNCE()},
                       **{"width": 5, "n_components": 6, **changes})


@pytest.fixture
def targets():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((40, 12)) @ rng.standard_normal((12, 30)) * rng.uniform(0.1, 9, 30) + 3).astype("f")


def test_parts_are_principal_components_of_standardised_values(targets):
    parts = StandardParts({"early": 20, "late": 10}, n_components=6)
    parts.fit(torch.from_numpy(targets))
    found = parts(torch.from_numpy(targets))
    standard = (targets - targets.mean(0)) / targets.std(0, ddof=1)
    for part, values in zip(found, (standard[:, :20], standard[:, 20:]), strict=True):
        expected = PCA(6).fit_transform(values)
        expected /= np.sqrt((expected**2).mean())
        np.testing.assert_allclose(np.abs(part), np.abs(expected), atol=2e-4)


def test_more_components_than_stimuli_are_zero(targets):
    parts = StandardParts({"all": 30}, n_components=25)
    parts.fit(torch.from_numpy(targets[:5]))
    values = parts(torch.from_numpy(targets))[0]
    assert torch.isfinite(values).all()
    assert (values[:, :4].std(0) > 0).all()
    assert (values[:, 4:] == 0).all()  # five centred rows span four axes


def test_the_true_embedding_is_the_weighted_parts_mapped_linearly(targets):
    head = made()
    head.observe(lambda: targets)
    with torch.no_grad():
        head.part_weights.copy_(torch.tensor([0.3, -0.5]))
    share = np.exp([0.3, -0.5]) / np.exp([0.3, -0.5]).sum() * 2
    parts = [p.numpy() for p in head.parts(torch.from_numpy(targets))]
    fused = np.concatenate([w * p for w, p in zip(share, parts, strict=True)], axis=1)
    expected = fused @ head.image.weight.detach().numpy().T + head.image.bias.detach().numpy()
    np.testing.assert_allclose(head.true(torch.from_numpy(targets)).detach(), expected, atol=1e-5)
    assert head.decoded.shape == (5,)
    assert head(torch.zeros(3, 2, 8), {}).shape == (3, 5)


def test_the_image_side_is_frozen_from_the_stated_epoch_on():
    head = made(freeze_from=0.25)
    trained = []
    for epoch in range(8):
        head.begin_epoch(epoch, 8)
        trained.append(head.image.weight.requires_grad)
    assert trained == [True, True] + [False] * 6
    head = made()
    head.begin_epoch(7, 8)
    assert head.image.weight.requires_grad


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="freeze_from in"):
        made(freeze_from=1.5)
    with pytest.raises(ValueError, match="width"):
        made(width=0)


def test_parts_must_add_up():
    with pytest.raises(ValueError, match="expected parts of 30 values in all"):
        EmbeddingSpec(name="layers", shape=(30,), parts={"a": 10, "b": 10})
