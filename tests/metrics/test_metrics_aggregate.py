"""Records and differences against plain pandas and the single intervals."""

import ast
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from brain2img.meaning import Meaning
from brain2img.metrics.aggregate import KEYS, RECORD, differences, records
from brain2img.metrics.intervals import bootstrap, paired_difference, wilson


def table(rng, *, subjects=("s1", "s2"), decoders=("deep", "ridge"), n=30, repeats=1, metric="ssim",
          proportion=False, conditions=("decoded",)):
    frames = []
    for subject in subjects:
        for d, decoder in enumerate(decoders):
            for condition in conditions:
                stimuli = np.repeat([f"stim{i}" for i in range(n)], repeats)
                values = rng.normal(0.5 - 0.2 * d, 0.1, size=n * repeats)
                if proportion:
                    values = (values > 0.4).astype(float)
                frames.append(pd.DataFrame({
                    "study": "scenes", "subject": subject, "modality": "fmri", "decoder": decoder,
                    "condition": condition, "of": "images", "generator": "pixels", "space": "", "metric": metric,
                    "direction": "", "gallery": np.int64(0),
                    "repetitions": np.int64(4), "transductive": False, "circular": np.bool_(False),
                    **asdict(Meaning(metric)), "stimulus_id": stimuli, "proportion": proportion, "value": values}))
    return pd.concat(frames, ignore_index=True)


def chances(scores, level=0.1):
    levels = scores[KEYS].drop_duplicates(ignore_index=True)
    return levels.assign(chance=level + 0.1 * (levels["subject"] == "s2"), chance_kind="re-pairing")


def by(found, **keys):
    (record,) = [r for r in found if all(r[k] == v for k, v in keys.items())]
    return record


def test_records_are_means_over_stimuli_with_their_interval():
    rng = np.random.default_rng(0)
    scores = table(rng, repeats=3)
    found = records(scores, chances(scores), generator=np.random.default_rng(1))
    assert all(list(r) == RECORD for r in found)
    assert len(found) == 6
    json.loads(json.dumps(found, allow_nan=False))
    assert [type(found[0][k]) for k in ("gallery", "repetitions", "circular", "n")] == [int, int, bool, int]
    for decoder in ("deep", "ridge"):
        rows = scores[(scores["subject"] == "s1") & (scores["decoder"] == decoder)]
        record = by(found, subject="s1", decoder=decoder)
        assert record["value"] == pytest.approx(rows["value"].mean())
        assert record["n"] == 30
        interval = bootstrap(rows["value"].to_numpy(), rows["stimulus_id"].to_numpy(),
                             generator=np.random.default_rng(1))
        np.testing.assert_allclose((record["low"], record["high"]), interval)


def test_unequal_rows_of_a_stimulus_are_averaged_first():
    scores = table(np.random.default_rng(0), subjects=("s1",), decoders=("deep",), n=2)
    scores = pd.concat([scores, scores.iloc[:1], scores.iloc[:1]])
    scores["value"] = [1.0, 5.0, 2.0, 3.0]
    (record,) = records(scores, chances(scores), generator=np.random.default_rng(0))
    assert (record["value"], record["n"]) == (pytest.approx(3.5), 2)


def test_proportions_have_wilson_intervals():
    rng = np.random.default_rng(0)
    scores = table(rng, proportion=True)
    found = records(scores, chances(scores), generator=rng)
    hits = scores[(scores["subject"] == "s1") & (scores["decoder"] == "deep")]["value"].sum()
    record = by(found, subject="s1", decoder="deep")
    assert (record["low"], record["high"]) == pytest.approx(wilson(hits, 30))


def test_the_mean_subject_resamples_the_same_stimuli():
    rng = np.random.default_rng(0)
    scores = table(rng, decoders=("deep",))
    # what one subject gains on a stimulus the other loses: only if they are resampled together nothing is left
    easy = scores["stimulus_id"].str.slice(4).astype(int) * np.where(scores["subject"] == "s1", 1.0, -1.0)
    scores["value"] = easy
    found = records(scores, chances(scores), generator=rng)
    record = by(found, subject="mean")
    np.testing.assert_allclose([record["value"], record["low"], record["high"]], 0, atol=1e-9)
    assert record["chance"] == pytest.approx(0.15)
    assert record["n"] == 30
    assert by(found, subject="s1")["high"] > by(found, subject="s1")["value"] + 1


def test_the_mean_subject_equals_averaging_subjects_first():
    rng = np.random.default_rng(0)
    scores = table(rng, subjects=("s1", "s2", "s3"), decoders=("deep",))
    record = by(records(scores, chances(scores), generator=np.random.default_rng(2)), subject="mean")
    means = scores.groupby("stimulus_id")["value"].mean()
    np.testing.assert_allclose((record["low"], record["high"]),
                               bootstrap(means.to_numpy(), means.index, generator=np.random.default_rng(2)))


def test_subjects_may_have_other_stimuli():
    rng = np.random.default_rng(0)
    scores = table(rng, decoders=("deep",))
    scores.loc[scores["subject"] == "s2", "stimulus_id"] += "b"
    found = records(scores, chances(scores), generator=rng)
    record = by(found, subject="mean")
    assert record["n"] == 60
    assert record["value"] == pytest.approx(np.mean([by(found, subject=s)["value"] for s in ("s1", "s2")]))
    assert record["low"] < record["value"] < record["high"]


def test_one_subject_has_no_mean():
    rng = np.random.default_rng(0)
    scores = table(rng, subjects=("s1",))
    assert {r["subject"] for r in records(scores, chances(scores), generator=rng)} == {"s1"}
    assert {r["subject"] for r in differences(scores, baseline="ridge", generator=rng)} == {"s1"}


def test_records_do_not_depend_on_the_order_of_rows():
    scores = table(np.random.default_rng(0), conditions=("decoded", "noise"))
    level = chances(scores)
    key = [str(r) for r in records(scores, level, generator=np.random.default_rng(1))]
    shuffled = scores.sample(frac=1, random_state=0)
    other = records(shuffled, level.sample(frac=1, random_state=0), generator=np.random.default_rng(1))
    for a, b in zip(sorted(key), sorted(str(r) for r in other), strict=True):
        left, right = ast.literal_eval(a), ast.literal_eval(b)
        for name in RECORD:
            assert left[name] == (pytest.approx(right[name]) if isinstance(right[name], float) else right[name])


def test_chance_tables_need_no_gallery():
    rng = np.random.default_rng(0)
    scores = table(rng)
    assert len(records(scores, chances(scores).drop(columns="gallery"), generator=rng)) == 6


def test_a_single_stimulus_warns(caplog):
    rng = np.random.default_rng(0)
    scores = table(rng, subjects=("s1",), n=1)
    (first, _) = records(scores, chances(scores), generator=rng)
    assert first["low"] == first["value"] == first["high"]
    assert "single stimulus" in caplog.text


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    scores = table(rng, conditions=("decoded", "noise"))
    found = differences(scores, baseline="ridge", generator=np.random.default_rng(1))
    assert [(r["subject"], r["decoder"], r["condition"]) for r in found] == [
        ("s1", "deep", "decoded"), ("s2", "deep", "decoded"), ("mean", "deep", "decoded")]
    json.loads(json.dumps(found, allow_nan=False))
    ours = scores[(scores["subject"] == "s1") & (scores["condition"] == "decoded")]
    a, b = (ours[ours["decoder"] == d].sort_values("stimulus_id") for d in ("deep", "ridge"))
    reference = paired_difference(a["value"].to_numpy(), b["value"].to_numpy(), a["stimulus_id"].to_numpy(),
                                  generator=np.random.default_rng(1))
    record = by(found, subject="s1")
    np.testing.assert_allclose((record["value"], record["low"], record["high"]), reference)
    assert (record["baseline"], record["n"]) == ("ridge", 30)
    mean = by(found, subject="mean")
    assert mean["value"] == pytest.approx(np.mean([by(found, subject=s)["value"] for s in ("s1", "s2")]))
    assert mean["high"] - mean["low"] < record["high"] - record["low"]


def test_differences_take_the_stimuli_both_have(caplog):
    rng = np.random.default_rng(0)
    scores = table(rng, subjects=("s1", "s2"))
    lost = (scores["decoder"] == "ridge") & (scores["subject"] == "s1") & scores["stimulus_id"].isin(["stim3", "stim4"])
    found = differences(scores[~lost], baseline="ridge", generator=rng)
    assert {r["subject"]: r["n"] for r in found} == {"s1": 28, "s2": 30, "mean": 30}
    other = table(rng, decoders=("deep",), metric="mse")
    found = differences(pd.concat([scores, other]), baseline="ridge", generator=rng)
    assert {r["metric"] for r in found} == {"ssim"}
    assert "the baseline was not scored there" in caplog.text


def test_a_real_summary_is_quick():
    import time

    rng = np.random.default_rng(0)
    scores = pd.concat([table(rng, n=200, subjects=tuple(f"s{i}" for i in range(5)), metric=f"m{i}",
                              conditions=("decoded", "noise", "shuffled", "mean", "true")) for i in range(10)])
    level = chances(scores)
    start = time.process_time()
    assert len(records(scores, level, generator=rng)) == 10 * 2 * 5 * 6
    assert time.process_time() - start < 10


def test_messages():
    rng = np.random.default_rng(0)
    scores = table(rng)
    level = chances(scores)
    with pytest.raises(ValueError, match=r"chance level: expected one for .*'s2'.*'ridge'"):
        records(scores, level[(level["subject"] != "s2") | (level["decoder"] != "ridge")], generator=rng)
    with pytest.raises(ValueError, match="chance levels: expected one per group of scores, got 8 for 4"):
        records(scores, pd.concat([level, level]), generator=rng)
    with pytest.raises(ValueError, match=r"scores: expected columns .* got none of the name \['circular'\]"):
        records(scores.drop(columns="circular"), level, generator=rng)
    with pytest.raises(ValueError, match=r"scores of metric 'ssim', subject 's1', decoder 'deep'.*infinity in 1"):
        records(scores.assign(value=[np.nan, *scores["value"][1:]]), level, generator=rng)
    with pytest.raises(ValueError, match=r"baseline: expected one of the decoders \['deep', 'ridge'\].*got 'mean'"):
        differences(scores, baseline="mean", generator=rng)


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.2425), (1.0, 0.7575, 1.0)])
def test_a_mean_over_subjects_that_are_all_wrong_or_all_right_has_an_interval(value, low, high):
    scores = table(np.random.default_rng(0), decoders=("deep",), n=12, proportion=True).assign(value=value)
    mean = by(records(scores, chances(scores), generator=np.random.default_rng(0)), subject="mean")
    np.testing.assert_allclose([mean["value"], mean["low"], mean["high"]], [value, low, high], atol=1e-4)  # Wilson, 12
