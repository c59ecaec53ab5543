from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import pytest

from brain2img.artifacts import claim, open_folder, owner, release_all, waiting
from brain2img.artifacts.owner import beside
from brain2img.artifacts.process import Owner, state_of

ASKED = {"stage": "train", "config": {"lr": 0.1}, "inputs": {"prepared": "a"}}
HOLD = """
import sys, time
from pathlib import Path
from brain2img.artifacts import claim
held = claim(Path(sys.argv[1]))
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(path, *, seconds=60.0):
    """Start a process that owns a place for so long."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    return process


def claim_of(path, *, age=0.0, **changes):
    """Write the claim of another owner, whose last sign of life is so old."""
    file = beside(path, "owner")
    file.write_text(json.dumps(asdict(replace(Owner.here(), **{"command": "train.py", "token": "other", **changes}))))
    os.utime(file, (time.time() - age,) * 2)


def in_thread(action):
    """Return what `action` returns, or raises, in another thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda args: found.append(args.exc_value))
        found = []
        thread = threading.Thread(target=lambda: found.append(action()))
        thread.start()
        thread.join()
    return found[0]


def test_the_second_process_is_told_of_the_first_and_takes_over_when_it_was_killed(tmp_path, caplog):
    first = hold(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"run: expected no other command at work there, got process {first.pid} on "
                                         r".*, at work since 20.*\(-c .*run 60\.0\)\. Let it end \(wait=<seconds>"):
        open_folder(tmp_path / "run", **ASKED)
    assert not (tmp_path / "run").exists()
    first.kill()
    first.wait()
    assert beside(tmp_path / "run", "owner").exists(), "killed, it could not give it up"
    with caplog.at_level(logging.INFO):
        folder = open_folder(tmp_path / "run", **ASKED)
    assert f"run: took over from process {first.pid}" in caplog.text
    folder.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_second_waits_if_told_to_and_finds_what_the_first_made(tmp_path, caplog):
    path = tmp_path / "run"
    folder = open_folder(path, **ASKED)

    def second():
        with waiting(30):
            return open_folder(path, **ASKED)

    threading.Timer(0.5, folder.finish).start()
    with caplog.at_level(logging.INFO):
        assert in_thread(second).finished
    assert "run: waits up to 30 s for another thread of this process" in caplog.text
    assert "run: goes on after" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_waiting_ends(tmp_path):
    claim_of(tmp_path / "run", host="elsewhere")
    with waiting(0.1), pytest.raises(ValueError, match=r"on elsewhere, .* sign of life was 0 s ago, .*0 s of wait"):
        claim(tmp_path / "run")
    with pytest.raises(ValueError, match=r"wait: expected seconds, 0 or more, got -1"), waiting(-1):
        pass


@pytest.mark.parametrize(("changes", "age", "gone"), [
    ({"host": "elsewhere"}, 250, False),
    ({"host": "elsewhere"}, 350, True),
    ({"boot": "another"}, 30, False),  # or another machine of this name
    ({"boot": "another"}, 90, True),
    ({"processes": "container"}, 250, False),
    ({"processes": "container"}, 350, True),
    ({"pid": os.getppid(), "began": state_of(os.getppid())[1]}, 9000, False),  # runs: signs are not asked for
    ({"pid": os.getppid(), "began": "1"}, 0, True),  # its number was given to another process
    ({"pid": 2**22 + 1}, 0, True),  # above any
    ({"host": "elsewhere", "job": "77"}, 0, True),  # SLURM restarted this very job, see below
    ({"host": "elsewhere", "job": "77", "restarts": 1}, 0, False),  # another task of it
    ({"host": "elsewhere", "job": "78"}, 0, False),
])
def test_who_is_gone(tmp_path, monkeypatch, changes, age, gone):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    claim_of(tmp_path / "run", **{"job": "", "restarts": 0, **changes}, age=age)
    if gone:
        open_folder(tmp_path / "run", **ASKED).finish()
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    else:
        with pytest.raises(ValueError, match="expected no other command at work there"):
            open_folder(tmp_path / "run", **ASKED)


def test_a_claim_that_says_nothing_is_respected_until_it_is_old(tmp_path):
    beside(tmp_path / "run", "owner").touch()
    with pytest.raises(ValueError, match="got one that does not say who it is"):
        claim(tmp_path / "run")
    os.utime(beside(tmp_path / "run", "owner"), (time.time() - 400,) * 2)
    claim(tmp_path / "run").release()
    assert not list(tmp_path.iterdir())


def race(path, start, done):
    """Try to own a place at the same moment as others; returns 1 for the one that does."""
    start.wait()
    try:
        held = claim(path)
    except ValueError:
        held = None
    done.wait()
    return int(held is not None)


def test_of_many_that_take_over_only_one_succeeds(tmp_path):
    context, n = multiprocessing.get_context("fork"), 8
    start, done = context.Barrier(n), context.Barrier(n)

    def take_part(won):
        for number in range(20):
            won.put(race(tmp_path / str(number), start, done))

    for number in range(20):
        claim_of(tmp_path / str(number), host="elsewhere", age=400)
    won = context.Queue()
    processes = [context.Process(target=take_part, args=(won,)) for _ in range(n)]
    for process in processes:
        process.start()
    assert sum(won.get(timeout=60) for _ in range(20 * n)) == 20
    for process in processes:
        process.join()
    assert not list(tmp_path.glob("*.guard"))


def test_threads_of_one_process(tmp_path):
    folder = open_folder(tmp_path / "run", **ASKED)
    error = in_thread(lambda: open_folder(tmp_path / "run", **ASKED))
    assert "got another thread of this process" in str(error)
    again = open_folder(tmp_path / "run", **ASKED)  # this thread has given up what it did
    del folder
    assert "got another thread" in str(in_thread(lambda: open_folder(tmp_path / "run", **ASKED)))
    again.finish()
    assert in_thread(lambda: open_folder(tmp_path / "run", **ASKED)).finished


def test_it_is_given_up_at_the_end_of_the_command_the_object_and_the_process(tmp_path):
    folder = open_folder(tmp_path / "run", **ASKED)
    release_all()
    assert not beside(tmp_path / "run", "owner").exists()
    with pytest.raises(ValueError, match="another command that took over"):
        folder.finish()
    folder = open_folder(tmp_path / "run", **ASKED)
    del folder
    assert not beside(tmp_path / "run", "owner").exists()
    with pytest.raises(ValueError, match=r"config\.lr"):
        open_folder(tmp_path / "run", **{**ASKED, "config": {"lr": 9}})
    assert not beside(tmp_path / "run", "owner").exists()
    assert hold(tmp_path / "other", seconds=0).wait() == 0
    assert not beside(tmp_path / "other", "owner").exists()


def work_in(path):
    """Open what the parent process owns, as a worker may."""
    folder = open_folder(path, **ASKED)
    (folder.work / "part.txt").write_text("part")
    del folder
    return beside(path, "owner").exists()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_use_what_their_parent_owns_and_do_not_give_it_up(tmp_path, method):
    folder = open_folder(tmp_path / "run", **ASKED)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(work_in, tmp_path / "run").result(timeout=60)
    assert beside(tmp_path / "run", "owner").exists()
    folder.finish()
    assert (tmp_path / "run" / "part.txt").read_text() == "part"


def test_a_forked_process_that_ends_gives_up_nothing(tmp_path):
    held = claim(tmp_path / "run")
    if (pid := os.fork()) == 0:
        held.release()
        os._exit(0)
    os.waitpid(pid, 0)
    assert beside(tmp_path / "run", "owner").exists()


def test_signs_of_life_are_given(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "SIGN", 0.05)
    monkeypatch.setattr(owner, "_beating", None)
    with claim(tmp_path / "run"):
        file = beside(tmp_path / "run", "owner")
        os.utime(file, (0, 0))
        until = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.05)
        assert time.time() - file.stat().st_mtime < 15


def test_who_slept_too_long_is_interrupted_and_cannot_finish(tmp_path, monkeypatch, caplog):
    interrupted = []
    monkeypatch.setattr(owner._thread, "interrupt_main", lambda: interrupted.append(1))
    folder = open_folder(tmp_path / "run", **ASKED)
    file = beside(tmp_path / "run", "owner")
    file.unlink()
    owner._sign(file, owner._held[file])
    assert file.exists(), "what somebody removed is written anew"
    claim_of(tmp_path / "run", host="elsewhere")
    owner._sign(file, owner._held[file])
    assert interrupted
    assert "another command took over" in caplog.text
    with pytest.raises(ValueError, match=r"run: expected to be the only one at work there, got another command"):
        folder.finish()
    assert not (tmp_path / "run" / "manifest.json").exists()
    folder.release()
    assert "elsewhere" in file.read_text(), "the claim of the other one stays"


def test_nobody_is_interrupted_where_the_whole_place_was_removed(tmp_path, monkeypatch):
    interrupted = []
    monkeypatch.setattr(owner._thread, "interrupt_main", lambda: interrupted.append(1))
    folder = open_folder(tmp_path / "outputs" / "run", **ASKED)
    file = beside(tmp_path / "outputs" / "run", "owner")
    shutil.rmtree(tmp_path / "outputs")
    owner._sign(file, owner._held[file])
    assert not interrupted
    with pytest.raises(ValueError, match="expected to be the only one at work there"):
        folder.finish()


def test_without_hard_links_and_with_a_lost_answer(tmp_path, monkeypatch):
    link = os.link

    def refuse(source, target):
        raise OSError(errno.EPERM, "no hard links here")

    def lose(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "asked again by the client of NFS")

    for broken in (refuse, lose):
        monkeypatch.setattr(os, "link", broken)
        with claim(tmp_path / "run"):
            assert "another thread" in str(in_thread(lambda: claim(tmp_path / "run")))
    monkeypatch.setattr(os, "link", refuse)
    claim_of(tmp_path / "run", host="elsewhere")
    with pytest.raises(ValueError, match="on elsewhere"):
        claim(tmp_path / "run")


def test_a_finished_folder_is_opened_without_writing(tmp_path, monkeypatch):
    open_folder(tmp_path / "run", **ASKED).finish()
    monkeypatch.setattr("brain2img.artifacts.folders.claim", None)
    assert open_folder(tmp_path / "run", **ASKED).finished
