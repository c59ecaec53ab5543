"""An affine map from decoded embeddings to the place and spread of true ones: the prior that few trials allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Generator

from brain2img.interfaces import Prior
from brain2img.priors.fitted import pairs, read_arrays, read_shape, rows, write_fitted

KINDS = ("moments", "linear")
RESCALES = (None, "std", "norm")
MAX_LINEAR = 8192
"""Largest number of values in an embedding for a full matrix."""


class Affine(Prior):
    """Standardise each dimension of a prediction, map it, and give it mean and spread of the true embeddings.

    Regression shrinks towards the mean while generators want embeddings with the norms they were trained on. The map is

        out = ((x - m_x) / s_x) W * s + m_y

    with m_x, s_x mean and standard deviation of the predictions it is fitted on and m_y the mean of the true
    embeddings. ``kind="moments"``: W is the identity and s the standard deviation of the true embeddings, as
    Brain-Diffuser does it (Ozcelik & VanRullen 2023, https://github.com/ozcelikfu/brain-diffuser), which however takes
    m_x and s_x from the test predictions themselves: this needs the whole test set and is not done here.
    ``kind="linear"``: W is a ridge regression of the true embeddings on the standardised predictions, its one penalty
    chosen by leave-one-out error (scikit-learn's `RidgeCV`). Fit it per subject: rows of several subjects share
    stimuli, and leaving out one of them leaves its stimulus in.

    Deterministic: no sample is drawn. A dimension in which the predictions do not vary becomes the mean of the true
    ones.

    Parameters
    ----------
    kind
        "moments" or "linear".
    rescale
        What is done to the output: "std": each dimension gets the standard deviation of the true embeddings over the
        rows of the fit (always so for "moments"); "norm": each row the mean norm of the true embeddings; None.
    alphas
        (smallest, largest, number) of the penalties tried by "linear", logarithmically spaced; the predictions are
        standardised, so that a penalty compares with the number of rows.

    Raises
    ------
    ValueError
        If `kind` or `rescale` is none of these.
    """

    per_subject = True

    def __init__(self, *, kind: str = "moments", rescale: str | None = None,
                 alphas: tuple[float, float, int] = (1e-2, 1e6, 17)) -> None:
        if kind not in KINDS:
            raise ValueError(f"affine prior: expected a kind of {KINDS}, got {kind!r}. Correct prior.kind.")
        if rescale not in RESCALES:
            raise ValueError(f"affine prior: expected rescale of {RESCALES}, got {rescale!r}. Correct prior.rescale.")
        self.kind, self.rescale, self.alphas = kind, rescale, tuple(alphas)
        self._shape: tuple[int, ...] | None = None
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def _settings(self) -> dict[str, Any]:
        return {"class": "Affine", "kind": self.kind, "rescale": self.rescale, "alphas": list(self.alphas)}

    def fit(self, predicted: np.ndarray, true: np.ndarray, *, folder: Path) -> None:
        """Fit; see `Prior.fit`. `folder` stays empty: this takes seconds."""
        from sklearn.linear_model import RidgeCV
        from sklearn.preprocessing import StandardScaler

        x, y = pairs(predicted, true, what="affine prior")
        if self.kind == "linear" and x.shape[1] > MAX_LINEAR:
            raise ValueError(f"affine prior: expected embeddings of at most {MAX_LINEAR} values for kind='linear', got "
                             f"{x.shape[1]}. Use kind='moments'.")
        source, target = StandardScaler().fit(x), StandardScaler().fit(y)
        arrays = {"mean_in": source.mean_, "std_in": source.scale_, "mean_out": target.mean_,
                  "std_out": np.where(source.var_ > 0, np.sqrt(target.var_), 0)}
        if self.kind == "linear":
            low, high, number = self.alphas
            ridge = RidgeCV(np.logspace(np.log10(low), np.log10(high), int(number)), fit_intercept=False)
            standardised = source.transform(x).astype(np.float64)
            weights = ridge.fit(standardised, y - target.mean_).coef_.T
            shrunk = (standardised @ weights).std(axis=0)
            regain = np.sqrt(target.var_) / np.where(shrunk > 0, shrunk, 1)
            arrays |= {"weights": weights, "alpha": np.array([ridge.alpha_]),
                       "std_out": np.where(shrunk > 0, regain, 0) if self.rescale == "std" else np.ones(x.shape[1])}
        arrays["norm"] = np.linalg.norm(y, axis=1).mean(keepdims=True)
        self._arrays = {name: np.atleast_1d(array).astype(np.float32) for name, array in arrays.items()}
        self._shape = predicted.shape[1:]

    def sample(self, predicted: np.ndarray, *, generators: Sequence[Generator]) -> np.ndarray:
        """Return the mapped predictions ``(n, *shape)`` float32; `generators` are not used."""
        x, a = rows(predicted, self._shape, what="affine prior"), self._arrays
        out = (x - a["mean_in"]) / a["std_in"]
        if self.kind == "linear":
            out = out @ a["weights"]
        out = out * a["std_out"] + a["mean_out"]
        if self.rescale == "norm":
            norm = np.linalg.norm(out, axis=1, keepdims=True)
            out = out * (a["norm"] / np.where(norm > 0, norm, 1))
        return out.reshape(predicted.shape).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the fitted map."""
        assert self._shape is not None, "save comes after fit"
        write_fitted(folder, self._arrays, shape=self._shape, settings=self._settings)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses other settings, sizes or keys."""
        shape = read_shape(folder, settings=self._settings)
        size = int(np.prod(shape))
        expected = {name: np.empty(size) for name in ("mean_in", "std_in", "mean_out", "std_out")}
        expected["norm"] = np.empty(1)
        if self.kind == "linear":
            expected |= {"weights": np.broadcast_to(0.0, (size, size)), "alpha": np.empty(1)}
        self._arrays = read_arrays(folder, expected)
        self._shape = shape

    @classmethod
    def tiny(cls) -> Self:
        """Return the prior that matches mean and standard deviation."""
        return cls()
