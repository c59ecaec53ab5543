"""What the stages that make something of decoded embeddings share: checks, and what a thing made depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import Predictions, stored_at
from brain2img.data.dataset import chunks
from brain2img.interfaces import Captioner, Reconstructor
from brain2img.stages.apply_prior import conditioned
from brain2img.stages.runs import FoldRun, fold_order
from brain2img.stages.workspace import conditions, outputs


def asked_predictions(cfg: DictConfig, parts: Mapping[str, Reconstructor | Captioner], *, group: str
                      ) -> dict[str, Predictions]:
    """Return condition -> what the chosen reconstructors or captioners (`group`) read, for all that is asked.

    Raises
    ------
    ValueError
        If something is missing, or cannot be used by one of them; before any work, which a prior's samples are too.
    """
    asked = conditions(cfg)
    for condition in asked:
        predictions = Predictions(outputs(cfg) / "predictions" / cfg.name / condition)
        for part in parts.values():
            check_part(part, predictions, group=group)
    return {condition: conditioned(cfg, condition) for condition in asked}


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
    run = stored_at(outputs(cfg), predictions.manifest["run"], of=f"predictions {predictions.folder}")
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
