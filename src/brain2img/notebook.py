"""Finished work from Python: what a run was trained on, what it decoded, how well, and new signals through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brain2img.artifacts import Captions, Predictions, Reconstructions, read_json, read_manifest
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.records import BrainBatch
from brain2img.stages.runs import FoldRun, fold_order


def open_run(folder: Path | str) -> Run:
    """Return the finished run in ``outputs/train/<name>``; see `Run`."""
    return Run(folder)


class Run:
    """A trained run and what was made of it.

    Parameters
    ----------
    folder
        ``<outputs>/train/<name>``; what was made of it is looked for beside ``train``.

    Attributes
    ----------
    name, label
        What folders and tables call it.
    folds
        Its trained folds.
    subjects
        Those it was trained with.

    Raises
    ------
    ValueError
        If there is no finished run.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().resolve()
        folders = sorted(self.folder.glob("fold-*_seed-*"), key=fold_order)
        train = next((parent for parent in self.folder.parents if parent.name == "train"), None)
        if train is None or not folders:
            raise ValueError(f"run {folder}: expected the folder of a run, <outputs>/train/<name>, got "
                             f"{'another one' if self.folder.exists() else 'nothing'}. Train it first, or correct "
                             "the path.")
        self.outputs = train.parent
        self.folds = [FoldRun(path, self.outputs) for path in folders]
        self.name = str(self.folder.relative_to(train))
        self.label = str(self.folds[0].manifest.label)
        self.subjects: list[str] = list(self.folds[0].manifest.subjects)
        self._opened: dict[int, tuple[BrainData, Any]] = {}

    def __repr__(self) -> str:
        study = self.folds[0].manifest.study_name
        return (f"Run {self.name} ({self.label}) of study {study}: {len(self.folds)} fold"
                f"{'s' if len(self.folds) > 1 else ''}, subjects {', '.join(self.subjects)}")

    def data(self, fold: int = 0) -> BrainData:
        """Return the signals and embeddings of a fold, normalised as in its training."""
        return self._open(fold)[0]

    def decode(self, signals: np.ndarray, *, subject: str, fold: int = 0, session: str = "",
               batch_size: int = 128) -> dict[str, np.ndarray]:
        """Return the embeddings that a fold decodes from new signals of a subject it knows.

        Parameters
        ----------
        signals
            ``(n, C, T)`` in the units of the prepared study, with all of its channels and samples: the window, the
            channels and the statistics of the training are applied here.
        subject
            Whose they are.
        fold
            Place in `folds`.
        session
            Of the study, where statistics are of sessions and these are of one; else those of all are used.
        batch_size
            Rows decoded at once.

        Returns
        -------
        dict
            Space -> ``(n, *shape)`` float32.

        Raises
        ------
        ValueError
            If the subject is not known, or the signals have another shape or values that are not finite.
        """
        data, decoder = self._open(fold)
        if subject not in data.specs:
            raise ValueError(f"subject: expected one of the run, {list(data.specs)}, got {subject!r}. Decode one of "
                             "these, or adapt the run to this one (brain2img adapt).")
        spec, signals = data.study.specs[subject], np.asarray(signals, dtype=np.float32)
        if signals.ndim != 3 or signals.shape[1:] != (spec.n_channels, spec.n_times):
            raise ValueError(f"signals of subject {subject!r}: expected (n, {spec.n_channels} channels, "
                             f"{spec.n_times} samples) in {spec.units}, as the study was prepared, got "
                             f"{signals.shape}. Give them as {data.study.folder} has them.")
        if not np.isfinite(signals).all():
            raise ValueError(f"signals of subject {subject!r}: expected finite values, got NaN or infinity. Leave "
                             "these trials out.")
        x = data.normalisers[subject](signals, np.arange(len(signals)), np.full(len(signals), session))
        parts = []
        for places in chunks(len(x), batch_size):
            parts.append(decoder.predict(BrainBatch(
                signals={subject: torch.from_numpy(x[places])}, rows={subject: torch.arange(len(places))},
                stimulus_ids=[""] * len(places), targets={})))
        return {space: np.concatenate([part[space] for part in parts]) for space in data.target_specs}

    def predictions(self, condition: str = "decoded") -> Predictions:
        """Return what was decoded of the test stimuli, or a control condition of it."""
        return Predictions(self.outputs / "predictions" / self.name / condition)

    def pictures(self, reconstructor: str | None = None, condition: str = "decoded") -> Reconstructions:
        """Return the reconstructed pictures; by the one reconstructor there is, unless several must be told apart."""
        return Reconstructions(self._only("reconstructions", reconstructor, "Reconstruct") / condition)

    def captions(self, captioner: str | None = None, condition: str = "decoded") -> Captions:
        """Return the captions; by the one captioner there is, unless several must be told apart."""
        return Captions(self._only("captions", captioner, "Caption") / condition)

    def scores(self) -> pd.DataFrame:
        """Return the summary of its scores: a line for each metric, condition and subject, with chance and interval.

        Raises
        ------
        ValueError
            If it was not evaluated.
        """
        records = pd.DataFrame(read_json(self.scores_folder / "summary.json")["records"])
        return records[records["decoder"] == self.label].reset_index(drop=True)

    @property
    def report(self) -> Path:
        """The page with its scores, or those of its collection."""
        return self.scores_folder / "report.html"

    @property
    def scores_folder(self) -> Path:
        """The folder of its scores, or of those of its collection."""
        places = [self.outputs / "scores" / self.name, (self.outputs / "scores" / self.name).parent]
        for place in places:
            if (place / "summary.json").exists():
                read_manifest(place, what="scores")
                return place
        raise ValueError(f"run {self.name}: expected scores in {' or '.join(map(str, places))}, got none. Evaluate it "
                         "first (brain2img evaluate).")

    def _open(self, fold: int) -> tuple[BrainData, Any]:
        if not 0 <= fold < len(self.folds):
            raise ValueError(f"fold: expected 0 to {len(self.folds) - 1}, got {fold}. Choose one of these.")
        if fold not in self._opened:
            data = self.folds[fold].data()
            self._opened[fold] = data, self.folds[fold].decoder(data)
        return self._opened[fold]

    def _only(self, stage: str, chosen: str | None, verb: str) -> Path:
        """Return the folder of one maker of pictures or captions."""
        base = self.outputs / stage / self.name
        there = sorted(path.parent.name for path in base.glob("*/*") if (path / "manifest.json").exists())
        there = list(dict.fromkeys(there))
        if chosen is None and len(there) == 1:
            return base / there[0]
        if chosen not in there:
            raise ValueError(f"{stage} of run {self.name}: expected one of {there or 'those that were made'}, got "
                             f"{chosen}. " + ("Name one of these." if there else f"{verb} first."))
        return base / chosen
