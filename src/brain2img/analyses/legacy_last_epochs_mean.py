"""The number of ATM's old tables: mean test accuracy over the last epochs of training. Not for new results."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, write_table
from brain2img.decoders.settings import epoch_file, read_checkpoint
from brain2img.metrics.ranking import accuracy
from brain2img.stages.collection import for_each_member
from brain2img.stages.decoded_ranks import ranks_of_run
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


@for_each_member
def legacy_last_epochs_mean(cfg: DictConfig) -> Path:
    """Decode a split with the weights of each of the last epochs; writes ``legacy_last_epochs_mean/<name>``.

    The released code of ATM (Li et al. 2024, arXiv:2403.07721, https://github.com/dongyangli-del/EEG_Image_decode)
    decodes the test images after every epoch, and its tables average the last 10 of 40. This stage is there to compare
    with those tables, and for nothing else: the test split is looked at once an epoch, so whoever sees the curve can
    choose learning rate or length of training by it, and the mean belongs to no model that could be handed on. New
    results are those of ``evaluate``, of the one epoch that validation stimuli chose. Hence the name on every line; the
    headline and the report never take these numbers.

    ``ranks.parquet`` has the rank of the seen stimulus for every epoch; ``legacy_last_epochs_mean.parquet`` the means
    of the epochs' top-1 and top-5 for every subject, with bootstrap intervals over stimuli. Repetitions are averaged
    before decoding, as there.

    Raises
    ------
    ValueError
        If the run is missing, is of no deep decoder, has not kept so many epochs, or lacks the space of the headline.
    """
    runs, space, n = fold_runs(cfg), cfg.headline.space, int(cfg.last_epochs)
    name, epochs = "legacy_last_epochs_mean", [_last(run, n) for run in runs]
    folder = open_folder(folder_of(cfg, name, cfg.name), stage=name, overwrite=cfg.overwrite,
                         inputs={run.folder.name: run.manifest.id for run in runs},
                         config={"last_epochs": n, "space": space, "split": cfg.predict_split, "seed": cfg.seed})
    if folder.finished:
        log.info("%s: finished already (%s)", name, folder.path)
        return folder.path
    ranks = pd.concat([table.assign(run=number) for number, (run, last) in enumerate(zip(runs, epochs, strict=True))
                       for table in _ranks(run, last, cfg=cfg)], ignore_index=True)
    write_table(folder.work / "ranks.parquet", ranks)
    table = accuracy(ranks, by=["subject"], generator=np.random.default_rng([cfg.seed, 12]))
    table["metric"] = f"{name}_" + table["metric"]
    for line in table.itertuples():
        log.info("%s, %s: %.1f %% over %d epochs", line.subject, line.metric, 100 * line.value, n)
    write_table(folder.work / f"{name}.parquet", table.assign(
        repetitions=ranks["n_averaged"].median(), epochs=n, space=space, study=runs[0].manifest.study_name,
        decoder=runs[0].manifest.label))
    folder.finish()
    return folder.path


def _last(run: FoldRun, n: int) -> list[int]:
    """Return the last `n` epochs of a fold, all of which were kept."""
    if n < 1:
        raise ValueError(f"last_epochs: expected 1 or more, got {n}. Correct it; the published tables have 10.")
    if "encoder" not in run.manifest.config:
        raise ValueError(f"run {run.folder}: expected a deep decoder, which is trained in epochs, got "
                         f"{run.manifest.label}. Use evaluate.py.")
    last = int(read_checkpoint(run.folder / "last.ckpt")["epoch"])
    asked = range(last - n + 1, last + 1)
    kept = [epoch for epoch in asked if epoch >= 0 and (run.folder / epoch_file(epoch)).exists()]
    if len(kept) < n:
        raise ValueError(f"run {run.folder}: expected the weights of its last {n} epochs, got those of {len(kept)}. "
                         f"Train it with trainer=atm_last_epochs or +trainer.keep_last={n}, or set last_epochs.")
    return kept


def _ranks(run: FoldRun, epochs: list[int], *, cfg: DictConfig) -> Iterator[pd.DataFrame]:
    """Yield the ranks of the stimuli of a fold for each of its epochs."""
    data, space = run.data(), cfg.headline.space
    decoder = run.decoder(data)
    if space not in data.target_specs or space in run.learned:
        plain = sorted(set(data.target_specs) - set(run.learned))
        raise ValueError(f"headline.space: expected a decoded space of {plain}, of which no head learns a view that "
                         f"changes with the epoch, got {space!r}. Set headline.space.")
    for epoch in epochs:
        decoder.load_epoch(run.folder, epoch)
        yield ranks_of_run(run, data, space=space, split=cfg.predict_split, batch_size=cfg.batch_size,
                     decoder=decoder).assign(epoch=epoch)
