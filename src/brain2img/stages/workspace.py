"""Where each stage's folder lies, and how a later stage finds what an earlier one wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, below, differences, digest, read_manifest
from brain2img.data.datamodule import BrainData
from brain2img.data.prepared import PreparedStudy
from brain2img.data.raw_identity import remembered
from brain2img.data.trials import number_of_folds, select_subjects
from brain2img.interfaces import Decoder, Space
from brain2img.stages.build import (
    PARTS,
    build_spaces,
    build_study,
    class_of,
    plain,
)

LATER = ("headline", "metric", "metric_space", "reconstructor", "reconstruct", "captioner", "prior", "prior_fit",
         "label", "study_label", "stages", "repetition_curve", "time_course", "baseline")
"""Settings a run remembers for the stages after it."""
CONDITIONS = ("decoded", "noise", "shuffled", "mean", "true")


def conditions(cfg: DictConfig) -> list[str]:
    """Return the conditions asked for, in their fixed order.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    asked = [str(c).lower() for c in cfg.conditions]  # YAML reads a bare `true` as a truth value
    unknown = sorted(set(asked) - set(CONDITIONS))
    if unknown:
        raise ValueError(f"conditions: expected some of {CONDITIONS}, got {unknown}. Correct conditions=[...].")
    return sorted(asked, key=CONDITIONS.index)


def fixed_order(stimulus_ids: Iterable[str]) -> list[str]:
    """Return the distinct stimuli in an order that is random, and the same for all subjects, decoders and seeds."""
    return sorted(set(stimulus_ids), key=digest)


def outputs(cfg: DictConfig) -> Path:
    """Return the root of all results."""
    return Path(cfg.paths.outputs).expanduser().resolve()


def folder_of(cfg: DictConfig, *names: str) -> Path:
    """Return the place below the root of all results that is called so; whatever a stage writes lies at one.

    Raises
    ------
    ValueError
        If one of them is no name, or a link leads elsewhere; see `brain2img.artifacts.names`.
    """
    if None in names:
        raise ValueError("name: expected one of the results, got none. Give name=..., or compose the configuration "
                         "with brain2img.compose(command, *overrides).")
    return below(outputs(cfg), *names)


def folder_to_prepare(cfg: DictConfig) -> tuple[Path, str]:
    """Return where the study is prepared, and the identity of its raw files, of which each is read once for it."""
    study, raw, config = build_study(cfg)
    with remembered(outputs(cfg) / "cache" / "raw_files.json"):
        raw_id = study.raw_id(raw)
    return folder_of(cfg, "prepared", study.name, f"{study.variant}-{digest([config, raw_id], length=8)}"), raw_id


def prepared_folders(cfg: DictConfig) -> list[Path]:
    """Return the finished folders of the study that the configuration describes: one for each state of raw files."""
    study, _, config = build_study(cfg)
    folders = folder_of(cfg, "prepared", study.name).glob(f"{study.variant}-*/manifest.json")
    return sorted(path.parent for path in folders
                  if not differences(read_manifest(path.parent, what="prepared study")["config"], config))


def prepared_folder(cfg: DictConfig) -> Path:
    """Return the folder of the prepared study that the configuration describes; raw files are not asked for.

    Only where the study was prepared from several states of its raw files, these say which is meant.

    Raises
    ------
    ValueError
        If it is not prepared.
    """
    found = prepared_folders(cfg)
    if len(found) == 1:
        return found[0]
    study, raw, _ = build_study(cfg)
    if not found:
        raise ValueError(f"study {study.name}: expected a prepared study of these settings below "
                         f"{folder_of(cfg, 'prepared', study.name)}, got none. Run the prepare stage first.")
    if raw is not None and not raw.exists():
        raise ValueError(f"study {study.name}: expected one prepared folder with these settings, got {len(found)}, of "
                         f"different raw files ({', '.join(path.name for path in found)}). Give raw=<folder> to say "
                         "which is meant, or move the others away.")
    return folder_to_prepare(cfg)[0]


def cache_folder(cfg: DictConfig, *, space: Space, prepared: PreparedStudy) -> Path:
    """Return the folder of a space's embeddings of a study's stimuli."""
    uid = digest([space.uid(), prepared.manifest["stimuli"]], length=8)
    return folder_of(cfg, "cache", prepared.name, f"{space.name}-{uid}")


def caches(cfg: DictConfig, *, prepared: PreparedStudy) -> dict[str, EmbeddingCache]:
    """Return the embeddings of the chosen spaces.

    Raises
    ------
    ValueError
        If a space was not embedded yet.
    """
    found = {}
    for name, space in build_spaces(cfg).items():
        folder = cache_folder(cfg, space=space, prepared=prepared)
        read_manifest(folder, what=f"embeddings of space {name!r}")
        found[name] = EmbeddingCache(folder)
    return found


def made_folders(cfg: DictConfig, stage: str) -> dict[str, dict[str, Path]]:
    """Return key -> condition -> finished folder of the "reconstructions" or "captions" of `cfg`, in their order."""
    makers = plain(cfg.get({"reconstructions": "reconstructor", "captions": "captioner"}[stage])) or {}
    base = folder_of(cfg, stage, cfg.name)
    found = {key: {c: base / key / c for c in CONDITIONS if (base / key / c / "manifest.json").exists()}
             for key in makers}
    return {key: folders for key, folders in found.items() if "decoded" in folders}


def training_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the part of a configuration that shapes a trained decoder."""
    keys = ["split", "data", "decoder", "seed"]
    config = {key: plain(cfg[key]) for key in keys}
    if class_of(config["decoder"], Decoder).has_parts:
        config |= {part: plain(cfg.get(part)) for part in PARTS}
    return config


def relative(path: Path, root: Path) -> str:
    """Return `path` relative to the root of all results, so that the whole tree can be moved."""
    return os.path.relpath(path, root)


def iterate_folds(config: Mapping[str, Any], *, prepared: PreparedStudy) -> Iterator[tuple[int, int, int]]:
    """Yield (fold, seed of the split, seed of the decoder) of every run that a training configuration asks for."""
    split = config["split"]
    trials = select_subjects(prepared.trials, config["data"].get("subjects"), known=prepared.subjects)
    n_folds = number_of_folds(split, trials, concepts=prepared.concepts, same_as=prepared.same_as)
    for repeat in range(split.get("n_repeats", 1)):
        for fold in range(n_folds):
            yield fold, split["seed"] + repeat, config["seed"] + repeat


def test_rows(data: BrainData, *, split: str, run: int) -> pd.DataFrame:
    """Return the rows to decode, with the number of the run that decodes them."""
    return data.items(split).assign(run=run)
