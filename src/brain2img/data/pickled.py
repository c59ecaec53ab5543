"""Reads pickled dictionaries of arrays, as several public EEG data sets publish them, without trusting or loading them.

Unpickling can run anything. Here it can make NumPy arrays, numbers, strings and plain containers, and nothing else; and
large arrays are not read but left where they are in the file.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from brain2img.data.reading import ReadError, reading

#: What a pickle may name: how NumPy of any version writes arrays, types and scalars, and plain containers.
_NUMPY = {(f"numpy.{core}.{module}", name) for core in ("core", "_core")
          for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))}
_SCALARS = {("numpy", name) for name in (
    "bool_", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128", "str_", "bytes_")}
_BUILTINS = {(module, name) for module in ("builtins", "__builtin__")
             for name in ("set", "frozenset", "complex", "slice", "bytearray")}
_ALLOWED = _NUMPY | _SCALARS | _BUILTINS | {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}
#: Arrays that NumPy's subclasses are read as: a map of a file that is elsewhere, and a matrix.
_PLAIN = {("numpy", "memmap"), ("numpy", "matrix"), ("numpy.core.memmap", "memmap"), ("numpy._core.memmap", "memmap")}
_WHAT = "pickled dictionary (numpy.save of a dict of arrays)"
#: Arrays of at least so many bytes stay in the file.
_LARGE = 1_000_000


@dataclass(frozen=True)
class ArrayInFile:
    """An array that lies in a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]

    def open(self) -> np.ndarray:
        """Map the array into memory; what is read of it counts as memory until the map is dropped."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        mapped = np.memmap(self.path, mode="r", offset=self.offset, shape=(size,), dtype=np.uint8)
        # not only in the order of C or Fortran: NumPy 2 pickles any permutation of axes as it lies in memory
        return np.ndarray(self.shape, self.dtype, buffer=mapped, strides=self.strides)


class _ForbiddenError(Exception):
    """A pickle names something that is not allowed."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return np.ndarray
        if (module, name) not in _ALLOWED:
            raise _ForbiddenError(f"{module}.{name}")
        return super().find_class(module, name)


class _SkippingLargeParts:
    """A binary file that leaves large parts out when they are asked for, and remembers where they are."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.read = file.read
        self.readline = file.readline
        self.parts: dict[int, int] = {}

    def readinto(self, buffer: memoryview) -> int:
        if buffer.nbytes < _LARGE:
            return self.file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]
        start = self.file.tell()
        if start + buffer.nbytes > self.size:
            raise EOFError(f"{start + buffer.nbytes - self.size} bytes are missing")
        self.parts[np.frombuffer(buffer, dtype=np.uint8).ctypes.data] = start
        self.file.seek(buffer.nbytes, 1)
        return buffer.nbytes


def read_pickled(path: Path, *, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the dictionary of an ``.npy`` file that holds one, or of a plain pickle, whatever its name.

    Parameters
    ----------
    path
        The file.
    keys
        What the dictionary must hold.

    Returns
    -------
    dict
        Large arrays as `ArrayInFile`.

    Raises
    ------
    ValueError
        If the file is missing, truncated, not such a dictionary, or would run something.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a pickled dictionary, got no such file. Fetch it, or correct raw=...")
    values = _load(path, large_in_file=True)
    if values is None:
        values = _load(path, large_in_file=False)
    if isinstance(values, np.ndarray) and values.shape == () and values.dtype == object:
        values = values.item()
    if not isinstance(values, dict) or not set(keys) <= set(values):
        found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path}: expected a dictionary with {', '.join(keys)}, got {found}. Fetch the file again, or "
                         "correct study.form.")
    return values


def _pass_head(file: BinaryIO, *, path: Path) -> None:
    """Go to where the pickle begins, which in an ``.npy`` file is behind its head."""
    if file.read(6) != b"\x93NUMPY":
        file.seek(0)
        return
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read_header(file)
    if not dtype.hasobject:
        raise ReadError(f"{path}: expected a {_WHAT}, got a plain array {shape} of {dtype}. Give the file that holds "
                        "the dictionary.")


def _load(path: Path, *, large_in_file: bool) -> Any:
    """Return what the file holds, or None where a large part is no array that can stay there."""
    size = path.stat().st_size
    with reading(path, what=_WHAT), path.open("rb") as file:
        skipping = _SkippingLargeParts(file, size)
        _pass_head(file, path=path)
        try:
            # NumPy arrays of Python 2 are text to Python 3 unless it is read as Latin-1
            values = _Unpickler(skipping if large_in_file else file, encoding="latin1").load()  # type: ignore[arg-type]
        except _ForbiddenError as error:
            raise ReadError(f"{path}: expected nothing but arrays, numbers, text and containers of them, got a file "
                            f"that asks for {error}. It may be hostile: fetch it from its authors, or, if it is your "
                            "own, save it anew as a dictionary of NumPy arrays.") from error
    if not large_in_file:
        return values
    found = 0

    def placed(value: Any) -> Any:
        nonlocal found
        if isinstance(value, np.ndarray) and value.ctypes.data in skipping.parts:
            found += 1
            return ArrayInFile(path, skipping.parts[value.ctypes.data], value.shape, value.dtype, value.strides)
        if isinstance(value, np.ndarray) and value.shape == () and value.dtype == object:
            return placed(value.item())
        return {key: placed(item) for key, item in value.items()} if isinstance(value, dict) else value

    values = placed(values)
    return values if found == len(skipping.parts) else None
