"""Where the truth stands among the candidates, ties included; used by retrieval and identification, no plug-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import pandas as pd

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


@dataclass(frozen=True)
class Placement:
    """Where the truth of each of n queries stands.

    Parameters
    ----------
    above, tied
        ``(n,)`` numbers of distractors that are more similar than the truth, and as similar.
    candidates
        ``(n,)`` number of candidates, the truth included.
    """

    above: np.ndarray
    tied: np.ndarray
    candidates: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """Average rank of the truth over all orders of its ties, ``(n,)``, 1 is best."""
        return 1 + self.above + self.tied / 2


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


def placements(similarities: np.ndarray, truth: np.ndarray, *, direction: str) -> Placement:
    """Place the truth of every decoded row among its candidates.

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
    gap = np.nan_to_num(scores, nan=0.0) - own[:, None]  # NaN in the rows whose truth is undefined
    above = ((gap > TIE) & distractor).sum(axis=1)
    tied = (((np.abs(gap) <= TIE) | np.isnan(gap)) & distractor).sum(axis=1)
    return Placement(above, tied, candidates(truth, similarities.shape[1], direction=direction))


@dataclass(frozen=True)
class RankScore:
    """A score that follows from where the truth stands.

    Parameters
    ----------
    name
        Name of the score.
    value
        Maps a `Placement` to values ``(n,)``.
    chance
        Maps numbers of candidates ``(n,)`` to the expected value of each query without information ``(n,)``.
    least
        Fewest candidates it is defined for; with fewer it is left out.
    """

    name: str
    value: Callable[[Placement], np.ndarray]
    chance: Callable[[np.ndarray], np.ndarray]
    least: int = 1


def top_k(placement: Placement, k: int) -> np.ndarray:
    """Return for each query the share of the orders of its ties in which the truth is among the first k, ``(n,)``."""
    return np.clip((k - placement.above) / (placement.tied + 1), 0.0, 1.0)


def top_k_chance(sizes: np.ndarray, k: int) -> np.ndarray:
    """Return k / N for numbers of candidates N ``(n,)``, 1 where there are fewer than k."""
    return np.minimum(k, sizes) / sizes


def k_way(placement: Placement, k: int, *, top: int = 1) -> np.ndarray:
    r"""Return the expected accuracy of each query among k candidates over all draws of k - 1 distractors, ``(n,)``.

    With M distractors of which r are above the truth, a draw of k - 1 without replacement contains fewer than `top` of
    them with probability :math:`p_r = \sum_{x < top} \binom{r}{x} \binom{M - r}{k - 1 - x} / \binom{M}{k - 1}`. Of t
    ties, 0 to t stand above the truth with equal probability: the value is the mean of :math:`p_r, ..., p_{r + t}`.
    For k = 2 this is the share of distractors below the truth, ties counting half.
    """
    values = np.empty(len(placement.above))
    for size in np.unique(placement.candidates):
        of_size = placement.candidates == size
        sums = np.concatenate([[0.0], np.cumsum(_of_k_by_rank(int(size) - 1, k, top))])
        above, tied = placement.above[of_size], placement.tied[of_size]
        values[of_size] = (sums[above + tied + 1] - sums[above]) / (tied + 1)
    return values


@lru_cache(maxsize=64)
def _of_k_by_rank(m: int, k: int, top: int) -> np.ndarray:
    """Return p_r of `k_way` for r = 0..m, exact quotients of whole numbers."""
    all_draws = comb(m, k - 1)
    return np.array([sum(comb(r, x) * comb(m - r, k - 1 - x) for x in range(min(top, k))) / all_draws
                     for r in range(m + 1)])


def k_way_chance(sizes: np.ndarray, k: int, *, top: int = 1) -> np.ndarray:
    """Return top / k (at most 1) for each of the numbers of candidates ``(n,)``."""
    return np.full(len(sizes), min(top, k) / k)


def _defined(scores: Sequence[RankScore], sizes: np.ndarray) -> Iterator[RankScore]:
    yield from (score for score in scores if score.least <= sizes.min())


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
            placement = placements(matrix, decoded.truth, direction=direction)
            tables += [score_lines(score.value(placement), metric=score.name, space=space, direction=direction,
                                   gallery=placement.candidates.max())
                       for score in _defined(scores, placement.candidates)]
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
