"""The caption stage: what is said, what never twice, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import brain2img.stages.caption as stage
from brain2img.artifacts import Captions, Predictions, open_folder, write_array
from brain2img.interfaces import Captioner
from brain2img.metrics.caption_attributes import CaptionAttributes
from brain2img.metrics.caption_overlap import CaptionOverlap
from brain2img.records import Decoded, EmbeddingSpec
from brain2img.stages.embed import embed
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.scoring import _fits
from brain2img.stages.train import train

SUBJECTS, STIMULI, WIDTH = ("sub-01", "sub-02"), 5, 12
CONDITIONS = ("decoded", "noise", "shuffled", "mean", "true")
ROWS = len(SUBJECTS) * STIMULI
DISTINCT = ROWS + ROWS + STIMULI + 1
"""Decoded and noise rows, true once a stimulus, mean once, shuffled never."""


class Counting(Captioner):
    """Says the embedding's first value; counts, and stops or fails where it is told to."""

    needs = ("clip",)

    def __init__(self) -> None:
        self.made, self.stop_after, self.most = 0, np.inf, np.inf

    def caption(self, embeddings):
        values = embeddings["clip"][:, 0].tolist()
        if len(values) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.made >= self.stop_after:
            raise KeyboardInterrupt
        self.made += len(values)
        return [f"{value:.4f}" for value in values]

    def check(self, specs):
        if specs["clip"].uid != "of clip":
            raise ValueError(f"expected the space of training, got {specs['clip'].uid}. Choose it.")

    @classmethod
    def tiny(cls):
        return cls()


@pytest.fixture
def counting(monkeypatch) -> Counting:
    made = Counting()
    monkeypatch.setattr(stage, "build_captioners", lambda cfg: {"nearest_caption": made})
    return made


def write_predictions(outputs: Path, name: str, *, seed: int = 0, uid: str = "of clip") -> None:
    """Write the predictions of one decoder: decoded, noise, and the views and the mean that predict makes of them."""
    rows = pd.DataFrame({"subject": np.repeat(SUBJECTS, STIMULI),
                         "stimulus_id": [f"test-{i}" for i in range(STIMULI)] * len(SUBJECTS), "draw": 0, "run": 0})
    specs = {"clip": EmbeddingSpec(name="clip", shape=(WIDTH,), dtype="float32", uid=uid)}
    rng = np.random.default_rng(seed)
    arrays = {"decoded": rng.standard_normal((ROWS, WIDTH)), "noise": rng.standard_normal((ROWS, WIDTH)),
              "true": np.random.default_rng(99).standard_normal((STIMULI, WIDTH)), "mean": np.ones((1, WIDTH))}
    places = {"decoded": range(ROWS), "noise": range(ROWS), "true": list(range(STIMULI)) * len(SUBJECTS), "mean": 0,
              "shuffled": np.roll(np.arange(ROWS).reshape(len(SUBJECTS), -1), 1, axis=1).ravel()}
    base = outputs / "predictions" / name
    for condition in CONDITIONS:
        folder = open_folder(base / condition, stage="predict", config={"seed": seed, "uid": uid}, inputs={})
        if condition in arrays:
            write_array(folder.work / "clip.npy", arrays[condition].astype("float32"))
        Predictions.write(folder.work, rows=rows.assign(array_row=places[condition]), specs=specs,
                          paths=None if condition in arrays else {"clip": (base / "decoded" / "clip.npy").resolve()})
        folder.finish(condition=condition, run=f"train/{name}", study_name="toy")


def config(composed, *overrides: str):
    return composed("caption", "name=ridge", "captioner=[nearest_caption]", *overrides)


@pytest.fixture
def outputs(tmp_path) -> Path:
    write_predictions(tmp_path / "outputs", "ridge")
    return tmp_path / "outputs"


def captions(outputs: Path, condition: str, name: str = "ridge") -> list[str]:
    return Captions(outputs / "captions" / name / "nearest_caption" / condition).captions()


def test_every_row_has_the_caption_of_its_own_embedding(composed, outputs, counting):
    folders = stage.caption(config(composed))
    assert [folder.name for folder in folders] == list(CONDITIONS)
    for condition in CONDITIONS:
        predictions = Predictions(outputs / "predictions" / "ridge" / condition)
        said = Captions(outputs / "captions" / "ridge" / "nearest_caption" / condition)
        assert said.captions() == [f"{value:.4f}" for value in predictions.embeddings("clip")[:, 0]]
        pd.testing.assert_frame_equal(said.table.drop(columns="caption"),
                                      predictions.rows[["subject", "stimulus_id", "run", "draw"]])
        assert said.manifest["inputs"] == {"predictions": predictions.manifest["id"]}


def test_nothing_is_said_twice_within_a_run_nor_across_decoders(composed, outputs, counting):
    stage.caption(config(composed))
    assert counting.made == DISTINCT
    shuffled, decoded = (np.array(captions(outputs, c)).reshape(2, STIMULI) for c in ("shuffled", "decoded"))
    np.testing.assert_array_equal(shuffled, np.roll(decoded, 1, axis=1))
    write_predictions(outputs, "other", seed=1)
    stage.caption(config(composed, "name=other"))
    assert counting.made == DISTINCT + 2 * ROWS, "a second decoder adds its decoded and noise rows alone"
    assert captions(outputs, "true", "other") == captions(outputs, "true")
    stage.caption(config(composed))
    assert counting.made == DISTINCT + 2 * ROWS, "finished already"
    stage.caption(config(composed, "overwrite=true"))
    assert counting.made == 2 * DISTINCT + 2 * ROWS


def test_a_restart_goes_on_where_it_stopped(composed, outputs, counting, tmp_path):
    counting.stop_after = 6
    with pytest.raises(KeyboardInterrupt):
        stage.caption(config(composed, "batch_size=3"))
    assert not (outputs / "captions/ridge/nearest_caption/decoded/manifest.json").exists()
    counting.stop_after = np.inf
    stage.caption(config(composed, "batch_size=4"))
    assert counting.made == DISTINCT, "none was made twice, at another batch size"
    alone = tmp_path / "alone"
    write_predictions(alone, "ridge")
    stage.caption(config(composed, f"paths.outputs={alone}"))
    assert all(captions(alone, c) == captions(outputs, c) for c in CONDITIONS)


def test_a_batch_too_large_for_memory_proposes_half(composed, outputs, counting):
    counting.most = 3
    with pytest.raises(ValueError, match=r"expected room for 6 at once, got none.*Set batch_size=3, and run the same"):
        stage.caption(config(composed, "batch_size=6"))
    stage.caption(config(composed, "batch_size=3"))
    assert counting.made == DISTINCT


def test_other_settings_and_other_embeddings_are_refused_before_any_work(composed, outputs, counting):
    write_predictions(outputs, "foreign", uid="of other weights")
    with pytest.raises(ValueError, match="expected the space of training, got of other weights"):
        stage.caption(config(composed, "name=foreign"))
    assert counting.made == 0
    assert not (outputs / "captions").exists()
    counting.needs = ("clip", "vae")
    with pytest.raises(ValueError, match=r"expected spaces \['clip', 'vae'\] for Counting, got \['clip'\].*captioner"):
        stage.caption(config(composed))
    counting.needs = ("clip",)
    stage.caption(config(composed))
    with pytest.raises(ValueError, match=r"config\.captioner\.space: 'clip' there, 'dino' asked for"):
        stage.caption(config(composed, "captioner.nearest_caption.space=dino"))


def test_no_captioner_and_no_predictions(composed, tmp_path):
    with pytest.raises(ValueError, match=r"captioner: expected at least one, got none\. Choose some"):
        stage.caption(composed("caption"))
    with pytest.raises(ValueError, match=r"predictions .*expected a finished folder"):
        stage.caption(config(composed))


def test_nearest_captions_are_those_of_the_training_stimuli(composed, tmp_path):
    """A small simulated study from its preparation on; the captioner is shown the training stimuli of the fold."""
    cfg = composed("caption", "experiment=demo/fmri_ridge", "study.n_subjects=1", "study.n_train=96", "study.n_val=16",
                   "study.recording.n_voxels=60", "space=[attributes]", "head=[attributes_linear]", "name=small",
                   "captioner=[nearest_caption]", "captioner.nearest_caption.space=attributes", "conditions=['true']")
    for do in (prepare, embed, train, predict, stage.caption):
        do(cfg)
    said = Captions(tmp_path / "outputs/captions/small/nearest_caption/true")
    stimuli = pd.read_parquet(next((tmp_path / "outputs" / "prepared").rglob("stimuli.parquet")))
    first = {texts[0] for texts, i in zip(stimuli["captions"], stimuli["stimulus_id"], strict=True)
             if i.startswith("train")}
    assert set(said.captions()) <= first
    assert len(set(said.captions())) > 20


def test_a_study_without_captions_loses_what_needs_them_and_nothing_else(composed, outputs, counting, monkeypatch,
                                                                        caplog):
    table = pd.DataFrame({"captions": [[]] * STIMULI})
    run = SimpleNamespace(data=lambda: SimpleNamespace(study=SimpleNamespace(stimulus_table=table)))
    monkeypatch.setattr(stage, "fold_run", lambda *_: run)
    assert len(stage.caption(config(composed))) == len(CONDITIONS), "a captioner that has learned elsewhere"
    monkeypatch.setattr(Counting, "fits", True)
    assert stage.caption(config(composed, "overwrite=true")) == []
    assert "caption nearest_caption: left out, for the training stimuli have no captions to learn from" in caplog.text
    said = {"truth": np.arange(2), "gallery_ids": ("a", "b"), "captions": ["one", "two"]}
    without, beside = Decoded(**said), Decoded(**said, gallery_captions=[["one"], ["two"]])
    assert not _fits(CaptionOverlap(), without, of="captions")
    assert _fits(CaptionOverlap(), beside, of="captions")
    assert _fits(CaptionAttributes.tiny(), without, of="captions"), "compares with attributes"
