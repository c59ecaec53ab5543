"""Accuracy over the number of averaged repetitions; keeps ranks, not embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, write_table
from brain2img.data.datamodule import BrainData
from brain2img.metrics.ranking import accuracy
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.decoded_ranks import decode, rank_rows
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


@for_each_member
def repetitions(cfg: DictConfig) -> Path:
    """Decode test stimuli from means over so many repetitions and rank them; writes ``repetitions/<name>``.

    Every fold decodes its own, at ``repetition_curve.counts`` (null: 1, 2, 4, ... and all).
    ``ranks.parquet`` has the rank of the seen stimulus for every subject, stimulus, draw and number of repetitions;
    ``repetitions.parquet`` the accuracies with intervals.

    Raises
    ------
    ValueError
        If the run is missing, lacks the space of the headline, or there are fewer repetitions than asked for.
    """
    runs, space = fold_runs(cfg), cfg.headline.space
    folder = open_folder(folder_of(cfg, "repetitions", cfg.name), stage="repetitions",
                         inputs={run.folder.name: run.manifest.id for run in runs}, overwrite=cfg.overwrite,
                         config={**plain(cfg.repetition_curve), "space": space, "seed": cfg.seed})
    if folder.finished:
        log.info("repetitions: finished already (%s)", folder.path)
        return folder.path
    data = [run.data() for run in runs]
    if space not in data[0].target_specs:
        raise ValueError(f"headline.space: expected a decoded space of {sorted(data[0].target_specs)}, got {space!r}. "
                         "Set headline.space to one of these.")
    rows = pd.concat([fold.items("test") for fold in data])
    counts = counts_of(plain(cfg.repetition_curve).get("counts"), most=int(rows["n_averaged"].min()))
    galleries = {subject: sorted(set(group["stimulus_id"])) for subject, group in rows.groupby("subject")}
    ranks = pd.concat([table for number, (run, fold) in enumerate(zip(runs, data, strict=True))
                       for table in _ranks(run, fold, counts=counts, galleries=galleries, cfg=cfg, number=number)],
                      ignore_index=True)
    write_table(folder.work / "ranks.parquet", ranks)
    curve = accuracy(ranks, by=["subject", "repetitions", "space", "direction"],
                     generator=np.random.default_rng([cfg.seed, 8]))
    write_table(folder.work / "repetitions.parquet",
                curve.assign(study=data[0].study.name, decoder=runs[0].manifest.label))
    folder.finish()
    return folder.path


def counts_of(asked: Sequence[int] | None, *, most: int) -> list[int]:
    """Return the numbers of repetitions of the curve: those asked for, or 1, 2, 4, ... and all there are.

    Raises
    ------
    ValueError
        If one is below 1 or above the `most` that every test stimulus has.
    """
    counts = sorted(set({*(2**k for k in range(most.bit_length()) if 2**k <= most), most} if asked is None else asked))
    if not counts or counts[0] < 1 or counts[-1] > most:
        raise ValueError(f"repetition_curve.counts: expected numbers of 1 to {most} repetitions, which every test "
                         f"stimulus has, got {counts}. Correct them, or set null for 1, 2, 4, ...")
    return counts


def _ranks(run: FoldRun, data: BrainData, *, counts: Sequence[int], galleries: Mapping[str, list[str]],
           cfg: DictConfig, number: int) -> Iterator[pd.DataFrame]:
    """Yield the ranks of one fold for every number of repetitions and subject, among all the subject's test stimuli."""
    space, decoder = cfg.headline.space, run.decoder(data)
    available = data.items("test")["n_averaged"].min()
    for count in counts:
        # all repetitions can be drawn in one way only
        draws = 1 if count == available else cfg.repetition_curve.n_draws
        items = data.items("test", n_averaged=count, n_draws=draws, seed=cfg.seed)
        predicted = decode(decoder, data, items, batch_size=cfg.batch_size)[space]
        yield rank_rows(items, predicted, true=lambda ids: data.target(space, ids), galleries=galleries).assign(
            repetitions=count, space=space, direction="image_from_brain", run=number)
        log.info("fold %d: %d of %d repetitions", number, count, counts[-1])
