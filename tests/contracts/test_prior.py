"""Every YAML of the group ``prior`` keeps what `brain2img.interfaces.Prior` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_prior

from brain2img.interfaces import Prior
from brain2img.stages.build import build, class_of

SHAPES = [(12,), (3, 24)]
SMALL = {"depth": 1, "heads": 2, "head_width": 8, "hidden": [16, 8], "time_width": 16}


def small(config):
    """Return the configuration with a small network that is trained for two steps."""
    config = dict(config)
    if "network" in config:
        config["network"] = {k: SMALL.get(k, v) for k, v in config["network"].items()}
        config["training"] = {**config["training"], "steps": 2, "batch_size": 8, "warmup": 0}
        config["n_steps"] = min(config["n_steps"], 4)
    return config


@pytest.mark.parametrize(("key", "config"), parts("prior"))
def test_as_built(key, config, tmp_path):
    taken = 0
    for number, shape in enumerate(SHAPES):
        try:
            build(small(config), Prior).start(shape)
        except ValueError as error:
            if "trained jointly" not in str(error):
                continue  # a network for embeddings of another kind
        taken += 1
        check_prior(lambda: build(small(config), Prior), shape, folder=tmp_path / str(number))
    assert taken, f"prior: takes none of {SHAPES}"


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Prior) for p in parts("prior")}, key=str))
def test_tiny(cls, tmp_path):
    check_prior(cls.tiny, (12,), folder=tmp_path)
