"""Galleries of concept means, and galleries that hold a picture twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made_outputs import TARGET, judged, make

from brain2img.metrics.retrieval import Retrieval
from brain2img.records import Decoded, EmbeddingSpec
from brain2img.stages.evaluate import evaluate
from brain2img.stages.galleries import check_gallery, of_concepts


class Cache:
    def __init__(self, ids, array):
        self.ids, self.array = list(ids), array

    def rows(self, stimulus_ids):
        return np.array([self.ids.index(s) for s in stimulus_ids])


class Study:
    name = "x"

    def __init__(self, **concepts):
        self.stimulus_table = pd.DataFrame({"stimulus_id": list(concepts), "concept": list(concepts.values())})


def test_a_concept_is_the_mean_of_its_other_stimuli():
    ids = ["a", "b", "a1", "a2", "b1"]
    array = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float16)
    seen = Decoded(truth=np.array([1, 0]), gallery_ids=("a", "b"), embeddings={"clip": array[[4, 2]]},
                   gallery={"clip": array[:2]})
    study = Study(a="ant", b="bee", a1="ant", a2="ant", b1="bee")
    found = of_concepts(seen, study=study, caches={"clip": Cache(ids, array), "other": Cache(ids, array)})
    expected = np.stack([array[2:4].astype(np.float32).mean(axis=0), array[4]])
    np.testing.assert_allclose(found.gallery["clip"], expected)
    assert list(found.gallery) == ["clip"]
    metric = Retrieval(gallery="concepts")
    assert metric.names == ("top1_concept", "top5_concept")
    assert metric.score(found).query("metric == 'top1_concept'")["value"].tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r"study x: expected other stimuli of every test concept .*, got none for 1 of "
                                         r"2 stimuli \('b', \.\.\.\)"):
        of_concepts(seen, study=Study(a="ant", a1="ant", b="bee", c=None), caches={"clip": Cache(ids, array)})


def test_a_picture_that_is_there_twice_is_refused():
    array = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    spec, ids = EmbeddingSpec(name="clip", shape=(5,)), ["a", "b", "c", "d"]
    check_gallery(array, spec=spec, stimulus_ids=ids, study="x")
    array[3] = array[1]
    with pytest.raises(ValueError, match=r"gallery of study x, space 'clip': expected every picture once, got 1 again "
                                         r"\('d' is 'b'\)"):
        check_gallery(array, spec=spec, stimulus_ids=ids, study="x")
    labelled = dataclasses.replace(spec, labels=tuple("vwxyz"))
    check_gallery(array, spec=labelled, stimulus_ids=ids, study="x")
    decoded = Decoded(truth=np.array([0]), gallery_ids=("a", "a"), embeddings={"clip": array[:1]},
                      gallery={"clip": array[:2]})
    with pytest.raises(ValueError, match="gallery: expected every stimulus once, got 1 again"):
        Retrieval().score(decoded)


def test_evaluate_refuses_a_study_whose_test_pictures_are_not_all_different(tmp_path):
    cfg = make(tmp_path, label="ridge", noise=60, target=TARGET, said=False)
    path = next((tmp_path / "cache").rglob("embeddings.npy"))
    array = np.load(path)
    array[7] = array[3]
    np.save(path, array)
    with pytest.raises(ValueError, match=r"gallery of study s, space 'pixels': expected every picture once, got 1 "
                                         r"again \('test-07' is 'test-03'\)\. Give them one stimulus id"):
        evaluate(judged(cfg))
