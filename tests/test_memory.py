"""How much memory there is, and that what is kept of freed memory stays within bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from brain2img import memory

# tensors of 40 MB, of which every other one is freed again: gaps, which are kept or given back
SCRIPT = """
import sys, torch
from brain2img import memory
print(memory.keep_freed({"true": True, "false": False}.get(sys.argv[1], sys.argv[1])))
tensors = [torch.ones(10_000_000) for _ in range(16)]
del tensors[::2]
before = memory.used()
memory.SHARE = float(sys.argv[2])
memory.stay_within_bounds()
print(memory._keeping, before - memory.used() > 250e6)  # of 320 MB that are free
tensors.append(torch.ones(10_000_000))
del tensors[-1]
"""


def run(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_limit_is_the_least_there_is(monkeypatch):
    everything = memory.limit()
    assert everything > 2**28
    monkeypatch.setattr(memory, "_of_control_groups", lambda: iter([10**9, 2**62]))
    assert memory.limit() == 10**9
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "500")
    assert memory.limit() == 500 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "no number")
    assert memory.limit() == 10**9


def test_limits_of_processes_count():
    code = ("import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); from brain2img import memory; "
            "print(memory.limit(), memory.keep_freed(), memory.keep_freed('auto'))")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) <= 2**33
    assert said[1:] == ["False", "False"], "never by default on a small machine or job"


def test_freed_memory_is_kept_within_bounds():
    assert run("true", "0.99") == ["True", "True", "False"], "there is room"
    assert run("true", "0") == ["True", "False", "True"], "given back where it is too much"
    assert run("false", "0") == ["False", "False", "False"], "nothing was kept"


def test_other_settings_are_refused():
    with pytest.raises(ValueError, match="keep_memory: expected true, false or auto, got 'sometimes'"):
        memory.keep_freed("sometimes")
