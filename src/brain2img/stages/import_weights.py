"""A published checkpoint -> a run as the train stage writes it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from brain2img.artifacts import file_digest, write_json
from brain2img.data.datamodule import BrainData
from brain2img.data.prepared import PreparedStudy
from brain2img.decoders.published_weights import PublishedWeights
from brain2img.interfaces import Decoder
from brain2img.stages.build import build, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.train import run_facts, train_fold
from brain2img.stages.workspace import caches, folder_of, iterate_folds, outputs, prepared_folder, training_config

REPORT = "imported.json"


@for_each_member
def import_weights(cfg: DictConfig) -> Path:
    """Load the published file ``weights`` into the decoder that the configuration describes; returns its run.

    The run is one of the train stage, with the report of the key map as ``imported.json`` and the digest of the file
    among its inputs. Scaling is fitted on the training trials of the study, as in training.

    Raises
    ------
    ValueError
        If no file is given, the study or its embeddings are missing, the split has several folds, or a weight does not
        find its place.
    """
    if not cfg.get("weights"):
        raise ValueError("import_weights: expected a published checkpoint, got none. Give weights=<file>.pth.")
    file, config = Path(cfg.weights).expanduser().resolve(), training_config(cfg)
    if not file.is_file():
        raise ValueError(f"weights {file}: expected a published checkpoint, got nothing there. "
                         "Give weights=<file>.pth.")
    prepared = PreparedStudy(prepared_folder(cfg))
    folds = list(iterate_folds(config, prepared=prepared))
    if len(folds) != 1:
        raise ValueError(f"import_weights: expected a split with one fold, got {len(folds)}. Set split.kind=study.")
    layout = build(plain(cfg.layout), PublishedWeights)
    run = folder_of(cfg, "train", cfg.name)

    def fill(decoder: Decoder, data: BrainData, folder: Path) -> None:
        report = layout.load(decoder, file)
        write_json(folder / REPORT, {**report, "file": file.name})

    fold, split_seed, seed = folds[0]
    train_fold(run / f"fold-{fold}_seed-{seed}", config=config, prepared=prepared, root=outputs(cfg),
               found=caches(cfg, prepared=prepared), facts=run_facts(cfg, prepared=prepared, n_fold_runs=1),
               place={"fold": fold, "split_seed": split_seed, "decoder_seed": seed}, overwrite=cfg.overwrite,
               description=f"import {file.name} as {cfg.name}", fit=fill,
               inputs={"weights": file_digest(file), "layout": str(plain(cfg.layout))})
    return run
