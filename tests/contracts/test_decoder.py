"""Every YAML of the group ``decoder`` keeps what `brain2img.interfaces.Decoder` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_decoder

from brain2img.interfaces import Decoder
from brain2img.stages.build import build_decoder, class_of

DEEP = {"encoder": {"_target_": "brain2img.encoders.residual_mlp.ResidualMLP", "width": 16, "n_blocks": 1},
        "adapter": {"_target_": "brain2img.adapters.subject_linear.SubjectLinear"}, "augmentation": None,
        "head": {"code": {"_target_": "brain2img.heads.linear.LinearHead", "space": "code",
                          "losses": {"mse": {"_target_": "brain2img.losses.MSE"}}}},
        "trainer": {"max_epochs": 1, "batch_size": 32, "accelerator": "cpu"}}
SMALL = {"n_features": 3, "n_components": 2, "dictionary_size": 40, "code_count": 3, "draws": 4, "steps": 2}


@pytest.mark.parametrize(("key", "config"), parts("decoder"))
def test_as_built(key, config, toy, tmp_path):
    data = toy()
    if "bayesian" in config["_target_"]:
        pytest.skip("decodes grey pictures alone: tests/decoders/test_bayesian_reconstruction.py")
    config = {**config, **{k: v for k, v in SMALL.items() if k in config}}
    check_decoder(lambda: build_decoder({"decoder": config, **DEEP}, data=data, seed=0), data, folder=tmp_path)


@pytest.mark.parametrize(("key", "config"), parts("decoder"))
def test_what_it_declares(key, config):
    cls = class_of(config, Decoder)
    assert cls.has_parts == ("heads" in cls.__init__.__annotations__)
