"""Trials of all subjects as ragged batches, read from arrays on disk."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from brain2img.records import BrainBatch


class EpochSampler(Sampler):
    """Batches of trial indices as a pure function of seed and epoch, so that a resumed run sees what it would have.

    Parameters
    ----------
    n
        Number of trials.
    batch_size
        Trials in a batch.
    seed
        Seed of the shuffling.
    drop_last
        Leave out a last, smaller batch, unless it is the only one.
    """

    def __init__(self, n: int, *, batch_size: int, seed: int, drop_last: bool = True) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, max(1, min(batch_size, n)), seed, 0
        self.drop_last = drop_last

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch, 77]).permutation(self.n)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start:start + self.batch_size].tolist()


class ItemDataset(Dataset):
    """Rows of averaged (or single) trials, fetched a batch at a time.

    Parameters
    ----------
    data
        The `brain2img.data.datamodule.BrainData` that reads signals and targets.
    items
        Table of `brain2img.data.trials.averaged`.
    kept
        `brain2img.data.once.KeptTrials` to take the signals of single trials from; None reads them anew.
    resampled
        What averages every trial with other repetitions; None for none.
    before_average
        See `brain2img.data.datamodule.BrainData.batch`.
    """

    def __init__(self, data, items, *, kept=None, resampled=None, before_average=None) -> None:
        self.data, self.items, self.kept = data, items.reset_index(drop=True), kept
        self.resampled, self.before_average = resampled, before_average
        # taking rows of a table costs as much as reading a tenth of the batch
        self._columns = {name: self.items[name].to_numpy() for name in self.items}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: Sequence[int]) -> BrainBatch:
        columns = {name: column[list(places)] for name, column in self._columns.items()}
        if self.resampled is not None:
            columns["trial_ids"] = self.resampled(places)
        return self.data.batch(columns, kept=self.kept, before_average=self.before_average)


class Resampling:
    """Averages every trial with a random number of the other repetitions of its stimulus, anew in each epoch.

    Of n repetitions the trial itself and m others are averaged, m uniform in 0..n-1. A pure function of the seed, epoch
    and batch of the sampler, so that a resumed run meets the averages it would have met. Averages drawn online are what
    IDES (https://arxiv.org/abs/2409.20086) gains from.

    Parameters
    ----------
    items
        Table of single trials, as `BrainData.single_trials` lays it out.
    sampler
        Gives the epoch.
    """

    def __init__(self, items, *, sampler: EpochSampler) -> None:
        self.sampler = sampler
        self._own = np.array([ids[0] for ids in items["trial_ids"]], dtype=int)
        _, self._group = np.unique(items["subject"].astype(str) + "\n" + items["stimulus_id"].astype(str),
                                   return_inverse=True)
        order = np.argsort(self._group, kind="stable")
        self._members = np.split(self._own[order], np.cumsum(np.bincount(self._group))[:-1])

    def __call__(self, places: Sequence[int]) -> np.ndarray:
        """Return the trials to average for each of some rows of the table."""
        rng = np.random.default_rng([self.sampler.seed, self.sampler.epoch, int(places[0]), len(places), 79])
        drawn = np.empty(len(places), dtype=object)
        for i, place in enumerate(places):
            members, own = self._members[self._group[place]], self._own[place]
            others = rng.permutation(members[members != own])[:rng.integers(len(members))]
            drawn[i] = sorted([int(own), *others.tolist()])
        return drawn


class ReusedMemory:
    """Memory for the signals of batches, used again when nobody holds the batch that lay in it.

    The system hands out new memory filled with zeros, which takes half as long as reading the batch into it.
    """

    #: The batch that is being made, the one that is in use, and one that a caller still holds.
    _n_kept = 3

    def __init__(self) -> None:
        self._kept: list[tuple[bytearray, weakref.ref[np.ndarray]]] = []

    def array(self, *shape: int) -> np.ndarray:
        """Return a float32 array of this shape; what it holds is arbitrary."""
        size = math.prod(shape)
        self._kept = [(memory, used) for memory, used in self._kept if len(memory) >= 4 * size]
        free = next((place for place, (_, used) in enumerate(self._kept) if used() is None), None)
        # the trials of one subject are a random part of a batch: the next may need a few more
        memory = bytearray(4 * (size + size // 8)) if free is None else self._kept.pop(free)[0]
        # an array of its own over memory that is no array: whatever is made of it, a view or a tensor, keeps it alive
        holder = np.frombuffer(memory, dtype=np.float32, count=size)
        self._kept = [*self._kept, (memory, weakref.ref(holder))][-self._n_kept:]
        return holder.reshape(shape)


def chunks(n: int, size: int) -> list[list[int]]:
    """Return ``range(n)`` cut into lists of at most `size`."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a float32 tensor that keeps its memory alive."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
