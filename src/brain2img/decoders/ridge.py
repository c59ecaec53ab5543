"""Ridge regression from signals to embeddings: the baseline beside every deep decoder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from brain2img.artifacts import read_array, write_array, write_json
from brain2img.interfaces import Decoder
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec

log = logging.getLogger(__name__)


class Ridge(Decoder):
    """One linear map per subject and space, with the penalty chosen per target by cross-validation (himalaya).

    Solved in the kernel form (one eigendecomposition per fold), since recordings have more channels than stimuli
    (Dupre la Tour et al. 2022, https://doi.org/10.1016/j.neuroimage.2022.119728; https://github.com/gallantlab/himalaya).
    Repetitions of a training stimulus are averaged first, so that the inner folds never share a stimulus.

    Parameters
    ----------
    specs
        Subject -> its signals.
    targets
        Space -> its embeddings.
    seed
        Seed of the inner folds.
    alphas
        (smallest, largest, number) of the penalties tried, logarithmically spaced, as multiples of the mean squared
        norm of a training trial.
    cv
        Number of inner folds.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], targets: Mapping[str, EmbeddingSpec], seed: int = 0,
                 alphas: tuple[float, float, int] = (1e-4, 1e4, 17), cv: int = 5) -> None:
        self.specs, self.targets = dict(specs), dict(targets)
        self.seed, self.cv = seed, cv
        self.alphas = np.logspace(np.log10(alphas[0]), np.log10(alphas[1]), int(alphas[2]))
        self._weights: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, data: Any, *, folder: Path) -> None:
        """Fit every subject and space on the repetition-averaged training stimuli of `data`.

        Raises
        ------
        ValueError
            If a subject has fewer training stimuli than folds.
        """
        from himalaya.backend import set_backend
        from himalaya.kernel_ridge import KernelRidgeCV
        from sklearn.model_selection import KFold

        # four times faster than himalaya's numpy backend, on the CPU too
        set_backend("torch_cuda" if torch.cuda.is_available() else "torch")
        items = data.items("train")
        for subject in self.specs:
            mine = items[items["subject"] == subject]
            if len(mine) < 2 * self.cv:
                raise ValueError(f"training stimuli of subject {subject!r}: expected at least {2 * self.cv} for "
                                 f"{self.cv} inner folds, got {len(mine)}. Lower decoder.cv or add trials.")
            x = data.signals(subject, mine["trial_ids"].tolist()).reshape(len(mine), -1)
            y = np.concatenate([data.target(space, mine["stimulus_id"].tolist()).reshape(len(mine), -1)
                                for space in self.targets], axis=1)
            centre = x.mean(axis=0)
            x -= centre
            unit = np.sqrt(np.mean(np.sum(x**2, axis=1)))
            y_mean = y.mean(axis=0)
            folds = KFold(self.cv, shuffle=True, random_state=self.seed)
            model = KernelRidgeCV(alphas=self.alphas, kernel="precomputed", cv=folds,
                                  solver_params={"n_targets_batch": 2000}, warn=False)
            scaled = x / unit
            model.fit(scaled @ scaled.T, y - y_mean)
            coefficients = (scaled.T @ model.dual_coef_.cpu().numpy().astype(np.float32)) / unit
            intercept = y_mean - centre @ coefficients
            log.info("ridge %s: %d stimuli, %d features, %d targets, median penalty %.3g", subject, *x.shape,
                     y.shape[1], float(model.best_alphas_.median()))
            start = 0
            for space, spec in self.targets.items():
                cut = slice(start, start + spec.size)
                self._weights[subject, space] = coefficients[:, cut], intercept[cut]
                start += spec.size

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, *shape)`` float32."""
        out = {space: np.empty((len(batch), *spec.shape), dtype=np.float32) for space, spec in self.targets.items()}
        for subject, x in batch.signals.items():
            flat = x.numpy().reshape(len(x), -1)
            for space, spec in self.targets.items():
                coefficients, intercept = self._weights[subject, space]
                out[space][batch.rows[subject].numpy()] = (flat @ coefficients + intercept).reshape(-1, *spec.shape)
        return out

    def coefficients(self, subject: str, space: str) -> np.ndarray:
        """Return the map ``(C * T, D)`` from a subject's normalised signals to a space."""
        return self._weights[subject, space][0]

    def save(self, folder: Path) -> None:
        """Write coefficients ``(C * T, D)`` and intercepts ``(D,)`` of every subject and space."""
        index = []
        for i, ((subject, space), (coefficients, intercept)) in enumerate(self._weights.items()):
            write_array(folder / f"ridge_{i}.npy", np.concatenate([coefficients, intercept[None]]).astype(np.float32))
            index.append({"subject": subject, "space": space, "file": f"ridge_{i}.npy"})
        write_json(folder / "ridge.json", index)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses weights of other subjects, spaces or sizes."""
        path = folder / "ridge.json"
        if not path.exists():
            raise ValueError(f"checkpoint {folder}: expected ridge.json, got nothing. Train this run again.")
        index = {(entry["subject"], entry["space"]): entry["file"] for entry in json.loads(path.read_text())}
        for subject, signal in self.specs.items():
            for space, spec in self.targets.items():
                shape = (signal.n_channels * signal.n_times + 1, spec.size)
                if (subject, space) not in index:
                    raise ValueError(f"checkpoint {path}: expected weights of subject {subject!r} for space {space!r}, "
                                     f"got {sorted(index)}. Train this run with that subject and space.")
                weights = read_array(folder / index[subject, space])
                if weights.shape != shape:
                    raise ValueError(
                        f"checkpoint {path}: expected weights {shape} for subject {subject!r} and space {space!r}, "
                        f"got {weights.shape}. This run was trained on other signals; train it again.")
                self._weights[subject, space] = weights[:-1], weights[-1]

    @classmethod
    def tiny(cls) -> Self:
        """Return a ridge for one subject with 4 channels and a space of 3 dimensions."""
        spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=4, n_times=1)
        return cls(specs={"sub-01": spec}, targets={"clip": EmbeddingSpec(name="clip", shape=(3,))}, cv=2)
