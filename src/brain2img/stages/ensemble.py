"""Predictions of several runs -> their mean, as predictions of a run of its own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import ArrayWriter, Predictions, open_folder, read_manifest
from brain2img.data.dataset import chunks
from brain2img.stages.build import plain
from brain2img.stages.predict import shuffled_view
from brain2img.stages.workspace import FoldRun, conditions, fold_order, outputs, relative

log = logging.getLogger(__name__)
ROWS = ["subject", "stimulus_id", "n_averaged", "run"]
"""What the rows of all members must agree in, in their order."""


def ensemble(cfg: DictConfig) -> list[Path]:
    """Average the L2-normalised predictions of ``runs``; one folder ``predictions/<name>/<condition>`` each.

    Members are runs of different seeds, decoders or recipes that decode the same rows into the same spaces; the cosine
    to the mean is, up to a factor, the mean of the cosines to the members. Conditions that all of them have are
    averaged; "shuffled" pairs the mean anew. ``train/<name>`` stands for the members' runs: it holds what later stages
    ask of a run (study, splits, scaling of the first), and no weights.

    Raises
    ------
    ValueError
        If there are fewer than two runs, no name, or their rows or spaces differ.
    """
    names = [str(name) for name in plain(cfg.runs)]
    if len(set(names)) < max(2, len(names)) or cfg.name == "default":
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
        folder = open_folder(base / cfg.name / condition, stage="ensemble", inputs=inputs, overwrite=cfg.overwrite,
                             config={"runs": names, "condition": condition})
        folders.append(folder.path)
        if folder.finished:
            log.info("ensemble %s: finished already (%s)", condition, folder.path)
            continue
        if condition == "shuffled":
            shuffled_view(folder.work, base / cfg.name / "decoded")
        else:
            _average(folder.work, members)
        manifest = next(iter(found.values())).manifest
        folder.finish(condition=condition, label=str(cfg.label), run=relative(run, outputs(cfg)),
                      study_name=manifest["study_name"])
    return folders


def _average(folder: Path, members: Mapping[str, Predictions]) -> None:
    """Write the mean of the members' predictions, each of length 1."""
    (first_name, first), *others = members.items()
    for name, other in others:
        if not first.rows[ROWS].equals(other.rows[ROWS]):
            raise ValueError(f"ensemble: expected the rows of {first_name!r} ({len(first.rows)}) in {name!r}, got "
                             f"others ({len(other.rows)}). Average runs of one study, split and protocol.")
        uids = [{space: (spec.uid, spec.shape) for space, spec in p.specs.items()} for p in (first, other)]
        if uids[0] != uids[1]:
            raise ValueError(f"ensemble: expected the spaces of {first_name!r} ({sorted(first.specs)}) in {name!r}, "
                             f"got others ({sorted(other.specs)}), or of other weights. Average runs of the same "
                             "spaces.")
    writer = ArrayWriter(folder, {space: ((len(first.rows), *spec.shape), "float32")
                                  for space, spec in first.specs.items()})
    for part in chunks(len(first.rows), 256):
        if part[0] >= writer.done:
            writer.write({space: np.mean([_unit(p.embeddings(space, np.array(part))) for p in members.values()], axis=0)
                          for space in first.specs})
    writer.close()
    Predictions.write(folder, rows=first.rows.drop(columns="array_row"), specs=first.specs)


def _unit(x: np.ndarray) -> np.ndarray:
    """Return rows ``(n, *shape)`` of length 1; one of length 0 stays."""
    length = np.linalg.norm(x.reshape(len(x), -1), axis=1).reshape(-1, *[1] * (x.ndim - 1))
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def _run(cfg: DictConfig, members: Mapping[str, Predictions]) -> Path:
    """Write ``train/<name>``, which stands for the runs of the members; returns it."""
    root = outputs(cfg)
    runs = {name: list(_folds(p, root)) for name, p in members.items()}
    folder = root / "train" / cfg.name
    for place, first in enumerate(next(iter(runs.values()))):
        manifest = first.manifest
        mine = open_folder(folder / first.folder.name, stage="ensemble", config=manifest["config"],
                           inputs={**{f"run {name}": folds[min(place, len(folds) - 1)].manifest["id"]
                                      for name, folds in runs.items()}, "prepared": manifest["inputs"]["prepared"]},
                           overwrite=cfg.overwrite)
        if mine.finished:
            continue
        for file in first.folder.glob("normalisation*"):
            shutil.copy(file, mine.work / file.name)
        kept = ("study", "study_name", "later", "fold", "seed", "split_seed", "held_out", "subjects", "unseen",
                "splits", "paths", "n_fold_runs")
        mine.finish(**{key: manifest[key] for key in kept if key in manifest}, name=str(cfg.name),
                    label=str(cfg.label), members=list(runs))
    return folder


def _folds(predictions: Predictions, root: Path) -> Iterator[FoldRun]:
    for folder in sorted((root / predictions.manifest["run"]).glob("fold-*"), key=fold_order):
        yield FoldRun(folder, root)
