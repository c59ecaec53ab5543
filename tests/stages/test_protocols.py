"""In-subject and leave-one-subject-out as commands: folds over subjects, merged predictions, adapting a fold."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.decoders.deep import DeepDecoder

pytestmark = pytest.mark.slow

STUDY = ["study.n_subjects=3", "study.n_train=40", "study.n_val=16", "study.n_sessions=1", "study.snr=6",
         "study.repetitions={train:1,val:1,test:3}", "data.min_trials=5", "space=[attributes]",
         "headline.space=attributes"]
ATM = [*STUDY, "head=[attributes_linear]", "trainer.max_epochs=2", "trainer.batch_size=16", "trainer.schedule=none"]
SUBJECTS = ("sub-01", "sub-02", "sub-03")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the results folder of this module's tests."""
    return tmp_path_factory.mktemp("shared") / "outputs"


@pytest.fixture
def call(command, shared):
    """Return `command` on the shared results, with a run of ATM that leaves one subject out trained."""

    def run(script, *arguments):
        return command(script, *arguments, f"paths.outputs={shared}")

    if not (shared / "train" / "out" / "fold-2_seed-0" / "manifest.json").exists():
        for script in ("prepare", "embed", "train"):
            code, printed = run(script, "experiment=scenes_eeg/protocols/atm_leave_one_subject_out", *ATM, "name=out")
            assert code == 0, printed
    return run


def folds(shared, name):
    return [shared / "train" / name / f"fold-{k}_seed-0" for k in range(3)]


def manifests(shared, name):
    return [json.loads((fold / "manifest.json").read_text()) for fold in folds(shared, name)]


def weights(fold):
    return torch.load(fold / "best.ckpt", weights_only=True)["state_dict"]


def test_every_subject_is_decoded_by_the_fold_that_left_it_out(call, shared):
    for manifest, subject in zip(manifests(shared, "out"), SUBJECTS, strict=True):
        assert manifest["subjects"] == [s for s in SUBJECTS if s != subject]
        assert manifest["unseen"] == {subject: "statistics of its signals from its own recordings of training stimuli, "
                                               "without labels"}
    for script in ("predict", "repetitions", "evaluate"):
        code, printed = call(script, f"run={shared / 'train' / 'out'}", "repetition_curve.counts=[1,3]")
        assert code == 0, printed
    for condition in ("decoded", "noise", "shuffled", "mean", "true"):
        rows = pd.read_parquet(shared / "predictions" / "out" / condition / "rows.parquet")
        assert rows.groupby("subject")["run"].unique().map(list).to_dict() == dict(zip(SUBJECTS, [[0], [1], [2]],
                                                                                       strict=True))
        assert not rows.duplicated(["subject", "stimulus_id"]).any()
        assert set(rows["n_averaged"]) == {3}
    scores = pd.read_parquet(shared / "scores" / "out" / "scores.parquet")
    decoded = scores[(scores["decoder"] == "atm") & (scores["condition"] == "decoded")]
    assert set(decoded["subject"]) == set(SUBJECTS)
    assert set(decoded.loc[decoded["metric"] == "top1", "gallery"]) == {200}
    ranks = pd.read_parquet(shared / "repetitions" / "out" / "ranks.parquet")
    assert ranks.groupby("subject")["run"].unique().map(list).to_dict() == {"sub-01": [0], "sub-02": [1], "sub-03": [2]}
    assert sorted(set(ranks["repetitions"])) == [1, 3]
    all_repetitions = ranks[ranks["repetitions"] == 3].set_index(["subject", "stimulus_id"])["rank"]
    top1 = decoded[(decoded["metric"] == "top1") & (decoded["direction"] == "image_from_brain")
                   & (decoded["space"] == "attributes")].set_index(["subject", "stimulus_id"])["value"]
    assert ((all_repetitions == 1) == (top1 == 1)).all(), "both stages rank alike"
    page = (shared / "scores" / "out" / "report.html").read_text()
    assert "Leave one subject out: each subject is decoded by a model that was trained on all others" in page


def test_a_killed_fold_goes_on_and_finished_ones_are_left_alone(call, shared, monkeypatch):
    fresh = ["experiment=scenes_eeg/protocols/atm_leave_one_subject_out", *ATM, "name=killed"]
    save, saved = DeepDecoder.save, []

    def dies(decoder, folder):
        saved.append(folder)
        if len(saved) == 2:
            raise KeyboardInterrupt
        save(decoder, folder)

    monkeypatch.setattr(DeepDecoder, "save", dies)
    assert call("train", *fresh)[0] == 130  # 128 and the number of SIGINT
    first = folds(shared, "killed")[0]
    when = (first / "manifest.json").stat().st_mtime_ns
    code, printed = call("predict", "name=killed", f"run={shared / 'train' / 'killed'}")
    assert code == 1
    assert "expected 3 trained folds, got" in printed or "expected a finished" in printed, printed
    assert call("train", *fresh)[0] == 0
    assert (first / "manifest.json").stat().st_mtime_ns == when
    for once, twice in zip(folds(shared, "out"), folds(shared, "killed"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights(once).values(), weights(twice).values(), strict=True))


@pytest.mark.parametrize("mode", ["adapter", "full"])
def test_adapting_takes_the_fold_that_left_the_subject_out(call, shared, mode):
    code, printed = call("adapt", f"run={shared / 'train' / 'out'}", "subject=sub-02", "trials=20", f"mode={mode}",
                         "steps=4", f"name={mode}", "trainer.lr=0.01")
    assert code == 0, printed
    found = sorted(path.name for path in (shared / "train" / mode).glob("fold-*"))
    assert found == ["fold-1_seed-0"]
    manifest = json.loads((shared / "train" / mode / found[0] / "manifest.json").read_text())
    assert manifest["adapted"]["subjects"] == ["sub-01", "sub-03"]
    assert manifest["config"]["split"]["kind"] == "study"
    before, after = weights(folds(shared, "out")[1]), weights(shared / "train" / mode / found[0])
    moved = {name for name, value in after.items() if name in before and not torch.equal(value, before[name])}
    if mode == "adapter":
        assert manifest["adapted"]["trained"] == ["adapter.tokens.sub-02"]
        assert not moved
    else:
        assert "encoder.projection.0.weight" in moved
    code, printed = call("predict", f"run={shared / 'train' / mode}")
    assert code == 0, printed
    rows = pd.read_parquet(shared / "predictions" / mode / "decoded" / "rows.parquet")
    assert set(rows["subject"]) == {"sub-02"}


def test_in_subject_merges_models_that_know_nobody_else(call, shared):
    ridge = ["experiment=scenes_eeg/protocols/ridge_in_subject", *STUDY, "decoder.alphas=0.1"]
    for script in ("train", "predict"):
        code, printed = call(script, *ridge, "name=alone")
        assert code == 0, printed
        code, printed = call(script, *ridge, "name=together", "split.kind=study")
        assert code == 0, printed
    assert [m["subjects"] for m in manifests(shared, "alone")] == [["sub-01"], ["sub-02"], ["sub-03"]]
    rows, found = [], []
    for name in ("alone", "together"):
        folder = shared / "predictions" / name / "decoded"
        rows.append(pd.read_parquet(folder / "rows.parquet")[["subject", "stimulus_id"]])
        found.append(np.load(folder / "attributes.npy"))
    pd.testing.assert_frame_equal(*rows)
    # one ridge a subject knows nobody else either; other batches, which float16 may round otherwise
    np.testing.assert_allclose(*found, rtol=2e-3, atol=1e-5)


def test_messages(call, shared):
    ridge = ["experiment=scenes_eeg/protocols/ridge_leave_one_subject_out", *STUDY]
    code, printed = call("train", *ridge, "name=own", "decoder.pooled=false")
    assert code == 1
    assert "ridge: expected a subject that it was fitted on, ['sub-02', 'sub-03'], got 'sub-01'" in printed
    code, printed = call("train", *ridge, "name=one", "data.subjects=[sub-02]")
    assert code == 1
    assert "expected two subjects or more for split.kind=leave_one_subject_out, got ['sub-02']" in printed
    code, printed = call("time_course", f"run={shared / 'train' / 'out'}")
    assert code == 1
    assert "expected one model for all subjects, got 3 folds of one subject each" in printed
    code, printed = call("repetitions", f"run={shared / 'train' / 'out'}", "name=many", "repetition_curve.counts=[1,9]")
    assert code == 1
    assert "repetition_curve.counts: expected numbers of 1 to 3 repetitions" in printed
