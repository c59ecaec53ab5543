"""Trained runs: what is known of one, and how a later stage finds and opens it."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, check_name, read_manifest, stored_at
from brain2img.data.datamodule import BrainData
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import OVER_SUBJECTS
from brain2img.interfaces import Decoder
from brain2img.stages.build import build_data, build_decoder
from brain2img.stages.quoting import argument
from brain2img.stages.workspace import folder_of, outputs

PLACE = ("fold", "split_seed", "decoder_seed")
"""Which of a run's trainings a fold is: what its manifest's configuration has beside the settings of the training."""


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What a trained fold remembers.

    Parameters
    ----------
    id, stage
        Its identity, and the stage that wrote it ("train", "adapt", "ensemble").
    name, label
        What folders and tables call the run.
    study, study_name
        Settings of the study it was trained on, and its name.
    subjects
        Those it was trained with.
    config
        Settings of the training, see `training`, and its place.
    later
        Settings for the stages after it, as headline and metric.
    inputs
        Ids of what it was made of.
    paths
        "prepared", "caches" (space -> folder) and "learned" (the same, of spaces that heads see in a view of their
        own), relative to the root of all results.
    fold, seed, split_seed, held_out, n_fold_runs
        Which training it is: number of the fold, seeds of decoder and split, (part, number of parts) where a part of
        the training stimuli was left out, and how many trainings the run has.
    seconds
        How long it took.
    splits, unseen
        Hash of the stimuli of each split, and subjects it was not trained on -> how their signals are normalised.
    """

    id: str
    stage: str
    name: str
    label: str
    study: dict[str, Any]
    study_name: str
    subjects: list[str]
    config: dict[str, Any]
    later: dict[str, Any]
    inputs: dict[str, str]
    paths: dict[str, Any]
    fold: int
    seed: int
    split_seed: int
    n_fold_runs: int
    seconds: float
    held_out: list[int] | None = None
    splits: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunManifest:
        """Read the manifest of a fold.

        Raises
        ------
        ValueError
            If it is missing, or lacks what a run is known by.
        """
        found = read_manifest(folder, what="run")
        needed = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
        if lacking := [name for name in needed if name not in found]:
            raise ValueError(f"run {folder}: expected {', '.join(needed)} in its manifest, got none of "
                             f"{', '.join(lacking)}: it is no run, or one of another version. Train it again.")
        return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})

    @property
    def place(self) -> dict[str, int]:
        """Which of the run's trainings it is: `PLACE`."""
        return {"fold": self.fold, "split_seed": self.split_seed, "decoder_seed": self.seed}

    @property
    def training(self) -> dict[str, Any]:
        """The settings of the training alone, which are the same for all folds."""
        return {key: value for key, value in self.config.items() if key not in (*PLACE, "held_out", "adapt")}

    def facts(self, **changes: Any) -> dict[str, Any]:
        """Return what a run that is made of this one remembers, too."""
        keys = ("name", "label", "n_fold_runs", "study", "study_name", "later")
        return {**{key: getattr(self, key) for key in keys}, **changes}


@dataclass(frozen=True)
class FoldRun:
    """One trained fold: ``train/<name>/fold-<k>_seed-<s>/``."""

    folder: Path
    root: Path

    @cached_property
    def manifest(self) -> RunManifest:
        """What it remembers."""
        return RunManifest.read(self.folder)

    @property
    def prepared(self) -> PreparedStudy:
        """The prepared study it was trained on.

        Raises
        ------
        ValueError
            If that folder now holds something else.
        """
        manifest = self.manifest
        study = PreparedStudy(self.stored(manifest.paths["prepared"]))
        if study.manifest["id"] != manifest.inputs["prepared"]:
            raise ValueError(f"run {self.folder}: expected the prepared study it was trained on "
                             f"({manifest.inputs['prepared']}), got {study.manifest['id']} in {study.folder}. "
                             "Train the run again with overwrite=true.")
        return study

    @property
    def learned(self) -> list[str]:
        """Names of the spaces of which its heads have learned a view."""
        return list(self.manifest.paths.get("learned", {}))

    def caches(self, *, learned: bool = True) -> dict[str, EmbeddingCache]:
        """Return the true embeddings of every space: as its heads have learned to see them, or as they are."""
        paths = self.manifest.paths
        places = {**paths["caches"], **(paths.get("learned", {}) if learned else {})}
        return {check_name(name, what=f"run {self.folder}: space"): EmbeddingCache(self.stored(path))
                for name, path in places.items()}

    def stored(self, path: str) -> Path:
        """Return where a path of its manifest lies.

        Raises
        ------
        ValueError
            If it leaves the root of all results.
        """
        return stored_at(self.root, path, of=f"run {self.folder}")

    def data(self) -> BrainData:
        """Return the data of this fold with the statistics fitted in training."""
        manifest = self.manifest
        data = build_data(manifest.config, prepared=self.prepared, caches=self.caches(), fold=manifest.fold,
                          split_seed=manifest.split_seed, held_out=manifest.held_out)
        data.load_normalisation(self.folder)
        return data

    def decoder(self, data: BrainData) -> Decoder:
        """Return the trained decoder."""
        targets = {name: cache.spec for name, cache in self.caches(learned=False).items()}
        sizes: Any = SimpleNamespace(specs=data.specs, target_specs=targets)
        decoder = build_decoder(self.manifest.config, data=sizes, seed=self.manifest.seed)
        decoder.load(self.folder)
        return decoder


def run_folder(cfg: DictConfig) -> Path:
    """Return the folder of a trained run: ``run=<dir>`` where given, else by its name.

    Raises
    ------
    ValueError
        If it is not among the results of ``paths.outputs``: what is made of a run refers to it from there.
    """
    if not cfg.get("run"):
        return folder_of(cfg, "train", cfg.name)
    folder, root = Path(cfg.run).expanduser(), outputs(cfg)
    typed = [Path(os.path.abspath(path)) for path in (folder, Path(cfg.paths.outputs).expanduser())]
    for place, base in (typed, (folder.resolve(), root)):
        if place.is_relative_to(base):
            return stored_at(root, str(place.relative_to(base)), of=f"run {folder}")
    raise ValueError(f"run {folder}: expected one below {root}, got one elsewhere ({folder.resolve()}). Give "
                     "paths.outputs=<the outputs it belongs to>, or copy it there with what it was trained on.")


def fold_runs(cfg: DictConfig) -> list[FoldRun]:
    """Return the finished folds of a run.

    Raises
    ------
    ValueError
        If there are none, if some are unfinished, or if they are of another study than the one asked for.
    """
    folder = run_folder(cfg)
    folders = [folder] if folder.name.startswith("fold-") else sorted(folder.glob("fold-*"), key=fold_order)
    if not folders:
        raise ValueError(f"run {folder}: expected folders fold-<k>_seed-<s>, got "
                         f"{'none in it' if folder.exists() else 'nothing'}. Run the train stage first, or give "
                         "run=<folder of a run>.")
    runs = [FoldRun(f, outputs(cfg)) for f in folders]
    expected = runs[0].manifest.n_fold_runs
    if folder == folders[0].parent and len(runs) < expected:
        raise ValueError(f"run {folder}: expected {expected} trained folds, got {len(runs)}. "
                         "Run the train stage again: it continues where it stopped.")
    return runs


def one_fold(cfg: DictConfig) -> FoldRun:
    """Return the fold that stands for a run in stages that look at one: the first.

    Raises
    ------
    ValueError
        If its folds are subjects or stimuli, of which the first would stand for all.
    """
    runs = fold_runs(cfg)
    kind = runs[0].manifest.config["split"]["kind"]
    if len(runs) > 1 and kind in (*OVER_SUBJECTS, "leave_one_stimulus_out"):
        one = "stimulus" if kind == "leave_one_stimulus_out" else "subject"
        raise ValueError(f"run {runs[0].folder.parent}: expected one model for all subjects, got {len(runs)} folds of "
                         f"one {one} each. Choose one of them with {argument('run', str(runs[0].folder))} and "
                         "name=<of its results>.")
    return runs[0]


def fold_order(folder: Path) -> tuple[int, ...]:
    """Return (seed, fold) of a folder ``fold-<k>_seed-<s>``, the order in which folds are trained."""
    fold, seed = (int(part.split("-")[1]) for part in folder.name.split("_"))
    return seed, fold
