"""Accuracy over the number of averaged repetitions; keeps ranks, not embeddings."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, write_table
from brain2img.data.dataset import chunks
from brain2img.metrics.intervals import bootstrap
from brain2img.metrics.ranking import placements, similarity
from brain2img.stages.build import plain
from brain2img.stages.workspace import fold_runs, outputs

log = logging.getLogger(__name__)


def repetitions(cfg: DictConfig) -> Path:
    """Decode test stimuli from means over 1, 2, 4, ... repetitions and rank them; writes ``repetitions/<name>``.

    ``ranks.parquet`` has the rank of the seen stimulus for every subject, stimulus, draw and number of repetitions;
    ``repetitions.parquet`` the accuracies with intervals.

    Raises
    ------
    ValueError
        If the run is missing or lacks the space of the headline.
    """
    run = fold_runs(cfg)[0]
    space = cfg.headline.space
    folder = open_folder(outputs(cfg) / "repetitions" / cfg.name, stage="repetitions",
                         inputs={"run": run.manifest["id"]}, overwrite=cfg.overwrite,
                         config={**plain(cfg.repetition_curve), "space": space, "seed": cfg.seed})
    if folder.finished:
        log.info("repetitions: finished already (%s)", folder.path)
        return folder.path
    data = run.data()
    if space not in data.target_specs:
        raise ValueError(f"headline.space: expected a decoded space of {sorted(data.target_specs)}, got {space!r}. "
                         "Set headline.space to one of these.")
    decoder = run.decoder(data)
    most = int(data.items("test")["n_averaged"].min())
    counts = sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
    tables = []
    for count in counts:
        # all repetitions can be drawn in one way only
        draws = 1 if count == most else cfg.repetition_curve.n_draws
        items = data.items("test", n_averaged=count, n_draws=draws, seed=cfg.seed)
        predicted = np.concatenate([decoder.predict(data.batch(items.iloc[part]))[space]
                                    for part in chunks(len(items), cfg.batch_size)])
        for _, group in items.groupby("subject", sort=False):
            ids = sorted(set(group["stimulus_id"]))
            truth = np.searchsorted(ids, group["stimulus_id"])
            true = data.target(space, ids).reshape(len(ids), -1)
            decoded = predicted[group.index].reshape(len(group), -1)
            ranks = placements(similarity(decoded, true, kind="cosine"), truth, direction="image_from_brain").rank
            tables.append(group[["subject", "stimulus_id", "draw"]].assign(
                repetitions=count, rank=ranks, gallery=len(ids), space=space, direction="image_from_brain"))
        log.info("repetitions %d of %d", count, most)
    ranks = pd.concat(tables, ignore_index=True)
    write_table(folder.work / "ranks.parquet", ranks)
    curve = _curve(ranks, seed=cfg.seed)
    write_table(folder.work / "repetitions.parquet",
                curve.assign(study=data.study.name, decoder=run.manifest["label"]))
    folder.finish()
    return folder.path


def _curve(ranks: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return top-1 and top-5 over repetitions for every subject, with bootstrap intervals over stimuli."""
    lines = []
    rng = np.random.default_rng([seed, 8])
    keys = ["subject", "repetitions", "space", "direction", "gallery"]
    for key, group in ranks.groupby(keys, sort=False):
        for k in (1, 5):
            values = (group["rank"] <= k).to_numpy(dtype=float)
            low, high = bootstrap(values, stimuli=group["stimulus_id"].to_numpy(), generator=rng)
            lines.append({**dict(zip(keys, key, strict=True)), "metric": f"top{k}", "value": values.mean(), "low": low,
                          "high": high, "chance": k / group["gallery"].iloc[0]})
    return pd.DataFrame(lines)
