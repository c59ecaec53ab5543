"""A pipeline killed in every stage and started again ends with the scores of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["study.n_subjects=2", "study.n_train=60", "study.n_val=20", "trainer.max_epochs=6", "trainer.batch_size=16",
        "decoder.cv=2"]


def command(outputs: Path, *, stop_in: str | None) -> list[str]:
    """Return a tiny demo of fMRI (deep and ridge)."""
    members = "members=[demo/fmri_mindbridge]"
    return [sys.executable, str(ROOT / "scripts" / "pipeline.py"), "experiment=demo", members,
            f"paths.outputs={outputs}", *[o for o in TINY if not o.startswith("decoder")],
            "adapter.pool_size=64", "adapter.hidden=32", "encoder.width=32"]


def scores(outputs: Path) -> list[dict]:
    """Return the records of a finished run."""
    return json.loads((outputs / "scores" / "demo" / "summary.json").read_text())["records"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_in_each_stage_the_final_scores_are_the_same(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    subprocess.run(command(left_alone, stop_in=None), env=environment, check=True, capture_output=True)
    for stage, wait in [("prepare", 0.3), ("prepare", 1.5), ("embed", 0.1), ("train", 1.0), ("train", 2.5),
                        ("predict", 0.2), ("reconstruct", 0.3), ("evaluate", 0.5)]:
        process = subprocess.Popen(command(killed, stop_in=stage), env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        for line in process.stdout:
            if f"] {stage}" in line:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
    done = subprocess.run(command(killed, stop_in=None), env=environment, check=True, capture_output=True, text=True)
    assert "Report:" in done.stdout
    assert scores(killed) == scores(left_alone)
