"""Predictions of several runs -> their mean, as predictions of a run of its own."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import ArrayWriter, EmbeddingCache, Predictions, open_folder, read_manifest, stored_at
from brain2img.data.dataset import chunks
from brain2img.stages.build import plain
from brain2img.stages.predict import shuffled_view
from brain2img.stages.runs import FoldRun, fold_order
from brain2img.stages.train import LEARNED
from brain2img.stages.workspace import conditions, folder_of, outputs, relative

log = logging.getLogger(__name__)
ROWS = ["subject", "stimulus_id", "n_averaged", "run"]
"""What the rows of all members must agree in, in their order."""


def ensemble(cfg: DictConfig) -> list[Path]:
    """Average the L2-normalised predictions of ``runs``; one folder ``predictions/<name>/<condition>`` each.

    Members are runs of different seeds, decoders or recipes that decode the same rows into spaces of the same names.
    Where a space is the same for all, predictions are averaged: the cosine to the mean is, up to a factor, the mean of
    the cosines to the members. Where each has learned a space of its own, predictions and true embeddings of length 1
    are put one after the other, so that the cosine is the mean of the members' cosines; every prediction is divided by
    the standard deviation of its cosines to the training stimuli first, so that members with larger cosines do not
    outweigh the others. Conditions that all of them have are
    averaged; "shuffled" pairs the mean anew. ``train/<name>`` stands for the members' runs: it holds what later stages
    ask of a run (study, splits, scaling of the first), and no weights.

    Raises
    ------
    ValueError
        If there are fewer than two runs, no name, or their rows or spaces differ.
    """
    names = [str(name) for name in plain(cfg.runs)]
    if len(set(names)) < max(2, len(names)) or cfg.name is None:
        raise ValueError(f"ensemble: expected two or more different runs and a name, got runs={names} and "
                         f"name={cfg.name}. Give runs=[a,b] name=c.")
    base = outputs(cfg) / "predictions"
    found = {name: Predictions(base / name / "decoded") for name in names}
    run = _run(cfg, found)
    folders = []
    for condition in conditions(cfg):
        if condition != "shuffled":
            there = [name for name in names if (base / name / condition / "manifest.json").exists()]
            if len(there) < len(names):
                log.warning("ensemble: condition %s is left out, for not all of %s have it", condition, names)
                continue
        members = {} if condition == "shuffled" else {name: Predictions(base / name / condition) for name in names}
        inputs = {name: str(member.manifest["id"]) for name, member in members.items()} or {
            "decoded": read_manifest(base / cfg.name / "decoded", what="predictions")["id"]}
        folder = open_folder(folder_of(cfg, "predictions", cfg.name, condition), stage="ensemble", inputs=inputs,
                             overwrite=cfg.overwrite, config={"runs": names, "condition": condition})
        folders.append(folder.path)
        if folder.finished:
            log.info("ensemble %s: finished already (%s)", condition, folder.path)
            continue
        if condition == "shuffled":
            shuffled_view(folder.work, base / cfg.name / "decoded")
        else:
            _average(folder.work, members, runs={name: list(_folds(p, outputs(cfg))) for name, p in found.items()})
        manifest = next(iter(found.values())).manifest
        folder.finish(condition=condition, label=str(cfg.label), run=relative(run, outputs(cfg)),
                      study_name=manifest["study_name"])
    return folders


def _average(folder: Path, members: Mapping[str, Predictions], *, runs: Mapping[str, list[FoldRun]]) -> None:
    """Write the mean of the members' predictions, each of length 1, or put those of different spaces together."""
    (first_name, first), *others = members.items()
    for name, other in others:
        if not first.rows[ROWS].equals(other.rows[ROWS]):
            raise ValueError(f"ensemble: expected the rows of {first_name!r} ({len(first.rows)}) in {name!r}, got "
                             f"others ({len(other.rows)}). Average runs of one study, split and protocol.")
        if set(first.specs) != set(other.specs):
            raise ValueError(f"ensemble: expected the spaces of {first_name!r} ({sorted(first.specs)}) in {name!r}, "
                             f"got others ({sorted(other.specs)}). Average runs of the same spaces.")
    learned = {space for folds in runs.values() for run in folds for space in run.learned}
    for space in first.specs:
        kinds = {(p.specs[space].uid, p.specs[space].shape) for p in members.values()}
        if space not in learned and len(kinds) > 1:
            raise ValueError(f"ensemble, space {space!r}: expected the same weights and shape in {list(members)}, got "
                             f"{sorted(map(str, kinds))}. Average runs of the same spaces.")
    specs = dict(first.specs)
    for space in learned:
        size = sum(p.specs[space].size for p in members.values())
        specs[space] = dataclasses.replace(specs[space], shape=(size,), parts={})
    spreads = {(name, space): _spreads(p, runs[name], space) for name, p in members.items() for space in learned}
    writer = ArrayWriter(folder, {space: ((len(first.rows), *spec.shape), "float32") for space, spec in specs.items()})
    for part in chunks(len(first.rows), 256):
        if part[0] >= writer.done:
            rows = np.array(part)
            units = {space: [_unit(p.embeddings(space, rows)) for p in members.values()] for space in specs}
            writer.write({space: np.mean(values, axis=0) if space not in learned else np.concatenate(
                [x.reshape(len(x), -1) / spreads[name, space][rows][:, None]
                 for name, x in zip(members, values, strict=True)], axis=1) for space, values in units.items()})
    writer.close()
    Predictions.write(folder, rows=first.rows.drop(columns="array_row"), specs=specs)


def _spreads(predictions: Predictions, folds: list[FoldRun], space: str) -> np.ndarray:
    """Return the standard deviation of every prediction's cosines to the training stimuli of its fold, ``(n,)``."""
    found = np.empty(len(predictions.rows), dtype=np.float32)
    for run, group in predictions.rows.groupby("run"):
        data = folds[int(run)].data()
        true = _unit(data.training_targets(space).reshape(-1, predictions.specs[space].size))
        for part in chunks(len(group), 256):
            rows = group.index.to_numpy()[part]
            cosines = _unit(predictions.embeddings(space, rows).reshape(len(rows), -1)) @ true.T
            found[rows] = cosines.std(axis=1)
    return np.where(found > 0, found, 1.0)


def _unit(x: np.ndarray) -> np.ndarray:
    """Return rows ``(n, *shape)`` of length 1; one of length 0 stays."""
    length = np.linalg.norm(x.reshape(len(x), -1), axis=1).reshape(-1, *[1] * (x.ndim - 1))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def _run(cfg: DictConfig, members: Mapping[str, Predictions]) -> Path:
    """Write ``train/<name>``, which stands for the runs of the members; returns it."""
    root = outputs(cfg)
    runs = {name: list(_folds(p, root)) for name, p in members.items()}
    folder = folder_of(cfg, "train", cfg.name)
    for place, first in enumerate(next(iter(runs.values()))):
        manifest = first.manifest
        mine = open_folder(folder / first.folder.name, stage="ensemble", config=manifest.config,
                           inputs={**{f"run {name}": folds[min(place, len(folds) - 1)].manifest.id
                                      for name, folds in runs.items()}, "prepared": manifest.inputs["prepared"]},
                           overwrite=cfg.overwrite)
        if mine.finished:
            continue
        for file in first.folder.glob("normalisation*"):
            shutil.copy(file, mine.work / file.name)
        paths = {**manifest.paths, "learned": {}}
        for space in sorted({space for folds in runs.values() for space in folds[place].learned}):
            members_caches = [folds[place].caches()[space] for folds in runs.values()]
            _together(mine.work / LEARNED / space, members_caches)
            paths["learned"][space] = relative(folder / first.folder.name / LEARNED / space, root)
        mine.finish(**manifest.facts(name=str(cfg.name), label=str(cfg.label)), fold=manifest.fold, seed=manifest.seed,
                    split_seed=manifest.split_seed, held_out=manifest.held_out, subjects=manifest.subjects,
                    splits=manifest.splits, unseen=manifest.unseen, paths=paths, members=list(runs))
    return folder


def _together(folder: Path, caches: list[EmbeddingCache]) -> None:
    """Write the true embeddings of several learned spaces, each of length 1, one after the other."""
    first = caches[0]
    parts = [_unit(np.asarray(c.array[c.rows(first.stimulus_ids)], dtype=np.float32)) for c in caches]
    joined = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    EmbeddingCache.write_view(folder, of=first, view=lambda _: joined, chunk=len(joined), spec=dataclasses.replace(
        first.spec, shape=(joined.shape[1],), parts={}))


def _folds(predictions: Predictions, root: Path) -> Iterator[FoldRun]:
    run = stored_at(root, predictions.manifest["run"], of=f"predictions {predictions.folder}")
    for folder in sorted(run.glob("fold-*"), key=fold_order):
        yield FoldRun(folder, root)
