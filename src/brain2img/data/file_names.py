"""Names of files that people's systems put among data, and that are none of it."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath

#: Written by macOS, Windows, network disks, Git, Jupyter and cloud folders; compared without case.
_JUNK = {".ds_store", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", "$recycle.bin",
         ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", "@eadir", ".ipynb_checkpoints", ".git",
         ".datalad", ".gitattributes", ".gitkeep", ".dropbox", "icon\r"}
#: How such names begin: AppleDouble, which holds the other half of a file of macOS, and a file held open over NFS.
#: Those that end in "~" are an editor's former versions.
_BEGINNINGS = ("._", ".nfs")


def is_junk(name: str | PurePath) -> bool:
    """Return whether a file, folder or member of an archive was put there by a system and is no data.

    Parameters
    ----------
    name
        Name or relative path: all that lies in a folder of that kind ("__MACOSX/sub-01.edf") counts, too. Of an
        absolute path give the last part, for what lies above the data says nothing about it.
    """
    parts = name.parts if isinstance(name, PurePath) else PurePosixPath(name).parts
    return any(part.lower() in _JUNK or part.lower().startswith(_BEGINNINGS) or part.endswith("~") for part in parts)
