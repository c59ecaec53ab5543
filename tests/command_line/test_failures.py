"""Errors that end a command: each kind says what it is and what helps; only a bug is called one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import brain2img.stages.prepare as stage
from brain2img.command_line.failures import extra_of, said
from brain2img.stages.quoting import argument, command, override


def _fails(error):
    def fails(*args):
        if isinstance(error, BaseException):
            raise error
        error()
    return fails


def _os(code, text, path="/data/x"):
    return OSError(code, text, path)


KINDS = {
    "no permission": (_os(13, "Permission denied"), "/data/x: expected to read or write it, got: Permission denied. "
                      "You may not do this there: correct its owner or permissions"),
    "disk": (_os(28, "No space left on device"), "Free space there"),
    "quota": (_os(122, "Disk quota exceeded"), "Your quota is used up"),
    "open files": (_os(24, "Too many open files"), "Raise the limit of open files of your shell (ulimit -n 4096)"),
    "read-only": (_os(30, "Read-only file system"), "Choose a path on a file system that can be written"),
    "lock": (_os(11, "Resource temporarily unavailable"), "Another process holds it"),
    "stale": (_os(116, "Stale file handle"), "The network file system lost it"),
    "memory": (MemoryError("Unable to allocate 4 GiB"), "memory: expected enough of it, got: Unable to allocate 4 GiB. "
               "Lower batch_size or trainer.batch_size"),
    "GPU memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "Lower batch_size"),
    "GPU": (RuntimeError("CUDA error: no kernel image is available for execution"), "GPU: expected one that works"),
    "extra": (ModuleNotFoundError("No module named 'submitit'", name="submitit"),
              'library submitit: expected it to be installed, got none. Install it: make install, or pip install '
              '".[slurm]", in the folder of brain2img'),
    "library": (ModuleNotFoundError("No module named 'foo_bar.x'", name="foo_bar.x"), "pip install foo-bar"),
    "broken library": (ImportError("/x/libtorchaudio.so: undefined symbol: torch_exception", name="torchaudio"),
                       "library torchaudio: expected one that loads, got: /x/libtorchaudio.so: undefined symbol"),
    "broken file": (OSError("/x/libtorchaudio.so: undefined symbol: torch_exception"), "make install"),
    "encoding": (lambda: b"\xff".decode("utf-8"), "text: expected utf-8, got bytes that are not"),
    "recursion": (RecursionError("maximum recursion depth exceeded"), "refer to each other in a circle"),
    "setting": (lambda: OmegaConf.create({"a": "${b}"}).a, "Interpolation key 'b' not found"),
    "missing setting": (lambda: OmegaConf.create({"a": "???"}).a, "Missing mandatory value: a"),
    "choice": (lambda: OmegaConf.create({"a": 1}, flags={"struct": True}).reconstructor,
               "reconstructor: expected this setting or choice, got none. Give reconstructor=..."),
    "ours": (ValueError("study: expected x, got y. Cure."), "study: expected x, got y. Cure."),
    "a library's": (lambda: np.linalg.cholesky(-np.eye(2)), "LinAlgError in "),
    "JSON": (lambda: json.loads(""), "JSONDecodeError in "),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_what_helps(kind, tmp_path):
    error, message = KINDS[kind]
    with pytest.raises(Exception, match=r"^") as raised:
        _fails(error)()
    told = said(raised.value, kept=tmp_path / "traceback.txt")
    assert told is not None
    assert message in told


def test_a_command_ends_with_the_message(command, monkeypatch):
    monkeypatch.setattr(stage, "prepare", _fails(KINDS["no permission"][0]))
    code, output = command("prepare")
    assert code == 1, output
    assert KINDS["no permission"][1] in output
    assert "defect" not in output
    assert "Traceback" not in output


def test_a_bug_is_called_one(command, monkeypatch):
    monkeypatch.setattr(stage, "prepare", _fails(KeyError("x")))
    code, output = command("prepare")
    assert code == 1
    assert "unexpected KeyError: this is a defect of brain2img, please report it" in output


def test_stopped_from_the_keyboard(command, monkeypatch):
    monkeypatch.setattr(stage, "prepare", _fails(KeyboardInterrupt()))
    code, output = command("prepare")
    assert code == 130
    assert "The same command goes on where it was" in output
    assert "Traceback" not in output


def test_extras_are_those_of_the_package():
    assert extra_of("submitit") == "slurm"
    assert extra_of("torch") is None


TEXTS = ["/a/b=c", "/a,b", "/a(b)", "/é/x y", "a'b", 'a"b', "a'b\"c", "{x}", "[x]", "null", "True", "12", "1e3", "",
         " a ", "C:\\d\\", "a\\'b", "end\\\"", "a\\\\", "~/a", "$x", "a#b", "a&b;c", "100%", "plain/path-1.2_x"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_quoted_for_the_shell_and_for_hydra(text):
    (word,) = shlex.split(argument("raw", text))
    read = OverridesParser.create().parse_override(word)
    assert read.key_or_group == "raw"
    assert read.value() == text
    assert not read.is_sweep_override()


def test_other_values_stay_what_they_are():
    read = OverridesParser.create().parse_overrides([override("a", v) for v in (None, True, 3, 0.5, [1, "x,y", None])])
    assert [o.value() for o in read] == [None, True, 3, 0.5, [1, "x,y", None]]
    assert override("raw", "/plain/path") == "raw=/plain/path"
    assert command("predict", run="/a b/c,d") == "brain2img predict 'run=\"/a b/c,d\"'"


@pytest.mark.parametrize(("given", "parts"), [
    ("raw=/a=b", ["raw: expected a value that Hydra can read, got '/a=b'", "'raw=\"/a=b\"'"]),
    ("raw=/a(b", ["'raw=\"/a(b\"'"]),
    ("raw=/é/x", ["'raw=\"/é/x\"'"]),
    ("raw=/a,b", ["raw: expected one value, got several (/a,b)", "'raw=\"/a,b\"'", "'raw=[/a,b]'", "add -m"]),
    ("nothing", ["'nothing': expected key=value"]),
    ("sed=1", ["Could not override 'sed'", "--cfg job prints all settings"]),
    ("label=${nix}", ["Interpolation key 'nix' not found"]),
    ("label=${label}", ["refer to each other in a circle"]),
])
def test_what_hydra_cannot_read_is_said_with_the_cure(command, given, parts):
    code, output = command("prepare", given)
    assert code == 1, output
    assert "Traceback" not in output
    for part in parts:
        assert part in output


def test_a_path_with_everything_in_it_works(command, tmp_path, digits):
    (tmp_path / "a=b, (é)").mkdir()
    raw = digits(tmp_path / "a=b, (é)" / "digits.mat")
    (word,) = shlex.split(argument("raw", str(raw)))
    code, output = command("data_prep/digit69.py", word)
    assert code == 0, output
    assert Path(raw).exists()
