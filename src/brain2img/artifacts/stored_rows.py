"""Rows of an array that are read, not mapped."""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.artifacts.content import kept_content
from brain2img.artifacts.reading import read_array, reading


class StoredRows:
    """Rows of an ``.npy`` file, read when they are asked for, and compared with their hashes then.

    They are read, not mapped: of a mapped file everything that was ever touched counts as memory of the process until
    the map is dropped, so that an epoch of training would come to hold the study.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        As `read_array`.
    """

    def __init__(self, path: Path) -> None:
        with reading(path, "a whole .npy array", compare=False):
            pass  # it is there
        self._kept = kept_content(path)
        if self._kept is not None:
            self._kept.check(stop=1)  # the 16 MB with the header; others when rows of them are read
        mapped: Any = read_array(path, compare=False)
        assert mapped.flags.c_contiguous, f"{path}: rows do not stand together"
        self.path = path
        self.shape: tuple[int, ...] = mapped.shape
        self.dtype: np.dtype[Any] = mapped.dtype
        self._offset = int(mapped.offset)
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        # the file that is here now, though another may take its name
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRows, (self.path,)  # another process opens its own

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        self.read(rows, out=out)
        return out

    def read(self, rows: np.ndarray, *, out: np.ndarray) -> None:
        """Read rows into `out`.

        Parameters
        ----------
        rows
            ``(n,)`` their numbers, from 0.
        out
            ``(n, *shape[1:])``, C-contiguous, of the file's type.

        Raises
        ------
        IndexError
            If there is no such row.
        ValueError
            If the file was cut short meanwhile, or what is read differs from what was written.
        """
        assert out.shape == (len(rows), *self.shape[1:]), f"{self.path}: {out.shape} for {len(rows)} rows"
        self._read(rows, out, skip=0)

    def columns(self, rows: np.ndarray, *, start: int, stop: int) -> np.ndarray:
        """Return the values `start` to `stop` of flattened rows, ``(n, stop - start)``, and read no others.

        Raises
        ------
        IndexError, ValueError
            As `read`.
        """
        assert 0 <= start <= stop <= math.prod(self.shape[1:]), f"{self.path}: values {start} to {stop}"
        out = np.empty((len(rows), stop - start), dtype=self.dtype)
        self._read(rows, out, skip=start * self.dtype.itemsize)
        return out

    def _read(self, rows: np.ndarray, out: np.ndarray, *, skip: int) -> None:
        """Fill every row of `out` from the byte `skip` of its row in the file on."""
        assert out.dtype == self.dtype, f"{self.path}: {out.dtype}"
        if not out.size:
            return
        content, size = memoryview(out.data).cast("B"), out.nbytes // len(out)
        for place, row in enumerate(np.asarray(rows).tolist()):
            if self._kept is not None and 0 <= row < len(self):
                begin = self._offset + row * self._row_bytes + skip
                self._kept.check(start=begin, stop=begin + size, descriptor=self._descriptor)
            if not 0 <= row < len(self):
                raise IndexError(f"{self.path}: expected rows of {len(self)}, got {row}")
            done = 0
            while done < size:  # a signal may end a call early
                n = os.preadv(self._descriptor, [content[place * size + done:(place + 1) * size]],
                              self._offset + row * self._row_bytes + skip + done)
                if n == 0:
                    raise ValueError(f"{self.path}: expected {len(self)} rows, got a file that ends in row {row}: it "
                                     "was cut short. Run the stage that wrote it again with overwrite=true.")
                done += n
