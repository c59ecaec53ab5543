"""Onset by cluster permutation: a planted one is found, noise gives none more often than alpha says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, t

from brain2img.metrics.cluster_permutation import Cluster, clusters_above


def test_a_planted_stretch_is_found():
    values = np.random.default_rng(0).uniform(size=(200, 20))
    values[:, 6:13] = values[:, 6:13] ** 0.3
    found = [c for c in clusters_above(values, chance=0.5, seed=1, n_permutations=500) if c.p < 0.05]
    assert [(c.first, c.last) for c in found] == [(6, 12)]
    below = clusters_above(1 - values, chance=0.5, seed=1, n_permutations=200)
    assert all(c.last < 6 or c.first > 12 for c in below), "the test is one-sided"


def test_equals_all_sign_flips_by_hand():
    values = np.random.default_rng(3).normal(0.5, 0.1, (7, 6))
    values[:, 2:4] += 0.1

    def masses(x):
        score = x.mean(axis=0) / (x.std(axis=0, ddof=1) / np.sqrt(len(x)))
        over = score > t.ppf(0.95, len(x) - 1)
        groups = [list(g) for inside, g in itertools.groupby(range(len(score)), key=lambda i: over[i]) if inside]
        return {(g[0], g[-1]): score[g].sum() for g in groups}

    centred = values - 0.5
    # MNE counts the unflipped scores twice, in place of those with all signs flipped
    flips = [*itertools.product((1, -1), repeat=7)][:-1] + [(1,) * 7]
    null = [max(masses(np.array(signs)[:, None] * centred).values(), default=0.0) for signs in flips]
    expected = [Cluster(*place, float(np.mean(np.array(null) >= mass - 1e-9)))
                for place, mass in masses(centred).items()]
    found = clusters_above(values, chance=0.5, seed=0)
    assert [(c.first, c.last) for c in found] == [(c.first, c.last) for c in expected]
    np.testing.assert_allclose([c.p for c in found], [c.p for c in expected], atol=1e-12)


def test_noise_is_called_above_chance_as_often_as_alpha_says():
    rng, n = np.random.default_rng(5), 200
    smooth = np.eye(12) + np.eye(12, k=1)  # windows that overlap
    positives = sum(any(c.p <= 0.05 for c in clusters_above(rng.standard_normal((16, 12)) @ smooth, chance=0.0, seed=i,
                                                            n_permutations=199)) for i in range(n))
    low, high = binom.ppf([0.0005, 0.9995], n, 0.05)
    assert low <= positives <= high


def test_messages():
    with pytest.raises(ValueError, match="expected finite scores of 2 units or more"):
        clusters_above(np.zeros((1, 5)), chance=0.5, seed=0)
