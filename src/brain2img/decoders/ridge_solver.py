"""Ridge regression of very many targets: penalties by himalaya, then one eigendecomposition for all coefficients.

himalaya solves, for the targets it is given at once, every inner fold by one eigendecomposition of its kernel, and the
whole by another. It takes neither a decomposition that is there already nor targets that lie on the disk. So it
chooses penalties (and the weights of bands) on the targets that fit into memory, as many as are asked for, and the
coefficients of all targets come in closed form from the eigendecomposition that is computed here, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Features that a Gram matrix takes at once; up to so many values, all is computed in double precision.
_BLOCK, _SMALL = 2048, 8_000_000
#: Largest kernel in which penalties are chosen where there are more trials than features.
_LARGEST_KERNEL = 10_000
#: Memory for what himalaya holds of several penalties at once (bytes).
_BATCH = 300_000_000


@dataclass(frozen=True)
class Decomposition:
    """What gives the coefficients of any penalty: ``left @ diag(1 / (values + penalty)) @ right @ y``.

    Parameters
    ----------
    values
        ``(r,)`` eigenvalues of the smaller one of the two Gram matrices of the signals ``x (n, p)``, not negative.
    left, right
        ``(p, r)`` and ``(r, n)``.
    dual
        Whether it was the Gram matrix of the trials, ``x @ x.T``.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    dual: bool

    def weights(self, penalty: Tensor | float) -> Tensor:
        """Return ``1 / (values + penalty)``: ``(r, d)`` for d penalties, ``(r, 1)`` for a number."""
        return 1 / (self.values[:, None] + penalty)

    def operator(self, penalty: float) -> Tensor:
        """Return ``(p, n)``, which maps targets to coefficients; for many targets of one penalty."""
        return (self.left * self.weights(penalty).T) @ self.right

    def coefficients(self, y: Tensor, penalties: Tensor) -> Tensor:
        """Return ``(p, d)`` coefficients of centred targets ``(n, d)``, each with its own penalty ``(d,)``."""
        return self.left @ (self.weights(penalties) * (self.right @ y))

    def leverages(self, penalty: float) -> Tensor:
        """Return ``(n,)``: how much each trial's own target weighs in its fitted value, the mean's share included."""
        weights = self.weights(penalty)
        if self.dual:
            weights = weights * self.values[:, None]
        return (self.right.square() * weights).sum(dim=0) + 1 / self.right.shape[1]


def gram(x: Tensor) -> Tensor:
    """Return ``x @ x.T`` ``(n, n)`` in double precision, a few features at a time."""
    out = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[1], _BLOCK):
        block = x[:, start:start + _BLOCK].double()
        out.addmm_(block, block.T)
    return out


def decompose(x: Tensor, *, kernel: Tensor | None = None) -> Decomposition:
    """Decompose the smaller Gram matrix of centred signals.

    Parameters
    ----------
    x
        ``(n, p)`` float32.
    kernel
        ``gram(x)`` where it is known.

    Returns
    -------
    Decomposition
        In double precision where `x` is small, else in single (the eigendecomposition itself is always in double).
    """
    dual = len(x) <= x.shape[1]
    if kernel is None or not dual:
        kernel = gram(x if dual else x.T)
    dtype = torch.float64 if x.numel() <= _SMALL else torch.float32
    values, vectors = torch.linalg.eigh(kernel)
    values, vectors = values.clamp(min=0).to(dtype), vectors.to(dtype)
    x = x.to(dtype)
    if dual:
        return Decomposition(values, x.T @ vectors, vectors.T.contiguous(), dual=True)
    return Decomposition(values, vectors, (x @ vectors).T.contiguous(), dual=False)


@dataclass(frozen=True)
class Choice:
    """Penalties ``(d,)`` of targets, and weights ``(n_bands, d)`` of bands, of mean 1 (their squared scales)."""

    penalties: np.ndarray
    bands: np.ndarray


def choose(x: Tensor, y: np.ndarray, *, penalties: np.ndarray, folds: Any, groups: Sequence[slice] | None = None,
           bands: Sequence[np.ndarray] | None = None, n_weights: int = 1, seed: int = 0,
           kernel: Tensor | None = None) -> Choice:
    """Choose penalties by cross-validated squared error (himalaya); one decomposition for each inner fold.

    Parameters
    ----------
    x
        ``(n, p)`` float32 centred signals.
    y
        ``(n, d)`` float32 centred targets.
    penalties
        Those tried, above 0.
    folds
        A splitter of scikit-learn over the n trials.
    groups
        Targets that share one choice; None: each target has its own.
    bands
        Feature numbers of each band; None: all features are one.
    n_weights
        Weights of the bands that are tried: equal ones, and random ones from Dirichlet distributions (Dupre la Tour et
        al. 2022, https://doi.org/10.1016/j.neuroimage.2022.119728).
    seed
        Of these.
    kernel
        ``gram(x)`` where it is known.

    Returns
    -------
    Choice
        For every target.
    """
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import generate_dirichlet_samples, solve_multiple_kernel_ridge_random_search
    from himalaya.ridge import solve_group_ridge_random_search
    from himalaya.scoring import l2_neg_loss

    # four times faster than himalaya's numpy backend, on the CPU too
    set_backend("torch_cuda" if x.is_cuda else "torch")
    n, n_bands = len(x), len(bands) if bands else 1
    weights = torch.ones(1, n_bands, device=x.device)
    if bands and n_weights > 1:
        drawn = generate_dirichlet_samples(n_weights - 1, n_bands, random_state=seed)
        weights = torch.cat([weights, n_bands * torch.as_tensor(np.asarray(drawn.cpu())).to(weights)])

    def score(true: Tensor, predicted: Tensor) -> Tensor:
        losses = l2_neg_loss(true, predicted)
        for group in groups or ():
            losses[..., group] = losses[..., group].mean(dim=-1, keepdim=True)
        return losses

    # a group must be scored at once
    batch = y.shape[1] if groups else 2000
    of_one = 4 * n // folds.get_n_splits() * max(n, batch)
    settings: dict[str, Any] = {
        "n_iter": weights, "alphas": torch.as_tensor(penalties, dtype=torch.float32, device=x.device), "cv": folds,
        "score_func": score, "n_targets_batch": batch, "n_alphas_batch": max(1, _BATCH // of_one),
        "progress_bar": False}
    targets = torch.from_numpy(np.ascontiguousarray(y)).to(x.device)
    parts = [x] if bands is None else [x[:, torch.from_numpy(band).to(x.device)] for band in bands]
    if n > x.shape[1] and n > _LARGEST_KERNEL:
        deltas = solve_group_ridge_random_search(parts, targets, warn=False, **settings)[0]
    else:
        whole = kernel is not None and bands is None
        kernels = kernel.float()[None] if whole and kernel is not None else torch.stack([p @ p.T for p in parts])
        deltas = solve_multiple_kernel_ridge_random_search(kernels, targets, return_weights=None, **settings)[0]
    # himalaya returns log(weight / penalty), and the weights of the bands have mean 1
    ratios = deltas.double().exp().cpu().numpy()
    chosen = 1 / ratios.mean(axis=0)
    chosen = penalties[np.abs(np.log(penalties)[:, None] - np.log(chosen)).argmin(axis=0)]
    return Choice(chosen, ratios * chosen)


def renormalisation(fitted: Tensor, y: Tensor, leverages: Tensor) -> tuple[Tensor, Tensor]:
    """Return what brings predictions of new stimuli to the mean and s.d. of the targets, ``(d,)`` each.

    Parameters
    ----------
    fitted, y
        ``(n, d)`` fitted and true centred targets of the training stimuli.
    leverages
        ``(n, d)`` or ``(n, 1)``, from which the leave-one-out predictions follow.

    Returns
    -------
    shift, factor
        ``prediction * factor + shift``, for centred predictions.
    """
    held_out = (fitted - leverages * y) / (1 - leverages)
    spread = held_out.std(dim=0, correction=0)
    factor = torch.where(spread > 0, y.std(dim=0, correction=0) / spread, torch.ones_like(spread))
    return -held_out.mean(dim=0) * factor, factor
