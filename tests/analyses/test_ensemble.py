"""The mean of several runs' predictions: a run like any other for the stages after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from brain2img.analyses.ensemble import ensemble
from brain2img.artifacts import Predictions, keep_contents, open_folder, write_array
from brain2img.spaces.pixels import Pixels
from brain2img.stages.evaluate import evaluate

sys.path.append(str(Path(__file__).parents[1] / "stages"))
from made_outputs import CONDITIONS, make


@pytest.fixture
def members(tmp_path):
    """Write runs "a" and "b" with different noise on the same truth; return the results folder and a configuration."""
    root = tmp_path / "outputs"
    for seed, label in enumerate(("a", "b")):
        cfg = make(root, label=label, noise=300, target=Pixels(size=4), seed=seed, said=False)
        for condition in CONDITIONS:  # as the predict stage says it
            path = root / "predictions" / label / condition / "manifest.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "run": f"train/{label}", "study_name": "s"}))
        path = root / "train" / label / "fold-0_seed-0" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "study": {}, "study_name": "s", "fold": 0}))
    return root, OmegaConf.merge(cfg, {"runs": ["a", "b"], "name": "both", "label": "both", "conditions": [
        "decoded", "noise", "shuffled", "mean", "true"], "reconstructor": {}, "captioner": {}})


def closeness(predictions: Predictions, true: np.ndarray) -> float:
    """Return the mean cosine of predictions and truth."""
    found, true = (x.reshape(len(x), -1) for x in (predictions.embeddings("pixels"), true))
    found, true = found / np.linalg.norm(found, axis=1, keepdims=True), true / np.linalg.norm(true, axis=1)[:, None]
    return float((found * true).sum(axis=1).mean())


def test_the_mean_of_unit_vectors_is_written_and_scored_as_any_decoder(members):
    root, cfg = members
    assert [path.name for path in ensemble(cfg)] == ["decoded", "noise", "shuffled", "mean", "true"]
    a, b, both = (Predictions(root / "predictions" / name / "decoded") for name in ("a", "b", "both"))
    units = [x / np.linalg.norm(x.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
             for x in (a.embeddings("pixels"), b.embeddings("pixels"))]
    np.testing.assert_allclose(both.embeddings("pixels"), (units[0] + units[1]) / 2, rtol=1e-6)
    pd.testing.assert_frame_equal(both.rows, a.rows)
    true = Predictions(root / "predictions" / "a" / "true").embeddings("pixels")
    assert closeness(both, true) > max(closeness(a, true), closeness(b, true)) + 0.05
    shuffled = Predictions(root / "predictions" / "both" / "shuffled")
    assert (shuffled.rows["array_row"] != both.rows["array_row"]).all()
    assert shuffled.array("pixels")[0] == both.array("pixels")[0]
    scored = OmegaConf.merge(cfg, {"run": None, "metric": {"retrieval": {
        "_target_": "brain2img.metrics.retrieval.Retrieval"}}})
    scores = pd.read_parquet(evaluate(scored) / "scores.parquet")
    assert set(scores["decoder"]) == {"both"}
    assert set(scores["condition"]) == set(CONDITIONS)
    before = both.manifest
    ensemble(cfg)
    assert Predictions(root / "predictions" / "both" / "decoded").manifest == before, "finished"


def other_rows(folder: Path, **changes) -> None:
    rows = pd.read_parquet(folder / "rows.parquet")
    rows.assign(**changes).to_parquet(folder / "rows.parquet")
    keep_contents(folder)


def test_messages(members):
    root, cfg = members
    with pytest.raises(ValueError, match=r"expected two or more different runs and a name, got runs=\['a', 'a'\]"):
        ensemble(OmegaConf.merge(cfg, {"runs": ["a", "a"]}))
    with pytest.raises(ValueError, match=r"expected two or more different runs and a name, .* name=None"):
        ensemble(OmegaConf.merge(cfg, {"name": None}))
    folder = root / "predictions" / "b" / "decoded"
    other_rows(folder, n_averaged=4)
    with pytest.raises(ValueError, match=r"expected the rows of 'a' \(48\) in 'b', got others \(48\)"):
        ensemble(cfg)
    other_rows(folder, n_averaged=3)
    spaces = json.loads((folder / "spaces.json").read_text())
    spaces["pixels"]["spec"]["uid"] = "another"
    (folder / "spaces.json").write_text(json.dumps(spaces))
    keep_contents(folder)
    with pytest.raises(ValueError, match=r"'pixels': expected the same weights and shape in .*another"):
        ensemble(OmegaConf.merge(cfg, {"name": "third"}))
    work = open_folder(root / "predictions" / "c" / "decoded", stage="predict", config={}, inputs={})
    write_array(work.work / "pixels.npy", np.zeros((48, 8, 8, 3), dtype="float32"))
    with pytest.raises(ValueError, match=r"expected a finished folder with manifest\.json, got an unfinished one"):
        ensemble(OmegaConf.merge(cfg, {"runs": ["a", "c"], "name": "fourth"}))
