"""From a BIDS dataset to the report by one command: EEG and MEG written by MNE-BIDS, betas written by nibabel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from bids_raw import Betas, Dataset

from brain2img.data.prepared import PreparedStudy

ROOT = Path(__file__).parents[2]
SMALL = ["study.stimuli.image_size=64", "study.split.val_fraction=0.2", "trainer.max_epochs=1",
         "reconstruct.n_stimuli=4", "data.min_trials=5"]


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["eeg", "meg", "fmri"])
def test_from_raw_files_to_the_report(tmp_path, modality):
    raw = tmp_path / "raw"
    if modality == "fmri":
        Betas(raw, subjects=("01", "02"), runs=("1",), n_stimuli=40).write()
        study = ["study=bids_betas"]
    else:
        form = "BrainVision" if modality == "eeg" else "FIF"
        Dataset(raw, datatype=modality, form=form, subjects=("01", "02"), sessions=("a", "b"), n_stimuli=40,
                n_repeats=1, noise=1.0).write()
        study = ["study=bids", f"study.datatype={modality}"]
    command = [sys.executable, "scripts/pipeline.py", "experiment=demo", *study, f"raw={raw}",
               f"paths.outputs={tmp_path / 'outputs'}", *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / "prepared" / "bids").iterdir()
    prepared = PreparedStudy(folder)
    assert prepared.modality == modality
    assert prepared.subjects == ["sub-01", "sub-02"]
    assert prepared.trials.drop_duplicates("stimulus_id")["split"].value_counts().to_dict() == {
        "train": 26, "test": 8, "val": 6}
    scores = tmp_path / "outputs" / "scores" / "demo_bids"
    assert "sub-02" in (scores / "report.html").read_text()
    table = pd.concat([pd.read_parquet(path) for path in scores.rglob("scores.parquet")])
    assert set(table["subject"]) == {"sub-01", "sub-02"}
    assert {"top1", "pixcorr"} <= set(table["metric"])
