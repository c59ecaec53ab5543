"""Trained run + prepared study -> predictions, and the control conditions beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from torch import Tensor

from brain2img.artifacts import (
    ArrayWriter,
    Predictions,
    StageFolder,
    open_folder,
    read_manifest,
    write_array,
)
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.records import EmbeddingSpec
from brain2img.stages.collection import for_each_member
from brain2img.stages.progress import progress
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.workspace import conditions, fixed_order, folder_of, outputs, relative, test_rows

log = logging.getLogger(__name__)


@for_each_member
def predict(cfg: DictConfig) -> list[Path]:
    """Decode a split under every asked condition; one folder ``predictions/<name>/<condition>`` each.

    Repetitions of a stimulus are averaged before the decoder. "noise" runs the decoder on Gaussian noise; "shuffled",
    "mean" and "true" are views that point at the decoded rows or at the cache.

    Raises
    ------
    ValueError
        If the run is missing, unfinished, of another study, or its checkpoint does not fit.
    """
    runs = fold_runs(cfg)
    base = folder_of(cfg, "predictions", cfg.name)
    folders = []
    for condition in conditions(cfg):
        inputs = {run.folder.name: run.manifest.id for run in runs}
        if condition == "shuffled":
            inputs = {"decoded": read_manifest(base / "decoded", what="predictions")["id"]}
        folder = open_folder(base / condition, stage="predict", inputs=inputs, overwrite=cfg.overwrite,
                             config={"split": cfg.predict_split, "condition": condition, "seed": cfg.seed})
        folders.append(folder.path)
        if folder.finished:
            log.info("predict %s: finished already (%s)", condition, folder.path)
            continue
        log.info("predict %s of %s", condition, runs[0].manifest.name)
        if condition == "shuffled":
            shuffled_view(folder.work, base / "decoded")
        elif condition == "mean":
            _mean(folder, runs, split=cfg.predict_split)
        elif condition == "true":
            _true(folder, runs, split=cfg.predict_split)
        else:
            _decode(folder, runs, cfg=cfg, noise=condition == "noise")
        folder.finish(condition=condition, label=runs[0].manifest.label, run=relative(
            runs[0].folder.parent, outputs(cfg)), study_name=runs[0].manifest.study_name)
    return folders


def rows_to_decode(runs: list[FoldRun], split: str) -> tuple[pd.DataFrame, list]:
    """Return the rows of a split, fold by fold, and the data of every fold."""
    data = [run.data() for run in runs]
    rows = pd.concat([test_rows(d, split=split, run=i) for i, d in enumerate(data)], ignore_index=True)
    if rows.empty:
        raise ValueError(f"run {runs[0].folder}: expected trials in split {split!r}, got none. "
                         "Choose another predict_split.")
    # the repeats of a cross-validation decode every stimulus once each
    rows["draw"] = [runs[i].manifest.split_seed for i in rows["run"]] if len(runs) > 1 else rows["draw"]
    return rows, data


def _decode(folder: StageFolder, runs: list[FoldRun], *, cfg: DictConfig, noise: bool) -> None:
    rows, data = rows_to_decode(runs, cfg.predict_split)
    decode_rows(folder.work, rows, decoders=runs, data=data, batch_size=cfg.batch_size,
                noise_seed=cfg.seed if noise else None)


def decode_rows(folder: Path, rows: pd.DataFrame, *, decoders: list[FoldRun], data: list[BrainData], batch_size: int,
                by: str = "run", noise_seed: int | None = None,
                silenced: Mapping[str, np.ndarray] | None = None) -> None:
    """Decode rows of trials in all spaces and write them as predictions, going on where an earlier call stopped.

    Parameters
    ----------
    folder
        Where the predictions go.
    rows
        Rows as `BrainData.items` lays them out, in the order of the decoders.
    decoders, data
        Trained folds, and the data of each.
    batch_size
        Rows that are decoded at once.
    by
        Column of `rows` with the place of a row's decoder in `decoders`.
    noise_seed
        Where given, Gaussian noise of this seed is decoded in place of the signals.
    silenced
        Subject -> places of channels that are set to 0, their training mean, before decoding.
    """
    specs = data[0].target_specs
    # latents and embeddings of a decoder are kept in half precision unless the space itself asks for more
    writer = ArrayWriter(folder, {name: ((len(rows), *spec.shape), "float16" if spec.dtype == "float16" else
                                         "float32") for name, spec in specs.items()})
    for i, run in enumerate(decoders):
        places = np.flatnonzero(rows[by] == i)
        if len(places) == 0 or places[-1] < writer.done:
            continue
        decoder = run.decoder(data[i])
        parts = [places[part] for part in chunks(len(places), batch_size) if places[part[-1]] >= writer.done]
        for part in progress(parts, description="decode"):
            part = part[part >= writer.done]
            generator = None if noise_seed is None else np.random.default_rng([noise_seed, i, int(part[0]), 3])
            once = decoder.before_average
            batch = data[i].batch(rows.iloc[part], noise=generator, before_average=None if once is None else partial(
                _silenced, once=once, places=silenced))
            if once is None and silenced is not None:
                for subject, x in batch.signals.items():
                    x[:, silenced[subject]] = 0.0
            predicted = decoder.predict(batch)
            writer.write({name: predicted[name] for name in specs})
    writer.close()
    Predictions.write(folder, rows=rows, specs=specs)


def _silenced(x: Tensor, subject: str, *, once: Callable[[Tensor, str], Tensor],
              places: Mapping[str, np.ndarray] | None) -> Tensor:
    """Return single trials after the fixed part of an adapter, channels at `places` silenced before it."""
    if places is not None:
        x[:, places[subject]] = 0.0
    return once(x, subject)


def shuffled_view(folder: Path, decoded: Path) -> None:
    """Write predictions that point at those in `decoded`, each row at that of another stimulus of its subject."""
    base = Predictions(decoded)
    rows = base.rows.copy()
    # where a fold decodes one stimulus alone, predictions are exchanged between folds
    alone = rows.groupby(["subject", "run", "draw"]).size().eq(1).any()
    for _, group in rows.groupby(["subject", "draw"] if alone else ["subject", "run", "draw"]):
        # a cyclic shift in random order: every row gets the prediction of another stimulus. In that of rendering, so
        # that where the first n are rendered, all but one of them get a prediction that is rendered anyway
        order = pd.Index(group["stimulus_id"]).get_indexer(pd.Index(fixed_order(group["stimulus_id"])))
        rows.loc[group.index[order], "array_row"] = group["array_row"].to_numpy()[np.roll(order, 1)]
    Predictions.write(folder, rows=rows, specs=base.specs,
                      paths={space: base.array(space)[0] for space in base.specs})


def _mean(folder: StageFolder, runs: list[FoldRun], *, split: str) -> None:
    rows, data = rows_to_decode(runs, split)
    specs: dict[str, EmbeddingSpec] = data[0].target_specs
    for name in specs:
        write_array(folder.work / f"{name}.npy", np.stack([d.mean_target(name) for d in data]))
    Predictions.write(folder.work, rows=rows.assign(array_row=rows["run"]), specs=specs)


def _true(folder: StageFolder, runs: list[FoldRun], *, split: str) -> None:
    rows, data = rows_to_decode(runs, split)
    found = data[0].targets
    ids = rows["stimulus_id"].tolist()
    if any(d.targets[name].folder != cache.folder for d in data for name, cache in found.items()):
        # every fold has learned a view of a space of its own
        for name in found:
            write_array(folder.work / f"{name}.npy", np.concatenate(
                [d.target(name, list(rows.loc[rows["run"] == i, "stimulus_id"])) for i, d in enumerate(data)]))
        Predictions.write(folder.work, rows=rows, specs=data[0].target_specs)
        return
    places = {tuple(cache.rows(ids)) for cache in found.values()}
    assert len(places) == 1, "all caches of a study keep its stimuli in one order"
    Predictions.write(folder.work, rows=rows.assign(array_row=list(places.pop())), specs=data[0].target_specs,
                      paths={name: (cache.folder / "embeddings.npy").resolve() for name, cache in found.items()})
