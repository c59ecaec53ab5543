"""Subjects written session by session: the same as in one pass, whatever is interrupted and however many processes."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.records import SignalSpec

COUNTS = {"ses-2": 5, "ses-10": 3, "ses-1": 4, **{f"ses-{i}": 2 for i in range(3, 9)}}
N = sum(COUNTS.values())
SIGNALS = np.random.default_rng(0).standard_normal((N, 3, 2)).astype(np.float32)
SPEC = SignalSpec(subject="sub-01", modality="eeg", units="a.u.", n_channels=3, n_times=2, sfreq=100.0)
TRIALS = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(N)], "split": "train", "repetition": 0,
                       "session": [name for name, n in COUNTS.items() for _ in range(n)]})


def read(start: int, stop: int, *, log: Path | None = None, fail: str = ""):
    """Yield rows of SIGNALS in blocks of 2, failing after the first block as asked; module level, so picklable."""
    if log is not None:
        with log.open("a") as file:
            file.write(f"{start} {os.getpid()}\n")
    for first in range(start, stop, 2):
        if fail and first > start:
            if fail == "killed":
                os.kill(os.getpid(), 9)
            raise ValueError(fail)
        yield SIGNALS[first:min(first + 2, stop)]


def sessions(**of_session):
    stops = np.cumsum(list(COUNTS.values())).tolist()
    return [partial(read, stop - n, stop, **of_session.get(name.replace("-", "_"), {}), **of_session.get("each", {}))
            for (name, n), stop in zip(COUNTS.items(), stops, strict=True)]


def write(out, **arguments):
    writer = PreparedWriter(out, study="test")
    writer.add_sessions(SPEC, **{"trials": TRIALS, "sessions": sessions(), **arguments})
    return writer


@pytest.mark.parametrize("jobs", [1, 2])
def test_sessions_equal_one_pass(tmp_path, jobs):
    log = tmp_path / "log"
    write(tmp_path, sessions=sessions(each={"log": log}), jobs=jobs).finish(
        pd.DataFrame({"stimulus_id": TRIALS["stimulus_id"], "kind": "image", "captions": [[]] * N, "attributes": None}))
    study = PreparedStudy(tmp_path, finished=False)
    np.testing.assert_array_equal(study.signals("sub-01"), SIGNALS)
    assert study.trials_of("sub-01")["session"].tolist() == TRIALS["session"].tolist()
    readers = {line.split()[1] for line in log.read_text().splitlines()}
    assert (readers == {str(os.getpid())}) == (jobs == 1)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_whole_sessions_are_not_read_again(tmp_path, jobs):
    with pytest.raises(ValueError, match="scanner on fire"):
        write(tmp_path, sessions=sessions(ses_10={"fail": "scanner on fire"}), jobs=jobs)
    assert not (tmp_path / "signals_sub-01.npy").exists()
    assert not PreparedWriter(tmp_path, study="test").has_subject("sub-01")
    log = tmp_path / "log"
    write(tmp_path, sessions=sessions(each={"log": log}))
    begun = {int(line.split()[0]) for line in log.read_text().splitlines()}
    assert 0 not in begun
    assert 5 in begun
    np.testing.assert_array_equal(np.load(tmp_path / "signals_sub-01.npy"), SIGNALS)


def test_progress_of_other_trials_is_not_continued(tmp_path):
    with pytest.raises(ValueError, match="stop"):
        write(tmp_path, sessions=sessions(ses_1={"fail": "stop"}))
    assert json.loads((tmp_path / ".signals_sub-01.npy.sessions.json").read_text())["done"] == [0, 1]
    log = tmp_path / "log"
    write(tmp_path, sessions=sessions(each={"log": log}), trials=TRIALS.assign(repetition=1))
    assert len(log.read_text().splitlines()) == len(COUNTS)


def test_a_killed_process_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"got one that was killed .* Lower jobs, then run the same command again"):
        write(tmp_path, sessions=sessions(ses_10={"fail": "killed"}), jobs=2)


@pytest.mark.parametrize(("change", "message"), [
    (lambda x: x[:-1], "session 'ses-10': expected 3 trials, got 2"),
    (lambda x: np.repeat(x, 2, axis=0), r"session 'ses-10': expected at most 3 more trials of \(3, 2\), got a block"),
    (lambda x: x[:, :2], r"expected at most 3 more trials of \(3, 2\), got a block of \(3, 2, 2\)"),
    (lambda x: x + np.array([0, np.inf, 0])[:, None, None], r"NaN or infinity in 1 trials \(first: trial 6\)"),
])
def test_bad_sessions_are_refused(tmp_path, change, message):
    readers = sessions()
    readers[1] = lambda: [change(SIGNALS[5:8])]
    with pytest.raises(ValueError, match=message):
        write(tmp_path, sessions=readers)
    assert not (tmp_path / "signals_sub-01.npy").exists()


def test_trials_of_a_session_that_do_not_stand_together_are_a_bug(tmp_path):
    with pytest.raises(AssertionError, match="9 readers of 10 sessions"):
        write(tmp_path, trials=TRIALS.assign(session=[*TRIALS["session"][:-1], "ses-2"]))
