"""Variables of MATLAB files of any version: version 7.3 is HDF5, which SciPy does not read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.data.reading import reading


def read_matlab(path: Path, *, names: Sequence[str], source: str) -> dict[str, np.ndarray]:
    """Return numeric variables of a ``.mat`` file, with the axes in MATLAB's order.

    Parameters
    ----------
    path
        The file, of MATLAB 4 to 7.2 or 7.3.
    names
        The variables.
    source
        What to do where the file holds others, for the message.

    Raises
    ------
    ValueError
        If the file cannot be read, lacks a variable, or one is no array of numbers (text, a cell, a structure).
    """
    with reading(path, what="MATLAB file"), path.open("rb") as file:
        newer = file.read(10) == b"MATLAB 7.3"
    values = _hdf5(path, names) if newer else _older(path)
    if missing := [name for name in names if name not in values]:
        found = ", ".join(name for name in values if not name.startswith(("__", "#"))) or "none"
        raise ValueError(f"{path}: expected the variables {', '.join(names)}, got no {', '.join(missing)} but {found}. "
                         f"{source}")
    for name in names:
        if not isinstance(values[name], np.ndarray) or values[name].dtype.kind not in "biufc":
            raise ValueError(f"{path}: expected an array of numbers in {name}, got {type(values[name]).__name__} of "
                             f"{getattr(values[name], 'dtype', 'another kind')}. {source}")
    return {name: values[name] for name in names}


def _older(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    with reading(path, what="MATLAB file"):
        values: dict[str, Any] = loadmat(path)
    return values


def _hdf5(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the wanted variables, and None for the others; HDF5 holds MATLAB's axes in reverse order."""
    import h5py

    values: dict[str, Any] = {}
    with reading(path, what="MATLAB file"), h5py.File(path, "r") as file:
        for name, item in file.items():
            values[name] = None
            if name not in names or not isinstance(item, h5py.Dataset):
                continue
            kind = item.attrs.get("MATLAB_class", b"")
            if item.attrs.get("MATLAB_empty", 0):
                values[name] = np.zeros(tuple(int(n) for n in item[()]))
            elif kind in (b"char", b"cell"):
                values[name] = np.asarray(kind.decode())
            else:
                values[name] = np.atleast_2d(item[()].T)
    return values
