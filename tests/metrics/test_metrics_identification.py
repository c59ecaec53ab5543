"""Identification against brute force, the published two-way loop, and its chance level."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from brain2img.metrics.identification import Identification
from brain2img.metrics.ranking import k_way
from brain2img.records import Decoded


def decoded(found, true, truth=None):
    truth = np.arange(len(found)) if truth is None else np.asarray(truth)
    return Decoded(truth=truth, gallery_ids=tuple(f"s{i}" for i in range(len(true))), embeddings={"clip": found},
                   gallery={"clip": true})


def values(table, metric, direction="image_from_brain"):
    return table[(table["metric"] == metric) & (table["direction"] == direction)]["value"].to_numpy()


def test_two_way_equals_the_published_loop():
    """The loop of MindEye's metric script: real images below the matching one, for a fixed reconstruction."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(12, 30)) + 3
    found = true + 2 * rng.normal(size=true.shape)
    r = np.array([[pearsonr(a, b)[0] for b in found] for a in true])  # rows real, columns reconstructed
    published = [sum(r[i, j] < r[j, j] for i in range(12)) / 11 for j in range(12)]
    reverse = [sum(r[j, i] < r[j, j] for i in range(12)) / 11 for j in range(12)]
    table = Identification(ways=[2]).score(decoded(found, true))
    np.testing.assert_allclose(values(table, "two_way"), published)
    np.testing.assert_allclose(values(table, "two_way", "brain_from_image"), reverse)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_k_way_equals_all_draws_and_all_orders_of_ties(k):
    for scores in ([5, 5, 5, 5, 5, 5], [3, 1, 2, 3, 4, 3], [9, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0]):
        own, others = scores[0], scores[1:]
        wins = []
        for drawn in combinations(others, k - 1):
            orders = list(permutations([("truth", own), *(("other", s) for s in drawn)]))
            wins.append(np.mean([max(order, key=lambda c: c[1])[0] == "truth" for order in orders]))
        ranks = pd.DataFrame({"above": [sum(s > own for s in others)],
                              "tied": [sum(s == own for s in others)], "candidates": [6]})
        np.testing.assert_allclose(k_way(ranks, k), [np.mean(wins)], atol=1e-12)


def test_fifty_way_of_a_large_gallery_equals_the_binomial_formula():
    from scipy.special import comb

    above = np.arange(1000)
    ranks = pd.DataFrame({"above": above, "tied": 0, "candidates": 1000})
    np.testing.assert_allclose(k_way(ranks, 50), comb(999 - above, 49) / comb(999, 49), atol=1e-13)
    # over all ranks the mean is the chance level
    assert k_way(ranks, 50).mean() == pytest.approx(1 / 50, rel=1e-9)


def test_constant_predictions_score_exactly_chance():
    rng = np.random.default_rng(0)
    metric = Identification()
    data = decoded(np.full((60, 5), 0.3, dtype=np.float32), rng.normal(size=(60, 5)))
    table, level = metric.score(data), metric.chance(data, generator=rng)
    assert set(table["metric"]) == {"two_way", "fifty_way"}
    for line in level.itertuples():
        np.testing.assert_allclose(values(table, line.metric, line.direction), line.chance)


def test_a_k_above_the_gallery_is_left_out():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(60, 5))
    data = decoded(true[:10], true)
    table, level = Identification().score(data), Identification().chance(data, generator=rng)
    pairs = {("two_way", "image_from_brain"), ("fifty_way", "image_from_brain"), ("two_way", "brain_from_image")}
    assert set(zip(table["metric"], table["direction"], strict=True)) == pairs
    assert set(zip(level["metric"], level["direction"], strict=True)) == pairs
    one = decoded(true[:1], true[:1])
    assert list(Identification().score(one).columns) == list(table.columns)
    assert np.arange(3)[Identification().score(one)["row"]].shape == (0,)
    assert len(Identification().score(one)) == len(Identification().chance(one, generator=rng)) == 0


def test_rows_of_the_same_stimulus_are_no_distractors():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(5, 40))
    found = np.concatenate([true, true + 1e-3 * rng.normal(size=true.shape)])
    table = Identification(ways=[2]).score(decoded(found, true, np.tile(np.arange(5), 2)))
    assert (table["value"] == 1).all()
    assert table[table["direction"] == "brain_from_image"]["gallery"].unique().tolist() == [9]


def test_shuffled_predictions_are_at_chance():
    rng = np.random.default_rng(1)
    true = rng.normal(size=(400, 32))
    found = true[rng.permutation(400)] + 0.1 * rng.normal(size=true.shape)
    table = Identification().score(decoded(found, true))
    for (name, direction), group in table.groupby(["metric", "direction"]):
        error = 3.29 * group["value"].std() / 20
        assert abs(group["value"].mean() - {"two_way": 1 / 2, "fifty_way": 1 / 50}[name]) < error, (name, direction)


def test_names_and_messages():
    assert Identification(ways=[2, 50, 200]).names == ("two_way", "fifty_way", "200_way")
    with pytest.raises(ValueError, match="expected ways of at least 2"):
        Identification(ways=[1])
