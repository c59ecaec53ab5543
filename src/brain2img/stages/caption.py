"""Predictions -> captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from brain2img.artifacts import (
    Captions,
    Predictions,
    claim,
    digest,
    open_folder,
    read_begun,
    waiting,
    write_json,
)
from brain2img.data.dataset import chunks
from brain2img.interfaces import Captioner
from brain2img.stages.build import build_captioners, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.making import asked_predictions, fold_run, row_keys
from brain2img.stages.memory import fitting
from brain2img.stages.progress import progress
from brain2img.stages.runs import FoldRun
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)


@for_each_member
def caption(cfg: DictConfig) -> list[Path]:
    """Caption every row of the predictions by every chosen captioner, under every asked condition.

    A caption depends on the captioner and the decoded embedding alone, and is kept under ``cache/captions/`` by these.
    So none is made twice: not after a restart, not for shuffled pairs, and the true and mean ones once for all
    subjects and decoders of a study.

    Raises
    ------
    ValueError
        If no captioner is chosen, if the predictions are missing or lack a space that one needs, if it was trained on
        another space, or if a batch is too large for memory.
    """
    captioners = build_captioners(cfg)
    if not captioners:
        raise ValueError("captioner: expected at least one, got none. Choose some, as in captioner=[prefix_small], or "
                         "leave caption out of stages=[...].")
    asked = asked_predictions(cfg, captioners, group="captioner")
    for key in [key for key, captioner in captioners.items() if captioner.fits]:
        if _without_captions(cfg, next(iter(asked.values()))):
            log.warning("caption %s: left out, for the training stimuli have no captions to learn from", key)
            del captioners[key]
    # popped, so that one model at a time is in memory
    return [path for key in list(captioners) for path in _caption(key, captioners.pop(key), asked, cfg=cfg)]


def _without_captions(cfg: DictConfig, predictions: Predictions) -> bool:
    table = fold_run(cfg, predictions, predictions.rows["run"].iloc[0]).data().study.stimulus_table
    return not any(len(captions) for captions in table["captions"])


def _caption(key: str, captioner: Captioner, asked: Mapping[str, Predictions], *, cfg: DictConfig) -> list[Path]:
    settings = {"captioner": plain(cfg.captioner[key]), "weights": captioner.uid()}
    store = folder_of(cfg, "cache", "captions", f"{key}-{digest(settings, length=8)}.json")
    store.parent.mkdir(parents=True, exist_ok=True)
    known = {} if cfg.overwrite else _known(store)
    folders = []
    for condition, predictions in asked.items():
        folder = open_folder(folder_of(cfg, "captions", cfg.name, key, condition), stage="caption", config=settings,
                             inputs={"predictions": predictions.manifest["id"]}, overwrite=cfg.overwrite)
        folders.append(folder.path)
        if folder.finished:
            log.info("caption %s %s: finished already (%s)", key, condition, folder.path)
            continue
        keys = _complete(known, store, predictions, captioner, cfg=cfg, what=f"{key} {condition}")
        Captions.write(folder.work, rows=predictions.rows, captions=[known[k] for k in keys])
        folder.finish(condition=condition, study_name=predictions.manifest["study_name"])
    return folders


def _known(store: Path) -> dict[str, str]:
    """Return the captions that are kept; none, with a warning, where their file is damaged."""
    kept = read_begun(store, keys=("captions", "digest"))
    if kept is None or kept["digest"] == digest(kept["captions"]):
        return kept["captions"] if kept else {}
    log.warning("%s: expected the captions that were written, got others. They are made anew.", store)
    return {}


def _complete(known: dict[str, str], store: Path, predictions: Predictions, captioner: Captioner, *, cfg: DictConfig,
              what: str) -> pd.Series:
    """Add to `known`, and to its file, the captions of all rows that are not there; return the key of every row."""
    runs = predictions.rows["run"]
    keys = pd.Series(index=runs.index, dtype=object)
    for fold in sorted(set(runs)):
        fitted = fold_run(cfg, predictions, fold) if captioner.fits else None
        of_fold = np.flatnonzero(runs == fold)
        keys.iloc[of_fold] = row_keys(predictions, of_fold, captioner.needs,
                                      fitted=fitted.manifest.id if fitted else "")
        new = keys.iloc[of_fold].drop_duplicates()
        new = new[[k not in known for k in new]]
        log.info("caption %s: %d captions, %d of them new", what, len(of_fold), len(new))
        if fitted and len(new):
            _fit(captioner, fitted)
        for part in progress(chunks(len(new), cfg.batch_size), description="caption"):
            rows = new.index[part].to_numpy()
            needed = {space: torch.from_numpy(predictions.embeddings(space, rows)) for space in captioner.needs}
            with fitting(len(rows), key="batch_size"):
                texts = captioner.caption(needed)
            known |= zip(new.iloc[part], texts, strict=True)
            with waiting(60), claim(store):  # runs of other names add to it, too
                kept = {**_known(store), **known}
                write_json(store, {"captions": kept, "digest": digest(kept)})
    return keys


def _fit(captioner: Captioner, run: FoldRun) -> None:
    """Show the captioner the training stimuli of one fold."""
    data = run.data()
    ids = sorted(set(data.trials.loc[data.trials["split"] == "train", "stimulus_id"]))
    texts = [[] if found is None else list(found) for found in data.study.stimuli_of(ids).table["captions"]]
    captioner.fit({space: data.target(space, ids) for space in captioner.needs}, texts)
