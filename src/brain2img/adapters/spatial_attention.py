"""Attention over sensor positions: any set of sensors -> virtual channels, then a matrix of each subject's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import SubjectAdapter
from brain2img.records import Features, Grid, SignalSpec

MARGIN = 0.2
"""How far the Fourier basis reaches beyond the positions in [0, 1] on either side: it is periodic."""


class Sensors(nn.Module):
    """Where one subject's sensors are; it has no parameters.

    Parameters
    ----------
    places
        ``(C, n_dims)`` in [0, 1].
    n_frequencies
        Frequencies 0, 1, ... along each dimension.
    """

    places: Tensor
    embedding: Tensor
    """``(C, 2 n_frequencies ** n_dims)``: cosines, then sines."""

    def __init__(self, places: np.ndarray, *, n_frequencies: int) -> None:
        super().__init__()
        steps = 2 * math.pi / (1 + 2 * MARGIN) * np.arange(n_frequencies)
        phase = np.zeros((len(places), 1))
        for place in (places + MARGIN).T:  # the last dimension runs fastest
            phase = (phase[:, :, None] + (place[:, None] * steps)[:, None, :]).reshape(len(places), -1)
        embedding = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
        self.register_buffer("places", torch.from_numpy(places.astype(np.float32)), persistent=False)
        self.register_buffer("embedding", torch.from_numpy(embedding.astype(np.float32)), persistent=False)


class SpatialAttention(SubjectAdapter):
    """Virtual channels that attend to sensors by position, a 1 x 1 convolution, and one matrix per subject.

    The input of brainmagick (Défossez et al., Nature Machine Intelligence 2023, arXiv:2208.12266, https://github.com/
    facebookresearch/brainmagick). Every virtual channel is a soft-max mean of the sensors, whose scores are products of
    a learned vector with a Fourier embedding of the sensor's position: cosines and sines of 2 pi (k x + l y) / 1.4 for
    k, l = 0 ... 31, positions moved by 0.2 from the edge. In training all sensors within `dropout` of a random point of
    the unit square (cube) are left out. Subjects may have other sensors, and another number of them.

    By switches, the additions of neuroai's port (https://github.com/facebookresearch/neuroai): positions in 3-D (10
    frequencies, width 2000), a bias, and `subject_dropout`, which trains one more matrix in place of the subjects' own.

    Deviations: an unseen subject (None) gets that matrix, or the mean of all subjects' where it is not trained
    (published: brainmagick has none, neuroai takes it for all or for none); its sensors must then be those that all
    known subjects have. A subject that is added begins with what an unseen one gets. MNE's layout of a 2-D position is
    computed here (`layout`); for some MEG systems the published code reads a drawn one instead (CTF-275, KIT). The
    random point is drawn for each subject of a batch, not once for all, and never leaves out all sensors. The three
    linear steps are multiplied into one matrix before they meet the signals, which is exact and several times faster.

    Parameters
    ----------
    specs
        Subject -> its signals, with sensor positions.
    grid
        ``(F, T)`` of the encoder. Where T is smaller than that of the signals, successive samples are averaged.
    n_virtual
        Virtual channels.
    n_dims
        2 for the layout, 3 for the positions in space; each axis is scaled to [0, 1] over the subject's sensors.
    width
        Width of the Fourier embedding: twice the `n_dims`-th power of the number of frequencies.
    dropout
        Radius of the disc (ball) of sensors that is left out in training, in units of the scaled positions.
    initial
        The 1 x 1 convolution to F channels; without it `n_virtual` must be F.
    subject_layers
        The F x F matrix of each subject, without which no subject has parameters of its own.
    bias
        Of those matrices.
    subject_dropout
        Share of training trials that take the shared matrix, in [0, 1).

    Raises
    ------
    ValueError
        If a position is missing, or sizes do not fit.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], grid: Grid, n_virtual: int = 270, n_dims: int = 2,
                 width: int = 2048, dropout: float = 0.2, initial: bool = True, subject_layers: bool = True,
                 bias: bool = False, subject_dropout: float = 0.0) -> None:
        super().__init__()
        self.n_frequencies = round((width / 2) ** (1 / n_dims))
        if n_dims not in (2, 3) or 2 * self.n_frequencies ** n_dims != width:
            raise ValueError("SpatialAttention adapter: expected n_dims 2 or 3 and as width twice a square (cube), got "
                             f"{n_dims} and {width}. Take adapter.n_dims=2 adapter.width=2048, or 3 and 2000.")
        if not initial and n_virtual != grid.F:
            raise ValueError(f"SpatialAttention adapter: expected the encoder's {grid.F} channels as n_virtual, got "
                             f"{n_virtual}. Set adapter.n_virtual, or adapter.initial=true.")
        if not 0 <= subject_dropout < 1:
            raise ValueError("SpatialAttention adapter: expected subject_dropout in [0, 1), got "
                             f"{subject_dropout}. Correct adapter.subject_dropout.")
        self.specs: dict[str, SignalSpec] = {}
        self.grid, self.n_dims, self.dropout, self.subject_dropout = grid, n_dims, dropout, subject_dropout
        self.subject_layers, self.bias = subject_layers, bias
        self.heads = nn.Parameter(torch.randn(n_virtual, width) / width**0.5)
        self.initial_linear = nn.Sequential(nn.Conv1d(n_virtual, grid.F, 1)) if initial else None
        self.sensors, self.matrices, self.biases = nn.ModuleDict(), nn.ParameterDict(), nn.ParameterDict()
        self.shared, self.shared_bias = None, None
        if subject_layers and subject_dropout:
            self.shared, self.shared_bias = self._drawn()
        for spec in specs.values():
            self._add(spec, *self._drawn())

    def _drawn(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Return a fresh matrix, from N(0, 1 / F) as published, and a bias."""
        n = self.grid.F
        return (nn.Parameter(torch.randn(n, n) / n**0.5),
                nn.Parameter(torch.randn(n) / n**0.5) if self.bias else None)

    def add_subject(self, spec: SignalSpec) -> None:
        """Add the sensors of a subject, and a matrix that begins as an unseen subject's; see `SubjectAdapter`."""
        matrix, bias = self._drawn() if self.subject_layers and not self.matrices else self._matrix_of(None)
        self._add(spec, *(None if p is None else nn.Parameter(p.detach().clone()) for p in (matrix, bias)))

    def _add(self, spec: SignalSpec, matrix: nn.Parameter | None, bias: nn.Parameter | None) -> None:
        what = f"SpatialAttention adapter, subject {spec.subject!r}"
        if spec.n_times // max(1, spec.n_times // self.grid.T) != self.grid.T:
            raise ValueError(f"{what}: expected the encoder's {self.grid.T} samples, got {spec.n_times}. "
                             "Use the same window and sampling rate for all subjects.")
        positions = spec.positions
        if positions is None:
            raise ValueError(f"{what}: expected sensor positions, got none. Prepare a study that states them, or "
                             "choose adapter=subject_token, which needs none.")
        lost = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        if len(lost):
            names = [spec.ch_names[i] if spec.ch_names else str(i) for i in lost[:5]]
            raise ValueError(f"{what}: expected a position for each of {spec.n_channels} sensors, got none for "
                             f"{len(lost)}: {names}. Leave them out with data.exclude_channels=[...].")
        self.specs[spec.subject] = spec
        self.sensors[spec.subject] = Sensors(scaled(layout(positions) if self.n_dims == 2 else positions),
                                             n_frequencies=self.n_frequencies)
        if self.subject_layers:
            assert matrix is not None
            self.matrices[spec.subject] = matrix
            if bias is not None:
                self.biases[spec.subject] = bias

    def parameters_of(self, subject: str) -> list[nn.Parameter]:
        """See `SubjectAdapter`."""
        self.known(subject)
        return [group[subject] for group in (self.matrices, self.biases) if subject in group]

    def _seen_as(self, subject: str | None) -> str:
        """Return whose sensors a subject has."""
        if subject is None:
            first, *others = self.specs.values()
            where = np.asarray(first.positions)
            if any(o.ch_names != first.ch_names or not np.array_equal(np.asarray(o.positions), where) for o in others):
                raise ValueError("SpatialAttention adapter: expected the name of a subject, got an unseen one, whose "
                                 "sensors are not known: those of the known subjects differ. Add it (brain2img adapt),"
                                 " or train on subjects with the same sensors.")
            return first.subject
        return self.known(subject)

    def _matrix_of(self, subject: str | None) -> tuple[Tensor | None, Tensor | None]:
        """Return matrix ``(F, F)`` and bias of a subject; None: the shared ones, or the means of all."""
        if not self.subject_layers:
            return None, None
        if subject is not None:
            return self.matrices[subject], self.biases[subject] if self.bias else None
        if self.shared is not None:
            return self.shared, self.shared_bias
        return (torch.stack(list(self.matrices.values())).mean(dim=0),
                torch.stack(list(self.biases.values())).mean(dim=0) if self.bias else None)

    def attention(self, subject: str | None) -> Tensor:
        """Return the weights ``(n_virtual, C)`` of the sensors: rows sum to 1; in training with a hole."""
        sensors = self.sensors[self._seen_as(subject)]
        assert isinstance(sensors, Sensors)
        scores = self.heads @ sensors.embedding.T
        if self.training and self.dropout:
            # the global generator, as for dropout: the decoder seeds it anew in every epoch
            centre = torch.rand(self.n_dims, device=scores.device)
            hole = torch.linalg.vector_norm(sensors.places - centre, dim=1) <= self.dropout
            scores = scores.masked_fill(hole & ~hole.all(), float("-inf"))
        return scores.softmax(dim=1)

    def forward(self, x: Tensor, subject: str | None) -> Features:
        """Map ``(B_s, C_s, T_s)`` to a grid ``(B_s, F, T)``; None is an unseen subject, see the class.

        Raises
        ------
        ValueError
            If the subject is unknown, or the number of channels or samples is not that of the subject.
        """
        spec = self.specs[self._seen_as(subject)]
        if x.shape[1:] != (spec.n_channels, spec.n_times):
            raise ValueError(f"SpatialAttention adapter, subject {subject!r}: expected {spec.n_channels} channels of "
                             f"{spec.n_times} samples, got {x.shape[1]} of {x.shape[2]}. Use the channels and the "
                             "window (data.channels, data.window) that the adapter was built for.")
        bin = spec.n_times // self.grid.T
        if bin > 1:
            x = F.avg_pool1d(x, bin)
        weight, offset = self.attention(subject), None
        if self.initial_linear is not None:
            initial = cast(nn.Conv1d, self.initial_linear[0])
            weight, offset = initial.weight.squeeze(-1) @ weight, initial.bias
        y = _mapped(x, weight, offset, *self._matrix_of(subject))
        if self.training and self.shared is not None and subject is not None:
            chosen = torch.rand(len(x), 1, 1, device=x.device) < self.subject_dropout
            y = torch.where(chosen, _mapped(x, weight, offset, *self._matrix_of(None)), y)
        return Features(y)

    @classmethod
    def tiny(cls) -> Self:
        """Return a small instance for two subjects "sub-01" (6 sensors) and "sub-02" (5), 80 samples."""
        places = np.array([[x, y, 0.1] for y in (-0.08, 0.0, 0.08) for x in (-0.05, 0.06)])
        specs = {name: SignalSpec(subject=name, modality="meg", units="T", n_channels=n, n_times=80, sfreq=100.0,
                                  ch_names=tuple(f"M{i}" for i in range(n)), positions=places[:n])
                 for name, n in (("sub-01", 6), ("sub-02", 5))}
        return cls(specs=specs, grid=Grid(8, 80), n_virtual=7, width=32)


def layout(positions: np.ndarray) -> np.ndarray:
    """Return where MNE draws sensors seen from above: ``(C, 3)`` in head coordinates -> ``(C, 2)``, any unit.

    The angle from the vertex becomes the distance from the middle (azimuthal equidistant projection about the origin of
    head coordinates), times the distance from that origin, as in `mne.channels.find_layout` where MNE has no drawing.
    """
    x, y, z = np.asarray(positions, dtype=float).T
    flat = np.hypot(x, y)
    length = np.hypot(flat, z) * np.arctan2(flat, z)
    return np.stack([x, y], axis=1) * (length / np.where(flat > 0, flat, 1.0))[:, None]


def scaled(places: np.ndarray) -> np.ndarray:
    """Return places ``(C, n)`` with every axis scaled to [0, 1]; 0 along an axis on which they do not differ."""
    low, extent = places.min(axis=0), np.ptp(places, axis=0)
    return (places - low) / np.where(extent > 0, extent, 1.0)


def _mapped(x: Tensor, weight: Tensor, offset: Tensor | None, matrix: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return ``matrix.T (weight x + offset) + bias`` for ``(B, C, T)``, its matrices multiplied first."""
    if matrix is not None:
        weight = matrix.T @ weight
        offset = None if offset is None else offset @ matrix
        if bias is not None:
            offset = bias if offset is None else offset + bias
    return F.conv1d(x, weight.unsqueeze(-1), offset)
