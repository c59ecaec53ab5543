"""Confidence intervals: Wilson for proportions, a percentile bootstrap over stimuli for everything else."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

N_RESAMPLES = 2000


class Resampler:
    """Bootstrap draws that depend only on the generator's state when it was made and on the number of stimuli.

    Scores of the same number of stimuli are therefore resampled alike, whatever their order: differences stay paired,
    and each number of stimuli is drawn once.

    Parameters
    ----------
    generator
        Source of randomness; one number is drawn.
    n
        Resamples.
    """

    def __init__(self, generator: np.random.Generator, *, n: int = N_RESAMPLES) -> None:
        self._seed = int(generator.integers(2**63))
        self._n = n
        self._cache: dict[int, np.ndarray] = {}

    def counts(self, n_stimuli: int) -> np.ndarray:
        """Return ``(n, n_stimuli)`` float32: how often each stimulus is drawn in each resample."""
        if n_stimuli not in self._cache:
            draws = np.random.default_rng([self._seed, n_stimuli]).integers(n_stimuli, size=(self._n, n_stimuli))
            draws += np.arange(self._n)[:, None] * n_stimuli
            counts = np.bincount(draws.ravel(), minlength=self._n * n_stimuli)
            self._cache[n_stimuli] = counts.reshape(self._n, n_stimuli).astype(np.float32)
        return self._cache[n_stimuli]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the ``(n,)`` resampled means of one value per stimulus."""
        return self.counts(len(values)) @ values / len(values)


def wilson(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953. `successes` may be fractional, as ties make it.

    Raises
    ------
    ValueError
        If `n` is below 1 or `successes` is not within 0 and `n`.
    """
    if n < 1 or not 0 <= successes <= n * (1 + 1e-9):
        raise ValueError(f"wilson: expected 0 to n successes of n >= 1, got {successes} of {n}. "
                         "Mark only values in [0, 1] as proportions.")
    z = float(norm.ppf(0.5 + confidence / 2))
    p = min(successes / n, 1.0)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # at the ends the interval touches 0 or 1 exactly; rounding would leave it 1e-17 beside
    return (0.0 if p == 0 else float(max(centre - half, 0.0))), (1.0 if p == 1 else float(min(centre + half, 1.0)))


def quantiles(draws: np.ndarray, *, confidence: float) -> tuple[float, float]:
    """Return the two percentiles of bootstrap `draws` ``(n,)`` that hold `confidence` of them."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def by_stimulus(values: np.ndarray, stimuli: np.ndarray) -> pd.Series:
    """Return the mean of each stimulus' `values`, sorted by stimulus, so that the order of rows does not matter.

    Raises
    ------
    ValueError
        If there are no values or some are NaN.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or not np.isfinite(values).all():
        got = "none" if len(values) == 0 else f"{(~np.isfinite(values)).sum()} of {len(values)} NaN or infinite"
        raise ValueError(f"scores: expected finite values, got {got}. Score the predictions again.")
    return pd.Series(values).groupby(np.asarray(stimuli).astype(str)).mean()


def bootstrap(values: np.ndarray, stimuli: np.ndarray, *, generator: np.random.Generator, n: int = N_RESAMPLES,
              confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean, resampling stimuli.

    Efron 1979, https://doi.org/10.1214/aos/1176344552. With one stimulus it has no width: look at the number of stimuli
    beside it.

    Parameters
    ----------
    values, stimuli
        ``(rows,)`` scores and the stimulus of each; rows of a stimulus are averaged first.
    generator
        Source of randomness.
    n
        Resamples.
    confidence
        Share of the resamples within the interval.
    """
    means = by_stimulus(values, stimuli).to_numpy()
    return quantiles(Resampler(generator, n=n).means(means), confidence=confidence)


def paired_difference(a: np.ndarray, b: np.ndarray, stimuli: np.ndarray, *, generator: np.random.Generator,
                      n: int = N_RESAMPLES, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high of ``a - b``, resampling stimuli.

    Parameters
    ----------
    a, b, stimuli
        ``(rows,)`` scores of two decoders for the same rows, and the stimulus of each row.
    generator
        Source of randomness.
    n
        Resamples.
    confidence
        Share of the resamples within the interval.
    """
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    low, high = bootstrap(difference, stimuli, generator=generator, n=n, confidence=confidence)
    return float(by_stimulus(difference, stimuli).mean()), low, high
