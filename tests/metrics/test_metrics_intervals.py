"""Intervals against SciPy."""

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import bootstrap as scipy_bootstrap

from brain2img.metrics.intervals import Resampler, bootstrap, paired_difference, wilson


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_wilson_equals_scipy(n, confidence):
    for k in sorted({0, 1, n // 2, n}):
        reference = binomtest(k, n).proportion_ci(confidence, method="wilson")
        np.testing.assert_allclose(wilson(k, n, confidence=confidence), reference, atol=1e-12)


def test_wilson_of_fractions_lies_between_those_of_whole_numbers():
    assert wilson(3, 10)[0] < wilson(3.5, 10)[0] < wilson(4, 10)[0]


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5), (float("nan"), 5)])
def test_wilson_message(k, n):
    with pytest.raises(ValueError, match="wilson: expected 0 to n successes"):
        wilson(k, n)


def test_bootstrap_is_close_to_scipys():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=80)
    low, high = bootstrap(values, np.arange(80), generator=rng, n=20000)
    reference = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=rng)
    np.testing.assert_allclose((low, high), reference.confidence_interval, atol=0.02)


def test_rows_of_a_stimulus_are_no_new_information():
    rng = np.random.default_rng(0)
    values, stimuli = rng.normal(size=50), np.arange(50)
    once = bootstrap(values, stimuli, generator=np.random.default_rng(1))
    order = rng.permutation(150)
    thrice = bootstrap(np.tile(values, 3)[order], np.tile(stimuli, 3)[order], generator=np.random.default_rng(1))
    np.testing.assert_allclose(once, thrice)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap(rng.normal(size=100), np.arange(100), generator=rng, n=500, confidence=0.9)
        hits += low <= 0 <= high
    assert binomtest(hits, 300, 0.9).pvalue > 0.001


def test_constant_values_and_single_stimuli_have_no_width():
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(bootstrap(np.ones(37), np.arange(37), generator=rng), (1, 1), atol=1e-12)
    np.testing.assert_allclose(bootstrap(np.array([0.3, 0.5]), np.array(["a", "a"]), generator=rng), (0.4, 0.4))


def test_paired_difference_ignores_what_decoders_share():
    rng = np.random.default_rng(0)
    shared, noise = 10 * rng.normal(size=100), 0.1 * rng.normal(size=100)
    value, low, high = paired_difference(shared + 1 + noise, shared, np.arange(100), generator=rng)
    assert value == pytest.approx(1 + noise.mean())
    assert 0.95 < low < value < high < 1.05


def test_resamples_depend_on_nothing_but_the_seed():
    a, b = Resampler(np.random.default_rng(5)), Resampler(np.random.default_rng(5))
    a.counts(10)
    np.testing.assert_array_equal(a.counts(20), b.counts(20))
    assert (a.counts(20).sum(axis=1) == 20).all()


def test_nan_message():
    with pytest.raises(ValueError, match="scores: expected finite values, got 1 of 2 NaN"):
        bootstrap(np.array([1.0, np.nan]), np.arange(2), generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="scores: expected finite values, got none"):
        bootstrap(np.array([]), np.array([]), generator=np.random.default_rng(0))
