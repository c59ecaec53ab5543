"""Accuracy as a linear function of the logarithm of an amount of data, with intervals; no plug-in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain2img.metrics.intervals import N_RESAMPLES, Resampler

LINKS = ("identity", "logit")
FARTHEST = 16.0
"""Extrapolation goes to so many times the largest amount measured, unless more is asked for."""
NEAR_CEILING = 0.95


def resampled_means(cells: Sequence[np.ndarray], *, generator: np.random.Generator,
                    n: int = N_RESAMPLES) -> np.ndarray:
    """Return bootstrap draws of the mean accuracy at every amount, over stimuli and over draws of the training data.

    The deviations of both are added, as for two crossed random factors (Owen 2007,
    https://doi.org/10.1214/07-AOAS122): what is specific to a draw and a stimulus counts in both, so intervals are
    rather too wide than too narrow. With D draws their deviations are enlarged by sqrt(D / (D - 1)), which undoes the
    bias of a bootstrap over few; one draw says nothing of its spread. All amounts are resampled alike, since their
    test stimuli are the same and their subsets nested.

    Parameters
    ----------
    cells
        For every amount ``(draws, stimuli)`` scores in [0, 1], the same stimuli in the same order.
    generator
        Source of randomness.
    n
        Resamples.

    Returns
    -------
    numpy.ndarray
        ``(n, amounts)``.
    """
    resampler, seed = Resampler(generator, n=n), int(generator.integers(2**63))
    out = np.empty((n, len(cells)))
    for i, cell in enumerate(cells):
        n_draws, mean = len(cell), float(cell.mean())
        out[:, i] = resampler.means(cell.mean(axis=0))
        if n_draws > 1:
            places = np.random.default_rng([seed, n_draws]).integers(n_draws, size=(n, n_draws))
            out[:, i] += np.sqrt(n_draws / (n_draws - 1)) * (cell.mean(axis=1)[places].mean(axis=1) - mean)
    return out


def flag(value: float, low: float, *, chance: float, ceiling: float = 1.0) -> str:
    """Return why a point does not belong into a log-linear fit, or "" if it does.

    Parameters
    ----------
    value, low
        Accuracy and the lower end of its interval.
    chance, ceiling
        Between which accuracy lies: a point whose interval reaches `chance`, or that is within 5 % of `ceiling`, lies
        where every such curve must bend.
    """
    if low <= chance:
        return "at chance"
    return "near the ceiling" if value >= NEAR_CEILING * ceiling else ""


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """A fitted ``link(accuracy) = intercept + slope log2(amount)``.

    Parameters
    ----------
    coefficients
        ``(2,)`` intercept and slope (per doubling).
    draws
        ``(n, 2)`` the same of every bootstrap draw.
    link
        "identity", or "logit": log odds, which cannot leave (0, 1).
    chance
        Accuracy that predictions do not fall below.
    largest
        Largest amount that was measured.
    r2, rmse
        Share of the variance of the points on the scale of the link that the line explains (NaN where they do not
        vary), and the root mean square of the residuals in accuracy.
    """

    coefficients: np.ndarray
    draws: np.ndarray
    link: str
    chance: float
    largest: float
    r2: float
    rmse: float

    def at(self, amounts: np.ndarray, *, beyond: bool = False,
           confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return accuracy at `amounts` ``(m,)`` with its band: value, low, high, each ``(m,)`` in [chance, 1].

        Raises
        ------
        ValueError
            If an amount is beyond `FARTHEST` times the largest measured, unless `beyond`.
        """
        amounts = np.asarray(amounts, dtype=float)
        check_distance(amounts, largest=self.largest, beyond=beyond)
        low, high = np.quantile(self.drawn(amounts), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        value = _inverse(_design(amounts) @ self.coefficients, link=self.link)
        value, low, high = (np.clip(x, self.chance, 1.0) for x in (value, low, high))
        return value, low, high

    def drawn(self, amounts: np.ndarray) -> np.ndarray:
        """Return the accuracy at `amounts` ``(m,)`` in every bootstrap draw, ``(n, m)``, not clipped."""
        return _inverse(self.draws @ _design(np.asarray(amounts, dtype=float)).T, link=self.link)

    def needed(self, target: float, *, confidence: float = 0.95) -> tuple[float, float, float]:
        """Return the amount at which accuracy reaches `target`, with its interval; infinite where it never does.

        Raises
        ------
        ValueError
            If `target` is not between chance and 1.
        """
        if not self.chance < target < 1:
            raise ValueError(f"needed: expected an accuracy above chance ({self.chance:.4g}) and below 1, got "
                             f"{target:.4g}. Correct scaling.needed.")
        wanted = float(_linked(np.array([target]), link=self.link, n=None)[0])
        amounts = [_reached(wanted, *line) for line in (self.coefficients, *self.draws)]
        # no interpolation between draws: some may be infinite
        ordered, edge = np.sort(amounts[1:]), (1 - confidence) / 2 * (len(amounts) - 2)
        low, high = float(ordered[int(np.floor(edge))]), float(ordered[int(np.ceil(len(ordered) - 1 - edge))])
        return amounts[0], low, high


def fit_law(amounts: np.ndarray, values: np.ndarray, resampled: np.ndarray, *, chance: float, n_stimuli: int,
            link: str = "identity") -> ScalingLaw:
    """Fit the law by least squares to the points, and to each of their bootstrap draws.

    Parameters
    ----------
    amounts, values
        ``(A,)`` amounts and accuracies in [0, 1]; flagged ones left out by the caller.
    resampled
        ``(n, A)`` of `resampled_means`.
    chance
        Accuracy of guessing.
    n_stimuli
        Number of test stimuli: for the logit, accuracies are kept half a stimulus away from 0 and 1.
    link
        See `ScalingLaw`.

    Raises
    ------
    ValueError
        If there are fewer than two different amounts, or `link` is unknown.
    """
    if link not in LINKS:
        raise ValueError(f"scaling.link: expected one of {LINKS}, got {link!r}. Correct it.")
    amounts, values = np.asarray(amounts, dtype=float), np.asarray(values, dtype=float)
    if len(np.unique(amounts)) < 2:
        raise ValueError(f"scaling law: expected points at two amounts or more, got {len(np.unique(amounts))}. "
                         "Measure more amounts between chance and ceiling.")
    solve = np.linalg.pinv(_design(amounts))
    y = _linked(values, link=link, n=n_stimuli)
    coefficients = solve @ y
    fitted = _design(amounts) @ coefficients
    total = float(((y - y.mean()) ** 2).sum())
    return ScalingLaw(coefficients=coefficients, draws=_linked(resampled, link=link, n=n_stimuli) @ solve.T, link=link,
                      chance=chance, largest=float(amounts.max()),
                      r2=1 - float(((y - fitted) ** 2).sum()) / total if total > 0 else float("nan"),
                      rmse=float(np.sqrt(((values - _inverse(fitted, link=link)) ** 2).mean())))


def check_distance(amounts: np.ndarray, *, largest: float, beyond: bool) -> None:
    """Refuse amounts too far from what was measured.

    Raises
    ------
    ValueError
        If one is beyond `FARTHEST` times `largest`, unless `beyond`.
    """
    farthest = float(np.max(amounts, initial=0))
    if farthest > FARTHEST * largest and not beyond:
        raise ValueError(f"scaling.extrapolate: expected at most {FARTHEST:g} times the largest amount measured "
                         f"({FARTHEST * largest:g}), got {farthest:g}. Measure more, or set scaling.beyond=true.")


def _design(amounts: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(amounts)), np.log2(amounts)])


def _linked(values: np.ndarray, *, link: str, n: int | None) -> np.ndarray:
    if link == "identity":
        return np.asarray(values, dtype=float)
    edge = 0.0 if n is None else 0.5 / n
    p = np.clip(values, edge, 1 - edge)
    return np.asarray(np.log(p / (1 - p)))


def _inverse(values: np.ndarray, *, link: str) -> np.ndarray:
    return values if link == "identity" else 1 / (1 + np.exp(-values))


def _reached(wanted: float, intercept: float, slope: float) -> float:
    exponent = (wanted - intercept) / slope if slope > 0 else np.inf
    return float(2.0**exponent) if exponent < 1000 else float("inf")
