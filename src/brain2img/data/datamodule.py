"""The data of one split of a prepared study: normalised signals, targets, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from brain2img.artifacts import EmbeddingCache, StoredRows, read_arrays, read_json, write_json, writing
from brain2img.data.dataset import EpochSampler, ItemDataset, Resampling, ReusedMemory, chunks, to_tensor
from brain2img.data.normalisation import FittedNormalisation, Normalisation
from brain2img.data.once import KeptTrials
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import Split, averaged, select_subjects, session_names
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec

Trialwise = Callable[[Tensor, str], Tensor]
NOISE_TRIALS = 2000
REPETITIONS = ("single", "mean", "resample")
AVERAGED_AT_ONCE = 512
"""Trials that are read together where repetitions are averaged."""


class BrainData:
    """Signals and targets of one split.

    Parameters
    ----------
    study
        The prepared study.
    targets
        Space -> embeddings of its stimuli; may be empty for predicting.
    split
        How trials are divided.
    normalisation
        What is done to the signals.
    subjects
        Names of the subjects to use; all by default.

    Attributes
    ----------
    subjects
        Those with trials in this fold.
    specs
        Subject -> its signals, of those that are trained on; one that is left out is in `unseen` instead.
    same_as
        Stimulus id -> id of the first stimulus that is the same, with which it stays together; empty for none.
    """

    def __init__(self, study: PreparedStudy, *, targets: Mapping[str, EmbeddingCache], split: Split,
                 normalisation: Normalisation, subjects: list[str] | None = None) -> None:
        self.study = study
        trials = select_subjects(study.trials, subjects, known=study.subjects)
        self.same_as = {} if split.duplicates == "keep" else study.same_as
        trials = trials.assign(split=split.assign(trials, what=f"study {study.name}", concepts=study.concepts,
                                                  same_as=self.same_as))
        met = set(trials.loc[trials["split"] != "unused", "subject"])
        self.trials = trials[trials["subject"].isin(met)]
        self.subjects = [s for s in study.subjects if s in met]
        self.normalisers = {s: FittedNormalisation(normalisation, spec=study.specs[s]) for s in self.subjects}
        self.unseen = sorted(set(self.trials.loc[self.trials["split"] == "unseen", "subject"]))
        self.specs: dict[str, SignalSpec] = {s: n.spec for s, n in self.normalisers.items() if s not in self.unseen}
        self._check_unseen()
        self.targets = dict(targets)
        self.target_specs: dict[str, EmbeddingSpec] = {name: cache.spec for name, cache in targets.items()}
        self._sessions = {s: session_names(study.trials_of(s)).to_numpy() for s in self.subjects}
        self._signals = {s: study.stored_signals(s) for s in self.subjects}
        self._memory = {s: ReusedMemory() for s in self.subjects}
        self._target_arrays = {name: cache.array for name, cache in targets.items()}
        self._target_files: dict[str, StoredRows] = {}
        self._target_rows = {name: {stimulus: row for row, stimulus in enumerate(cache.stimulus_ids)}
                             for name, cache in targets.items()}
        for cache in targets.values():
            cache.rows(sorted(set(self.trials["stimulus_id"])))

    def _check_unseen(self) -> None:
        """Refuse a left-out subject with other sensors: a decoder knows only those of the subjects it is trained on."""
        known = next(iter(self.specs.values()))
        for subject in self.unseen:
            other = self.normalisers[subject].spec.difference(known) if known.ch_names else ""
            if other:
                raise ValueError(
                    f"study {self.study.name}, subject {subject!r}, which is left out: expected the channels, sampling "
                    f"rate and window of {known.subject!r}, which is trained on, got {other}. Name channels that all "
                    "have, in one order, with data.channels=[...], or leave this subject out of data.subjects.")

    @property
    def has_validation(self) -> bool:
        """Whether the split has validation trials."""
        return bool((self.trials["split"] == "val").any())

    def fit_normalisation(self) -> None:
        """Fit every subject's statistics on its training trials, or as ``data.fit_on`` says.

        Those of a subject that is left out come from its own recordings of training stimuli, without labels.
        """
        for subject, normaliser in self.normalisers.items():
            if normaliser.config.fit_on == "not_test":
                left_out = self.trials["split"].isin(("test", "unused"))
                trials = self.trials[(self.trials["subject"] == subject) & ~left_out]
            else:
                trials = self._fitted_on(subject)
            normaliser.fit(self._signals[subject], trials)

    def save_normalisation(self, folder: Path) -> None:
        """Write the statistics, one file a subject, and their index."""
        files = {}
        for i, (subject, normaliser) in enumerate(self.normalisers.items()):
            files[subject] = f"normalisation_{i}.npz"
            with writing(folder / files[subject]) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **normaliser.state, **normaliser.signals)
        write_json(folder / "normalisation.json", files)

    def load_normalisation(self, folder: Path) -> None:
        """Read what `save_normalisation` wrote.

        Raises
        ------
        ValueError
            If a subject is missing there or its channels, sampling rate or window differ.
        """
        files = read_json(folder / "normalisation.json")
        for subject, normaliser in self.normalisers.items():
            if subject not in files:
                raise ValueError(f"run {folder}: expected one trained with subject {subject!r}, got {sorted(files)}. "
                                 "Choose one of these with data.subjects=[...], or adapt the run to the new subject.")
            normaliser.load(read_arrays(folder / files[subject]))

    def _of(self, subject: str, split: str) -> pd.DataFrame:
        return self.trials[(self.trials["subject"] == subject) & (self.trials["split"] == split)]

    def _fitted_on(self, subject: str) -> pd.DataFrame:
        return self._of(subject, "unseen" if subject in self.unseen else "train")

    def items(self, split: str, *, n_averaged: int | None = None, n_draws: int = 1, seed: int = 0) -> pd.DataFrame:
        """Return the rows to decode of a split, as `brain2img.data.trials.averaged` lays them out."""
        return averaged(self.trials[self.trials["split"] == split], n_averaged=n_averaged, n_draws=n_draws, seed=seed)

    def single_trials(self, split: str) -> pd.DataFrame:
        """Return one row per trial of a split, in the layout of `items`."""
        trials = self.trials[self.trials["split"] == split]
        return pd.DataFrame({"subject": trials["subject"].to_numpy(), "stimulus_id": trials["stimulus_id"].to_numpy(),
                             "n_averaged": 1, "draw": 0, "trial_ids": [[row] for row in trials["row"]]})

    def signals(self, subject: str, trial_ids: list[list[int]], *, out: np.ndarray | None = None,
                before_average: Trialwise | None = None) -> np.ndarray:
        """Return ``(n, C, T)`` float32 normalised signals, each the mean of its trials, in `out` if it is given.

        With `before_average`, ``(n, ...)`` means of what it makes of single trials.
        """
        normaliser = self.normalisers[subject]
        if before_average is not None:
            parts = [before_average(torch.from_numpy(self.signals(subject, [[row] for row in ids])), subject)
                     .mean(dim=0) for ids in trial_ids]
            return torch.stack(parts).numpy()
        if all(len(ids) == 1 for ids in trial_ids):
            flat = np.array(list(chain.from_iterable(trial_ids)), dtype=int)
            return normaliser(self._signals[subject], flat, self._sessions[subject][flat], out=out)
        spec = normaliser.spec
        if out is None:
            out = np.empty((len(trial_ids), spec.n_channels, spec.n_times), dtype=np.float32)
        ends = np.cumsum([len(ids) for ids in trial_ids])
        first = 0
        while first < len(trial_ids):  # as many rows at once as have some hundred trials together
            start = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + AVERAGED_AT_ONCE, side="right")))
            rows = np.array(list(chain.from_iterable(trial_ids[first:last])), dtype=int)
            x = normaliser(self._signals[subject], rows, self._sessions[subject][rows])
            for i in range(first, last):
                out[i] = x[ends[i] - len(trial_ids[i]) - start:ends[i] - start].mean(axis=0)
            first = last
        return out

    def target(self, space: str, stimulus_ids: list[str]) -> np.ndarray:
        """Return the true embeddings ``(n, *shape)`` float32."""
        known = self._target_rows[space]
        rows = np.array([known[stimulus] for stimulus in stimulus_ids], dtype=int)
        return np.asarray(self._target_arrays[space][rows], dtype=np.float32)

    def training_targets(self, space: str) -> np.ndarray:
        """Return the true embeddings ``(n, *shape)`` of the training stimuli, each once."""
        return self.target(space, sorted(set(self.trials.loc[self.trials["split"] == "train", "stimulus_id"])))

    def target_columns(self, space: str, stimulus_ids: list[str], *, start: int, stop: int) -> np.ndarray:
        """Return the values `start` to `stop` of the flattened true embeddings, ``(n, stop - start)`` float32.

        Nothing else is read or mapped: embeddings of many tokens need not fit into memory.
        """
        known = self._target_rows[space]
        if space not in self._target_files:
            self._target_files[space] = StoredRows(self.targets[space].folder / "embeddings.npy")
        rows = np.array([known[stimulus] for stimulus in stimulus_ids], dtype=int)
        return self._target_files[space].columns(rows, start=start, stop=stop).astype(np.float32)

    def mean_target(self, space: str) -> np.ndarray:
        """Return the mean embedding ``(*shape)`` over the training stimuli."""
        return self.training_targets(space).mean(axis=0)

    def batch(self, items: pd.DataFrame | Mapping[str, np.ndarray], *,
              noise: np.random.Generator | None = None, kept: KeptTrials | None = None,
              before_average: Trialwise | None = None) -> BrainBatch:
        """Return the batch of some rows of `items`, in their order.

        Parameters
        ----------
        items
            Rows of `items` or `single_trials`, or their columns.
        noise
            Where given, signals are replaced by Gaussian noise with the channel covariance of the training trials,
            its amplitude divided by the square root of the number of averaged repetitions.
        kept
            Where given, what it keeps of single trials stands in place of their signals.
        before_average
            What single trials of a subject, ``(n, C, T)``, or noise in their place go through before they are averaged
            (`interfaces.Decoder.before_average`); None averages signals.
        """
        signals, rows = {}, {}
        subjects, trial_ids = np.asarray(items["subject"]), np.asarray(items["trial_ids"])
        for subject in self.subjects:
            places = np.flatnonzero(subjects == subject)
            if len(places) == 0:
                continue
            if kept is not None:
                x = kept(subject, np.array(list(chain.from_iterable(trial_ids[places])), dtype=int))
            elif noise is None and before_average is not None:
                x = self.signals(subject, trial_ids[places].tolist(), before_average=before_average)
            elif noise is None:
                spec = self.normalisers[subject].spec
                x = self.signals(subject, trial_ids[places].tolist(),
                                 out=self._memory[subject].array(len(places), spec.n_channels, spec.n_times))
            else:
                x = self._noise(subject, np.asarray(items["n_averaged"])[places], noise, before_average)
            signals[subject], rows[subject] = to_tensor(x), torch.from_numpy(places)
        ids = list(items["stimulus_id"])
        targets = {space: to_tensor(self.target(space, ids)) for space in self.targets}
        return BrainBatch(signals=signals, rows=rows, stimulus_ids=ids, targets=targets)

    def _noise(self, subject: str, n_averaged: np.ndarray, generator: np.random.Generator,
               before_average: Trialwise | None = None) -> np.ndarray:
        if before_average is not None:
            return np.stack([before_average(torch.from_numpy(self._noise(subject, np.ones(n, dtype=int), generator)),
                                            subject).mean(dim=0).numpy() for n in n_averaged])
        factor = self._noise_factor(subject)
        n_times = self.normalisers[subject].spec.n_times
        drawn = generator.standard_normal((len(n_averaged), factor.shape[1], n_times), dtype=np.float32)
        return (factor @ drawn) / np.sqrt(n_averaged)[:, None, None].astype(np.float32)

    def _noise_factor(self, subject: str) -> np.ndarray:
        """Return A ``(C, r)`` with A A' = the channel covariance of (at most `NOISE_TRIALS`) training trials."""
        rows = self._fitted_on(subject)["row"].to_numpy()
        rows = rows[:: max(1, len(rows) // NOISE_TRIALS)]
        x = self.signals(subject, [[r] for r in rows])
        x = x - x.mean(axis=0)
        flat = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
        if flat.shape[1] <= flat.shape[0]:
            return (flat / np.sqrt(flat.shape[1])).astype(np.float32)
        values, vectors = np.linalg.eigh(flat @ flat.T / flat.shape[1])
        return (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)

    def train_loader(self, *, batch_size: int, seed: int, kept: KeptTrials | None = None,
                     repetitions: str = "single", drop_last: bool = True) -> DataLoader:
        """Return shuffled batches of training trials of all subjects, signals as `kept` keeps them.

        Parameters
        ----------
        batch_size, seed, drop_last
            See `EpochSampler`.
        kept
            Where given, what it keeps of single trials stands in place of their signals.
        repetitions
            "single" trials; "mean": all repetitions of a stimulus averaged, so that there are fewer; "resample": every
            trial is averaged with a random number of the other repetitions of its stimulus, drawn anew in each epoch.

        Raises
        ------
        ValueError
            If `repetitions` is none of these, or trials that are kept would be averaged.
        """
        if repetitions not in REPETITIONS or (kept is not None and repetitions != "single"):
            raise ValueError(f"trainer.repetitions: expected one of {REPETITIONS}, and single where the adapter keeps "
                             f"pooled trials, got {repetitions!r}. Correct it.")
        items = self.items("train") if repetitions == "mean" else self.single_trials("train")
        sampler = EpochSampler(len(items), batch_size=batch_size, seed=seed, drop_last=drop_last)
        resampled = Resampling(items, sampler=sampler) if repetitions == "resample" else None
        return DataLoader(ItemDataset(self, items, kept=kept, resampled=resampled), sampler=sampler, batch_size=None,
                          num_workers=0)

    def eval_loader(self, split: str, *, batch_size: int = 256, before_average: Trialwise | None = None) -> DataLoader:
        """Return batches of repetition-averaged trials of a split, in a fixed order; see `batch`."""
        items = self.items(split)
        return DataLoader(ItemDataset(self, items, before_average=before_average),
                          sampler=chunks(len(items), batch_size), batch_size=None, num_workers=0)
