"""Ranks of the truth among candidates, and every accuracy that follows from them, with one definition of ties.

No plug-in: the metrics of retrieval and identification, the analyses, validation in training and the grid use it. Ties
stand in every order at once, so that what carries no information scores exactly chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from brain2img.meaning import Meaning
from brain2img.metrics.intervals import bootstrap
from brain2img.metrics.tables import (
    CHANCE_COLUMNS,
    SCORE_COLUMNS,
    chance_line,
    check,
    names_of,
    score_lines,
    spaces,
    stack,
)
from brain2img.records import Decoded

DIRECTIONS = ("image_from_brain", "brain_from_image")
SIMILARITIES = ("cosine", "correlation")

TIE = 1e-9
"""Similarities closer than this are equal: matrix products of identical vectors differ in their last bits."""

_CHUNK = 1 << 14


def similarity(decoded: np.ndarray, gallery: np.ndarray, *, kind: str) -> np.ndarray:
    """Return the similarity of every decoded vector to every true one.

    Parameters
    ----------
    decoded, gallery
        ``(n, D)`` and ``(N, D)``, finite. Computed in float64, a part of D at a time.
    kind
        "cosine", or "correlation" (Pearson over the D dimensions).

    Returns
    -------
    numpy.ndarray
        ``(n, N)`` in [-1, 1]; NaN where it is undefined (a zero vector, or a constant one for the correlation).

    Raises
    ------
    ValueError
        If `kind` is unknown.
    """
    if kind not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {SIMILARITIES}, got {kind!r}. Correct the metric's YAML.")
    means = [x.mean(axis=1, dtype=np.float64, keepdims=True) if kind == "correlation" else 0.0
             for x in (decoded, gallery)]
    dot = np.zeros((len(decoded), len(gallery)))
    squares = [np.zeros(len(decoded)), np.zeros(len(gallery))]
    raw = [np.zeros(len(decoded)), np.zeros(len(gallery))]
    for start in range(0, decoded.shape[1], _CHUNK):
        parts = []
        for i, x in enumerate((decoded, gallery)):
            part = x[:, start:start + _CHUNK].astype(np.float64)
            raw[i] += np.einsum("nd,nd->n", part, part)
            part = part - means[i]
            squares[i] += np.einsum("nd,nd->n", part, part)
            parts.append(part)
        dot += parts[0] @ parts[1].T
    norms = []
    for square, whole in zip(squares, raw, strict=True):
        # what centring leaves of a constant vector is rounding, not zero
        norms.append(np.where(square <= 1e-18 * whole, np.nan, np.sqrt(square)))
    return np.clip(dot / norms[0][:, None] / norms[1][None, :], -1.0, 1.0)


def candidates(truth: np.ndarray, n_gallery: int, *, direction: str) -> np.ndarray:
    """Return the number of candidates of each query, the truth included, ``(n,)``.

    These are the N gallery entries for "image_from_brain"; for "brain_from_image" the decoded rows but for the other
    rows of the query's own stimulus.
    """
    if direction == "image_from_brain":
        return np.full(len(truth), n_gallery)
    _, inverse, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return len(truth) - counts[inverse] + 1


def rank_table(similarities: np.ndarray, truth: np.ndarray, *, direction: str = "image_from_brain") -> pd.DataFrame:
    """Rank the truth of every decoded row among its candidates.

    Parameters
    ----------
    similarities
        ``(n, N)`` of `similarity`. An undefined one counts as 0 for a distractor; an undefined truth carries no
        information and ties with all its distractors.
    truth
        ``(n,)`` place of each row's stimulus among the N.
    direction
        "image_from_brain": row i ranks the N stimuli. "brain_from_image": the stimulus of row i ranks the decoded
        rows; other rows of the same stimulus are no distractors.

    Returns
    -------
    pandas.DataFrame
        Of each query the numbers of distractors `above` the truth (more similar) and `tied` with it, and of
        `candidates`, the truth included, from which every accuracy follows (`RankScore`, `accuracy`); and the `rank`,
        1 is best, a mean over all orders of the ties.

    Raises
    ------
    ValueError
        If `direction` is unknown.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: expected one of {DIRECTIONS}, got {direction!r}. Correct the metric's YAML.")
    truth = np.asarray(truth)
    rows = np.arange(len(truth))
    if direction == "image_from_brain":
        scores = similarities
        distractor = truth[:, None] != np.arange(similarities.shape[1])[None, :]
        own = similarities[rows, truth]
    else:
        scores = similarities[:, truth].T
        distractor = truth[:, None] != truth[None, :]
        own = scores[rows, rows]
    with np.errstate(invalid="ignore"):  # infinite odds of two candidates are equal, which NaN stands for
        gap = np.nan_to_num(scores, nan=0.0, posinf=np.inf, neginf=-np.inf) - own[:, None]
    above = ((gap > TIE) & distractor).sum(axis=1)
    tied = (((np.abs(gap) <= TIE) | np.isnan(gap)) & distractor).sum(axis=1)
    return pd.DataFrame({"above": above, "tied": tied, "rank": 1 + above + tied / 2,
                         "candidates": candidates(truth, similarities.shape[1], direction=direction)})


_NAME = r"top(\d+)(?:_of_(\d+))?"


@dataclass(frozen=True)
class RankScore:
    """An accuracy that follows from the rank of the truth: whether it is among the first.

    Parameters
    ----------
    name
        Name of the score.
    top
        Among the first how many.
    among
        Number of candidates, the truth and random distractors; None: all there are.
    """

    name: str
    top: int = 1
    among: int | None = None

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the score called "top1", "top5", "top1_of_50", ..., or "two_way"."""
        found = re.fullmatch(_NAME, "top1_of_2" if name == "two_way" else name)
        assert found is not None, f"{name} is no accuracy of ranks"
        return cls(name, int(found[1]), int(found[2]) if found[2] else None)

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether there is an accuracy of this name."""
        return name == "two_way" or re.fullmatch(_NAME, name) is not None

    @property
    def meaning(self) -> Meaning:
        """What it means: top-1, 50-way, ..., in per cent; what follows in its name stays."""
        rest = re.sub(r"^(top\d+(_of_\d+)?|[a-z0-9]+_way)", "", self.name).replace("_", " ")
        label = f"top-{self.top}" if self.among is None else f"top-{self.top} of {self.among}" if self.top > 1 else (
            "two-way" if self.among == 2 else f"{self.among}-way")
        return Meaning(label + rest, unit="%")

    def values(self, ranks: pd.DataFrame) -> np.ndarray:
        """Return the expected accuracy of each query over all orders of its ties, ``(n,)`` in [0, 1].

        Parameters
        ----------
        ranks
            As `rank_table` returns them.
        """
        above, tied = ranks["above"].to_numpy(), ranks["tied"].to_numpy()
        if self.among is None:
            return np.clip((self.top - above) / (tied + 1), 0.0, 1.0)
        return k_way(ranks, self.among, top=self.top)

    def chance(self, sizes: ArrayLike) -> np.ndarray:
        """Return the expected value without information for numbers of candidates ``(n,)``."""
        sizes = np.asarray(sizes)
        n = sizes if self.among is None else np.full(len(sizes), self.among)
        return np.minimum(self.top, n) / n


def k_way(ranks: pd.DataFrame, k: int, *, top: int = 1) -> np.ndarray:
    r"""Return the expected accuracy of each query among k candidates over all draws of k - 1 distractors, ``(n,)``.

    With M distractors of which r are above the truth, a draw of k - 1 without replacement contains fewer than `top` of
    them with probability :math:`p_r = \sum_{x < top} \binom{r}{x} \binom{M - r}{k - 1 - x} / \binom{M}{k - 1}`. Of t
    ties, 0 to t stand above the truth with equal probability: the value is the mean of :math:`p_r, ..., p_{r + t}`.
    For k = 2 this is the share of distractors below the truth, ties counting half.
    """
    above, tied, sizes = (ranks[name].to_numpy() for name in ("above", "tied", "candidates"))
    values = np.empty(len(ranks))
    for size in np.unique(sizes):
        of_size = sizes == size
        sums = np.concatenate([[0.0], np.cumsum(_of_k_by_rank(int(size) - 1, k, top))])
        a, t = above[of_size], tied[of_size]
        values[of_size] = (sums[a + t + 1] - sums[a]) / (t + 1)
    return values


@lru_cache(maxsize=64)
def _of_k_by_rank(m: int, k: int, top: int) -> np.ndarray:
    """Return p_r of `k_way` for r = 0..m, exact quotients of whole numbers."""
    all_draws = comb(m, k - 1)
    return np.array([sum(comb(r, x) * comb(m - r, k - 1 - x) for x in range(min(top, k))) / all_draws
                     for r in range(m + 1)])


def accuracy(ranks: pd.DataFrame, *, by: Sequence[str], generator: np.random.Generator,
             metrics: Sequence[str] = ("top1", "top5")) -> pd.DataFrame:
    """Return the mean accuracies of groups of queries, with 95 % intervals that resample stimuli, and chance.

    Parameters
    ----------
    ranks
        `rank_table` beside the columns `by` and stimulus_id.
    by
        Columns whose values make a group; in their first order.
    generator
        Source of the resamples.
    metrics
        Names of scores, see `RankScore.named`.

    Returns
    -------
    pandas.DataFrame
        The columns `by`, metric, value, low, high, chance, and gallery (the largest number of candidates).
    """
    lines = []
    for key, group in ranks.groupby(list(by), sort=False):
        for score in map(RankScore.named, metrics):
            values = score.values(group)
            low, high = bootstrap(values, group["stimulus_id"].to_numpy(), generator=generator)
            lines.append({**dict(zip(by, key, strict=True)), "metric": score.name, "value": values.mean(), "low": low,
                          "high": high, "chance": score.chance(group["candidates"]).mean(),
                          "gallery": int(group["candidates"].max())})
    return pd.DataFrame(lines)


def _defined(scores: Sequence[RankScore], sizes: pd.Series | np.ndarray) -> list[RankScore]:
    """Return the scores that so few candidates leave defined."""
    return [score for score in scores if (score.among or 1) <= sizes.min()]


def score_ranks(decoded: Decoded, scores: Sequence[RankScore], *, needs: Sequence[str], kind: str) -> pd.DataFrame:
    """Return the lines of `scores` for every needed space and both directions, see `interfaces.Metric.score`.

    Parameters
    ----------
    decoded, needs
        As for `tables.spaces`.
    scores
        What to report.
    kind
        Similarity, see `similarity`.
    """
    tables = []
    for space, found, true in spaces(decoded, needs=needs):
        matrix = similarity(found, true, kind=kind)
        for direction in DIRECTIONS:
            ranks = rank_table(matrix, decoded.truth, direction=direction)
            tables += [score_lines(score.values(ranks), metric=score.name, space=space, direction=direction,
                                   gallery=ranks["candidates"].max())
                       for score in _defined(scores, ranks["candidates"])]
    return stack(tables, columns=SCORE_COLUMNS)


def chance_of_ranks(decoded: Decoded, scores: Sequence[RankScore], *, needs: Sequence[str]) -> pd.DataFrame:
    """Return the analytic chance levels of what `score_ranks` returns, see `interfaces.Metric.chance`."""
    check(decoded)
    tables = []
    for space in names_of(decoded, needs=needs):
        for direction in DIRECTIONS:
            sizes = candidates(np.asarray(decoded.truth), len(decoded.gallery_ids), direction=direction)
            tables += [chance_line(float(np.mean(score.chance(sizes))), "analytic", metric=score.name, space=space,
                                   direction=direction, gallery=sizes.max()) for score in _defined(scores, sizes)]
    return stack(tables, columns=CHANCE_COLUMNS)
