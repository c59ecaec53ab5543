"""A decoder that learns its space: what training leaves behind, what later stages compare with, and the ablation."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from brain2img.artifacts import EmbeddingCache, Predictions

SMALL = ["study.n_subjects=2", "study.n_train=60", "study.n_val=20", "study.snr=30",
         "study.repetitions={train:2,val:1,test:1}", "study.recording.sfreq=100",
         "space.layers.layers=[layer3,layer4]", "space.layers.side=1"]
FAST = ["trainer.max_epochs=3", "trainer.batch_size=64", "adapter.bin=8", "encoder.width=32"]


def run(command, script, *arguments):
    code, printed = command(script, *arguments)
    assert code == 0, printed
    return printed


def test_later_stages_compare_with_what_the_head_has_learned_to_see(command, tmp_path):
    printed = run(command, "pipeline", "experiment=scenes_eeg/recipe", *SMALL, *FAST)
    assert "Report" in printed
    outputs = tmp_path / "outputs"
    fold = outputs / "train" / "scenes_eeg" / "recipe" / "fold-0_seed-0"
    manifest = json.loads((fold / "manifest.json").read_text())
    raw, learned = (EmbeddingCache(outputs / manifest["paths"][key]["layers"]) for key in ("caches", "learned"))
    assert learned.spec.shape == (256,)
    assert raw.spec.shape == (384 + 768,)
    assert learned.stimulus_ids == raw.stimulus_ids
    assert learned.spec.uid != raw.spec.uid
    base = outputs / "predictions" / "scenes_eeg" / "recipe"
    true = Predictions(base / "true")
    np.testing.assert_array_equal(true.embeddings("layers"),
                                  learned.array[learned.rows(true.rows["stimulus_id"].tolist())])
    mean = Predictions(base / "mean").embeddings("layers")
    trials = pd.read_parquet(outputs / manifest["paths"]["prepared"] / "trials.parquet")
    shown = sorted(set(trials.loc[trials["split"] == "train", "stimulus_id"]))
    np.testing.assert_allclose(mean[0], learned.array[learned.rows(shown)].mean(0), atol=1e-5)
    scores = pd.read_parquet(outputs / "scores" / "scenes_eeg" / "recipe" / "scores.parquet")
    top1 = scores[(scores["metric"] == "top1") & (scores["condition"] == "true")]
    assert set(top1["space"]) == {"layers"}
    assert (top1["value"] == 1).all()
    # a second command finds the run finished, and what it learned with it
    assert "finished already" in run(command, "predict", f"run={fold.parent}")


@pytest.mark.slow
def test_an_ensemble_of_learned_spaces_scores_by_the_mean_of_their_cosines(command, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        run(command, "pipeline", "experiment=scenes_eeg/recipe", *SMALL, *FAST, f"name={name}", f"seed={seed}",
            "conditions=[decoded]")
    run(command, "ensemble", "runs=[a,b]", "name=both", "label=both", "conditions=[decoded]")
    outputs = tmp_path / "outputs"
    cosines = {}
    for name in ("a", "b", "both"):
        fold = outputs / "train" / name / "fold-0_seed-0" if name != "b" else outputs / "train/b/fold-0_seed-1"
        paths = json.loads((fold / "manifest.json").read_text())["paths"]
        cache = EmbeddingCache(outputs / paths["learned"]["layers"])
        predictions = Predictions(outputs / "predictions" / name / "decoded")
        found, true = predictions.embeddings("layers"), np.asarray(cache.array)
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found, true)]
        cosines[name] = unit[0] @ unit[1].T
    trials = pd.read_parquet(outputs / paths["prepared"] / "trials.parquet")
    shown = cache.rows(sorted(set(trials.loc[trials["split"] == "train", "stimulus_id"])))
    expected = sum(cosines[name] / cosines[name][:, shown].std(axis=1, keepdims=True) for name in ("a", "b"))
    both = cosines["both"]
    factor = (both * expected).sum(1, keepdims=True) / (expected**2).sum(1, keepdims=True)  # of each query's own
    np.testing.assert_allclose(both, factor * expected, atol=1e-5)


def test_one_factor_off(command, tmp_path):
    settings = [*SMALL, *FAST, "name=quick", "ablation.n_seeds=2", "ablation.baseline=null", "~ablation.others",
                "~ablation.without", "+ablation.without={single_trials:['trainer.repetitions=single']}",
                "~ablation.ensembles", "+ablation.ensembles={both:[recipe,single_trials]}"]
    run(command, "ablate", *settings)
    folder = tmp_path / "outputs" / "ablations" / "quick"
    table = pd.read_parquet(folder / "ablation.parquet").set_index(["row", "split", "metric"])
    ranks = pd.read_parquet(folder / "ranks.parquet")
    assert set(ranks["row"]) == {"recipe", "recipe, ensemble", "single_trials", "both"}
    assert table.loc[("recipe", "test", "top1"), "n_seeds"] == 2
    for (row, split), group in ranks.groupby(["row", "split"]):
        assert table.loc[(row, split, "top5"), "value"] == pytest.approx((group["rank"] <= 5).mean())
        assert group["candidates"].eq({"val": 20, "test": 200}[split]).all()
    key = ["subject", "stimulus_id"]
    first = ranks[(ranks["seed"] == 0) & (ranks["split"] == "test")].set_index(key)
    one, other = (first.loc[first["row"] == row, "rank"] for row in ("single_trials", "recipe"))
    expected = ((one <= 5).astype(float) - (other <= 5).astype(float)).mean()
    assert table.loc[("single_trials", "test", "top5"), "difference"] == pytest.approx(expected)
    assert (folder / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert "One factor off" in (folder / "report.html").read_text()
    trained = {p: p.stat().st_mtime_ns for p in (tmp_path / "outputs" / "train").rglob("best.ckpt")}
    run(command, "ablate", *settings)
    assert {p: p.stat().st_mtime_ns for p in trained} == trained


def test_an_ablation_without_rows_is_refused(command):
    code, printed = command("ablate", "~ablation.without", "name=none")
    assert code == 1
    assert "expected an experiment and rows without parts of it" in printed
    code, printed = command("ablate", "+ablation.ensembles.all=[nothing]", "name=none", "ablation.baseline=null",
                            "~ablation.others", "~ablation.without", "+ablation.without={single_trials:[]}")
    assert code == 1
    assert "ablation.ensembles: expected rows of" in printed
