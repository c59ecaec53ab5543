"""Names that become folders and files, and places that stay below their root."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

_PART = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows no name of a file
LENGTH = 150
"""Characters of a name: file systems know 255, and hidden files beside a folder have longer names."""


def check_name(name: str, *, what: str = "name") -> str:
    """Return a name that can be that of folders and files on any system; ``a/b`` is that of ``b`` in the collection a.

    Parameters
    ----------
    name
        The name.
    what
        What messages call it.

    Raises
    ------
    ValueError
        If it is no such name.
    """
    for part in str(name).split("/"):
        if not _PART.fullmatch(part) or _DEVICES.fullmatch(part) or len(part) > LENGTH:
            raise ValueError(f"{what}: expected letters (a-z), digits, '-', '_' and, within, '.', at most {LENGTH}, "
                             f"with '/' only between the name of a collection and that of its member, got {name!r}. "
                             "Give another one; that of a run is in its manifest.json, and name=... replaces it.")
    return str(name)


def below(root: Path, *names: str) -> Path:
    """Return the place below `root` that is called so.

    Parameters
    ----------
    root
        The root; it may be a link, and the folders directly in it may be (to a larger disk).
    *names
        Names, from that of a folder directly in `root` on.

    Raises
    ------
    ValueError
        If one is no name (see `check_name`), or a link on the way leads elsewhere.
    """
    for name in names:
        check_name(name)
    return _inside(root, "/".join(map(str, names)), of="outputs")


def stored_at(root: Path, path: str, *, of: str) -> Path:
    """Return where a path lies that a manifest gives relative to `root`.

    Raises
    ------
    ValueError
        If it leaves the root; `of` says whose path it is.
    """
    if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{of}: expected paths relative to {root} and below it, got {path!r}. Do not use this folder, "
                         "unless you know who changed it; a run of other outputs is used with paths.outputs=<those>.")
    return _inside(root, path, of=of)


def _inside(root: Path, path: str, *, of: str) -> Path:
    place, base = root / path, root.joinpath(*PurePosixPath(path).parts[:1])
    real = place.resolve()
    if not real.is_relative_to(base.resolve()):
        raise ValueError(f"{of}: expected a place below {base}, got {place}, where a link leads to {real}. Remove the "
                         "link; only the root and the folders directly in it may be links.")
    return place
