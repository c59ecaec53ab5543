"""Predictions -> images."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from brain2img.artifacts import Predictions, open_folder, safe_name, write_table, writing
from brain2img.data.dataset import chunks
from brain2img.interfaces import Reconstructor
from brain2img.stages.build import build_reconstructor, plain
from brain2img.stages.progress import progress
from brain2img.stages.workspace import FoldRun, conditions, fold_order, outputs

log = logging.getLogger(__name__)


def reconstruct(cfg: DictConfig) -> list[Path]:
    """Make an image of every row of the predictions, under every asked condition; pictures already made are kept.

    Raises
    ------
    ValueError
        If the predictions are missing or lack a space that the reconstructor needs.
    """
    folders = []
    for condition in conditions(cfg):
        predictions = Predictions(outputs(cfg) / "predictions" / cfg.name / condition)
        reconstructor = build_reconstructor(cfg)
        missing = sorted(set(reconstructor.needs) - set(predictions.specs))
        if missing:
            raise ValueError(f"predictions {predictions.folder}: expected spaces {list(reconstructor.needs)} for "
                             f"{type(reconstructor).__name__}, got {sorted(predictions.specs)}. Train with a head for "
                             f"{missing}, or choose another reconstructor.")
        folder = open_folder(
            outputs(cfg) / "reconstructions" / cfg.name / condition, stage="reconstruct",
            config={"reconstructor": plain(cfg.reconstructor), "seed": cfg.seed, "batch_size": cfg.batch_size},
            inputs={"predictions": predictions.manifest["id"]}, overwrite=cfg.overwrite)
        folders.append(folder.path)
        if folder.finished:
            log.info("reconstruct %s: finished already (%s)", condition, folder.path)
            continue
        log.info("reconstruct %s: %d images by %s", condition, len(predictions.rows), type(reconstructor).__name__)
        _images(folder.work, predictions, reconstructor, cfg=cfg)
        folder.finish(condition=condition, study_name=predictions.manifest["study_name"])
    return folders


def _images(folder: Path, predictions: Predictions, reconstructor: Reconstructor, *, cfg: DictConfig) -> None:
    rows = predictions.rows
    files = [f"images/{i:06d}_{safe_name(f'{subject}_{stimulus}')}.png"
             for i, (subject, stimulus) in enumerate(zip(rows["subject"], rows["stimulus_id"], strict=True))]
    (folder / "images").mkdir(exist_ok=True)
    run = outputs(cfg) / predictions.manifest["run"]
    folds = sorted(set(rows["run"]))
    for fold in folds:
        if type(reconstructor).fit is not Reconstructor.fit:
            _fit(reconstructor, run, fold, outputs(cfg))
        places = np.flatnonzero(rows["run"] == fold)
        for part in progress(chunks(len(places), cfg.batch_size), description="reconstruct"):
            mine = places[part]
            if all((folder / files[i]).exists() for i in mine):
                continue
            generators = [torch.Generator().manual_seed(int(cfg.seed) * 1_000_003 + int(i)) for i in mine]
            needed = {space: torch.from_numpy(predictions.embeddings(space, mine)) for space in reconstructor.needs}
            images = reconstructor.reconstruct(needed, generators=generators)
            pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for i, image in zip(mine, pixels, strict=True):
                with writing(folder / files[i]) as temporary:
                    Image.fromarray(image).save(temporary, format="PNG", compress_level=1)
    write_table(folder / "index.parquet", rows[["subject", "stimulus_id", "run", "draw"]].assign(file=files))


def _fit(reconstructor: Reconstructor, run: Path, fold: int, root: Path) -> None:
    """Show the reconstructor the training stimuli of one fold."""
    fold_run = FoldRun(sorted(run.glob("fold-*"), key=fold_order)[fold], root)
    data = fold_run.data()
    ids = sorted(set(data.trials.loc[data.trials["split"] == "train", "stimulus_id"]))
    reconstructor.fit({space: data.target(space, ids) for space in reconstructor.needs},
                      data.study.stimuli_of(ids).images())
