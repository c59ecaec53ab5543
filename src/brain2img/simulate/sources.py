"""Where and when the simulated brain answers a picture: patches of cortex, time courses, and the colour of noise.

Plausible numbers of the field, not a fit to anybody's data. Places are shares of the brain's radius from the middle of
the head (x right, y to the nose, z up), for the right half; the left half mirrors them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Dipoles in a patch.
PER_PATCH = 3
#: Standard deviation of the latency of a trial, and the grid on which it is drawn (s).
LATENCY_SD, LATENCY_STEP = 0.012, 0.004
#: Nothing answers later than this after onset (s).
RESPONSE_END = 1.5


@dataclass(frozen=True)
class Patch:
    """A patch of cortex in the right half: `place`, `direction` of its current, mean `drive` of each stage in it."""

    name: str
    place: tuple[float, float, float]
    direction: tuple[float, float, float]
    drive: dict[str, float]


#: A stage absent from `drive` does not reach the patch; positive drive is current along `direction`.
PATCHES = (
    Patch("V1", (0.12, -0.84, -0.02), (0.2, -0.6, 0.7), {"early": 1.0}),
    Patch("V2/V3", (0.32, -0.76, 0.10), (0.5, -0.6, 0.6), {"early": 0.8}),
    Patch("LOC", (0.56, -0.62, -0.05), (0.7, -0.5, -0.2), {"middle": -0.6, "late": 0.3}),
    Patch("fusiform", (0.48, -0.42, -0.48), (0.6, -0.4, -0.7), {"middle": -1.0, "late": -0.3}),
    Patch("temporal", (0.60, -0.10, -0.36), (0.5, 0.2, 0.6), {"late": 0.2}),
    Patch("parietal", (0.30, -0.54, 0.60), (0.2, -0.5, 0.8), {"late": 0.5}),
)


@dataclass(frozen=True)
class Kernel:
    """A time course: `stage` it belongs to, `peak` and `width` (s), weight of its mean response (`mean`)."""

    stage: str
    peak: float
    width: float
    mean: float

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Return the course at `times` (s after onset), at most 1, the same shape."""
        return np.exp(-0.5 * ((times - self.peak) / self.width) ** 2)


@dataclass(frozen=True)
class Sustained(Kernel):
    """Rises within 0.1 s of `peak` and decays over `width`: what overlaps with pictures that follow."""

    def __call__(self, times: np.ndarray) -> np.ndarray:
        """Return the course at `times` (s after onset), at most 1, the same shape."""
        since = np.maximum(times - self.peak, 0.0)
        return (1.0 - np.exp(-since / 0.1)) * np.exp(-since / self.width) * 1.8


KERNELS: tuple[Kernel, ...] = (
    Kernel("early", 0.096, 0.012, 1.0), Kernel("early", 0.126, 0.016, -0.4),
    Kernel("middle", 0.168, 0.018, 1.0), Kernel("middle", 0.206, 0.022, -0.2),
    Kernel("late", 0.270, 0.035, 0.2), Kernel("late", 0.340, 0.045, 0.8), Kernel("late", 0.430, 0.060, 0.5),
    Sustained("late", 0.300, 0.300, 0.2),
)
#: Stage -> group of features that drives it, and number of latents in which it does.
DRIVEN_BY = {"early": ("low", 12), "middle": ("middle", 12), "late": ("high", 24)}
#: Standard deviation over pictures of a unit's amplitude, where the mean drive of V1 is 1.
MODULATION = {"early": 1.2, "middle": 1.1, "late": 0.65}


@dataclass(frozen=True, kw_only=True)
class Units:
    """One unit per dipole and time course that belong together: its `amplitude` changes with the picture.

    Parameters
    ----------
    dipole, kernel
        ``(U,)`` indices of dipole and kernel.
    stage
        ``(U,)`` name of the stage.
    mean
        ``(U,)`` mean amplitude over pictures.
    right
        ``(U,)`` True in the right half of the brain.
    """

    dipole: np.ndarray
    kernel: np.ndarray
    stage: np.ndarray
    mean: np.ndarray
    right: np.ndarray


def make_units() -> Units:
    """Return all units; dipoles are ordered by patch, half (right first), then number within the patch."""
    rows = [((2 * p + half) * PER_PATCH + i, k, kernel.stage, patch.drive[kernel.stage] * kernel.mean, half == 0)
            for p, patch in enumerate(PATCHES) for half in range(2) for i in range(PER_PATCH)
            for k, kernel in enumerate(KERNELS) if kernel.stage in patch.drive]
    dipole, kernel, stage, mean, right = (np.array(column) for column in zip(*rows, strict=True))
    return Units(dipole=dipole, kernel=kernel, stage=stage, mean=mean, right=right)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def place_dipoles(*, shared: np.random.Generator, own: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return places (shares of the brain's radius) and directions of the dipoles of one subject, both ``(n, 3)``.

    Parameters
    ----------
    shared
        Generator of what all subjects have in common: how the dipoles of a patch differ.
    own
        Generator of the subject's deviations.
    """
    mirror = np.array([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])

    def of_each(values: list[tuple[float, float, float]]) -> np.ndarray:
        return np.repeat((np.array(values)[:, None] * mirror).reshape(-1, 3), PER_PATCH, axis=0)

    places = of_each([patch.place for patch in PATCHES])
    directions = _unit(of_each([patch.direction for patch in PATCHES]))
    for generator, displacement, tilt in ((shared, 0.07, 0.4), (own, 0.03, 0.2)):
        places = places + displacement * generator.standard_normal(places.shape)
        directions = directions + tilt * generator.standard_normal(places.shape)
    return places, _unit(directions)


def place_background(n: int, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return places (shares of the brain's radius) and directions of `n` dipoles anywhere in the brain, ``(n, 3)``."""
    places = _unit(rng.standard_normal((n, 3))) * (0.4 + 0.5 * rng.random((n, 1)))
    return places * np.array([1.0, 1.0, 0.9]), _unit(rng.standard_normal((n, 3)))


def place_alpha(n: int, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return places and directions of `n` occipito-parietal dipoles, as `place_background` does."""
    places = np.array([0.0, -0.70, 0.25]) + rng.standard_normal((n, 3)) * np.array([0.28, 0.06, 0.15])
    return places, _unit(np.array([0.0, -0.8, 0.4]) + 0.5 * rng.standard_normal((n, 3)))


def latencies() -> tuple[np.ndarray, np.ndarray]:
    """Return the grid of latency shifts (s) and the probability of each: a discretised Gaussian within 3 s.d."""
    steps = int(3 * LATENCY_SD / LATENCY_STEP)
    grid = np.arange(-steps, steps + 1) * LATENCY_STEP
    probability = np.exp(-0.5 * (grid / LATENCY_SD) ** 2)
    return grid, probability / probability.sum()


def responses(times: np.ndarray, *, shifts: np.ndarray) -> np.ndarray:
    """Return the time courses of all kernels, delayed by each of `shifts` (s): ``(len(shifts), K, len(times))``."""
    late = times[None, :] - shifts[:, None]
    # Fades to zero towards the end, so that overlap does not end in a step.
    fade = np.clip((RESPONSE_END - times) / 0.2, 0.0, 1.0) * (times >= 0)
    return np.stack([kernel(late) for kernel in KERNELS], axis=1) * fade


def aperiodic_spectrum(frequencies: np.ndarray, *, exponent: float) -> np.ndarray:
    """Return the power of brain noise, falling as 1/f^exponent above a knee at 0.3 Hz."""
    return (frequencies**2 + 0.3**2) ** (-exponent / 2)


def alpha_spectrum(frequencies: np.ndarray, *, peak: float) -> np.ndarray:
    """Return the power of alpha: a peak at `peak` Hz with a standard deviation of 0.8 Hz."""
    return np.exp(-0.5 * ((frequencies - peak) / 0.8) ** 2)


def stationary_covariance(power: np.ndarray, *, n_times: int) -> np.ndarray:
    """Return the ``(T, T)`` covariance of unit-variance noise with the given power.

    Parameters
    ----------
    power
        ``(n,)`` at frequencies from 0 to half the sampling rate, evenly spaced, n larger than T.
    n_times
        T.
    """
    correlation = np.fft.irfft(power)[:n_times]
    lag = np.abs(np.subtract.outer(np.arange(n_times), np.arange(n_times)))
    return (correlation / correlation[0])[lag]


def factor(covariance: np.ndarray, *, tolerance: float = 1e-6) -> np.ndarray:
    """Return F ``(r, T)`` float32 with ``F.T @ F = covariance``, less directions below `tolerance` of the largest."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > tolerance * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept])).T.astype(np.float32)
