"""Priors: equality with scikit-learn, recovery of planted maps and manifolds, invariances, files, messages."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from brain2img.priors.affine import Affine
from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.networks import EmbeddingUNet, TokenTransformer
from brain2img.stages.build import build_prior

PLAN = {"steps": 400, "batch_size": 64, "lr": 3e-3, "ema": 0.98, "warmup": 20}
SMALL = partial(EmbeddingUNet, hidden=(64, 32), time_width=32, dropout=0.0)


def generators(n, *, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def noisy_pairs(n=300, d=6, *, seed=0, noise=0.5):
    """Return shrunken, noisy predictions and true embeddings with unequal means and spreads."""
    rng = np.random.default_rng(seed)
    true = rng.standard_normal((n, d)) * rng.uniform(0.2, 5, d) + rng.normal(0, 10, d)
    predicted = 0.3 * true + noise * rng.standard_normal((n, d)) + rng.normal(0, 3, d)
    return predicted.astype(np.float32), true.astype(np.float32)


def on_circle(n, *, seed=0):
    """Return predictions, cluster centres shrunken and noisy, of embeddings on a circle in 8 dimensions."""
    rng = np.random.default_rng([seed, 1])
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((8, 8)))[0][:2]
    angle = rng.uniform(0, 2 * np.pi, n)
    true = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ basis + 4
    predicted = 0.5 * true + 0.4 * rng.standard_normal((n, 8))
    return predicted.astype(np.float32), true.astype(np.float32), basis


def off_circle(x, basis):
    """Return the mean distance of embeddings from the circle."""
    flat = (x - 4) @ basis.T
    radius = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.linalg.norm(x - 4 - 3 * (flat / radius) @ basis, axis=1).mean()


def test_moments_equal_the_composition_of_two_standard_scalers(tmp_path):
    predicted, true = noisy_pairs()
    prior = Affine()
    prior.fit(predicted, true, folder=tmp_path)
    new = noisy_pairs(seed=1)[0]
    expected = StandardScaler().fit(true).inverse_transform(StandardScaler().fit(predicted).transform(new))
    np.testing.assert_allclose(prior.sample(new, generators=generators(len(new))), expected, rtol=1e-4, atol=1e-4)


def test_linear_equals_ridgecv_on_standardised_predictions(tmp_path):
    predicted, true = noisy_pairs()
    prior = Affine(kind="linear")
    prior.fit(predicted, true, folder=tmp_path)
    scaler = StandardScaler().fit(predicted)
    ridge = RidgeCV(np.logspace(-2, 6, 17)).fit(scaler.transform(predicted), true)
    new = noisy_pairs(seed=1)[0]
    np.testing.assert_allclose(prior.sample(new, generators=[]), ridge.predict(scaler.transform(new)), rtol=1e-3,
                               atol=1e-3)


def test_linear_recovers_a_planted_affine_distortion(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.standard_normal((400, 5)).astype(np.float32)
    predicted = (true @ rng.standard_normal((5, 5)) + 7 + 0.01 * rng.standard_normal((400, 5))).astype(np.float32)
    prior = Affine(kind="linear")
    prior.fit(predicted[:300], true[:300], folder=tmp_path)
    assert np.abs(prior.sample(predicted[300:], generators=[]) - true[300:]).max() < 0.2
    unpaired = Affine(kind="linear")
    unpaired.fit(predicted[:300], true[rng.permutation(300)], folder=tmp_path)
    # without pairing the best guess is the mean
    assert unpaired.sample(predicted[300:], generators=[]).std(axis=0).max() < 0.25


@pytest.mark.parametrize("kind", ["moments", "linear"])
def test_rescaling_gives_spread_and_norm_of_true_embeddings(tmp_path, kind):
    predicted, true = noisy_pairs(noise=3.0)
    spread, norm, shrunk = Affine(kind=kind, rescale="std"), Affine(kind=kind, rescale="norm"), Affine(kind="linear")
    for prior in (spread, norm, shrunk):
        prior.fit(predicted, true, folder=tmp_path)
    assert (shrunk.sample(predicted, generators=[]).std(axis=0) < 0.95 * true.std(axis=0)).all()
    np.testing.assert_allclose(spread.sample(predicted, generators=[]).std(axis=0), true.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(norm.sample(predicted, generators=[]), axis=1),
                               np.linalg.norm(true, axis=1).mean(), rtol=1e-4)


def test_a_dimension_that_is_never_predicted_becomes_the_mean(tmp_path):
    predicted, true = noisy_pairs()
    predicted[:, 2] = 0.7
    prior = Affine()
    prior.fit(predicted, true, folder=tmp_path)
    out = prior.sample(predicted, generators=[])
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 2], true[:, 2].mean(), rtol=1e-5)


def test_affine_works_on_any_shape(tmp_path):
    predicted, true = noisy_pairs(d=12)
    flat, folded = Affine(), Affine()
    flat.fit(predicted, true, folder=tmp_path)
    folded.fit(predicted.reshape(-1, 3, 4), true.reshape(-1, 3, 4), folder=tmp_path)
    assert np.array_equal(folded.sample(predicted.reshape(-1, 3, 4), generators=[]).reshape(-1, 12),
                          flat.sample(predicted, generators=[]))


@pytest.fixture(scope="module")
def circular(tmp_path_factory):
    """Return the folder of a prior fitted on embeddings on a circle, and other predictions with their truth."""
    folder = tmp_path_factory.mktemp("circular")
    predicted, true, _ = on_circle(500)
    prior = DiffusionPrior(network=SMALL, training=PLAN)
    prior.fit(predicted, true, folder=folder / "fit")
    prior.save(folder)
    return folder, *on_circle(200, seed=1)


def loaded(folder, **changes):
    prior = DiffusionPrior(network=SMALL, training=PLAN, **changes)
    prior.load(folder)
    return prior


def pairing(x, wanted):
    """Return the mean cosine of directions on the circle, and what independent directions exceed once in a thousand."""
    return np.einsum("nd,nd->n", x - 4, wanted - 4).mean() / 9, 3.3 * np.sqrt(0.5 / len(x))


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_samples_lie_on_the_manifold_and_keep_the_pairing(circular, sampler):
    folder, new, wanted, basis = circular
    out = loaded(folder, sampler=sampler).sample(new, generators=generators(200))
    assert off_circle(out, basis) < 0.3 * off_circle(new, basis)

    def errors(x):
        return np.linalg.norm(x - wanted, axis=1).mean()

    assert errors(out) < 0.5 * errors(new)
    assert errors(out) < 0.5 * errors(out[np.random.default_rng(0).permutation(200)])


def test_fitted_on_shuffled_pairs_a_sample_knows_nothing_of_its_stimulus(circular, tmp_path):
    predicted, true, basis = on_circle(500)
    prior = DiffusionPrior(network=SMALL, training=PLAN)
    prior.fit(predicted, true[np.random.default_rng(3).permutation(500)], folder=tmp_path)
    _, new, wanted, _ = circular
    out = prior.sample(new, generators=generators(200))
    assert off_circle(out, basis) < 0.4 * off_circle(new, basis)
    found, limit = pairing(out, wanted)
    assert abs(found) < limit + 0.05


def test_guidance_strengthens_the_condition(circular):
    folder, new, wanted, _ = circular
    none, plain = (pairing(loaded(folder, guidance=g).sample(new, generators=generators(200)), wanted)
                   for g in (0.0, 1.0))
    assert abs(none[0]) < none[1] + 0.05
    assert plain[0] > 0.8


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_with_the_exact_network_of_a_gaussian_every_sample_is_its_noise(prediction, sampler):
    prior = DiffusionPrior(network=SMALL, training=PLAN, prediction=prediction, sampler=sampler, n_steps=200)
    model = prior.start((6,))
    model.mean_out += 2
    model.std_out *= 3

    class Exact(torch.nn.Module):
        def forward(self, x, t, condition, keep):
            kept = prior._noising.alphas_cumprod[t].sqrt()[:, None]
            return {"v_prediction": 0 * x, "epsilon": (1 - kept**2).sqrt() * x, "sample": kept * x}[prediction]

    model.network = Exact()
    out = prior.sample(np.zeros((5, 6), dtype=np.float32), generators=generators(5))
    noise = torch.stack([torch.randn(6, generator=g) for g in generators(5)]).numpy()
    np.testing.assert_allclose(out, 2 + 3 * noise, atol=0.1)


@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_samples_do_not_depend_on_the_chunk(tmp_path, sampler):
    prior = DiffusionPrior(network=SMALL, training={**PLAN, "steps": 20}, sampler=sampler)
    predicted, true, _ = on_circle(64)
    prior.fit(predicted, true, folder=tmp_path)
    whole = prior.sample(predicted, generators=generators(64))
    parts = [prior.sample(predicted[i:i + 7], generators=generators(len(predicted[i:i + 7]), first=i))
             for i in range(0, 64, 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    assert not np.allclose(prior.sample(predicted, generators=generators(64, first=99)), whole, atol=0.1)


def test_an_interrupted_fit_ends_with_the_same_weights(tmp_path):
    predicted, true, _ = on_circle(100)
    plan = {**PLAN, "steps": 30, "checkpoint_every": 10}
    alone, killed = (DiffusionPrior(network=partial(SMALL, dropout=0.2), training=plan) for _ in range(2))
    alone.fit(predicted, true, folder=tmp_path / "alone")
    original, calls = killed.training_loss, []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    killed.training_loss = dying
    with pytest.raises(KeyboardInterrupt):
        killed.fit(predicted, true, folder=tmp_path / "killed")
    killed.training_loss = original
    killed.fit(predicted, true, folder=tmp_path / "killed")
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, killed.model.state_dict()[name]), name


def test_token_embeddings_are_denoised_by_the_transformer(tmp_path):
    predicted, true, basis = on_circle(400)
    network = partial(TokenTransformer, width=32, depth=2, heads=2)
    prior = DiffusionPrior(network=network, training={**PLAN, "steps": 200})
    prior.fit(predicted.reshape(-1, 2, 4), true.reshape(-1, 2, 4), folder=tmp_path)
    new = on_circle(100, seed=1)[0]
    out = prior.sample(new.reshape(-1, 2, 4), generators=generators(100))
    assert out.shape == (100, 2, 4)
    assert off_circle(out.reshape(-1, 8), basis) < 0.5 * off_circle(new, basis)


def test_the_published_network_has_the_published_size():
    with torch.device("meta"):
        network = EmbeddingUNet(shape=(1024,))
    assert sum(p.numel() for p in network.parameters()) == 9_675_648
    names = set(network.state_dict())
    assert {"input_layer.0.weight", "encode_time_embedding.3.linear_2.bias", "decode_cond_embedding.0.weight",
            "decode_layers.3.1.weight", "output_layer.bias"} <= names


def test_the_published_recipe_samples_as_diffusers_does_by_default_and_drops_whole_batches(composed):
    from diffusers import DDPMScheduler

    cfg = composed("fit_prior", "prior=atm_published", "prior.network.hidden=[16,8]", "prior.network.time_width=8")
    prior = build_prior(cfg)
    torch.manual_seed(0)
    network = prior.start((6,)).network.eval()
    given, steps = 3 * torch.randn(2, 6), DDPMScheduler()
    steps.set_timesteps(50)
    assert steps.config.clip_sample
    with torch.no_grad():
        for row, (condition, generator) in enumerate(zip(given, generators(2), strict=True)):
            x = torch.randn(6, generator=generator)[None]
            for t in steps.timesteps:
                free, bound = (network(x, t[None], condition[None], torch.tensor([[k]])) for k in (0.0, 1.0))
                x = steps.step(free + 5 * (bound - free), t, x, generator=generator).prev_sample
            got = prior.sample(given.numpy(), generators=generators(2))[row]
            np.testing.assert_allclose(got, x[0].numpy(), atol=1e-5)
    assert np.abs(got).max() <= 1  # the clipping hazard: no sample leaves this range
    kept = []
    network.forward = lambda x, t, condition, keep: kept.append(keep) or x
    for seed in range(500):
        prior.training_loss(given, given, generator=torch.Generator().manual_seed(seed))
    assert all(len(keep.unique()) == 1 and keep.shape == (2, 1) for keep in kept)
    assert 0.06 < 1 - torch.stack(kept).mean() < 0.14


def test_raw_embeddings_are_clipped_as_published_and_not_by_default(tmp_path):
    predicted, true, _ = on_circle(400)  # of radius 3 around 4
    new = on_circle(100, seed=1)[0]
    for options, reached in (({}, 3.0), ({"scale": "none", "noising": {"clip": 1.0}}, 1.01)):
        prior = DiffusionPrior(network=SMALL, training={**PLAN, "steps": 60}, sampler="ddpm", n_steps=50, **options)
        prior.fit(predicted, true, folder=tmp_path / str(reached))
        out = prior.sample(new, generators=generators(100))
        assert (np.abs(out).max() > reached) == (reached > 2)


def test_the_condition_of_a_dropped_row_is_not_seen():
    for network, shape in ((EmbeddingUNet(shape=(6,), hidden=(8, 4), time_width=8, dropout=0.0), (6,)),
                           (TokenTransformer(shape=(2, 3), width=16, depth=1, heads=2), (2, 3))):
        x, t, keep = torch.randn(2, *shape), torch.tensor([3, 500]), torch.tensor([[0.0], [1.0]])
        one, two = (network.eval()(x, t, c, keep) for c in (torch.zeros(2, *shape), torch.ones(2, *shape)))
        assert torch.equal(one[0], two[0])
        assert not torch.allclose(one[1], two[1])


def test_joint_training_reaches_the_condition():
    prior = DiffusionPrior.tiny()
    prior.start((5,))
    context = torch.randn(8, 5, requires_grad=True)
    losses = [prior.training_loss(context, torch.randn(8, 5, generator=torch.Generator().manual_seed(1)),
                                  generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    assert losses[0] == losses[1]
    losses[0].backward()
    assert context.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="expected a prior that can be trained jointly"):
        Affine().training_loss(context, context, generator=torch.Generator())


def make_affine(**changes):
    return Affine(kind="linear", **changes)


def make_diffusion(**changes):
    return DiffusionPrior(network=SMALL, training={**PLAN, "steps": 5}, **changes)


@pytest.mark.parametrize(("make", "change"), [
    (make_affine, {"rescale": "norm"}), (make_diffusion, {"prediction": "epsilon"})])
def test_files_give_the_same_prior_and_refuse_another(tmp_path, make, change):
    predicted, true = noisy_pairs()
    prior = make()
    prior.fit(predicted, true, folder=tmp_path / "fit")
    prior.save(tmp_path / "saved")
    again = make()
    again.load(tmp_path / "saved")
    assert np.array_equal(again.sample(predicted, generators=generators(300)),
                          prior.sample(predicted, generators=generators(300)))
    with pytest.raises(ValueError, match=rf"one of others:\n  {next(iter(change))}: .* asked for\nFit the prior again"):
        make(**change).load(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"prior\.json: expected a whole JSON file, got nothing there\. Fit the prior"):
        make().load(tmp_path)
    weights = tmp_path / "saved" / "prior.safetensors"
    arrays = load_file(weights)
    save_file({"other" if name == "mean_in" else name: array for name, array in arrays.items()}, weights)
    with pytest.raises(ValueError, match=r"2 differences:\n  missing: mean_in \(6,\)\n  unexpected: other \(6,\)"):
        make().load(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "prior.json").read_text())
    (tmp_path / "saved" / "prior.json").write_text(json.dumps({**stored, "shape": [7]}))
    with pytest.raises(ValueError, match=r"shape of .*\(7,\) here, \(6,\) there"):
        make().load(tmp_path / "saved")
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        make().load(tmp_path / "saved")


@pytest.mark.parametrize("make", [make_affine, make_diffusion])
def test_what_does_not_fit_is_refused(tmp_path, make):
    predicted, true = noisy_pairs(n=40)
    with pytest.raises(ValueError, match=r"expected a fitted prior, got one that was not"):
        make().sample(predicted, generators=generators(40))
    with pytest.raises(ValueError, match=r"as many true embeddings of their shape, got \(40, 6\) and \(39, 6\)"):
        make().fit(predicted, true[1:], folder=tmp_path)
    broken = true.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"true embeddings: expected finite .* in 1 of 40 rows \(first: row 3\)"):
        make().fit(predicted, broken, folder=tmp_path)
    prior = make()
    prior.fit(predicted, true, folder=tmp_path)
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(6,\), on which it was fitted, got \(5,\)"):
        prior.sample(predicted[:, :5], generators=generators(40))
    with pytest.raises(ValueError, match="expected finite embeddings, got NaN or infinity in 1 of 40"):
        prior.sample(broken, generators=generators(40))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"expected a kind of .*, got 'cubic'"):
        Affine(kind="cubic")
    with pytest.raises(ValueError, match=r"expected rescale of .*, got 'max'"):
        Affine(rescale="max")
    with pytest.raises(ValueError, match=r"expected sampler of .*, got 'euler'"):
        make_diffusion(sampler="euler")
    with pytest.raises(ValueError, match=r"clip above 0 with sampler ddim or ddpm, got 1.0 with dpm"):
        make_diffusion(noising={"clip": 1.0})
    with pytest.raises(ValueError, match=r"condition_dropout as a share in .*\[share, batch\], got \[0.1, 'all'"):
        make_diffusion(condition_dropout=[0.1, "all"])
    with pytest.raises(ValueError, match=r"expected embeddings \(D,\).*Use TokenTransformer"):
        make_diffusion().start((2, 3))
    with pytest.raises(ValueError, match=r"expected embeddings \(L, D\), got \(6,\). Use EmbeddingUNet"):
        TokenTransformer(shape=(6,))
    with pytest.raises(ValueError, match=r"at most 8192 values for kind='linear', got 9000"):
        Affine(kind="linear").fit(np.zeros((3, 9000)), np.zeros((3, 9000)), folder=None)
