"""Bayesian reconstruction of simple shapes from a few dozen trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from brain2img.artifacts import read_arrays, writing
from brain2img.decoders.shape_posterior import ShapePosterior
from brain2img.interfaces import Decoder
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec

log = logging.getLogger(__name__)


class BayesianReconstruction(Decoder):
    """Voxels -> image codes -> posterior over variants of the training shapes -> image, for each subject.

    The method and its sources stand in `brain2img.decoders.shape_posterior`. The image prior is made of the training
    stimuli of the split alone.

    Parameters
    ----------
    specs
        Subject -> its signals.
    targets
        Space -> its embeddings; every one must hold grey images ``(1, h, h)`` in [0, 1].
    seed
        Of the dictionary and the inner folds.
    dictionary_size, code_count, code_blur, fidelity, draws, steps, jitter
        As in `ShapePosterior`.

    Raises
    ------
    ValueError
        If a space is not one of grey images.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], targets: Mapping[str, EmbeddingSpec], seed: int = 0,
                 dictionary_size: int = 16000, code_count: int = 20, code_blur: float = 1.0, fidelity: float = 20.0,
                 draws: int = 64, steps: int = 30, jitter: float = 1.0) -> None:
        for name, spec in targets.items():
            if len(spec.shape) != 3 or spec.shape[0] != 1 or spec.shape[1] != spec.shape[2]:
                raise ValueError(f"space {name!r}: expected grey images (1, h, h) for BayesianReconstruction, got "
                                 f"{spec.shape}. Use space=[pixels] with space.pixels.grey=true.")
        self.specs, self.targets = dict(specs), dict(targets)
        self._models = {(subject, space): ShapePosterior(
            dictionary_size=dictionary_size, code_count=code_count, code_blur=code_blur, fidelity=fidelity,
            draws=draws, steps=steps, jitter=jitter, seed=seed) for subject in specs for space in targets}

    def fit(self, data: Any, *, folder: Path) -> None:
        """Fit every subject on its repetition-averaged training stimuli."""
        items = data.items("train")
        for (subject, space), model in self._models.items():
            rows = items[items["subject"] == subject]
            x = data.signals(subject, rows["trial_ids"].tolist()).reshape(len(rows), -1)
            model.fit(x, data.target(space, rows["stimulus_id"].tolist())[:, 0])
            log.info("bayesian reconstruction %s: %d stimuli, %d features, temperature %.2f", subject, *x.shape,
                     model.temperature)

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, 1, h, h)`` float32 in [0, 1]."""
        out = {space: np.empty((len(batch), *spec.shape), dtype=np.float32) for space, spec in self.targets.items()}
        for (subject, space), model in self._models.items():
            if subject in batch.signals:
                x = batch.signals[subject].numpy().reshape(len(batch.rows[subject]), -1)
                out[space][batch.rows[subject].numpy()] = model.predict(x)[:, None]
        return out

    def _file(self, folder: Path, index: int) -> Path:
        return folder / f"shape_posterior_{index}.npz"

    def save(self, folder: Path) -> None:
        """Write one compressed file per subject and space (about 5 MB)."""
        for index, ((subject, space), model) in enumerate(self._models.items()):
            with writing(self._file(folder, index)) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, subject=subject, space=space, **model.state())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses weights of other subjects, spaces or numbers of voxels."""
        for index, ((subject, space), model) in enumerate(self._models.items()):
            path = self._file(folder, index)
            state = read_arrays(path, keys=("subject", "space"))
            spec = self.specs[subject]
            stored = (str(state.pop("subject")), str(state.pop("space")), state["regression_centre"].size)
            if stored != (subject, space, spec.n_channels * spec.n_times):
                raise ValueError(f"checkpoint {path}: expected subject, space and features "
                                 f"{(subject, space, spec.n_channels * spec.n_times)}, got {stored}. "
                                 "This run was trained on other signals; train it again.")
            model.load_state(state)

    @classmethod
    def tiny(cls) -> Self:
        """Return a decoder for one subject with 4 voxels and 8 x 8 images, with a small dictionary."""
        spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=4, n_times=1)
        return cls(specs={"sub-01": spec}, targets={"pixels": EmbeddingSpec(name="pixels", shape=(1, 8, 8))},
                   dictionary_size=200, steps=2)
