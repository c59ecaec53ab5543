"""When a stimulus can be told from M/EEG: ridge in a sliding window, for every subject."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, write_table
from brain2img.data.datamodule import BrainData
from brain2img.metrics.ranking import accuracy
from brain2img.stages.build import build_data, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.decoded_ranks import rank_rows
from brain2img.stages.progress import progress
from brain2img.stages.runs import one_fold
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


@for_each_member
def time_course(cfg: DictConfig) -> Path:
    """Fit ridge from each window to the headline's space and score two-way identification; ``time_course/<name>``.

    The window slides over the whole epoch, baseline included, where two-way must lie at 50 %.

    Raises
    ------
    ValueError
        If the signals have no time axis.
    """
    run = one_fold(cfg)
    settings = plain(cfg.time_course)
    folder = open_folder(folder_of(cfg, "time_course", cfg.name), stage="time_course",
                         inputs={"run": run.manifest.id}, overwrite=cfg.overwrite,
                         config={**settings, "space": cfg.headline.space, "seed": cfg.seed})
    if folder.finished:
        log.info("time_course: finished already (%s)", folder.path)
        return folder.path
    trained = run.data()
    config = {**run.manifest.config, "data": {**run.manifest.config["data"], "window": None}}
    data = build_data(config, prepared=run.prepared, caches=trained.targets, fold=run.manifest.fold,
                      split_seed=run.manifest.split_seed)
    if any(spec.n_times == 1 for spec in data.specs.values()):
        raise ValueError(f"time course of {cfg.name}: expected signals with a time axis, got one sample a trial. "
                         "Leave time_course out of stages=[...] for betas.")
    data.fit_normalisation()
    tables = [_subject(data, subject, space=cfg.headline.space, seed=cfg.seed, **settings)
              for subject in data.subjects]
    write_table(folder.work / "time_course.parquet", pd.concat(tables, ignore_index=True).assign(
        study=data.study.name, decoder="ridge", space=cfg.headline.space))
    folder.finish()
    return folder.path


def _subject(data: BrainData, subject: str, *, space: str, seed: int, width: float, step: float) -> pd.DataFrame:
    spec = data.specs[subject]
    train, test = (items[items["subject"] == subject] for items in (data.items("train"), data.items("test")))
    x_train = data.signals(subject, train["trial_ids"].tolist())
    x_test = data.signals(subject, test["trial_ids"].tolist())
    target = data.target(space, train["stimulus_id"].tolist()).reshape(len(train), -1)
    sfreq = float(spec.sfreq or 1.0)
    samples, hop = max(1, round(width * sfreq)), max(1, round(step * sfreq))
    lines = []
    for start in progress(range(0, spec.n_times - samples + 1, hop), description=f"time course {subject}"):
        cut = slice(start, start + samples)
        # the mean over the window's thirds keeps the problem small without losing what a short window can tell
        a, b = (np.concatenate([part.mean(axis=2) for part in np.array_split(x[:, :, cut], min(3, samples), axis=2)],
                               axis=1) for x in (x_train, x_test))
        predicted = _ridge(a, target, b)
        ranks = rank_rows(test, predicted, true=lambda ids: data.target(space, ids), kind="correlation")
        lines.append(accuracy(ranks, by=["subject"], metrics=["two_way"],
                              generator=np.random.default_rng([seed, start, 9])).assign(
                                  time=float(spec.times[cut].mean()), width=width))
    return pd.concat(lines)


def _ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predict by ridge with the penalty chosen by generalised cross-validation on the training trials."""
    from sklearn.linear_model import RidgeCV

    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-12
    model = RidgeCV(alphas=len(x) * np.logspace(-3, 2, 6)).fit((x - mean) / std, y)
    return model.predict((new - mean) / std)
