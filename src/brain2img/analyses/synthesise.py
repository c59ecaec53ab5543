"""Trained MindBridge run -> a subject's voxels for stimuli that another subject saw, beside the real ones."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from brain2img.artifacts import open_folder, write_array, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.interfaces import SubjectAdapter
from brain2img.metrics.intervals import bootstrap
from brain2img.stages.collection import for_each_member
from brain2img.stages.progress import progress
from brain2img.stages.runs import one_fold
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


@for_each_member
def synthesise(cfg: DictConfig) -> Path:
    """Synthesise every subject's pooled voxels from every subject's recordings of a split; ``synthesis/<name>``.

    Repetitions are averaged before, as in predicting. ``<k>.npy`` ``(n, pool_size)`` float32 holds what is synthesised
    for the k-th pair, ``rows.parquet`` its stimuli in their order. ``agreement.parquet`` compares with what the target
    really showed, on stimuli that both saw: see `agreement`. A pair of a subject with itself is its reconstruction.

    Raises
    ------
    ValueError
        If the run is missing, or its adapter cannot synthesise.
    """
    run = one_fold(cfg)
    folder = open_folder(folder_of(cfg, "synthesis", cfg.name), stage="synthesise", inputs={"run": run.manifest.id},
                         config={"split": cfg.predict_split, "seed": cfg.seed}, overwrite=cfg.overwrite)
    if folder.finished:
        log.info("synthesise: finished already (%s)", folder.path)
        return folder.path
    data = run.data()
    decoder = run.decoder(data)
    adapter = decoder.adapter
    if adapter is None:
        raise ValueError(f"run {run.folder}: expected a decoder with a subject adapter, got one without. "
                         "Train with decoder=deep adapter=mindbridge.")
    adapter.eval()
    items = {s: group.reset_index(drop=True) for s, group in data.items(cfg.predict_split).groupby("subject")}
    if not items:
        raise ValueError(f"run {run.folder}: expected trials in split {cfg.predict_split!r}, got none. "
                         "Choose another predict_split.")
    real = {s: _pooled(adapter, data, s, items[s]["trial_ids"].tolist(), cfg.batch_size) for s in items}
    mean = {s: _mean_pattern(adapter, data, s, cfg.batch_size) for s in items}
    pairs = [(source, target) for source in items for target in items]
    rows, tables = [], []
    for number, (source, target) in enumerate(progress(pairs, description="synthesise")):
        with torch.inference_mode():
            made = adapter.synthesise(real[source].unsqueeze(-1), source=source, target=target)
        write_array(folder.work / f"{number}.npy", made.numpy())
        rows.append(pd.DataFrame({"pair": number, "source": source, "target": target,
                                  "stimulus_id": items[source]["stimulus_id"]}))
        places = pd.Index(items[target]["stimulus_id"]).get_indexer(pd.Index(items[source]["stimulus_id"]))
        both = np.flatnonzero(places >= 0)
        if len(both) > 2:
            tables.append(agreement(made[both], real[target][places[both]], mean[target]).assign(
                source=source, target=target, stimulus_id=items[source]["stimulus_id"].to_numpy()[both]))
    write_table(folder.work / "rows.parquet", pd.concat(rows, ignore_index=True))
    if tables:
        found = pd.concat(tables, ignore_index=True)
        write_table(folder.work / "agreement.parquet", found)
        Console(width=120).print(_table(found, seed=cfg.seed))
    else:
        log.warning("synthesise: no two subjects saw the same stimuli, so nothing real to compare with")
    folder.finish()
    return folder.path


def agreement(made: Tensor, real: Tensor, mean: Tensor) -> pd.DataFrame:
    """Return how well synthetic voxels agree with real ones, stimulus by stimulus.

    Parameters
    ----------
    made, real
        ``(n, V)`` synthetic and real pooled voxels of the same n stimuli, n > 2.
    mean
        ``(V,)`` the subject's mean pattern over training trials.

    Returns
    -------
    pandas.DataFrame
        One line per stimulus: `pattern` (Pearson correlation over voxels), `mean_pattern` (the same of the mean
        pattern, which knows nothing of the stimulus), `above_mean` (the correlation of what is left of both when the
        mean pattern is taken off: 0 for a synthesis that knows nothing), and `voxels`, the same on every line
        (correlation over the n stimuli, averaged over voxels; 0 for the mean pattern).
    """
    mean = mean.expand_as(real)
    voxels = _correlation(made.T, real.T).nan_to_num()  # a voxel that is synthesised the same for all carries nothing
    return pd.DataFrame({"pattern": _correlation(made, real), "mean_pattern": _correlation(mean, real),
                         "above_mean": _correlation(made - mean, real - mean).nan_to_num(),
                         "voxels": voxels.mean().item()})


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the Pearson correlation of the rows of two matrices."""
    a, b = (x.double() - x.double().mean(dim=1, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))


def _pooled(adapter: SubjectAdapter, data: BrainData, subject: str, trial_ids: list[list[int]], size: int) -> Tensor:
    """Return ``(n, pool_size)`` pooled voxels, each of the mean of its trials."""
    parts = [adapter.once(torch.from_numpy(data.signals(subject, [trial_ids[i] for i in part])), subject).squeeze(-1)
             for part in chunks(len(trial_ids), size)]
    return torch.cat(parts)


def _mean_pattern(adapter: SubjectAdapter, data: BrainData, subject: str, size: int) -> Tensor:
    """Return ``(pool_size,)``: the mean over the subject's training trials."""
    trials = data.single_trials("train")
    ids = trials.loc[trials["subject"] == subject, "trial_ids"].tolist()
    return torch.stack([_pooled(adapter, data, subject, [ids[i] for i in part], size).sum(dim=0)
                        for part in chunks(len(ids), size)]).sum(dim=0) / len(ids)


def _table(found: pd.DataFrame, *, seed: int) -> Table:
    table = Table(title="Synthetic and real pooled voxels: mean correlation over stimuli [95 %]")
    for name in ("from", "as", "stimuli", "pattern", "mean pattern", "above the mean pattern", "voxel by voxel"):
        table.add_column(name)
    for (source, target), group in found.groupby(["source", "target"]):
        cells = []
        for name in ("pattern", "mean_pattern", "above_mean"):
            low, high = bootstrap(group[name].to_numpy(), stimuli=group["stimulus_id"].to_numpy(),
                                  generator=np.random.default_rng([seed, 11]))
            cells.append(f"{group[name].mean():.3f} [{low:.3f}, {high:.3f}]")
        own = " (its own)" if source == target else ""
        table.add_row(str(source), f"{target}{own}", str(len(group)), *cells, f"{group['voxels'].iloc[0]:.3f}")
    return table
