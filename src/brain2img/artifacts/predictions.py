"""Decoded embeddings on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts.files import write_json, write_table
from brain2img.artifacts.folders import read_manifest
from brain2img.artifacts.reading import read_array, read_json, read_table
from brain2img.records import EmbeddingSpec


class Predictions:
    """Decoded embeddings, ``predictions/<name>/``: the meeting point of decoders and everything after them.

    ``rows.parquet`` has one line per decoded row: subject, stimulus_id, n_averaged, draw, trial_ids (list), and
    `array_row`, its place in the arrays. ``spaces.json`` says for each space where its array lies (relative path) and
    what it is, so that a control condition is a folder that points at another one, never a copy.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="predictions")
        self.rows = read_table(self.folder / "rows.parquet", columns=("subject", "stimulus_id", "array_row"))
        self._spaces = read_json(self.folder / "spaces.json")
        self.specs = {name: EmbeddingSpec.from_json(entry["spec"]) for name, entry in self._spaces.items()}

    def array(self, space: str) -> tuple[Path, np.ndarray]:
        """Return the file of a space and its memory-mapped array (before `array_row` is applied)."""
        if space not in self._spaces:
            raise ValueError(f"predictions {self.folder}: expected space {space!r}, got {sorted(self._spaces)}. "
                             "Train a head for it, or choose one of these.")
        path = (self.folder / self._spaces[space]["path"]).resolve()
        return path, read_array(path)

    def embeddings(self, space: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, *shape)`` float32 of the given rows (all by default)."""
        places = self.rows["array_row"].to_numpy()
        array = self.array(space)[1]
        return np.asarray(array[places if rows is None else places[rows]], dtype=np.float32)

    @staticmethod
    def write(folder: Path, *, rows: pd.DataFrame, specs: Mapping[str, EmbeddingSpec],
              paths: Mapping[str, Path] | None = None) -> None:
        """Write ``rows.parquet`` and ``spaces.json``; arrays are ``<space>.npy`` here unless `paths` says where."""
        write_table(folder / "rows.parquet", rows if "array_row" in rows else rows.assign(array_row=range(len(rows))))
        write_json(folder / "spaces.json", {
            name: {"path": os.path.relpath(paths[name], folder.resolve()) if paths else f"{name}.npy",
                   "spec": spec.to_json()} for name, spec in specs.items()})
