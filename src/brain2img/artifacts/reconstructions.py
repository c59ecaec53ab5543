"""Images made from predictions, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brain2img.artifacts.folders import read_manifest
from brain2img.artifacts.reading import read_picture, read_table


class Reconstructions:
    """Images made from predictions, ``reconstructions/<name>/<reconstructor>/<condition>/``.

    ``index.parquet`` has one line per image: subject, stimulus_id, run, draw, `row` (its place in the rows of the
    predictions), `file` (a PNG beside it) and `picture` (two images with the same one are the same).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="reconstructions")
        self.index = read_table(self.folder / "index.parquet", columns=("subject", "stimulus_id", "file"))

    def images(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, h, w, 3)`` uint8 images of the given rows of `index` (all by default)."""
        files = self.index["file"].to_numpy()
        files = files if rows is None else files[np.asarray(rows)]
        return np.stack([read_picture(self.folder / file) for file in files])
