"""The log-linear law of accuracy over amounts of data: recovery, coverage, extrapolation, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, linregress

from brain2img.metrics.scaling_law import fit_law, flag, resampled_means

AMOUNTS = np.array([100, 200, 400, 800, 1600])
INTERCEPT, SLOPE = -0.4, 0.08


def planted(rng, *, n_draws=4, n_stimuli=150, draw_sd=0.02, spread=0.08, link="identity"):
    """Return cells of hits that follow the law, with easy and hard stimuli and lucky draws."""
    difficulty = rng.normal(0, spread, n_stimuli)
    luck = rng.normal(0, draw_sd, (len(AMOUNTS), n_draws, 1))
    mean = INTERCEPT + SLOPE * np.log2(AMOUNTS)
    if link == "logit":
        mean = 1 / (1 + np.exp(-(8 * mean - 2)))
    return [(rng.random((n_draws, n_stimuli)) < np.clip(m + difficulty + own, 0, 1)).astype(float)
            for m, own in zip(mean, luck, strict=True)]


def fitted(cells, *, seed=0, n=2000, link="identity", amounts=AMOUNTS):
    means = np.array([cell.mean() for cell in cells])
    drawn = resampled_means(cells, generator=np.random.default_rng(seed), n=n)
    return fit_law(amounts, means, drawn, chance=0.005, n_stimuli=cells[0].shape[1], link=link), means


def test_the_line_is_that_of_scipy_and_holds_the_planted_law():
    law, means = fitted(planted(np.random.default_rng(0)))
    expected = linregress(np.log2(AMOUNTS), means)
    np.testing.assert_allclose(law.coefficients, [expected.intercept, expected.slope])
    assert law.r2 == pytest.approx(expected.rvalue**2)
    low, high = np.quantile(law.draws, [0.0005, 0.9995], axis=0)
    assert (low < [INTERCEPT, SLOPE]).all()
    assert (high > [INTERCEPT, SLOPE]).all()
    assert low[1] > 0, "the slope is told from none"


def test_intervals_hold_the_truth_as_often_as_they_say_and_are_not_vacuous():
    n, rng, estimates, widths, inside = 300, np.random.default_rng(1), [], [], 0
    for _ in range(n):
        law, _ = fitted(planted(rng), seed=int(rng.integers(2**31)), n=300)
        low, high = np.quantile(law.draws[:, 1], [0.025, 0.975])
        inside += low <= SLOPE <= high
        estimates.append(law.coefficients[1])
        widths.append(high - low)
    assert inside >= binom.ppf(0.0005, n, 0.95)
    assert np.mean(widths) < 1.6 * 2 * 1.96 * np.std(estimates)


def test_one_draw_or_many_alike_have_the_interval_of_stimuli_alone():
    cell = (np.random.default_rng(2).random((1, 80)) < 0.4).astype(float)
    one, many = (resampled_means([x], generator=np.random.default_rng(3)) for x in (cell, np.repeat(cell, 5, axis=0)))
    np.testing.assert_allclose(one, many, atol=1e-6)
    assert one.std() == pytest.approx(np.sqrt(0.4 * 0.6 / 80), rel=0.2)


def test_extrapolation_is_clipped_and_widens_and_is_refused_far_away():
    law, _ = fitted(planted(np.random.default_rng(4)))
    value, low, high = law.at(np.array([1, 400, 6400, 25600]))
    assert value[0] == low[0] == 0.005
    assert ((low <= value) & (value <= high) & (high <= 1)).all()
    assert high[2] - low[2] > high[1] - low[1]
    assert value[2] == pytest.approx(INTERCEPT + SLOPE * np.log2(6400), abs=0.06)
    with pytest.raises(ValueError, match=r"expected at most 16 times the largest amount measured \(25600\), got 25601"):
        law.at(np.array([25601]))
    value, _, high = law.at(np.array([2.0**60]), beyond=True)
    assert value[0] == high[0] == 1


@pytest.mark.parametrize("link", ["identity", "logit"])
def test_needed_is_the_inverse_of_the_law(link):
    law, _ = fitted(planted(np.random.default_rng(5), link=link), link=link)
    amount, low, high = law.needed(0.45)
    assert law.at(np.array([amount]))[0][0] == pytest.approx(0.45)
    assert low < amount < high
    with pytest.raises(ValueError, match=r"expected an accuracy above chance \(0.005\) and below 1, got 1"):
        law.needed(1.0)


def test_the_logit_recovers_a_law_of_log_odds():
    law, _ = fitted(planted(np.random.default_rng(6), n_stimuli=4000, draw_sd=0, spread=0, link="logit"),
                    link="logit")
    low, high = np.quantile(law.draws[:, 1], [0.0005, 0.9995])
    assert low < 8 * SLOPE < high


def test_what_does_not_grow_never_gets_there():
    law, _ = fitted([np.full((2, 10), 0.3)] * 5)
    assert law.needed(0.5) == (np.inf, np.inf, np.inf)


def test_points_at_chance_and_near_the_ceiling_are_flagged():
    assert flag(0.02, 0.004, chance=0.005) == "at chance"
    assert flag(0.96, 0.93, chance=0.005) == "near the ceiling"
    assert flag(0.58, 0.5, chance=0.005, ceiling=0.6) == "near the ceiling"
    assert flag(0.4, 0.3, chance=0.005, ceiling=0.6) == ""


def test_too_few_points_and_unknown_links_are_refused():
    with pytest.raises(ValueError, match="expected points at two amounts or more, got 1"):
        fit_law(np.array([5]), np.array([0.4]), np.full((9, 1), 0.4), chance=0.1, n_stimuli=5)
    with pytest.raises(ValueError, match=r"scaling.link: expected one of .* got 'log'"):
        fit_law(AMOUNTS, np.ones(5), np.ones((9, 5)), chance=0.1, n_stimuli=5, link="log")
