"""An encoding model turned round: signals predicted from features of pictures, pictures found by likelihood."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from brain2img.artifacts import digest, read_arrays, writing
from brain2img.interfaces import Decoder
from brain2img.layers import StandardParts
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec

log = logging.getLogger(__name__)

FILE = "encoding.npz"


class EncodingModel(Decoder):
    """Kernel ridge from the features of a picture to a subject's mean response, and identification by likelihood.

    Kay et al. 2008 (https://doi.org/10.1038/nature06713) identify natural pictures so, with receptive fields in place
    of a backbone's layers and the correlation in place of the likelihood. With r = x - p(picture) Gaussian of
    covariance S (residuals of training stimuli that were left out one by one, shrunk towards a multiple of the
    identity), the log-likelihood is ``p' S^-1 x - p' S^-1 p / 2`` up to what is the same for all pictures. Kernel
    width, penalty and shrinkage are chosen by the mean reciprocal rank of validation stimuli, or where the split has
    none of training stimuli that were left out, 200 at a time.

    What it decodes is a learned space, such that the cosine ranks by the likelihood: ``n_components`` axes of each
    subject, one for ``p' S^-1 p / 2`` and one that brings all pictures to the same length. A subject's decoded vector
    is 0 on the axes of the others. An unseen subject has no model.

    Parameters
    ----------
    specs
        Subject -> its signals.
    targets
        Space -> what its embeddings are (layers of a backbone: `brain2img.spaces.layers`).
    seed
        Of the drawn galleries.
    bin
        Successive samples that are averaged to one first.
    n_features
        Principal components of each part of the embedding (layer), at most.
    n_components
        Axes of the space for each subject: directions in which predicted responses differ most.
    widths
        Kernels to choose from: g of ``exp(-g d^2)``, with d^2 1 for the mean square of the features; 0 is linear.
    penalties
        Penalties to choose from, as shares of the number of training stimuli.
    shrinkages
        Shares of the identity in S to choose from, in (0, 1].

    Raises
    ------
    ValueError
        If a setting is impossible.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], targets: Mapping[str, EmbeddingSpec], seed: int = 0,
                 bin: int = 1, n_features: int | None = 512, n_components: int = 256,
                 widths: Sequence[float] = (0.0, 0.25, 0.5, 1.0), penalties: Sequence[float] = (3e-4, 1e-3, 3e-3, 1e-2),
                 shrinkages: Sequence[float] = (0.2, 0.5, 0.8)) -> None:
        if bin < 1 or n_components < 1 or not widths or min(widths) < 0 or not penalties or min(penalties) <= 0 or (
                not shrinkages or min(shrinkages) <= 0 or max(shrinkages) > 1):
            raise ValueError("encoding model: expected bin and n_components of 1 or more, widths of 0 or more, "
                             f"penalties above 0 and shrinkages in (0, 1], got {bin}, {n_components}, {list(widths)}, "
                             f"{list(penalties)} and {list(shrinkages)}. Correct the decoder group.")
        self.specs, self.targets, self.seed, self.bin = dict(specs), dict(targets), seed, bin
        self.n_components, self.n_features = n_components, n_features
        self.widths, self.penalties, self.shrinkages = list(widths), list(penalties), list(shrinkages)
        self._parts: dict[str, StandardParts] = {}
        self._state: dict[str, np.ndarray] = {}

    def fit(self, data: Any, *, folder: Path) -> None:
        """Fit every subject and space on the mean responses to training stimuli; see `Decoder.fit`."""
        self._state = {}
        for i, space in enumerate(self.targets):
            self._parts[space] = self._fresh(space)
            self._parts[space].fit(torch.from_numpy(data.training_targets(space)).flatten(1))
            for j, subject in enumerate(self.specs):
                train, val = (self._responses(data, subject, space, split=split) for split in ("train", "val"))
                assert train is not None, "every subject has training trials"
                fitted = self._fit_one(*train, val=val, what=f"{subject}, {space}")
                self._state |= {f"{i}/{j}/{key}": value for key, value in fitted.items()}

    def _responses(self, data: Any, subject: str, space: str, *, split: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return mean responses ``(n, p)`` to the stimuli of a split and their features; None where it has none."""
        items = data.items(split)
        items = items[items["subject"] == subject]
        if items.empty:
            return None
        return (self._flat(data.signals(subject, items["trial_ids"].tolist())),
                self._features(space, data.target(space, items["stimulus_id"].tolist())))

    def _fit_one(self, x: np.ndarray, features: np.ndarray, *, val: tuple[np.ndarray, np.ndarray] | None,
                 what: str) -> dict[str, np.ndarray]:
        """Return the arrays of one subject and space: mean, kernel, map to responses, spatial filters."""
        if len(x) < 3:
            raise ValueError(f"encoding model, {what}: expected at least 3 training stimuli, got {len(x)}. Use more.")
        mean, n = x.mean(axis=0), len(x)
        halves = np.array_split(np.random.default_rng([self.seed, 51]).permutation(n), 2)
        best: tuple[float, tuple[float, float, float]] = (-1.0, (0.0, 0.0, 0.0))
        for width in self.widths:
            values, vectors = np.linalg.eigh(_kernel(features, features, width=width))
            new = None if val is None else _kernel(val[1], features, width=width)
            for penalty in self.penalties:
                weights, residual = _ridge(values, vectors, x - mean, penalty=penalty)
                if new is not None and val is not None:
                    trials = [(residual, val[0] - mean, new @ weights)]
                else:  # halves of the training stimuli: the covariance must not know what it is tried on
                    trials = [(residual[b], x[a] - mean, (x - mean - residual)[a]) for a, b in (halves, halves[::-1])]
                scores = np.zeros(len(self.shrinkages))
                for known, seen, predicted in trials:
                    power, axes = np.linalg.eigh(known.T @ known / len(known))
                    scores += [_identified(seen @ axes * scale, predicted @ axes * scale) / len(trials)
                               for scale in (_whitening(power, share) for share in self.shrinkages)]
                if scores.max() > best[0]:
                    best = (float(scores.max()), (width, penalty, self.shrinkages[int(scores.argmax())]))
        score, (width, penalty, shrinkage) = best
        log.info("encoding model, %s: kernel %g, penalty %g, shrinkage %g: mean reciprocal rank %.2f of %s", what,
                 width, penalty, shrinkage, score, "left-out training stimuli" if val is None else "validation stimuli")
        values, vectors = np.linalg.eigh(_kernel(features, features, width=width))
        weights, residual = _ridge(values, vectors, x - mean, penalty=penalty)
        power, axes = np.linalg.eigh(residual.T @ residual / n)
        whiten = axes * _whitening(power, shrinkage)
        responses = _kernel(features, features, width=width) @ weights @ whiten
        _, _, right = np.linalg.svd(responses - responses.mean(axis=0), full_matrices=False)
        # the mean response is kept beside what differs, or the likelihood would lose its offset
        kept, _ = np.linalg.qr(np.concatenate([responses.mean(axis=0)[None], right[:self.n_components - 1]]).T)
        filters = whiten @ kept
        maps = weights @ filters
        norms = np.linalg.norm(_augmented(_kernel(features, features, width=width) @ maps), axis=1)
        return {"mean": mean.astype(np.float32), "features": features.astype(np.float32),
                "maps": maps.astype(np.float32), "filters": filters.astype(np.float32),
                "facts": np.array([width, penalty, shrinkage, score, 1.25 * norms.max()])}

    def learned_spaces(self) -> dict[str, tuple[EmbeddingSpec, Callable[[np.ndarray], np.ndarray]]]:
        """Return the space of all subjects' likelihoods; see `Decoder.learned_spaces`."""
        return {space: (EmbeddingSpec(name=space, shape=(self._width(i),), dtype="float32", kind=spec.kind,
                                      uid=digest(["encoding", spec.uid])), self._view(i, space))
                for i, (space, spec) in enumerate(self.targets.items())}

    def _view(self, i: int, space: str) -> Callable[[np.ndarray], np.ndarray]:
        def true(target: np.ndarray) -> np.ndarray:
            features = self._features(space, np.asarray(target, dtype=np.float32))
            blocks = []
            for j in range(len(self.specs)):
                width, limit = self._of(i, j, "facts")[[0, 4]]
                kernel = _kernel(features, self._of(i, j, "features"), width=width)
                responses = _augmented(kernel @ self._of(i, j, "maps"))
                rest = np.sqrt((limit**2 - (responses**2).sum(axis=1)).clip(0))[:, None]
                blocks += [responses / limit, rest / limit]  # each subject's block has length 1
            return np.concatenate(blocks, axis=1).astype(np.float32)
        return true

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, D)``; see the class and `Decoder.predict`."""
        out = {space: np.zeros((len(batch), self._width(i)), dtype=np.float32) for i, space in enumerate(self.targets)}
        for subject, signals in batch.signals.items():
            if subject not in self.specs:
                raise ValueError(f"encoding model: expected one of the subjects {sorted(self.specs)}, got {subject!r}. "
                                 "Every subject needs a model of its own: train one with this subject.")
            x, places = self._flat(signals.cpu().numpy()), batch.rows[subject].cpu().numpy()
            for i, space in enumerate(self.targets):
                j = list(self.specs).index(subject)
                start = sum(self._of(i, k, "maps").shape[1] + 2 for k in range(j))
                seen = (x - self._of(i, j, "mean")) @ self._of(i, j, "filters")
                out[space][places, start:start + seen.shape[1]] = seen
                out[space][places, start + seen.shape[1]] = 1.0
        return out

    def _width(self, i: int) -> int:
        return sum(self._of(i, j, "maps").shape[1] + 2 for j in range(len(self.specs)))

    def _of(self, i: int, j: int, key: str) -> np.ndarray:
        return self._state[f"{i}/{j}/{key}"]

    def _fresh(self, space: str) -> StandardParts:
        spec = self.targets[space]
        return StandardParts(dict(spec.parts) or {space: spec.size}, n_components=self.n_features)

    def _features(self, space: str, target: np.ndarray) -> np.ndarray:
        """Return the features ``(n, P)`` float64 of true embeddings; each part has the same mean square, 1 in all."""
        parts = self._parts[space](torch.from_numpy(target).flatten(1))
        scaled = [part / (part.shape[1] * len(parts)) ** 0.5 for part in parts]
        return np.concatenate([part.numpy().astype(np.float64) for part in scaled], axis=1)

    def _flat(self, x: np.ndarray) -> np.ndarray:
        """Return signals ``(n, C, T)`` with averaged samples, flat, float64."""
        n_times = x.shape[2] // self.bin * self.bin
        averaged = x[:, :, :n_times].reshape(len(x), x.shape[1], -1, self.bin).mean(axis=3)
        return averaged.reshape(len(x), -1).astype(float)

    def save(self, folder: Path) -> None:
        """Write ``encoding.npz``."""
        stored = dict(self._state)
        for i, space in enumerate(self.targets):
            stored |= {f"{i}/parts/{key}": value.numpy() for key, value in self._parts[space].state_dict().items()}
        with writing(Path(folder) / FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **stored)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses a model of other subjects, signals or spaces."""
        path = Path(folder) / FILE
        stored = read_arrays(path)
        self._state = {key: value for key, value in stored.items() if "/parts/" not in key}
        for i, space in enumerate(self.targets):
            self._parts[space] = self._fresh(space)
            parts = {key.split("/parts/")[1]: torch.from_numpy(value) for key, value in stored.items()
                     if key.startswith(f"{i}/parts/")}
            try:
                self._parts[space].load_state_dict(parts)
                for j, spec in enumerate(self.specs.values()):
                    size, got = spec.n_channels * (spec.n_times // self.bin), len(self._of(i, j, "mean"))
                    if got != size:
                        raise RuntimeError(f"{got} values of subject {spec.subject!r} for {size}")
            except (RuntimeError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"checkpoint {path}: expected a model of subjects {sorted(self.specs)} and space "
                                 f"{space!r}, got another ({reason}). Train this run again.") from error

    @classmethod
    def tiny(cls) -> Self:
        """Return a model for one subject with 4 channels and a space of 3 dimensions."""
        spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=4, n_times=1)
        return cls(specs={"sub-01": spec}, targets={"clip": EmbeddingSpec(name="clip", shape=(3,))})


def _kernel(a: np.ndarray, b: np.ndarray, *, width: float) -> np.ndarray:
    """Return ``(n, m)`` kernel of rows: ``exp(-width d^2)``, or their product where the width is 0."""
    product = a @ b.T
    if width == 0:
        return product
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * product
    return np.exp(-width * squared.clip(0))


def _ridge(values: np.ndarray, vectors: np.ndarray, y: np.ndarray, *, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return dual weights ``(n, p)`` and, in closed form, the residuals of rows that are each fitted without.

    Parameters
    ----------
    values, vectors
        Eigenvalues and vectors of the kernel ``(n, n)``.
    y
        ``(n, p)`` centred responses.
    penalty
        Share of n that is added to the eigenvalues.
    """
    inverse = (vectors / (values.clip(0) + penalty * len(y))) @ vectors.T
    weights = inverse @ y
    return weights, weights / np.diag(inverse)[:, None]


def _whitening(power: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the scale of each axis: the inverse square root of its shrunk variance."""
    return ((1 - shrinkage) * power.clip(0) + shrinkage * power.mean()) ** -0.5


def _augmented(responses: np.ndarray) -> np.ndarray:
    """Return whitened responses ``(n, r)`` with minus half their squared length beside them."""
    return np.concatenate([responses, -0.5 * (responses**2).sum(axis=1, keepdims=True)], axis=1)


def _identified(seen: np.ndarray, predicted: np.ndarray, *, gallery: int = 200) -> float:
    """Return the mean reciprocal rank of the right one by likelihood, in galleries of successive rows."""
    reciprocal_ranks = []
    for start in range(0, len(seen) - min(gallery, len(seen)) + 1, gallery):
        x, p = seen[start:start + gallery], predicted[start:start + gallery]
        score = x @ p.T - 0.5 * (p**2).sum(axis=1)
        reciprocal_ranks.append((1 / (score >= np.diag(score)[:, None]).sum(axis=1)).mean())
    return float(np.mean(reciprocal_ranks))
