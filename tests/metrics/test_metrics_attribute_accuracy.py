"""Attribute accuracy against a loop, with ties, its chance level and its messages."""

import numpy as np
import pytest

from brain2img.metrics.attribute_accuracy import AttributeAccuracy, groups_of
from brain2img.records import Decoded, EmbeddingSpec

LABELS = ("colour=blue", "colour=red", "kind=apple", "kind=boat", "kind=car", "only=one", "x")


def decoded(found, true, truth=None, labels=LABELS):
    truth = np.arange(len(found)) if truth is None else np.asarray(truth)
    spec = EmbeddingSpec(name="attributes", shape=(len(labels),), labels=labels)
    return Decoded(truth=truth, gallery_ids=tuple(f"s{i}" for i in range(len(true))),
                   embeddings={"attributes": found}, gallery={"attributes": true}, specs={"attributes": spec})


def truths(rng, n):
    colour, kind = rng.integers(2, size=n), rng.integers(3, size=n)
    return np.concatenate([np.eye(2)[colour], np.eye(3)[kind], np.ones((n, 1)), rng.normal(size=(n, 1))], axis=1)


def test_groups_leave_out_numbers_and_single_values():
    assert groups_of(LABELS) == {"colour": [0, 1], "kind": [2, 3, 4]}


def test_equals_a_loop():
    rng = np.random.default_rng(0)
    true = truths(rng, 20)
    truth = rng.integers(20, size=30)
    found = true[truth] + 0.7 * rng.normal(size=(30, 7))
    table = AttributeAccuracy().score(decoded(found, true, truth))
    singles = {}
    for name, places in (("colour", [0, 1]), ("kind", [2, 3, 4])):
        singles[name] = [float(np.argmax(found[i, places]) == np.argmax(true[truth[i], places])) for i in range(30)]
        lines = table[table["metric"] == f"attribute_accuracy/{name}"]
        assert lines["value"].tolist() == singles[name]
        assert lines["proportion"].all()
    mean = table[table["metric"] == "attribute_accuracy"]
    np.testing.assert_allclose(mean["value"], np.mean(list(singles.values()), axis=0))
    assert not mean["proportion"].any()


def test_ties_and_constant_predictions():
    true = truths(np.random.default_rng(0), 10)
    table = AttributeAccuracy().score(decoded(np.full((10, 7), 0.2), true))
    means = table.groupby("metric")["value"].mean()
    assert means["attribute_accuracy/colour"] == pytest.approx(1 / 2)
    assert means["attribute_accuracy/kind"] == pytest.approx(1 / 3)
    assert means["attribute_accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_stimulus_without_an_attribute_has_no_line_for_it():
    true = truths(np.random.default_rng(0), 6)
    true[4, 2:5] = 0
    table = AttributeAccuracy().score(decoded(true, true))
    kinds = table[table["metric"] == "attribute_accuracy/kind"]
    assert kinds["row"].tolist() == [0, 1, 2, 3, 5]
    assert (table["value"] == 1).all()


def test_chance_is_the_product_of_the_marginals():
    rng = np.random.default_rng(0)
    true = truths(rng, 300)
    found = true[:, [0, 1, 2, 3, 4, 5, 6]].copy()
    found[:, 2:5] = np.eye(3)[rng.choice(3, size=300, p=[0.7, 0.2, 0.1])]
    level = AttributeAccuracy().chance(decoded(found, true), generator=rng).set_index("metric")["chance"]
    for name, places in (("colour", [0, 1]), ("kind", [2, 3, 4])):
        expected = found[:, places].mean(axis=0) @ true[:, places].mean(axis=0)
        # the sum of matches under a permutation has a variance below n / 4
        assert abs(level[f"attribute_accuracy/{name}"] - expected) < 3.29 * np.sqrt(0.25 / 300 / 200)


def test_shuffled_predictions_are_at_chance():
    rng = np.random.default_rng(0)
    true = truths(rng, 500)
    data = decoded(true[rng.permutation(500)], true)
    got = AttributeAccuracy().score(data).groupby("metric")["value"].mean()
    level = AttributeAccuracy().chance(data, generator=rng).set_index("metric")["chance"]
    assert set(got.index) == set(level.index)
    assert (abs(got - level) < 3.29 * 0.5 / np.sqrt(500)).all()


def test_does_not_depend_on_order_or_scale():
    rng = np.random.default_rng(0)
    true = truths(rng, 20)
    found = true + rng.normal(size=true.shape)
    before = AttributeAccuracy().score(decoded(found, true)).groupby("metric")["value"].mean()
    rows, places = rng.permutation(20), rng.permutation(20)
    after = AttributeAccuracy().score(decoded(5 * found[rows], true[places], np.argsort(places)[rows]))
    np.testing.assert_allclose(after.groupby("metric")["value"].mean(), before)


def test_messages():
    true = truths(np.random.default_rng(0), 3)
    with pytest.raises(ValueError, match=r"space 'attributes': expected a label such as 'kind=apple'.*7 dimensions"):
        AttributeAccuracy().score(decoded(true, true, labels=("x", "y")))
    with pytest.raises(ValueError, match="predictions: expected space 'attributes', got"):
        AttributeAccuracy().score(Decoded(truth=np.arange(3), gallery_ids=("a", "b", "c")))
