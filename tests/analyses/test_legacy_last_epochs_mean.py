"""The mean of the last epochs of old tables: equal to a plain evaluation of each kept checkpoint, off by default."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from brain2img.analyses.legacy_last_epochs_mean import legacy_last_epochs_mean
from brain2img.stages.embed import embed
from brain2img.stages.evaluate import evaluate
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.runs import fold_runs
from brain2img.stages.train import train

SMALL = ["experiment=demo/fmri_mindbridge", "study.n_subjects=2", "study.n_train=48", "study.n_val=16",
         "study.recording.n_voxels=60", "study.snr=4", "study.repetitions={train:1,val:1,test:2}", "space=[attributes]",
         "space@metric_space=[]", "metric=[retrieval]", "head=[attributes_linear]", "headline.space=attributes",
         "adapter.pool_size=32", "adapter.bottleneck=4", "encoder.width=16", "trainer.max_epochs=4", "captioner=[]",
         "trainer.batch_size=16", "trainer.accelerator=cpu", "split.prior_fraction=0", "reconstructor=[]"]
NAME = "legacy_last_epochs_mean"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the results folder of this module's tests."""
    return tmp_path_factory.mktemp("shared") / "outputs"


@pytest.fixture
def trained(composed, shared):
    """Return a function that gives the configuration of a run, prepared, embedded and trained."""

    def make(*overrides):
        cfg = composed(NAME, *SMALL, f"paths.outputs={shared}", *overrides)
        for stage in (prepare, embed, train):
            stage(cfg)
        return cfg

    return make


def of_epoch(run, epoch):
    """Return top-1 and top-5 of each subject in percent, by hand."""
    data = run.data()
    module = run.decoder(data).module.eval()
    weights = torch.load(run.folder / "epochs" / f"epoch-{epoch:04d}.ckpt", weights_only=True)["state_dict"]
    module.load_state_dict(weights)
    found = {}
    for subject, group in data.items("test").groupby("subject"):
        x = torch.from_numpy(np.stack([data.signals(subject, [[i] for i in ids]).mean(axis=0)
                                       for ids in group["trial_ids"]]))
        features = module.adapter(x, subject)
        decoded = module.heads["attributes_linear"](module.encoder(features), {})
        true = torch.from_numpy(data.target("attributes", group["stimulus_id"].tolist()))
        scores = F.cosine_similarity(decoded[:, None], true[None], dim=2).detach()
        place = (scores > scores.diagonal()[:, None]).sum(dim=1)
        found[subject] = [(place < k).double().mean().item() for k in (1, 5)]
    return found


def test_it_is_the_mean_over_the_kept_epochs_and_nothing_takes_it_for_a_result(trained, shared):
    cfg = trained("+trainer.keep_last=3", "last_epochs=3", "name=kept")
    folder = legacy_last_epochs_mean(cfg)
    assert folder == shared / NAME / "kept"
    run = fold_runs(cfg)[0]
    assert sorted(p.name for p in (run.folder / "epochs").iterdir()) == [f"epoch-000{i}.ckpt" for i in (1, 2, 3)]
    epochs = [of_epoch(run, epoch) for epoch in (1, 2, 3)]
    assert epochs[0] != epochs[2], "the epochs differ"
    table = pd.read_parquet(folder / f"{NAME}.parquet")
    assert table["metric"].unique().tolist() == [f"{NAME}_top1", f"{NAME}_top5"]
    assert set(table["epochs"]) == {3}
    assert set(table["repetitions"]) == {2}
    for number, k in enumerate((1, 5)):
        mine = table[table["metric"] == f"{NAME}_top{k}"].set_index("subject")
        assert set(mine["chance"]) == {k / 200}
        for subject in ("sub-01", "sub-02"):
            expected = np.mean([epoch[subject][number] for epoch in epochs])
            assert mine.loc[subject, "value"] == pytest.approx(expected, abs=1e-9)
            assert mine.loc[subject, "low"] <= expected <= mine.loc[subject, "high"]
    ranks = pd.read_parquet(folder / "ranks.parquet")
    assert ranks.groupby(["epoch", "subject"]).size().to_dict() == {(e, f"sub-0{s}"): 200 for e in (1, 2, 3)
                                                                   for s in (1, 2)}
    assert legacy_last_epochs_mean(cfg) == folder  # finished
    # what is reported of the run is the epoch that validation chose
    cfg.conditions = ["decoded"]
    predict(cfg)
    records = json.loads((evaluate(cfg) / "summary.json").read_text())["records"]
    assert {"top1", "top5"} <= {record["metric"] for record in records}
    assert not any("last_epochs" in str(value) for record in records for value in record.values())


def test_runs_that_did_not_keep_their_epochs_are_refused(trained):
    cfg = trained("name=plain")
    assert not (fold_runs(cfg)[0].folder / "epochs").exists(), "off by default"
    with pytest.raises(ValueError, match=r"expected the weights of its last 10 epochs, got those of 0\. Train it with "
                                         r"trainer=atm_last_epochs or \+trainer\.keep_last=10"):
        legacy_last_epochs_mean(cfg)
    cfg.last_epochs = 0
    with pytest.raises(ValueError, match="last_epochs: expected 1 or more, got 0"):
        legacy_last_epochs_mean(cfg)
    linear = trained("decoder=ridge", "name=linear")
    with pytest.raises(ValueError, match=r"expected a deep decoder, which is trained in epochs, got .*evaluate\.py"):
        legacy_last_epochs_mean(linear)


def test_atm_can_be_trained_for_it(composed):
    published = composed("train", "experiment=published/atm_s_sub08")
    assert "keep_last" not in published.trainer
    asked = composed("train", "experiment=published/atm_s_sub08", "trainer=atm_last_epochs")
    assert dict(asked.trainer) == {**published.trainer, "keep_last": 10}
