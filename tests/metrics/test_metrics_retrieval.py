"""Retrieval against brute force over all orders of ties, its invariances, its chance level and its messages."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from brain2img.metrics.ranking import rank_table, similarity
from brain2img.metrics.retrieval import Retrieval
from brain2img.records import Decoded

KEYS = ["metric", "space", "direction"]


def decoded(found, true, truth=None, name="clip"):
    truth = np.arange(len(found)) if truth is None else np.asarray(truth)
    return Decoded(truth=truth, gallery_ids=tuple(f"s{i}" for i in range(len(true))), embeddings={name: found},
                   gallery={name: true})


def values(table, metric, direction):
    lines = table[(table["metric"] == metric) & (table["direction"] == direction)]
    assert lines["row"].tolist() == list(range(len(lines)))
    return lines["value"].to_numpy()


def brute_force(scores, truth, k):
    """Share of all orders of the candidates, stable-sorted by score, that have the truth within k."""
    hits = []
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda c: -scores[c])
        hits.append(truth in ranked[:k])
    return np.mean(hits)


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_similarity_equals_scipy(kind):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, (7, 40)), rng.normal(1, 1, (9, 40))
    np.testing.assert_allclose(similarity(a, b, kind=kind), 1 - cdist(a, b, kind), atol=1e-12)


def test_similarity_does_not_depend_on_the_chunk(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, (3, 100)).astype(np.float32), rng.normal(5, 1, (4, 100)).astype(np.float16)
    whole = similarity(a, b, kind="correlation")
    monkeypatch.setattr("brain2img.metrics.ranking._CHUNK", 7)
    np.testing.assert_allclose(similarity(a, b, kind="correlation"), whole, atol=1e-12)


def test_similarity_of_a_vector_without_variance_is_undefined():
    a = np.full((1, 1000), 0.1, dtype=np.float32)
    b = np.random.default_rng(0).normal(size=(2, 1000))
    assert np.isnan(similarity(a, b, kind="correlation")).all()
    assert np.isfinite(similarity(a, b, kind="cosine")).all()
    assert np.isnan(similarity(0 * a, b, kind="cosine")).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equals_brute_force_with_ties_and_repeated_stimuli(k):
    rng = np.random.default_rng(3)
    # few different vectors, so that there are many ties
    found = rng.integers(0, 2, (6, 3)).astype(float) + 0.5
    true = rng.integers(0, 2, (5, 3)).astype(float) + 0.5
    truth = np.array([0, 1, 1, 3, 4, 4])
    table = Retrieval(ks=[k]).score(decoded(found, true, truth))
    scores = np.round(1 - cdist(found, true, "cosine"), 9)
    image = [brute_force(scores[i], truth[i], k) for i in range(6)]
    brain = []
    for i in range(6):
        rows = [i] + [j for j in range(6) if truth[j] != truth[i]]
        brain.append(brute_force(scores[rows, truth[i]], 0, k))
    np.testing.assert_allclose(values(table, f"top{k}", "image_from_brain"), image, atol=1e-12)
    np.testing.assert_allclose(values(table, f"top{k}", "brain_from_image"), brain, atol=1e-12)


def test_directions_differ_on_a_toy_case():
    # both rows prefer stimulus 0, but stimulus 1 prefers row 1
    true = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = np.array([[1.0, 0.0], [0.9, 0.3]])
    table = Retrieval(ks=[1]).score(decoded(found, true))
    assert values(table, "top1", "image_from_brain").tolist() == [1, 0]
    assert values(table, "top1", "brain_from_image").tolist() == [1, 1]


def test_a_perfect_decoder_finds_everything_in_a_larger_gallery():
    true = np.random.default_rng(0).normal(size=(30, 4, 5))
    table = Retrieval(ks=[1]).score(decoded(true[10:20], true, np.arange(10, 20)))
    assert (table["value"] == 1).all()
    assert table.groupby("direction")["gallery"].first().to_dict() == {"image_from_brain": 30, "brain_from_image": 10}


@pytest.mark.parametrize("kind", ["cosine", "correlation"])
def test_constant_predictions_score_exactly_chance(kind):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(13, 257))
    zero = Retrieval(similarity=kind)
    data = decoded(np.zeros((13, 257), dtype=np.float32), true)
    level = zero.chance(data, generator=rng).set_index(KEYS)["chance"]
    got = zero.score(data).groupby(KEYS)["value"]
    np.testing.assert_allclose(got.min(), level.loc[got.min().index])
    np.testing.assert_allclose(got.max(), level.loc[got.max().index])
    # one and the same vector for all: nothing tells the rows apart, in whatever way the product was blocked
    same = decoded(np.tile(rng.normal(size=257).astype(np.float32), (13, 1)), true)
    brain = values(zero.score(same), "top1", "brain_from_image")
    np.testing.assert_allclose(brain, 1 / 13)


def test_one_row_is_scored():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(8, 5))
    data = decoded(true[3:4], true, [3])
    table, level = Retrieval().score(data), Retrieval().chance(data, generator=rng)
    assert (table["value"] == 1).all()
    assert level.set_index(KEYS)["chance"].to_dict() == {
        ("top1", "clip", "image_from_brain"): 1 / 8, ("top5", "clip", "image_from_brain"): 5 / 8,
        ("top1", "clip", "brain_from_image"): 1.0, ("top5", "clip", "brain_from_image"): 1.0}


def test_does_not_depend_on_order_or_scale():
    rng = np.random.default_rng(0)
    true, noise = rng.normal(size=(40, 16)), rng.normal(size=(25, 16))
    truth = rng.permutation(40)[:25]
    found = true[truth] + 2 * noise
    before = Retrieval().score(decoded(found, true, truth))
    rows, places = rng.permutation(25), rng.permutation(40)
    after = Retrieval().score(decoded(7 * found[rows], 3 * true[places], np.argsort(places)[truth[rows]]))
    for metric in ("top1", "top5"):
        for direction in ("image_from_brain", "brain_from_image"):
            np.testing.assert_allclose(values(after, metric, direction), values(before, metric, direction)[rows])


def test_shuffled_predictions_are_at_chance():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(500, 8))
    data = decoded(true[rng.permutation(500)] + 0.1, true)
    table = Retrieval().score(data)
    level = Retrieval().chance(data, generator=rng).set_index(KEYS)["chance"]
    for key, group in table.groupby(KEYS):
        hits = int(group["value"].sum())
        assert binomtest(hits, 500, level[key]).pvalue > 0.001, key


def test_an_undefined_distractor_counts_as_zero():
    scores = np.array([[0.4, np.nan, 0.2]])
    ranks = rank_table(scores, np.array([0]))
    assert ranks.to_dict("records") == [{"above": 0, "tied": 0, "rank": 1.0, "candidates": 3}]


def test_messages():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4, 3))
    broken = true.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"predictions of space 'clip': expected finite.*1 of 4 rows \(first: row 2\)"):
        Retrieval().score(decoded(broken, true))
    with pytest.raises(ValueError, match="gallery: expected every stimulus once, got 1 again"):
        Retrieval().score(Decoded(truth=np.arange(2), gallery_ids=("a", "a"), embeddings={"clip": true[:2]},
                                  gallery={"clip": true[:2]}))
    with pytest.raises(ValueError, match="truth: expected places in a gallery of 4 stimuli, got 4"):
        Retrieval().score(decoded(true, true, [0, 1, 2, 4]))
    with pytest.raises(ValueError, match="gallery: expected space 'clip'"):
        Retrieval().score(Decoded(truth=np.arange(2), gallery_ids=("a", "b"), embeddings={"clip": true[:2]}))
    with pytest.raises(ValueError, match=r"predictions of space 'clip': expected shape \(3,\)"):
        Retrieval().score(decoded(true[:, :2], true))
    with pytest.raises(ValueError, match="expected 4 rows, got 3"):
        Retrieval().score(decoded(true[:3], true, np.arange(4)))
    with pytest.raises(ValueError, match="decoded rows: expected at least one"):
        Retrieval().chance(decoded(true[:0], true), generator=rng)
    with pytest.raises(ValueError, match="expected ks of at least 1"):
        Retrieval(ks=[0])
    with pytest.raises(ValueError, match="expected a similarity of"):
        Retrieval(similarity="dot")
    with pytest.raises(ValueError, match="direction: expected one of"):
        rank_table(true, np.arange(3), direction="sideways")
