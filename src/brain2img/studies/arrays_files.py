"""The files of a person's own study: tables as people save them, and arrays of signals read some trials at a time."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TABLES = (".csv", ".tsv", ".parquet")
ARRAYS = (".npy", ".mat", ".h5", ".hdf5")
AXES = ("trials", "channels", "samples")
_BLOCK_BYTES = 64_000_000
_JUNK = re.compile(r"^(\.|~\$|thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
_DATE = re.compile(r"^(\d{1,2}[-.][A-Za-z]{3}|[A-Za-z]{3}[-.]\d{2,4}|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}( 0+:00(:00)?)?)$")
_SCIENTIFIC = re.compile(r"^\d([.,]\d+)?E\+?\d+$", re.IGNORECASE)


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files of a folder with these endings, in capitals or not, without what systems leave there."""
    return sorted(path for path in folder.iterdir()
                  if path.is_file() and path.suffix.lower() in suffixes and not _JUNK.match(path.name))


def table_named(folder: Path, name: str) -> Path | None:
    """Return ``<name>.csv``, ``.tsv`` or ``.parquet`` of a folder, None where there is none.

    Raises
    ------
    ValueError
        If there are several.
    """
    found = [path for path in files_in(folder, TABLES) if path.stem.lower() == name.lower()]
    if len(found) > 1:
        raise ValueError(f"{folder}: expected one table {name}, got {', '.join(path.name for path in found)}. Keep one "
                         "of them.")
    return found[0] if found else None


def read_table(path: Path, *, needs: Sequence[str], known: Sequence[str]) -> pd.DataFrame:
    """Read a table, every value as the text that stands there ("007" stays "007"); empty cells are None.

    A byte order mark, UTF-16 as Excel writes it, semicolons and tabs between columns, and spaces around names and
    values are read rightly; names of columns in capitals or not.

    Parameters
    ----------
    path
        The table: ``.csv``, ``.tsv`` or ``.parquet``, whose numbers become text, too, and whose lists stay lists.
    needs, known
        Names of columns that have to be there, and of those that may be.

    Raises
    ------
    ValueError
        If it cannot be read, is empty, lacks a column or has one twice.
    """
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    table = table[[name for name in table.columns if name and not name.startswith("unnamed:")]]
    twice = sorted(set(table.columns[table.columns.duplicated()]))
    if twice:
        raise ValueError(f"{path}: expected every column once, got {twice} twice. Remove one of them.")
    missing = [name for name in needs if name not in table]
    if missing:
        raise ValueError(f"{path}: expected the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}, got "
                         f"{', '.join(table) or 'none'}. Name them in the first line; "
                         f"known are {', '.join(dict.fromkeys([*needs, *known]))}.")
    table = table.dropna(how="all").reset_index(drop=True)
    if table.empty:
        raise ValueError(f"{path}: expected lines below the names of the columns, got none. Fill the table.")
    for name in needs:
        if table[name].isna().any():
            line = int(np.flatnonzero(table[name].isna())[0])
            raise ValueError(f"{path}: expected a value of {name!r} in every line, got {int(table[name].isna().sum())} "
                             f"empty ones (first: line {line + 2}). Fill them, or remove these lines.")
    return table


def _parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises its own, and OSError of what is no parquet
        raise ValueError(f"{path}: expected a whole parquet file, got one that cannot be read ({error}). Write it "
                         "again, or give a .csv.") from error
    return pd.DataFrame({name: [_word(value) for value in table[name]] for name in table}, dtype=object)


def _word(value: Any) -> Any:
    """Return a value of a parquet file as text; 7.0 is 7, as a column of whole numbers with a gap stores it."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [str(item).strip() for item in value]
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return None
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None


def _text(path: Path) -> pd.DataFrame:
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got a byte that is none at place {error.start}. Save it as "
                         "'CSV UTF-8'.") from error
    text = re.sub(r"\Asep=(.)\r?\n", "", text)  # a line that only Excel understands
    head = text.split("\n", 1)[0]
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=mark, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path}: expected a table of text, got one that cannot be read ({error}). Save it as "
                         "'CSV UTF-8'.") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{path}: expected names of columns in the first line, got an empty file. Fill it.")
    while rows[0] and not rows[0][-1].strip() and all(len(row) < len(rows[0]) or not row[-1].strip() for row in rows):
        rows = [row[:len(rows[0]) - 1] for row in rows]  # an empty column at the end, as Excel leaves it
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}: expected {len(rows[0])} values in every line, as the first has, got {len(row)} "
                             f"in line {number}. Put quotes around values that hold {mark!r}.")
    cells = [[cell.strip() or None for cell in row] for row in rows[1:]]
    return pd.DataFrame(cells, columns=[name.strip() for name in rows[0]], dtype=object)


def numbers(table: pd.DataFrame, name: str, *, path: Path, whole: bool = False) -> pd.Series:
    """Return a column as numbers, NaN where it is empty; a decimal comma is one ("0,25").

    Raises
    ------
    ValueError
        If a value is no number, or no whole one.
    """
    values = pd.to_numeric(table[name].map(lambda v: v.replace(",", ".") if isinstance(v, str) else v), errors="coerce")
    bad = values.isna() & table[name].notna()
    if whole:
        bad |= values.notna() & (values % 1 != 0)
    if bad.any():
        line = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{path}: expected {'whole ' if whole else ''}numbers in the column {name!r}, got "
                         f"{table[name].iloc[line]!r} in line {line + 2}. Correct it.")
    return values


def likely(name: str, known: Sequence[str]) -> str:
    """Say what may have happened to a name that is none of those known: "" or a sentence."""
    bare: dict[str, str] = {}
    for other in known:
        bare.setdefault(other.lower().lstrip("0") or "0", other)
    plain = re.sub(r"\.0+$", "", name)
    if (found := bare.get(plain.lower().lstrip("0") or "0")) is not None:
        return (f" {found!r} is there: leading zeros or capitals were lost, as when a spreadsheet reads names as "
                "numbers. Format the column as text and write the names again.")
    stems = {Path(other).stem.lower(): other for other in known} | {other.lower(): other for other in known}
    if (found := stems.get(Path(name).stem.lower())) is not None:
        return f" {found!r} is there: write names without the ending of the file."
    if _DATE.match(name):
        return " It looks like a date: a spreadsheet makes dates of names such as 3-7. Format the column as text."
    if _SCIENTIFIC.match(name):
        return " A spreadsheet shortened it. Format the column as text and write the names again."
    return ""


@dataclass(frozen=True)
class SignalFile:
    """An array of signals on disk, its axes brought to trials x channels x samples.

    Parameters
    ----------
    path, variable
        The file, and the variable in it ("" for ``.npy``).
    array
        What is sliced: a mapped array, or a data set of HDF5.
    order
        For each of trials, channels (and samples) its axis in the file.
    """

    path: Path
    variable: str
    array: Any
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Trials, channels and samples (1 where there is no such axis)."""
        sizes = tuple(int(self.array.shape[axis]) for axis in self.order)
        return sizes if len(sizes) == 3 else (*sizes, 1)

    def blocks(self, rows: np.ndarray, channels: np.ndarray, *, factor: float) -> Iterator[np.ndarray]:
        """Yield ``(n, C, T)`` float32 signals times `factor`, of some trials (in their order) and channels."""
        _, n_channels, n_times = self.shape
        step = max(1, _BLOCK_BYTES // (8 * n_channels * n_times))
        for start in range(0, len(rows), step):
            some = rows[start:start + step]
            first, last = int(some.min()), int(some.max()) + 1
            if last - first > 4 * step:  # far apart: one by one, so that no more than a block is in memory
                x = np.concatenate([self._read(int(row), int(row) + 1) for row in some])
            else:
                x = self._read(first, last)[some - first]
            yield (x[:, channels].astype(np.float64) * factor).astype(np.float32)

    def _read(self, start: int, stop: int) -> np.ndarray:
        place: list[slice] = [slice(None)] * len(self.array.shape)
        place[self.order[0]] = slice(start, stop)
        try:
            x = np.transpose(np.asarray(self.array[tuple(place)]), self.order)
        except OSError as error:
            raise ValueError(f"{self.path}: expected whole trials {start} to {stop - 1}, got a part that cannot be "
                             f"read ({error}). Write the file again.") from error
        return x if x.ndim == 3 else x[..., None]


def open_signals(path: Path, *, variable: str | None, axes: Sequence[str] | None) -> SignalFile:
    """Open the signals of a subject; they are read by `SignalFile.blocks`.

    Parameters
    ----------
    path
        ``.npy``, ``.mat`` (5 or 7.3) or ``.h5``. MATLAB 7.3 stores the axes of an array turned round: they are turned
        back. MATLAB 5 is read into memory, which its format wants.
    variable
        Name of the array, for files that hold several.
    axes
        What the axes in the file are, in order; None for ``trials, channels[, samples]``.

    Raises
    ------
    ValueError
        If the file is damaged, holds no such array, or one that is no signals.
    """
    name, array = _opened(path, variable)
    n_axes = len(array.shape)
    names = tuple(axes) if axes is not None else AXES[:n_axes]
    if n_axes not in (2, 3) or sorted(names) != sorted(AXES[:n_axes]):
        what = f"{n_axes} axes {tuple(array.shape)}"
        raise ValueError(f"{path}: expected trials x channels, or trials x channels x samples, got {what}"
                         + (f" for study.axes={list(names)}" if axes is not None and n_axes in (2, 3) else "")
                         + ". Save one array of trials, or say with study.axes=[trials,channels,samples] which axis is "
                           "which.")
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise ValueError(f"{path}: expected real numbers, got an array of {array.dtype}. Save it as float32.")
    file = SignalFile(path, name, array, tuple(names.index(axis) for axis in AXES[:n_axes]))
    if 0 in file.shape:
        raise ValueError(f"{path}: expected trials and channels, got an empty array {tuple(array.shape)}. Write the "
                         "file again.")
    return file


def _opened(path: Path, variable: str | None) -> tuple[str, Any]:
    """Return the name of the variable, and what can be sliced."""
    if path.suffix.lower() == ".npy":
        try:
            return "", np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path}: expected a whole .npy array of numbers, got one that cannot be read ({error}). "
                             "Write it again with numpy.save(path, array), an array and no list of arrays.") from error
    with path.open("rb") as file:
        start = file.read(128)
    hdf5 = start.startswith(b"\x89HDF") or b"MATLAB 7.3" in start
    return _hdf5(path, variable) if hdf5 else _matlab(path, variable)


def _hdf5(path: Path, variable: str | None) -> tuple[str, Any]:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: expected a whole HDF5 file, got one that cannot be read ({error}). Write it again."
                         ) from error
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset)
                    and not name.startswith("#") else None)
    arrays = {name: item for name, item in found.items() if len(item.shape) in (2, 3) and max(item.shape) > 1}
    name = _chosen(path, variable, found, arrays)
    matlab = path.suffix.lower() == ".mat" or "MATLAB_class" in found[name].attrs
    return name, _TurnedRound(found[name]) if matlab else found[name]


class _TurnedRound:
    """An array that MATLAB wrote into HDF5, its axes in MATLAB's order."""

    def __init__(self, stored: Any) -> None:
        self.stored, self.shape, self.dtype = stored, tuple(reversed(stored.shape)), stored.dtype

    def __getitem__(self, place: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.stored[tuple(reversed(place))]).T


def _matlab(path: Path, variable: str | None) -> tuple[str, Any]:
    from scipy.io import loadmat, whosmat

    try:
        shapes = {name: shape for name, shape, _ in whosmat(path)}
        arrays = {name: shape for name, shape in shapes.items() if len(shape) in (2, 3) and max(shape) > 1}
        name = _chosen(path, variable, shapes, arrays)
        return name, loadmat(path, variable_names=[name])[name]
    except Exception as error:  # of a damaged file SciPy raises whatever it stumbles over, zlib's own error too
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: expected a whole MATLAB file, got one that cannot be read ({error}). Save it again, "
                         "large arrays with -v7.3.") from error


def _chosen(path: Path, variable: str | None, found: Any, arrays: Any) -> str:
    if variable is None and len(arrays) == 1:
        return str(next(iter(arrays)))
    if variable is None or variable not in found:
        names = ", ".join(f"{name} {tuple(getattr(of, 'shape', of))}" for name, of in found.items()) or "none"
        raise ValueError(f"{path}: expected {'one array' if variable is None else f'the variable {variable!r}'}, got "
                         f"{names}. Say which with study.variable=<name>.")
    return variable
