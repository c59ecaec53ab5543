"""Single files: digests, safe names, and writing that leaves either the whole file or none."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
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


def safe_name(text: str, *, length: int = 60) -> str:
    """Return `text` as a file name of letters, digits, '-' and '_' that no other id shares."""
    plain = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in text)[:length]
    return plain if plain == text else f"{plain}-{digest(text, length=6)}"
