"""A prior trained jointly with the decoder, from training to the predictions that reconstructors read."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from brain2img.artifacts import Predictions
from brain2img.data.prepared import PreparedStudy
from brain2img.stages.apply_prior import conditioned, row_generators
from brain2img.stages.fit_prior import fit_prior
from brain2img.stages.predict import predict
from brain2img.stages.runs import fold_runs
from brain2img.stages.train import train_fold
from brain2img.stages.workspace import outputs, training_config

SETTINGS = [
    "name=toy", "space=[]", "conditions=[decoded,shuffled,mean]", "head=[clip_backbone]", "prior=mindeye", "seed=5",
    "head.clip_backbone.space=code", "adapter=mindeye1", "encoder.width=16", "encoder.n_blocks=1",
    "prior.network.depth=1", "prior.network.heads=2", "prior.network.head_width=4", "trainer.max_epochs=3",
    "trainer.batch_size=32", "prior_fit.source=joint", "prior_fit.spaces=[code]", "batch_size=7"]


@pytest.fixture
def joint_run(toy, composed):
    """Return a function that trains a small decoder on the toy study and returns the configuration."""

    def make(*, head: str = "clip_backbone"):
        cfg = composed("fit_prior", *(s.replace("clip_backbone", head) for s in SETTINGS))
        data = toy()
        folder = data.study.folder
        (folder / "manifest.json").write_text(json.dumps({"id": "toy", "seconds": 0}))
        train_fold(outputs(cfg) / "train" / "toy" / "fold-0_seed-5", config=training_config(cfg),
                   prepared=PreparedStudy(folder), found=data.targets, root=outputs(cfg), overwrite=False,
                   description="train toy", place={"fold": 0, "split_seed": 0, "decoder_seed": 5},
                   facts={"name": "toy", "label": "toy", "n_fold_runs": 1, "study": {}, "study_name": "toy",
                          "later": {}})
        return cfg

    return make


def test_predictions_go_through_the_prior_of_the_run(joint_run):
    cfg = joint_run()
    predict(cfg)
    place = fit_prior(cfg)
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["source"] == "training trials, jointly with the decoder"
    assert manifest["config"]["source"] == "joint"
    line = manifest["validation"][0]
    assert (line["n_fitted"], line["n_stimuli"], line["n_rows"]) == (0, 10, 20)
    (run,) = fold_runs(cfg)
    prior = run.decoder(run.data()).joint_priors()["code"]
    decoded = Predictions(outputs(cfg) / "predictions" / "toy" / "decoded")
    made = conditioned(cfg, "decoded")
    assert made.manifest["prior"] == manifest["source"]
    rows = np.arange(len(decoded.rows))
    expected = prior.sample(decoded.embeddings("code", rows), generators=row_generators(cfg.seed, rows))
    np.testing.assert_allclose(made.embeddings("code", rows), expected, atol=1e-4)
    assert conditioned(cfg, "mean").folder.name == "mean"
    # the stimuli that scored it are validation ones, decoded by the run itself
    scored = Predictions(outputs(cfg) / "predictions" / "toy" / "joint").rows
    assert set(pd.Series(scored["stimulus_id"]).str.split("-").str[0]) == {"val"}


@pytest.mark.parametrize(("head", "afterwards", "message"), [
    ("clip_linear", (),
     r"prior_fit.source=joint: expected a run whose decoder trained a prior for \['code'\], got one"),
    ("clip_backbone", ("prior.condition_dropout=0.5",), "expected one of these settings, got one of others"),
    ("clip_backbone", ("prior_fit.per_subject=true",), "prior_fit.per_subject: expected one prior for all subjects"),
])
def test_what_does_not_fit_the_run_is_refused(joint_run, composed, head, afterwards, message):
    joint_run(head=head)
    with pytest.raises(ValueError, match=message):
        fit_prior(composed("fit_prior", *SETTINGS, *afterwards))
