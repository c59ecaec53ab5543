"""How much memory this process may use, and whether it keeps what it has freed."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

LEAST = 16 * 2**30
"""Memory (bytes) of a machine or job on which freed memory is kept unless it is asked otherwise."""
SHARE = 0.5
"""Share of it up to which it is kept."""
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_KEEP = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**26))
_AS_USUAL = ((_M_MMAP_MAX, 2**16), (_M_TRIM_THRESHOLD, 2**17), (_M_TOP_PAD, 0))
_keeping = False


def limit() -> int:
    """Return how many bytes this process may use: the least of machine, control groups, rlimits and SLURM's job."""
    bounds = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_of_control_groups()]
    bounds += [bound for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
               if (bound := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY]
    with suppress(KeyError, ValueError):
        bounds.append(int(os.environ["SLURM_MEM_PER_NODE"]) * 2**20)
    return min(bound for bound in bounds if bound > 0)


def _of_control_groups() -> Iterator[int]:
    """Yield the limits of this process's control groups and those above them, of both versions."""
    root = Path("/sys/fs/cgroup")
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, place = line.split(":", 2)
            if number == "0":
                base, file = root, "memory.max"
            elif "memory" in controllers.split(","):
                base, file = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = base / place.strip("/")
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # of another mount, or "max"
                    yield int((folder / file).read_text())
                if folder == base:
                    break


def used() -> int:
    """Return how many bytes of this process are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def keep_freed(setting: bool | str = "auto") -> bool:
    """Let glibc keep freed memory for the next tensor, and return whether it does.

    Otherwise it maps large ones anew every time, and the kernel clears every page: a training step of scenes_clip took
    4.4 s, of which most in the kernel, and takes 0.9 s so (two cores). What is kept has gaps, so that a fit may need
    more memory than without (measured: up to 1.62 times): `stay_within_bounds` ends it where memory runs short.
    PyTorch is told, before its first tensor, to begin large ones at multiples of 2 MB: at other places glibc 2.36
    hardly ever finds room for one where one was freed, and steps of ATM-S that need 0.9 GB took 3.2.

    Parameters
    ----------
    setting
        True or False, or "auto": where this process may use `LEAST` bytes or more.

    Raises
    ------
    ValueError
        If it is something else.
    """
    global _keeping
    if setting not in (True, False, "auto"):
        raise ValueError(f"keep_memory: expected true, false or auto, got {setting!r}. Correct it.")
    if setting is False or (setting == "auto" and limit() < LEAST):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _keeping = _tell_malloc(_KEEP)
    return _keeping


def stay_within_bounds() -> None:
    """Give back what is kept, and keep no more, where this process holds more than `SHARE` of what it may use."""
    global _keeping
    if _keeping and used() > SHARE * limit():
        before = used()
        _keeping = False
        _tell_malloc(_AS_USUAL)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        log.info("memory: %.1f GB of %.1f were in use; freed memory goes back to the system from now on (%.1f GB are "
                 "in use now, steps take longer)", before / 2**30, limit() / 2**30, used() / 2**30)


def _tell_malloc(settings: tuple[tuple[int, int], ...]) -> bool:
    with suppress(OSError, AttributeError):  # another C library, another policy
        libc = ctypes.CDLL("libc.so.6")
        return all([libc.mallopt(parameter, value) for parameter, value in settings])
    return False
