"""Named losses between decoded and true embeddings, each with its weight.

The rows of a batch are trials. Two things that the data know and a formula does not are handed in: which rows share a
stimulus (`same`), and how an augmentation mixed the trials (`soft_targets`, MixCo).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from brain2img.interfaces import Prior
from brain2img.records import EmbeddingSpec
from brain2img.schedule import cosine_ramp, epochs_between

MAX_SCALE = 100.0
"""Largest learned factor on the cosine, as in CLIP (Radford et al. 2021)."""


class Loss(ABC, nn.Module):
    """One term of the training loss.

    Parameters
    ----------
    weight
        Factor in the sum of all terms; the value itself is logged without it.
    start, stop
        Shares of the epochs between which the term counts: from epoch ``int(start n)`` on, before ``int(stop n)``.

    Attributes
    ----------
    active
        Whether the term counts in the current epoch; inactive terms are neither computed nor logged.
    between_rows
        Whether it compares the rows of a batch with each other, so that its value is that of a batch and no mean over
        rows: in validation it is taken over all rows at once.
    """

    between_rows = False
    prior: Prior | None = None
    """The prior that the term trains jointly with the decoder, where it does."""

    def __init__(self, *, weight: float = 1.0, start: float = 0.0, stop: float = 1.0) -> None:
        super().__init__()
        self.weight, self.start, self.stop = float(weight), float(start), float(stop)
        epochs_between(start, stop, n_epochs=1)
        self.active = start == 0

    def prepare(self, spec: EmbeddingSpec) -> None:
        """Learn, once and before anything else, what the embeddings are; nothing by default."""
        return

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """Look at the true embeddings ``(n, *shape)`` of training before it begins; nothing by default."""
        return

    def begin_epoch(self, epoch: int, n_epochs: int, *, generator: Generator) -> None:
        """Set what depends on the epoch, and on nothing else: a resumed fit calls this alone.

        Parameters
        ----------
        epoch, n_epochs
            The epoch that begins (0 is the first), and how many there are.
        generator
            Source of randomness for this epoch, on the CPU.
        """
        self.active = epoch in epochs_between(self.start, self.stop, n_epochs=n_epochs)

    @abstractmethod
    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """Return the unweighted value.

        Parameters
        ----------
        predicted, target
            ``(B, *shape)`` decoded and true embeddings.
        soft_targets
            ``(B, B)`` row-stochastic weights of each trial on the targets of the batch, where trials were mixed.
        same
            ``(B, B)`` bool, true where two rows show the same stimulus.
        """

    @classmethod
    def tiny(cls) -> Self:
        """Return an instance with the defaults."""
        return cls()


def _mixed(target: Tensor, soft_targets: Tensor | None) -> Tensor:
    """Return the target of every trial ``(B, D)`` flat, mixed as the trials were."""
    target = target.flatten(1).float()
    return target if soft_targets is None else soft_targets.to(target) @ target


def _cross_entropy(logits: Tensor, share: Tensor) -> Tensor:
    return -(share * logits.log_softmax(dim=1)).sum(dim=1).mean()


class InfoNCE(Loss):
    """Contrast between trials and stimuli of the batch, as in CLIP (Radford et al. 2021, arXiv:2103.00020).

    Rows that share a stimulus are joint positives: each gets an equal share of the target distribution, and none is a
    negative of the other (the published losses take them as negatives). With MixCo the shares are mixed as the trials
    were, and the direction from stimuli to trials uses the transposed shares (BiMixCo, Scotti et al. 2023,
    https://github.com/MedARC-AI/fMRI-reconstruction-NSD).

    Parameters
    ----------
    weight
        See `Loss`.
    temperature
        Initial temperature: the logits are divided by it.
    learnable
        Learn the logarithm of 1 / temperature, clamped so that the factor stays at most 100.
    symmetric
        Average both directions; else only from a trial to its stimulus.
    normalise
        "both" sides to unit L2 norm; "target" alone (brainmagick, Défossez et al. 2023: there with temperature 1, not
        learnable, not symmetric); or "legacy_atm" (ATM, Li et al. 2024): the target alone, and the learned logarithm
        itself, not its exponential, is the factor, so that the norm of the prediction acts as a temperature.

    Raises
    ------
    ValueError
        If `normalise` is none of these or the temperature is not positive.
    """

    between_rows = True

    def __init__(self, *, weight: float = 1.0, temperature: float = 0.07, learnable: bool = True,
                 symmetric: bool = True, normalise: str = "both", start: float = 0.0, stop: float = 1.0) -> None:
        super().__init__(weight=weight, start=start, stop=stop)
        if normalise not in ("both", "target", "legacy_atm"):
            raise ValueError(f"InfoNCE normalise: expected 'both', 'target' or 'legacy_atm', got {normalise!r}. "
                             "Correct it in the YAML of the head.")
        if temperature <= 0:
            raise ValueError(f"InfoNCE temperature: expected a number above 0, got {temperature}. "
                             "Correct it in the YAML of the head.")
        self.symmetric, self.normalise = symmetric, normalise
        scale = torch.tensor(math.log(1 / temperature))
        if learnable:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale, persistent=False)

    @property
    def factor(self) -> Tensor:
        """What the similarities are multiplied by."""
        if self.normalise == "legacy_atm":
            return self.scale
        return self.scale.exp().clamp(max=MAX_SCALE) if self.scale.requires_grad else self.scale.exp()

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`."""
        predicted, target = predicted.flatten(1).float(), F.normalize(target.flatten(1).float(), dim=1)
        if self.normalise == "both":
            predicted = F.normalize(predicted, dim=1)
        logits = self.factor * predicted @ target.T
        n = len(logits)
        share = torch.eye(n, device=logits.device) if same is None else same.to(logits)
        share = share / share.sum(dim=1, keepdim=True)
        if soft_targets is not None:
            share = soft_targets.to(share) @ share
        loss = _cross_entropy(logits, share)
        return (loss + _cross_entropy(logits.T, share.T)) / 2 if self.symmetric else loss


class SoftCLIP(Loss):
    """Contrast whose target distribution is the similarity of the stimuli among themselves.

    With p and t the L2-normalised flat predictions and targets and q = softmax_rows(t t' / temperature), the loss is
    the mean of the cross-entropies of softmax_rows(p t' / temperature) and softmax_rows(t p' / temperature) against q
    (MindEye, Scotti et al. 2023; MindBridge, Wang et al. 2024). Where MixCo mixed the trials, q is mixed likewise; the
    publications do not combine the two. Rows that share a stimulus have equal targets and need no more.

    Parameters
    ----------
    weight
        See `Loss`.
    temperature
        A number (published: 0.005, MindBridge), or the first and the last of half a cosine over the epochs in which the
        term counts (published: 0.004 to 0.0075, MindEye).
    start, stop
        See `Loss`.

    Raises
    ------
    ValueError
        If a temperature is not positive.
    """

    between_rows = True

    def __init__(self, *, weight: float = 1.0, temperature: float | Sequence[float] = 0.005, start: float = 0.0,
                 stop: float = 1.0) -> None:
        super().__init__(weight=weight, start=start, stop=stop)
        ramp = tuple(temperature) if isinstance(temperature, Sequence) else (temperature, temperature)
        if len(ramp) != 2 or min(ramp) <= 0:
            raise ValueError(f"SoftCLIP temperature: expected a number above 0, got {temperature}. "
                             "Give one, or the two ends of a ramp, in the YAML of the head.")
        self.ramp, self.temperature = ramp, ramp[0]

    def begin_epoch(self, epoch: int, n_epochs: int, *, generator: Generator) -> None:
        """See `Loss.begin_epoch`."""
        super().begin_epoch(epoch, n_epochs, generator=generator)
        if self.active:
            epochs = epochs_between(self.start, self.stop, n_epochs=n_epochs)
            self.temperature = cosine_ramp(*self.ramp, step=epoch - epochs.start, n_steps=len(epochs))

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`; `same` is not needed."""
        predicted = F.normalize(predicted.flatten(1).float(), dim=1)
        target = F.normalize(target.flatten(1).float(), dim=1)
        logits = predicted @ target.T / self.temperature
        share = (target @ target.T / self.temperature).softmax(dim=1)
        if soft_targets is None:
            return (_cross_entropy(logits, share) + _cross_entropy(logits.T, share)) / 2
        soft_targets = soft_targets.to(share)
        return (_cross_entropy(logits, soft_targets @ share) + _cross_entropy(logits.T, share @ soft_targets.T)) / 2


class MSE(Loss):
    """Mean squared error over all values.

    Parameters
    ----------
    weight
        See `Loss`.
    normalise
        True: compare L2-normalised flat vectors (MindBridge, Wang et al. 2024, there with weight 10,000; on unit
        vectors of length D this is 2 (1 - cosine) / D). "target": predictions as they are with normalised targets
        (ATM's encoder for reconstruction, Li et al. 2024).

    Raises
    ------
    ValueError
        If `normalise` is none of these.
    """

    def __init__(self, *, weight: float = 1.0, normalise: bool | str = False) -> None:
        super().__init__(weight=weight)
        if normalise not in (True, False, "target"):
            raise ValueError(f"MSE normalise: expected true, false or 'target', got {normalise!r}. "
                             "Correct it in the YAML of the head.")
        self.normalise = normalise

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`; the target of a mixed trial is the mixture of its targets."""
        predicted, target = predicted.flatten(1).float(), _mixed(target, soft_targets)
        if self.normalise:
            target = F.normalize(target, dim=1)
        if self.normalise is True:
            predicted = F.normalize(predicted, dim=1)
        return F.mse_loss(predicted, target)


class Cosine(Loss):
    """One minus the cosine of flat prediction and target, in [0, 2], averaged over trials."""

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`; the target of a mixed trial is the mixture of its targets."""
        return 1 - F.cosine_similarity(predicted.flatten(1).float(), _mixed(target, soft_targets), dim=1).mean()


class L1(Loss):
    """Mean absolute error over all values; of VAE latents, MindEye weighs it with 1 / 0.18215 (MindEye2: 0.5).

    Parameters
    ----------
    weight
        See `Loss`.
    mixed
        Whether the target of a mixed trial (MixCo) is the mixture of its targets, or that of the trial itself
        (MindEye2, whose error is taken before the latents are mixed).
    """

    def __init__(self, *, weight: float = 1.0, mixed: bool = True) -> None:
        super().__init__(weight=weight)
        self.mixed = mixed

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`."""
        return F.l1_loss(predicted.flatten(1).float(), _mixed(target, soft_targets if self.mixed else None))


class MMD(Loss):
    """Squared maximum mean discrepancy of the decoded and the true embeddings of a batch, as two clouds of points.

    Gretton et al. 2012 (https://jmlr.org/papers/v13/gretton12a.html), biased estimate, with the mean of Gaussians
    ``exp(-d^2 / (f m))`` for each factor f, where m is the mean squared distance over the batch (no gradient). It says
    nothing about pairs: SAMGA (2604.17782) aligns both sides so before it contrasts them. Vectors are L2-normalised.

    Parameters
    ----------
    weight
        See `Loss`.
    factors
        Widths of the kernels.
    start, stop
        See `Loss`.

    Raises
    ------
    ValueError
        If a factor is not positive.
    """

    between_rows = True

    def __init__(self, *, weight: float = 1.0, factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
                 start: float = 0.0, stop: float = 1.0) -> None:
        super().__init__(weight=weight, start=start, stop=stop)
        if not factors or min(factors) <= 0:
            raise ValueError(f"MMD factors: expected numbers above 0, got {list(factors)}. Correct them in the YAML of "
                             "the head.")
        self.factors = tuple(factors)

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`; the target of a mixed trial is the mixture of its targets."""
        x = F.normalize(predicted.flatten(1).float(), dim=1)
        y = F.normalize(_mixed(target, soft_targets), dim=1)
        points = torch.cat([x, y])
        distance = (2 - 2 * points @ points.T).clamp_min(0)
        mean = distance.detach().mean().clamp_min(1e-12)
        kernel = torch.stack([(-distance / (f * mean)).exp() for f in self.factors]).mean(0)
        n = len(x)
        return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


class PriorLoss(Loss):
    """A diffusion prior trained jointly with the decoder: its loss, conditioned on what the head decodes.

    MindEye (Scotti et al. 2023, arXiv:2305.18274) and MindEye2 (arXiv:2403.11207). The weights of the prior are part
    of this module, hence of the decoder: its optimizer, its averaged weights, its checkpoints.
    ``prior_fit.source=joint`` takes them out of the run. As published the target of a mixed trial (MixCo) is that of
    the trial itself, not a mixture: averages of embeddings are what the prior is there to avoid. In validation the
    noise is always the same.

    Parameters
    ----------
    prior
        What is trained; usually ``${prior}``, the prior of the experiment.
    weight
        Published: 30.
    start, stop
        See `Loss`.

    Raises
    ------
    ValueError
        If there is no prior.
    """

    def __init__(self, *, prior: Prior | None, weight: float = 30.0, start: float = 0.0, stop: float = 1.0) -> None:
        super().__init__(weight=weight, start=start, stop=stop)
        if prior is None:
            raise ValueError("PriorLoss: expected a prior to train jointly with the decoder, got none. Choose "
                             "prior=mindeye, or take the term out of the losses of the head.")
        self.prior: Prior = prior
        self._generator = Generator()

    def prepare(self, spec: EmbeddingSpec) -> None:
        """Make the prior's network for embeddings of this shape."""
        self.model = self.prior.start(spec.shape)

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """See `Loss.observe`."""
        self.prior.observe(targets)

    def begin_epoch(self, epoch: int, n_epochs: int, *, generator: Generator) -> None:
        """See `Loss.begin_epoch`."""
        super().begin_epoch(epoch, n_epochs, generator=generator)
        self._generator = generator

    def forward(self, predicted: Tensor, target: Tensor, *, soft_targets: Tensor | None = None,
                same: Tensor | None = None) -> Tensor:
        """See `Loss.forward`."""
        generator = self._generator if self.training else Generator().manual_seed(0)
        return self.prior.training_loss(predicted.float(), target.float(), generator=generator)
