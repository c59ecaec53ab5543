"""Captions made from predictions, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts.files import write_table
from brain2img.artifacts.folders import read_manifest
from brain2img.artifacts.reading import read_table

COLUMNS = ("subject", "stimulus_id", "run", "draw", "caption")


class Captions:
    """Sentences made from predictions, ``captions/<name>/<condition>/``: ``captions.parquet``, a line per decoded row.

    Its columns are subject, stimulus_id, run, draw and caption.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="captions")
        self.table = read_table(self.folder / "captions.parquet", columns=COLUMNS)

    def captions(self, rows: Sequence[int] | np.ndarray | None = None) -> list[str]:
        """Return the captions of the given rows of `table` (all by default)."""
        found = self.table["caption"]
        return (found if rows is None else found.iloc[np.asarray(rows)]).tolist()

    @staticmethod
    def write(folder: Path, *, rows: pd.DataFrame, captions: Sequence[str]) -> None:
        """Write ``captions.parquet`` for the `rows` of predictions, in their order."""
        write_table(folder / "captions.parquet",
                    rows[list(COLUMNS[:-1])].assign(caption=list(captions)))
