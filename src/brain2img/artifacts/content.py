"""What stands in every file of a finished folder: kept when it is finished, compared when a file is read.

``contents.json`` holds size and hashes of every file of the folder, and its own hash stands in ``manifest.json``. A
file has one hash for every 16 MB, so that a part can be compared without the rest. They are SHA-256, which processors
compute at 1 to 2 GB/s a core, cut to 64 bits: they are there for disks and accidents, not against people.

A file is compared whole when it is first opened in a process, before anything is made of it; rows of `StoredRows`
(signals, coefficients of ridge), of which a command may need few, with the 16 MB around them when they are first read.
What was compared is not compared again while size, time and inode of the file stay. So no byte is used that was not
compared, and none is hashed that is not used: a flip in ``last.ckpt`` is found by `verify`, not by ``predict``.
``scripts/bench/content.py`` measures the cost: hashing takes as long as reading from a fast disk, once a process.
``+verify=false`` on a command line does without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brain2img.artifacts.files import file_digest, write_json

log = logging.getLogger(__name__)

CONTENTS = "contents.json"
CHUNK = 1 << 24
_BLOCK = 1 << 20  # read at once: stays in the processor's cache
_AT_ONCE = 32 * CHUNK  # between two steps of a progress bar
_JOBS = min(8, os.cpu_count() or 1)
_OWN = ("manifest.json", "started.json", CONTENTS)
_MADE_FROM = {"prepared": "prepare", "cache": "embed", "train": "train", "predictions": "predict",
              "priors": "fit_prior", "reconstructions": "reconstruct", "captions": "caption", "scores": "evaluate"}
"""Folder under the root of all results -> the stage that writes there."""


@dataclass(eq=False)
class FileContent:
    """What is known of the content of one file.

    Parameters
    ----------
    path
        The file.
    size
        Bytes it had when its folder was finished.
    digests
        Hash of every `chunk` bytes.
    chunk
        Bytes that one hash covers.
    """

    path: Path
    size: int
    digests: tuple[str, ...]
    chunk: int
    _compared: set[int] = field(default_factory=set)

    def check(self, *, start: int = 0, stop: int | None = None, descriptor: int | None = None) -> None:
        """Compare the bytes `start` to `stop` (the whole file by default), less those that were compared before.

        Parameters
        ----------
        start, stop
            Place in the file.
        descriptor
            The open file, where it is not the one that has the name now.

        Raises
        ------
        ValueError
            If they are others than when the folder was finished.
        """
        stop = self.size if stop is None else min(stop, self.size)
        new = [i for i in range(start // self.chunk, -(-stop // self.chunk)) if i not in self._compared]
        if not new:
            return
        opened = os.open(self.path, os.O_RDONLY) if descriptor is None else descriptor
        try:
            got = _digests(opened, new, self.chunk)
        finally:
            if descriptor is None:
                os.close(opened)
        for i, found in zip(new, got, strict=True):
            if found != self.digests[i]:
                raise ValueError(f"{self.path}: expected the content that was written, got other bytes between "
                                 f"{i * self.chunk} and {min((i + 1) * self.chunk, self.size)} of {self.size}: the "
                                 f"file was changed or damaged since. {cure(self.path)}")
            self._compared.add(i)


def write_contents(folder: Path) -> str:
    """Write ``contents.json`` of a folder that is whole; returns the hash of it, which its manifest keeps."""
    files = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > 4e9:
        log.info("%s: hashes of its content, %.1f GB", folder.name, sum(sizes.values()) / 1e9)
    write_json(folder / CONTENTS, {"algorithm": "sha256", "chunk": CHUNK, "files": {
        name: " ".join([str(sizes[name]), *file_digests(path, size=sizes[name])]) for name, path in files.items()}})
    return file_digest(folder / CONTENTS)


def file_digests(path: Path, *, size: int) -> list[str]:
    """Return the hash of every `CHUNK` bytes of a file of `size` bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _digests(descriptor, list(range(-(-size // CHUNK))), CHUNK)
    finally:
        os.close(descriptor)


def _digests(descriptor: int, chunks: list[int], size: int) -> list[str]:
    if len(chunks) < 2:
        return [_digest(descriptor, i * size, size) for i in chunks]
    with ThreadPoolExecutor(_JOBS) as pool:  # reading and hashing leave Python to the others
        return list(pool.map(lambda i: _digest(descriptor, i * size, size), chunks))


def _digest(descriptor: int, start: int, size: int) -> str:
    state = hashlib.sha256()
    for place in range(start, start + size, _BLOCK):
        block = os.pread(descriptor, min(_BLOCK, start + size - place), place)
        if not block:
            break
        state.update(block)
    return state.hexdigest()[:16]


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a stage's folder; not its manifest, hidden ones, nor those of finished folders inside it."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (here / f / "manifest.json").exists())
        yield from (here / name for name in sorted(names) if not name.startswith(".") and name not in _OWN)


_enabled = True
_files: dict[tuple[str, int, int, int], FileContent] = {}
_folders: dict[tuple[str, int, int, int], Mapping[str, FileContent] | None] = {}


def compare_on_opening(enabled: bool) -> None:
    """Say whether this process compares what it reads with the hashes that were kept; it does unless told not to."""
    global _enabled
    _enabled = enabled


def check_content(path: Path) -> None:
    """Compare a whole file with what was kept of it when its folder was finished, once a process.

    Raises
    ------
    ValueError
        If it is another one now.
    FileNotFoundError
        If it is not there.
    """
    if (kept := kept_content(path)) is not None:
        kept.check()


def kept_content(path: Path) -> FileContent | None:
    """Return what was kept of a file's content, or None where nothing was: in no finished folder, or in an old one.

    Raises
    ------
    ValueError
        If the file is of another size, or what was kept is damaged.
    FileNotFoundError
        If the file is not there.
    """
    path = Path(os.path.abspath(path))
    key = _key(path)
    if not _enabled or path.name in _OWN:
        return None
    if key in _files:
        return _files[key]
    folder = next((parent for parent in path.parents if (parent / "manifest.json").exists()), None)
    kept = (_kept(folder) or {}).get(path.relative_to(folder).as_posix()) if folder else None
    if kept is None:
        return None
    if kept.size != key[1]:
        raise ValueError(f"{path}: expected the {kept.size} bytes that were written, got {key[1]}: the file was "
                         f"{'truncated' if key[1] < kept.size else 'changed'} or damaged since. {cure(path)}")
    return _files.setdefault(key, FileContent(path, kept.size, kept.digests, kept.chunk))


def _key(path: Path) -> tuple[str, int, int, int]:
    status = os.stat(path)
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino


def _kept(folder: Path) -> Mapping[str, FileContent] | None:
    """Return what the manifest of a folder keeps of its files; None of a folder that no stage, or an old one, wrote."""
    key = _key(folder / "manifest.json")
    if key not in _folders:
        manifest = _noted(folder / "manifest.json")
        if "id" in manifest and "contents" not in manifest:
            log.warning("%s: no hashes of its files were kept (it was written by an older version), so that damage to "
                        "them is not noticed. verify.py folder=%s record=true keeps those of what is there now.",
                        folder, shlex.quote(str(folder)))
        _folders[key] = read_contents(folder, manifest) if "contents" in manifest else None
    return _folders[key]


def read_contents(folder: Path, manifest: Mapping[str, Any]) -> dict[str, FileContent]:
    """Return name -> what was kept of every file of a folder with this manifest.

    Raises
    ------
    ValueError
        If ``contents.json`` is missing or not the one that belongs to the manifest.
    """
    path = folder / CONTENTS
    if not path.exists() or file_digest(path) != manifest["contents"]:
        raise ValueError(f"{path}: expected the hashes that belong to {folder / 'manifest.json'}, got "
                         f"{'others: one of both was changed or damaged since' if path.exists() else 'nothing'}. "
                         f"{cure(path)}")
    values = json.loads(path.read_text())
    found = {}
    for name, text in values["files"].items():
        size, *digests = text.split()
        found[name] = FileContent(folder / name, int(size), tuple(digests), values["chunk"])
    return found


@dataclass(kw_only=True)
class Comparison:
    """How the files of a finished folder differ from those that were written.

    Parameters
    ----------
    damaged
        A line for every file with another content, naming it and its cure.
    missing, additional
        Names of files that are no longer there, and that no stage wrote.
    n_files
        Number of files that were kept; 0 where no hashes were.
    """

    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    additional: list[str] = field(default_factory=list)
    n_files: int = 0


def compare(folder: Path, manifest: Mapping[str, Any], *, done: Callable[[int], None] = lambda _: None) -> Comparison:
    """Compare all files of a finished folder, whatever was compared before.

    Parameters
    ----------
    folder, manifest
        The folder and its manifest.
    done
        Is told how many bytes were compared.

    Raises
    ------
    ValueError
        As `read_contents`.
    """
    kept, found = read_contents(folder, manifest), Comparison()
    there = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    found.missing, found.additional = sorted({*kept} - {*there}), sorted({*there} - {*kept})
    found.n_files = len(kept)
    for name in sorted({*there} & {*kept}):
        size = there[name].stat().st_size
        try:
            if size != kept[name].size:
                raise ValueError(f"{there[name]}: expected the {kept[name].size} bytes that were written, got {size}. "
                                 f"{cure(there[name])}")
            for start in range(0, size, _AT_ONCE):
                kept[name].check(start=start, stop=start + _AT_ONCE)
                done(min(_AT_ONCE, size - start))
        except (ValueError, OSError) as error:
            found.damaged.append(str(error))
    return found


def cure(path: Path) -> str:
    """Return the sentence that says how a file of a stage is made again: by which stage, and which command it was."""
    for folder in path.parents:
        noted = _noted(folder / "manifest.json") or _noted(folder / "started.json")
        if stage := noted.get("stage"):
            by = noted.get("command")
            said = f" (it was made by: {shlex.join(map(str, by))})" if isinstance(by, list) else ""
            return f"Run the stage {stage} again with overwrite=true{said}."
    known = [_MADE_FROM[part] for part in reversed(path.parts) if part in _MADE_FROM]
    return f"Run the stage {known[0] if known else 'that wrote it'} again with overwrite=true."


def _noted(path: Path) -> dict[str, Any]:
    """Return what a manifest or its beginning says; nothing where there is none or it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
