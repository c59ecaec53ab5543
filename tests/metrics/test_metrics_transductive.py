"""CSLS, whitening and hubness against plain formulas; k-way of several ranks; galleries of concepts."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, hypergeom, skew
from sklearn.covariance import ledoit_wolf, ledoit_wolf_shrinkage

import brain2img.metrics.transductive_retrieval as transductive
from brain2img.metrics.k_way import KWay
from brain2img.metrics.ranking import k_way
from brain2img.metrics.retrieval import Retrieval
from brain2img.metrics.transductive_retrieval import TransductiveRetrieval, csls, hubness, hubness_by_chance, whiten
from brain2img.records import Decoded


def decoded(found, true, truth=None):
    truth = np.arange(len(found)) if truth is None else np.asarray(truth)
    return Decoded(truth=truth, gallery_ids=tuple(f"s{i}" for i in range(len(true))), embeddings={"clip": found},
                   gallery={"clip": true})


def means(table):
    mine = table[table["direction"] == "image_from_brain"]
    return mine.groupby("metric")["value"].mean().to_dict()


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_whitening_equals_the_inverse_square_root_of_sklearns_covariance(shape):
    rng = np.random.default_rng(0)
    x = 3 + rng.standard_normal(shape) @ rng.standard_normal((shape[1], shape[1]))
    covariance, share = ledoit_wolf(x)
    assert transductive.ledoit_wolf_shrinkage(x - x.mean(axis=0)) == pytest.approx(share, rel=1e-9)
    assert share == pytest.approx(ledoit_wolf_shrinkage(x))
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(whiten(x), (x - x.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T, atol=1e-8)
    # whatever the subject's offset and gain
    np.testing.assert_allclose(whiten(5 * x - 7), whiten(x), atol=1e-8)
    assert (whiten(np.full((4, 3), 0.1)) == 0).all()


def test_csls_equals_the_formula_pair_by_pair():
    rng = np.random.default_rng(1)
    s = rng.uniform(-1, 1, (7, 9))
    expected = np.empty_like(s)
    for q in range(7):
        for g in range(9):
            expected[q, g] = 2 * s[q, g] - np.mean(sorted(s[q])[-3:]) - np.mean(sorted(s[:, g])[-3:])
    np.testing.assert_allclose(csls(s, neighbours=3), expected)
    np.testing.assert_allclose(csls(s, neighbours=50), 2 * s - s.mean(axis=1)[:, None] - s.mean(axis=0))


def test_hubness_equals_scipy_and_its_chance_the_binomials():
    rng = np.random.default_rng(2)
    s = rng.standard_normal((50, 30)) + 2 * (np.arange(30) < 2)
    counts = np.zeros(30)
    for row in s:
        counts[np.argsort(row)[-5:]] += 1
    assert hubness(s, neighbours=5) == pytest.approx(skew(counts))
    assert hubness(s, neighbours=5) > 2
    assert hubness_by_chance(50, 30, neighbours=5) == pytest.approx(float(binom(50, 5 / 30).stats("s")))
    assert hubness(s, neighbours=99) == hubness_by_chance(50, 30, neighbours=99) == 0


def test_each_way_mends_what_it_is_for_and_says_so_in_columns_of_its_own():
    rng = np.random.default_rng(3)
    true = rng.standard_normal((200, 30))
    metric = TransductiveRetrieval()
    assert metric.transductive
    # a subject whose predictions lie on a slant: an offset, and one axis many times too strong
    found = true + rng.standard_normal(true.shape)
    found[:, 0] *= 30
    slanted = means(metric.score(decoded(found + 5, true)))
    plain = means(Retrieval().score(decoded(found + 5, true)))
    assert plain["top1"] + 0.4 < slanted["top1_whitened"]
    # a gallery with hubs
    true = rng.standard_normal((200, 30)) + 2 * rng.standard_normal((200, 1)) * np.ones(30)
    found = true + 1.5 * rng.standard_normal(true.shape)
    hubs = means(metric.score(decoded(found, true)))
    assert hubs["hubness_csls"] < hubs["hubness"] - 0.5
    assert hubs["top1_csls"] > means(Retrieval().score(decoded(found, true)))["top1"]
    assert sorted(hubs) == sorted(metric.names)


def test_transductive_scores_of_nothing_are_chance():
    rng = np.random.default_rng(4)
    true = rng.standard_normal((50, 20))
    metric = TransductiveRetrieval()
    constant = decoded(np.tile(true.mean(axis=0), (50, 1)), true)
    for name, value in means(metric.score(constant)).items():
        if name.startswith("top") and "whitened" in name:
            assert value == pytest.approx(int(name[3]) / 50), name
    chance = metric.chance(constant, generator=rng)
    assert not chance.duplicated(["metric", "space", "direction"]).any()
    scored = metric.score(decoded(rng.standard_normal(true.shape), true))
    keys = ["metric", "space", "direction", "gallery"]
    assert set(map(tuple, scored[keys].to_numpy())) == set(map(tuple, chance[keys].to_numpy()))
    assert scored.groupby("metric")["proportion"].first().to_dict() == {
        name: name.startswith("top") for name in metric.names}


@pytest.mark.parametrize(("k", "top"), [(2, 1), (4, 2), (6, 5), (5, 5)])
def test_top_of_k_equals_all_draws_and_all_orders_of_ties(k, top):
    for own, others in ((3, [1, 2, 3, 4, 3, 5]), (5, [5, 5, 5, 5, 5, 5]), (9, [1, 2, 3, 4, 5, 6])):
        above, tied = sum(s > own for s in others), sum(s == own for s in others)
        hits = []
        for drawn in combinations(others, k - 1):
            better, equal = sum(s > own for s in drawn), sum(s == own for s in drawn)
            hits.append(np.mean([better + place < top for place in range(equal + 1)]))
        ranks = pd.DataFrame({"above": [above], "tied": [tied], "candidates": [7]})
        np.testing.assert_allclose(k_way(ranks, k, top=top), [np.mean(hits)], atol=1e-12)


def test_k_way_of_200_equals_the_hypergeometric_distribution_and_plain_top_k():
    above = np.arange(200)
    ranks = pd.DataFrame({"above": above, "tied": 0, "candidates": 200})
    for k in (50, 100):
        np.testing.assert_allclose(k_way(ranks, k, top=5), hypergeom(199, above, k - 1).cdf(4), atol=1e-12)
    np.testing.assert_array_equal(k_way(ranks, 200, top=5), above < 5)
    rng = np.random.default_rng(5)
    true = rng.standard_normal((200, 12))
    both = decoded(true + 2 * rng.standard_normal(true.shape), true)
    got, plain = means(KWay().score(both)), means(Retrieval().score(both))
    assert (got["top1_of_200"], got["top5_of_200"]) == (plain["top1"], plain["top5"])
    assert got["top1_of_2"] > got["top1_of_4"] > got["top1_of_10"] > got["top1_of_50"] > got["top1_of_100"]
    chance = KWay().chance(both, generator=rng).set_index(["metric", "direction"])["chance"]
    assert chance["top5_of_50", "image_from_brain"] == pytest.approx(0.1)
    nothing = means(KWay().score(decoded(np.tile(true[:1], (200, 1)), true)))
    assert nothing == pytest.approx({name: chance[name, "image_from_brain"] for name in nothing})
    assert set(means(KWay().score(decoded(true[:60], true[:60])))) == {"top1_of_2", "top1_of_4", "top1_of_10",
                                                                        "top1_of_50", "top5_of_50"}


def test_messages():
    with pytest.raises(ValueError, match=r"k_way: expected ways of at least 2, of top-5 at least 6, got \[1, 5\]"):
        KWay(ways=(1, 3), top5_ways=(5,))
    with pytest.raises(ValueError, match=r"expected ks and neighbours of at least 1, got \[1\] and 0"):
        TransductiveRetrieval(ks=(1,), neighbours=0)
    with pytest.raises(ValueError, match=r"retrieval: expected a gallery of \('stimuli', 'concepts'\), got 'all'"):
        Retrieval(gallery="all")
