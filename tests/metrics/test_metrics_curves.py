"""Accuracy over windows: tables, peaks and onset, from ranks made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brain2img.metrics.curves import clusters, half_maximum, peak, peaks, table_of

GALLERY = 40


def ranks(*, tops, subjects=("sub-01",), seed=0, kind="sliding"):
    """Return ranks over ten windows of 100 ms; the space peaks in window `tops[space]`, two windows wide."""
    rng, lines = np.random.default_rng(seed), []
    for space, top in tops.items():
        for window in range(10):
            share = 0.0 if top is None else max(0.0, 1 - abs(window - top) / 2)
            for subject in subjects:
                known = rng.random(GALLERY) < share
                rank = np.where(known, 1, rng.integers(1, GALLERY + 1, GALLERY))
                lines.append(pd.DataFrame({
                    "kind": kind, "name": f"{window}", "start": window / 10, "stop": (window + 1) / 10,
                    "n_channels": None, "space": space, "subject": subject, "candidates": GALLERY,
                    "stimulus_id": [f"s{i:02d}" for i in range(GALLERY)], "above": rank - 1, "tied": 0}))
    return pd.concat(lines, ignore_index=True)


def test_peak_and_half_maximum_by_hand():
    times = np.array([0.0, 0.1, 0.2, 0.3])
    assert peak(times, np.array([0.0, 0.2, 1.0, 0.9])) == 0.2
    assert half_maximum(times, np.array([0.0, 0.2, 1.0, 0.9])) == pytest.approx(0.1 + 0.1 * 0.3 / 0.8)
    assert half_maximum(times, np.array([0.9, 0.2, 1.0, 0.9])) == 0.0


def test_the_space_that_comes_first_peaks_first():
    found = peaks(ranks(tops={"early": 2, "late": 6}), seed=0).set_index(["space", "what", "later_than"])
    assert found.at[("early", "peak", ""), "time"] == pytest.approx(0.25)
    assert found.at[("late", "peak", ""), "time"] == pytest.approx(0.65)
    later = found.loc[("late", "peak", "early")]
    assert later["time"] == pytest.approx(0.4)
    assert 0 < later["low"] <= later["time"] <= later["high"]
    assert found.at[("early", "half", ""), "time"] < found.at[("early", "peak", ""), "time"]


@pytest.mark.parametrize(("n_subjects", "unit", "n_units"), [(2, "stimulus", GALLERY), (8, "subject", 8)])
def test_onset_is_where_it_was_planted(n_subjects, unit, n_units):
    table = ranks(tops={"late": 6, "none": None}, subjects=[f"sub-{i:02d}" for i in range(n_subjects)])
    found = clusters(table, seed=0)
    over = found[found["p"] < 0.05]
    assert set(over["space"]) == {"late"}
    # windows 5 to 7; the ends of a cluster have no error rate, and a window of noise beside it may join
    assert over["first_start"].tolist()[0] in (0.4, 0.5)
    assert over["last_start"].tolist()[0] in (0.7, 0.8)
    assert len(over) == 1
    assert set(over["unit"]) == {unit}
    assert set(over["n_units"]) == {n_units}


def test_tables_are_means_with_chance_and_drops():
    whole = ranks(tops={"a": 2}, subjects=("sub-01", "sub-02"))
    whole = whole[whole["name"] == "2"].assign(kind="whole", name="all")
    without = ranks(tops={"a": None}, subjects=("sub-01", "sub-02"))
    without = without[without["name"] == "2"].assign(kind="sensor", name="Oz")
    table = table_of(pd.concat([whole, without]), seed=0).set_index(["kind", "subject", "metric"]).sort_index()
    assert table.loc[("whole", "mean"), "value"].to_dict() == {"top1": 1.0, "top5": 1.0, "two_way": 1.0}
    chance = table.loc[("whole", "mean"), "chance"].to_dict()
    assert chance == pytest.approx({"top1": 1 / 40, "top5": 5 / 40, "two_way": 0.5})
    sensor = table.loc[("sensor", "sub-02", "two_way")]
    assert sensor["drop"] == pytest.approx(
        without.loc[without["subject"] == "sub-02", "above"].mean() / (GALLERY - 1))
    assert sensor["drop_low"] < sensor["drop"] < sensor["drop_high"]
