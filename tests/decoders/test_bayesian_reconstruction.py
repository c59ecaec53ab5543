from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity
from sklearn.linear_model import Ridge

from brain2img.decoders.bayesian_reconstruction import BayesianReconstruction
from brain2img.decoders.code_regression import _centred_eigh, _left_out
from brain2img.decoders.shape_posterior import ShapePosterior, _bayes_action
from brain2img.records import EmbeddingSpec, SignalSpec


def shapes(n, rng, side=14):
    """Bars and rings at random places, on black."""
    y, x = np.mgrid[:side, :side]
    images = np.zeros((n, side, side))
    for image in images:
        row, col = rng.uniform(5, side - 6, 2)
        ring = np.hypot(y - row, x - col)
        image[:] = np.clip(1.2 - np.abs(ring - 3), 0, 1) if rng.random() < 0.5 else np.clip(1.5 - np.abs(y - row), 0, 1)
    return images


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    images = shapes(80, rng)
    weights = rng.standard_normal((14 * 14, 60))
    signals = images.reshape(80, -1) @ weights + 6 * rng.standard_normal((80, 60))
    return signals, images


@pytest.fixture(scope="module")
def fitted(study):
    return ShapePosterior(dictionary_size=2000).fit(study[0][:60], study[1][:60])


def test_beats_linear_pixels_and_the_mean_on_held_out_shapes(study, fitted):
    signals, images = study
    linear = Ridge(alpha=1000).fit(signals[:60], images[:60].reshape(60, -1)).predict(signals[60:]).reshape(-1, 14, 14)
    errors = [np.mean((x - images[60:]) ** 2)
              for x in (fitted.predict(signals[60:]), linear.clip(0, 1), images[:60].mean(0))]
    assert errors[0] < errors[1] < errors[2]


def test_shuffled_signals_tell_nothing(study):
    signals, images = study
    order = np.random.default_rng(1).permutation(60)
    blind = ShapePosterior(dictionary_size=500, steps=0).fit(signals[order], images[:60]).predict(signals[60:])
    error, mean_error = (np.mean((x - images[60:]) ** 2) for x in (blind, images[:60].mean(0)))
    assert error > 0.9 * mean_error


def test_left_out_errors_are_those_of_refitting():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 6)), rng.standard_normal((20, 2))
    values, vectors, _ = _centred_eigh(x @ x.T)
    got = _left_out(values, vectors, y, 3.0)
    for i in range(20):
        rest = np.arange(20) != i
        # centring is that of all trials in the closed form, so the reference centres the features by them too
        centred = x - x.mean(0)
        design = np.c_[centred[rest], np.ones(19)]
        penalty = np.diag([3.0] * 6 + [0.0])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ y[rest])
        np.testing.assert_allclose(got[i], np.r_[centred[i], 1] @ weights, rtol=1e-6)


def test_the_bayes_action_raises_expected_ssim_over_the_mean():
    draws = shapes(12, np.random.default_rng(3)).astype(np.float32)[None]
    mean = draws.mean(1)
    action = _bayes_action(mean, draws, fidelity=0.0, steps=30)
    expected = [np.mean([structural_similarity(x[0].astype(float), d.astype(float), data_range=1) for d in draws[0]])
                for x in (action, mean)]
    assert expected[0] > expected[1] + 0.02
    held = _bayes_action(mean, draws, fidelity=1e4, steps=30)
    assert np.mean((held - mean) ** 2) < np.mean((action - mean) ** 2) / 10


def test_same_seed_same_result_and_state_survives(study, fitted):
    signals, images = study
    again = ShapePosterior(dictionary_size=2000).fit(signals[:60], images[:60])
    loaded = ShapePosterior()
    loaded.load_state(fitted.state())
    for other in (again, loaded):
        np.testing.assert_array_equal(other.predict(signals[60:]), fitted.predict(signals[60:]))


@pytest.mark.parametrize(("signals", "images", "message"), [
    (np.zeros((30, 0)), np.zeros((30, 8, 8)), "expected finite .trials, voxels."),
    (np.zeros((30, 3)), np.zeros((30, 8, 9)), "expected .n, h, h."),
    (np.zeros((5, 3)), np.zeros((5, 8, 8)), "expected 20 or more images"),
    (np.zeros((30, 3)), np.full((30, 8, 8), 255.0), "Divide 8-bit images by 255"),
    (np.zeros((30, 3)), np.zeros((30, 8, 8)), "expected different images"),
])
def test_bad_input_is_refused(signals, images, message):
    with pytest.raises(ValueError, match=message):
        ShapePosterior().fit(signals, images)


def test_the_decoder_saves_loads_and_refuses_other_signals(toy, tmp_path):
    rng = np.random.default_rng(0)
    data = toy()
    images = {stimulus: shapes(1, rng, side=12)[0] for stimulus in sorted(set(data.trials["stimulus_id"]))}
    data.target = lambda space, ids: np.stack([images[i] for i in ids])[:, None]
    targets = {"pixels": EmbeddingSpec(name="pixels", shape=(1, 12, 12))}
    decoder = BayesianReconstruction(specs=data.specs, targets=targets, dictionary_size=300, steps=2)
    decoder.fit(data, folder=tmp_path)
    decoder.save(tmp_path)
    again = BayesianReconstruction(specs=data.specs, targets=targets)
    again.load(tmp_path)
    data.targets = {}
    batch = data.batch(data.items("test"))
    got = decoder.predict(batch)["pixels"]
    assert got.shape == (20, 1, 12, 12)
    np.testing.assert_array_equal(got, again.predict(batch)["pixels"])
    other = {s: SignalSpec(subject=s, modality="fmri", units="a.u.", n_channels=5, n_times=1) for s in data.specs}
    with pytest.raises(ValueError, match="train it again"):
        BayesianReconstruction(specs=other, targets=targets).load(tmp_path)
    with pytest.raises(ValueError, match=r"expected grey images \(1, h, h\)"):
        BayesianReconstruction(specs=other, targets={"pixels": EmbeddingSpec(name="pixels", shape=(3, 8, 8))})
