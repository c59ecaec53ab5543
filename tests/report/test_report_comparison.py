"""Runs side by side: what is compared with what, paired differences, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fake_outputs import N_TEST, FakeOutputs, fmri_spec, rewrite
from matplotlib.text import Text

from brain2img.report.comparison import compare, figure, markdown, table_of, write_comparison
from brain2img.report.reading import Results

KEYS = {"modality": "fmri", "condition": "decoded", "of": "embeddings", "generator": "", "space": "clip",
        "metric": "top1", "direction": "image_from_brain", "gallery": N_TEST, "repetitions": 2, "transductive": False,
        "circular": False, "proportion": True}


def row_scores(decoder, values, *, study="scenes_fmri"):
    """Return row-level scores, ``(subjects, stimuli)`` of them."""
    return pd.DataFrame([{**KEYS, "study": study, "subject": f"sub-0{s + 1}", "decoder": decoder, "row": i,
                          "stimulus_id": f"test-{i}", "value": float(v)}
                         for s, row in enumerate(values) for i, v in enumerate(row)])


def all_of(*folders, **more):
    found = [(results, member) for results in map(Results, folders) for member in results.members]
    return compare(found, parameters=more.pop("parameters", {}), baseline="ridge", **more)


@pytest.fixture
def two(tmp_path):
    """Return two scores folders of one study: the first with MindBridge and ridge, the second with one more decoder."""
    fake = FakeOutputs(tmp_path)
    fake.scenes("scenes_fmri", [fmri_spec(s, fake.rng) for s in ("sub-01", "sub-02")], "mindbridge")
    hits = {name: fake.rng.random((2, N_TEST)) < share for name, share in (("mindbridge", 0.6), ("ridge", 0.3))}
    fake.scores = [row_scores(name, values) for name, values in hits.items()]
    first = fake.write("first")
    other = FakeOutputs(tmp_path)
    other.rng, other.members = fake.rng, [{**fake.members[0], "decoder": "mindeye", "experiment": "scenes/mindeye",
                                           "seconds": {"train": 7300.0}}]
    for subject in ("sub-01", "sub-02", "mean"):
        other.record("scenes_fmri", subject, "mindeye", 0.5)
    hits["mindeye"] = fake.rng.random((2, N_TEST)) < 0.9
    other.scores = [row_scores("mindeye", hits["mindeye"])]
    return first, other.write("second"), hits


def test_runs_of_one_study_share_a_table_and_differences_are_paired_across_folders(two):
    first, second, hits = two
    (group,) = all_of(first, second, parameters={(str(second), "scenes/mindeye"): 1234})
    assert group.title == f"scenes_fmri: top-1 of {N_TEST}, in clip, image from brain, 2 repetitions averaged"
    table = table_of([group]).set_index("decoder")
    assert list(table.index) == ["mindbridge", "ridge", "mindeye"]
    # in its own folder the difference of the report, else by stimulus
    assert table.loc["mindbridge", ["difference", "difference_low", "difference_high"]].tolist() == [0.04, 0.012, 0.068]
    expected = (hits["mindeye"].astype(float) - hits["ridge"]).mean()
    assert table.loc["mindeye", "difference"] == pytest.approx(expected)
    assert table.loc["mindeye", "difference_low"] < expected < table.loc["mindeye", "difference_high"]
    assert np.isnan(table.loc["ridge", "difference"])
    assert table.loc["mindbridge", ["value", "low", "high", "chance"]].tolist() == pytest.approx(
        [0.43, 0.399, 0.462, 0.05])
    assert table.loc["mindbridge", ["noise", "shuffled", "mean"]].tolist() == [0.05] * 3
    assert np.isnan(table.loc["mindeye", "noise"])
    text = markdown([group], baseline="ridge")
    assert "| scenes/mindeye | MindEye | 1,234 | 2 | **50 [46.9, 53.2]** | 5 | – / – / – |" in text
    assert text.count("**50 ") == 1
    assert "43 [39.9, 46.2]" in text
    assert "| 2.0 h |" in text


def test_other_subjects_and_other_stimuli_are_not_paired_and_not_ranked(two):
    first, second, _ = two
    entry = Results(second).members[0].entry
    rewrite(second, members=[{**entry, "subjects": ["sub-01"]}])
    (group,) = all_of(first, second)
    assert group.lines[2]["paired_subjects"] == 2  # what was scored, not what is stated
    assert "**50" not in markdown([group], baseline="ridge")
    table = pd.read_parquet(second / "scores.parquet")
    table.assign(stimulus_id="x" + table["stimulus_id"]).to_parquet(second / "scores.parquet")
    (group,) = all_of(first, second)
    assert np.isnan(group.lines[2]["difference"])


@pytest.mark.parametrize("change", ["study", "prepared", "gallery", "repetitions"])
def test_what_differs_in_study_gallery_or_repetitions_stands_in_a_table_of_its_own(two, change, tmp_path):
    first, second, _ = two
    summary = Results(second).summary
    if change == "prepared":
        rewrite(second, members=[{**summary["members"][0], "prepared": "prepared/elsewhere"}])
    elif change == "study":
        rewrite(second, members=[{**summary["members"][0], "study": "nsd"}],
                records=[{**r, "study": "nsd"} for r in summary["records"]])
    else:
        rewrite(second, records=[{**r, change: 7} for r in summary["records"]])
    groups = all_of(first, second)
    assert [len(group.lines) for group in groups] == [2, 1]
    assert len({group.title for group in groups}) == 2
    assert np.isnan(groups[1].lines[0]["difference"])
    assert "**50" not in markdown(groups, baseline="ridge")
    assert table_of(groups)["group"].tolist() == [0, 0, 1]
    write_comparison(tmp_path, groups, name="a <b>", baseline="ridge")
    made = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert made.count("<table>") == 2
    assert "a &lt;b&gt;" in made
    assert "data:image/png;base64," in made


def test_titles_of_the_figure_are_not_cut_off(two):
    first, second, _ = two
    (group,) = all_of(first, second)
    group.study = "a study of a long name"
    drawn = figure([group], baseline="ridge")
    drawn.draw_without_rendering()
    (title,) = drawn.findobj(lambda part: isinstance(part, Text) and part.get_text().startswith("a study"))
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawn.bbox.x1
    assert 0 <= box.y0 < box.y1 <= drawn.bbox.y1


def test_a_run_without_its_headline_is_refused(two):
    _, second, _ = two
    rewrite(second, records=[])
    with pytest.raises(ValueError, match=r"second, mindeye: expected its headline score .* got none among its records"):
        all_of(second)
