"""The grid shows what was ranked, by the rule it states."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fake_outputs import N_TEST, N_TRAIN, FakeOutputs, fmri_spec
from scipy.stats import rankdata

from brain2img.report.drawing import draw_grid
from brain2img.report.grid import build_grid, choose, ranks, score_trials
from brain2img.report.reading import Results
from brain2img.report.style import colours


def test_ranks_agree_with_scipy():
    rng = np.random.default_rng(0)
    decoded, gallery = rng.normal(size=(7, 3, 2)), rng.normal(size=(11, 3, 2))
    gallery[4] = gallery[5]  # a tie
    truth = np.array([4, 5, 0, 1, 2, 3, 10])
    rank, retrieved, similarity = ranks(decoded, gallery, truth=truth)
    a, b = decoded.reshape(7, -1), gallery.reshape(11, -1)
    cosine = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    expected = [rankdata(-np.round(row, 12))[t] for row, t in zip(cosine, truth, strict=True)]
    np.testing.assert_allclose(rank, expected)
    np.testing.assert_array_equal(retrieved, cosine.argmax(1))
    np.testing.assert_allclose(similarity, cosine[np.arange(7), truth])


def test_a_row_with_nan_knows_nothing_and_ties_with_all():
    gallery = np.eye(4)
    decoded = gallery.copy()
    decoded[2, 0] = np.nan
    assert ranks(decoded, gallery, truth=np.arange(4))[0].tolist() == [1, 1, 2.5, 1]


@pytest.mark.parametrize("n", [4, 5, 7, 8, 9, 13, 40])
def test_choice_is_some_at_random_then_first_middle_last_and_none_twice(n):
    table = pd.DataFrame({"place": np.arange(n), "stimulus_id": [f"test-{i}" for i in range(n)]})
    chosen, groups = choose(table)
    k = min(2, n // 4)
    places = chosen["place"].tolist()
    assert groups == [("drawn at random", k), ("best", k), ("middle", k), ("worst", k)]
    assert places[k:2 * k] == list(range(k))
    assert places[-k:] == list(range(n - k, n))
    assert len(set(places)) == 4 * k
    assert abs(np.mean(places[2 * k:3 * k]) - (n - 1) / 2) <= 0.5
    assert choose(table)[0]["place"].tolist() == places


def test_stimuli_that_several_subjects_saw_are_shown_once():
    table = pd.DataFrame({"place": np.arange(40), "stimulus_id": [f"test-{i // 2}" for i in range(40)]})
    chosen, _ = choose(table)
    assert chosen["stimulus_id"].is_unique
    assert chosen["place"].tolist()[2:4] == [0, 2]
    assert chosen["place"].tolist()[6:] == [37, 39]
    same, _ = choose(table.assign(stimulus_id="test-0"))
    assert same["place"].is_unique


def test_few_trials_are_all_shown():
    assert choose(pd.DataFrame({"place": [0, 1, 2]}))[1] == [("all", 3)]


def test_grid_follows_the_ranks(full):
    results = Results(full[1])
    grid = build_grid(results, "scenes_fmri")
    scored, _ = score_trials(results, "scenes_fmri")
    assert len(scored) == 2 * N_TEST
    assert scored["score"].is_monotonic_increasing
    nearest = next(line for line in grid.lines if line.decoder == "mindbridge" and line.sub.startswith("nearest"))
    shown = [float(t.caption.removeprefix("true: rank ")) for t in nearest.tiles]
    assert shown == grid.trials["score"].tolist()
    assert shown[2:] == sorted(shown[2:])
    assert shown[2] == scored["score"].min()
    assert shown[-1] == scored["score"].max()
    # the stimulus is the seen one, and a retrieved image of rank 1 is the same
    images = full[0].images["scenes_fmri"]
    for i, name in enumerate(grid.trials["stimulus_id"]):
        seen = images[N_TRAIN + int(name.removeprefix("test-"))]
        np.testing.assert_array_equal(grid.lines[0].tiles[i].image, seen)
        assert np.array_equal(nearest.tiles[i].image, seen) == (shown[i] == 1) == nearest.tiles[i].right
    assert [(line.label, line.sub) for line in grid.lines] == [
        ("stimulus", "what was seen"), ("ceiling", "decoded pixels from the true embedding"),
        ("MindBridge", "decoded pixels"), ("ridge", "decoded pixels"), ("MindBridge", f"nearest of {N_TEST}")]
    assert grid.colours == colours(results.decoders, baseline="ridge")
    assert "None was picked by hand" in grid.how
    assert grid.heads == grid.trials["subject"].tolist()


def repeated(fake: FakeOutputs, metric: str) -> Results:
    """Return a study with two rows per stimulus whose scores are known, one stimulus without a score."""
    prepared = fake.prepare("s_fmri", [fmri_spec("sub-01", fake.rng)])
    fake.members.append({
        "study": "s_fmri", "modality": "fmri", "decoder": "ridge", "prepared": prepared,
        "headline": {"space": "", "metric": metric, "direction": ""},
        "predictions": {"decoded": fake.predict("p", ["sub-01"], np.zeros((2 * N_TEST, 4)), space="pixels",
                                                repeats=2)}})
    fake.record("s_fmri", "sub-01", "ridge", 0.5, metric=metric, space="", direction="", gallery=0)
    first = np.arange(N_TEST, dtype=float)
    values = np.concatenate([first, first + 0.5])
    values[[3, N_TEST + 3]] = np.nan
    fake.scores.append(pd.DataFrame({
        "study": "s_fmri", "subject": "sub-01", "decoder": "ridge", "condition": "decoded", "space": "",
        "of": "images", "generator": "pixels", "stimulus_id": [f"test-{i}" for i in range(N_TEST)] * 2,
        "metric": metric, "direction": "", "gallery": 0, "repetitions": 1, "transductive": False, "value": values,
        "row": np.arange(2 * N_TEST)}))
    return Results(fake.write())


@pytest.mark.parametrize(("metric", "best"), [("ssim", N_TEST - 1), ("mse", 0)])
def test_repeats_are_averaged_and_missing_scores_left_out(fake, metric, best):
    results = repeated(fake, metric)
    trials, by = score_trials(results, "s_fmri")
    assert len(trials) == N_TEST - 1
    assert trials["stimulus_id"].iloc[0] == f"test-{best}"
    assert trials["score"].iloc[0] == best + 0.25
    assert "test-3" not in set(trials["stimulus_id"])
    assert ("MSE" if metric == "mse" else "SSIM") in by
    grid = build_grid(results, "s_fmri")
    assert [line.label for line in grid.lines] == ["stimulus"]
    assert draw_grid(grid).height > 200
