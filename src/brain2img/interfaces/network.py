"""The interfaces of what is trained together: augmentation, subject adapter, encoder, heads.

Shape letters are those of `brain2img.interfaces`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NotRequired, TypedDict

import numpy as np
from torch import Generator, Tensor, nn

from brain2img.interfaces.part import Part
from brain2img.records import BrainBatch, EmbeddingSpec, Features, Grid, SignalSpec


class Augmentation(Part):
    """Changes training signals before the adapter, within one subject."""

    @abstractmethod
    def __call__(self, x: Tensor, *, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Augment normalised signals `x` ``(B_s, C, T)`` of one subject.

        Returns
        -------
        x, soft_targets
            Signals of the same shape, and ``(B_s, B_s)`` row-stochastic weights of each trial's target on the
            subject's trials (MixCo), or None where every trial keeps its own target.
        """

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """Set what depends on the epoch (0 is the first of `n_epochs`), and on nothing else; nothing by default."""
        return


class SubjectAdapter(Part, nn.Module):
    """Absorbs what differs between subjects: ``(B_s, C_s, T_s)`` -> grid ``(B_s, F, T)``.

    Constructors take ``(*, specs: Mapping[str, SignalSpec], grid: Grid, ...)``: the first two come from the data and
    from the encoder, the rest from the YAML. That of `tiny()` knows two subjects, "sub-01" and "sub-02".
    """

    specs: Mapping[str, SignalSpec]
    grid: Grid
    synthetic: float = 0.0
    """Weight of the heads' losses on `synthetic_trials`."""
    known_in_losses: bool = False
    """Whether trials of known subjects stand among those of a new one in all losses when it is adapted to."""
    average_after: bool = False
    """Whether repetitions are averaged after `once`, trial by trial, and not before it."""
    has_fixed_part: bool = False
    """Whether `once` does something: training then does it once per trial, where no augmentation comes before it."""

    @abstractmethod
    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map signals of one subject onto the grid.

        `x` is ``(B_s, C_s, T_s)``; the subject None is the unseen one: shared parts, a mean, or a ValueError, as the
        class says.
        """

    def auxiliary_losses(self, batch: BrainBatch, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Return named losses of the adapter itself (reconstruction, cycle); none by default."""
        return {}

    def adaptation_losses(self, known: Mapping[str, Features], subject: str) -> dict[str, Tensor]:
        """Return named losses of the new `subject`'s parts on trials of known ones (cycle); none by default.

        `known` holds known subject -> the features of some of its trials, from the adapter trained with it, without
        gradient.
        """
        return {}

    def once(self, x: Tensor, subject: str) -> Tensor:
        """Return `x` after the first part of `forward`, which has no parameters; `forward` takes both."""
        return x

    def synthetic_trials(self, batch: BrainBatch, features: Mapping[str, Features]) -> tuple[Features, Tensor] | None:
        """Return features of trials made up for training, and the place in `batch` of each one's stimulus; or None."""
        return None

    def synthesise(self, x: Tensor, *, source: str, target: str) -> Tensor:
        """Return signals ``(B_s, n)`` of `target` for trials of `source` that `once` has seen, ``(B_s, n, 1)``.

        Raises
        ------
        ValueError
            If this adapter, or this one as it is trained, cannot.
        """
        raise ValueError(f"{type(self).__name__} adapter: expected one that can synthesise signals, got one that "
                         "cannot. Train with decoder=deep adapter=mindbridge.")

    def start_from_shared(self, subject: str) -> None:
        """Give a subject that is new to trained weights what served unseen ones so far; nothing by default."""
        return

    def known(self, subject: str | None) -> str:
        """Return the name of a subject that has parts here.

        Raises
        ------
        ValueError
            If it has none: it is unseen (None), or was never added.
        """
        if subject is None or subject not in self.specs:
            raise ValueError(f"{type(self).__name__} adapter: expected one of the subjects {sorted(self.specs)}, got "
                             f"{subject!r}. Every subject needs a part of its own: adapt the run to this one.")
        return subject

    @abstractmethod
    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """Return the parameters that belong to this subject alone."""

    @abstractmethod
    def add_subject(self, spec: SignalSpec) -> None:
        """Add fresh parameters for a new subject."""


class Encoder(Part, nn.Module):
    """A trunk shared by all subjects: grid ``(B, F, T)`` -> hidden ``(B, L, H)``.

    Constructors take ``(*, specs: Mapping[str, SignalSpec], ...)`` and state `grid` and `hidden`.
    """

    grid: Grid
    hidden: tuple[int, int]
    """``(L, H)`` of the output."""

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Map ``Features(grid (B, F, T), tokens (B, K, T) or None)`` to ``(B, L, H)``; tokens may be ignored."""


class HeadArguments(TypedDict):
    """What the constructor of every head takes beside its own arguments; see `Head`."""

    hidden: tuple[int, int]
    spec: EmbeddingSpec
    space: str
    losses: Mapping[str, nn.Module]
    prediction: NotRequired[bool]


class Head(Part, nn.Module):
    """Hidden states -> embeddings of one space.

    A head's own constructor takes its own arguments and hands the others on: ``def __init__(self, *, width: int,
    **given: Unpack[HeadArguments])`` and ``super().__init__(**given)``.

    Parameters
    ----------
    hidden
        ``(L, H)`` of the encoder; `n_hidden` is their product.
    spec
        What the embeddings of the space are; sizes of the head's output come from here, not from the YAML.
    space
        Name of the space.
    losses
        Name -> loss (`brain2img.losses.Loss`).
    prediction
        True for the one head whose output is the decoded embedding of the space; false for the others on it.
    """

    def __init__(self, *, hidden: tuple[int, int], spec: EmbeddingSpec, space: str, losses: Mapping[str, nn.Module],
                 prediction: bool = True) -> None:
        super().__init__()
        self.hidden, self.n_hidden = tuple(hidden), hidden[0] * hidden[1]
        self.space, self.spec, self.prediction = space, spec, prediction
        self.losses = nn.ModuleDict(losses)

    @abstractmethod
    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map `hidden` ``(B, L, H)`` to ``(B, *decoded.shape)``; `done` holds the outputs of the heads before it."""

    @property
    def decoded(self) -> EmbeddingSpec:
        """What is decoded: `spec`, unless the head learns a view of the space (`true`)."""
        return self.spec

    def true(self, target: Tensor) -> Tensor:
        """Map true embeddings ``(B, *spec.shape)`` to what is decoded of them, ``(B, *decoded.shape)``: themselves."""
        return target

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """Look at the true embeddings ``(n, *spec.shape)`` of training before it begins; nothing by default."""
        return

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """Set what depends on the epoch (0 is the first of `n_epochs`), and on nothing else; nothing by default."""
        return
