"""Linear projectors of both sides, brain and image, into one space that is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from brain2img.artifacts import digest
from brain2img.interfaces import Head, HeadArguments
from brain2img.layers import StandardParts
from brain2img.losses import InfoNCE
from brain2img.records import EmbeddingSpec


class SharedSpace(Head):
    """A linear map from the hidden states, and one from the fused parts of the true embedding, into a learned space.

    What gains of NeuroBridge (linear projectors on both sides) and SAMGA (2604.17782: layers of the backbone fused with
    learned weights, a shared head that is frozen in the second stage) have in common. On the side of the image every
    value is standardised, each part (layer; `EmbeddingSpec.parts`; a space without is one part) is brought to its
    principal components and to unit mean square, multiplied by its learned weight (softmax, times the number of parts),
    and all are mapped to `width` values. Means, deviations and components come from the embeddings of the training
    stimuli alone. Retrieval takes place in the learned space: the image side is stored with the run as its true
    embedding.

    Deviations: SAMGA routes layers by a small network, for each image anew, with a prior on one layer; here the
    weights are the same for all. Principal components are ours.

    Parameters
    ----------
    width
        Values in the learned space.
    n_components
        Principal components of each part, at most; None leaves the standardised values.
    learn_weights
        Learn the weights of the parts; else all are 1.
    freeze_from
        Share of the epochs after which the image side is no longer trained; 1 never freezes it.
    dropout
        On the hidden states.
    **given
        What every head takes: see `Head`.

    Raises
    ------
    ValueError
        If `width`, `n_components` or `freeze_from` is impossible.
    """

    def __init__(self, *, width: int = 256, n_components: int | None = 128, learn_weights: bool = True,
                 freeze_from: float = 1.0, dropout: float = 0.0, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        if width < 1 or (n_components is not None and n_components < 1) or not 0 <= freeze_from <= 1:
            raise ValueError("SharedSpace head: expected width and n_components of 1 or more and freeze_from in [0, 1],"
                             f" got {width}, {n_components} and {freeze_from}. Correct head.shared_space.")
        self.freeze_from = freeze_from
        self.parts = StandardParts(dict(self.spec.parts) or {self.spec.name: self.spec.size}, n_components=n_components)
        self.dropout = nn.Dropout(dropout)
        self.brain = nn.Linear(self.n_hidden, width)
        self.image = nn.Linear(sum(self.parts.kept), width)
        self.part_weights = nn.Parameter(torch.zeros(len(self.parts.kept)), requires_grad=learn_weights)
        spec = self.spec
        self._decoded = EmbeddingSpec(name=spec.name, shape=(width,), dtype="float32", kind=spec.kind,
                                     n_views=spec.n_views, view_rule=spec.view_rule, uid=digest(["shared", spec.uid]))

    @property
    def decoded(self) -> EmbeddingSpec:
        """See `Head.decoded`."""
        return self._decoded

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """Take means, deviations and principal components from the true embeddings of the training stimuli."""
        self.parts.fit(torch.from_numpy(np.asarray(targets(), dtype=np.float32)).flatten(1))

    def begin_epoch(self, epoch: int, n_epochs: int) -> None:
        """Freeze the image side from epoch ``int(freeze_from n)`` on; see `Head.begin_epoch`."""
        trained = epoch < int(self.freeze_from * n_epochs) or self.freeze_from == 1
        for parameter in self.image.parameters():
            parameter.requires_grad_(trained)

    def fused(self, target: Tensor) -> Tensor:
        """Map true embeddings ``(B, *spec.shape)`` to the weighted parts ``(B, n)``."""
        parts = self.parts(target.flatten(1))
        return torch.cat([w * part for w, part in zip(self.weights(), parts, strict=True)], dim=1)

    def weights(self) -> Tensor:
        """Return the weight of every part ``(n_parts,)``, 1 on average."""
        return self.part_weights.softmax(0) * len(self.parts.kept)

    def true(self, target: Tensor) -> Tensor:
        """Map true embeddings ``(B, *spec.shape)`` to the learned space ``(B, width)``."""
        return self.image(self.fused(target))

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to the learned space ``(B, width)``; `done` is not needed."""
        return self.brain(self.dropout(hidden.flatten(1)))

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to a learned space of 4 values, of two parts of 8."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(16,), parts={"a": 8, "b": 8}), space="tiny",
                   width=4, n_components=3, losses={"info_nce": InfoNCE()})
