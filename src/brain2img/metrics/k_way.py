"""k-way retrieval of the EEG and MEG literature, in closed form from the ranks among the whole gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.meaning import Meaning
from brain2img.metrics.ranking import RankScore, chance_of_ranks, score_ranks
from brain2img.records import Decoded


class KWay(Metric):
    """Expected top-1 and top-5 accuracy among the truth and k - 1 random distractors, by cosine similarity.

    The 2-, 4-, 10-, 50-, 100- and 200-way retrieval of ATM (Li et al. 2024, https://arxiv.org/abs/2403.07721,
    https://github.com/dongyangli-del/EEG_Image_decode), with top-5 from 50 on. Deviation: published code draws the
    distractors once an epoch without a seed; here the accuracy is its expectation over all draws, ties counted in every
    order. A k above the number of candidates is left out; k = 200 of 200 is plain top-1. Values are expectations, not
    successes, so that intervals are bootstrapped. Scores are named "top1_of_50".

    Parameters
    ----------
    ways
        The k of top-1.
    top5_ways
        The k of top-5.

    Raises
    ------
    ValueError
        If a k is below 2 (of top-5: below 6), or none is asked for.
    """

    needs = ("*",)
    proportion = False

    def __init__(self, *, ways: Sequence[int] = (2, 4, 10, 50, 100, 200),
                 top5_ways: Sequence[int] = (50, 100, 200)) -> None:
        asked = [(1, k) for k in ways] + [(5, k) for k in top5_ways]
        wrong = [k for top, k in asked if k <= top]
        if wrong or not asked:
            raise ValueError(f"k_way: expected ways of at least 2, of top-5 at least 6, got {wrong or 'none'}. Correct "
                             "metric.k_way.ways or metric.k_way.top5_ways.")
        self.names = tuple(f"top{top}_of_{k}" for top, k in asked)
        self._scores = [RankScore.named(name) for name in self.names]

    def meaning(self, name: str) -> Meaning:
        """Return what an accuracy of ranks means."""
        return next(score.meaning for score in self._scores if score.name == name)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every decoded row in every space, see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If the gallery holds a stimulus twice, or the predictions hold NaN.
        """
        return score_ranks(decoded, self._scores, needs=self.needs, kind="cosine")

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return 1 / k and 5 / k (analytic), see `interfaces.Metric.chance`."""
        return chance_of_ranks(decoded, self._scores, needs=self.needs)

    @classmethod
    def tiny(cls) -> Self:
        """Return two-way, and top-5 of six."""
        return cls(ways=(2,), top5_ways=(6,))
