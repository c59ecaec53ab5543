"""Metrics of captions against sacrebleu, rouge-score and hand computations; their chance levels and messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from brain2img.metrics.caption_attributes import CaptionAttributes, first_named, name_accuracy
from brain2img.metrics.caption_overlap import CaptionOverlap
from brain2img.records import Decoded, EmbeddingSpec
from brain2img.simulate import scenes

SCENES = [scenes.scene(i) for i in scenes.ids("train", 60)]
KINDS = tuple(f"kind={kind}" for kind in scenes.KINDS)


def decoded(captions, stimuli=SCENES, truth=None, attributes=None):
    return Decoded(truth=np.arange(len(captions)) if truth is None else np.asarray(truth),
                   gallery_ids=tuple(s.stimulus_id for s in stimuli), captions=captions,
                   gallery_captions=[list(s.captions) for s in stimuli],
                   specs={"attributes": EmbeddingSpec(name="attributes", shape=(len(KINDS),), labels=KINDS)},
                   gallery_attributes=attributes or [s.attributes for s in stimuli])


def values(metric, data):
    table = metric.score(data)
    return {name: group["value"].to_numpy() for name, group in table.groupby("metric")}


def shifted(by=1):
    return [SCENES[(i + by) % len(SCENES)].caption for i in range(len(SCENES))]


def test_overlap_equals_sacrebleu_and_rouge_score():
    captions = [*shifted()[:20], "", "cat", "A LARGE black, church", "the the the the the the the"]
    got = values(CaptionOverlap(), decoded(captions))
    rouge = RougeScorer(["rouge1", "rougeL"])
    for i, caption in enumerate(captions):
        references = list(SCENES[i].captions)
        for n in (1, 2, 3, 4):
            expected = sacrebleu.BLEU(max_ngram_order=n, lowercase=True, effective_order=True)
            assert got[f"bleu{n}"][i] == pytest.approx(expected.sentence_score(caption, references).score / 100)
        whole = sacrebleu.sentence_bleu(caption, references, lowercase=True)
        assert got["bleu4"][i] == pytest.approx(whole.score / 100)
        for name in ("rouge1", "rougeL"):
            assert got[name][i] == max(rouge.score(r, caption)[name].fmeasure for r in references)
    assert all(0 <= v <= 1 for column in got.values() for v in column)


def test_overlap_by_hand():
    data = Decoded(truth=np.array([0]), gallery_ids=("s",), captions=["a red cat on a mat"],
                   gallery_captions=[["a red dog on the mat", "red cat"]])
    got = {name: float(v[0]) for name, v in values(CaptionOverlap(), data).items()}
    # "a" once in the first reference (clipped), red, on, mat there too, cat in the second: 5 of 6 words, lengths equal
    assert got["bleu1"] == pytest.approx(5 / 6)
    # a red, red cat: 2 of 5
    assert got["bleu2"] == pytest.approx(math.sqrt(5 / 6 * 2 / 5))
    # the first reference shares a, red, on, mat: precision and recall 4 / 6, in this order too
    assert got["rouge1"] == pytest.approx(4 / 6)
    assert got["rougeL"] == pytest.approx(4 / 6)


def test_attributes_by_hand():
    vocabulary = ("cake", "church", "clock", "cupcake")
    assert first_named("a large black church at the top right and an orange clock, at night", vocabulary) == 1
    assert first_named("At night: a small red Cupcake", vocabulary) == 3
    assert first_named("a red cupcakes", vocabulary) == -1
    assert first_named("on a pot plant", ("plant", "pot plant")) == 1
    stimulus = next(s for s in SCENES if s.second_kind)
    assert stimulus.second_kind not in {s.kind for s in SCENES}, "known from the labels of a space alone"
    other = next(s for s in SCENES if s.colour == stimulus.colour and s.kind != stimulus.kind)
    swapped = f"a {stimulus.second_colour} {stimulus.second_kind} and a {stimulus.concept}"
    got = values(CaptionAttributes(), decoded([stimulus.caption, other.caption, swapped, "a thing"],
                                              truth=[SCENES.index(stimulus)] * 4))
    assert got["named_kind"].tolist() == [1, 0, 0, 0]
    assert got["named_colour"].tolist() == [1, 1, 0, 0]
    assert got["named_kind_and_colour"].tolist() == [1, 0, 0, 0]
    assert got["named_background"].tolist()[2:] == [0, 0]


@pytest.mark.parametrize("form", [0, 1, 2])
def test_every_paraphrase_names_kind_colour_and_background(form):
    got = values(CaptionAttributes(), decoded([s.captions[form] for s in SCENES]))
    for name in ("named_kind", "named_colour", "named_kind_and_colour", "named_background"):
        assert got[name].all(), name
    assert got["named_size"].mean() == (0 if form == 2 else 1)


def test_name_accuracy_is_the_mean_of_the_metric():
    captions = [s.caption if i % 3 else shifted()[i] for i, s in enumerate(SCENES)]
    got = values(CaptionAttributes(), decoded(captions))
    share = name_accuracy(captions, [s.attributes for s in SCENES])
    assert share == {name: got[f"named_{name}"].mean() for name in ("kind", "colour", "kind_and_colour")}


def test_a_stimulus_without_the_attribute_has_no_line_and_an_unknown_attribute_no_score():
    captions = [s.caption for s in SCENES]
    attributes = [s.attributes for s in SCENES]
    del attributes[4]["kind"]
    got = values(CaptionAttributes(), decoded(captions, attributes=attributes))
    assert len(got["named_kind"]) == len(got["named_kind_and_colour"]) == len(SCENES) - 1
    assert len(got["named_colour"]) == len(SCENES)
    only = values(CaptionAttributes(), decoded(captions, attributes=[{"kind": s.kind} for s in SCENES]))
    assert set(only) == {"named_kind"}


@pytest.mark.parametrize("metric", [CaptionOverlap(), CaptionAttributes()])
def test_the_order_of_rows_does_not_matter(metric):
    captions = [s.caption if i % 2 else shifted()[i] for i, s in enumerate(SCENES)]
    order = np.random.default_rng(0).permutation(len(SCENES))
    straight = values(metric, decoded(captions))
    mixed = values(metric, decoded([captions[i] for i in order], truth=order))
    for name, column in straight.items():
        np.testing.assert_array_equal(column[order], mixed[name])


@pytest.mark.parametrize("metric", [CaptionOverlap(), CaptionAttributes()])
def test_shuffled_captions_are_at_chance_and_right_ones_are_not(metric):
    data = decoded([s.caption for s in SCENES])
    level = metric.chance(data, generator=np.random.default_rng(0)).set_index("metric")["chance"]
    assert set(level.index) == set(metric.names)
    shuffled = [values(metric, decoded(shifted(by))) for by in range(1, len(SCENES), 6)]
    for name in metric.names:
        assert values(metric, data)[name].mean() > level[name] + 0.2
        everyone = np.mean([v[name].mean() for v in shuffled])
        # re-pairings keep a row's own stimulus once in n
        expected = everyone + (values(metric, data)[name].mean() - everyone) / len(SCENES)
        # 2,000 pairs or more, values in [0, 1]: a standard error below 0.5 / sqrt(2,000)
        assert abs(level[name] - expected) < 3.29 * 0.5 / math.sqrt(2000)


def test_messages():
    captions = [s.caption for s in SCENES]
    with pytest.raises(ValueError, match=r"captions: expected one for each of 60 decoded rows, got none\. Run the cap"):
        CaptionOverlap().score(decoded(None, truth=np.arange(60)))
    with pytest.raises(ValueError, match="expected one for each of 60 decoded rows, got 59"):
        CaptionAttributes().score(decoded(captions[1:], truth=np.arange(60)))
    bare = Decoded(truth=np.array([0, 1]), gallery_ids=("s0", "s1"), captions=["a", "b"], gallery_captions=[["a"], []])
    with pytest.raises(ValueError, match="expected at least one for each, got none for 's1'"):
        CaptionOverlap().score(bare)
    with pytest.raises(ValueError, match=r"attributes of the stimuli: expected some of \['kind', .*got \['x'\]"):
        CaptionAttributes().score(decoded(captions, attributes=[{"x": 0.5}] * len(SCENES)))
    with pytest.raises(ValueError, match="expected `together` among attributes"):
        CaptionAttributes(attributes=("kind",))
