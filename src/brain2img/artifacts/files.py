"""Single files: digests, safe names, and writing that leaves either the whole file or none."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def digest(value: Any, *, length: int = 16) -> str:
    """Return a short SHA-256 of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return a short SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` and rename it to `path` on success.

    Raises
    ------
    ValueError
        If the disk is full; nothing is left under either name.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with naming_a_full_disk(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming_a_full_disk(path: Path) -> Iterator[None]:
    """Turn the system's error of a full disk while `path` is written into a ValueError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free / 1e6
            raise ValueError(
                f"disk: expected room to write {path.name} into {path.parent}, got a full disk ({free:.0f} MB free). "
                "Free some space or set paths.outputs to another disk, then run the same command again.") from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write ``.npy`` atomically."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def check_room(folder: Path, arrays: Iterable[tuple[tuple[int, ...], str]]) -> None:
    """Refuse to begin arrays of the given (shape, dtype) for which the disk has no room."""
    need = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ValueError(f"disk: expected {need / 1e6:.0f} MB free for {folder}, got {free / 1e6:.0f} MB. "
                         "Free some space or set paths.outputs to another disk.")


def begin_array(path: Path, *, shape: tuple[int, ...], dtype: str) -> None:
    """Make an ``.npy`` file of zeros to be filled by `write_rows`; what is not written yet takes no room."""
    np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)


def write_rows(path: Path, rows: np.ndarray, *, start: int) -> None:
    """Write `rows` into an ``.npy`` file from row `start` on.

    It is written, not mapped: what was written does not count as memory of the process, processes may write different
    rows at the same time, and a full disk is an error rather than the end of the process.
    """
    with naming_a_full_disk(path), path.open("r+b") as file:
        assert np.lib.format.read_magic(file) == (1, 0), path
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        assert start + len(rows) <= shape[0], f"{path}: {shape[0]} rows, not {start + len(rows)}"
        assert rows.shape[1:] == shape[1:], f"{path}: rows of {shape[1:]}, not {rows.shape[1:]}"
        rows = np.ascontiguousarray(rows, dtype=dtype)
        file.seek(start * math.prod(shape[1:]) * dtype.itemsize, os.SEEK_CUR)
        file.write(rows.data)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write ``.parquet`` atomically."""
    with writing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_array(path: Path) -> np.ndarray:
    """Memory-map an ``.npy`` file.

    Raises
    ------
    ValueError
        If the file is missing, truncated or not a plain array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path.name}: expected the file in {path.parent}, got nothing. "
                         "Run the stage that writes it again with overwrite=true.") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole .npy array, got a truncated or damaged file of {path.stat().st_size} bytes "
            f"({error}). Run the stage that wrote it again with overwrite=true.") from error


class StoredRows:
    """Rows of an ``.npy`` file, read when they are asked for.

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
        mapped: Any = read_array(path)
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
            If the file was cut short meanwhile.
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


def safe_name(text: str, *, length: int = 60) -> str:
    """Return `text` as a file name of letters, digits, '-' and '_' that no other id shares."""
    plain = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in text)[:length]
    return plain if plain == text else f"{plain}-{digest(text, length=6)}"
