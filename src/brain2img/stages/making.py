"""What the stages that make something of decoded embeddings share: checks, and what a thing made depends on."""

from __future__ import annotations

import hashlib

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import Predictions
from brain2img.data.dataset import chunks
from brain2img.interfaces import Captioner, Reconstructor
from brain2img.stages.workspace import FoldRun, fold_order, outputs


def check_part(part: Reconstructor | Captioner, predictions: Predictions, *, group: str) -> None:
    """Refuse predictions that a reconstructor or captioner (`group`) cannot use.

    Raises
    ------
    ValueError
        If they lack a space that it needs, or if it was trained on another space.
    """
    missing = sorted(set(part.needs) - set(predictions.specs))
    if missing:
        raise ValueError(f"predictions {predictions.folder}: expected spaces {list(part.needs)} for "
                         f"{type(part).__name__}, got {sorted(predictions.specs)}. Train with a head for {missing}, or "
                         f"choose another {group}.")
    part.check(predictions.specs)


def fold_run(cfg: DictConfig, predictions: Predictions, fold: int) -> FoldRun:
    """Return the trained fold that decoded the rows with this number in `run`."""
    run = outputs(cfg) / predictions.manifest["run"]
    return FoldRun(sorted(run.glob("fold-*"), key=fold_order)[fold], outputs(cfg))


def row_keys(predictions: Predictions, rows: np.ndarray, needs: tuple[str, ...], *, fitted: str) -> list[str]:
    """Return for every row what is made of it depends on: the embeddings, their place (the noise) and the fit."""
    keys = []
    for part in chunks(len(rows), 256):
        embeddings = [predictions.embeddings(space, rows[part]) for space in needs]
        for i, place in enumerate(predictions.rows["array_row"].to_numpy()[rows[part]]):
            key = hashlib.sha256(f"{fitted} {place}".encode())
            for array in embeddings:
                key.update(np.ascontiguousarray(array[i]).tobytes())
            keys.append(key.hexdigest()[:32])
    return keys
