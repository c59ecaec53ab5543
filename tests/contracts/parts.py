"""The YAML files of a group as parts, and the sizes on which they are built here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from brain2img.records import EmbeddingSpec, SignalSpec

INTERFACES = {"adapter": "SubjectAdapter", "augmentation": "Augmentation", "captioner": "Captioner",
              "decoder": "Decoder",
              "encoder": "Encoder", "head": "Head", "metric": "Metric", "prior": "Prior",
              "reconstructor": "Reconstructor", "space": "Space", "study": "Study"}
CONFIGS = Path(__file__).parents[2] / "configs"
PRIOR = {"_target_": "brain2img.priors.diffusion.DiffusionPrior", "training": {"steps": 2, "batch_size": 8, "lr": 1e-3},
         "network": {"_target_": "brain2img.priors.networks.EmbeddingUNet", "_partial_": True, "hidden": [16, 8],
                     "time_width": 16}}
VALUES = {"${prior}": PRIOR, "${raw}": None, "${seed}": 0}
"""What stands for the parts of a configuration that a file of a group refers to."""


def content(path: Path) -> dict[str, Any]:
    """Return what a file of a group says, with the files of the group that it is based on."""
    own = yaml.safe_load(path.read_text())
    merged: dict[str, Any] = {}
    for name in own.pop("defaults", []):
        if name != "_self_":
            merged = _merged(merged, content(path.with_name(f"{name}.yaml")))
    return _resolved(_merged(merged, own))


def _merged(a: Any, b: Any) -> Any:
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return b
    return {**a, **{k: _merged(a[k], v) if k in a else v for k, v in b.items()}}


def _resolved(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _resolved(v) for k, v in value.items()}
    return VALUES.get(value, value) if isinstance(value, str) else value


def parts(group: str) -> list[Any]:
    """Return (key or "", configuration of a part) for every YAML of a group, as parameters of a test."""
    found = []
    for path in sorted((CONFIGS / group).rglob("*.yaml")):
        said = content(path)
        for key, part in ({"": said} if "_target_" in said else said).items():
            found.append(pytest.param(key, part, id=str(path.relative_to(CONFIGS / group).with_suffix(""))))
    return found


def eeg(subject: str, *, n_channels: int = 9, n_times: int = 250) -> SignalSpec:
    """Return signals of an EEG of 250 Hz, sensors on a sphere."""
    z = np.linspace(0.1, 0.9, n_channels)
    angle, radius = np.arange(n_channels) * 2.4, np.sqrt(1 - z**2)
    return SignalSpec(subject=subject, modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0,
                      ch_names=tuple(f"E{i}" for i in range(n_channels)), ch_types=("eeg",) * n_channels,
                      positions=0.09 * np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1))


def fmri(subject: str, *, n_voxels: int = 60) -> SignalSpec:
    """Return betas of voxels that lie in a volume of 28 x 28 x 28."""
    places = np.linspace(0, 28**3 - 1, n_voxels).astype(int)
    return SignalSpec(subject=subject, modality="fmri", units="a.u.", n_channels=n_voxels, n_times=1,
                      ijk=np.stack(np.unravel_index(places, (28, 28, 28)), axis=1), affine=np.diag([2.0, 2, 2, 1]),
                      volume_shape=(28, 28, 28))


SIGNALS = {"eeg": {s: eeg(s) for s in ("sub-01", "sub-02")},
           "fmri": {"sub-01": fmri("sub-01"), "sub-02": fmri("sub-02", n_voxels=45)}}


def spec(name: str, *shape: int, **known: Any) -> EmbeddingSpec:
    """Return what embeddings of a space are."""
    return EmbeddingSpec(name=name, shape=shape, **known)
