"""Signals of one subject, written session by session: each session whole, or to be written again."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.artifacts import begin_array, check_room, read_begun, write_json, write_rows

log = logging.getLogger(__name__)

#: Reads one session: blocks ``(n, C, T)`` of its trials in order.
Session = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class _Rows:
    """Rows `start` to `stop` of the array `path`, and what messages call them."""

    path: Path
    what: str
    start: int
    stop: int
    shape: tuple[int, ...]

    def fill(self, session: Session) -> None:
        """Write what `session` yields, refusing what does not fit or is not finite."""
        done = self.start
        for block in session():
            if block.shape[1:] != self.shape or done + len(block) > self.stop:
                raise ValueError(f"{self.what}: expected at most {self.stop - done} more trials of {self.shape}, "
                                 f"got a block of {block.shape}. Check the raw files against the study's notes.")
            bad = ~np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
            if bad.any():
                raise ValueError(
                    f"{self.what}: expected finite values, got NaN or infinity in {int(bad.sum())} trials (first: "
                    f"trial {done + int(np.flatnonzero(bad)[0])}). Repair or drop them in the raw files.")
            write_rows(self.path, block, start=done)
            done += len(block)
        if done != self.stop:
            raise ValueError(f"{self.what}: expected {self.stop - self.start} trials, got {done - self.start}. "
                             "Check the raw files against the study's notes.")


def write_sessions(path: Path, *, shape: tuple[int, ...], names: Sequence[str], counts: Sequence[int],
                   sessions: Sequence[Session], identity: str, what: str, jobs: int = 1) -> None:
    """Write ``<path>.npy`` float32 session by session; after an interruption, whole sessions are not read again.

    Parameters
    ----------
    path
        Final name of the array; progress stands beside it until it is whole.
    shape
        ``(n_trials, C, T)``.
    names, counts
        Name of every session ("" where it needs none in messages) and number of its trials.
    sessions
        Readers of the sessions, in order.
    identity
        Identity of what is written: progress of another one is not continued.
    what
        What messages call the array.
    jobs
        Sessions read at the same time; above 1 in processes of their own, to which `sessions` must be picklable.

    Raises
    ------
    ValueError
        If shapes or counts disagree, a trial holds NaN or infinite values, the disk is full or a process was killed.
    """
    assert len(names) == len(counts) == len(sessions), f"{what}: {len(sessions)} readers of {list(names)}"
    assert sum(counts) == shape[0], f"{what}: {list(counts)} trials, {shape}"
    part, progress = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.sessions.json")
    done: list[int] = []
    if part.exists() and (begun := read_begun(progress, keys=("identity", "done"))):
        done = begun["done"] if begun["identity"] == identity else []
    if not done:
        progress.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        check_room(path.parent, [(shape, "float32")])
        begin_array(part, shape=shape, dtype="float32")
    stops = np.cumsum(counts).tolist()
    todo = {i: _Rows(part, f"{what}, session {name!r}" if name else what, stop - count, stop, shape[1:])
            for i, (name, count, stop) in enumerate(zip(names, counts, stops, strict=True)) if i not in done}
    for i in _filled(todo, sessions, what=what, jobs=jobs):
        done.append(i)
        write_json(progress, {"identity": identity, "done": sorted(done)})
        log.info("%s: %d of %d sessions", what, len(done), len(sessions))
    os.replace(part, path)
    progress.unlink(missing_ok=True)


def _filled(todo: dict[int, _Rows], sessions: Sequence[Session], *, what: str, jobs: int) -> Iterator[int]:
    """Fill the rows of every session and yield its number when it is whole.

    When one fails, no other is begun, and those that run are brought to their end before its error is raised.
    """
    if jobs <= 1 or len(todo) <= 1:
        for i, rows in todo.items():
            rows.fill(sessions[i])
            yield i
        return
    waiting = list(todo)
    running: dict[Future[None], int] = {}
    failed: dict[int, BaseException] = {}
    try:
        context = multiprocessing.get_context("spawn")
        with _heard(context.Queue()) as records, ProcessPoolExecutor(
                min(jobs, len(todo)), mp_context=context, initializer=_begin, initargs=(records,)) as pool:
            while True:
                # no more than run: futures that are cancelled while they wait are never reported as done
                while waiting and not failed and len(running) < jobs:
                    i = waiting.pop(0)
                    running[pool.submit(todo[i].fill, sessions[i])] = i
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    i = running.pop(future)
                    if (error := future.exception()) is None:
                        yield i
                    else:
                        failed[i] = error
        if failed:
            raise failed[min(failed)]
    except BrokenProcessPool as error:
        raise ValueError(f"{what}: expected processes that write whole sessions, got one that was killed (was it "
                         "out of memory?). Lower jobs, then run the same command again: whole sessions are kept."
                         ) from error


class _Here(logging.Handler):
    """Logs a record of another process as if it had been made in this one."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


@contextmanager
def _heard(records: Any) -> Iterator[Any]:
    """Log what processes put into `records`, where each warning is shown once for all of them."""
    listener = QueueListener(records, _Here())
    listener.start()
    try:
        yield records
    finally:
        listener.stop()
        records.close()


def _begin(records: Any) -> None:
    """Let the parent log what is logged and warned of in this process, and end when the parent ends."""
    logging.getLogger().handlers = [QueueHandler(records)]
    logging.getLogger().setLevel(logging.INFO)
    logging.captureWarnings(True)
    _end_with_the_parent()


def _end_with_the_parent() -> None:
    """End this process when its parent ends, however it ends: nobody else may write into the same rows."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
