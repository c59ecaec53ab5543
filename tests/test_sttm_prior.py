"""The network of STTM's diffusion prior: size, memory, hidden brain tokens, and a planted signal."""

from functools import partial

import numpy as np
import pytest
import torch

from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.sttm import STTMTransformer

ONES, T = torch.ones(4, 1), torch.tensor([0, 10, 50, 99])


def small(**changes):
    torch.manual_seed(0)
    return STTMTransformer(**{"shape": (20, 8), "depth": 2, "heads": 2, **changes})


def test_it_has_the_size_of_the_published_layers():
    with torch.device("meta"):
        network = STTMTransformer(shape=(257, 768))
    attention = 4 * (768**2 + 768)
    layer = 2 * attention + 768 * 3072 + 3072 + 3072 * 768 + 768 + 3 * 2 * 768
    tables = 3 * 257 * 768  # positions of image and brain tokens, and the nulls
    ours = 3 * (768**2 + 768) + 2 * 768  # time step, output and last normalisation, which our notes do not settle
    assert sum(p.numel() for p in network.parameters()) == 6 * layer + tables + ours


def test_a_dropped_condition_is_not_seen_and_a_kept_one_is():
    network, x, a, b = small().eval(), *torch.randn(3, 4, 20, 8)
    assert torch.equal(network(x, T, a, 0 * ONES), network(x, T, b, 0 * ONES))
    assert not torch.allclose(network(x, T, a, ONES), network(x, T, b, ONES))
    mixed = network(x, T, a, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))
    torch.testing.assert_close(mixed[[0, 2]], network(x, T, a, ONES)[[0, 2]])
    torch.testing.assert_close(mixed[[1, 3]], network(x, T, a, 0 * ONES)[[1, 3]])


def test_brain_tokens_are_hidden_in_training_alone_as_many_as_published():
    network, memory = small(), torch.zeros(500, 257, 8)
    hidden = torch.stack([network._hidden(memory) for _ in range(20)])
    n = hidden.sum(dim=2)
    assert (n == n[:, :1]).all()
    assert n.min() >= 154 and n.max() <= 167 and len(n.unique()) > 3  # noqa: PT018
    often = hidden.float().mean(dim=(0, 1))
    assert 0.57 < often.min() < often.max() < 0.68, "every token equally often"
    # what is hidden does not matter
    x, condition = torch.randn(4, 20, 8), torch.randn(4, 20, 8)
    fixed = torch.zeros(4, 20, dtype=torch.bool)
    fixed[:, 5:17] = True
    network._hidden = lambda memory: fixed
    changed = condition.clone()
    changed[:, 5:17] += torch.randn(4, 12, 8)
    torch.testing.assert_close(network(x, T, changed, ONES), network(x, T, condition, ONES))
    network.eval()
    assert not torch.allclose(network(x, T, changed, ONES), network(x, T, condition, ONES))


def test_with_every_token_in_sight_it_is_torchs_decoder_on_both_with_positions():
    network, x, condition = small(masked=(0.0, 0.0)), *torch.randn(2, 4, 20, 8)
    a = network(x, T, condition, ONES)
    torch.testing.assert_close(a, network.eval()(x, T, condition, ONES))
    order = torch.randperm(20)
    # without positions the order of brain tokens would not matter, nor would that of the image tokens
    assert not torch.allclose(network(x, T, condition[:, order], ONES), a, atol=1e-3)
    assert not torch.allclose(network(x[:, order], T, condition, ONES), a[:, order], atol=1e-3)
    with torch.no_grad():
        network.brain_positions.zero_()
        network.image_positions.zero_()
    b = network(x, T, condition, ONES)
    torch.testing.assert_close(network(x, T, condition[:, order], ONES), b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(x[:, order], T, condition, ONES), b[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_planted_signal_comes_back_and_a_vector_is_one_token(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.standard_normal((400, 8)).astype(np.float32)
    predicted = (true @ rng.standard_normal((8, 8)) / 3).astype(np.float32)
    prior = DiffusionPrior(network=partial(STTMTransformer, depth=2, heads=2), prediction="sample",
                           noising={"n_times": 100, "betas": "cosine"}, scale="standardise", n_steps=10, sampler="ddpm",
                           condition_dropout=0.2, training={"steps": 500, "batch_size": 64, "lr": 3e-3})
    prior.fit(predicted[:300], true[:300], folder=tmp_path)
    made = prior.sample(predicted[300:], generators=[torch.Generator().manual_seed(i) for i in range(100)])

    def agreement(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    assert agreement(made, true[300:]) > 0.6
    assert abs(agreement(made, rng.permutation(true[300:]))) < 0.15


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"with D a multiple of heads=12, got \(4, 16\)"):
        STTMTransformer(shape=(4, 16))
    with pytest.raises(ValueError, match=r"expected two shares 0 <= a <= b < 1 in masked, got \(0.7, 0.6\)"):
        small(masked=(0.7, 0.6))
