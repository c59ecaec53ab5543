"""Training batches of a new subject, each beside trials of a subject that the model knows already."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import EpochSampler
from brain2img.data.once import KeptTrials
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec


class PairedSampler(EpochSampler):
    """Batches of trials of the new subject, each with as many trials of one known subject, one subject after the other.

    A pure function of seed and epoch, as `EpochSampler` is; the new subject's order is the one that it gives.

    Parameters
    ----------
    n, batch_size, seed, drop_last
        See `EpochSampler`.
    sources
        Known subject -> number of its training trials.
    """

    def __init__(self, n: int, *, batch_size: int, seed: int, sources: Mapping[str, int],
                 drop_last: bool = True) -> None:
        super().__init__(n, batch_size=batch_size, seed=seed, drop_last=drop_last)
        self.sources = dict(sources)

    def __iter__(self) -> Iterator[Any]:
        """Yield (places of the new subject's trials, known subject, places of its trials)."""
        names = list(self.sources)
        for number, places in enumerate(super().__iter__()):
            source = names[(self.epoch * len(self) + number) % len(names)]
            rng = np.random.default_rng([self.seed, self.epoch, number, 78])
            n = self.sources[source]
            yield places, source, rng.choice(n, size=min(len(places), n), replace=False).tolist()


class _PairedTrials(Dataset):
    def __init__(self, target: BrainData, sources: BrainData, *, kept: KeptTrials | None) -> None:
        self.target, self.sources, self.kept = target, sources, kept
        self.items = target.single_trials("train").reset_index(drop=True)
        self.rows = dict(list(sources.single_trials("train").groupby("subject", sort=False)))

    def __getitem__(self, chosen: tuple[list[int], str, list[int]]) -> BrainBatch:
        places, source, others = chosen
        batch = self.target.batch(self.items.iloc[places], kept=self.kept)
        return dataclasses.replace(batch, sources=self.sources.batch(self.rows[source].iloc[others]))


class PairedData:
    """The data of a new subject, whose training batches come with trials of known subjects.

    Each step of MindBridge's adaptation (Wang et al., CVPR 2024, https://github.com/littlepure2333/MindBridge) uses one
    batch of a source subject, these in turn, and one of the new subject.

    Parameters
    ----------
    target
        The new subject's data; validation and test are its own alone.
    sources
        Data of the subjects that the model was trained on, normalised as they were then.
    """

    def __init__(self, target: BrainData, *, sources: BrainData) -> None:
        self.target, self.sources = target, sources
        self.specs: dict[str, SignalSpec] = target.specs
        self.target_specs: dict[str, EmbeddingSpec] = target.target_specs
        self.unseen: list[str] = []

    @property
    def has_validation(self) -> bool:
        """Whether the new subject has validation trials."""
        return self.target.has_validation

    def train_loader(self, *, batch_size: int, seed: int, kept: KeptTrials | None = None,
                     drop_last: bool = True) -> DataLoader:
        """Return shuffled batches of the new subject's training trials (signals as `kept` has them), with `sources`.

        Those of the known subjects are read anew: they go through the adapters of another decoder.
        """
        trials = _PairedTrials(self.target, self.sources, kept=kept)
        sampler = PairedSampler(len(trials.items), batch_size=batch_size, seed=seed, drop_last=drop_last,
                                sources={s: len(rows) for s, rows in trials.rows.items()})
        return DataLoader(trials, sampler=sampler, batch_size=None, num_workers=0)

    def signals(self, subject: str, trial_ids: list[list[int]]) -> np.ndarray:
        """Return signals of the new subject; see `BrainData.signals`."""
        return self.target.signals(subject, trial_ids)

    def training_targets(self, space: str) -> np.ndarray:
        """Return the embeddings of the new subject's training stimuli; see `BrainData.training_targets`."""
        return self.target.training_targets(space)

    def eval_loader(self, split: str, **settings: Any) -> DataLoader:
        """Return batches of the new subject alone; see `BrainData.eval_loader`."""
        return self.target.eval_loader(split, **settings)
