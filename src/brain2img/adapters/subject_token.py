"""Signals that share one set of channels, with a token or a linear map over time of each subject's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.records import Features, Grid, SignalSpec

log = logging.getLogger(__name__)


class SubjectToken(SubjectAdapter):
    """Passes signals through and adds one learned token of T values per subject; both can be otherwise.

    Where the encoder's grid is shorter than the signals, as many successive samples as fit are averaged.

    The subject embedding of ATM (Li et al., NeurIPS 2024, arXiv:2403.07721, https://github.com/dongyangli-del/
    EEG_Image_decode). An unseen subject (None) gets a learned shared token. Upstream trains that token only where an
    id lies beyond its table, by accident; here a training batch of a subject uses the shared token with
    `shared_token_probability`, so that it is trained on purpose (0 never does).

    Without token and linear map (``adapter=same_channels``) nothing belongs to a subject, and an unseen one is decoded
    like the others: NICE, the earlier ATM, models of one subject. With the linear map alone (``adapter=subject_time``)
    it is the input of ATM's low-level branch, T -> 128; with both, that of ATM's ``joint_train``, T -> T before an
    encoder without value embedding. An unseen subject has no linear map.

    Parameters
    ----------
    specs
        Subject -> its signals; channels must be the same in name and order for all.
    grid
        ``(C, T)`` of the encoder.
    shared_token_probability
        Share of training batches, per subject, that use the shared token, in [0, 1].
    token
        Whether there are tokens.
    linear
        Whether every subject has a Linear from its samples to those of the grid, the same for all channels.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects, or are not the encoder's.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, shared_token_probability: float = 0.1,
                 token: bool = True, linear: bool = False) -> None:
        super().__init__()
        if not 0 <= shared_token_probability <= 1:
            raise ValueError("SubjectToken adapter: expected shared_token_probability in [0, 1], got "
                             f"{shared_token_probability}. Correct adapter.shared_token_probability.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid, self.shared_token_probability = grid, shared_token_probability
        self.token, self.linear = token, linear
        self.tokens, self.linears = nn.ParameterDict(), nn.ModuleDict()
        if token:
            self.shared = nn.Parameter(torch.randn(1, grid.T))
        for spec in specs.values():
            self.add_subject(spec)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add a fresh token and linear map; see `SubjectAdapter`."""
        what = f"SubjectToken adapter, subject {spec.subject!r}"
        self._bin = 1 if self.linear else max(1, spec.n_times // self.grid.T)
        n_times = self.grid.T if self.linear else spec.n_times // self._bin
        if (spec.n_channels, n_times) != (self.grid.F, self.grid.T):
            raise ValueError(f"{what}: expected the encoder's {self.grid.F} channels and {self.grid.T} samples, got "
                             f"{spec.n_channels} and {spec.n_times}. Use the same channels and window for all "
                             "subjects, or an adapter that maps each subject's own (adapter=mindbridge).")
        first = next(iter(self.specs.values()), spec)
        if first.ch_names != spec.ch_names:
            differ = [(a, b) for a, b in zip(first.ch_names, spec.ch_names, strict=False) if a != b][:3]
            raise ValueError(f"{what}: expected the channels of {first.subject!r} in the same order, got others: "
                             f"{differ or (len(first.ch_names), len(spec.ch_names))}. Select the same channels for "
                             "all subjects, in one order.")
        self.specs[spec.subject] = spec
        if self.token:
            self.tokens[spec.subject] = nn.Parameter(torch.randn(1, self.grid.T))
        if self.linear:
            self.linears[spec.subject] = nn.Linear(spec.n_times, self.grid.T)

    def start_from_shared(self, subject: str) -> None:
        """Give a subject that is new to trained weights the shared token to begin with, which served it so far."""
        if self.token:
            with torch.no_grad():
                self.tokens[self.known(subject)].copy_(self.shared)

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        self.known(subject)
        own = [self.tokens[subject]] if self.token else []
        return own + (list(self.linears[subject].parameters()) if self.linear else [])

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Return the grid ``(B_s, C, T)`` with tokens ``(B_s, 1, T)`` or None; subject None takes the shared token."""
        if self.linear or subject is not None:
            subject = self.known(subject)
        if self._bin > 1:
            x = F.avg_pool1d(x, self._bin)
        if self.linear:
            x = self.linears[str(subject)](x)
        if not self.token:
            return Features(x)
        if subject is None and not self.shared_token_probability:
            log.warning("SubjectToken adapter: an unseen subject gets the shared token, which was never trained "
                        "(shared_token_probability=0)")
        token = self.shared if subject is None else self.tokens[subject]
        # the global generator, as for dropout: the decoder seeds it anew in every epoch
        if self.training and self.shared_token_probability and torch.rand(()).item() < self.shared_token_probability:
            token = self.shared
        return Features(x, token.expand(len(x), 1, -1))

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" and "sub-02" with 5 channels and 80 samples."""
        names = ("Pz", "PO3", "PO4", "O1", "O2")
        specs = {name: SignalSpec(subject=name, modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0,
                                  ch_names=names) for name in ("sub-01", "sub-02")}
        return cls(specs=specs, grid=Grid(5, 80))
