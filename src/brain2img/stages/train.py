"""Prepared study + embeddings -> trained decoders, one per fold and repeat."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from brain2img.artifacts import digest, open_folder, read_manifest
from brain2img.data.prepared import PreparedStudy
from brain2img.stages.build import build_data, build_decoder, plain
from brain2img.stages.workspace import LATER, caches, iterate_folds, outputs, prepared_folder, relative, training_config

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> Path:
    """Train the decoder that the configuration describes on every fold; returns the folder of the run.

    A model is built anew for every fold; finished folds are skipped, and an interrupted one goes on at the epoch it
    was in.

    Raises
    ------
    ValueError
        If the study or its embeddings are missing, channels are NaN or constant, or a head has no space.
    """
    root = outputs(cfg)
    prepared = PreparedStudy(prepared_folder(cfg))
    found = caches(cfg, prepared=prepared)
    config = training_config(cfg)
    folds = list(iterate_folds(config))
    inputs = {"prepared": prepared.manifest["id"],
              **{name: read_manifest(cache.folder)["id"] for name, cache in found.items()}}
    run = root / "train" / cfg.name
    for number, (fold, split_seed, seed) in enumerate(folds):
        folder = open_folder(run / f"fold-{fold}_seed-{seed}", stage="train",
                             config={**config, "fold": fold, "split_seed": split_seed, "decoder_seed": seed},
                             inputs=inputs, overwrite=cfg.overwrite)
        if folder.finished:
            continue
        log.info("train %s, fold %d of %d (seed %d)", cfg.name, number + 1, len(folds), seed)
        data = build_data(config, prepared=prepared, caches=found, fold=fold, split_seed=split_seed)
        if not (folder.work / "normalisation.json").exists():
            data.fit_normalisation()
            data.save_normalisation(folder.work)
        data.load_normalisation(folder.work)
        decoder = build_decoder(config, data=data, seed=seed)
        decoder.fit(data, folder=folder.work)
        decoder.save(folder.work)
        study = {k: v for k, v in plain(cfg.study).items() if k != "raw"}
        folder.finish(name=cfg.name, label=cfg.label, fold=fold, seed=seed, split_seed=split_seed,
                      n_fold_runs=len(folds), study=study, study_name=prepared.name, subjects=data.subjects,
                      splits=_split_hashes(data), later={key: plain(cfg[key]) for key in LATER}, paths={
                          "prepared": relative(prepared.folder, root),
                          "caches": {name: relative(cache.folder, root) for name, cache in found.items()}})
    return run


def _split_hashes(data) -> dict[str, str]:
    return {split: digest(sorted(set(group["stimulus_id"]))) for split, group in data.trials.groupby("split")}
