"""What single regions of the brain tell: retrieval and reconstruction from the voxels of one set of ROIs at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, open_dict

from brain2img.artifacts import open_folder, safe_name, write_table
from brain2img.data.rois import roi_sets, voxels_of
from brain2img.metrics.aggregate import records
from brain2img.report.regions import regions_table, save_regions_figure
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.features import PictureFeatures
from brain2img.stages.fit_prior import fit_prior
from brain2img.stages.predict import decode_rows, predict, rows_to_decode
from brain2img.stages.reconstruct import reconstruct
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.scoring import MemberScores
from brain2img.stages.train import train_again
from brain2img.stages.workspace import folder_of, outputs, relative

log = logging.getLogger(__name__)
METHODS = ("ridge", "refit", "mask")


@for_each_member
def regions(cfg: DictConfig) -> Path:
    """Decode from every set of ROIs, reconstruct where asked, and score; writes ``regions/<name>``.

    `regions.method`: "ridge" fits a ridge on the voxels of each set, "refit" the run's own decoder anew; both then see
    nothing else, in training and at test. "mask" keeps the trained run and puts all other voxels at their training
    mean: cheap, but a deep decoder has never met such input, so low scores need not mean that a region knows little.
    `regions.part`: the voxels of the set "alone", or all "without" them.

    ``regions.parquet`` has the records of `brain2img.metrics.aggregate.records` with the set and its number of voxels;
    ``regions.png`` and ``regions.md`` show them. Where the run has reconstructors (and `regions.reconstruct` is true)
    pictures are made from each set, too; the prior is fitted for each set anew, and left out with "mask".

    Raises
    ------
    ValueError
        If the study knows no regions, a set names unknown ones, or the run already decodes from some regions only.
    """
    runs = fold_runs(cfg)
    settings = plain(cfg.regions)
    method, part = settings["method"], settings["part"]
    if method not in METHODS:
        raise ValueError(f"regions.method: expected one of {METHODS}, got {method!r}. Correct it.")
    if runs[0].manifest.config["data"].get("rois") is not None:
        raise ValueError(f"run {runs[0].folder.parent}: expected one that decodes from all voxels, got one with "
                         f"data.rois={runs[0].manifest.config['data']['rois']}. Choose another run.")
    if method == "mask" and runs[0].manifest.config["data"]["scale"] == "none":
        raise ValueError(f"run {runs[0].folder.parent}: expected scaled signals, of which 0 is the training mean, for "
                         "regions.method=mask, got data.scale=none. Use regions.method=refit or ridge.")
    specs = runs[0].data().specs
    sets = roi_sets(specs, settings["sets"], part=part)
    root = outputs(cfg)
    folder = open_folder(folder_of(cfg, "regions", cfg.name), stage="regions", overwrite=cfg.overwrite,
                         inputs={run.folder.name: run.manifest.id for run in runs},
                         config={**settings, "metrics": plain(cfg.metric), "headline": plain(cfg.headline),
                                 "reconstructor": plain(cfg.get("reconstructor")), "prior": plain(cfg.get("prior")),
                                 "n_stimuli": cfg.reconstruct.n_stimuli, "seed": cfg.seed})
    if folder.finished:
        log.info("regions: finished already (%s)", folder.path)
        return folder.path
    features = PictureFeatures(batch_size=cfg.batch_size)
    tables = []
    for number, (name, patterns) in enumerate(sets.items(), start=1):
        log.info("regions %d of %d: %s", number, len(sets), name)
        member = _member(cfg, name, settings=settings)
        if method == "mask":
            _masked(member, runs, patterns)
        else:
            for run in runs:
                train_again(run, name=member.name, data={"rois": patterns}, overwrite=member.overwrite,
                            ridge=settings["ridge"] if method == "ridge" else None)
            predict(member)
        if settings["reconstruct"] and plain(cfg.get("reconstructor")):
            if member.get("prior"):
                fit_prior(member)
            reconstruct(member)
        scores, chance = MemberScores(member, root, features=features).score(seed=cfg.seed)
        # one seed for all sets: the same resamples, so that intervals of sets differ by their scores alone
        found = pd.DataFrame(records(scores, chance, generator=np.random.default_rng([cfg.seed, 5])))
        voxels = {subject: len(voxels_of(spec, patterns)) for subject, spec in specs.items()}
        tables.append(found.assign(
            region=name, part=part, method=method, labels=", ".join(patterns or ["all"]),
            voxels=[voxels.get(subject, round(np.mean(list(voxels.values())))) for subject in found["subject"]]))
    table = pd.concat(tables, ignore_index=True)
    write_table(folder.work / "regions.parquet", table)
    text = regions_table(table, headline=plain(cfg.headline))
    (folder.work / "regions.md").write_text(text + "\n", encoding="utf-8")
    save_regions_figure(table, folder.work / "regions.png", headline=plain(cfg.headline))
    folder.finish(study_name=runs[0].manifest.study_name, label=runs[0].manifest.label)
    log.info("%s\n%s", text, folder.path)
    return folder.path


def _member(cfg: DictConfig, name: str, *, settings: Mapping[str, Any]) -> DictConfig:
    """Return the configuration of the stages for one set: folders of its own, decoded rows alone."""
    member = cfg.copy()
    with open_dict(member):
        words = [settings["method"], *(["without"] if settings["part"] == "without" else []), safe_name(name)]
        member.name = f"{cfg.name}/regions/{'_'.join(words)}"
        member.conditions = ["decoded"]
        if settings["method"] == "mask":
            member.run, member.prior = cfg.get("run") or str(outputs(cfg) / "train" / cfg.name), None
        else:
            member.run = None
    return member


def _masked(member: DictConfig, runs: list[FoldRun], patterns: list[str] | None) -> None:
    """Decode with the trained run, all voxels outside of one set at their training mean; as predictions."""
    root, manifest = outputs(member), runs[0].manifest
    folder = open_folder(folder_of(member, "predictions", member.name, "decoded"), stage="predict",
                         overwrite=member.overwrite,
                         inputs={run.folder.name: run.manifest.id for run in runs},
                         config={"split": member.predict_split, "condition": "decoded", "rois": patterns})
    if folder.finished:
        return
    rows, data = rows_to_decode(runs, member.predict_split)
    outside = {subject: np.setdiff1d(np.arange(spec.n_channels), voxels_of(spec, patterns))
               for fold in data for subject, spec in fold.specs.items()}
    decode_rows(folder.work, rows, decoders=runs, data=data, batch_size=member.batch_size, silenced=outside)
    folder.finish(condition="decoded", label=manifest.label, study_name=manifest.study_name,
                  run=relative(runs[0].folder.parent, root))
