"""What to do when a batch does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from brain2img.artifacts import is_out_of_memory


@contextmanager
def fitting(n: int, *, key: str) -> Iterator[None]:
    """Run what handles `n` items at once; `key` is the setting of the batch size.

    Raises
    ------
    ValueError
        If memory runs out, of the GPU or of the machine; proposes half as many.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        cure = f"Set {key}={n // 2}" if n > 1 else "Choose a smaller model or image, or a machine with more memory"
        raise ValueError(f"memory: expected room for {n} at once, got none ({said}). {cure}, and run the same command "
                         "again: what is done is kept.") from error
