"""Progress bars on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")


def progress(items: Sequence[T], *, description: str) -> Iterator[T]:
    """Iterate over `items` with a bar that vanishes when done; without one where nobody watches."""
    yield from track(items, description=description, transient=True, disable=not sys.stdout.isatty())
