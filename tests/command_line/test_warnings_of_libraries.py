"""What libraries warn of reaches the user once, short, with the library's name; all of it stands in log.txt."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from brain2img.command_line.logs import HARMLESS, Brief, OncePerCommand, said_by, show_libraries

PLACE = str(Path(logging.__file__).parents[1] / "x")  # of the standard library
SITE = str(Path(pytest.__file__).parents[1])


def record(text: str, *, path: str, name: str = "x", level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord(name, level, path, 1, text, None, None)


def test_which_library_says_it():
    assert said_by(record("a", path=f"{SITE}/mne/io/base.py")) == ("mne", "a")
    assert said_by(record("a", path=f"{SITE}/six.py")) == ("six", "a")
    assert said_by(record("a", path=str(Path(sys.modules["brain2img"].__path__[0]) / "data" / "x.py")))[0] == ""
    assert said_by(record("a", path="/elsewhere/script.py"))[0] == ""
    text = warnings.formatwarning("units\nare odd", RuntimeWarning, f"{SITE}/mne/io/edf.py", 7, "warn('x')")
    assert said_by(record(text, name="py.warnings", path=warnings.__file__)) == (
        "mne", "units\nare odd (RuntimeWarning, edf.py)")
    own = str(Path(sys.modules["brain2img"].__path__[0]) / "studies" / "edf.py")  # MNE warns in the name of its caller
    text = warnings.formatwarning("filter is long", RuntimeWarning, own, 7, "filter_data(x)")
    assert said_by(record(text, name="py.warnings", path=warnings.__file__)) == (
        "Python", "filter is long (RuntimeWarning, edf.py)")


def test_each_is_shown_once_and_short():
    once, brief = OncePerCommand(), Brief("%(message)s")
    first = record(f"epoch 3: {'x' * 400}", path=f"{SITE}/lightning/a.py")
    assert once.filter(first)
    assert brief.format(first).startswith("lightning: epoch 3: xxx")
    assert len(brief.format(first)) == len("lightning: ") + 240
    assert not once.filter(record(f"epoch 4: {'x' * 400}", path=f"{SITE}/lightning/b.py")), "another number"
    assert once.filter(record(f"epoch 4: {'x' * 400}", path=f"{SITE}/torch/b.py")), "another library"
    assert not once.filter(record("advice", path=f"{SITE}/torch/b.py", level=logging.INFO))
    ours = record("said twice", path=str(Path(sys.modules["brain2img"].__path__[0]) / "a.py"), level=logging.INFO)
    assert once.filter(ours)
    assert once.filter(ours)
    assert brief.format(ours) == "said twice"


def test_what_is_silent_has_a_reason():
    for library, begins, reason in HARMLESS:
        assert library
        assert len(begins) > 15, begins
        assert len(reason.split()) > 4, reason


def test_a_command_shows_them_and_keeps_them(command, tmp_path, monkeypatch):
    """Of a module of site-packages, of Python's warnings and of loggers that keep their records to themselves."""
    import numpy as np

    import brain2img.stages.prepare as stage

    def warns(cfg):
        for i in range(3):
            exec(compile(f"import warnings; warnings.warn('units of {i} channels are unknown', RuntimeWarning)",
                         f"{SITE}/mne/io/edf.py", "exec"), {})
            logger = logging.getLogger("transformers.modeling")
            logger.handle(logger.makeRecord(logger.name, logging.WARNING, f"{SITE}/transformers/m.py", 1,
                                            "a weight is odd", None, None))
        np.float64(1e300) * np.float64(1e300)

    monkeypatch.setattr(stage, "prepare", warns)
    code, output = command("prepare")
    assert code == 0, output
    assert output.count("mne: units of 0 channels are unknown (RuntimeWarning, edf.py)") == 1, output
    assert output.count("units of") == 1
    assert output.count("transformers: a weight is odd") == 1
    assert "overflow encountered" in output
    written = next((tmp_path / "outputs" / "logs").rglob("log.txt")).read_text()
    assert written.count("units of") == 3
    assert written.count("a weight is odd") == 3


def test_a_logger_cannot_take_its_records_back(capsys):
    """What transformers, diffusers and MNE do to theirs as they are imported."""
    handler, logger = logging.StreamHandler(sys.stdout), logging.getLogger("diffusers")
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers = [handler]
    try:
        show_libraries(handler)
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.propagate = False
        logger.handle(logger.makeRecord("diffusers", logging.WARNING, f"{SITE}/diffusers/m.py", 1, "odd", None, None))
    finally:
        logging.captureWarnings(False)
        root.handlers = before
    assert capsys.readouterr().out == "diffusers: odd\n"


@pytest.mark.slow
def test_loggers_that_keep_their_records_give_them_up():
    """As diffusers does when it is imported after the logging was set up: a handler of its own, no propagation."""
    code = """
import logging, sys
from brain2img.command_line.logs import show_libraries
handler = logging.StreamHandler(sys.stdout)
logging.getLogger().handlers = [handler]
show_libraries(handler)
import diffusers
logging.getLogger("diffusers.x").warning("once")
print(len(logging.getLogger("diffusers").handlers), logging.getLogger("diffusers").propagate)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=280)
    assert out.stdout.splitlines()[-1] == "0 True"
    assert out.stdout.count("once") == 1
    assert "once" not in out.stderr


class Warns:
    """A session that warns, in a process of its own."""

    def __call__(self):
        import numpy as np

        exec(compile("import warnings; warnings.warn('odd units')", f"{SITE}/mne/io/edf.py", "exec"), {})
        logging.getLogger("brain2img.studies").info("said in a process")
        yield np.ones((2, 3, 4), dtype=np.float32)


def test_processes_send_theirs_to_the_command(tmp_path, capsys):
    from brain2img.data.sessions import write_sessions

    handler = logging.StreamHandler(sys.stdout)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    try:
        show_libraries(handler)
        write_sessions(tmp_path / "a", shape=(6, 3, 4), names=["a", "b", "c"], counts=[2] * 3,
                       sessions=[Warns()] * 3, identity="x", what="x", jobs=2)
    finally:
        logging.captureWarnings(False)
        root.handlers = before
        root.setLevel(level)
    said = capsys.readouterr()
    assert said.out.count("mne: odd units (UserWarning, edf.py)") == 1, said
    assert said.out.count("said in a process") == 3
    assert "odd units" not in said.err
