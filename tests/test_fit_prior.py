"""The stage that fits priors: what it is fitted on, what it writes, and what later stages then read."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest

from brain2img.artifacts import Predictions
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import Split, at_most, averaged
from brain2img.priors.affine import Affine
from brain2img.stages.apply_prior import conditioned, row_generators
from brain2img.stages.fit_prior import fit_prior
from brain2img.stages.held_out import prior_predictions
from brain2img.stages.predict import predict
from brain2img.stages.runs import fold_runs
from brain2img.stages.train import train_fold
from brain2img.stages.workspace import outputs, training_config

SETTINGS = ["name=toy", "decoder=ridge", "decoder.cv=2", "space=[]", "head=[]", "prior_fit.spaces=[code]",
            "prior_fit.folds=3", "prior_fit.holdout=0.2", "conditions=[decoded,noise,shuffled,mean,'true']"]
DIFFUSION = ["prior=diffusion", "prior.network.hidden=[16,8]", "prior.network.time_width=16", "prior.training.steps=20",
             "prior.training.batch_size=16", "prior.training.checkpoint_every=5", "batch_size=7"]


@pytest.fixture
def toy_run(toy, composed):
    """Return a function that trains ridge on the toy study, 13 training concepts, and returns the configuration."""

    def make(*overrides: str, concepts: str = "own") -> object:
        cfg = composed("fit_prior", *SETTINGS, *overrides)
        data = toy(snr=0.3)
        folder = data.study.folder
        (folder / "manifest.json").write_text(json.dumps({"id": "toy", "seconds": 0}))
        stimuli = pd.read_parquet(folder / "stimuli.parquet")
        number = [int(s.split("-")[1]) % 13 for s in stimuli["stimulus_id"]]
        split = stimuli["stimulus_id"].str.split("-").str[0] if concepts == "own" else "any"
        stimuli.assign(concept=[f"{s} {n}" for s, n in zip(
            split if concepts == "own" else [split] * len(number), number, strict=True)]).to_parquet(
                folder / "stimuli.parquet", index=False)
        run = outputs(cfg) / "train" / "toy"
        train_fold(run / "fold-0_seed-0", config=training_config(cfg), prepared=PreparedStudy(folder),
                   found=data.targets, root=outputs(cfg), overwrite=False, description="train toy",
                   place={"fold": 0, "split_seed": 0, "decoder_seed": 0},
                   facts={"name": "toy", "label": "ridge", "n_fold_runs": 1, "study": {}, "study_name": "toy",
                          "later": {}})
        return cfg

    return make


def held_out_splits(cfg):
    """Return the trials of every out-of-fold training with their splits and concepts."""
    from brain2img.stages.runs import FoldRun

    folders = sorted((outputs(cfg) / "train" / "toy" / "out_of_fold" / "fold-0_seed-0").glob("part-*"))
    found = []
    for folder in folders:
        data = FoldRun(folder, outputs(cfg)).data()
        concept = data.study.stimulus_table.set_index("stimulus_id")["concept"]
        found.append(data.trials.assign(concept=data.trials["stimulus_id"].map(concept)))
    return found


def test_out_of_fold_predictions_hold_every_training_stimulus_once_and_no_other(toy_run):
    cfg = toy_run("prior=affine")
    predictions = prior_predictions(cfg, fold_runs(cfg))
    assert predictions.folder == outputs(cfg) / "predictions" / "toy" / "out_of_fold"
    rows = predictions.rows
    assert set(rows["stimulus_id"]) == {f"train-{i:03d}" for i in range(40)}
    assert not rows.duplicated(["subject", "stimulus_id"]).any()
    assert len(rows) == 80
    for part, trials in enumerate(held_out_splits(cfg)):
        of = {name: group for name, group in trials.groupby("split")}
        mine = rows[rows["decoder"] == part]
        assert set(mine["stimulus_id"]) == set(of["held_out"]["stimulus_id"])
        assert not set(of["held_out"]["concept"]) & set(of["train"]["concept"]), "held-out concepts are new"
        assert set(of["val"]["stimulus_id"]) == {f"val-{i:03d}" for i in range(40, 50)}
        assert set(of["test"]["stimulus_id"]) == {f"test-{i:03d}" for i in range(50, 60)}


def test_each_prediction_comes_from_the_decoder_that_has_not_seen_it(toy_run):
    """A decoder's error on what it was trained on is smaller; the run itself has seen them all."""
    cfg = toy_run("prior=affine")
    unseen = prior_predictions(cfg, fold_runs(cfg))
    cfg.prior_fit.source = "training"
    seen = prior_predictions(cfg, fold_runs(cfg))
    keys = ["subject", "stimulus_id"]
    true = fold_runs(cfg)[0].data().targets["code"]
    errors = []
    for predictions in (unseen, seen):
        rows = predictions.rows.sort_values(keys)
        wanted = true.array[true.rows(rows["stimulus_id"].tolist())]
        errors.append(np.linalg.norm(predictions.embeddings("code", rows.index.to_numpy()) - wanted, axis=1).mean())
    assert errors[0] > 1.02 * errors[1]


def test_where_test_concepts_are_trained_on_only_stimuli_are_held_out(toy_run):
    cfg = toy_run("prior=affine", concepts="shared")
    prior_predictions(cfg, fold_runs(cfg))
    for trials in held_out_splits(cfg):
        of = {name: group for name, group in trials.groupby("split")}
        assert not set(of["held_out"]["stimulus_id"]) & set(of["train"]["stimulus_id"])
        assert set(of["held_out"]["concept"]) & set(of["train"]["concept"])


def test_the_part_of_validation_for_the_prior_is_kept_from_early_stopping(toy_run, caplog):
    cfg = toy_run("prior=affine", "prior_fit.source=validation", "split.prior_fraction=0.5")
    run = fold_runs(cfg)[0]
    data, rows = run.data(), prior_predictions(cfg, [run]).rows
    seen = {s for batch in data.eval_loader("val") for s in batch.stimulus_ids}
    assert set(rows["stimulus_id"]) | seen == {f"val-{i:03d}" for i in range(40, 50)}
    assert len(set(rows["stimulus_id"])) == 5
    assert not set(rows["stimulus_id"]) & seen
    assert "average 2 repetitions a stimulus, those of the test 4" in caplog.text


def test_a_run_without_such_a_part_is_told_how(toy_run):
    cfg = toy_run("prior=affine", "prior_fit.source=validation")
    with pytest.raises(ValueError, match=r"got one with split.prior_fraction=0 .*Train it with split.prior_f"):
        fit_prior(cfg)


@pytest.mark.parametrize(("override", "message"), [
    ("prior_fit.source=guess", r"prior_fit.source: expected one of .*, got 'guess'"),
    ("prior_fit.repetitions=0", r"prior_fit.repetitions: expected match, all or a number, got 0"),
    ("prior_fit.spaces=[clip]", r"prior_fit.spaces: expected spaces of \['code'\], got \['clip'\]"),
    ("prior_fit.folds=50", r"expected 2 to 13 parts of the training stimuli, .* got 50. Correct prior_fit.folds"),
    ("prior_fit.holdout=1", r"prior_fit.holdout: expected a share from 0 to below 1, got 1"),
    ("prior_fit.folds=3", r"prior: expected one to fit, got none. Choose prior=affine or prior=diffusion"),
])
def test_what_cannot_be_is_refused(toy_run, override, message):
    cfg = toy_run(*(["prior=affine"] if "got none" not in message else []), override)
    with pytest.raises(ValueError, match=message):
        fit_prior(cfg)


def test_splits_refuse_what_leaves_nothing():
    trials = pd.DataFrame({"subject": "a", "stimulus_id": list("abcd"), "split": ["train"] * 3 + ["test"]})
    with pytest.raises(ValueError, match=r"expected validation stimuli, of which split.prior_fraction=0.5 .* got none"):
        Split(prior_fraction=0.5).assign(trials, what="study x")
    with pytest.raises(ValueError, match=r"split.prior_fraction: expected a share between 0 and 1, got 2"):
        Split(prior_fraction=2)
    alone = trials.assign(subject=["a", "b", "b", "a"])
    part = next(i for i in range(3) if Split(held_out=(i, 3)).assign(trials, what="x")[0] == "held_out")
    with pytest.raises(ValueError, match=r"got none of subject 'a'. Raise prior_fit.folds"):
        Split(held_out=(part, 3)).assign(alone, what="study x")


def test_at_most_so_many_repetitions_are_averaged():
    trials = pd.DataFrame({"subject": "a", "stimulus_id": list("aaabb"), "row": range(5)})
    items = at_most(averaged(trials), 2, seed=0)
    assert items["n_averaged"].tolist() == [2, 2]
    assert set(items["trial_ids"][0]) < {0, 1, 2}
    assert items["trial_ids"][1] == [3, 4]


def test_the_prior_is_the_one_fitted_on_these_predictions(toy_run, tmp_path):
    cfg = toy_run("prior=affine", "prior_fit.holdout=0")
    folder = fit_prior(cfg)
    predictions = Predictions(outputs(cfg) / "predictions" / "toy" / "out_of_fold")
    cache = fold_runs(cfg)[0].data().targets["code"]
    predict(cfg)
    decoded, moved = Predictions(outputs(cfg) / "predictions" / "toy" / "decoded"), conditioned(cfg, "decoded")
    for subject in ("sub-01", "sub-02"):
        rows = np.flatnonzero(predictions.rows["subject"] == subject)
        alone = Affine()
        alone.fit(predictions.embeddings("code", rows),
                  cache.array[cache.rows(predictions.rows["stimulus_id"].iloc[rows].tolist())], folder=tmp_path)
        mine = np.flatnonzero(decoded.rows["subject"] == subject)
        expected = alone.sample(decoded.embeddings("code", mine), generators=[])
        np.testing.assert_allclose(moved.embeddings("code", mine), expected, rtol=1e-5, atol=1e-6)
        assert (folder / "code" / f"run-0_{subject}" / "prior.safetensors").exists()


def test_the_manifest_scores_the_prior_on_stimuli_kept_from_the_fit(toy_run, caplog):
    caplog.set_level(logging.INFO)
    folder = fit_prior(toy_run("prior=affine", "prior_fit.per_subject=false"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == "out-of-fold predictions of training stimuli"
    (line,) = manifest["validation"]
    # 20 % of 13 concepts, of 3 or 4 stimuli each, seen by two subjects
    assert 6 <= line["n_stimuli"] <= 12
    assert line["n_rows"] == 2 * line["n_stimuli"]
    assert line["n_fitted"] == 80 - line["n_rows"]
    for name in ("prediction", "prior"):
        assert set(line[name]) == {"cosine", "top1", "top5", "norm"}
        assert 0 <= line[name]["top1"] <= line[name]["top5"] <= 1
    assert line["prediction"]["norm"] < 0.9, "regression shrinks"
    assert line["prior"]["norm"] > line["prediction"]["norm"]
    assert f"{line['n_stimuli']} stimuli kept from the fit: cosine" in caplog.text


def test_training_predictions_are_labelled(toy_run, caplog):
    folder = fit_prior(toy_run("prior=affine", "prior_fit.source=training"))
    assert json.loads((folder / "manifest.json").read_text())["source"] == "training predictions"
    assert "fitted on training predictions" in caplog.text


@pytest.mark.parametrize(("prior", "source", "label"), [
    ("atm", "out_of_fold", "out-of-fold predictions of training stimuli"),
    ("atm_published", "training", "training predictions")])
def test_the_prior_of_atm_is_fitted_on_either_source_and_sampled_from(toy_run, prior, source, label):
    cfg = toy_run(f"prior={prior}", *DIFFUSION[1:], "prior.n_steps=10", f"prior_fit.source={source}",
                  "prior_fit.repetitions=1")
    manifest = json.loads((fit_prior(cfg) / "manifest.json").read_text())
    assert manifest["source"] == label
    assert np.isfinite([line["prior"]["cosine"] for line in manifest["validation"]]).all()
    predict(cfg)
    moved, plain = conditioned(cfg, "decoded"), Predictions(outputs(cfg) / "predictions" / "toy" / "decoded")
    rows = np.arange(len(plain.rows))
    assert not np.allclose(moved.embeddings("code", rows), plain.embeddings("code", rows), atol=0.1)
    assert (np.abs(moved.embeddings("code", rows)).max() <= 1) == (prior == "atm_published")


def test_true_and_mean_are_left_alone_and_shuffled_pairs_hold_the_decoded_samples(toy_run):
    cfg = toy_run(*DIFFUSION)
    fit_prior(cfg)
    predict(cfg)
    base = outputs(cfg) / "predictions" / "toy"
    for condition in ("true", "mean"):
        assert conditioned(cfg, condition).folder == base / condition
    decoded, shuffled, noise = (conditioned(cfg, c) for c in ("decoded", "shuffled", "noise"))
    assert not np.allclose(decoded.embeddings("code"), Predictions(base / "decoded").embeddings("code"))
    assert noise.manifest["condition"] == "noise"
    places = shuffled.rows["array_row"].to_numpy()
    assert (places != np.arange(len(places))).all()
    assert np.array_equal(shuffled.embeddings("code"), decoded.embeddings("code")[places])
    assert conditioned(cfg, "decoded").folder == decoded.folder
    cfg.prior = None
    assert conditioned(cfg, "decoded").folder == base / "decoded"


def test_samples_do_not_depend_on_the_batch_and_follow_the_seed(toy_run):
    cfg = toy_run(*DIFFUSION)
    fit_prior(cfg)
    predict(cfg)
    first = conditioned(cfg, "decoded")
    samples = first.embeddings("code")
    shutil.rmtree(first.folder)
    cfg.batch_size = 20
    np.testing.assert_allclose(conditioned(cfg, "decoded").embeddings("code"), samples, atol=1e-4)
    cfg.seed = 1
    other = conditioned(cfg, "decoded")
    assert other.folder != first.folder
    assert not np.allclose(other.embeddings("code"), samples, atol=1e-2)
    one, again = row_generators(3, [5])[0], row_generators(3, [4, 5])[1]
    assert one.initial_seed() == again.initial_seed() != row_generators(3, [6])[0].initial_seed()


def test_another_prior_another_run_and_a_missing_one_are_noticed(toy_run):
    cfg = toy_run("prior=affine")
    predict(cfg)
    with pytest.raises(ValueError, match=r"prior .*priors/toy: expected a finished folder"):
        conditioned(cfg, "decoded")
    fit_prior(cfg)
    first = conditioned(cfg, "decoded")
    cfg.prior.kind = "linear"
    with pytest.raises(ValueError, match=r"kind: 'moments' there, 'linear' asked for\nRun fit_prior with ov"):
        conditioned(cfg, "decoded")
    with pytest.raises(ValueError, match=r"config.prior.kind: 'moments' there"):
        fit_prior(cfg)
    cfg.overwrite = True
    fit_prior(cfg)
    second = conditioned(cfg, "decoded")
    assert second.manifest["id"] != first.manifest["id"]
    manifest = outputs(cfg) / "priors" / "toy" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "runs": ["another"], "id": "other"}))
    with pytest.raises(ValueError, match=r"expected one fitted for the run that made .*, got one of another run"):
        conditioned(cfg, "decoded")


def test_an_interrupted_stage_goes_on_and_a_finished_one_is_left(toy_run, monkeypatch):
    cfg = toy_run("prior=affine")
    fits, original = [], Affine.fit

    def dying(self, *args, **kwargs):
        fits.append(1)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Affine, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        fit_prior(cfg)
    assert not (outputs(cfg) / "priors" / "toy" / "manifest.json").exists()
    folder = fit_prior(cfg)
    assert len(fits) == 3, "the first subject was not fitted again"
    before = (folder / "manifest.json").read_bytes()
    assert fit_prior(cfg) == folder
    assert len(fits) == 3
    assert (folder / "manifest.json").read_bytes() == before


def test_from_the_command_line_over_the_folds_of_a_cross_validation(command, digits, tmp_path):
    raw = digits()
    arguments = ["experiment=digit69/ridge", "split.n_repeats=1", "split.n_folds=2", "space.pixels.size=8",
                 "decoder.cv=2", f"raw={raw}"]
    for stage in ("prepare", "embed", "train"):
        code, output = command(stage, *arguments)
        assert code == 0, output
    run = f"run={tmp_path / 'outputs' / 'train' / 'digit69' / 'ridge'}"
    prior = [run, "prior=affine", "prior.kind=linear", "prior.rescale=std", "prior_fit.spaces=[pixels]",
             "prior_fit.folds=2"]
    assert command("predict", run, "conditions=[decoded,'true']")[0] == 0
    code, output = command("fit_prior", *prior)
    assert code == 0, output
    assert "without part 2 of 2" in output
    rows = pd.read_parquet(tmp_path / "outputs" / "predictions" / "digit69" / "ridge" / "out_of_fold" / "rows.parquet")
    tested = pd.read_parquet(tmp_path / "outputs" / "predictions" / "digit69" / "ridge" / "decoded" / "rows.parquet")
    for fold in (0, 1):
        met, test = (set(table.loc[table["run"] == fold, "stimulus_id"]) for table in (rows, tested))
        assert len(met) == len(test) == 25
        assert not met & test
    code, output = command("reconstruct", *prior, "conditions=[decoded,'true']")
    assert code == 0, output
    assert "apply prior to decoded: pixels" in output
    code, output = command("fit_prior", run)
    assert code == 1
    assert "prior: expected one to fit, got none" in output
