"""One owner at a time for what is written: a claim that threads, processes and machines respect.

The claim of ``run`` is the file ``.run.owner`` beside it, so that it holds for ``run`` and for what ``overwrite`` makes
beside it alike. It says who writes: host, process, its start, command and SLURM job. It goes when the work ends,
however it ends, unless the process is killed; then the next one finds that the owner is gone and takes over.

On network file systems this relies on the following. ``link(2)`` makes a name or fails because it is there, decided by
the server: a claim is written whole under a name of its own and then linked to its place, so that of many only one
succeeds, and nobody reads half a claim (``O_EXCL``, which NFS version 2 does not keep, only serves file systems without
hard links). When the server's answer is lost and the client asks again, the link fails although it was made: the number
of links of the own file tells. Files that are opened show what others closed before (close-to-open consistency);
listings of folders, which clients cache for longer, are not used. Processes are looked up on the own machine only;
the owner on another one gives a sign of life every `SIGN` seconds, by setting the time of its claim to that of the
server, and is gone when there was none for `GONE`. Its age is taken from the time of a file that was written there just
now: clocks of machines are not compared. A process that was suspended for so long finds, when it wakes, that another
one owns the place: it is interrupted and cannot finish the folder. ``flock`` and ``lockf`` are not used: on many
clusters they are local to a machine, or hang.
"""

from __future__ import annotations

import _thread
import errno
import json
import logging
import multiprocessing
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from brain2img.artifacts.files import naming_a_full_disk
from brain2img.artifacts.process import GONE, Owner, state_of

log = logging.getLogger(__name__)

SIGN = 20.0
"""Seconds between signs of life."""
PAUSE = 1.0
"""Seconds between two looks while waiting."""
LOOKS = 100
"""Looks, at shorter intervals, while another one takes over from an owner that is gone."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def beside(path: Path, word: str) -> Path:
    """Return the place beside `path` that is called `word`, hidden."""
    return path.with_name(f".{path.name}.{word}")


@dataclass(frozen=True)
class _Found:
    """A claim as it lies on the disk; `owner` is None where it does not say."""

    text: str
    owner: Owner | None
    mtime: float

    @classmethod
    def at(cls, file: Path) -> _Found | None:
        try:
            with file.open() as opened:
                text, mtime = opened.read(), os.fstat(opened.fileno()).st_mtime
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise
        try:
            return cls(text, Owner(**json.loads(text)), mtime)
        except (ValueError, TypeError):
            return cls(text, None, mtime)

    def is_gone(self, me: Owner, *, now: float) -> bool:
        age = now - self.mtime
        return age > GONE if self.owner is None else self.owner.is_gone(me, age=age)


@dataclass
class _Held:
    """A claim of this process; `key` is that of the `Claim` that stands for it."""

    key: str
    text: str
    thread: weakref.ReferenceType[threading.Thread]
    lost: bool = False


_lock = threading.RLock()
_held: dict[Path, _Held] = {}
_inherited: set[str] = set()  # texts of the claims of the process that forked this one
_beating: threading.Thread | None = None
_patience = 0.0


class Claim:
    """What `claim` returns: the place is this process's until `release`, or until this object is gone.

    Parameters
    ----------
    path
        The place.
    key
        What distinguishes it from other claims of this process; None where the place is that of the parent process.
    """

    def __init__(self, path: Path, *, key: str | None) -> None:
        self.path, self._key = path, key
        self.release = weakref.finalize(self, _release, beside(path, "owner"), key)

    def check(self) -> None:
        """Refuse to go on with a place that another process owns by now.

        Raises
        ------
        ValueError
            If it does.
        """
        held = _held.get(beside(self.path, "owner"))
        if self._key is not None and (held is None or held.key != self._key or held.lost):
            raise ValueError(f"{self.path}: expected to be the only one at work there, got another command that took "
                             f"over (this one gave no sign of life for {GONE:.0f} s: was it suspended?). Let that one "
                             "end, then run this command again.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Let commands wait for up to so many seconds where another one is at work, instead of stopping at once.

    Raises
    ------
    ValueError
        If it is no such number.
    """
    global _patience
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ValueError(f"wait: expected seconds, 0 or more, got {seconds!r}. Correct wait=...")
    before, _patience = _patience, float(seconds)
    try:
        yield
    finally:
        _patience = before


def claim(path: Path) -> Claim:
    """Become the owner of a place, a folder or a file; where another one is, wait as long as `waiting` says.

    A thread that claims what it owns already has given up what it did there before (it ended in an error), and goes
    on. What the parent process owns its workers may use.

    Raises
    ------
    ValueError
        If another process, or another thread of this one, owns it.
    """
    file = beside(path, "owner")
    file.parent.mkdir(parents=True, exist_ok=True)
    began, told = time.monotonic(), False
    while True:
        with _lock:
            other = _try(file)
        if isinstance(other, str):
            if told:
                log.info("%s: goes on after %.0f s of waiting", path, time.monotonic() - began)
            return Claim(path, key=other or None)
        waited = time.monotonic() - began
        if waited >= _patience:
            raise ValueError(
                f"{path}: expected no other command at work there, got {_named(other)}"
                f"{f', after {waited:.0f} s of waiting' if told else ''}. Let it end (wait=<seconds> waits for it and "
                "goes on then), stop it, or give this one another name=... or paths.outputs=...")
        if not told:
            log.info("%s: waits up to %.0f s for %s", path, _patience, _named(other))
            told = True
        time.sleep(min(PAUSE, max(_patience - waited, 0.01)))


def release_all() -> None:
    """Release what this thread owns: its command has ended."""
    with _lock:
        for file, held in list(_held.items()):
            if held.thread() is threading.current_thread():
                _release(file, held.key)


def _named(found: tuple[_Found | None, float]) -> str:
    """Return what messages call an owner."""
    claimed, age = found
    if claimed is None or claimed.owner is None:
        return f"one that does not say who it is (it counts as gone {GONE:.0f} s after its claim was written)"
    owner, me = claimed.owner, Owner.here()
    if owner.same_process(me):
        return "another thread of this process"
    if owner.same_place(me):
        return str(owner)
    return f"{owner}; its last sign of life was {max(age, 0):.0f} s ago, and after {GONE:.0f} s it counts as gone"


def _try(file: Path) -> str | tuple[_Found | None, float]:
    """Try to own a place.

    Returns the key of the claim, empty where the parent process owns it, or who else does and the age of its last sign
    of life.
    """
    me = Owner.here()
    if (held := _held.get(file)) is not None:
        found, holder = _Found.at(file), held.thread()
        if holder is not None and holder is not threading.current_thread() and holder.is_alive():
            return found, 0.0
        if not held.lost and found is not None and found.text == held.text:
            _hold(file, held.text, key=me.token)
            return me.token
        del _held[file]  # somebody else's by now
    looks = 0
    while True:
        made, now = _link(file, me)
        if made:
            _hold(file, _json(me), key=me.token)
            return me.token
        found = _Found.at(file)
        if found is None:
            continue  # released meanwhile
        if found.text in _inherited or (found.owner is not None and _is_parent(found.owner, me)):
            return ""
        # what this process claimed before it was replaced by another program (exec) is nobody's
        mine = found.owner is not None and found.owner.same_process(me)
        if not mine and not found.is_gone(me, now=now):
            return found, now - found.mtime
        if not _clear(file, found, me):
            looks += 1
            if looks > LOOKS:
                return found, now - found.mtime
            time.sleep(PAUSE / 20)
            continue
        log.info("%s: took over from %s, which ended without giving it up", file.parent / file.name[1:-6],
                 found.owner or "one that did not say who it was")


def _is_parent(owner: Owner, me: Owner) -> bool:
    parent = multiprocessing.parent_process()
    return (parent is not None and owner.same_place(me)
            and (owner.pid, owner.began) == (parent.pid, state_of(parent.pid or 0)[1]))


def _json(owner: Owner) -> str:
    return json.dumps(asdict(owner), indent=1) + "\n"


def _link(file: Path, owner: Owner) -> tuple[bool, float]:
    """Make a claim, unless there is one; returns whether it was made, and the time by the clock of the file system."""
    draft = file.with_name(f"{file.name}.{owner.token}")
    try:
        with naming_a_full_disk(draft):
            draft.write_text(_json(owner))
        now = draft.stat().st_mtime
        try:
            os.link(draft, file)
        except FileExistsError:
            return draft.stat().st_nlink == 2, now
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError), file.open("x") as opened:
                opened.write(_json(owner))
                return True, now
            return False, now
        return True, now
    finally:
        draft.unlink(missing_ok=True)


def _clear(file: Path, found: _Found, me: Owner) -> bool:
    """Remove the claim of an owner that is gone; returns whether nobody else is doing so.

    Who removes has to own the guard, and looks again: the claim may be that of another one who just took over.
    """
    guard = file.with_name(f"{file.name}.guard")
    made, now = _link(guard, me)
    if not made:
        other = _Found.at(guard)
        if other is not None and other.is_gone(me, now=now):
            guard.unlink(missing_ok=True)  # killed within these lines
        return False
    try:
        again = _Found.at(file)
        if again is not None and again.text == found.text and again.mtime == found.mtime:
            file.unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _hold(file: Path, text: str, *, key: str) -> None:
    global _beating
    _held[file] = _Held(key, text, weakref.ref(threading.current_thread()))
    if _beating is None or not _beating.is_alive():
        _beating = threading.Thread(target=_beat, name="signs of life", daemon=True)
        _beating.start()


def _release(file: Path, key: str | None) -> None:
    """Give a place up; nothing happens in a process that was forked, or where another object stands for the claim."""
    with _lock:
        held = _held.get(file)
        if held is None or held.key != key:
            return
        del _held[file]
        with suppress(OSError):  # a folder that was removed meanwhile
            found = _Found.at(file)
            if found is not None and found.text == held.text:
                file.unlink(missing_ok=True)


def _beat() -> None:
    """Give signs of life, and notice when another process took over."""
    while True:
        time.sleep(SIGN)
        with _lock:
            held = list(_held.items())
        for file, mine in held:
            with suppress(OSError):  # the next sign may succeed
                _sign(file, mine)


def _sign(file: Path, mine: _Held) -> None:
    with _lock:
        if _held.get(file) is not mine or mine.lost:
            return
        found = _Found.at(file)
        if found is not None and found.text == mine.text:
            os.utime(file)
            return
        if found is None and file.parent.is_dir():  # somebody removed it
            with suppress(FileExistsError), file.open("x") as opened:
                opened.write(mine.text)
                return
        mine.lost = True
    if found is None:  # with all that lay there: what is still written there fails by itself, if anything is
        return
    log.error("%s: another command took over; this one gave no sign of life for too long and ends.", file)
    if mine.thread() is threading.main_thread():
        _thread.interrupt_main()


def _after_fork() -> None:
    global _lock, _beating
    _lock, _beating = threading.RLock(), None
    _inherited.update(held.text for held in _held.values())
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
