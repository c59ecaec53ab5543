"""Pictures and captions in tables, sentences, grid and on the console; their numbers, their n and their controls."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from fake_outputs import N_TEST, N_TRAIN, FakeOutputs, fmri_spec, meaning_of
from rich.console import Console

from brain2img.metrics.caption_attributes import CaptionAttributes
from brain2img.metrics.ranking import RankScore
from brain2img.report.drawing import MOST_LINES, draw_grid, font, wrapped
from brain2img.report.grid import build_grid
from brain2img.report.made import made_results
from brain2img.report.reading import Results
from brain2img.report.style import Column, column_label
from brain2img.report.summary import summary_table
from brain2img.report.tables import difference_table, score_tables

N_RENDERED = 12
SUBJECTS = ["sub-01", "sub-02"]
PICTURE = {"of": "images", "space": "", "direction": "", "gallery": 0, "n": N_RENDERED, "chance_kind": "re-pairing"}
SEEN = {**PICTURE, "space": "judge", "metric": "two_way", "direction": "image_from_brain", "gallery": N_RENDERED,
        "chance": 0.5, "chance_kind": "analytic"}
OBJECT = {**PICTURE, "space": "judge_attributes", "metric": "attribute_accuracy/kind", "chance": 0.04}
SAID = {**PICTURE, "of": "captions", "metric": "named_kind_and_colour", "chance": 0.01}


def record(fake: FakeOutputs, decoder: str, value: float, *, generator: str, **more) -> None:
    for subject in (*SUBJECTS, "mean"):
        fake.record("s_fmri", subject, decoder, value, generator=generator, **more)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """A study with two generators and a captioner for two decoders; pictures of 12 of the 20 test images."""
    fake = FakeOutputs(tmp_path_factory.mktemp("outputs"))
    fake.scenes("s_fmri", [fmri_spec(s, fake.rng, n_voxels=20) for s in SUBJECTS], "mindbridge")
    rendered = np.concatenate([fake.images["s_fmri"][N_TRAIN:N_TRAIN + N_RENDERED]] * 2)
    for member in fake.members:
        label = member["decoder"]
        member["reconstructions"] = {key: {c: fake.reconstruct(f"{label}/{key}/{c}", SUBJECTS, rendered, n=N_RENDERED)
                                           for c in ("decoded", "true")} for key in ("kandinsky", "pixels")}
        member["captions"] = {"prefix": {c: fake.caption(f"{label}/prefix/{c}", SUBJECTS, word=f"{label} {c}")
                                         for c in ("decoded", "true")}}
    fake.records = [r for r in fake.records if r["of"] == "embeddings"]
    for decoder, gain in (("mindbridge", 0.0), ("ridge", -0.1)):
        for condition, seen, thing, corr, said in (
                ("decoded", 0.85, 0.4, 0.45, 0.3), ("noise", 0.51, 0.05, 0.2, 0.01),
                ("shuffled", 0.5, 0.04, 0.18, 0.02), ("mean", 0.5, 0.06, 0.22, 0.03), ("true", 0.97, 0.75, 0.6, 0.9)):
            more = gain if condition == "decoded" else 0.0
            at = {"condition": condition}
            record(fake, decoder, corr + more, generator="kandinsky", metric="pixcorr", chance=0.05, **PICTURE, **at)
            record(fake, decoder, corr + more + 0.1, generator="pixels", metric="pixcorr", chance=0.1, **PICTURE, **at)
            record(fake, decoder, seen + more, generator="kandinsky", **SEEN, **at)
            record(fake, decoder, thing + more, generator="kandinsky", **OBJECT, **at)
            record(fake, decoder, said + more, generator="prefix", **SAID, **at)
            record(fake, decoder, 0.99, generator="kandinsky", **{**SEEN, "space": "clip", "circular": True}, **at)
    for value, kind in ((1.0, {**PICTURE, "metric": "pixcorr", "chance": 0.05}), (1.0, SEEN), (0.96, OBJECT)):
        record(fake, "stimuli", value, generator="", **kind)
    fake.differences += [{**PICTURE, "study": "s_fmri", "subject": "mean", "decoder": "mindbridge", "generator": g,
                          "baseline": "ridge", "value": 0.1, "low": 0.08, "high": 0.12, "circular": False,
                          "metric": "pixcorr"} for g in ("kandinsky", "pixels")]
    return Results(fake.write())


def test_three_tables(results):
    tables = score_tables(results, "s_fmri")
    assert [t.title for t in tables] == ["What was decoded", "Pictures made from it", "Captions made from it"]
    assert tables[1].heads == [
        ("two-way", f"of {N_RENDERED}, by the judge"), ("object right", "by the judge"), ("PixCorr", ""),
        ("two-way", f"of {N_RENDERED}, by clip")]
    assert tables[2].heads == [("object and colour named", "")]
    assert tables[1].note.startswith(f"n = {N_RENDERED} of the {N_TEST} test images of each subject")
    assert tables[0].note == ""


def test_lines_of_pictures(results):
    table = score_tables(results, "s_fmri")[1]
    assert [(r.label, r.generator, r.condition) for r in table.rows] == [
        ("MindBridge", "latent diffusion", "decoded"), ("MindBridge", "decoded pixels", "decoded"),
        ("ridge", "latent diffusion", "decoded"), ("ridge", "decoded pixels", "decoded"),
        ("MindBridge", "latent diffusion", "noise input"), ("ridge", "latent diffusion", "noise input"),
        ("MindBridge", "latent diffusion", "shuffled pairs"), ("ridge", "latent diffusion", "shuffled pairs"),
        ("MindBridge", "latent diffusion", "mean embedding"), ("MindBridge", "latent diffusion", "true embedding"),
        ("the generator alone", "latent diffusion", "the better of noise and mean"),
        ("the stimuli themselves", "", "a reconstruction without a fault")]
    cells = {(r.label, r.generator, r.condition): [c.value for c in r.cells] for r in table.rows}
    assert cells["MindBridge", "latent diffusion", "decoded"] == ["85 %", "40 %", "0.450", "99 %"]
    alone = cells["the generator alone", "latent diffusion", "the better of noise and mean"]
    assert alone[:3] == ["51 %", "6 %", "0.220"]
    assert cells["the stimuli themselves", "", "a reconstruction without a fault"][:3] == ["100 %", "96 %", "1.000"]
    assert cells["MindBridge", "decoded pixels", "decoded"] == ["", "", "0.550", ""]


def test_the_best_is_the_best_of_all_generators_and_a_circular_score_never_is(results):
    table = score_tables(results, "s_fmri")[1]
    best = [(r.label, r.generator, i) for r in table.rows for i, c in enumerate(r.cells) if c.best]
    assert best == [("MindBridge", "latent diffusion", 0), ("MindBridge", "latent diffusion", 1),
                    ("MindBridge", "decoded pixels", 2)]
    assert table.rows[0].cells[3].mark == "↻"


def test_sentences_say_what_the_generator_adds(results):
    lines = made_results(results, "s_fmri")
    assert lines[0] == (
        "Pictures by latent diffusion of what MindBridge decoded: two-way by the judge 85 % (95 % interval "
        "81.9–88.2 %; chance 50 %), object right by the judge 40 % (95 % interval 36.9–43.2 %; chance 4 %) and "
        "PixCorr 0.450 (95 % interval 0.419–0.482; chance 0.050); 12 test images per subject.")
    assert ("Of PixCorr 0.450, it reaches 0.200 from noise and 0.220 from the mean embedding: so much is the "
            "generator's own. With ridge in MindBridge's place it is 0.350.") in lines
    said = " ".join(lines)
    assert "From the true embedding, as if decoding were perfect, it reaches two-way by the judge 97 %" in said
    assert "The judge names the object of 96 % of the stimuli themselves." in lines
    assert "Captions by prefix language model of what MindBridge decoded: object and colour named 30 %" in said
    assert "99 %" not in said


def test_differences_by_the_main_generator_stand_in_front(results):
    lines = [line for line in difference_table(results) if line["metric"] == "PixCorr"]
    assert {line["generator"]: line["main"] for line in lines} == {"latent diffusion": True, "decoded pixels": False}


def test_grid_shows_rendered_images_with_captions(results):
    grid = build_grid(results, "s_fmri")
    assert {int(s.removeprefix("test-")) for s in grid.trials["stimulus_id"]} <= set(range(N_RENDERED))
    assert [(line.label, line.sub) for line in grid.lines] == [
        ("stimulus", "what was seen"), ("ceiling", "latent diffusion from the true embedding"),
        ("MindBridge", "latent diffusion"), ("MindBridge", "decoded pixels"), ("ridge", "latent diffusion"),
        ("MindBridge", f"nearest of {N_TEST}")]
    for i, (subject, stimulus) in enumerate(zip(grid.trials["subject"], grid.trials["stimulus_id"], strict=True)):
        assert [line.tiles[i].caption for line in grid.lines[:5]] == [
            stimulus, f"mindbridge true of {subject}, {stimulus}", f"mindbridge decoded of {subject}, {stimulus}", "",
            f"ridge decoded of {subject}, {stimulus}"]
        np.testing.assert_array_equal(grid.lines[2].tiles[i].image, grid.lines[0].tiles[i].image)
    assert "drawn at random" in grid.how
    assert f"The {2 * N_RENDERED} decoded images of which pictures were made" in grid.how
    assert draw_grid(grid).width < 2100


def test_sentences_are_wrapped():
    text = "a small blue boat at the top and a brown car, in a meadow " * 3
    lines = wrapped(text, 190, 21)
    assert len(lines) == MOST_LINES
    assert lines[-1].endswith("…")
    assert all(font(21).getlength(line.removesuffix(" …")) <= 190 for line in lines)
    assert wrapped("a red apple", 400, 21) == ["a red apple"]


def test_console(results):
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(json.loads((results.folder / "summary.json").read_text())))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["s_fmri", "MindBridge", "85", "%", "40", "%", "0.450", "30", "%"] in lines
    assert ["ridge", "75", "%", "30", "%", "0.350", "20", "%"] in lines
    assert ["made", "from", "noise", "51", "%", "5", "%", "0.200", "1", "%"] in lines
    assert ["chance", "50", "%", "4", "%", "0.050", "1", "%"] in lines
    assert ["from", "the", "truth", "97", "%", "75", "%", "0.600", "90", "%"] in lines


def test_names():
    assert meaning_of("attribute_accuracy/colour")["label"] == "colour right"
    named = CaptionAttributes(attributes=("kind", "second_kind"), together=("kind",))
    assert named.meaning("named_second_kind").label == "second kind named"
    column = Column("judge", "two_way", "brain_from_image", 12, False, "images", RankScore.named("two_way").meaning)
    assert column_label(column) == ("two-way", "of 12, by the judge, picture from stimulus")
