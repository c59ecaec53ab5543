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
SETTINGS = ["experiment=demo", "members=[demo/fmri_mindbridge,demo/fmri_ridge]", "study.n_subjects=1",
            "study.n_train=240", "study.n_val=40", "study.recording.n_voxels=200", "trainer.max_epochs=8",
            "adapter.pool_size=64"]
KILLS = [("prepare", 0.3), ("prepare", 1.5), ("embed", 0.3), ("train", 1.5), ("train", 3.5), ("predict", 0.5),
         ("reconstruct", 0.5), ("evaluate", 0.7), ("evaluate", 2.0)]


def pipeline(outputs: Path, *, kill: tuple[str, float] | None = None) -> str:
    """Run a small demo, or kill it so many seconds after a stage began; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "pipeline.py"), *SETTINGS,
                                f"paths.outputs={outputs}"], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    printed = ""
    for line in process.stdout:
        printed += line
        if kill is not None and f"] {kill[0]}" in line:
            time.sleep(kill[1])
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    return printed


def summary(outputs: Path) -> dict:
    """Return the summary of a finished run."""
    return json.loads((outputs / "scores" / "demo" / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_in_each_stage_the_final_scores_are_the_same(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert "Report:" in pipeline(alone)
    for kill in KILLS:
        printed = pipeline(killed, kill=kill)
        assert f"] {kill[0]}" in printed, printed
    assert "Report:" in pipeline(killed)
    assert summary(killed)["records"] == summary(alone)["records"]
    assert summary(killed)["differences"] == summary(alone)["differences"]
    began = time.monotonic()
    assert "finished already" in pipeline(killed)
    assert time.monotonic() - began < 60, "a finished pipeline has nothing to do"
