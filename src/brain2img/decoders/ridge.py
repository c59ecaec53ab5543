"""Ridge regression from signals to embeddings: the baseline beside every deep decoder, and the linear family."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from brain2img.artifacts import (
    ArrayWriter,
    StoredRows,
    digest,
    read_array,
    read_begun,
    read_json,
    write_array,
    write_json,
)
from brain2img.data.rois import labels_of, voxels_of
from brain2img.decoders.ridge_problem import Problem
from brain2img.decoders.ridge_solver import Choice, Decomposition, choose, decompose, gram, renormalisation
from brain2img.interfaces import Decoder
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec

log = logging.getLogger(__name__)

#: Memory of one chunk of targets, and of the targets whose penalties are chosen at once (bytes).
CHUNK, AT_ONCE = 128_000_000, 1_500_000_000
#: Penalties that are tried where none are given, as multiples of the mean squared norm of a training trial.
ALPHAS = (1e-4, 1e4, 17)
#: What the map of all subjects together is called where a subject's name would stand.
POOLED = "(all)"
#: Weights of the ROIs that are tried.
N_WEIGHTS = 40
#: A number, or (smallest, largest, number) of penalties.
Grid = float | Sequence[float]


class Ridge(Decoder):
    """One linear map per subject and space, or per space (himalaya chooses the penalties; closed form solves).

    Solved in the kernel form where recordings have more channels than stimuli (Dupre la Tour et al. 2022,
    https://doi.org/10.1016/j.neuroimage.2022.119728; https://github.com/gallantlab/himalaya): one eigendecomposition
    for each inner fold and one for the coefficients. These are written to files, chunk by chunk of targets, and read
    from them chunk by chunk when they predict, so that a subject of NSD and 257 x 768 tokens need a few GB of memory;
    a fit that was killed goes on at the chunk it was in.

    With the options below it is the model of Takagi & Nishimoto (https://doi.org/10.1101/2022.11.18.517004), of
    Brain-Diffuser (https://arxiv.org/abs/2303.05334) and of Brain Captioning (https://arxiv.org/abs/2305.11560); what
    they publish stands in ``configs/experiment/published``. Deviations: inner folds never share a stimulus; s.d. of
    signals are divided by n (Brain-Diffuser: n - 1); what Brain-Diffuser estimates from all test predictions together
    comes from held-out training predictions (`rescale`), so that a single trial can be decoded.

    Parameters
    ----------
    specs
        Subject -> its signals.
    targets
        Space -> its embeddings.
    seed
        Seed of the inner folds, of the sample of targets and of the weights of bands.
    alphas
        (smallest, largest, number) of the penalties tried, logarithmically spaced, or one number that is taken
        untried; for all spaces, or space -> either. None: `ALPHAS` for all.
    relative
        Penalties are multiples of the mean squared norm of a training trial; False: they are what they are.
    penalty
        "target": each target has its own; where the targets do not fit into memory together, the inner folds are
        decomposed anew for every part. "space": one for a space, by the error of a sample of its targets.
    sample
        Size of that sample.
    cv
        Number of inner folds.
    rois
        Space -> labels (or patterns) of the regions it is decoded from; all voxels for the others, or where None.
    bands
        "rois": voxels of each ROI are one band with a weight of its own in a space (banded ridge), chosen among
        `N_WEIGHTS` with the penalty; takes penalty="space". Each weight costs as many decompositions as there are
        folds.
    standardise
        Bring every voxel to unit variance over the training trials.
    rescale
        "training": give the predictions of each target the mean and s.d. that the target has in training, instead of
        those that leave-one-out predictions of the training stimuli have (closed form). After Brain-Diffuser, which
        uses the mean and s.d. of the test predictions: transductive, and not to be had for a single trial.
    trials
        "averaged": over the repetitions of a training stimulus; "single": each is a row (Takagi & Nishimoto).
    pooled
        One map for all subjects together, who must have the same channels: each subject's mean over the repetitions of
        a stimulus is a row. It serves subjects it was not fitted on, too. All rows lie in memory.

    Raises
    ------
    ValueError
        If an option is unknown, options contradict each other, a subject has no voxels of an ROI, or subjects that are
        pooled differ in their channels.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], targets: Mapping[str, EmbeddingSpec], seed: int = 0,
                 alphas: Grid | Mapping[str, Grid | None] | None = None, relative: bool = True, penalty: str = "target",
                 sample: int = 1000, cv: int = 5, rois: Mapping[str, Sequence[str]] | None = None,
                 bands: str | None = None, standardise: bool = False, rescale: str | None = None,
                 trials: str = "averaged", pooled: bool = False) -> None:
        self.specs, self.targets, self.seed = dict(specs), dict(targets), seed
        self.penalty, self.sample, self.cv, self.bands = penalty, sample, cv, bands
        self.relative, self.standardise, self.rescale, self.trials = relative, standardise, rescale, trials
        self.pooled = pooled
        self._refuse_options()
        self.alphas = self._grids(alphas)
        named = {space: tuple(patterns) for space, patterns in (rois or {}).items() if patterns is not None}
        if unknown := sorted(set(named) - set(self.targets)):
            raise ValueError(f"decoder.rois: expected spaces of {sorted(self.targets)}, got {unknown}. Correct them.")
        self.rois = {space: named.get(space, ()) for space in self.targets}
        # of the values of a signal, channel by channel, those that a space is decoded from
        self._features = {(subject, space): np.arange(spec.n_channels * spec.n_times).reshape(-1, spec.n_times)
                          [voxels_of(spec, self.rois[space] or None)].ravel()
                          for subject, spec in self._models().items() for space in self.targets}
        self._weights: dict[tuple[str, str], StoredRows] = {}

    def _refuse_options(self) -> None:
        for name, known in (("penalty", ("target", "space")), ("bands", (None, "rois")),
                            ("rescale", (None, "training")), ("trials", ("averaged", "single"))):
            if getattr(self, name) not in known:
                raise ValueError(f"decoder.{name}: expected one of {known}, got {getattr(self, name)!r}. Correct it.")
        if self.bands and self.penalty == "target":
            raise ValueError("decoder.bands: expected decoder.penalty=space, got penalty=target. Weights of bands are "
                             "shared by the targets of a space: set penalty=space.")
        if self.rescale and self.trials == "single":
            raise ValueError("decoder.rescale: expected decoder.trials=averaged, got single. Leave-one-out predictions "
                             "of a trial know the others of its stimulus: set rescale=null or trials=averaged.")

        for spec in self.specs.values() if self.pooled else ():
            first = next(iter(self.specs.values()))
            if (spec.ch_names, spec.n_channels, spec.n_times) != (first.ch_names, first.n_channels, first.n_times):
                raise ValueError(f"decoder.pooled: expected the channels and samples of subject {first.subject!r} for "
                                 f"subject {spec.subject!r}, got others. Choose the same for all with "
                                 "data.channels=[...], or set decoder.pooled=false.")

    def _models(self) -> dict[str, SignalSpec]:
        """Return what each map is of -> its signals: a subject, or all of them."""
        return {POOLED: next(iter(self.specs.values()))} if self.pooled else self.specs

    def _model(self, subject: str) -> str:
        if self.pooled or subject in self.specs:
            return POOLED if self.pooled else subject
        raise ValueError(f"ridge: expected a subject that it was fitted on, {sorted(self.specs)}, got {subject!r}. Its "
                         "maps are each of one subject: set decoder.pooled=true for one map that serves all.")

    def _grids(self, alphas: Grid | Mapping[str, Grid | None] | None) -> dict[str, np.ndarray]:
        alphas = ALPHAS if alphas is None else alphas
        given = ({space: grid for space, grid in alphas.items() if grid is not None} if isinstance(alphas, Mapping)
                 else dict.fromkeys(self.targets, alphas))
        if set(given) != set(self.targets):
            raise ValueError(f"decoder.alphas: expected one entry for each of the spaces {sorted(self.targets)}, got "
                             f"{sorted(given)}. Correct them.")
        grids = {}
        for space, values in given.items():
            low, high, n = (values, values, 1) if isinstance(values, (int, float)) else values
            if not 0 < low <= high or int(n) < 1:
                raise ValueError(f"decoder.alphas of space {space!r}: expected a penalty above 0, or (smallest, "
                                 f"largest, number), got {values}. Correct them.")
            grids[space] = np.logspace(np.log10(low), np.log10(high), int(n))
        return grids

    # ---- fit

    def fit(self, data: Any, *, folder: Path) -> None:
        """Fit every subject and space on the training stimuli of `data`, or go on with what an earlier call began.

        Raises
        ------
        ValueError
            If a subject has fewer training stimuli than folds, or is to be decoded and has no map.
        """
        for subject in data.unseen:
            self._model(subject)
        for number, subject in enumerate(self._models()):
            by_rois: dict[tuple[str, ...], list[str]] = {}
            for space in self.targets:
                by_rois.setdefault(self.rois[space], []).append(space)
            for spaces in by_rois.values():
                problem = Problem.of(data, subject, of=list(self.specs) if self.pooled else None,
                                     features=self._features[subject, spaces[0]], single=self.trials == "single",
                                     standardise=self.standardise, relative=self.relative, cv=self.cv)
                places = {space: folder / f"ridge_{number}_{list(self.targets).index(space)}" for space in spaces}
                self._fit(data, problem, places)
                for space, place in places.items():
                    self._weights[subject, space] = StoredRows(place / "coefficients.npy")

    def _fit(self, data: Any, problem: Problem, places: Mapping[str, Path]) -> None:
        content = problem.content()
        for space, place in places.items():
            some = data.target_columns(space, problem.stimuli, start=0, stop=min(64, self.targets[space].size))
            _begin(place, identity=digest([
                problem.subject, problem.stimuli, content, self.targets[space].to_json(), self.alphas[space].tolist(),
                hashlib.sha256(some.data).hexdigest(), self.seed, self.relative, self.penalty, self.sample, self.cv,
                self.rois[space], self.bands, self.rescale]))
        undone = [space for space, place in places.items() if not (place / "coefficients.npy").exists()]
        if not undone:
            return
        kernel = gram(problem.x) if len(problem.x) <= problem.x.shape[1] else None
        self._choose(data, problem, {s: places[s] for s in undone}, kernel=kernel)
        shared = None if self.bands else decompose(problem.x, kernel=kernel)
        del kernel
        for space in undone:
            penalties = np.array(read_array(places[space] / "penalties.npy"))
            log.info("ridge %s, space %s: %d rows, %d features, %d targets, median penalty %.3g", problem.subject,
                     space, *problem.x.shape, self.targets[space].size, float(np.median(penalties)))
            scales = np.array(read_array(places[space] / "scales.npy"))
            x = problem.x if shared else problem.x * torch.from_numpy(scales).to(problem.x)
            self._stream(data, problem, space, x=x, how=shared or decompose(x), penalties=penalties,
                         scale=problem.scale * scales, place=places[space])

    def _choose(self, data: Any, problem: Problem, places: Mapping[str, Path], *, kernel: Tensor | None) -> None:
        """Write ``penalties.npy`` ``(D,)`` and ``scales.npy`` ``(p,)`` of every space that has none."""
        grids: dict[tuple[float, ...], list[str]] = {}
        for space, place in places.items():
            if not (place / "penalties.npy").exists():
                grids.setdefault(tuple(self.alphas[space]), []).append(space)
        for grid, spaces in grids.items():
            chosen = {}
            if len(grid) == 1 and not self.bands:
                chosen = {s: Choice(np.full(self.targets[s].size, grid[0]), np.ones((1, 1))) for s in spaces}
            elif self.penalty == "space":
                chosen = self._of_samples(data, problem, spaces, grid=np.array(grid), kernel=kernel)
            else:
                chosen = {s: self._of_targets(data, problem, s, grid=np.array(grid), kernel=kernel) for s in spaces}
            for space, choice in chosen.items():
                scales = np.ones(problem.x.shape[1], dtype=np.float32)
                for weight, (name, band) in zip(choice.bands[:, 0], self._bands(problem).items(), strict=False):
                    scales[band] = np.sqrt(weight)
                    if name:
                        log.info("ridge %s, space %s: weight %.3g of band %s", problem.subject, space, weight, name)
                write_array(places[space] / "scales.npy", scales)
                write_array(places[space] / "penalties.npy", choice.penalties)

    def _of_samples(self, data: Any, problem: Problem, spaces: list[str], *, grid: np.ndarray,
                    kernel: Tensor | None) -> dict[str, Choice]:
        """Choose for each space, on a sample of its targets, all in the same inner folds."""
        parts = []
        for i, space in enumerate(spaces):
            size = self.targets[space].size
            columns = np.arange(size) if size <= self.sample else np.sort(
                np.random.default_rng([self.seed, i, 11]).choice(size, self.sample, replace=False))
            parts.append(problem.sampled(data, space, columns))
        ends = np.cumsum([part.shape[1] for part in parts])
        groups = [slice(end - part.shape[1], end) for end, part in zip(ends.tolist(), parts, strict=True)]
        bands = list(self._bands(problem).values()) if self.bands else None
        y = np.concatenate(parts, axis=1)
        choice = choose(problem.x, y - y.mean(axis=0), penalties=grid, groups=groups, bands=bands, kernel=kernel,
                       folds=problem.folds(self.cv, seed=self.seed), n_weights=N_WEIGHTS if bands else 1,
                       seed=self.seed)
        return {space: Choice(np.full(self.targets[space].size, choice.penalties[group.start]),
                              choice.bands[:, group.start:group.start + 1])
                for space, group in zip(spaces, groups, strict=True)}

    def _of_targets(self, data: Any, problem: Problem, space: str, *, grid: np.ndarray,
                    kernel: Tensor | None) -> Choice:
        """Choose for each target, as many at a time as fit."""
        size, n = self.targets[space].size, len(problem.x)
        step = max(1, AT_ONCE // (4 * n))
        if size > step:
            log.warning("ridge %s: penalties of %d targets are chosen %d at a time, and the inner folds decomposed "
                        "anew for each part; decoder.penalty=space decomposes them once", problem.subject, size, step)
        choices = []
        for start in range(0, size, step):
            y = data.target_columns(space, problem.stimuli, start=start, stop=min(start + step, size))
            choices.append(choose(problem.x, y - y.mean(axis=0), penalties=grid, kernel=kernel,
                                folds=problem.folds(self.cv, seed=self.seed)).penalties)
        return Choice(np.concatenate(choices), np.ones((1, 1)))

    def _bands(self, problem: Problem) -> dict[str, np.ndarray]:
        """Return ROI -> its places among the features; one band without a name where there are no bands."""
        if not self.bands:
            return {"": np.arange(problem.x.shape[1])}
        spec = self._models()[problem.subject]
        labels = np.repeat(labels_of(spec), spec.n_times)[problem.features]
        return {str(name): np.flatnonzero(labels == name) for name in dict.fromkeys(labels)}

    def _stream(self, data: Any, problem: Problem, space: str, *, x: Tensor, how: Decomposition,
                penalties: np.ndarray, scale: np.ndarray, place: Path) -> None:
        """Write coefficients and intercept of a space, ``(D, p + 1)``, a chunk of targets at a time."""
        n, p = x.shape
        size, step = len(penalties), max(1, CHUNK // (4 * max(n, p + 1)))
        writer = ArrayWriter(place, {"coefficients": ((size, p + 1), "float32")})
        single = bool((penalties == penalties[0]).all())
        operator = how.operator(float(penalties[0])) if single and size > p else None
        leverages = {float(a): how.leverages(float(a)) for a in np.unique(penalties)} if self.rescale else {}
        for start in range(writer.done, size, step):
            stop = min(start + step, size)
            y = data.target_columns(space, problem.stimuli, start=start, stop=stop)
            mean = y.mean(axis=0)
            centred = torch.from_numpy(y - mean).to(how.left)
            own = torch.from_numpy(penalties[start:stop]).to(how.left)
            weights = operator @ centred if operator is not None else how.coefficients(centred, own)
            shift = torch.zeros_like(own)
            if self.rescale:
                shift, factor = renormalisation(x.to(how.left) @ weights, centred, torch.stack(
                    [leverages[a] for a in penalties[start:stop].tolist()], dim=1) if not single
                    else leverages[float(penalties[0])][:, None])
                weights *= factor
            chunk = np.empty((stop - start, p + 1), dtype=np.float32)
            chunk[:, :-1] = weights.T.cpu().numpy()
            chunk[:, :-1] *= scale
            chunk[:, -1] = mean + shift.cpu().numpy() - chunk[:, :-1] @ problem.centre
            writer.write({"coefficients": chunk})
            if stop * 10 // size > start * 10 // size and size > 10 * step:
                log.info("ridge %s, space %s: %d of %d targets", problem.subject, space, stop, size)
        writer.close()

    # ---- predict, save, load

    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, *shape)`` float32; coefficients are read a chunk at a time."""
        out = {space: np.empty((len(batch), spec.size), dtype=np.float32) for space, spec in self.targets.items()}
        for subject, x in batch.signals.items():
            rows, model = batch.rows[subject].numpy(), self._model(subject)
            for space in self.targets:
                stored, features = self._weights[model, space], self._features[model, space]
                flat = x.numpy().reshape(len(x), -1)
                flat = flat if len(features) == flat.shape[1] else flat[:, features]
                step = max(1, CHUNK // (4 * stored.shape[1]))
                for start in range(0, len(stored), step):
                    part = stored[np.arange(start, min(start + step, len(stored)))]
                    out[space][rows, start:start + len(part)] = flat @ part[:, :-1].T + part[:, -1]
        return {space: values.reshape(-1, *self.targets[space].shape) for space, values in out.items()}

    def n_features(self, subject: str, space: str) -> int:
        """Return how many values of a subject's signal a space is decoded from."""
        return len(self._features[self._model(subject), space])

    def coefficients(self, subject: str, space: str) -> np.ndarray:
        """Return the map ``(C * T, D)`` from a subject's normalised signals to a space; 0 where no voxel is used."""
        model = self._model(subject)
        spec, stored = self._models()[model], self._weights[model, space]
        full = np.zeros((spec.n_channels * spec.n_times, len(stored)), dtype=np.float32)
        full[self._features[model, space]] = stored[np.arange(len(stored))][:, :-1].T
        return full

    def n_parameters(self) -> dict[str, int]:
        """Return the coefficients and intercepts of every subject and space; see `Decoder.n_parameters`."""
        return {f"{subject}.{space}": (self.n_features(subject, space) + 1) * spec.size
                for subject in self.specs for space, spec in self.targets.items()}

    def slopes(self, batch: BrainBatch, *, space: str, directions: np.ndarray) -> dict[str, np.ndarray]:
        """Return slopes, the coefficients: the same for every trial; see `Decoder.slopes`."""
        flat = directions.reshape(len(directions), -1)
        return {subject: (flat[batch.rows[subject].numpy()] @ self.coefficients(subject, space).T).reshape(x.shape)
                for subject, x in batch.signals.items()}

    def save(self, folder: Path) -> None:
        """Write which file holds the coefficients and intercepts ``(D, features + 1)`` of a subject and space."""
        index = []
        for (subject, space), stored in self._weights.items():
            place = folder / stored.path.parent.name
            if place.resolve() != stored.path.parent.resolve():
                shutil.copytree(stored.path.parent, place, dirs_exist_ok=True)
            index.append({"subject": subject, "space": space, "file": f"{place.name}/{stored.path.name}"})
        write_json(folder / "ridge.json", index)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; refuses weights of other subjects, spaces or sizes."""
        path = folder / "ridge.json"
        index = {(entry["subject"], entry["space"]): entry["file"] for entry in read_json(path, kind=list)}
        for subject in self._models():
            for space, spec in self.targets.items():
                shape = (len(self._features[subject, space]) + 1, spec.size)
                if (subject, space) not in index:
                    raise ValueError(f"checkpoint {path}: expected weights of subject {subject!r} for space {space!r}, "
                                     f"got {sorted(index)}. Train this run with that subject and space.")
                stored = StoredRows(folder / index[subject, space])
                if stored.shape[::-1] != shape:
                    raise ValueError(
                        f"checkpoint {path}: expected weights {shape} for subject {subject!r} and space {space!r}, "
                        f"got {stored.shape[::-1]}. This run was trained on other signals; train it again.")
                self._weights[subject, space] = stored

    @classmethod
    def tiny(cls) -> Self:
        """Return a ridge for one subject with 4 channels and a space of 3 dimensions."""
        spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=4, n_times=1)
        return cls(specs={"sub-01": spec}, targets={"clip": EmbeddingSpec(name="clip", shape=(3,))}, cv=2)


def _begin(place: Path, *, identity: str) -> None:
    """Make the folder of a map, or empty it if it holds another one."""
    begun = place / "fit.json"
    if (read_begun(begun) or {}).get("identity") == identity:
        return
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    write_json(begun, {"identity": identity})
