"""What the readers of EEG and MEG recordings share: naming the damaged file, and channels by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn whatever MNE raises of a damaged file into a ValueError that names it."""
    try:
        yield
    except Exception as error:  # MNE raises whatever it stumbles over, bare assertions too
        raise ValueError(f"{path}: expected a whole recording, got a damaged one ({type(error).__name__}: {error}). "
                         "Fetch it again, with all its parts.") from error


def places(ch_names: Sequence[str], *, wanted: Sequence[str], path: Path) -> list[int]:
    """Return where the wanted channels are among those of a file, whatever their order there.

    The serial number that CTF appends to a name ("MLC11-1609") does not count, nor do capitals.

    Raises
    ------
    ValueError
        If channels are missing or have other names, naming the file and some of them.
    """
    found = {re.sub(r"-\d+$", "", name).lower(): place for place, name in enumerate(ch_names)}
    missing = [name for name in wanted if name.lower() not in found]
    if missing:
        raise ValueError(f"{path}: expected the {len(wanted)} channels of the study, got {len(missing)} of them "
                         f"missing ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}) among {len(found)}. "
                         "Give the files as published.")
    return [found[name.lower()] for name in wanted]
