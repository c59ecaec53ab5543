"""One reader for each kind of file: what it returns is whole and as it was written, or it says what is wrong.

Every message names the file, what is wrong with it and the stage that makes it again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.artifacts.content import check_content, cure

log = logging.getLogger(__name__)


@contextmanager
def reading(path: Path, kind: str, *, advice: str | None = None, compare: bool = True) -> Iterator[None]:
    """Say of whatever goes wrong while a file is read which file it is, what is wrong, and what to do.

    Parameters
    ----------
    path
        The file.
    kind
        What it should be, as in "a whole JSON file".
    advice
        What to do when it is damaged; by default to run the stage again that made it.
    compare
        Whether to compare it with the hashes that its stage kept before.

    Raises
    ------
    ValueError
        If the file is missing, a folder, not to be read by this user, empty, truncated, damaged or changed since.
    """
    advice = cure(path) if advice is None else advice
    try:
        if path.is_dir():
            raise ValueError(f"{path}: expected {kind}, got a folder. Remove it. {advice}")
        with path.open("rb") as file:
            empty = not file.read(1)
        if compare:
            check_content(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected {kind}, got nothing there. {advice}") from None
    except OSError as error:
        raise _of_the_system(path, kind, error) from error
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _of_the_system(path, kind, error) from error
        state = "an empty one" if empty else f"a truncated or damaged file of {path.stat().st_size} bytes"
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path}: expected {kind}, got {state} ({reason}). {advice}") from error


def _of_the_system(path: Path, kind: str, error: OSError) -> ValueError:
    what = f"{path}: expected {kind}, got {os.strerror(error.errno or 0)!r} from the system"
    if isinstance(error, PermissionError):
        return ValueError(f"{what}. Let this user read it (chmod u+r), and enter the folders above it.")
    return ValueError(f"{what}. Look at the disk and its connection; then run the same command again.")


def read_json(path: Path, *, keys: Sequence[str] = (), kind: type = dict, advice: str | None = None) -> Any:
    """Return what a JSON file holds.

    Parameters
    ----------
    path
        The file.
    keys
        What must be there of an object.
    kind
        ``dict`` for an object, ``list`` for a list.
    advice
        As for `reading`.

    Raises
    ------
    ValueError
        As `reading`, or if it holds something else or lacks a key.
    """
    with reading(path, "a whole JSON file", advice=advice):
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    advice = cure(path) if advice is None else advice
    fits = isinstance(value, kind)
    if not fits:
        names: dict[type, str] = {dict: "an object", list: "a list"}
        raise ValueError(f"{path}: expected {names[kind]} of JSON, got {names.get(type(value), repr(value)[:40])}. "
                         f"{advice}")
    holds: Any = value  # an object or a list
    if missing := [key for key in keys if key not in holds]:
        raise ValueError(f"{path}: expected the keys {list(keys)}, got none of {missing}. {advice}")
    return value


def read_begun(path: Path, *, keys: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return what a note of unfinished work holds; None, with a warning, where it is damaged: the work begins anew."""
    if not path.exists():
        return None
    try:
        return read_json(path, keys=keys, advice="")
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise
        log.warning("%s What was begun there is begun anew.", str(error).rstrip())
        return None


def read_table(path: Path, *, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Return a parquet table.

    Raises
    ------
    ValueError
        As `reading`, or if one of `columns` is missing.
    """
    with reading(path, "a whole parquet table"):
        table = pd.read_parquet(path)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: expected the columns {list(columns)}, got none of {missing}. {cure(path)}")
    return table


def read_array(path: Path, *, compare: bool = True) -> np.ndarray:
    """Memory-map an ``.npy`` file.

    Parameters
    ----------
    path
        The file.
    compare
        Whether to compare the whole of it with its hashes when it is first opened.

    Raises
    ------
    ValueError
        As `reading`.
    """
    with reading(path, "a whole .npy array", compare=compare):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_arrays(path: Path, *, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file.

    Raises
    ------
    ValueError
        As `reading`, or if one of `keys` is missing.
    """
    with reading(path, "a whole .npz file"), np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path}: expected the arrays {list(keys)}, got none of {missing}. {cure(path)}")
    return arrays


def read_tensors(path: Path, *, advice: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file.

    Raises
    ------
    ValueError
        As `reading`.
    """
    from safetensors.numpy import load_file

    with reading(path, "a whole safetensors file", advice=advice):
        return load_file(path)


def read_picture(path: Path) -> np.ndarray:
    """Return a picture that a stage made, ``(h, w, 3)`` uint8.

    Raises
    ------
    ValueError
        As `reading`.
    """
    with reading(path, "a whole picture"), Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def is_whole_png(path: Path) -> bool:
    """Tell whether a PNG is there and every part of it fits the checksum beside it; warn where one does not.

    Pictures in a cache stand in no finished folder whose hashes they could be compared with.
    """
    if not path.exists():
        return False
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        return True
    except Exception as error:  # PIL raises SyntaxError, OSError and others
        log.warning("%s: expected a whole PNG, got a damaged one (%s). It is made anew.", path, error)
        return False
