"""The one table of ranks, and accuracies of it, against brute force over all orders of ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from brain2img.decoders.module import retrieval_top1
from brain2img.metrics.ranking import DIRECTIONS, RankScore, accuracy, rank_table, similarity


def by_all_orders(scores, truth, *, top):
    """Return how often the truth is among the first over all orders of equal scores."""
    hits = [[i for _, _, i in sorted((-score, place, i) for i, (score, place) in enumerate(zip(scores, order,
             strict=True)))].index(truth) < top for order in permutations(range(len(scores)))]
    return np.mean(hits)


@pytest.mark.parametrize("name", ["top1", "top2", "top5", "two_way"])
def test_accuracy_equals_all_orders_of_ties(name):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (30, 6)) / 2
    truth = rng.integers(0, 6, 30)
    score, ranks = RankScore.named(name), rank_table(scores, truth)
    if name == "two_way":
        expected = [np.mean([(own > o) + (own == o) / 2 for j, o in enumerate(row) if j != t])
                    for row, t in zip(scores, truth, strict=True) for own in [row[t]]]
    else:
        expected = [by_all_orders(row, t, top=score.top) for row, t in zip(scores, truth, strict=True)]
    np.testing.assert_allclose(score.values(ranks), expected, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["top1", "top5", "two_way", "top1_of_4", "top5_of_7"])
def test_what_decodes_the_same_for_all_scores_exactly_chance(name, direction):
    true = np.random.default_rng(1).standard_normal((8, 5))
    ranks = rank_table(similarity(np.ones((8, 5)), true, kind="cosine"), np.arange(8), direction=direction)
    score = RankScore.named(name)
    expected = score.chance(ranks["candidates"])
    np.testing.assert_allclose(score.values(ranks).mean(), expected.mean(), atol=1e-12)
    if direction == "image_from_brain" and name.startswith("top"):
        ties = rank_table(np.zeros((8, 8)), np.arange(8))
        np.testing.assert_allclose(score.values(ties), score.chance(ties["candidates"]), atol=1e-12)


def test_validation_in_training_ranks_as_the_metric_does():
    import torch

    true = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ids = [f"s{i}" for i in range(6)]
    assert retrieval_top1(torch.zeros(6, 4), true, ids) == pytest.approx(1 / 6)


def test_accuracies_of_groups_stand_beside_chance_and_intervals():
    ranks = pd.DataFrame({"above": [0, 1, 0, 4], "tied": [0, 0, 1, 0], "candidates": 10, "stimulus_id": list("abab"),
                          "subject": ["x", "x", "y", "y"]})
    table = accuracy(ranks, by=["subject"], generator=np.random.default_rng(0)).set_index(["subject", "metric"])
    assert table["value"].to_dict() == {("x", "top1"): 0.5, ("x", "top5"): 1.0, ("y", "top1"): 0.25, ("y", "top5"): 1.0}
    assert table["chance"].unique().tolist() == [0.1, 0.5]
    assert (table["low"] <= table["value"]).all()
    assert (table["high"] >= table["value"]).all()
    assert set(table["gallery"]) == {10}
