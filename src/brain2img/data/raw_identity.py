"""Raw files are known by their content: where they lie, and when they were copied there, does not matter.

Every file is read whole, once: a repair may change one byte in the middle of gigabytes and leave size, name and even
time as they were (programs that fetch a file set its time to that of the server's). Hashes of parts would miss it. What
is read is what preparing reads again, and more slowly: SHA-256 takes about a second for a gigabyte on one core, and
several files are read at a time, so that the disk sets the pace (THINGS-EEG2, 140 GB, 12 minutes at 200 MB/s).

Later commands do not read the files again. In `remembered` hashes are kept with the place, size and inode of the file
and its times of modification and of change of the inode, in nanoseconds; a file of which any differs is read again. The
last cannot be set by a program: a file that was replaced by one of equal size and time is noticed by it. Hashes of
files that changed within the last seconds are not kept, for the clock of a file system may be coarse.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from brain2img.artifacts import file_digest, write_json
from brain2img.data.reading import reading

log = logging.getLogger(__name__)

_FILE: ContextVar[Path | None] = ContextVar("_FILE", default=None)
_TOLD_BYTES = 1_000_000_000  # of more the log says that it is being read
_SETTLED = 2.0  # s
_State = list[int]  # size, inode, times of modification and change (ns)


@contextmanager
def remembered(file: Path) -> Iterator[None]:
    """Keep hashes of raw files in a JSON `file`, and take those that are there; without it nothing is kept."""
    before = _FILE.set(file)
    try:
        yield
    finally:
        _FILE.reset(before)


def content_of_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return a hash of the whole content of every file.

    Parameters
    ----------
    files
        Name -> file. Names are what stays when the data are moved: paths relative to a folder of the study.

    Returns
    -------
    dict
        Name -> hash, ordered by name.

    Raises
    ------
    ValueError
        If a file cannot be read.
    """
    known, found, new = _kept(), {}, {}
    for name, path in files.items():
        with reading(path, what="file"):
            place, state = os.path.abspath(path), _state(path)
        if place in known and known[place][0] == state:
            found[name] = known[place][1]
        else:
            new[name] = path, place, state
    size = sum(state[0] for _, _, state in new.values())
    if size > _TOLD_BYTES:
        log.info("reads %d raw files (%.1f GB) once, to know them by their content", len(new), size / 1e9)
    made: dict[str, tuple[_State, str]] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = pool.map(_hash, [path for path, _, _ in new.values()])
        for (name, (path, place, state)), content in zip(new.items(), _shown(hashes, len(new), size), strict=True):
            found[name] = content
            if _state(path) == state and time.time() - max(state[2:]) / 1e9 > _SETTLED:
                made[place] = state, content
    if made and (file := _FILE.get()) is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**_kept(), **made})
        except (OSError, ValueError) as error:
            log.warning("%s: hashes of raw files cannot be kept there (%s); the files are read again next time", file,
                        error)
    return dict(sorted(found.items()))


def _state(path: Path) -> _State:
    state = path.stat()
    return [state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns]


def _hash(path: Path) -> str:
    with reading(path, what="file"):
        return file_digest(path)


def _shown(hashes: Iterator[str], n: int, size: int) -> Iterator[str]:
    from rich.progress import track

    quiet = size <= _TOLD_BYTES or not sys.stderr.isatty()
    return iter(track(hashes, total=n, description="reading raw files", disable=quiet))


def _kept() -> dict[str, tuple[_State, str]]:
    """Return what is kept: place -> state of the file and hash; nothing of what is damaged."""
    file = _FILE.get()
    if file is None or not file.is_file():
        return {}
    try:
        return {place: (state, content) for place, (state, content) in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
