"""Retrieval that uses the other test queries of a subject: CSLS, whitening, both; and how uneven a gallery is hit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.meaning import Meaning
from brain2img.metrics.ranking import (
    DIRECTIONS,
    RankScore,
    chance_of_ranks,
    rank_table,
    similarity,
)
from brain2img.metrics.tables import CHANCE_COLUMNS, SCORE_COLUMNS, chance_line, names_of, score_lines, spaces, stack
from brain2img.records import Decoded

WAYS = ("csls", "whitened", "whitened_csls")
HUBNESS = {"": "hubness", **{way: f"hubness_{way}" for way in WAYS}}


def ledoit_wolf_shrinkage(x: np.ndarray) -> float:
    """Return the Ledoit-Wolf shrinkage of centred rows ``(n, D)``, by products of rows alone, so that D may be large.

    Ledoit & Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4, as `sklearn.covariance.ledoit_wolf_shrinkage`.
    """
    n, width = x.shape
    gram = x @ x.T
    square = (gram**2).sum() / n**2  # |covariance|^2
    delta = square - np.trace(gram) ** 2 / n**2 / width
    if delta <= 0:
        return 0.0
    beta = ((np.diag(gram) ** 2).sum() / n - square) / n
    return float(min(max(beta, 0.0), delta) / delta)


def whiten(x: np.ndarray) -> np.ndarray:
    """Return rows ``(n, D)`` without their mean, times the inverse square root of their shrunk covariance.

    The covariance is (1 - s) S + s mu I with the Ledoit-Wolf s and mu the mean variance; of its D axes only the n that
    the rows span are computed. Rows that are all the same become 0.
    """
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=0)
    mu = (x**2).sum() / x.size
    if mu <= 1e-18:
        return np.zeros_like(x)
    share = ledoit_wolf_shrinkage(x)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    # x lies in the span of `right`: the axes outside of it do not matter
    scale = np.sqrt((1 - share) * values**2 / len(x) + share * mu)
    scaled = np.divide(values, scale, out=np.zeros_like(values), where=scale > 1e-9 * scale.max())
    return (left * scaled) @ right


def csls(similarities: np.ndarray, *, neighbours: int) -> np.ndarray:
    """Return 2 cos(q, g) - r(q) - r(g), r being the mean similarity to the nearest on the other side, ``(n, N)``.

    Cross-domain similarity local scaling (Conneau et al. 2018, https://arxiv.org/abs/1710.04087): what is near to
    everything is moved away.

    Parameters
    ----------
    similarities
        ``(n, N)`` of n queries and N gallery entries; undefined ones (NaN) count as 0 for their neighbours.
    neighbours
        How many nearest; all where there are fewer.
    """
    known = np.nan_to_num(similarities, nan=0.0)
    of_query, of_entry = (np.sort(known, axis=axis).take(range(-min(neighbours, known.shape[axis]), 0), axis=axis)
                          .mean(axis=axis, keepdims=True) for axis in (1, 0))
    return 2 * similarities - of_query - of_entry


def hubness(similarities: np.ndarray, *, neighbours: int) -> float:
    """Return the skewness of N_k, how often each of N entries is among the k nearest of the n queries.

    Radovanovic et al. 2010, https://jmlr.org/papers/v11/radovanovic10a.html. 0 where all are hit equally often.
    """
    k = min(neighbours, similarities.shape[1])
    nearest = np.argsort(-np.nan_to_num(similarities, nan=-np.inf), axis=1, kind="stable")[:, :k]
    counts = np.bincount(nearest.ravel(), minlength=similarities.shape[1]).astype(float)
    spread = counts.std()
    return 0.0 if spread == 0 else float(((counts - counts.mean()) ** 3).mean() / spread**3)


def hubness_by_chance(n: int, n_gallery: int, *, neighbours: int) -> float:
    """Return the skewness of N_k where each query picks k entries at random: that of a binomial."""
    share = min(neighbours, n_gallery) / n_gallery
    return 0.0 if share == 1 else (1 - 2 * share) / np.sqrt(n * share * (1 - share))


class TransductiveRetrieval(Metric):
    """Share of queries whose truth is among the k most similar, with similarities that all test queries shape.

    Three ways, each with columns of its own: "csls" (`csls`), "whitened" (decoded embeddings of the subject and gallery
    each brought to mean 0 and unit covariance by `whiten`, then cosine) and "whitened_csls" (one after the other). All
    queries of one subject are used, none of their labels; their number is the `n` of a record where each stimulus was
    decoded once. After SATTC (https://arxiv.org/abs/2603.20738), which whitens each subject's queries and then scales
    locally; deviations: Ledoit-Wolf shrinkage, the gallery is whitened alike, and neither its adaptive number of
    neighbours nor its structural expert is here. Beside them the `hubness` of plain cosine and of each way. Galleries,
    directions and ties are as in `retrieval`.

    Parameters
    ----------
    ks
        The k of each score: "top1_csls", "top1_whitened", "top1_whitened_csls", "top5_csls", ...
    neighbours
        Of CSLS and of the hubness.

    Raises
    ------
    ValueError
        If a k or the number of neighbours is below 1.
    """

    needs = ("*",)
    transductive = True

    def __init__(self, *, ks: Sequence[int] = (1, 5), neighbours: int = 10) -> None:
        if not ks or min(ks) < 1 or neighbours < 1:
            raise ValueError(f"transductive_retrieval: expected ks and neighbours of at least 1, got {list(ks)} and "
                             f"{neighbours}. Correct metric.transductive_retrieval.")
        self.neighbours = neighbours
        self._scores = {way: [RankScore(f"top{k}_{way}", top=k) for k in ks]
                        for way in WAYS}
        self.names = (*(score.name for way in WAYS for score in self._scores[way]), *HUBNESS.values())

    def meaning(self, name: str) -> Meaning:
        """Return what a score means: accuracies of ranks, and hubness, which says nothing of whether they are right."""
        if name in HUBNESS.values():
            return Meaning(name.replace("_", " "), higher_is_better=False, descriptive=True)
        return next(score.meaning for way in WAYS for score in self._scores[way] if score.name == name)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every decoded row in every space, see `interfaces.Metric.score`; hubness is the same in every line.

        Raises
        ------
        ValueError
            If the gallery holds a stimulus twice, or the predictions hold NaN.
        """
        tables = []
        for space, found, true in spaces(decoded, needs=self.needs):
            for way, matrix in self._similarities(found, true).items():
                for direction in DIRECTIONS if way else ():
                    ranks = rank_table(matrix, decoded.truth, direction=direction)
                    tables += [score_lines(score.values(ranks), metric=score.name, space=space, direction=direction,
                                           gallery=ranks["candidates"].max()) for score in self._scores[way]]
                skewness = hubness(matrix, neighbours=self.neighbours)
                tables.append(score_lines(np.full(len(decoded), skewness), metric=HUBNESS[way], space=space,
                                          direction=DIRECTIONS[0], gallery=len(true)))
        found = stack(tables, columns=SCORE_COLUMNS)
        return found.assign(proportion=~found["metric"].isin(HUBNESS.values()))

    def _similarities(self, found: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
        """Return way ("" for plain cosine) -> ``(n, N)``."""
        plain = similarity(found, true, kind="cosine")
        whitened = similarity(whiten(found), whiten(true), kind="cosine")
        return {"": plain, "csls": csls(plain, neighbours=self.neighbours), "whitened": whitened,
                "whitened_csls": csls(whitened, neighbours=self.neighbours)}

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return k / N, and the hubness of random picks (analytic), see `interfaces.Metric.chance`."""
        tables = [chance_of_ranks(decoded, [score for way in WAYS for score in self._scores[way]], needs=self.needs)]
        n, n_gallery = len(decoded), len(decoded.gallery_ids)
        guess = hubness_by_chance(n, n_gallery, neighbours=self.neighbours)
        tables += [chance_line(guess, "analytic", metric=name, space=space, direction=DIRECTIONS[0], gallery=n_gallery)
                   for space in names_of(decoded, needs=self.needs) for name in HUBNESS.values()]
        return stack(tables, columns=CHANCE_COLUMNS)

    @classmethod
    def tiny(cls) -> Self:
        """Return top-1 and top-5 with three neighbours."""
        return cls(neighbours=3)
