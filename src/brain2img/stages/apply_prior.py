"""Predictions + a prior -> predictions on the manifold of true embeddings, which reconstructors and captioners read."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from brain2img.artifacts import (
    ArrayWriter,
    Predictions,
    StageFolder,
    below,
    differences,
    digest,
    open_folder,
    read_manifest,
    safe_name,
)
from brain2img.data.dataset import chunks
from brain2img.interfaces import Prior
from brain2img.stages.build import build_prior, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.progress import progress
from brain2img.stages.workspace import conditions, folder_of

log = logging.getLogger(__name__)

FROM_BRAINS = ("decoded", "noise", "shuffled")
"""Conditions that a prior acts on; true and mean embeddings need none."""


@for_each_member
def apply_prior(cfg: DictConfig) -> list[Path]:
    """Draw a sample of the prior for every decoded embedding; ``predictions/<name>/with_prior/<condition>-<hash>/``.

    Its noise follows from the seed and the place of the prediction alone, so that shuffled pairs hold the very samples
    of the decoded ones. Spaces without a prior are handed on as they are. The id of the prior is part of the folder's
    own, so a changed prior is noticed.

    Raises
    ------
    ValueError
        If no prior is chosen, predictions or the prior are missing or unfinished, or the prior was fitted with other
        settings, for another run, space or subject.
    """
    if not cfg.get("prior"):
        raise ValueError("prior: expected one to apply, got none. Choose one, as in prior=affine.")
    return [_apply(cfg, condition) for condition in conditions(cfg) if condition in FROM_BRAINS]


def conditioned(cfg: DictConfig, condition: str) -> Predictions:
    """Return what reconstructors and captioners read under a condition: predictions, with the prior where there is one.

    Raises
    ------
    ValueError
        If the prior is missing or of other settings, or was not applied.
    """
    base = folder_of(cfg, "predictions", cfg.name)
    if not cfg.get("prior") or condition not in FROM_BRAINS:
        return Predictions(base / condition)
    place, _ = _with_prior(cfg, condition)
    if not (place / "manifest.json").exists():
        raise ValueError(f"predictions {base / condition}: expected the prior to be applied to them, got none in "
                         f"{place.parent}. Run the stage apply_prior first, with the same settings.")
    return Predictions(place)


def _with_prior(cfg: DictConfig, condition: str) -> tuple[Path, dict[str, str]]:
    """Return where predictions with the prior stand, and what they are made of."""
    place = folder_of(cfg, "priors", cfg.name)
    manifest = read_manifest(place, what="prior")
    lines = differences(manifest["config"]["prior"], plain(cfg.prior))
    if lines:
        raise ValueError(f"prior {place}: expected one of the settings asked for, got one of others:\n  "
                         + "\n  ".join(lines) + "\nRun fit_prior with overwrite=true, or correct prior=....")
    base = folder_of(cfg, "predictions", cfg.name)
    predictions = read_manifest(base / condition, what="predictions")
    inputs = {"predictions": predictions["id"], "prior": manifest["id"]}
    return base / "with_prior" / f"{condition}-{digest([inputs, cfg.seed], length=8)}", inputs


def _apply(cfg: DictConfig, condition: str) -> Path:
    path, inputs = _with_prior(cfg, condition)
    folder = open_folder(path, stage="apply_prior", config={"condition": condition, "seed": cfg.seed}, inputs=inputs,
                         overwrite=cfg.overwrite)
    if folder.finished:
        return folder.path
    predictions = Predictions(path.parent.parent / condition)
    place = folder_of(cfg, "priors", cfg.name)
    manifest = read_manifest(place, what="prior")
    if condition == "shuffled":
        samples, _ = _with_prior(cfg, "decoded")
        decoded = Predictions(samples if (samples / "manifest.json").exists() else _apply(cfg, "decoded"))
        Predictions.write(folder.work, rows=predictions.rows, specs=decoded.specs,
                          paths={space: decoded.array(space)[0] for space in decoded.specs})
    else:
        _check(predictions, manifest, place=place)
        log.info("apply prior to %s: %s", condition, ", ".join(manifest["config"]["spaces"]))
        _sample(folder, predictions, manifest, place=place, cfg=cfg)
    folder.finish(**{key: predictions.manifest[key] for key in ("condition", "label", "run", "study_name")},
                  prior=manifest["source"])
    return folder.path


def prior_place(folder: Path, space: str, *, run: int, subject: str | None) -> Path:
    """Return where the prior of a space, a fold and (where there is one for each) a subject stands."""
    return below(folder, space, f"run-{run}" if subject is None else f"run-{run}_{safe_name(subject)}")


def row_generators(seed: int, rows: Iterable[int]) -> list[torch.Generator]:
    """Return a generator for each row, from the seed and the number of the row alone."""
    return [torch.Generator().manual_seed(int(np.random.SeedSequence([seed, int(row), 6]).generate_state(1)[0]))
            for row in rows]


def _check(predictions: Predictions, manifest: dict[str, Any], *, place: Path) -> None:
    if set(predictions.manifest["inputs"].values()) != set(manifest["runs"]):
        raise ValueError(f"prior {place}: expected one fitted for the run that made {predictions.folder}, got one of "
                         "another run. Run fit_prior again with overwrite=true.")
    for space, uid in manifest["uids"].items():
        if predictions.specs[space].uid != uid:
            raise ValueError(f"prior {place}: expected one fitted in space {space!r} of uid "
                             f"{predictions.specs[space].uid}, got uid {uid}. Run fit_prior again with overwrite=true.")


def _sample(folder: StageFolder, predictions: Predictions, manifest: dict[str, Any], *, place: Path,
            cfg: DictConfig) -> None:
    rows, spaces, per_subject = predictions.rows, manifest["config"]["spaces"], manifest["config"]["per_subject"]
    assert (rows["array_row"] == range(len(rows))).all(), "decoded rows stand in the order of their arrays"
    priors: dict[tuple[str, int, str | None], Prior] = {}
    writer = ArrayWriter(folder.work, {s: ((len(rows), *predictions.specs[s].shape), "float32") for s in spaces})
    # the same parts after a restart, since rounding may depend on what is sampled together
    parts = [part for part in chunks(len(rows), cfg.batch_size) if part[-1] >= writer.done]
    for part in progress(parts, description="apply prior"):
        part_rows = rows.iloc[part]
        out = {space: predictions.embeddings(space, np.array(part)) for space in spaces}
        keys = part_rows["subject"] if per_subject else pd.Series("", index=part_rows.index)
        for (run, subject), group in part_rows.groupby(["run", keys.rename("of")]):
            local = group.index.to_numpy() - part[0]
            for space in spaces:
                key = space, int(run), str(subject) if per_subject else None
                if key not in priors:
                    priors[key] = _load(place, *key, config=manifest["config"])
                out[space][local] = priors[key].sample(out[space][local],
                                                       generators=row_generators(cfg.seed, group.index))
        writer.write(out)
    writer.close()
    Predictions.write(folder.work, rows=rows, specs=predictions.specs, paths={
        space: folder.path / f"{space}.npy" if space in spaces else predictions.array(space)[0]
        for space in predictions.specs})


def _load(place: Path, space: str, run: int, subject: str | None, *, config: dict[str, Any]) -> Prior:
    folder = prior_place(place, space, run=run, subject=subject)
    if not folder.exists():
        raise ValueError(f"prior {place}: expected one for space {space!r}, fold {run} and subject {subject!r}, got "
                         f"{sorted(p.name for p in (place / space).glob('run-*'))}. Fit it on a run with that subject.")
    prior = build_prior(config)
    prior.load(folder)
    return prior
