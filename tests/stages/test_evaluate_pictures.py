"""Scores of pictures and captions: by generator and condition, on the rendered stimuli, circular where they are."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from made_outputs import CONDITIONS, JUDGE, N_RENDERED, N_TEST, READER, SAME, TARGET, ColourReader, judged, make

from brain2img.report.reading import Results
from brain2img.stages import build
from brain2img.stages.evaluate import evaluate


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Return the folder of scores of one member, and how many pictures the network looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_trusted", ("made_outputs",))
        ColourReader.looked = 0
        cfg = make(tmp_path_factory.mktemp("outputs"), label="ridge", noise=60, target=TARGET)
        return evaluate(judged(cfg, judge=JUDGE, reader=READER, same=SAME)), ColourReader.looked


@pytest.fixture(scope="module")
def table(scored):
    return pd.DataFrame(json.loads((scored[0] / "summary.json").read_text())["records"])


def value(table, metric, *, space="", condition="decoded", generator="painter", decoder="ridge", subject="mean",
          column="value"):
    found = table[(table["metric"] == metric) & (table["space"] == space) & (table["condition"] == condition)
                  & (table["generator"] == generator) & (table["decoder"] == decoder) & (table["subject"] == subject)
                  & table["direction"].isin(["", "image_from_brain"])]
    return found[column].item()


def test_every_score_says_what_it_is_about(table):
    ours = table[table["decoder"] == "ridge"]
    assert set(zip(ours["of"], ours["generator"], strict=True)) == {
        ("embeddings", ""), ("images", "painter"), ("images", "blur"), ("captions", "speaker")}
    for _, group in ours.groupby(["of", "generator"]):
        assert set(group["condition"]) == set(CONDITIONS)


def test_pictures_are_scored_on_the_rendered_stimuli(table):
    assert set(table.loc[table["of"] == "embeddings", "n"]) == {N_TEST}
    assert set(table.loc[table["of"].isin(["images", "captions"]), "n"]) == {N_RENDERED}
    seen = table[(table["metric"] == "two_way") & (table["direction"] == "image_from_brain")]
    assert set(seen["gallery"]) == {N_RENDERED}


def test_what_was_planted_is_found_and_nothing_in_controls(table):
    assert value(table, "two_way", space="judge") > 0.9
    assert value(table, "two_way", space="judge", condition="true") == 1
    assert value(table, "two_way", space="judge", condition="mean") == pytest.approx(0.5)
    assert value(table, "two_way", space="judge", column="chance") == 0.5
    # 99.9 % of the means of 32 shares with a standard deviation of at most 0.5
    margin = 3.29 * 0.5 / np.sqrt(2 * N_RENDERED)
    for condition in ("noise", "shuffled"):
        assert abs(value(table, "two_way", space="judge", condition=condition) - 0.5) < margin
    assert value(table, "pixcorr") > value(table, "pixcorr", condition="noise") + 0.2
    assert value(table, "pixcorr", generator="blur") > value(table, "pixcorr") > 0.5
    assert value(table, "named_colour", generator="speaker") == 1
    assert value(table, "named_colour", generator="speaker", condition="noise") == 0.25


def test_true_attributes_are_those_of_the_study_not_what_the_network_reads(table):
    """The reader takes blue for grey: its own error stays, in the stimuli themselves as in the pictures."""
    name = "attribute_accuracy/colour"
    assert value(table, name, space="reader", decoder="stimuli", generator="") == 0.75
    assert value(table, name, space="reader") == 0.75
    assert value(table, name, space="reader", condition="true") == 0.75
    assert value(table, "pixcorr", decoder="stimuli", generator="") == pytest.approx(1)
    assert value(table, "two_way", space="judge", decoder="stimuli", generator="") == 1


def test_a_score_in_a_target_space_is_circular_for_pictures_alone(table):
    marked = table[table["circular"]]
    assert set(zip(marked["of"], marked["space"], marked["decoder"], strict=True)) == {("images", "same", "ridge")}
    assert set(marked["generator"]) == {"painter", "blur"}
    assert not table.loc[(table["of"] == "embeddings") & (table["space"] == "pixels"), "circular"].any()


def test_every_picture_is_looked_at_once(scored):
    # two generators; decoded (shuffled are the same but for those not rendered), noise, one mean, true once, stimuli
    shuffled = 2  # per subject one picture of a stimulus that is not rendered comes in
    assert scored[1] == N_RENDERED + 2 * (2 * N_RENDERED + shuffled + 2 * N_RENDERED + 1 + N_RENDERED)


def test_rows_lie_in_scores_parquet(scored):
    rows = pd.read_parquet(scored[0] / "scores.parquet")
    one = rows[(rows["metric"] == "pixcorr") & (rows["generator"] == "painter") & (rows["condition"] == "decoded")]
    assert len(one) == 2 * N_RENDERED
    assert {"of", "generator", "circular", "stimulus_id"} <= set(rows)


def test_report_shows_them(scored):
    html = (scored[0] / "report.html").read_text().replace("\u00a0", " ")
    assert f"Pictures by painter and blur, of {N_RENDERED} test images per subject." in html
    assert f"n = {N_RENDERED} of the {N_TEST} test images of each subject" in html
    assert "the generator alone" in html
    assert "Circular scores" in html
    results = Results(scored[0])
    assert results.generators("s", "images") == ["painter", "blur"]


def test_a_circular_score_is_no_headline(tmp_path):
    cfg = make(tmp_path, label="ridge", noise=60, target=TARGET, said=False)
    cfg = judged(cfg, same=SAME)
    cfg.headline = {"space": "same", "metric": "two_way", "direction": "image_from_brain"}
    results = Results(evaluate(cfg))
    assert results.headline("s") is None
    html = (results.folder / "report.html").read_text()
    assert "two-way is circular here, so it is no result" in html


def test_decoders_are_compared_by_the_same_generator(tmp_path, monkeypatch):
    from brain2img.stages import evaluate as stage

    configs = [judged(make(tmp_path, label="deep", noise=30, target=TARGET), judge=JUDGE),
               judged(make(tmp_path, label="ridge", noise=120, target=TARGET, seed=1), judge=JUDGE)]
    monkeypatch.setattr(stage, "members", lambda cfg: configs)
    summary = json.loads((evaluate(configs[0].copy()) / "summary.json").read_text())
    table = pd.DataFrame(summary["differences"])
    found = table[(table["metric"] == "pixcorr") & (table["subject"] == "mean")].set_index("generator")
    assert set(found.index) == {"painter", "blur"}
    assert found.loc["painter", "low"] > 0
    assert set(table["baseline"]) == {"ridge"}
