"""Accuracy over amounts of data as a command: trainings, resuming, hardware, tables, what is refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from brain2img.analyses.scaling import _points, tabulated
from brain2img.stages.build import plain

SETTINGS = {"link": "identity", "use_flagged": False, "extrapolate": [3200], "beyond": False, "needed": [0.3, 0.6]}
SMALL = ["experiment=scenes_eeg/protocols/ridge_in_subject", "study.n_subjects=2", "study.n_train=120",
         "study.n_val=20", "study.n_sessions=1", "study.snr=6", "study.repetitions={train:1,val:1,test:4}",
         "data.min_trials=5", "space=[attributes]", "headline.space=attributes", "name=small"]


def planted_ranks(seed=0, *, slope=0.1, hardware=("good", "bad"), n_stimuli=200, n_draws=3):
    """Return ranks among 200 whose top-1 grows log-linearly, half as fast with the second hardware."""
    rng, lines = np.random.default_rng(seed), []
    for i, name in enumerate(hardware):
        for amount in (50, 100, 200, 400, 800):
            p = 0.1 + slope / (1 + i) * np.log2(amount / 50)
            for draw in range(n_draws):
                hit = rng.random(n_stimuli) < p
                lines.append(pd.DataFrame({
                    "hardware": name, "amount": amount, "draw": draw, "subject": "sub-01", "candidates": 200, "tied": 0,
                    "stimulus_id": [f"s{k:03d}" for k in range(n_stimuli)], "n_averaged": 4,
                    "above": np.where(hit, 0, rng.integers(1, 200, n_stimuli))}))
    return pd.concat(lines, ignore_index=True)


def test_tables_hold_the_planted_laws_and_what_they_foretell():
    tables = tabulated(planted_ranks(), SETTINGS, seed=0, ceilings={})
    fits = tables["fits"].set_index(["hardware", "metric"])
    for name, slope in (("good", 0.1), ("bad", 0.05)):
        line = fits.loc[(name, "top1")]
        assert line["slope_low"] < slope < line["slope_high"]
        assert line["held_out"] == 800
        assert line["agrees"]
        assert (line["n_points"], line["left_out"]) == (5, 0)
    beyond = tables["extrapolated"].query("extrapolation and metric == 'top1'").set_index("hardware")
    assert set(beyond["amount"]) == {3200}
    assert beyond.at["good", "low"] < 0.7 < beyond.at["good", "high"]
    needed = tables["needed"].query("metric == 'top1' and accuracy == 0.3").set_index("hardware")
    assert needed.at["good", "low"] < 200 < needed.at["good", "high"]
    assert needed.at["bad", "low"] < 800 < needed.at["bad", "high"]
    ranks = planted_ranks()
    plain = ranks.assign(v=(199 - ranks["above"]) / 199).groupby(["hardware", "amount"])["v"].mean()
    two_way = tables["scaling"].query("metric == 'two_way'").set_index(["hardware", "amount"])["value"]
    np.testing.assert_allclose(two_way, plain.loc[two_way.index])


def test_order_of_rows_does_not_matter():
    ranks = planted_ranks()
    shuffled = ranks.sample(frac=1, random_state=0).sort_values("hardware", ascending=False, kind="stable")
    for name, table in tabulated(ranks, SETTINGS, seed=0, ceilings={}).items():
        pd.testing.assert_frame_equal(table, tabulated(shuffled, SETTINGS, seed=0, ceilings={})[name])


def test_flagged_points_are_left_out_unless_asked_for():
    ranks = planted_ranks(slope=0.15, hardware=("one",))
    ranks.loc[ranks["amount"] == 50, "above"] = 99  # never found
    for use, n in ((False, 3), (True, 5)):
        tables = tabulated(ranks, {**SETTINGS, "use_flagged": use}, seed=0, ceilings={"top1": 0.7})
        top1 = tables["scaling"].query("metric == 'top1'")
        assert list(top1["flag"]) == ["at chance", "", "", "", "near the ceiling"]
        assert tables["fits"].query("metric == 'top1'")["n_points"].item() == n


@pytest.mark.parametrize(("settings", "message"), [
    (["scaling.amounts=[50,50]"], "expected a list of two different amounts or more, got"),
    (["scaling.amounts=[20,40]", "scaling.extrapolate=[641]"], "expected at most 16 times the largest amount measured"),
    (["scaling.hardware={cap:{channels:[Oz,PO9,O10]}}"], "hardware 'cap': expected channels that sub-01 .* PO9, O10"),
    (["scaling.hardware={cap:{scale:none}}"], r"scaling.hardware.cap: expected some of .* got \['scale'\]"),
    (["scaling.axis=subjects", "scaling.amounts=[1,2]"], "expected subjects trained together, got split.kind"),
    (["scaling.axis=subjects", "scaling.amounts=[1,3]", "split.kind=study"], "numbers of subjects from 1 to 2"),
])
def test_what_does_not_fit_is_refused_before_training(composed, settings, message):
    cfg = composed("scaling", *SMALL, "scaling.extrapolate=[]", *settings)
    spec = SimpleNamespace(ch_names=("Pz", "POz", "Oz"))
    study = SimpleNamespace(name="scenes_eeg", subjects=["sub-01", "sub-02"], specs={"sub-01": spec, "sub-02": spec})
    with pytest.raises(ValueError, match=message):
        _points(cfg, plain(cfg.scaling), study=study)


def test_subsets_of_subjects_are_nested_and_the_fewest_are_scored(composed):
    cfg = composed("scaling", *SMALL, "split.kind=study", "scaling.axis=subjects", "scaling.amounts=[1,2,4]",
                   "scaling.extrapolate=[]", "scaling.n_draws=5")
    spec = SimpleNamespace(ch_names=("Oz",))
    names = [f"sub-{i:02d}" for i in range(1, 7)]
    points = _points(cfg, plain(cfg.scaling), study=SimpleNamespace(name="s", subjects=names,
                                                                    specs=dict.fromkeys(names, spec)))
    assert len(points) == 15
    for draw in range(5):
        one, two, four = (next(p for p in points if (p.draw, p.amount) == (draw, n)) for n in (1, 2, 4))
        assert set(one.subjects) < set(two.subjects) < set(four.subjects)
        assert one.scored == two.scored == four.scored == one.subjects
    assert len({p.subjects for p in points if p.amount == 1}) == 5  # every draw begins with someone else


@pytest.mark.slow
def test_noise_lowers_accuracy_and_an_interrupted_command_goes_on(command, tmp_path):
    asked = [*SMALL, "scaling.amounts=[30,120]", "scaling.n_draws=2", "scaling.extrapolate=[480]",
             "scaling.hardware={clean:{},noisy:{added_noise:8},eight:{channels:[PO*,O*]}}"]
    code, printed = command("scaling", *asked)
    assert code == 0, printed
    folder, train = tmp_path / "outputs" / "scaling" / "small", tmp_path / "outputs" / "train" / "small"
    table = pd.read_parquet(folder / "scaling.parquet").set_index(["hardware", "metric", "amount"])["value"]
    assert table["clean", "two_way", 120] > table["noisy", "two_way", 120] + 0.05
    assert table["clean", "two_way", 120] > table["clean", "two_way", 30]
    ranks = pd.read_parquet(folder / "ranks.parquet")
    assert ranks.groupby(["hardware", "amount", "draw"]).size().to_dict() == {
        (h, a, d): 400 for h in ("clean", "noisy", "eight") for a in (30, 120) for d in (0, 1)}
    assert (folder / "report.html").exists()
    kept = train / "clean_30_draw-0" / "fold-0_seed-0" / "manifest.json"
    lost = train / "noisy_120_draw-1" / "fold-0_seed-0" / "manifest.json"
    times = kept.stat().st_mtime_ns, lost.stat().st_mtime_ns
    shutil.rmtree(lost.parent.parent)
    shutil.rmtree(folder)
    code, printed = command("scaling", *asked)
    assert code == 0, printed
    assert kept.stat().st_mtime_ns == times[0]
    assert lost.stat().st_mtime_ns > times[1]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "ranks.parquet"), ranks)


@pytest.mark.slow
def test_over_subjects_the_same_ones_are_scored(command, tmp_path):
    code, printed = command("scaling", *SMALL, "split.kind=study", "+decoder.pooled=true",
                            "study.n_subjects=3", "scaling.axis=subjects", "scaling.amounts=[1,2,3]",
                            "scaling.extrapolate=[6]", "+split.train_trials=60")
    assert code == 0, printed
    ranks = pd.read_parquet(tmp_path / "outputs" / "scaling" / "small" / "ranks.parquet")
    scored = ranks.groupby(["draw", "amount"])["subject"].unique().map(tuple).unstack()
    assert (scored.nunique(axis=1) == 1).all()
    assert set(scored[1].map(len)) == {1}
