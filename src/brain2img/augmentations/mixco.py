"""MixCo: convex mixtures of trials, with targets mixed likewise."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from brain2img.interfaces import Augmentation
from brain2img.schedule import epochs_between


class MixCo(Augmentation):
    """Mixes a random part of the trials with another trial of the same subject.

    x_i becomes lambda_i x_i + (1 - lambda_i) x_perm(i) with lambda_i ~ Beta(beta, beta), and trial i has target i with
    weight lambda_i and target perm(i) with 1 - lambda_i (Kim et al. 2020; MindEye, Scotti et al. 2023,
    https://github.com/MedARC-AI/fMRI-reconstruction-NSD). Deviation: where perm(i) = i the published code overwrites
    the diagonal with 1 - lambda_i; here the two weights add to 1.

    Parameters
    ----------
    beta
        Parameter of the Beta distribution; published 0.15.
    probability
        Share of the trials that are mixed; published 0.5.
    stop
        Share of the epochs that mix, the first ones: before epoch ``int(stop n)``; published 0.33 in MindEye.
    """

    def __init__(self, *, beta: float = 0.15, probability: float = 0.5, stop: float = 1.0) -> None:
        if beta <= 0 or not 0 <= probability <= 1:
            raise ValueError(f"MixCo: expected beta above 0 and probability in [0, 1], got {beta} and {probability}. "
                             "Correct augmentation.")
        epochs_between(0.0, stop, n_epochs=1)
        self.beta, self.probability, self.stop, self.active = beta, probability, stop, True

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """See `Augmentation`."""
        self.active = epoch in epochs_between(0.0, self.stop, n_epochs=n_epochs)

    def __call__(self, x: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """See `Augmentation`; `generator` is a CPU one."""
        if not self.active:
            return x, None
        n = len(x)
        # torch draws Beta variates from its global generator only; NumPy takes one of our own
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        drawn = np.where(rng.random(n) < self.probability, rng.beta(self.beta, self.beta, n), 1.0)
        perm = torch.from_numpy(rng.permutation(n)).to(x.device)
        weight = torch.from_numpy(drawn).to(x)
        soft_targets = torch.diag(weight)
        soft_targets[torch.arange(n, device=x.device), perm] += 1 - weight
        factor = weight.view(-1, *[1] * (x.ndim - 1))
        return factor * x + (1 - factor) * x[perm], soft_targets

    @classmethod
    def tiny(cls) -> Self:
        """Return one with the published values."""
        return cls()
