"""Adapting a trained run to a new subject, and the sweep over amounts of its data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import brain2img.data.paired as paired
from brain2img.stages.adapt import in_steps

STUDY = ["experiment=demo/fmri_mindbridge", "study.n_subjects=3", "study.n_train=60", "study.n_val=20",
         "study.recording.n_voxels=60", "study.snr=4", "study.repetitions={train:1,val:1,test:1}"]
SMALL = [*STUDY, "space=[attributes]", "space@metric_space=[]", "metric=[retrieval]", "head=[attributes_linear]",
         "headline.space=attributes", "adapter.pool_size=32", "adapter.bottleneck=4", "encoder.width=16",
         "trainer.max_epochs=2", "trainer.batch_size=16", "split.prior_fraction=0", "captioner=[]",
         "reconstructor=[]"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the results folder of this module's tests."""
    return tmp_path_factory.mktemp("shared") / "outputs"


@pytest.fixture
def call(command, shared):
    """Return `command` on the shared results, with a small run of two of three subjects trained."""

    def run(script, *arguments):
        return command(script, *arguments, f"paths.outputs={shared}")

    if not (shared / "train" / "two").exists():
        for script in ("prepare", "embed", "train"):
            code, printed = run(script, *SMALL, "name=two", "data.subjects=[sub-01,sub-02]")
            assert code == 0, printed
    return run


def fold(shared, name):
    return shared / "train" / name / "fold-0_seed-0"


def weights(shared, name):
    return torch.load(fold(shared, name) / "best.ckpt", weights_only=True)["state_dict"]


def manifest(shared, name):
    return json.loads((fold(shared, name) / "manifest.json").read_text())


def test_a_new_subject_becomes_a_run_that_later_stages_take(call, shared):
    run = f"run={shared / 'train' / 'two'}"
    code, printed = call("adapt", run, "subject=sub-03", "trials=24", "steps=6")
    assert code == 0, printed
    name = "two_sub-03_reset_24"
    before, after, facts = weights(shared, "two"), weights(shared, name), manifest(shared, name)
    told = facts["adapted"]
    assert set(told["trained"]) == set(told["fresh"]) == {k for k in after if ".sub-03." in k}
    frozen = set(after) - set(told["trained"])
    assert set(told["frozen"]) <= frozen
    assert all(torch.equal(after[k], before[k]) for k in frozen)
    assert told["source_subjects"] == ["sub-01", "sub-02"]
    assert told["n_trained"] == sum(after[k].numel() for k in told["trained"])
    columns = (fold(shared, name) / "logs" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/adapter/cycle" in columns
    used = pd.read_parquet(fold(shared, name) / "trials.parquet")
    assert len(used) == told["trials"]["n"] == 24
    assert set(used["stimulus_id"].str.split("-").str[0]) == {"train"}
    assert all(facts["splits"][s] == manifest(shared, "two")["splits"][s] for s in ("val", "test"))
    assert facts["config"]["trainer"]["max_epochs"] == 6, "a batch of 16 of 24 trials is an epoch"

    code, printed = call("predict", f"run={shared / 'train' / name}")
    assert code == 0, printed
    rows = pd.read_parquet(shared / "predictions" / name / "decoded" / "rows.parquet")
    assert set(rows["subject"]) == {"sub-03"}
    code, printed = call("evaluate", f"run={shared / 'train' / name}")
    assert code == 0, printed
    assert "mindbridge_adapted" in (shared / "scores" / name / "summary.json").read_text()

    assert "finished already" in call("adapt", run, "subject=sub-03", "trials=24", "steps=6")[1]
    code, printed = call("adapt", run, "subject=sub-03", "trials=24", "steps=9")
    assert code == 1
    assert "trainer.max_epochs: 6 there, 9 asked for" in printed


def test_full_tuning_moves_the_trunk_and_one_setting_keeps_the_others_of_the_run(call, shared):
    code, printed = call("adapt", f"run={shared / 'train' / 'two'}", "subject=sub-03", "mode=full", "name=full",
                         "trainer.lr=0.01")
    assert code == 0, printed
    facts = manifest(shared, "full")
    assert facts["adapted"]["frozen"] == facts["adapted"]["source_subjects"] == []
    before, after = weights(shared, "two"), weights(shared, "full")
    assert not torch.equal(after["encoder.mlp.0.0.weight"], before["encoder.mlp.0.0.weight"])
    assert facts["config"]["trainer"] == {**manifest(shared, "two")["config"]["trainer"], "lr": 0.01}


def test_killed_and_started_again_it_ends_with_the_same_bits(call, shared, monkeypatch):
    settings = [f"run={shared / 'train' / 'two'}", "subject=sub-03", "trials=32", "trainer.max_epochs=3"]
    assert call("adapt", *settings, "name=alone")[0] == 0
    left, read = [3], paired._PairedTrials.__getitem__

    def until_killed(self, chosen):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("killed here")
        return read(self, chosen)

    with monkeypatch.context() as patched:
        patched.setattr(paired._PairedTrials, "__getitem__", until_killed)
        assert call("adapt", *settings, "name=killed")[0] == 1
    assert (fold(shared, "killed") / "last.ckpt").exists()
    assert not (fold(shared, "killed") / "manifest.json").exists()
    code, printed = call("adapt", *settings, "name=killed")
    assert code == 0, printed
    assert "going on after epoch 1" in printed
    alone, killed = weights(shared, "alone"), weights(shared, "killed")
    assert alone.keys() == killed.keys()
    assert all(torch.equal(alone[k], killed[k]) for k in alone)


@pytest.mark.parametrize(("arguments", "message"), [
    (["subject=sub-09"], "subject: expected one of study scenes_fmri, ['sub-01', 'sub-02', 'sub-03'], got 'sub-09'"),
    ([], "subject: expected one of study scenes_fmri, ['sub-01', 'sub-02', 'sub-03'], got None"),
    (["subject=sub-01"], "subject 'sub-01': expected one that the run does not know, got one it was trained with"),
    (["subject=sub-03", "trials=61"], "expected at least the 61 training trials asked for, got 60"),
    (["subject=sub-03", "trials=lots"], "trials: expected a number above 0, a time such as 30min or 1.5h"),
    (["subject=sub-03", "mode=half"], "mode: expected one of ('reset', 'adapter', 'full'), got 'half'"),
    (["subject=sub-03", "steps=0"], "steps: expected 1 or more"),
    (["subject=sub-03", "source_subjects=[sub-07]"], "source_subjects: expected some of the run's ['sub-01',"),
])
def test_what_cannot_be_adapted_is_refused(call, shared, arguments, message):
    code, printed = call("adapt", f"run={shared / 'train' / 'two'}", *arguments, "name=refused")
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed
    assert not (fold(shared, "refused") / "manifest.json").exists()


def test_a_known_subject_with_other_voxels_is_refused(call, shared):
    other = [o.replace("n_voxels=60", "n_voxels=80") for o in SMALL]
    assert call("prepare", *other)[0] == 0
    code, printed = call("adapt", *other, f"run={shared / 'train' / 'two'}", "subject=sub-01", "name=other")
    assert code == 1
    assert "subject 'sub-01': expected one that the run does not know, got one it was trained with, there with other " \
        "signals (" in printed
    assert "channels in training, " in printed
    # a new subject of that study is none of the run's: its own embeddings are looked up by weights and stimuli
    code, printed = call("adapt", *other, f"run={shared / 'train' / 'two'}", "subject=sub-03", "name=elsewhere",
                         "trials=20", "trainer.max_epochs=1")
    assert code == 0, printed
    assert manifest(shared, "elsewhere")["paths"]["prepared"] != manifest(shared, "two")["paths"]["prepared"]


def test_runs_that_share_nothing_and_missing_runs_are_refused(call, shared):
    assert call("train", *SMALL, "decoder=ridge", "name=linear", "data.subjects=[sub-01]")[0] == 0
    code, printed = call("adapt", f"run={shared / 'train' / 'linear'}", "subject=sub-03")
    assert code == 1
    assert "expected a deep decoder, which shares weights between subjects, got Ridge." in printed
    code, printed = call("adapt", "subject=sub-03")
    assert code == 1
    assert "run: expected a trained run to adapt, got none" in printed


def test_a_sweep_compares_both_models_on_the_same_trials(call, shared):
    settings = [f"run={shared / 'train' / 'two'}", "subject=sub-03", "trials=[12,48]", "steps=60", "name=curve",
                "trainer.lr=0.003", "n_draws=2"]
    code, printed = call("sweep", *settings)
    assert code == 0, printed
    folder = shared / "sweeps" / "curve"
    for amount in (12, 48):
        for draw in (0, 1):
            adapted, dedicated = (f"curve/{model}_{amount}_draw-{draw}" for model in ("adapted", "dedicated"))
            assert manifest(shared, adapted)["splits"] == manifest(shared, dedicated)["splits"]
            assert not torch.equal(weights(shared, adapted)["encoder.mlp.0.0.weight"],
                                   weights(shared, dedicated)["encoder.mlp.0.0.weight"])
    ranks, table = (pd.read_parquet(folder / f"{name}.parquet") for name in ("ranks", "sweep"))
    assert len(ranks) == 2 * 2 * 2 * 200
    for line in table[table["metric"] == "top5"].itertuples():
        mine = ranks[(ranks["model"] == line.model) & (ranks["trials"] == line.trials)]
        assert line.value == np.mean(mine["rank"] <= 5)
        assert line.low <= line.value <= line.high
        assert line.chance == 5 / 200
        assert line.minutes == line.trials * 4 / 60
    top5 = table[table["metric"] == "top5"].set_index(["model", "trials"])
    change = pd.read_parquet(folder / "differences.parquet").set_index(["metric", "trials"])
    expected = top5.loc[("adapted", 12), "value"] - top5.loc[("dedicated", 12), "value"]
    assert change.loc[("top5", 12), "difference"] == pytest.approx(expected)
    page = (folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert f"{100 * table.set_index(['metric', 'model', 'trials']).loc[('top1', 'adapted', 48), 'value']:.1f}".rstrip(
        "0").rstrip(".") in page
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    code, printed = call("sweep", *settings)
    assert code == 0
    assert printed.count("finished already") == 4
    code, printed = call("sweep", *settings[:2], "trials=[12,12]")
    assert code == 1
    assert "trials: expected a list of different amounts, got [12, 12]" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_with_little_data_an_adapted_model_finds_more_of_the_planted_signal(call, shared):
    larger = {"n_train=60": "n_train=600", "n_voxels=60": "n_voxels=200", "width=16": "width=128",
              "pool_size=32": "pool_size=256", "max_epochs=2": "max_epochs=15"}
    planted = SMALL
    for small, large in larger.items():
        planted = [o.replace(small, large) for o in planted]
    for script in ("prepare", "embed", "train"):
        code, printed = call(script, *planted, "name=planted", "data.subjects=[sub-01,sub-02]")
        assert code == 0, printed
    code, printed = call("sweep", f"run={shared / 'train' / 'planted'}", "subject=sub-03", "trials=[60,600]",
                         "steps=300", "trainer.lr=0.001", "name=little")
    assert code == 0, printed
    table = pd.read_parquet(shared / "sweeps" / "little" / "sweep.parquet").set_index(["metric", "model", "trials"])
    change = pd.read_parquet(shared / "sweeps" / "little" / "differences.parquet").set_index(["metric", "trials"])
    for model in ("adapted", "dedicated"):
        assert table.loc[("top5", model, 600), "low"] > 4 * 5 / 200, "the planted signal is found"
    assert change.loc[("top5", 60), "low"] > 0, "adapted above dedicated with few trials"


@pytest.mark.parametrize(("changes", "epochs"), [({}, 10), ({"accumulate": 2}, 15), ({"batch_size": 1000}, 30)])
def test_steps_are_optimizer_steps(changes, epochs):
    # 50 trials make 3 whole batches of 16: 3 steps, or 2 where two batches make one, the last step of the epoch of one
    trainer = in_steps({"batch_size": 16, "patience": 3, **changes}, n_trials=50, steps=30)
    assert trainer["max_epochs"] == epochs
    assert trainer["patience"] is None
