"""Prepared study + embeddings -> trained decoders, one per fold and repeat."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, below, digest, open_folder, read_manifest
from brain2img.data.datamodule import BrainData
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Decoder
from brain2img.stages.build import build_data, build_decoder, identity_of_study, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.runs import FoldRun
from brain2img.stages.workspace import (
    LATER,
    caches,
    folder_of,
    iterate_folds,
    outputs,
    prepared_folder,
    relative,
    training_config,
)

log = logging.getLogger(__name__)
LEARNED = "learned"
"""Folder in a fold's: the true embeddings as the heads that learn a view of a space see them."""

UNSEEN = "statistics of its signals from its own recordings of training stimuli, without labels"
"""What a fold's manifest says of a subject that it was not trained on."""


@for_each_member
def train(cfg: DictConfig) -> Path:
    """Train the decoder that the configuration describes on every fold; returns the folder of the run.

    A model is built anew for every fold; finished folds are skipped, and an interrupted one goes on at the epoch it
    was in.

    Raises
    ------
    ValueError
        If the study or its embeddings are missing, channels are NaN or constant, or a head has no space.
    """
    prepared = PreparedStudy(prepared_folder(cfg))
    found = caches(cfg, prepared=prepared)
    config = training_config(cfg)
    folds = list(iterate_folds(config, prepared=prepared))
    run = folder_of(cfg, "train", cfg.name)
    facts = run_facts(cfg, prepared=prepared, n_fold_runs=len(folds))
    for number, (fold, split_seed, seed) in enumerate(folds):
        train_fold(run / f"fold-{fold}_seed-{seed}", config=config, prepared=prepared, found=found, root=outputs(cfg),
                   place={"fold": fold, "split_seed": split_seed, "decoder_seed": seed}, overwrite=cfg.overwrite,
                   facts=facts, description=f"train {cfg.name}, fold {number + 1} of {len(folds)} (seed {seed})")
    return run


def run_facts(cfg: DictConfig, *, prepared: PreparedStudy, n_fold_runs: int) -> dict[str, Any]:
    """Return what the manifest of every fold of a run remembers for later stages."""
    return {"name": cfg.name, "label": cfg.label, "n_fold_runs": n_fold_runs,
            "study": identity_of_study(plain(cfg.study)), "study_name": prepared.name,
            "later": {key: plain(cfg.get(key)) for key in LATER}}


def train_fold(path: Path, *, config: Mapping[str, Any], prepared: PreparedStudy, found: Mapping[str, EmbeddingCache],
               root: Path, place: Mapping[str, Any], overwrite: bool, facts: Mapping[str, Any],
               description: str, fit: Callable[[Decoder, BrainData, Path], None] | None = None,
               inputs: Mapping[str, str] | None = None) -> None:
    """Train one decoder into the folder `path`, or go on with it, unless it is finished.

    Parameters
    ----------
    path
        Folder of the fold.
    config
        What `training_config` returns.
    prepared, found
        The study and its embeddings.
    root
        Root of all results.
    place
        Which training this is: fold, split_seed, decoder_seed, and held_out where a part of the training stimuli is
        left out.
    overwrite
        See `brain2img.artifacts.open_folder`.
    facts
        What the manifest remembers for later stages.
    description
        What the log calls it.
    fit
        What is done to the untrained decoder in the folder; by default it is fitted on the training split.
    inputs
        Ids of what it is made of beside the study and its embeddings.
    """
    inputs = {**(inputs or {}), "prepared": prepared.manifest["id"],
              **{name: read_manifest(cache.folder)["id"] for name, cache in found.items()}}
    folder = open_folder(path, stage="train", config={**config, **place}, inputs=inputs, overwrite=overwrite)
    if folder.finished:
        return
    log.info("%s", description)
    data = build_data(config, prepared=prepared, caches=found, fold=place["fold"], split_seed=place["split_seed"],
                      held_out=place.get("held_out"))
    if not (folder.work / "normalisation.json").exists():
        data.fit_normalisation()
        data.save_normalisation(folder.work)
    data.load_normalisation(folder.work)
    decoder = build_decoder(config, data=data, seed=place["decoder_seed"])
    if fit is None:
        decoder.fit(data, folder=folder.work)
    else:
        fit(decoder, data, folder.work)
    decoder.save(folder.work)
    learned = decoder.learned_spaces()
    for name, (spec, view) in learned.items():
        EmbeddingCache.write_view(folder.work / LEARNED / name, of=found[name], spec=spec, view=view)
    folder.finish(**facts, fold=place["fold"], seed=place["decoder_seed"], split_seed=place["split_seed"],
                  held_out=place.get("held_out"), subjects=list(data.specs), splits=split_hashes(data),
                  unseen={subject: UNSEEN for subject in data.unseen}, paths={
                      "prepared": relative(prepared.folder, root),
                      "caches": {name: relative(cache.folder, root) for name, cache in found.items()},
                      "learned": {name: relative(path / LEARNED / name, root) for name in learned}})


def train_again(run: FoldRun, *, name: str, data: Mapping[str, Any], overwrite: bool,
                ridge: Mapping[str, Any] | None = None, encoder: Mapping[str, Any] | None = None) -> FoldRun:
    """Train the decoder of a fold again with other settings of the data, into ``train/<name>``; return the new fold.

    Parameters
    ----------
    run
        The fold.
    name
        Name of the new run.
    data
        Settings of ``data`` that are replaced.
    overwrite
        See `brain2img.artifacts.open_folder`.
    ridge
        Where given, this ridge is fitted in place of the run's own decoder, unless that is ridge itself.
    encoder
        Settings of ``encoder`` that are replaced, where the run's own decoder has one.
    """
    manifest = run.manifest
    label = manifest.label
    config = manifest.training
    if ridge is not None and config["decoder"]["_target_"] != ridge["_target_"]:
        config = {key: config[key] for key in ("split", "data", "seed")} | {"decoder": dict(ridge)}
        label = "ridge"
    elif encoder:
        config["encoder"] = {**config["encoder"], **encoder}
    config["data"] = {**config["data"], **data}
    path = below(run.root, "train", name, run.folder.name)
    train_fold(path, config=config, prepared=run.prepared, found=run.caches(learned=False), root=run.root,
               place=manifest.place, overwrite=overwrite, facts=manifest.facts(name=name, label=label),
               description=f"train {name} {run.folder.name}")
    return FoldRun(path, run.root)


def split_hashes(data: BrainData) -> dict[str, str]:
    """Return a hash of the stimulus ids of every split."""
    return {split: digest(sorted(set(group["stimulus_id"]))) for split, group in data.trials.groupby("split")}
