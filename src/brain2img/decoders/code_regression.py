"""Kernel ridge from voxels to a few image codes, for few trials: every choice by closed-form leave-one-out error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_PENALTIES = 10.0 ** np.arange(-2.0, 1.76, 0.25)  # of the decoding regressions, times the mean squared kernel norm
_ENCODING_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the encoding model that weighs the voxels, same unit
_KERNEL_WIDTHS = (0.5, 1.0, 2.0)  # of the Gaussian kernel, as inverse multiples of the median squared distance


def _left_out(values: Array, vectors: Array, targets: Array, penalty: float) -> Array:
    """Leave-one-out ridge predictions (n, k) from the eigen-decomposition of a centred kernel matrix (n, n)."""
    hat = (vectors * (values / (values + penalty))) @ vectors.T + 1 / len(values)
    leverage = np.diag(hat)[:, None]
    return (hat @ targets - leverage * targets) / np.maximum(1 - leverage, 1e-6)


def _centred_eigh(kernel: Array) -> tuple[Array, Array, float]:
    """Eigenvalues, eigenvectors and mean diagonal of a kernel matrix (n, n) after centring in feature space."""
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(centred)
    return np.maximum(values, 0), vectors, max(float(np.trace(centred)) / len(centred), 1e-12)


def _voxel_weights(signals: Array, codes: Array) -> Array:
    """Square root of each voxel's leave-one-out R^2 (clipped at 0) under a ridge encoding model codes -> voxels."""
    values, vectors, unit = _centred_eigh(codes @ codes.T)
    total = np.maximum(((signals - signals.mean(0)) ** 2).sum(0), 1e-12)
    scores = []
    for penalty in _ENCODING_PENALTIES:
        error = ((_left_out(values, vectors, signals, penalty * unit) - signals) ** 2).sum(0)
        scores.append(np.clip(1 - error / total, 0, None))
    best = max(scores, key=lambda score: float(score.mean()))
    return np.sqrt(best) if best.any() else np.ones_like(best)


def squared_distances(left: Array, right: Array) -> Array:
    """Squared Euclidean distances (n, m) between the rows of two matrices."""
    return np.maximum((left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T, 0)


class CodeRegression:
    """Voxels -> image codes: reliability-weighted kernel ridge, mean of a linear and a Gaussian kernel.

    Penalties and the kernel width minimise the closed-form leave-one-out error on the data it is fitted to.
    """

    names = ("centre", "gain", "support", "width", "offset", "linear", "gaussian", "gaussian_mean")

    def fit(self, signals: Array, codes: Array) -> CodeRegression:
        """Fit on signals (n, V) and codes (n, k)."""
        deviation = signals.std(0)
        self.centre = signals.mean(0)
        scale = 1 / np.where(deviation > 1e-12, deviation, np.inf)
        self.gain = scale * _voxel_weights((signals - self.centre) * scale, codes)
        self.support = (signals - self.centre) * self.gain
        self.offset = codes.mean(0)
        gram = self.support @ self.support.T
        self.linear = self._solve([gram], codes)[1]
        distances = squared_distances(self.support, self.support)
        median = max(float(np.median(distances[np.triu_indices(len(gram), 1)])), 1e-12)
        kernels = [np.exp(-width / median * distances) for width in _KERNEL_WIDTHS]
        chosen, self.gaussian = self._solve(kernels, codes)
        self.width = _KERNEL_WIDTHS[chosen] / median
        self.gaussian_mean = kernels[chosen].mean(0)
        return self

    @staticmethod
    def _solve(kernels: list[Array], codes: Array) -> tuple[int, Array]:
        """Index of the best kernel and its dual coefficients (n, k)."""
        best: tuple[float, int, Array] = (math.inf, 0, np.zeros_like(codes))
        targets = codes - codes.mean(0)
        for index, kernel in enumerate(kernels):
            values, vectors, unit = _centred_eigh(kernel)
            for penalty in _PENALTIES * unit:
                error = float(((_left_out(values, vectors, targets, penalty) - targets) ** 2).mean())
                if error < best[0]:
                    dual = (vectors / (values + penalty)) @ (vectors.T @ targets)
                    best = (error, index, dual - dual.mean(0))
        return best[1:]

    def predict(self, signals: Array) -> Array:
        """Codes (m, k) for signals (m, V)."""
        weighted = (signals - self.centre) * self.gain
        gaussian = np.exp(-self.width * squared_distances(weighted, self.support)) - self.gaussian_mean
        return self.offset + (weighted @ (self.support.T @ self.linear) + gaussian @ self.gaussian) / 2
