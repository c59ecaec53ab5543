"""Predictions -> images."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig
from PIL import Image

from brain2img.artifacts import (
    Predictions,
    StageFolder,
    digest,
    is_whole_png,
    open_folder,
    safe_name,
    write_table,
    writing,
)
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.data.pictures import to_uint8
from brain2img.interfaces import Reconstructor
from brain2img.stages.build import build_reconstructors, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.making import asked_predictions, fold_run, row_keys
from brain2img.stages.memory import fitting
from brain2img.stages.progress import progress
from brain2img.stages.runs import FoldRun
from brain2img.stages.workspace import fixed_order, folder_of

log = logging.getLogger(__name__)


@for_each_member
def reconstruct(cfg: DictConfig) -> list[Path]:
    """Make images of the rows of the predictions by every chosen reconstructor, under every asked condition.

    A picture depends on the reconstructor, the seed and the decoded embedding alone, and is kept under
    ``cache/pictures/`` by these. So none is made twice: not after a restart, not for shuffled pairs, and the true and
    mean ones once for all subjects and decoders of a study. Folders hold links to them.

    Raises
    ------
    ValueError
        If the predictions are missing or lack a space that a reconstructor needs, if it was trained on another
        space, or if a batch is too large for memory.
    """
    reconstructors = build_reconstructors(cfg)
    asked = asked_predictions(cfg, reconstructors, group="reconstructor")
    # popped, so that one model at a time is in memory
    return [path for key in list(reconstructors) for path in _reconstruct(key, reconstructors.pop(key), asked, cfg=cfg)]


def _reconstruct(key: str, reconstructor: Reconstructor, asked: Mapping[str, Predictions], *, cfg: DictConfig
                 ) -> list[Path]:
    settings = {"reconstructor": plain(cfg.reconstructor[key]), "weights": reconstructor.uid(), "seed": cfg.seed}
    store = folder_of(cfg, "cache", "pictures", f"{key}-{digest(settings, length=8)}")
    # all are opened before any work: with overwrite=true a picture made since then is as new as it has to be
    folders = {condition: open_folder(
        folder_of(cfg, "reconstructions", cfg.name, key, condition), stage="reconstruct",
        config={**settings, "n_stimuli": cfg.reconstruct.n_stimuli},
        inputs={"predictions": predictions.manifest["id"]}, overwrite=cfg.overwrite)
        for condition, predictions in asked.items()}
    for condition, folder in folders.items():
        if folder.finished:
            log.info("reconstruct %s %s: finished already (%s)", key, condition, folder.path)
            continue
        _images(folder, asked[condition], reconstructor, store=store, cfg=cfg)
        folder.finish(condition=condition, study_name=asked[condition].manifest["study_name"])
    return [folder.path for folder in folders.values()]


def rendered(stimulus_ids: Iterable[str], n: int | None) -> list[str]:
    """Return the `n` stimuli that are rendered (None for all): the first in an order that is the same for all.

    So the pictures of subjects, decoders and conditions compare.

    Raises
    ------
    ValueError
        If `n` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"reconstruct.n_stimuli: expected at least 1, or null for all, got {n}. Correct it.")
    return fixed_order(stimulus_ids)[:n]


def _images(folder: StageFolder, predictions: Predictions, reconstructor: Reconstructor, *, store: Path,
            cfg: DictConfig) -> None:
    rows = predictions.rows
    rows = rows[rows["stimulus_id"].isin(rendered(rows["stimulus_id"], cfg.reconstruct.n_stimuli))]
    begun = (folder.work / "started.json").stat().st_mtime if cfg.overwrite else 0.0
    store.mkdir(parents=True, exist_ok=True)
    pictures = pd.Series(index=rows.index, dtype=object)
    for fold in sorted(set(rows["run"])):
        fitted = fold_run(cfg, predictions, fold) if reconstructor.fits else None
        of_fold = rows.index[rows["run"] == fold].to_numpy()
        pictures[of_fold] = [store / f"{key}.png" for key in row_keys(
            predictions, of_fold, reconstructor.needs, fitted=fitted.manifest.id if fitted else "")]
        new = pictures[of_fold].drop_duplicates()
        new = new[[not (is_whole_png(path) and path.stat().st_mtime >= begun) for path in new]]
        log.info("reconstruct %s %s: %d pictures, %d of them new", folder.path.parent.name, folder.path.name,
                 len(of_fold), len(new))
        if fitted and len(new):
            _fit(reconstructor, fitted)
        for part in progress(chunks(len(new), cfg.reconstruct.batch_size), description="reconstruct"):
            _render(new.iloc[part], predictions, reconstructor, seed=cfg.seed)
    (folder.work / "images").mkdir(exist_ok=True)
    files = [f"images/{i:06d}_{safe_name(f'{subject}_{stimulus}')}.png"
             for i, subject, stimulus in zip(rows.index, rows["subject"], rows["stimulus_id"], strict=True)]
    for picture, file in zip(pictures, files, strict=True):
        _link(picture, folder.work / file)
    write_table(folder.work / "index.parquet", rows[["subject", "stimulus_id", "run", "draw"]].assign(
        row=rows.index, file=files, picture=[path.stem for path in pictures]))


def _render(pictures: pd.Series, predictions: Predictions, reconstructor: Reconstructor, *, seed: int) -> None:
    """Make the pictures (paths by row of the predictions) and write them."""
    rows = pictures.index.to_numpy()
    # by the place in the array, so that a prediction keeps its noise whatever it is paired with
    generators = [torch.Generator().manual_seed(int(seed) * 1_000_003 + int(place))
                  for place in predictions.rows["array_row"].to_numpy()[rows]]
    needed = {space: torch.from_numpy(predictions.embeddings(space, rows)) for space in reconstructor.needs}
    with fitting(len(rows), key="reconstruct.batch_size"):
        images = reconstructor.reconstruct(needed, generators=generators)
    pixels = to_uint8(images.float().cpu().permute(0, 2, 3, 1).numpy(), expected="0..1",
                      what=f"pictures of {type(reconstructor).__name__}")
    for path, image in zip(pictures, pixels, strict=True):
        with writing(path) as temporary:
            Image.fromarray(image).save(temporary, format="PNG", compress_level=1)


def _link(picture: Path, file: Path) -> None:
    """Let `file` be the picture: a hard link, or a copy where the file system knows none."""
    file.unlink(missing_ok=True)
    try:
        os.link(picture, file)
    except OSError:
        shutil.copyfile(picture, file)


def _fit(reconstructor: Reconstructor, run: FoldRun) -> None:
    """Show the reconstructor the training stimuli of one fold."""
    data = run.data()
    ids = sorted(set(data.trials.loc[data.trials["split"] == "train", "stimulus_id"]))
    reconstructor.fit(_Targets(data, ids, reconstructor.needs), data.study.stimuli_of(ids))


class _Targets(Mapping[str, np.ndarray]):
    """Space -> its true embeddings, read when asked for: those of the layers of a network may not fit into memory."""

    def __init__(self, data: BrainData, ids: list[str], spaces: tuple[str, ...]) -> None:
        self.data, self.ids, self.spaces = data, ids, spaces

    def __getitem__(self, space: str) -> np.ndarray:
        return self.data.target(space, self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spaces)

    def __len__(self) -> int:
        return len(self.spaces)
