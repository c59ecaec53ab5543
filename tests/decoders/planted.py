"""A small stand-in for `BrainData` with a planted linear map from targets to signals."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from brain2img.adapters.mindbridge import MindBridge
from brain2img.augmentations.mixco import MixCo
from brain2img.data.dataset import EpochSampler, chunks
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.losses import MSE, InfoNCE
from brain2img.records import BrainBatch, EmbeddingSpec, Grid, SignalSpec


class Killed(Exception):
    """Stands for whatever ends a process."""


class _Rows(Dataset):
    def __init__(self, data, split, fail_after=None):
        self.data, self.split, self.left = data, split, fail_after

    def __getitem__(self, places):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Killed("the training loader was told to stop here")
        return self.data.batch(self.split, list(places))


class PlantedData:
    """Two subjects, `n` training and 60 validation stimuli, targets of 8 dimensions, repeated stimuli in training.

    `fail_after` batches the training loader is killed.
    """

    def __init__(self, *, specs=None, n=192, noise=0.3, validation=True, shuffled=False, fail_after=None):
        rng = np.random.default_rng(0)
        self.specs = specs or {
            name: SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=c, n_times=1)
            for name, c in (("sub-01", 50), ("sub-02", 40))}
        self.target_specs = {"tiny": EmbeddingSpec(name="tiny", shape=(8,))}
        self.unseen: list[str] = []
        self.has_validation, self.fail_after = validation, fail_after
        self.rows = {}
        maps = {s: rng.standard_normal((8, spec.n_channels * spec.n_times)) for s, spec in self.specs.items()}
        for split, size in (("train", n), ("val", 60)):
            z = rng.standard_normal((size, 8)).astype(np.float32)
            for s, spec in self.specs.items():
                x = z @ maps[s] + noise * rng.standard_normal((size, spec.n_channels * spec.n_times))
                if shuffled:
                    x = x[rng.permutation(size)]
                for i in range(size):
                    values = x[i].reshape(spec.n_channels, spec.n_times).astype(np.float32)
                    self.rows.setdefault(split, []).append((s, f"{split}{i}", values, z[i]))

    def batch(self, split, places):
        rows = [self.rows[split][p] for p in places]
        signals, at = {}, {}
        for s in self.specs:
            mine = [i for i, row in enumerate(rows) if row[0] == s]
            if mine:
                signals[s] = torch.from_numpy(np.stack([rows[i][2] for i in mine]))
                at[s] = torch.tensor(mine)
        return BrainBatch(signals=signals, rows=at, stimulus_ids=[row[1] for row in rows],
                          targets={"tiny": torch.from_numpy(np.stack([row[3] for row in rows]))})

    def train_loader(self, *, batch_size, seed, kept=None, drop_last=True):
        sampler = EpochSampler(len(self.rows["train"]), batch_size=batch_size, seed=seed, drop_last=drop_last)
        return DataLoader(_Rows(self, "train", self.fail_after), sampler=sampler, batch_size=None)

    def training_targets(self, space):
        return self.batch("train", range(len(self.rows["train"]))).targets[space].numpy()

    def eval_loader(self, split, *, batch_size):
        return DataLoader(_Rows(self, split), sampler=chunks(len(self.rows[split]), batch_size), batch_size=None)


def build(*, width=32, seed=0, **training):
    """Return a small decoder for `PlantedData` that uses everything there is."""
    torch.manual_seed(seed)
    adapter = MindBridge(specs=PlantedData(n=1).specs, grid=Grid(width, 1), pool_size=40, bottleneck=4, dropout=0.1)
    head = LinearHead(hidden=(1, width), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny",
                      losses={"nce": InfoNCE(), "mse": MSE(weight=0.1)})
    return DeepDecoder(
        adapter=adapter, encoder=ResidualMLP(specs={}, width=width, n_blocks=1), heads={"tiny": head},
        augmentation=MixCo(), seed=3, training={
            "max_epochs": 4, "batch_size": 32, "lr": 1e-2, "ema": 0.9, "accumulate": 2, "gradient_clip": 1.0,
            "monitor": "val/top1", "accelerator": "cpu", **training})
