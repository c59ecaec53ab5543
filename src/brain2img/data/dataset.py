"""Trials of all subjects as ragged batches, read from memory-mapped arrays."""

from __future__ import annotations

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
        Trials in a batch; a last, smaller batch is left out unless it is the only one.
    seed
        Seed of the shuffling.
    """

    def __init__(self, n: int, *, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, min(batch_size, n), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size

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
    """

    def __init__(self, data, items) -> None:
        self.data, self.items = data, items.reset_index(drop=True)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, places: Sequence[int]) -> BrainBatch:
        return self.data.batch(self.items.iloc[list(places)])


def chunks(n: int, size: int) -> list[list[int]]:
    """Return ``range(n)`` cut into lists of at most `size`."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a float32 tensor that owns its memory."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
