"""When and where as a command: signals whose information lies in one window of one region must show exactly that."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from omegaconf import open_dict

from brain2img.analyses.windows import parts_of, scaled, windows
from brain2img.artifacts import EmbeddingCache, open_folder, write_array, write_json, write_table
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.records import EmbeddingSpec, SignalSpec
from brain2img.stages.build import plain
from brain2img.stages.runs import FoldRun
from brain2img.stages.train import train_fold

NAMES = ("Fz", "Fp1", "F1", "Cz", "C1", "C2", "P1", "P2", "O1", "Oz", "O2", "PO7")
INFORMED = ("O1", "Oz", "O2", "PO7")
PLACES = slice(40, 60)  # 200 to 300 ms of 0 to 500 ms, after 200 ms of baseline, at 100 Hz
SETTINGS = {"growing": [0.1, 0.3, 0.5], "sliding": {"width": 0.1, "step": 0.1, "first": -0.2}, "regions": True,
            "sensors": False}


def spec(subject="sub-01", **changes):
    angle = np.arange(len(NAMES))
    return SignalSpec(**{"subject": subject, "modality": "eeg", "units": "a.u.", "n_channels": len(NAMES),
                         "n_times": 140, "sfreq": 200.0, "tmin": -0.2, "ch_names": NAMES,
                         "ch_types": ("eeg",) * len(NAMES),
                         "positions": 0.1 * np.column_stack([np.cos(angle), np.sin(angle), 0.05 * angle]), **changes})


@pytest.fixture
def planted(tmp_path, composed):
    """Return a function that gives the configuration of the command on a ridge trained on planted signals."""
    root, rng = tmp_path / "outputs", np.random.default_rng(0)
    splits = ["train"] * 120 + ["test"] * 40
    ids = [f"{split}-{i:03d}" for i, split in enumerate(splits)]
    code = rng.standard_normal((len(ids), 4)).astype("float32")
    stage = open_folder(root / "prepared" / "toy", stage="prepare", config={}, inputs={})
    writer = PreparedWriter(stage.work, study="toy")
    trials = pd.DataFrame({"stimulus_id": ids, "split": splits, "repetition": 0})
    for subject in ("sub-01", "sub-02"):
        x = rng.standard_normal((len(ids), len(NAMES), 140))
        x[:, -len(INFORMED):, 80:100] += 3 * (code @ rng.standard_normal((4, len(INFORMED))))[:, :, None]
        writer.add_subject(spec(subject), trials=trials, signals=[x.astype("float32")])
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids}))
    stage.finish()
    stage = open_folder(root / "cache" / "code", stage="embed", config={}, inputs={})
    write_array(stage.work / "embeddings.npy", code)
    write_table(stage.work / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
    write_json(stage.work / "spec.json", EmbeddingSpec(name="code", shape=(4,), dtype="float32").to_json())
    stage.finish()
    base = composed("windows")
    config = {"split": plain(base.split), "data": {**plain(base.data), "min_trials": 5}, "seed": 0,
              "decoder": {**plain(base.windows.ridge), "alphas": 0.1}}
    prepared = PreparedStudy(root / "prepared" / "toy")
    train_fold(root / "train" / "toy" / "fold-0_seed-0", config=config, prepared=prepared,
               found={"code": EmbeddingCache(root / "cache" / "code")}, root=root, overwrite=False, description="toy",
               place={"fold": 0, "split_seed": 0, "decoder_seed": 0},
               facts={"n_fold_runs": 1, "study": {}, "study_name": "toy", "later": {}, "name": "toy", "label": "ridge"})

    def make(**settings):
        cfg = base.copy()
        with open_dict(cfg):
            cfg.name = "toy"
            for key, value in {**SETTINGS, **settings}.items():
                cfg.windows[key] = value
        return cfg

    return make


@pytest.mark.parametrize("how", [pytest.param("train", marks=pytest.mark.slow), "mask"])
def test_information_is_found_where_and_when_it_was_planted(planted, how):
    folder = windows(planted(how=how, sensors=how == "mask"))
    table = pd.read_parquet(folder / "windows.parquet")
    mean = table[(table["subject"] == "mean") & (table["metric"] == "two_way")].set_index(["kind", "name"])
    above = {key for key, line in mean.iterrows() if key[0] != "sensor" and line["value"] > 0.9}
    assert above == {("whole", "all"), ("growing", "0-300"), ("growing", "0-500"), ("sliding", "200-300"),
                     ("region", "occipital")}
    rest = mean.drop(index=list(above))
    rest = rest[rest.index.get_level_values("kind") != "sensor"]
    # 80 ranks of noise: a mean of uniform values, within its 99.9 % interval
    assert (np.abs(rest["value"] - 0.5) < 3.29 / np.sqrt(12 * 80)).all(), rest["value"]
    found = pd.read_parquet(folder / "clusters.parquet")
    assert found.loc[found["p"] < 0.05, ["first_start", "last_start"]].to_numpy().tolist() == [[0.2, 0.2]]
    peaks = pd.read_parquet(folder / "peaks.parquet").set_index(["kind", "what"])
    assert peaks.at[("sliding", "peak"), "time"] == pytest.approx(0.25)
    if how == "mask":
        drops = mean.loc["sensor", "drop"].abs()
        assert set(drops.nlargest(2).index) <= set(INFORMED)
    page = (folder / "report.html").read_text()
    assert "code: 200 to 300 ms (p = " in page.replace("\u00a0", " ")
    assert (folder / "regions.png").stat().st_size > 5000
    assert windows(planted(how=how, sensors=how == "mask")) == folder, "finished: nothing is done again"


def test_a_masked_window_is_what_the_decoder_gives_by_hand(planted, tmp_path):
    cfg = planted(how="mask", growing=[0.3], sliding=None, regions=False)
    ranks = pd.read_parquet(windows(cfg) / "ranks.parquet")
    run = FoldRun(tmp_path / "outputs" / "train" / "toy" / "fold-0_seed-0", tmp_path / "outputs")
    data = run.data()
    batch = data.batch(data.items("test"))
    for x in batch.signals.values():
        x[:, :, :40], x[:, :, 100:] = 0, 0
    found = run.decoder(data).predict(batch)["code"]
    true = data.target("code", sorted(set(batch.stimulus_ids)))
    for subject, rows in batch.rows.items():
        cosine = found[rows] @ true.T / np.linalg.norm(found[rows], axis=1)[:, None] / np.linalg.norm(true, axis=1)
        expected = 1 + (cosine > np.diag(cosine)[:, None]).sum(axis=1)
        got = ranks[(ranks["kind"] == "growing") & (ranks["subject"] == subject)].sort_values("stimulus_id")["rank"]
        np.testing.assert_array_equal(got, expected)


def test_encoders_are_scaled_to_the_window_by_one_rule():
    atm = {"bin": 1, "kernel": 25, "pool": 51, "stride": 5, "n_filters": 40}
    assert scaled(atm, n_times=250, whole=250) == {"bin": 1, "kernel": 25, "pool": 51, "stride": 5}
    small = {**atm, "bin": 4, "kernel": 6, "pool": 12, "stride": 3}
    assert scaled(small, n_times=125, whole=250) == {"bin": 2, "kernel": 6, "pool": 12, "stride": 3}
    assert scaled({"hidden": 3}, n_times=25, whole=250) == {}
    for encoder in (atm, small):
        for n in (12, 25, 37, 50, 62, 75, 87, 100, 112, 125, 150, 175, 200, 225):
            of = scaled(encoder, n_times=n, whole=250)
            n_bins = n // of["bin"]
            steps = (n_bins - of["kernel"] + 1 - of["pool"]) // of["stride"] + 1
            assert steps >= 8, (n, of)


@pytest.mark.parametrize(("settings", "message"), [
    ({"how": "guess"}, r"windows.how: expected one of .* got 'guess'"),
    ({"how": "train", "sensors": True}, "windows.sensors: expected windows.how=mask"),
    ({"growing": [2.0], "sliding": None}, "windows: expected some within -0.200 to 0.495 s, got 0-2000 ms")])
def test_messages(planted, settings, message):
    with pytest.raises(ValueError, match=message):
        windows(planted(**settings))


def test_betas_have_no_windows():
    betas = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=3, n_times=1)
    with pytest.raises(ValueError, match=r"windows: expected signals with a time axis, got .* \(fmri\)"):
        parts_of(SETTINGS, [betas], used=[betas])
