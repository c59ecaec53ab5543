"""Every YAML of the group ``decoder`` keeps what `brain2img.interfaces.Decoder` promises."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from parts import parts
from promises import check_decoder

from brain2img.artifacts import EmbeddingCache, open_folder, write_array, write_json, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.trials import Split
from brain2img.interfaces import Decoder
from brain2img.records import EmbeddingSpec
from brain2img.stages.build import build_decoder, class_of

DEEP = {"encoder": {"_target_": "brain2img.encoders.residual_mlp.ResidualMLP", "width": 16, "n_blocks": 1},
        "adapter": {"_target_": "brain2img.adapters.subject_linear.SubjectLinear"}, "augmentation": None,
        "head": {"code": {"_target_": "brain2img.heads.linear.LinearHead", "space": "code",
                          "losses": {"mse": {"_target_": "brain2img.losses.MSE"}}}},
        "trainer": {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu"}}
SMALL = {"n_features": 3, "n_components": 2, "dictionary_size": 40, "code_count": 3, "draws": 4, "steps": 2}


def grey_pictures(data, folder):
    """Return `data` with blobs ``(1, 8, 8)`` for targets, for a decoder of pictures alone."""
    ids = data.targets["code"].stimulus_ids
    places = np.random.default_rng(0).uniform(2, 5, (len(ids), 2, 1, 1))
    rows, columns = np.mgrid[:8, :8]
    blobs = np.exp(-((rows - places[:, 0]) ** 2 + (columns - places[:, 1]) ** 2) / 3).astype("float32")[:, None]
    stage = open_folder(folder, stage="embed", config={}, inputs={})
    write_array(folder / "embeddings.npy", blobs)
    write_table(folder / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
    write_json(folder / "spec.json", EmbeddingSpec(name="pixels", shape=(1, 8, 8), dtype="float32").to_json())
    stage.finish()
    pictures = BrainData(data.study, targets={"pixels": EmbeddingCache(folder)}, split=Split(),
                         normalisation=Normalisation())
    pictures.fit_normalisation()
    return pictures


def for_any_study(config):
    """Return settings of a decoder without what they say of single spaces and of regions."""
    changes = {"rois": None, "bands": None, "bin": 1, **SMALL}
    if isinstance(config.get("alphas"), dict):
        changes["alphas"] = next(penalty for penalty in config["alphas"].values() if penalty is not None)
    return {key: changes.get(key, value) for key, value in config.items()}


@pytest.mark.parametrize(("key", "config"), parts("decoder"))
def test_as_built(key, config, toy, tmp_path):
    data, config = toy(), for_any_study(config)
    try:
        build_decoder({"decoder": config, **DEEP}, data=data, seed=0)
    except ValueError:  # of vectors
        data = grey_pictures(data, tmp_path / "pixels")
    check_decoder(lambda: build_decoder({"decoder": config, **DEEP}, data=data, seed=0), data, folder=tmp_path)


@pytest.mark.parametrize(("key", "config"), parts("decoder"))
def test_what_it_declares(key, config):
    cls = class_of(config, Decoder)
    assert cls.has_parts == ("heads" in cls.__init__.__annotations__)
