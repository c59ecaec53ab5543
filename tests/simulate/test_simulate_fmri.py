"""Simulated fMRI: features, planted signal, noise and the ideal observer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, multivariate_normal
from sklearn.linear_model import Ridge

from brain2img.simulate import fmri
from brain2img.simulate.features import attribute_code, contrast_maps, kind_vector, stimulus_features
from brain2img.simulate.observer import Ideal, ceiling, held_out_stimuli, log_likelihoods, ranks, repetition_counts
from brain2img.simulate.scenes import ids, render, scene
from brain2img.simulate.shapes import KINDS

N_TRAIN, N_TEST = 240, 60


@pytest.fixture(scope="module")
def drawn():
    scenes = [scene(i) for i in (*ids("train", N_TRAIN), *ids("test", N_TEST))]
    return scenes, np.stack([render(s, size=64) for s in scenes])


@pytest.fixture(scope="module")
def features(drawn):
    return stimulus_features(*drawn)


def make_trials(*, train=1, test=4, n_sessions=3):
    stimulus = np.concatenate([np.repeat(np.arange(N_TRAIN), train), np.repeat(N_TRAIN + np.arange(N_TEST), test)])
    trials = pd.DataFrame({"stimulus": np.random.default_rng(0).permutation(stimulus)})
    trials["stimulus_id"] = trials["stimulus"].astype(str)
    trials["split"] = np.where(trials["stimulus"] < N_TRAIN, "train", "test")
    trials["session"] = np.arange(len(trials)) * n_sessions // len(trials)
    trials["repetition"] = trials.groupby("stimulus").cumcount()
    return trials


def simulate(features, trials, *, subject="sub-01", snr=0.5, n_voxels=150, seed=0):
    spec, blocks, ideal = fmri.simulate_subject(subject, features=features, trials=trials, snr=snr, n_voxels=n_voxels,
                                                seed=seed)
    return spec, np.concatenate(list(blocks)), ideal


def top1(table, *, repetitions):
    rows = table[(table["direction"] == "image_from_brain") & (table["repetitions"] == repetitions)]
    return int((rows["rank"] <= 1).sum())


def test_features_do_not_depend_on_the_other_stimuli(drawn, features):
    scenes, images = drawn
    alone = stimulus_features(scenes[7:8], images[7:8])
    for name in ("maps", "low", "middle", "high"):
        np.testing.assert_allclose(getattr(alone, name)[0], getattr(features, name)[7], rtol=1e-5, atol=1e-5)
        assert len(features.names[name]) == getattr(features, name).shape[1]


def test_features_have_a_common_scale(features):
    for name in ("low", "middle", "high"):
        values = getattr(features, name)
        assert np.isfinite(values).all()
        assert abs(values.mean()) < 0.25, name
        assert 0.6 < values.std() < 1.5, name
        # No single column dominates.
        assert np.sqrt((values**2).mean(axis=0)).max() < 5, name


def test_features_hardly_depend_on_the_image_size(drawn, features):
    scenes = drawn[0][:8]
    large = stimulus_features(scenes, np.stack([render(s, size=128) for s in scenes]))
    for name in ("low", "middle"):
        assert np.corrcoef(getattr(large, name).ravel(), getattr(features, name)[:8].ravel())[0, 1] > 0.97


def test_contrast_is_oriented_and_scales_with_the_picture():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    across = np.broadcast_to(ramp, (1, 3, 64, 64))
    inside = contrast_maps(across)[0, :, 4:12, 4:12].mean(axis=(1, 2))
    # The gradient of the ramp is 1/63 per pixel to the right; cos^2 of 0, 45, 90, 135 degrees.
    np.testing.assert_allclose(inside[:4], np.array([1, 0.5, 0, 0.5]) / 63, atol=2e-4)
    np.testing.assert_allclose(contrast_maps(0.5 * across), 0.5 * contrast_maps(across), atol=2e-4)


def test_kinds_of_a_category_are_more_alike():
    kinds = list(KINDS)
    alike = np.corrcoef([kind_vector(k) for k in kinds])
    same = np.array([[KINDS[a] == KINDS[b] for a in kinds] for b in kinds])
    off = ~np.eye(len(kinds), dtype=bool)
    assert alike[same & off].mean() > alike[~same].mean() + 0.3
    assert alike[off].max() < 0.95


def test_attributes_add_up(drawn):
    attributes = drawn[0][0].attributes
    other = {**attributes, "colour": "blue" if attributes["colour"] != "blue" else "red"}
    codes = attribute_code(attributes), attribute_code(other)
    changed = {name.rsplit("_", 1)[0] for name in codes[0] if codes[0][name] != codes[1][name]}
    assert changed == {"colour"}


def test_features_message(drawn):
    with pytest.raises(ValueError, match=r"expected \(n, s, s, 3\) with s a multiple of 64, got .*study.image_size"):
        stimulus_features(drawn[0][:1], np.zeros((1, 96, 96, 3), np.uint8))


def test_spec_describes_the_voxels(features):
    spec, signals, _ = simulate(features, make_trials())
    assert signals.shape == (len(make_trials()), spec.n_channels, 1)
    assert signals.dtype == np.float32
    assert set(spec.rois) == set(fmri.AREAS)
    assert len(np.unique(spec.ijk, axis=0)) == spec.n_channels
    assert (spec.ijk >= 0).all()
    assert (spec.ijk < spec.volume_shape).all()
    assert (spec.noise_ceiling > 0).all()
    assert (spec.noise_ceiling < 1).all()
    rois = np.array(spec.rois)
    assert spec.ijk[rois == "V1", 1].mean() < spec.ijk[rois == "hV4", 1].mean() < spec.ijk[rois == "PPA", 1].mean()
    sizes = {simulate(features, make_trials(), subject=f"sub-{k:02d}")[0].n_channels for k in range(1, 5)}
    assert len(sizes) > 2


def test_the_same_arguments_give_the_same_signals(features):
    trials = make_trials()
    signals = simulate(features, trials)[1]
    np.testing.assert_array_equal(simulate(features, trials)[1], signals)
    for other in ({"subject": "sub-02"}, {"seed": 1}):
        assert simulate(features, trials, **other)[1].shape != signals.shape


def test_number_of_voxels(features):
    simulate(features, make_trials(), n_voxels=16)
    with pytest.raises(ValueError, match=r"expected 16 to 20000, got 8. Set study.recording.n_voxels"):
        simulate(features, make_trials(), n_voxels=8)


def test_ridge_recovers_the_planted_features_and_nothing_at_zero_snr(features):
    trials = make_trials()
    train, test = (np.flatnonzero(trials["split"] == split) for split in ("train", "test"))
    stimulus = trials["stimulus"].to_numpy()
    for snr in (3.0, 0.0):
        signals = simulate(features, trials, snr=snr)[1][:, :, 0]
        for name in ("low", "high"):
            targets = getattr(features, name)
            targets = targets[:, targets.std(axis=0) > 0.3]
            ridge = Ridge(alpha=signals.shape[1]).fit(signals[train], targets[stimulus[train]])
            predicted, true = ridge.predict(signals[test]), targets[stimulus[test]]
            r = np.mean([np.corrcoef(predicted[:, k], true[:, k])[0, 1] for k in range(true.shape[1])])
            if snr:
                assert r > 0.35, name
            else:
                # Repetitions of a stimulus are not independent, nor are targets: N_TEST stimuli bound the error.
                assert abs(r) < 3.3 / np.sqrt(N_TEST), name


def test_subjects_share_what_they_encode(features):
    # Noise-free responses of one subject are predicted from another's, though voxels and mixing differ.
    trials = make_trials()
    x, y = (simulate(features, trials, subject=s, snr=1.0)[2].expected for s in ("sub-01", "sub-02"))
    half = N_TEST // 2
    predicted = Ridge(alpha=10.0).fit(x[:half], y[:half]).predict(x[half:])
    assert np.mean([np.corrcoef(predicted[:, k], y[half:, k])[0, 1] for k in range(y.shape[1])]) > 0.4


def test_observer_is_at_chance_without_signal_and_right_with_much(features):
    trials = make_trials()
    for snr in (0.0, 2.0):
        _, signals, ideal = simulate(features, trials, snr=snr)
        table = ceiling(ideal, signals=signals, trials=trials)
        assert sorted(set(table["repetitions"])) == [1, 2, 4]
        hits = top1(table, repetitions=4)
        if snr:
            assert hits == N_TEST
        else:
            assert hits <= binom.ppf(0.9995, N_TEST, 1 / N_TEST)
            assert (table["rank"] == (N_TEST + 1) / 2).all()  # all candidates tie


def test_signals_without_signal_say_nothing_to_an_observer_who_expects_some(features):
    trials = make_trials()
    signals = simulate(features, trials, snr=0.0)[1]
    ideal = simulate(features, trials, snr=1.0)[2]
    table = ceiling(ideal, signals=signals, trials=trials)
    low, high = binom.ppf([0.0005, 0.9995], N_TEST, 1 / N_TEST)
    assert low <= top1(table, repetitions=4) <= high
    # The standard deviation of a uniform rank of 60 is 17.3.
    assert abs(table["rank"].mean() - (N_TEST + 1) / 2) < 3.3 * 17.3 / np.sqrt(N_TEST)


def test_observer_with_a_wrong_answer_sheet_is_at_chance(features):
    trials = make_trials()
    _, signals, ideal = simulate(features, trials, snr=1.0)
    shuffled = Ideal(expected=np.random.default_rng(0).permutation(ideal.expected), covariance=ideal.covariance,
                     project=ideal.project)
    hits = top1(ceiling(shuffled, signals=signals, trials=trials), repetitions=4)
    assert hits <= binom.ppf(0.9995, N_TEST, 1 / N_TEST)


def test_noise_has_the_covariance_that_the_observer_knows(features):
    trials = make_trials(train=16)
    spec, signals, ideal = simulate(features, trials, n_voxels=40, snr=0.0)
    noise = ideal.project(signals, np.arange(len(trials)))
    measured = np.cov(noise, rowvar=False)
    assert np.abs(measured - ideal.covariance).max() < 4.5 * np.sqrt(2 / len(trials))
    distance = np.linalg.norm(spec.ijk[:, None] - spec.ijk[None], axis=2)
    near = (distance > 0) & (distance < 2)
    assert measured[near].mean() > measured[distance > 10].mean() + 0.1


def test_projection_takes_out_sessions_and_keeps_responses(features):
    trials = make_trials(test=40)
    _, signals, ideal = simulate(features, trials, n_voxels=40, snr=1.0)
    shown = np.searchsorted(held_out_stimuli(trials), trials["stimulus"])
    test = np.flatnonzero(trials["split"] == "test")
    seen = ideal.project(signals[test], test)
    residual = seen - ideal.expected[shown[test]]
    for session in range(3):
        mean = residual[(trials["session"].to_numpy() == session)[test]].mean(axis=0)
        assert np.abs(mean).max() < 4.5 / np.sqrt(len(test) / 3)
    raw = signals[test][:, :, 0]
    between = [raw[(trials["session"].to_numpy() == s)[test]].mean(axis=0) for s in range(3)]
    assert np.ptp(between, axis=0).mean() > 0.2  # there was something to take out


def test_noise_ceiling_is_the_explainable_share_of_variance(features):
    # As NSD estimates it: noise from the variance over repetitions, signal from what is left of the total.
    n_repetitions = 40
    trials = make_trials(test=n_repetitions, n_sessions=1)
    spec, signals, _ = simulate(features, trials, n_voxels=60, snr=0.8)
    test = trials[trials["split"] == "test"].sort_values(["stimulus", "repetition"])
    y = signals[test.index, :, 0].reshape(N_TEST, n_repetitions, -1)
    noise = y.var(axis=1, ddof=1).mean(axis=0)
    signal = np.maximum(y.mean(axis=1).var(axis=0, ddof=1) - noise / n_repetitions, 0)
    measured = signal / (signal + noise / n_repetitions)
    # The strength is set on training stimuli, so single voxels differ on 60 test stimuli; the mean does not.
    assert abs(measured.mean() - spec.noise_ceiling.mean()) < 0.05
    ratio = (signal / noise) / (spec.noise_ceiling / (1 - spec.noise_ceiling) / n_repetitions)
    assert np.median(ratio) == pytest.approx(1, abs=0.2)


def test_early_responses_are_compressed(features):
    area = fmri.AREAS["V1"]
    ijk = np.argwhere(np.ones((4, 4, 4)))
    brighter = type(features)(maps=4 * features.maps, low=features.low, middle=features.middle, high=features.high,
                              names=features.names)
    one, four = (fmri._early(f, area=area, ijk=ijk, rng=np.random.default_rng(0)) for f in (features, brighter))
    np.testing.assert_allclose(four, 2 * one, rtol=1e-4)


def test_log_likelihoods_equal_scipy():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 5))
    expected, observed = rng.standard_normal((7, 5)), rng.standard_normal((4, 5))
    for covariance in (root @ root.T + np.eye(5), rng.uniform(0.5, 2, 5)):
        full = covariance if covariance.ndim == 2 else np.diag(covariance)
        ideal = Ideal(expected=expected, covariance=covariance, project=lambda x, rows: x)
        ours = log_likelihoods(ideal, observed=observed, n_averaged=3)
        theirs = np.array([[multivariate_normal(m, full / 3).logpdf(y) for m in expected] for y in observed])
        np.testing.assert_allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_ranks_equal_brute_force(scale):
    log_likelihood = scale * np.random.default_rng(0).standard_normal((9, 9))
    got = {name: group["rank"].to_numpy() for name, group in ranks(log_likelihood).groupby("direction")}
    for i in range(9):
        assert got["image_from_brain"][i] == 1 + (log_likelihood[i] > log_likelihood[i, i]).sum()
        odds = [row[i] - np.logaddexp.reduce(np.delete(row, i)) for row in log_likelihood]
        assert got["brain_from_image"][i] == 1 + sum(o > odds[i] for o in odds)


def test_ties_have_their_average_rank():
    np.testing.assert_array_equal(ranks(np.zeros((8, 8)))["rank"], 4.5)


def test_repetition_counts():
    assert [repetition_counts(n) for n in (1, 2, 3, 4, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 12]]
