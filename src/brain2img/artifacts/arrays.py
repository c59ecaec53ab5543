"""Arrays written row by row, and the embeddings of a study's stimuli."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts.content import write_contents
from brain2img.artifacts.files import (
    begin_array,
    check_room,
    digest,
    write_array,
    write_json,
    write_rows,
    write_table,
)
from brain2img.artifacts.folders import read_manifest, sealed
from brain2img.artifacts.names import check_name
from brain2img.artifacts.reading import read_array, read_begun, read_json, read_table
from brain2img.records import EmbeddingSpec


class ArrayWriter:
    """Writes ``<name>.npy`` files row by row in one pass that survives being killed.

    Parameters
    ----------
    folder
        Where the arrays will stand.
    arrays
        Name -> (shape with the row axis first, dtype).
    """

    def __init__(self, folder: Path, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self.folder = folder
        self.layout = {check_name(name, what="array"): [list(shape), str(dtype)]
                       for name, (shape, dtype) in arrays.items()}
        self._progress = folder / "rows_done.json"
        begun = read_begun(self._progress, keys=("layout", "done")) or {}
        parts_there = all(self._part(name).exists() for name in arrays)
        resume = begun.get("layout") == self.layout and parts_there
        self.done = int(begun["done"]) if resume else 0
        self._n_rows = {name: shape[0] for name, (shape, _) in arrays.items()}
        if not resume:
            check_room(folder, arrays.values())
            for name, (shape, dtype) in arrays.items():
                begin_array(self._part(name), shape=shape, dtype=dtype)

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.npy.part"

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append the same number of rows to every array."""
        n = len(next(iter(rows.values())))
        for name, values in rows.items():
            write_rows(self._part(name), values, start=self.done)
        self.done += n
        write_json(self._progress, {"layout": self.layout, "done": self.done})

    def close(self) -> None:
        """Rename the arrays to their final names; asserts that every row was written."""
        for name, n_rows in self._n_rows.items():
            assert self.done == n_rows, f"{name}: {self.done} of {n_rows} rows written"
            os.replace(self._part(name), self.folder / f"{name}.npy")
        self._progress.unlink(missing_ok=True)


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings of a study's stimuli in one space: ``cache/<study>/<space>-<uid>/``."""

    folder: Path

    @classmethod
    def write_view(cls, folder: Path, *, of: EmbeddingCache, spec: EmbeddingSpec,
                   view: Callable[[np.ndarray], np.ndarray], chunk: int = 1024) -> None:
        """Write into `folder` what `view` makes of all embeddings ``(n, *shape)`` of another cache.

        Its uid is that of the content: the view that another training learns is another space.
        """
        folder.mkdir(parents=True, exist_ok=True)
        array = of.array
        made = np.concatenate([view(array[start:start + chunk]) for start in range(0, len(array), chunk)])
        write_array(folder / "embeddings.npy", made.astype(spec.dtype))
        spec = dataclasses.replace(spec, uid=digest([spec.uid, hashlib.sha256(made.tobytes()).hexdigest()]))
        write_table(folder / "stimuli.parquet", pd.DataFrame({"stimulus_id": of.stimulus_ids}))
        write_json(folder / "spec.json", spec.to_json())
        write_json(folder / "manifest.json", sealed({"id": digest([read_manifest(of.folder)["id"], spec.uid]),
                                                     "view_of": spec.name, "contents": write_contents(folder)}))

    @property
    def spec(self) -> EmbeddingSpec:
        """What the embeddings are."""
        read_manifest(self.folder, what="embeddings")
        return EmbeddingSpec.from_json(read_json(self.folder / "spec.json", keys=("name", "shape")))

    @property
    def stimulus_ids(self) -> list[str]:
        """Stimulus id of every row."""
        return read_table(self.folder / "stimuli.parquet", columns=("stimulus_id",))["stimulus_id"].tolist()

    @property
    def array(self) -> np.ndarray:
        """Memory-mapped ``(N, *shape)`` embeddings."""
        return read_array(self.folder / "embeddings.npy")

    def rows(self, stimulus_ids: Sequence[str]) -> np.ndarray:
        """Return the row of each stimulus id.

        Raises
        ------
        ValueError
            If a stimulus is not in the cache.
        """
        index = pd.Index(self.stimulus_ids).get_indexer(pd.Index(list(stimulus_ids)))
        if (index < 0).any():
            missing = [s for s, i in zip(stimulus_ids, index, strict=True) if i < 0]
            raise ValueError(f"embeddings {self.folder}: expected all stimuli of the study, got none for "
                             f"{len(missing)} of them ({missing[0]!r}, ...). Run the embed stage for this study.")
        return index
