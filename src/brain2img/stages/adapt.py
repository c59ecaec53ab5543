"""A trained run + a new subject -> a run for this subject, which every later stage takes as any other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, digest, open_folder, read_manifest, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.paired import PairedData
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import OVER_SUBJECTS, limit_of
from brain2img.decoders.adaptation import MODES, beside, count, restrict, take_over
from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.settings import read_checkpoint
from brain2img.interfaces import Decoder
from brain2img.stages.build import build_data, build_decoder, class_of, identity_of_study, plain
from brain2img.stages.new_subject import (
    check_new,
    check_signals,
    check_splits,
    runs_without,
    sources_of,
    target_caches,
    target_study,
)
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.train import split_hashes
from brain2img.stages.workspace import folder_of, outputs, relative

log = logging.getLogger(__name__)
VALIDATIONS = 25
"""Validations in a training whose length is given in steps."""


def adapt(cfg: DictConfig) -> Path:
    """Adapt every fold of ``run=<dir>`` to ``subject=``; returns the folder of the new run, ``train/<name>``.

    Of a run that leaves one subject out in each fold (or trains on one alone), the folds without this subject are.

    The new subject's signals are normalised by the training trials used alone; validation and test are whole. Shared
    weights come from the run, the subject's own are fresh; ``mode`` says which are trained. The manifest lists both and
    the size of the subset, ``trials.parquet`` the trials. It resumes and is finished as a training is.

    Raises
    ------
    ValueError
        If the run is missing or no deep decoder, the subject is absent from the study or known to the run, there are
        fewer trials than asked for, a space of the run is not embedded, or a stimulus would cross splits.
    """
    runs = runs_without(cfg.subject, fold_runs(cfg))
    plan = Adaptation.of(cfg, runs[0])
    name, label = str(cfg.name), str(cfg.label)
    for number, run in enumerate(runs):
        log.info("adapt %s to %s as %s, fold %d of %d", run.manifest.name, plan.subject, name, number + 1, len(runs))
        _fold(folder_of(cfg, "train", name, run.folder.name), run, plan, cfg=cfg,
              facts={"name": name, "label": label, "n_fold_runs": len(runs)})
    return folder_of(cfg, "train", name)


@dataclass(frozen=True)
class Adaptation:
    """What is adapted to whom, and how.

    Parameters
    ----------
    subject
        The new subject.
    prepared
        The study that has it.
    caches
        Space -> embeddings of its stimuli.
    config
        The training configuration of the new run.
    settings
        The part of it that `adapt` adds: mode, frozen, source_subjects, ...
    study
        What later stages are told of the study.
    """

    subject: str
    prepared: PreparedStudy
    caches: Mapping[str, EmbeddingCache]
    config: dict[str, Any]
    settings: dict[str, Any]
    study: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: DictConfig, run: FoldRun) -> Adaptation:
        """Read the command and check it against the run and the study."""
        manifest = run.manifest
        config = copy.deepcopy(manifest.training)
        decoder = class_of(config["decoder"], Decoder)
        if not decoder.has_parts:
            raise ValueError(f"run {run.folder.parent}: expected a deep decoder, which shares weights between "
                             f"subjects, got {decoder.__name__}. A linear decoder is fitted to each subject alone: "
                             "train one with data.subjects=[...].")
        if cfg.mode not in MODES:
            raise ValueError(f"mode: expected one of {MODES}, got {cfg.mode!r}. Choose one of these.")
        prepared = target_study(cfg, run)
        subject = check_new(cfg.subject, prepared, run)
        subject_trials = prepared.trials[prepared.trials["subject"] == subject]
        n_trials = limit_of(plain(cfg.trials), subject_trials, what=f"study {prepared.name}, subject {subject!r}")
        config["data"] = {**config["data"], "subjects": [subject]}
        kind = config["split"]["kind"]
        config["split"] = {**config["split"], "kind": "study" if kind in OVER_SUBJECTS else kind,
                           "train_trials": n_trials, "train_order": cfg.order, "train_seed": int(cfg.draw)}
        config["trainer"] = plain(cfg.trainer)
        settings = {"run": manifest.id, "mode": cfg.mode, "frozen": cfg.frozen, "steps": cfg.steps,
                    "source_subjects": sources_of(cfg, run, prepared)}
        return cls(subject, prepared, target_caches(run, prepared), config, settings,
                   study=identity_of_study(plain(cfg.study)))


def in_steps(trainer: Mapping[str, Any], *, n_trials: int, steps: int | None) -> dict[str, Any]:
    """Return the trainer whose epochs make up `steps` optimizer steps, with `VALIDATIONS` validations and no patience.

    Few trials make short epochs: with as many epochs as for many trials the weights would hardly move.
    """
    if steps is None:
        return dict(trainer)
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, or null for trainer.max_epochs, got {steps}. Correct it.")
    batch = min(int(trainer["batch_size"]), n_trials)
    batches = n_trials // batch if trainer.get("drop_last", True) else -(-n_trials // batch)
    a_epoch = -(-batches // int(trainer.get("accumulate", 1)))
    epochs = -(-steps // a_epoch)
    return {**trainer, "max_epochs": epochs, "check_val_every": max(1, epochs // VALIDATIONS), "patience": None}


def _fold(path: Path, run: FoldRun, plan: Adaptation, *, cfg: DictConfig, facts: Mapping[str, Any]) -> None:
    manifest, subject, root = run.manifest, plan.subject, outputs(cfg)
    place = manifest.place
    data = build_data(plan.config, prepared=plan.prepared, caches=plan.caches, fold=place["fold"],
                      split_seed=place["split_seed"])
    used = data.trials[data.trials["split"] == "train"]
    config = {**plan.config, "trainer": in_steps(plan.config["trainer"], n_trials=len(used), steps=cfg.steps)}
    inputs = {"run": manifest.id, "prepared": plan.prepared.manifest["id"],
              **{name: read_manifest(cache.folder)["id"] for name, cache in plan.caches.items()}}
    folder = open_folder(path, stage="adapt", overwrite=cfg.overwrite, inputs=inputs,
                         config={**config, **place, "adapt": {**plan.settings, "run": manifest.id}})
    if folder.finished:
        log.info("adapt: finished already (%s)", folder.path)
        return
    check_signals(run, data)
    check_splits(run, data)
    data.fit_normalisation()
    data.save_normalisation(folder.work)
    write_table(folder.work / "trials.parquet", used[["subject", "stimulus_id", "row"]])
    decoder = cast(DeepDecoder, build_decoder(config, data=data, seed=place["decoder_seed"]))
    checkpoint = run.folder / "best.ckpt"
    weights = take_over(decoder, read_checkpoint(checkpoint)["state_dict"], subject=subject, known=manifest.subjects,
                        what=f"checkpoint {checkpoint}")
    weights |= restrict(decoder, subject=subject, mode=cfg.mode, frozen=cfg.frozen)
    log.info("%d trials; %d values trained, %d frozen", len(used), count(decoder, weights["trained"]),
             count(decoder, weights["frozen"]))
    decoder.fit(_paired(data, run, decoder, plan), folder=folder.work)
    decoder.save(folder.work)
    ids = used[["stimulus_id", "row"]].astype(str).to_dict("list")
    trials = {"n": len(used), "asked": plain(cfg.trials), "order": cfg.order, "seed": int(cfg.draw),
              "hash": digest(ids)}
    folder.finish(
        **facts, study=plan.study, study_name=plan.prepared.name, later=manifest.later, fold=place["fold"],
        seed=place["decoder_seed"], split_seed=place["split_seed"], held_out=None, subjects=data.subjects,
        splits=split_hashes(data),
        adapted={"run": relative(run.folder, root), "subjects": manifest.subjects, **plan.settings, "trials": trials,
                 "n_trained": count(decoder, weights["trained"]), "n_frozen": count(decoder, weights["frozen"]),
                 **weights},
        paths={"prepared": relative(plan.prepared.folder, root),
               "caches": {name: relative(cache.folder, root) for name, cache in plan.caches.items()}})


def _paired(data: BrainData, run: FoldRun, decoder: DeepDecoder, plan: Adaptation) -> BrainData | PairedData:
    """Return the training data: with trials of known subjects beside the new one's, where there are to be any."""
    names = plan.settings["source_subjects"]
    if not names:
        return data
    everyone = run.data()
    if not decoder.module.adapter.known_in_losses:
        everyone.targets = {}  # they are not decoded
    beside(decoder, cast(DeepDecoder, run.decoder(everyone)), frozen=plan.settings["frozen"])
    everyone.trials = everyone.trials[everyone.trials["subject"].isin(names)]
    return PairedData(data, sources=everyone)
