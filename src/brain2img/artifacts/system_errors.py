"""Errors that say nothing about the file being read: they are raised as they are, never called damage."""

from __future__ import annotations

import errno

_CODES = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EIO,
          errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the GPU or of the machine."""
    # torch.OutOfMemoryError is a RuntimeError; that of the CPU has no class of its own
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(
        words in str(error).lower() for words in ("out of memory", "can't allocate memory")))


def is_of_the_system(error: BaseException) -> bool:
    """Whether permission, memory, room, open files, a lock or the disk itself failed."""
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in _CODES)
