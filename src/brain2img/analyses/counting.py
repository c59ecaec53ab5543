"""Parameters of a decoder that is built without memory, and which of them a training step reaches."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec
from brain2img.stages.build import build_decoder

log = logging.getLogger(__name__)

VOLUME = (81, 104, 83)
"""NSD's functional volume of subject 1 at 1.8 mm, where an experiment states no other."""
TRIALS = 4
"""Trials of each subject in the batch that is traced."""


@dataclass(frozen=True)
class Counts:
    """Parameters of one decoder.

    Parameters
    ----------
    parameters
        Name of every parameter -> number of values, in the order of the modules.
    reached
        Names of those that a training step has a gradient for, or None where it could not be traced.
    untraced
        Why it could not be traced, or "".
    """

    parameters: Mapping[str, int]
    reached: frozenset[str] | None
    untraced: str = ""

    @property
    def total(self) -> int:
        """All parameters, live or not."""
        return sum(self.parameters.values())

    @property
    def unreached(self) -> dict[str, int]:
        """Name -> values of the parameters without a gradient; none where the step was not traced."""
        if self.reached is None:
            return {}
        return {name: n for name, n in self.parameters.items() if name not in self.reached}

    @property
    def live(self) -> int:
        """Parameters that a training step reaches."""
        return self.total - sum(self.unreached.values())

    def below(self, path: str) -> dict[str, int]:
        """Return the parameters of the module (or parameter) of this path."""
        return {name: n for name, n in self.parameters.items() if name == path or name.startswith(f"{path}.")}

    def by_module(self, subjects: Sequence[str]) -> list[tuple[str, int, int]]:
        """Return (module, subjects that have one of their own, parameters).

        The modules are the parts of the adapter, the trunk, each head, and each loss that has parameters.
        """
        sums: Counter[str] = Counter()
        owners: dict[str, set[str]] = {}
        for name, n in self.parameters.items():
            parts = name.split(".")
            own = [part for part in parts if part in subjects]
            depth = 2 if parts[0] in ("adapter", "heads") and len(parts) > 2 else 1
            depth = 4 if parts[2:3] == ["losses"] else depth
            key = ".".join(parts[:depth])
            sums[key] += n
            owners.setdefault(key, set()).update(own)
        return [(key, len(owners[key]), n) for key, n in sums.items()]


def signals_of(published: Mapping[str, Any]) -> dict[str, SignalSpec]:
    """Return the specs of the signals that an experiment's ``published`` describes.

    ``voxels: {subj01: 15724}`` are single-trial betas in a volume; which voxels they are is made up, spread evenly over
    `VOLUME` or ``volume_shape``. ``signals: {sub-01: [63, 250]}`` are channels and samples of M/EEG, EEG at 250 Hz from
    stimulus onset unless ``recording: {modality: meg, sfreq: 120.0, tmin: -0.5}`` says otherwise; names and positions
    of the sensors are made up. A subject that is null is left out, as by an experiment that is based on another.

    Raises
    ------
    ValueError
        If none of the two is stated, or the shape of signals is none.
    """
    if ("voxels" in published) == ("signals" in published):
        raise ValueError("published: expected voxels or signals, got "
                         f"{'both' if 'voxels' in published else 'none'}. State one of them.")
    volume = tuple(published.get("volume_shape") or VOLUME)
    recording = {"modality": "eeg", "sfreq": 250.0, **published.get("recording", {})}
    specs = {}
    for subject, size in (published.get("voxels") or published.get("signals") or {}).items():
        if size is None:
            continue
        if "voxels" in published:
            flat = np.linspace(0, np.prod(volume) - 1, size).astype(int)
            made: dict[str, Any] = {"modality": "fmri", "units": "a.u.", "n_channels": size, "n_times": 1,
                                    "volume_shape": volume, "affine": np.diag([1.8, 1.8, 1.8, 1.0]),
                                    "ijk": np.stack(np.unravel_index(flat, volume), axis=1)}
        else:
            if not isinstance(size, Sequence) or len(size) != 2:
                raise ValueError(f"published.signals of {subject!r}: expected [channels, samples], got {size!r}. "
                                 "Correct it.")
            made = {"units": "T" if recording["modality"] == "meg" else "V", "n_channels": size[0], "n_times": size[1],
                    "ch_names": tuple(f"E{i + 1:03d}" for i in range(size[0])), "positions": _on_a_head(size[0]),
                    "ch_types": (recording["modality"].replace("meg", "mag"),) * size[0], **recording}
        specs[subject] = SignalSpec(subject=subject, **made)
    return specs


def _on_a_head(n: int) -> np.ndarray:
    """Return ``(n, 3)`` different points in metres, on a spiral over the upper half of a sphere of 9 cm."""
    z, angle = (np.arange(n) + 0.5) / n, np.arange(n) * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - z**2)
    return 0.09 * np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def embeddings_of(published: Mapping[str, Any]) -> dict[str, EmbeddingSpec]:
    """Return the specs that the ``published.spaces`` of an experiment describe."""
    return {name: EmbeddingSpec(name=name, shape=tuple(shape)) for name, shape in published["spaces"].items()
            if shape is not None}


def count(config: Mapping[str, Any], *, signals: Mapping[str, SignalSpec],
          embeddings: Mapping[str, EmbeddingSpec], seed: int = 0) -> Counts:
    """Build the decoder that a training configuration describes on the meta device, and count.

    Parameters
    ----------
    config
        What `brain2img.stages.workspace.training_config` returns.
    signals, embeddings
        Subject -> its signals, and space -> its embeddings.
    seed
        Of the decoder; does not matter for the counts.

    Raises
    ------
    ValueError
        If the parts do not fit each other, or the decoder is of a kind whose parameters are not known.
    """
    data: Any = SimpleNamespace(specs=dict(signals), target_specs=dict(embeddings))
    with torch.device("meta"):
        decoder = build_decoder(config, data=data, seed=seed)
    if not decoder.has_parts:
        return Counts(decoder.n_parameters(), None)
    module: Any = decoder.module  # type: ignore[attr-defined]
    module.to("meta")  # what was made from NumPy
    module._device = torch.device("cpu")  # what it says to autocast, which does not know the meta device
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    reached, untraced = _reached(module, signals=signals, embeddings=embeddings)
    return Counts(decoder.n_parameters(), reached, untraced)


def _reached(module: Any, *, signals: Mapping[str, SignalSpec],
             embeddings: Mapping[str, EmbeddingSpec]) -> tuple[frozenset[str] | None, str]:
    """Run one training step on the meta device; return the names of the parameters with a gradient, or why not."""
    n = TRIALS * len(signals)
    batch = BrainBatch(
        signals={subject: torch.empty(TRIALS, spec.n_channels, spec.n_times, device="meta")
                 for subject, spec in signals.items()},
        rows={subject: torch.arange(i * TRIALS, (i + 1) * TRIALS).to("meta") for i, subject in enumerate(signals)},
        stimulus_ids=[str(i) for i in range(n)],
        targets={name: torch.empty(n, *spec.shape, device="meta") for name, spec in embeddings.items()})
    try:
        module.train()
        with torch.random.fork_rng(devices=[]):
            module.training_step(batch, 0).backward()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        log.warning("a training step cannot be traced on the meta device (%s): which parameters are reached is not "
                    "checked", reason)
        return None, reason
    return frozenset(name for name, p in module.named_parameters() if p.grad is not None), ""
