"""A published file becomes a run that the stages after training take; synthesis from a run."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.analyses.synthesise import agreement, synthesise
from brain2img.artifacts import Predictions, read_array
from brain2img.stages.embed import embed
from brain2img.stages.import_weights import import_weights
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.runs import fold_runs

SMALL = ["study.n_subjects=2", "study.n_train=24", "study.n_val=8", "study.n_sessions=2",
         "study.recording.n_voxels=60", "space=[attributes,pixels]", "head=[attributes_linear,pixels_linear]",
         "adapter.pool_size=24", "adapter.bottleneck=3", "encoder.width=8", "encoder.n_blocks=1", "name=taken",
         "head.attributes_linear.losses.info_nce.learnable=false", "trainer.accelerator=cpu",
         "++layout.heads.attributes_linear=head_image", "++layout.heads.pixels_linear=head_text"]


def test_a_published_file_becomes_a_run_that_predicts_and_synthesises(composed, tmp_path):
    cfg = composed("import_weights", *SMALL, f"weights={tmp_path / 'last.pth'}")
    with pytest.raises(ValueError, match=r"weights .*last\.pth: expected a published checkpoint, got nothing there"):
        import_weights(cfg)
    prepare(cfg)
    embed(cfg)
    width, pool = 8, 24
    torch.manual_seed(0)
    sizes = {"translator.mlp.0.0": (width, width), "translator.mlp.0.1": (width,)}
    for s in ("1", "2"):
        sizes |= {f"embedder.{s}.0.down_proj": (3, pool), f"embedder.{s}.0.up_proj": (pool, 3),
                  f"embedder.{s}.1": (width, pool), f"embedder.{s}.2": (width,), f"builder.{s}.0": (pool, width),
                  f"builder.{s}.1": (pool,), f"builder.{s}.3.down_proj": (3, pool),
                  f"builder.{s}.3.up_proj": (pool, 3)}
    n_attributes = json.loads(next((tmp_path / "outputs/cache").rglob("attributes-*/spec.json")).read_text())["shape"]
    n_pixels = json.loads(next((tmp_path / "outputs/cache").rglob("pixels-*/spec.json")).read_text())["shape"]
    sizes |= {"head_image": (int(np.prod(n_attributes)), width), "head_text": (int(np.prod(n_pixels)), width)}
    state = {f"{key}.{part}": torch.randn(size if part == "weight" else size[:1])
             for key, size in sizes.items() for part in ("weight", "bias")}
    torch.save({"epoch": 7, "model_state_dict": state}, tmp_path / "last.pth")
    run = import_weights(cfg)
    report = json.loads((run / "fold-0_seed-0/imported.json").read_text())
    assert (report["epoch"], len(report["matched"]), report["subjects"]) == (7, len(state), {"sub-01": "1",
                                                                                           "sub-02": "2"})
    trained = fold_runs(cfg)[0]
    data = trained.data()
    module = trained.decoder(data).module
    torch.testing.assert_close(module.adapter.builder["sub-02"][0].weight, state["builder.2.0.weight"])
    predict(cfg)
    found = Predictions(tmp_path / "outputs/predictions/taken/decoded")
    assert len(found.rows) == 400
    assert import_weights(cfg) == run  # finished
    torch.save({"epoch": 8, "model_state_dict": state}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="weights"):
        import_weights(cfg)

    folder = synthesise(cfg)
    table, rows = pd.read_parquet(folder / "agreement.parquet"), pd.read_parquet(folder / "rows.parquet")
    assert len(table) == 4 * 200
    items = data.items("test")
    mine = items[items["subject"] == "sub-01"].reset_index(drop=True)
    pair = rows.loc[(rows["source"] == "sub-01") & (rows["target"] == "sub-02")]
    assert pair["stimulus_id"].tolist() == mine["stimulus_id"].tolist()
    made = read_array(folder / f"{pair['pair'].iloc[0]}.npy")
    x = torch.from_numpy(data.signals("sub-01", mine["trial_ids"].tolist()[:5]))
    with torch.no_grad():
        expected = module.adapter.builder["sub-02"](module.adapter(x, "sub-01").grid[..., 0])
    np.testing.assert_allclose(made[:5], expected, rtol=1e-3, atol=1e-4)


def test_agreement_is_the_correlation_of_numpy_and_knows_a_planted_synthesis():
    generator = torch.Generator().manual_seed(0)
    mean, real = torch.randn(50, generator=generator), torch.randn(30, 50, generator=generator)
    real = real + 2 * mean
    made = real + torch.randn(30, 50, generator=generator)
    table = agreement(made, real, 2 * mean)
    for i in (0, 29):
        assert table["pattern"][i] == pytest.approx(np.corrcoef(made[i], real[i])[0, 1], abs=1e-6)
        assert table["mean_pattern"][i] == pytest.approx(np.corrcoef(mean, real[i])[0, 1], abs=1e-6)
        assert table["above_mean"][i] == pytest.approx(np.corrcoef(made[i] - 2 * mean, real[i] - 2 * mean)[0, 1],
                                                       abs=1e-6)
    voxels = [np.corrcoef(made[:, v], real[:, v])[0, 1] for v in range(50)]
    assert table["voxels"][0] == pytest.approx(np.mean(voxels), abs=1e-6)
    assert (table["pattern"] > table["mean_pattern"]).mean() > 0.5
    # the mean pattern as synthesis knows nothing
    none = agreement((2 * mean).expand(30, 50), real, 2 * mean)
    assert none["voxels"][0] == 0
    assert (none["above_mean"] == 0).all()
    np.testing.assert_allclose(none["pattern"], none["mean_pattern"])
