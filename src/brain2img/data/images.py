"""Pictures of a prepared study: brought into its folder when it is prepared, read there by all that comes after."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from brain2img.artifacts import read_array, safe_name
from brain2img.data.pictures import pictures_from, read_picture
from brain2img.data.reading import reading

log = logging.getLogger(__name__)
PACKED, COPIED = "images.npy", "stimuli"
"""Where pictures lie in the folder: rows of an array, or files."""
_MOVED = ("Put it back where it was when the study was prepared, or prepare the study again with overwrite=true from "
          "where it is now.")


class StimulusImages(Sequence[np.ndarray]):
    """Pictures of the stimuli of a table, read when asked for.

    `file` of a stimulus says where its picture is, relative to the prepared folder unless absolute:

    - "images.npy": row `pointer` of the array in the folder, ``(N, h, w, 3)`` or ``(N, h, w)`` uint8;
    - "<file>.hdf5::<data set>": row `pointer` of a data set ``(N, h, w, 3)`` uint8;
    - any other file: a picture, read as `brain2img.data.pictures` says; `pointer` is null.

    Parameters
    ----------
    folder
        The prepared folder.
    table
        Rows of ``stimuli.parquet``.
    size
        Side (pixels) to which pictures outside are brought: the largest square in the middle, resampled (Lanczos). None
        leaves them as they are.
    """

    def __init__(self, folder: Path, table: pd.DataFrame, *, size: int | None = None) -> None:
        self.folder = folder
        self.files = table["file"].tolist()
        self.pointers = table["pointer"].tolist()
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: Any) -> Any:
        """Return the picture of one row, or those of a slice of rows, as `__call__` does."""
        return self(range(len(self))[row]) if isinstance(row, slice) else self([row])[0]

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        """Return the pictures of the given rows of the table, ``(n, h, w, 3)`` or, where packed so, ``(n, h, w)``.

        Raises
        ------
        ValueError
            If a picture is missing or damaged, or they are of several sizes.
        """
        if all(self.files[row] == PACKED for row in rows):
            return np.asarray(read_array(self.folder / PACKED)[[int(self.pointers[row]) for row in rows]])
        out = None
        for place, row, image in self.each(rows):
            out = np.empty((len(rows), *image.shape), dtype=np.uint8) if out is None else out
            if image.shape != out.shape[1:]:
                raise ValueError(f"{self.files[row]}: expected a picture of {out.shape[1:]} like the others, got one "
                                 f"of {image.shape}. Set study.image_size, so that all are read in one size.")
            out[place] = image
        assert out is not None
        return out

    def place_of(self, row: int) -> tuple[str, int]:
        """Return file and pointer of a row: in this order pictures are read fastest."""
        pointer = self.pointers[row]
        return self.files[row], 0 if pd.isna(pointer) else int(pointer)

    def each(self, rows: Sequence[int]) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield place in `rows`, row, and ``(h, w, 3)`` uint8 picture, file by file."""
        opened, source = "", None  # one file stays open: the rows of an HDF5 file come together
        for place in sorted(range(len(rows)), key=lambda i: self.place_of(rows[i])):
            row = rows[place]
            file: str = self.files[row]
            if file == PACKED:
                image = np.asarray(read_array(self.folder / PACKED)[int(self.pointers[row])])
            elif "::" in file:
                if file != opened:
                    opened, source = file, _data_set(self.folder, file)
                image = _row(source, int(self.pointers[row]))
            else:
                if not (self.folder / file).is_file():
                    raise ValueError(f"{self.folder / file}: expected a picture there, got no such file. {_MOVED}")
                image = read_picture(self.folder / file)
            image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
            if self.size is not None and image.shape[:2] != (self.size, self.size):
                fitted = ImageOps.fit(Image.fromarray(image), (self.size, self.size), method=Image.Resampling.LANCZOS)
                image = np.asarray(fitted)
            yield place, row, image

    def check(self) -> None:
        """Refuse a table that names files or rows that are not there; pictures themselves are not read.

        Raises
        ------
        ValueError
            Naming the file.
        """
        table = pd.DataFrame({"file": self.files, "pointer": self.pointers}, dtype=object)
        for file, pointers in table.groupby("file", sort=False)["pointer"]:
            if file == PACKED or "::" in file:
                n = len(read_array(self.folder / PACKED) if file == PACKED else _data_set(self.folder, file))
                rows = pd.to_numeric(pointers)
                if not rows.between(0, n - 1).all():
                    raise ValueError(f"{file}: expected rows of its {n} pictures in stimuli.parquet, got "
                                     f"{rows[~rows.between(0, n - 1)].iloc[0]}. Correct the study, or fetch the file "
                                     "again.")
            elif not (self.folder / file).is_file():
                raise ValueError(f"{self.folder / file}: expected a picture there, by stimuli.parquet, got no such "
                                 f"file. {_MOVED}")


def bring_in(folder: Path, table: pd.DataFrame, *, size: int | None, pack: Callable[..., None]) -> None:
    """Bring pictures that lie elsewhere into the folder, so that nothing after preparing needs the raw files.

    Parameters
    ----------
    folder
        The prepared folder.
    table
        Rows of ``stimuli.parquet``; `file` and `pointer` then say where pictures lie in the folder.
    size
        Of rows of HDF5 files, see `StimulusImages`; other files are copied as they are.
    pack
        `brain2img.data.prepared.PreparedWriter.add_images`.
    """
    file, pointer = (table.columns.get_loc(name) for name in ("file", "pointer"))
    elsewhere = [row for row in range(len(table)) if pd.notna(name := table.iloc[row, file]) and name != PACKED]
    rows = [row for row in elsewhere if "::" in table.iloc[row, file]]
    if rows:
        source = StimulusImages(folder, table, size=size)
        rows.sort(key=source.place_of)
        pack(_Rows(source, rows), n=len(rows), shape=source[rows[0]].shape)
        table.iloc[rows, file], table.iloc[rows, pointer] = PACKED, np.arange(len(rows))
    files = [row for row in elsewhere if row not in set(rows)]
    if files:
        log.info("copies %d pictures", len(files))
        (folder / COPIED).mkdir(exist_ok=True)
    for row in files:
        path = folder / table.iloc[row, file]
        name = f"{COPIED}/{row:06d}_{safe_name(path.stem)[:80]}{path.suffix.lower()}"
        with reading(path, what="picture"):
            shutil.copyfile(path, folder / name)
        table.iloc[row, file] = name


class _Rows(Sequence[np.ndarray]):
    """Some pictures of a table, read when asked for."""

    def __init__(self, source: StimulusImages, rows: Sequence[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.source[self.rows[place]]


def _data_set(folder: Path, file: str) -> Any:
    """Open the data set of "<file>::<name>"."""
    import h5py

    path, name = file.split("::", 1)
    if not (folder / path).exists():
        raise ValueError(f"{folder / path}: expected an HDF5 file there, got no such file. {_MOVED}")
    with reading(folder / path, what="HDF5 file"):
        opened = h5py.File(folder / path, "r")
    if name not in opened:
        raise ValueError(f"{folder / path}: expected the data set {name!r}, got {sorted(opened)}. "
                         "Correct the study's file.")
    if opened[name].dtype != np.uint8 or opened[name].shape[3:] != (3,):
        raise ValueError(f"{folder / path}: expected pictures (N, h, w, 3) uint8 in {name!r}, got "
                         f"{opened[name].shape} {opened[name].dtype}. Fetch the file again.")
    return opened[name]


def _row(source: Any, row: int) -> np.ndarray:
    """Return one row of an HDF5 data set."""
    path = Path(source.file.filename)
    with reading(path, what=f"HDF5 file with a picture in row {row}"):
        image = np.asarray(source[row])
    return pictures_from(image, expected="0..255", what=f"{path}, row {row} of {source.name.strip('/')!r}")
