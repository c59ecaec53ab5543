"""Webdatasets: tars, or folders they were unpacked to, whose members belong together by the first part of their name.

Nothing is unpacked: members are read out of the tars.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np

from brain2img.data.file_names import is_junk
from brain2img.data.reading import reading


def samples(source: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and members (ending -> content) of every sample of a webdataset tar, or of a folder it was unpacked to.

    Raises
    ------
    ValueError
        If a tar is truncated, or a member is no plain file or points out of its folder.
    """
    content = _folder_members(source) if source.is_dir() else _tar_members(source)
    for key, members in groupby(content, key=lambda member: member[0].split(".", 1)[0]):
        yield key, {name.split(".", 1)[-1]: data for name, data in members}


def _folder_members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in files_of(folder):
        with reading(path, what="member of the webdataset"):
            content = path.read_bytes()
        yield path.name, content


def files_of(folder: Path) -> list[Path]:
    """Return the members that a tar was unpacked to; a folder among them is none."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_junk(path.name))


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the members in the order of the tar."""
    with reading(path, what="tar"), tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if members else 0
    with path.open("rb") as raw:  # tarfile takes a damaged head for the end, which is two blocks of zeros
        raw.seek(end)
        tail = raw.read(1024)
    if len(tail) < 1024 or any(tail):
        raise ValueError(f"{path}: expected a whole tar, got one of {path.stat().st_size} bytes that breaks off after "
                         f"{len(members)} members. Fetch it again.")
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise ValueError(f"{path}: expected members that stay in their folder, got {member.name!r}. "
                             "Do not use this file: it was tampered with.")
        if not (member.isfile() or member.isdir()):
            raise ValueError(f"{path}: expected plain files, got {member.name!r}, a link or a device. "
                             "Do not use this file: it was tampered with.")
    with tarfile.open(path, "r:") as tar:
        for member in members:
            if member.isfile() and not is_junk(member.name):
                with reading(path, what="tar"):
                    file = tar.extractfile(member)
                    assert file is not None
                    data = file.read()
                yield PurePosixPath(member.name).name, data


def array(members: Mapping[str, bytes], ending: str, *, source: Path, key: str) -> np.ndarray:
    """Return a member as an array; one with pickled objects is refused.

    Raises
    ------
    ValueError
        If the sample has no such member, or it is damaged.
    """
    if ending not in members:
        raise ValueError(f"{source}: expected {ending} in every sample, got {', '.join(sorted(members))} in {key}. "
                         "Fetch it again.")
    with reading(source, what=f"plain array in {key}.{ending}", member=True):
        return np.load(io.BytesIO(members[ending]), allow_pickle=False)
