"""What a user can get wrong ends with exit code 1 and one message, and leaves earlier results as they were."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from brain2img.artifacts import keep_contents

SMALL = ["experiment=digit69/ridge", "split.n_repeats=1", "split.n_folds=2", "space.pixels.size=8", "decoder.cv=2"]


@pytest.fixture
def trained(command, digits, tmp_path):
    """Train a small ridge on two folds; returns the arguments that made it and the results folder."""
    raw = digits()
    for stage in ("prepare", "embed", "train"):
        code, output = command(stage, *SMALL, f"raw={raw}")
        assert code == 0, output
    return [*SMALL, f"raw={raw}"], tmp_path / "outputs"


def snapshot(folder):
    """Return the content of every result file."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "logs" not in p.parts}


def refused(result, *parts):
    """Check that a command ended with exit code 1 and one message that has all `parts`, no traceback."""
    code, output = result
    assert code == 1, output
    assert "Traceback" not in output, output
    for part in parts:
        assert part in output, output


def test_missing_raw_file(command, tmp_path):
    refused(command("data_prep/digit69.py", f"raw={tmp_path / 'nowhere.mat'}"), "raw: expected the MATLAB file",
            "nowhere.mat, which is no file", "Give raw=")
    refused(command("data_prep/digit69.py"), "got nothing")
    assert not (tmp_path / "outputs" / "prepared").exists()


@pytest.mark.parametrize(("changes", "parts"), [
    ({"fmriTest": None}, ["expected the variables fmriTrn, fmriTest", "Give the digits 6/9 file"]),
    ({"stimTrn": np.zeros((39, 64))}, ["expected as many rows in fmriTrn, stimTrn and labelTrn, got 40, 39 and 40"]),
    ({"stimTest": np.zeros((10, 60))}, ["expected square images in stimTest, got 60 pixels"]),
    ({"fmriTest": np.zeros((10, 7))}, ["expected the same voxels in fmriTrn and fmriTest, got 30 and 7"]),
    ({"labelTrn": np.full((40, 1), 3)}, ["expected labels 1 (six) and 2 (nine) in labelTrn, got [3]"]),
    ({"fmriTrn": np.full((40, 30), np.nan)}, ["signals of subject 'sub-01': expected finite values, got NaN"]),
])
def test_wrong_raw_files(command, digits, tmp_path, changes, parts):
    refused(command("data_prep/digit69.py", f"raw={digits(**changes)}"), *parts)
    assert not list((tmp_path / "outputs" / "prepared").rglob("manifest.json"))


def test_truncated_raw_file(command, digits, tmp_path):
    raw = digits()
    raw.write_bytes(raw.read_bytes()[:2000])
    refused(command("data_prep/digit69.py", f"raw={raw}"), "digits.mat: expected a whole MATLAB file",
            "Fetch it again")


def test_a_stage_before_its_turn(command, digits):
    raw = digits()
    refused(command("embed", *SMALL, f"raw={raw}"), "expected a prepared study of these settings",
            "got none. Run the prepare stage first")
    assert command("prepare", *SMALL, f"raw={raw}")[0] == 0
    refused(command("train", *SMALL, f"raw={raw}"), "embeddings of space 'pixels'")
    refused(command("predict", *SMALL, f"raw={raw}"), "run ", "Run the train stage first")


def test_unknown_space(command):
    refused(command("embed", "space=[pixels,clap]"), "space: expected some of attributes, blip, clip_early_small",
            "got 'clap'")
    refused(command("pipeline", "experiment=demos"), "experiment: expected some of demo, demo/eeg_atm")
    refused(command("caption", "captioner=[parrot]"), "captioner: expected some of blip, git,")
    assert command("caption", "captioner=[]", "--cfg", "job")[0] == 0, "none at all is a choice"


def test_unknown_subject_and_condition(command, trained):
    arguments, _ = trained
    refused(command("train", *arguments, "name=other", "data.subjects=[sub-09]"),
            "expected subjects of ['sub-01'], got ['sub-09']")
    refused(command("predict", *arguments, "conditions=[guess]"), "conditions: expected some of")


def test_other_settings_under_the_same_name(command, trained):
    arguments, outputs = trained
    before = snapshot(outputs / "train")
    refused(command("train", *arguments, "decoder.cv=3"), "config.decoder.cv: 2 there, 3 asked for",
            "overwrite=true")
    assert snapshot(outputs / "train") == before
    assert command("train", *arguments, "decoder.cv=3", "overwrite=true")[0] == 0


def test_run_of_another_study(command, trained):
    _, outputs = trained
    run = outputs / "train" / "digit69" / "ridge"
    refused(command("predict", f"run={run}", "study=scenes_fmri"), "expected a run of the study asked for",
            "Leave study=... out")
    refused(command("predict", f"run={outputs}"), "expected folders fold-<k>_seed-<s>")
    prepared = next((outputs / "prepared" / "digit69").glob("*/manifest.json"))
    manifest = json.loads(prepared.read_text())
    prepared.write_text(json.dumps({**manifest, "id": "another"}))
    refused(command("predict", f"run={run}"), "expected the prepared study it was trained on", "another")


def test_checkpoint_that_does_not_fit(command, trained):
    _, outputs = trained
    run = outputs / "train" / "digit69" / "ridge"
    weights = run / "fold-0_seed-0" / "ridge_0_0" / "coefficients.npy"
    assert np.load(weights).shape == (64, 31)
    np.save(weights, np.zeros((3, 5), dtype=np.float32))
    refused(command("predict", f"run={run}"), "coefficients.npy: expected the 8064 bytes that were written")
    keep_contents(weights.parents[1])
    refused(command("predict", f"run={run}"), "expected weights (31, 64) for subject 'sub-01'",
            "got (5, 3)")
    weights.write_bytes(weights.read_bytes()[:100])
    keep_contents(weights.parents[1])
    refused(command("predict", f"run={run}"), "ridge_0_0/coefficients.npy: expected a whole .npy array")


def test_truncated_signals(command, trained):
    arguments, outputs = trained
    signals = next((outputs / "prepared").rglob("signals_*.npy"))
    signals.write_bytes(signals.read_bytes()[:300])
    refused(command("train", *arguments, "name=other"), "got 300: the file was truncated or damaged",
            "Run the stage prepare again with overwrite=true")


def test_a_stimulus_in_two_splits(command, trained):
    import pandas as pd

    arguments, outputs = trained
    path = next((outputs / "prepared").rglob("*/trials.parquet"))
    trials = pd.read_parquet(path)
    trials.loc[len(trials) - 1, "stimulus_id"] = trials.loc[0, "stimulus_id"]
    trials.to_parquet(path)
    keep_contents(path.parent)
    refused(command("train", *arguments, "name=other", "split={kind: study, n_folds: 1}"),
            "expected every stimulus in one split over all subjects", "'train-0000' in test and train")


def test_full_disk(command, trained, monkeypatch):
    arguments, outputs = trained
    before = snapshot(outputs)
    usage = shutil.disk_usage(outputs)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    refused(command("predict", *arguments), "disk: expected", "MB free", "Free some space")
    monkeypatch.undo()
    after = snapshot(outputs)
    assert {k: after[k] for k in before} == before


def test_targets_outside_the_package_are_refused(command):
    refused(command("embed", "study._target_=os.system"), "expected a class of brain2img.*, got 'os.system'")


def test_misspelt_argument_of_a_part(command, digits):
    refused(command("prepare", "study=digit69", f"raw={digits()}", "+study.subjekt=x"),
            "expected arguments that fit the class", "subjekt")
