"""Sentences, warnings, numbers and tables follow the records."""

from __future__ import annotations

import io
import json

import pytest
from fake_outputs import FakeOutputs, meaning_of, rewrite
from rich.console import Console

from brain2img.meaning import Meaning
from brain2img.metrics.transductive_retrieval import TransductiveRetrieval
from brain2img.report.reading import Results
from brain2img.report.sentences import main_result, warnings_of
from brain2img.report.style import interval, number
from brain2img.report.summary import summary_table
from brain2img.report.tables import difference_table, score_table

HEAD = {"space": "clip", "metric": "top1", "direction": "image_from_brain"}


def small(fake: FakeOutputs, *, deep: float = 0.43, headline: dict | None = None, **difference) -> FakeOutputs:
    for decoder, value in (("mindbridge", deep), ("ridge", 0.39)):
        fake.members.append({"study": "s_fmri", "modality": "fmri", "decoder": decoder, "headline": headline or HEAD})
        for subject in ("sub-01", "sub-02", "mean"):
            fake.record("s_fmri", subject, decoder, value)
            for condition in ("noise", "shuffled", "mean"):
                fake.record("s_fmri", subject, decoder, 0.05, condition=condition)
    fake.differences.append({"study": "s_fmri", "subject": "mean", "metric": "top1", "space": "clip", "n": 20,
                             "direction": "image_from_brain", "of": "embeddings", "generator": "",
                             "decoder": "mindbridge", "baseline": "ridge",
                             "value": 0.04, "low": 0.012, "high": 0.068, **difference})
    return fake


def test_result_has_the_numbers(fake):
    fake = small(fake)
    fake.record("s_fmri", "mean", "ceiling", 0.97, space="generator")
    lines = main_result(Results(fake.write()), "s_fmri")
    assert lines[0] == ("From fMRI of 2 simulated subjects, MindBridge picks the seen image out of 20 in 43 % of "
                        "trials (95 % interval 39.9–46.2 %; chance 5 %; ridge 39 %; ideal observer 97 %; "
                        "2 repetitions averaged).")
    assert lines[1:] == ["MindBridge beats ridge: paired difference +4 points, 95 % interval +1.2 to +6.8 points."]


@pytest.mark.parametrize(("low", "high", "said"), [
    (-0.01, 0.05, "does not beat ridge"), (-0.05, -0.01, "does worse than ridge"), (0.01, 0.05, "beats ridge")])
def test_result_says_whether_ridge_is_beaten(fake, low, high, said):
    results = Results(small(fake, value=(low + high) / 2, low=low, high=high).write())
    assert f"MindBridge {said}" in main_result(results, "s_fmri")[1]
    verdict = {"does not beat ridge": "no difference shown", "does worse than ridge": "worse", "beats ridge": "better"}
    assert [line["verdict"] for line in difference_table(results)] == [verdict[said]]


def test_a_lower_error_is_the_better_one(fake):
    head = {"space": "", "metric": "mse", "direction": ""}
    fake = small(fake, headline=head, metric="mse", space="", direction="", of="images", generator="pixels",
                 value=-0.01, low=-0.02, high=-0.004)
    for decoder, value in (("mindbridge", 0.03), ("ridge", 0.04)):
        fake.record("s_fmri", "mean", decoder, value, metric="mse", space="", direction="", gallery=0, chance=0.09,
                    low=value - 0.002, high=value + 0.002)
    results = Results(fake.write())
    lines = main_result(results, "s_fmri")
    assert "reaches MSE 0.0300" in lines[0]
    assert "lower is better" in lines[0]
    assert "not above chance" not in " ".join(lines)
    assert lines[-1].startswith("MindBridge beats ridge: paired difference −0.0100, 95 % interval −0.0200 to −0.0040")
    table = score_table(results, "s_fmri", of="images")
    assert table.rows[0].cells[0].best
    assert not table.rows[1].cells[0].best


@pytest.mark.parametrize(("value", "chance", "informed"), [(0.31, 0.4, True), (0.46, 0.4, False)])
def test_the_metric_says_which_way_is_good_and_its_name_nothing(fake, value, chance, informed):
    """An error that a contributor adds, with a name and a unit that the report has never heard of."""
    head = {"space": "clip", "metric": "angle", "direction": ""}
    meaning = {"label": "angle", "unit": "rad", "decimals": 2, "higher_is_better": False, "descriptive": False}
    fake = small(fake, headline=head, metric="angle", direction="", value=-0.05, low=-0.08, high=-0.02, **meaning)
    for decoder, more in (("mindbridge", 0.0), ("ridge", 0.05)):
        fake.record("s_fmri", "mean", decoder, value + more, metric="angle", direction="", gallery=0, chance=chance,
                    low=value + more - 0.02, high=value + more + 0.02, **meaning)
    results = Results(fake.write())
    lines = main_result(results, "s_fmri")
    assert f"reaches angle {value:.2f} rad" in lines[0]
    assert ("not above chance" not in " ".join(lines)) == informed
    assert lines[-1] == ("MindBridge beats ridge: paired difference −0.05 rad, 95 % interval −0.08 to −0.02 rad "
                         "(lower is better).")
    table = score_table(results, "s_fmri")
    assert table.heads[0][0] == "angle ↓"
    assert table.rows[0].cells[0].best


def test_another_baseline_than_ridge_is_compared_with(fake):
    fake = small(fake, baseline="pooled_ridge")
    fake.baseline = "pooled_ridge"
    for line in (*fake.members, *fake.records):
        line["decoder"] = line["decoder"].replace("ridge", "pooled_ridge") if line["decoder"] == "ridge" else line[
            "decoder"]
    results = Results(fake.write())
    lines = main_result(results, "s_fmri")
    assert "pooled ridge 39 %" in lines[0]
    assert lines[1].startswith("MindBridge beats pooled ridge: paired difference +4 points")
    assert [member.is_baseline for member in results.members_of("s_fmri")] == [False, True]


def test_a_score_that_describes_is_above_chance_in_no_control(fake):
    fake = small(fake)
    fake.record("s_fmri", "mean", "ridge", 3.0, condition="noise", metric="hubness", chance=1.0)
    fake.record("s_fmri", "mean", "ridge", 0.2, condition="noise", metric="hubness", chance=1.0)
    results = Results(fake.write())
    assert warnings_of(results) == []
    column = next(c for c in Results(fake.write("again")).columns("s_fmri") if c.metric == "top1")
    assert column.meaning.higher_is_better
    hubness = TransductiveRetrieval().meaning("hubness")
    assert not hubness.higher_is_better
    assert hubness.descriptive


def test_scores_that_do_not_say_what_they_mean_are_refused(fake):
    folder = small(fake).write()
    summary = json.loads((folder / "summary.json").read_text())
    rewrite(folder, records=[{k: v for k, v in r.items() if k != "higher_is_better"} for r in summary["records"]])
    with pytest.raises(ValueError, match=r"summary of 'tiny': expected scores that say .* Evaluate again with over"):
        Results(folder)


def test_result_admits_chance(fake):
    lines = main_result(Results(small(fake, deep=0.06).write()), "s_fmri")
    assert lines[1].startswith("This is not above chance")


def test_result_admits_that_one_guess_for_all_does_as_well(fake):
    head = {"space": "pixels", "metric": "ssim", "direction": ""}
    fake.members.append({"study": "s_fmri", "modality": "fmri", "decoder": "ridge", "headline": head})
    picture = {"metric": "ssim", "space": "", "direction": "", "gallery": 0, "chance": 0.3, "chance_kind": "re-pairing"}
    fake.record("s_fmri", "sub-01", "ridge", 0.39, **picture)
    fake.record("s_fmri", "sub-01", "ridge", 0.38, condition="mean", **picture)
    lines = main_result(Results(fake.write()), "s_fmri")
    assert "chance 0.300; the mean for every image 0.380" in lines[0]
    assert lines[1:] == ["This is no better than giving the mean for every image."]


def test_only_subject_stands_for_the_mean(fake):
    fake.members.append({"study": "s_fmri", "modality": "fmri", "decoder": "ridge", "headline": HEAD})
    fake.record("s_fmri", "sub-01", "ridge", 0.39)
    assert "ridge picks the seen image out of 20 in 39 %" in main_result(Results(fake.write()), "s_fmri")[0]


def test_no_warning_without_cause(fake):
    assert warnings_of(Results(small(fake).write())) == []


def test_control_above_chance_is_a_severe_warning(fake):
    fake = small(fake)
    for record in fake.records:
        if record["condition"] == "noise" and record["subject"] == "mean" and record["decoder"] == "mindbridge":
            record.update(value=0.2, low=0.15, high=0.25)
    results = Results(fake.write())
    (warning,) = warnings_of(results)
    assert warning.title == "Control row above chance"
    assert warning.severe
    assert warning.details == ("s_fmri, mean over subjects, MindBridge, noise input: top-1 (of 20, in clip, image from "
                               "brain) 20 %, interval 15–25 %, chance 5 %",)
    alarmed = [(r.label, r.condition) for r in score_table(results, "s_fmri").rows if any(c.alarm for c in r.cells)]
    assert alarmed == [("MindBridge", "noise input")]


@pytest.mark.parametrize(("condition", "warned"), [("mean", False), ("noise", False), ("shuffled", True)])
def test_pictures_of_nothing_may_beat_repaired_pictures(fake, condition, warned):
    fake = small(fake)
    fake.record("s_fmri", "mean", "ridge", 0.4, condition=condition, metric="ssim", space="", direction="", gallery=0,
                chance=0.3, chance_kind="re-pairing")
    assert bool(warnings_of(Results(fake.write()))) == warned


def test_circular_and_transductive_scores_are_named(fake):
    fake = small(fake)
    fake.record("s_fmri", "mean", "ridge", 0.9, space="vae", circular=True)
    fake.record("s_fmri", "mean", "ridge", 0.6, metric="top1_csls", transductive=True)
    results = Results(fake.write())
    titles = {w.title: w.text for w in warnings_of(results)}
    assert "top-1 of embeddings in vae" in titles["Circular scores"]
    assert "top-1 csls" in titles["Transductive scores"]
    assert results.headline("s_fmri").space == "clip"
    assert not results.headline("s_fmri").transductive


def test_score_above_the_ceiling_is_suspicious(fake):
    fake = small(fake)
    fake.record("s_fmri", "mean", "ceiling", 0.3, space="generator")
    assert [w.title for w in warnings_of(Results(fake.write()))] == ["Score above the ceiling"]


def test_tables_take_the_most_repetitions(fake):
    fake = small(fake)
    fake.record("s_fmri", "mean", "mindbridge", 0.11, repetitions=1)
    assert score_table(Results(fake.write()), "s_fmri").rows[0].cells[0].value == "43 %"


@pytest.mark.parametrize(("value", "metric", "said"), [
    (0.4312, "top1", "43.1 %"), (1.0, "two_way", "100 %"), (0.005, "top1", "0.5 %"), (0.45149, "ssim", "0.451"),
    (float("nan"), "top1", "–"), (None, "ssim", "–"), (-0.00001, "pixcorr", "0.000"), (-0.25, "pcc", "−0.250")])
def test_numbers(value, metric, said):
    assert number(value, Meaning(**meaning_of(metric))) == said


def test_intervals():
    top1 = Meaning("top-1", "%")
    assert interval(0.401, 0.46, top1) == "40.1–46 %"
    assert interval(-0.012, 0.022, top1, sign=True) == "−1.2 to +2.2 points"
    assert interval(float("nan"), 1.0, top1) == ""


def test_table_that_ends_a_pipeline(full):
    summary = json.loads((full[1] / "summary.json").read_text())
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(summary))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["scenes_fmri", "MindBridge", "43", "%", "[39.9–46.2]", *["5", "%"] * 4] in lines
    assert ["top-1", "of", "20", "ridge", "39", "%", "[35.9–42.2]", *["5", "%"] * 4] in lines
    assert sum("observer" in line for line in lines) == 2


def test_table_of_a_summary_with_gaps():
    console = Console(file=io.StringIO(), width=100)
    console.print(summary_table({"records": [], "members": [{"study": "a", "decoder": "ridge"}]}))
    assert "ridge" in console.file.getvalue()
