"""Raw folders as people have them: names without case, what systems leave in folders, and what was not read."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import pandas as pd

from brain2img.artifacts import write_table
from brain2img.data.file_names import is_junk

log = logging.getLogger(__name__)

_SHOWN = 5


def _plain(name: str) -> str:
    # macOS decomposes accents in the names that it writes
    return unicodedata.normalize("NFC", name).casefold()


def _children(folder: Path, *, name: str) -> list[Path]:
    """Return what a folder holds under names that match `name` without case, sorted; names of two are refused."""
    pattern = _plain(name)
    found: dict[str, Path] = {}
    for child in sorted(folder.iterdir()):
        if is_junk(child.name) or not fnmatchcase(plain := _plain(child.name), pattern):
            continue
        if plain in found:
            raise _twins(folder, found[plain].name, child.name)
        found[plain] = child
    return list(found.values())


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files and folders below `folder` that match a pattern, whatever their case, in alphabetical order.

    What operating systems leave in folders (``.DS_Store``, ``._*``, ``Thumbs.db``, ``desktop.ini``) never matches.

    Parameters
    ----------
    folder
        Where to look; nothing is found where it is no folder.
    pattern
        As `pathlib.Path.glob` takes it ("sub-*/ses-*/*.edf"); ``**`` stands for any folders, or none.

    Raises
    ------
    ValueError
        If two names in one folder differ in capitals alone: nobody can know which is meant.
    """
    found = [Path(folder)]
    for part in pattern.split("/"):
        folders = [place for place in found if place.is_dir()]
        if part == "**":
            found = [place for start in folders for place in (start, *_below(start))]
        else:
            found = [child for place in folders for child in _children(place, name=part)]
    return sorted(dict.fromkeys(found))


def _below(folder: Path) -> Iterator[Path]:
    for child in _children(folder, name="*"):
        if child.is_dir():
            yield child
            yield from _below(child)


def spelled(path: Path, *, under: Path) -> Path:
    """Return `path` as it is spelled on the disk, where it is there under other capitals; else `path` itself.

    Parameters
    ----------
    path
        A file or folder.
    under
        The folder of raw files: what lies above it is taken as it is.

    Raises
    ------
    ValueError
        If two names in one folder differ in capitals alone and neither is that of `path`.
    """
    if path.exists() or not path.is_relative_to(under):
        return path
    place = under
    for part in path.relative_to(under).parts:
        if not (place / part).exists():
            found = _spellings(place, place.stat().st_mtime_ns).get(_plain(part), []) if place.is_dir() else []
            if not found:
                return path
            if len(found) > 1:
                raise _twins(place, *found[:2])
            part = found[0]
        place = place / part
    return place


def inside(folder: Path, *parts: str) -> Path:
    """Return what lies in a folder under these names, in any case, as it is spelled on the disk: see `spelled`."""
    return spelled(folder.joinpath(*parts), under=folder)


@lru_cache(maxsize=1024)
def _spellings(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return plain name -> how it is spelled in a folder that was last changed then."""
    found: dict[str, list[str]] = {}
    for child in sorted(folder.iterdir()):
        found.setdefault(_plain(child.name), []).append(child.name)
    return found


def _twins(folder: Path, first: str, second: str) -> ValueError:
    return ValueError(f"{folder}: expected names that differ in more than capitals, got {first!r} and {second!r}. "
                      "Remove or rename the one that does not belong there.")


def write_not_read(out: Path, raw: Path, *, read: Iterable[Path]) -> pd.DataFrame:
    """List what lies in the raw folder and was not read, in ``<out>/not_read.parquet`` and in the log.

    Parameters
    ----------
    out
        The prepared folder.
    raw
        The folder of raw files.
    read
        Files that were read, and folders all of which was (as ``*.ds``); what lies elsewhere does not matter.

    Returns
    -------
    pandas.DataFrame
        One line for each file not read (`path`, relative to `raw`; `n_files`, 1; `n_bytes`), or for the uppermost
        folder of which no file was (a path that ends in "/").
    """
    taken = {os.path.realpath(path) for path in read}
    seen = {os.path.realpath(raw)}  # folders may be linked, in circles too

    def visit(folder: Path) -> tuple[bool, list[tuple[str, int, int]]]:
        """Return whether anything of a folder was read, and lines for what was not."""
        any_read = False
        found: list[tuple[str, int, int]] = []
        for child in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_junk(child.name):
                continue
            path, real = Path(child.path), os.path.realpath(child.path)
            if real in taken:
                any_read = True
            elif child.is_dir():
                if real in seen:
                    continue
                seen.add(real)
                inside, below = visit(path)
                any_read |= inside
                if inside or not below:
                    found += below
                else:
                    found.append((f"{path.relative_to(raw).as_posix()}/", sum(n for _, n, _ in below),
                                  sum(size for *_, size in below)))
            else:
                size = path.stat().st_size if path.exists() else 0
                found.append((path.relative_to(raw).as_posix(), 1, size))
        return any_read, found

    _, lines = visit(Path(raw))
    table = pd.DataFrame(lines, columns=["path", "n_files", "n_bytes"])
    write_table(out / "not_read.parquet", table)
    if len(table):
        largest = sorted(lines, key=lambda line: -line[2])[:_SHOWN]  # recordings rather than notes
        shown = ", ".join(f"{path} ({n} files)" if path.endswith("/") else path for path, n, _ in largest)
        log.warning("%s: %d files there were not read (%s%s); all are listed in not_read.parquet", raw,
                    table["n_files"].sum(), shown, ", ..." if len(table) > _SHOWN else "")
    return table
