"""The ideal observer of the simulated studies: what a decoder that knows the generator could reach.

The generator of any modality hands out an `Ideal`: the noise-free responses to the test stimuli and the covariance of
the noise, in an observation space of its choice, and a function that brings recorded trials into that space. The
observer compares what was really recorded, averaged over repetitions, with every candidate of the gallery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.special import logsumexp

from brain2img.metrics.ranking import DIRECTIONS, rank_table

#: Trials that are read and projected at once.
_BLOCK = 256


def held_out_stimuli(trials: pd.DataFrame) -> np.ndarray:
    """Return the test stimuli of a table of trials: ``(N,)`` sorted values of its column `stimulus`."""
    return np.unique(trials.loc[trials["split"] == "test", "stimulus"].to_numpy())


@dataclass(frozen=True, kw_only=True)
class Ideal:
    """What the generator of one subject knows about that subject's responses to the test stimuli.

    The model of trial k that shows candidate j is ``project(signal_k) = expected_j + e_k``, where the noise ``e_k`` is
    Gaussian with `covariance` and independent between trials. Slow drift and the offsets and gains of sessions are
    known to the generator: `project` takes them out, so that they do not count as noise.

    Parameters
    ----------
    expected
        ``(N, D)`` float64 noise-free responses to the stimuli ``held_out_stimuli(trials)``, in that order, in the
        observation space (voxels; or channels and samples compressed to what carries signal).
    covariance
        ``(D, D)``, or ``(D,)`` for its diagonal: noise covariance of one trial in the observation space; positive
        definite.
    project
        Maps recorded trials ``(n, C, T)``, in the units of the signals, and their rows ``(n,)`` in the subject's table
        of trials to ``(n, D)`` points of the observation space.
    """

    expected: np.ndarray
    covariance: np.ndarray
    project: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        d = self.expected.shape[1]
        assert self.covariance.shape in ((d,), (d, d)), f"covariance of {self.covariance.shape} for D = {d}"


def log_likelihoods(ideal: Ideal, *, observed: np.ndarray, n_averaged: int) -> np.ndarray:
    """Return the log-likelihood of every average under every candidate.

    Parameters
    ----------
    ideal
        What the generator knows.
    observed
        ``(n, D)`` averages of `n_averaged` trials in the observation space.
    n_averaged
        Repetitions in each average: the noise covariance shrinks by this factor.

    Returns
    -------
    numpy.ndarray
        ``(n, N)``, up to a constant of each row.
    """
    if ideal.covariance.ndim == 1:
        weighted = ideal.expected / ideal.covariance
    else:
        weighted = cho_solve(cho_factor(ideal.covariance, lower=True), ideal.expected.T).T
    # The square of the observation is the same for all candidates of a row and is left out.
    return n_averaged * (observed @ weighted.T - 0.5 * (ideal.expected * weighted).sum(axis=1))


def ranks(log_likelihood: np.ndarray) -> pd.DataFrame:
    """Return the rank of the right answer in both directions; row i belongs to candidate i.

    Parameters
    ----------
    log_likelihood
        ``(N, N)``: of observation i under candidate j.

    Returns
    -------
    pandas.DataFrame
        `brain2img.metrics.ranking.rank_table` and direction: of "image_from_brain" N lines, the rank of the right image
        for every recording; then N of "brain_from_image", the rank of the right recording for every image, recordings
        being ordered by the posterior odds that they show it (under equal priors; likelihoods of different recordings
        are not comparable).
    """
    right = np.arange(len(log_likelihood))
    # Odds of candidate j: its likelihood over the sum of all others'. That sum is the whole less j, except for the best
    # candidate of a row, where the difference would cancel.
    whole = logsumexp(log_likelihood, axis=1, keepdims=True)
    best = np.arange(log_likelihood.shape[1]) == log_likelihood.argmax(axis=1)[:, None]
    beside_best = logsumexp(np.where(best, -np.inf, log_likelihood), axis=1, keepdims=True)
    share = np.where(best, 0.0, np.exp(log_likelihood - whole))
    odds = log_likelihood - np.where(best, beside_best, whole + np.log1p(-share))
    return pd.concat([rank_table(scores, right, direction=direction).assign(direction=direction)
                      for direction, scores in zip(DIRECTIONS, (log_likelihood, odds), strict=True)], ignore_index=True)


def repetition_counts(n: int) -> list[int]:
    """Return 1, 2, 4, ... below `n`, and `n`."""
    return [2**k for k in range(n.bit_length()) if 2**k < n] + [n]


def ceiling(ideal: Ideal, *, signals: np.ndarray, trials: pd.DataFrame) -> pd.DataFrame:
    """Return the ideal observer's ranks for the recorded test trials of one subject.

    Parameters
    ----------
    ideal
        What the generator knows about the subject.
    signals
        ``(n_trials, C, T)`` recorded signals; only the test trials are read, so a memory map will do.
    trials
        The subject's trials in the order of `signals`, with the columns stimulus (index), stimulus_id, repetition and
        split. Every test stimulus must have the same number of repetitions.

    Returns
    -------
    pandas.DataFrame
        One line per test stimulus, number of averaged repetitions (the first 1, 2, 4, ... and all) and direction:
        stimulus_id, repetitions, direction, above, tied, candidates.
    """
    rows = np.flatnonzero(trials["split"] == "test")
    # Ordered by repetition, then stimulus: (R, N) observations.
    shown = trials.iloc[rows].sort_values(["repetition", "stimulus"])
    candidates = held_out_stimuli(trials)
    order = trials.index.get_indexer(shown.index)
    n_repetitions = len(order) // len(candidates)
    assert (shown["stimulus"].to_numpy().reshape(n_repetitions, -1) == candidates).all(), "unequal test repetitions"

    seen = np.concatenate([ideal.project(np.asarray(signals[block]), block)
                           for block in np.array_split(order, -(-len(order) // _BLOCK))])
    seen = seen.reshape(n_repetitions, len(candidates), -1)
    ids = shown["stimulus_id"].to_numpy()[:len(candidates)]
    tables = []
    for n in repetition_counts(n_repetitions):
        scores = log_likelihoods(ideal, observed=seen[:n].mean(axis=0), n_averaged=n)
        tables.append(ranks(scores).assign(stimulus_id=np.tile(ids, 2), repetitions=n))
    return pd.concat(tables, ignore_index=True)
