"""Files from a service to the disk: going on after a break, checked before they have their name, unpacked safely."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import shutil
import sys
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from tqdm import tqdm

from brain2img.artifacts import digest, writing
from brain2img.artifacts.files import naming_a_full_disk
from brain2img.data.file_names import is_junk
from brain2img.data.reading import explain

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 5
"""Attempts in a row that bring no further byte before it is given up."""
PAUSE = 2.0  # s before the second attempt; doubled before every further one


@dataclass(frozen=True)
class RemoteFile:
    """A file that a service offers.

    Parameters
    ----------
    path
        Where it lies in the source, with "/".
    size
        Bytes.
    checksum
        ``<kind>:<hexadecimal>``, as the service lists it: md5, sha256, "git" (SHA-1 of a git blob), or "etag" where it
        only names the version; empty where nothing is listed.
    address
        URL or key by which the source asks for it.
    """

    path: str
    size: int
    checksum: str
    address: str


class PartialFile:
    """What has arrived of a file, beside it as ``<name>.<identity>.part``; an earlier run's is gone on with.

    The identity is that of size and checksum, so that what remains of another version is not gone on with.

    Parameters
    ----------
    target
        Where the whole file will be.
    file
        The file.
    arrived
        Called with the number of bytes that were written, negative where they were thrown away.
    """

    def __init__(self, target: Path, file: RemoteFile, *, arrived: Callable[[int], object] = lambda n: None) -> None:
        self.path = self.of(target, file)
        self.size = file.size
        self.arrived = arrived

    @staticmethod
    def of(target: Path, file: RemoteFile) -> Path:
        """Return the name of the part of a file."""
        return target.with_name(f"{target.name}.{digest([file.size, file.checksum], length=8)}.part")

    def __enter__(self) -> Self:
        self._file = self.path.open("ab")
        self.position = self._file.seek(0, 2)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append what arrived.

        Raises
        ------
        ValueError
            If it is more than the file was listed with, or the disk is full.
        """
        if self.position + len(chunk) > self.size:
            self.restart()
            raise ValueError(f"{self.path}: expected {self.size} bytes, as listed, got more. Run the command again: "
                             "the file may have been changed meanwhile.")
        with naming_a_full_disk(self.path):
            self._file.write(chunk)
        self.position += len(chunk)
        self.arrived(len(chunk))

    def flush(self) -> None:
        """Do nothing: the file is closed before it is looked at (pooch flushes after every chunk)."""

    def restart(self) -> None:
        """Throw away what has arrived."""
        self._file.truncate(0)
        self.arrived(-self.position)
        self.position = 0


class Source(ABC):
    """A place at a service; `str` names it for people."""

    @abstractmethod
    def files(self, pattern: str) -> list[RemoteFile]:
        """Return the files whose path fits a pattern: ``*`` and ``?`` within a name, ``**`` across folders.

        Raises
        ------
        ValueError
            If the service refuses.
        ConnectionError
            If it may help to try again.
        """

    @abstractmethod
    def send(self, file: RemoteFile, part: PartialFile) -> None:
        """Write the bytes of `file` from ``part.position`` on into `part`.

        Raises
        ------
        ValueError
            If the service refuses.
        ConnectionError
            If it may help to try again.
        """


def persistently(action: Callable[[], T], *, arrived: Callable[[], int] = lambda: 0) -> T:
    """Do what may fail for the moment, until it succeeds or `ATTEMPTS` in a row got no further.

    Parameters
    ----------
    action
        What to do; raises ConnectionError where it may help to try again.
    arrived
        Bytes that are there.

    Raises
    ------
    ValueError
        If it is given up.
    """
    failures, before = 0, arrived()
    while True:
        try:
            return action()
        except ConnectionError as error:
            failures, before = (failures + 1 if arrived() <= before else 1), arrived()
            if failures >= ATTEMPTS:
                raise ValueError(f"{error}: expected an answer, got none in {ATTEMPTS} attempts. Check the connection, "
                                 "then run the same command again: it goes on where it stopped.") from error
            log.info("%s; trying again", error)
            time.sleep(PAUSE * 2 ** (failures - 1))


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def fetch(source: Source, file: RemoteFile, target: Path, *, arrived: Callable[[int], object] = lambda n: None) -> None:
    """Fetch a file; it has its name only when it is whole and its checksum is right.

    Parameters
    ----------
    source, file
        What to fetch.
    target
        Where it is put.
    arrived
        As for `PartialFile`.

    Raises
    ------
    ValueError
        If the service refuses or gives no answer, the checksum differs (what arrived is thrown away) or the disk
        is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = PartialFile.of(target, file)

    def go_on() -> None:
        with PartialFile(target, file, arrived=arrived) as part:
            if part.position < part.size:
                source.send(file, part)
            if part.position < part.size:
                raise ConnectionError(f"{source}: {file.path} broke off after {part.position} of {part.size} bytes")

    persistently(go_on, arrived=lambda: size_of(path))
    if wrong := mismatch(path, file):
        arrived(-file.size)
        path.unlink()
        raise ValueError(f"{source}: {file.path}: {wrong}. What arrived was thrown away; run the command again, and if "
                         "it happens again tell those who publish the file.")
    os.replace(path, target)
    for older in target.parent.glob(f"{glob.escape(target.name)}.????????.part"):
        older.unlink()  # of a version that is no longer listed


def mismatch(path: Path, file: RemoteFile) -> str:
    """Return what is wrong with a file that arrived, by size and checksum; nothing where it is right."""
    import pooch

    kind, _, expected = file.checksum.partition(":")
    if path.stat().st_size != file.size:
        return f"expected {file.size} bytes, got {path.stat().st_size}"
    if kind in ("", "etag"):
        return ""
    if kind == "git":
        got = hashlib.sha1(b"blob %d\0" % file.size + path.read_bytes()).hexdigest()
    else:
        got = pooch.file_hash(str(path), alg=kind)
    return "" if got == expected else f"expected the {kind} {expected}, as listed, got {got}"


def inside(folder: Path, path: str, *, of: str) -> Path:
    """Return where a path from outside lies in `folder`.

    Raises
    ------
    ValueError
        If it would leave the folder.
    """
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ValueError(f"{of}: expected paths that stay in their folder, got {path!r}. Do not use this file.")
    return target


def unpack(archive: Path, folder: Path, *, password: str | None = None) -> None:
    """Unpack a zip archive into a folder, files that are there already excepted; each has its name only when whole.

    Parameters
    ----------
    archive
        The archive; what macOS adds to archives is left out.
    folder
        Where its members are put.
    password
        Where it is encrypted.

    Raises
    ------
    ValueError
        If it is damaged, a member would leave the folder, the password is wrong or the disk too small.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [(member, inside(folder, member.filename, of=f"{archive}"))
                       for member in opened.infolist()
                       if not member.is_dir() and not is_junk(member.filename)]
            missing = [(member, target) for member, target in members
                       if not target.is_file() or target.stat().st_size != member.file_size]
            check_free_disk(folder, sum(member.file_size for member, _ in missing), what=f"what {archive.name} holds")
            for member, target in tqdm(missing, desc=f"unpacking {archive.name}", disable=not sys.stdout.isatty()):
                target.parent.mkdir(parents=True, exist_ok=True)
                with (writing(target) as temporary, temporary.open("wb") as file,
                      opened.open(member, pwd=password.encode() if password else None) as content):
                    shutil.copyfileobj(content, file, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        if "password" in str(error):
            raise ValueError(f"{archive}: expected an archive that can be unpacked, got: {error}. Give the right "
                             "password=...") from error
        raise explain(error, archive, what="zip archive", cure="Fetch it again, or unpack it by hand.") from error


def check_free_disk(folder: Path, need: int, *, what: str) -> None:
    """Refuse what the disk has no room for.

    Parameters
    ----------
    folder
        Where it is to be put; it need not be there yet.
    need
        Bytes.
    what
        What needs them.

    Raises
    ------
    ValueError
        If less is free.
    """
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(place).free
    if need > free:
        raise ValueError(f"disk: expected {need / 1e9:.3g} GB free in {place} for {what}, got {free / 1e9:.3g} GB. "
                         "Free some space, take fewer subjects, or give raw=<folder on another disk>.")
