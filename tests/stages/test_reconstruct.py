"""The reconstruct stage: what is rendered, what never twice, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import brain2img.stages.reconstruct as stage
from brain2img.artifacts import Predictions, Reconstructions, open_folder, write_array
from brain2img.interfaces import Reconstructor
from brain2img.pretrained import write_condition
from brain2img.reconstructors.kandinsky import tiny_pipeline
from brain2img.records import EmbeddingSpec
from brain2img.stages.predict import shuffled_view

SUBJECTS, STIMULI, WIDTH = ("sub-01", "sub-02"), 5, 12
CONDITIONS = ("decoded", "shuffled", "mean", "true")
ROWS = len(SUBJECTS) * STIMULI


class Counting(Reconstructor):
    """Shows the embedding's first value and one of its noise; counts, and stops or fails where it is told to."""

    needs = ("clip",)

    def __init__(self) -> None:
        self.made, self.stop_after, self.most = 0, np.inf, np.inf

    def reconstruct(self, embeddings, *, generators):
        if len(generators) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.made >= self.stop_after:
            raise KeyboardInterrupt
        self.made += len(generators)
        noise = torch.stack([torch.rand(1, generator=generator) for generator in generators])
        both = torch.cat([embeddings["clip"][:, :1].sigmoid(), noise, noise], dim=1)
        return both[:, :, None, None].expand(-1, -1, 4, 4)

    @classmethod
    def tiny(cls):
        return cls()


@pytest.fixture
def counting(monkeypatch) -> Counting:
    made = Counting()
    monkeypatch.setattr(stage, "build_reconstructors", lambda cfg: {"pixels": made})
    return made


def write_predictions(outputs: Path, name: str, *, seed: int = 0, uid: str = "of clip") -> None:
    """Write the predictions of one decoder: decoded, and the views and the mean that predict makes of them."""
    ids = [f"test-{i}" for i in range(STIMULI)]
    rows = pd.DataFrame({"subject": np.repeat(SUBJECTS, STIMULI), "stimulus_id": ids * len(SUBJECTS), "n_averaged": 1,
                         "draw": 0, "run": 0})
    specs = {"clip": EmbeddingSpec(name="clip", shape=(WIDTH,), dtype="float32", uid=uid)}
    rng = np.random.default_rng(seed)
    arrays = {"decoded": rng.standard_normal((ROWS, WIDTH)),
              "true": np.random.default_rng(99).standard_normal((STIMULI, WIDTH)), "mean": np.ones((1, WIDTH))}
    places = {"decoded": range(ROWS), "true": list(range(STIMULI)) * len(SUBJECTS), "mean": 0}
    base = outputs / "predictions" / name
    for condition in CONDITIONS:
        folder = open_folder(base / condition, stage="predict", config={"seed": seed, "uid": uid}, inputs={})
        if condition == "shuffled":
            shuffled_view(folder.work, base / "decoded")
        else:
            write_array(folder.work / "clip.npy", arrays[condition].astype("float32"))
            Predictions.write(folder.work, rows=rows.assign(array_row=places[condition]), specs=specs)
        folder.finish(condition=condition, run=f"train/{name}", study_name="toy")


def config(composed, *overrides: str):
    return composed("reconstruct", "name=ridge", "conditions=[decoded,shuffled,mean,'true']", *overrides)


@pytest.fixture
def outputs(tmp_path) -> Path:
    write_predictions(tmp_path / "outputs", "ridge")
    return tmp_path / "outputs"


def images(outputs: Path, condition: str, name: str = "ridge") -> np.ndarray:
    return Reconstructions(outputs / "reconstructions" / name / "pixels" / condition).images()


def test_nothing_is_made_twice_within_a_run_nor_across_decoders(composed, outputs, counting):
    stage.reconstruct(config(composed))
    assert counting.made == ROWS + STIMULI + 1, "decoded; true once a stimulus; mean once; shuffled never"
    decoded, shuffled = images(outputs, "decoded"), images(outputs, "shuffled")
    for subject in (slice(0, STIMULI), slice(STIMULI, ROWS)):
        mine, paired = decoded[subject].reshape(STIMULI, -1), shuffled[subject].reshape(STIMULI, -1)
        assert sorted(map(bytes, mine)) == sorted(map(bytes, paired))
        assert (mine != paired).any(axis=1).all(), "none keeps its own"
    np.testing.assert_array_equal(*np.split(images(outputs, "true"), 2))
    assert len(np.unique(images(outputs, "mean"), axis=0)) == 1
    assert len(np.unique(decoded.reshape(ROWS, -1), axis=0)) == ROWS
    write_predictions(outputs, "other", seed=1)
    stage.reconstruct(config(composed, "name=other"))
    assert counting.made == ROWS + STIMULI + 1 + ROWS, "a second decoder adds its decoded rows alone"
    np.testing.assert_array_equal(images(outputs, "true", "other"), images(outputs, "true"))
    stage.reconstruct(config(composed))
    assert counting.made == ROWS + STIMULI + 1 + ROWS, "finished already"


def test_the_index_names_rows_and_distinct_pictures(composed, outputs, counting):
    stage.reconstruct(config(composed))
    index = Reconstructions(outputs / "reconstructions/ridge/pixels/true").index
    assert index["row"].tolist() == list(range(ROWS))
    assert index["file"].is_unique
    assert index["picture"].tolist()[:STIMULI] == index["picture"].tolist()[STIMULI:]
    assert index["picture"].nunique() == STIMULI


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_restart_skips_pictures_already_made(composed, outputs, counting, tmp_path, batch_size):
    counting.stop_after = 2 * batch_size
    with pytest.raises(KeyboardInterrupt):
        stage.reconstruct(config(composed, f"reconstruct.batch_size={batch_size}"))
    assert not (outputs / "reconstructions/ridge/pixels/decoded/manifest.json").exists()
    counting.stop_after = np.inf
    stage.reconstruct(config(composed, "reconstruct.batch_size=4"))
    assert counting.made == ROWS + STIMULI + 1, "none was made twice, at another batch size"
    killed = {c: images(outputs, c) for c in CONDITIONS}
    alone = tmp_path / "alone"
    write_predictions(alone, "ridge")
    stage.reconstruct(config(composed, f"paths.outputs={alone}"))
    for condition in CONDITIONS:
        np.testing.assert_array_equal(images(alone, condition), killed[condition])


def test_a_batch_too_large_for_memory_proposes_half_and_goes_on_with_it(composed, outputs, counting):
    counting.most = 3
    with pytest.raises(ValueError, match=r"expected room for 6 at once, got none \(CUDA out of memory.*"
                                         r"Set reconstruct.batch_size=3, and run the same command again"):
        stage.reconstruct(config(composed, "reconstruct.batch_size=6"))
    stage.reconstruct(config(composed, "reconstruct.batch_size=3"))
    assert counting.made == ROWS + STIMULI + 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                                   torch.OutOfMemoryError("out of memory")])
def test_memory_runs_out_in_several_ways(error):
    with pytest.raises(ValueError, match="Set batch_size=16"), stage.fitting(32, key="batch_size"):
        raise error
    with pytest.raises(ValueError, match="Choose a smaller model or image"), stage.fitting(1, key="batch_size"):
        raise error


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="shapes do not match"), stage.fitting(32, key="batch_size"):
        raise RuntimeError("shapes do not match")


def test_fewer_stimuli_are_the_same_for_all(composed, outputs, counting):
    write_predictions(outputs, "other", seed=1)
    chosen = set()
    for name in ("ridge", "other"):
        stage.reconstruct(config(composed, f"name={name}", "reconstruct.n_stimuli=2"))
        for condition in CONDITIONS:
            made = Reconstructions(outputs / "reconstructions" / name / "pixels" / condition)
            assert len(made.images()) == 2 * len(SUBJECTS)
            chosen |= {tuple(group["stimulus_id"]) for _, group in made.index.groupby("subject")}
            rows = Predictions(outputs / "predictions" / name / condition).rows
            assert rows["stimulus_id"].iloc[made.index["row"]].tolist() == made.index["stimulus_id"].tolist()
    assert len(chosen) == 1
    # decoded, and of the shuffled pairs the one that lies outside, per subject and decoder; true and mean once
    assert counting.made == 2 * len(SUBJECTS) * (2 + 1) + 2 + 1
    ids = [f"test-{i}" for i in range(50)]
    assert stage.rendered(ids[::-1], 10) == stage.rendered(ids, 10) != ids[:10]
    assert set(stage.rendered(ids[1:], 10)) >= set(stage.rendered(ids, 10)) - {ids[0]}
    assert sorted(stage.rendered(ids, None)) == sorted(ids)
    with pytest.raises(ValueError, match=r"reconstruct.n_stimuli: expected at least 1.* got 0"):
        stage.rendered(ids, 0)


def test_overwrite_makes_every_picture_anew_and_once(composed, outputs, counting):
    stage.reconstruct(config(composed))
    stage.reconstruct(config(composed, "overwrite=true"))
    assert counting.made == 2 * (ROWS + STIMULI + 1)


def test_a_decoder_trained_on_other_embeddings_refuses_before_any_work(composed, outputs, tmp_path):
    weights = tmp_path / "decoder"
    tiny_pipeline(width=WIDTH).save_pretrained(weights)
    settings = ["reconstructor=[kandinsky_small]", f"reconstructor.kandinsky.model={weights}",
                "reconstructor.kandinsky.size=16", "reconstructor.kandinsky.n_steps=2"]
    write_condition(weights, condition=EmbeddingSpec(name="clip", shape=(WIDTH,), uid="of other weights"))
    with pytest.raises(ValueError, match=r"expected as condition the embeddings it was trained on .*of other weights"):
        stage.reconstruct(config(composed, *settings))
    assert not (outputs / "reconstructions").exists()
    write_condition(weights, condition=EmbeddingSpec(name="clip", shape=(WIDTH,), uid="of clip"))
    folders = stage.reconstruct(config(composed, *settings, "conditions=[decoded]"))
    assert Reconstructions(folders[0]).images().shape == (ROWS, 16, 16, 3)


def test_a_space_that_was_not_decoded_is_named(composed, outputs):
    with pytest.raises(ValueError, match=r"expected spaces \['pixels'\] for PixelDecoding, got \['clip'\]"):
        stage.reconstruct(config(composed))
