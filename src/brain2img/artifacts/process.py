"""Who writes: a process on a machine, and whether it still runs."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GONE = 300.0
"""Seconds without a sign of life after which an owner on another machine is gone."""
RESTARTED = 60.0
"""The same for one of this host name from before this machine was started (or of another machine of that name)."""


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def state_of(pid: int) -> tuple[str, str]:
    """Return state and start of a process as the kernel counts it, empty where it does not say."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def typed() -> list[str]:
    """Return the command that this process runs, word by word."""
    name, *words = sys.argv
    return [*(name.split() if name.startswith("brain2img ") else [name]), *words]


@dataclass(frozen=True)
class Owner:
    """Who owns a place.

    Parameters
    ----------
    host, boot, processes
        Machine, its start, and the space of its process numbers (that of a container).
    pid, began
        Process, and its start.
    since
        When the place became its own.
    command
        The command line of the process.
    job, restarts
        SLURM job (empty without) and how often it was put back into the queue.
    token
        Distinguishes this claim from all others.
    """

    host: str
    boot: str
    processes: str
    pid: int
    began: str
    since: str
    command: str
    job: str
    restarts: int
    token: str

    @classmethod
    def here(cls) -> Owner:
        """Return this process as owner."""
        processes = ""
        with suppress(OSError):
            processes = os.readlink("/proc/self/ns/pid")
        return cls(host=socket.gethostname(), boot=_text("/proc/sys/kernel/random/boot_id"), processes=processes,
                   pid=os.getpid(), began=state_of(os.getpid())[1], since=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                   command=shlex.join(typed()), job=os.environ.get("SLURM_JOB_ID", ""),
                   restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0), token=uuid.uuid4().hex)

    def same_process(self, other: Owner) -> bool:
        """Return whether both are one process."""
        return self.same_place(other) and (self.pid, self.began) == (other.pid, other.began)

    def same_place(self, other: Owner) -> bool:
        """Return whether processes of one are seen by the other."""
        return (self.host, self.boot, self.processes) == (other.host, other.boot, other.processes)

    def is_gone(self, me: Owner, *, age: float) -> bool:
        """Return whether the process does not run any more, `age` seconds after its last sign of life."""
        if self.job and (self.job, True) == (me.job, me.restarts > self.restarts):
            return True  # SLURM restarts a job when it has ended
        if not self.same_place(me):
            return age > (RESTARTED if self.host == me.host and self.boot != me.boot else GONE)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's
        state, began = state_of(self.pid)
        return state in ("Z", "X") or (bool(state) and began != self.began)

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, at work since {self.since} ({self.command})"
