"""Twelve pictures, each shown ten times, from raw files to the report: every one decoded by what has not seen it."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pandas as pd
import pytest

from brain2img.artifacts import Predictions
from brain2img.data.prepared import PreparedStudy
from brain2img.metrics.intervals import wilson
from brain2img.simulate.own_study import write_own_study
from brain2img.stages.runs import FoldRun

N, REPETITIONS = 12, 10
QUICK = ["space=[pixels]", "space.pixels.size=8", "reconstructor=[pixels]", "captioner=[]", "space@metric_space=[]",
         "metric=[retrieval,identification,pixcorr]", "headline.space=pixels",
         "stages=[prepare,embed,train,predict,reconstruct]"]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Return a function that writes the example of a modality once; gives its folder and what has to be typed."""
    made = {}

    def write(modality: str):
        if modality not in made:
            folder = tmp_path_factory.mktemp(modality)
            made[modality] = folder, write_own_study(folder, modality=modality, n_subjects=1)
        return made[modality]

    return write


def check_chain(outputs, *, members: list[str], space: str) -> dict:
    """Assert what holds for every decoder that has decoded each picture in its turn; returns the summary."""
    name = members[0] if len(members) == 1 else members[0].split("/")[0]
    summary = json.loads((outputs / "scores" / name / "summary.json").read_text())
    for member in members:
        runs = [FoldRun(folder, outputs) for folder in sorted((outputs / "train" / member).glob("fold-*"))]
        assert len(runs) == N
        predictions = {c: Predictions(outputs / "predictions" / member / c)
                       for c in ("decoded", "noise", "shuffled", "mean", "true")}
        rows = predictions["decoded"].rows
        assert sorted(rows["stimulus_id"]) == sorted(runs[0].prepared.trials["stimulus_id"].unique())
        assert (rows["n_averaged"] == REPETITIONS).all()
        for run in runs:
            split = run.data().trials.groupby("split")["stimulus_id"].agg(set)
            assert len(split["test"]) == 1
            assert len(split["train"]) == N - 1
            assert not split["test"] & split["train"]
        values = {c: p.embeddings(space, np.arange(N)).reshape(N, -1) for c, p in predictions.items()}
        same = (values["shuffled"][:, None] == values["decoded"][None]).all(axis=2)
        assert (same.sum(axis=1) == 1).all(), "those of the decoded rows, each once"
        assert not same.diagonal().any(), "none keeps its own"

    top1 = [r for r in summary["records"] if r["metric"] == "top1" and r["space"] == space
            and r["direction"] == "image_from_brain"]
    assert {r["condition"] for r in top1} == {"decoded", "noise", "shuffled", "mean", "true"}
    for record in top1:
        assert (record["gallery"], record["n"]) == (N, N)
        assert record["chance"] == pytest.approx(1 / N)
        assert (record["low"], record["high"]) == pytest.approx(wilson(round(record["value"] * N, 6), N))
    two_way = [r for r in summary["records"] if r["metric"] == "two_way" and r["space"] == space]
    assert all(r["chance"] == 0.5 and r["low"] <= r["value"] <= r["high"] for r in two_way)
    page = (outputs / "scores" / name / "report.html").read_text()
    assert "Cross-validated in 12 fits: 12 images, each decoded once and never by a fit that had seen it" in page
    assert "Retrieval from a gallery of 12 images" in page
    assert "what knows nothing lands below the stated chance" in page
    return summary


def test_ridge_decodes_every_picture_in_its_turn(example, command, tmp_path):
    raw, settings = example("fmri")
    code, printed = command("pipeline", "experiment=own_data/fmri_ridge", "study=arrays", f"raw={raw}",
                            *settings.split(), "split.kind=leave_one_stimulus_out", *QUICK)
    assert code == 0, printed
    outputs = tmp_path / "outputs"
    summary = check_chain(outputs, members=["own_data/fmri_ridge"], space="pixels")
    pictures = [r for r in summary["records"] if r["of"] == "images" and r["condition"] == "decoded"]
    assert {r["metric"] for r in pictures} == {"pixcorr"}
    assert all(r["n"] == N and r["low"] < r["value"] < r["high"] for r in pictures)
    code, printed = command("time_course", f"run={outputs / 'train' / 'own_data' / 'fmri_ridge'}")
    assert code == 1
    assert "expected one model for all subjects, got 12 folds of one stimulus each" in printed


@pytest.mark.parametrize(("split", "n"), [(["split.kind=by_concept"], 1), (
    ["split.kind=kfold", "split.by=concept", "split.n_folds=3", "split.val_fraction=0.2"], 3)])
def test_other_splits_run_too(example, command, tmp_path, split, n):
    raw, settings = example("fmri")
    code, printed = command("pipeline", "experiment=own_data/fmri_ridge", "study=arrays", f"raw={raw}",
                            *settings.split(), *split, *QUICK)
    assert code == 0, printed
    outputs = tmp_path / "outputs"
    decoded = Predictions(outputs / "predictions" / "own_data" / "fmri_ridge" / "decoded").rows
    concepts = PreparedStudy(next((outputs / "prepared" / "arrays").iterdir())).concepts
    runs = sorted((outputs / "train" / "own_data" / "fmri_ridge").glob("fold-*"))
    assert len(runs) == n
    for run in runs:
        split_of = FoldRun(run, outputs).data().trials.groupby("split")["stimulus_id"].agg(set)
        tested, trained = ({concepts[s] for s in split_of[name]} for name in ("test", "train"))
        assert not tested & trained
    assert len(decoded) == (N if n == 3 else 2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("modality", ["eeg", "fmri"])
def test_the_command_that_check_prints_runs_from_raw_files_to_the_report(example, command, tmp_path, modality):
    raw, settings = example(modality)
    code, printed = command("check", "study=arrays", f"raw={raw}", *settings.split(), "name=mine")
    assert code == 0, printed
    words = shlex.split(printed.rsplit("up to the report:\n", 1)[1])[1:]
    words = [word for word in words if not word.startswith(("paths.outputs=", "trainer.max_epochs="))]
    code, printed = command(*words, "trainer.max_epochs=2", "captioner=[nearest_caption]")
    assert code == 0, printed
    assert "prepare arrays: finished already" in printed
    outputs = tmp_path / "outputs"
    deep = {"eeg": "eeg_atm", "fmri": "fmri_mindbridge"}[modality]
    summary = check_chain(outputs, members=[f"mine/{deep}", f"mine/{modality}_ridge"], space="clip")
    pictures = pd.DataFrame([r for r in summary["records"] if r["of"] == "images" and r["condition"] == "decoded"])
    assert {"two_way", "pixcorr", "ssim"} <= set(pictures["metric"])
    assert set(pictures["generator"]) >= {"kandinsky", "nearest_training_image", "pixels"}
    assert (pictures.loc[pictures["decoder"] != "stimuli", "n"] == N).all()
    assert (outputs / "scores" / "mine" / "grid.png").exists()
