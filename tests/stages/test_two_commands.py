"""Two commands into one folder at the same time."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from brain2img.command_line.run import _log_to

ROOT = Path(__file__).parents[2]
SETTINGS = ["study=scenes_eeg", "study.n_subjects=1", "study.n_train=40", "study.n_val=20"]


def prepare(outputs: Path, *more: str) -> subprocess.Popen[str]:
    """Start to prepare a small study of EEG."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "prepare.py"), *SETTINGS, f"paths.outputs={outputs}", *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def in_the_middle(outputs: Path, process: subprocess.Popen[str]) -> None:
    """Stop a process where some of its trials are written, and go on being stopped."""
    until = time.monotonic() + 120
    while not list(outputs.glob("prepared/*/*/.signals*.part")):
        assert time.monotonic() < until
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)


def signals(outputs: Path) -> np.ndarray:
    """Return the signals of the only subject of the only study, which is finished."""
    (folder,) = outputs.glob("prepared/scenes_eeg/*")
    assert (folder / "manifest.json").exists()
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name], "nothing is left beside it"
    (path,) = folder.glob("signals_*.npy")
    return np.load(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_second_stops_or_waits_and_the_result_is_that_of_one(tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    single = prepare(alone)
    assert single.wait() == 0, single.stdout.read()
    shared = f"hydra.run.dir={both}/logs/shared"
    first = prepare(both, shared)
    in_the_middle(both, first)
    second = prepare(both, shared)
    said = second.communicate()[0]
    assert second.returncode == 1
    assert f"expected no other command at work there, got process {first.pid} on" in said
    assert "Let it end (wait=<seconds> waits for it and goes on then), stop it, or give" in said
    assert "Traceback" not in said
    assert "Free space" not in said
    third = prepare(both, "wait=300")
    line = third.stdout.readline()
    assert f"waits up to 300 s for process {first.pid}" in line
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.stdout.read()
    assert "finished already" in third.communicate()[0]
    assert third.returncode == 0
    got = signals(both)
    assert np.abs(got).max(axis=(1, 2)).min() > 0, "no trial is empty"
    np.testing.assert_array_equal(got, signals(alone))
    logs = {path.name for path in (both / "logs" / "shared").iterdir() if path.is_file()}
    assert logs == {"log.txt", f"log_{second.pid}.txt", f"traceback_{second.pid}.txt"}
    assert said.splitlines()[0] in (both / "logs" / "shared" / f"log_{second.pid}.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_a_killed_one_the_next_goes_on(tmp_path):
    first = prepare(tmp_path)
    in_the_middle(tmp_path, first)
    first.kill()
    first.wait()
    second = prepare(tmp_path)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert f"took over from process {first.pid} on" in said
    assert np.abs(signals(tmp_path)).max(axis=(1, 2)).min() > 0


@pytest.fixture
def handlers():
    """Put the handlers of the root logger back."""
    root = logging.getLogger()
    before, level = root.handlers, root.level
    yield
    root.handlers = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_two_processes_do_not_share_a_log(tmp_path, handlers):
    assert [_log_to(tmp_path).name, _log_to(tmp_path).name] == ["log.txt", f"log_{os.getpid()}.txt"]


def test_where_nothing_can_be_written_one_message_says_so(tmp_path, handlers, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="1"):
        _log_to(tmp_path / "file" / "logs")
    assert capsys.readouterr().err == (
        f"paths.outputs: expected a folder that can be written to, got Not a directory at {tmp_path}/file/logs. Free "
        "some space there, or give paths.outputs=<folder on another disk>.\n")


def test_a_disk_that_fills_up_ends_the_log_and_not_the_command(tmp_path, handlers, capsys):
    path = _log_to(tmp_path)
    with Path("/dev/full").open("w") as full:
        logging.getLogger().handlers[1].stream = full
        logging.getLogger("brain2img").info("one")
        logging.getLogger("brain2img").info("two")
        with suppress(OSError):
            full.close()
    out, err = capsys.readouterr()
    assert f"{path}: expected room for the log, got [Errno 28] No space left on device" in out
    assert out.count("expected room") == 1
    assert "Traceback" not in out + err


@pytest.mark.parametrize(("more", "said"), [
    ([], "paths.outputs: expected a folder that can be written to, got File too large"),
    pytest.param(["hydra.output_subdir=null"], "disk: expected room to write", marks=pytest.mark.slow)])
def test_a_full_disk_when_the_command_begins(tmp_path, more, said):
    script = ("import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
              "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    run = subprocess.run([sys.executable, "-c", script, str(ROOT / "scripts" / "prepare.py"), *SETTINGS,
                          f"paths.outputs={tmp_path}", *more], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert said in run.stdout + run.stderr
