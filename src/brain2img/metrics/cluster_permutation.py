"""When a curve over time lies above chance: a cluster permutation test; used by the windows stage, no plug-in."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

FEWEST = 6
"""Subjects from which on they are the unit of the test: with n, no p lies below 2^(1 - n)."""


@dataclass(frozen=True)
class Cluster:
    """Neighbouring windows above chance: places of the first and of the last one, and the cluster's p."""

    first: int
    last: int
    p: float


def clusters_above(values: np.ndarray, *, chance: float, seed: int, n_permutations: int = 2000) -> list[Cluster]:
    """Return all clusters of a one-sided one-sample test against chance, in the order of time.

    Maris & Oostenveld 2007, https://doi.org/10.1016/j.jneumeth.2007.03.024, as `mne.stats` computes it: neighbouring
    windows whose t lies above that of p = 0.05 make a cluster, its mass is the sum of t, and p is its rank among the
    largest masses where the signs of whole units are flipped at random (or in all ways, where these are fewer; MNE
    1.13 then counts the unflipped scores twice and leaves out those flipped all, so that p is at least 2^(1 - n)). p
    holds for the cluster as a whole: its ends are where t crosses the threshold, an estimate without an error rate of
    its own (Sassenhagen & Draschkow 2019, https://doi.org/10.1111/psyp.13335).

    Parameters
    ----------
    values
        ``(n, T)``: for each unit (subject or stimulus) its score in every window, distributed symmetrically about
        chance where there is nothing to decode, as two-way identification is and top-1 is not.
    chance
        Chance level of the score.
    seed
        Of the sign flips.
    n_permutations
        Sign flips.

    Raises
    ------
    ValueError
        If there are fewer than two units or windows, or a value is not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"cluster permutation: expected finite scores of 2 units or more in 2 windows or more, got "
                         f"an array {values.shape}. Decode more windows, or leave out what is not finite.")
    import mne

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", message="No clusters found, returning empty")  # an answer, not a fault
        _, found, p, _ = mne.stats.permutation_cluster_1samp_test(
            values - chance, tail=1, n_permutations=n_permutations, rng=seed, out_type="indices", n_jobs=1,
            verbose="WARNING")
    clusters = [Cluster(int(places[0].min()), int(places[0].max()), float(value))
                for places, value in zip(found, p, strict=True)]
    return sorted(clusters, key=lambda cluster: cluster.first)
