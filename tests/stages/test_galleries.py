"""Galleries of concept means, and galleries that hold a picture twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made_outputs import TARGET, judged, make

from brain2img.artifacts import keep_contents
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
    keep_contents(path.parent)
    with pytest.raises(ValueError, match=r"gallery of study s, space 'pixels': expected every picture once, got 1 "
                                         r"again \('test-07' is 'test-03'\)\. Give them one stimulus id"):
        evaluate(judged(cfg))


@pytest.mark.slow
def test_nice_is_scored_among_concepts_from_prepared_study_to_report(command, tmp_path):
    small = ["experiment=scenes_eeg/nice_concepts", "study.n_subjects=1", "study.n_train=24", "study.n_val=8",
             "study.n_sessions=1", "study.repetitions={train:1,val:1,test:1,gallery:2}", "data.min_trials=5",
             "data.noise_normalise=false", "trainer.max_epochs=1", "trainer.batch_size=8"]
    code, printed = command("pipeline", *small)
    assert code == 0, printed
    outputs = tmp_path / "outputs"
    scores = pd.read_parquet(outputs / "scores/scenes_eeg/nice_concepts/scores.parquet")
    mine = scores[(scores["condition"] == "decoded") & (scores["direction"] == "image_from_brain")
                  & (scores["decoder"] == "nice")]
    assert set(mine.loc[mine["metric"] == "top1_concept", "gallery"]) == {200}
    # by hand: the mean of the two pictures of each concept that nobody saw
    table = pd.read_parquet(next((outputs / "prepared").rglob("stimuli.parquet"))).set_index("stimulus_id")
    cache = next((outputs / "cache").rglob("embeddings.npy"))
    rows = pd.read_parquet(cache.with_name("stimuli.parquet"))["stimulus_id"].tolist()
    true = pd.DataFrame(np.load(cache).reshape(len(rows), -1).astype(np.float32), index=rows)
    others = true[true.index.str.startswith("gallery")]
    means = others.groupby(table.loc[others.index, "concept"]).mean()
    decoded = outputs / "predictions/scenes_eeg/nice_concepts/decoded"
    predicted = np.load(decoded / "clip.npy").reshape(200, -1).astype(np.float32)
    seen = pd.read_parquet(decoded / "rows.parquet")["stimulus_id"]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    similar = unit(predicted) @ unit(means.loc[table.loc[seen, "concept"]].to_numpy()).T
    for k in (1, 5):
        expected = (similar > similar.diagonal()[:, None]).sum(axis=1) < k
        found = mine[mine["metric"] == f"top{k}_concept"].set_index("stimulus_id").loc[seen, "value"]
        np.testing.assert_array_equal(found, expected)
    assert "concept" in (outputs / "scores/scenes_eeg/nice_concepts/report.html").read_text()
    without = [o.replace(",gallery:2", ",gallery:0") for o in small]
    code, printed = command("pipeline", *without, "name=without")
    assert code == 1
    assert "expected other stimuli of every test concept for a gallery of concept means, got none for 200 of 200" in (
        printed)
