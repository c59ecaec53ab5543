"""Every YAML of the group ``space`` keeps what `brain2img.interfaces.Space` promises.

The weights of published networks are not at hand: of these the class is run in its `tiny()`, and what the YAML says is
built without being run. Those of the small backbones are.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from parts import parts
from promises import check_space

from brain2img.interfaces import Space
from brain2img.records import Stimuli
from brain2img.stages.build import build_space, class_of


@pytest.fixture(scope="module")
def stimuli():
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    kinds = ("cat", "dog", "cat", "owl", "owl", "dog")
    return Stimuli(pd.DataFrame({
        "stimulus_id": [f"s{i}" for i in range(6)], "kind": "image", "concept": kinds,
        "attributes": [{"kind": kind, "x": i / 10} for i, kind in enumerate(kinds)],
        "captions": [[f"a red {kind}", f"a {kind} at night"] for kind in kinds]}), lambda rows: images[list(rows)])


def on_disk(config):
    """Say whether a configuration names small backbones alone, or no network."""
    inner = config.get("space") or {}
    return str({**config, **inner}.get("model", "scenes_")).startswith("scenes_")


@pytest.mark.parametrize(("key", "config"), parts("space"))
def test_as_built(key, config, stimuli):
    assert "name" not in config, "its key is its name"
    space = build_space(key, config)
    assert space.name == key
    if on_disk(config):
        check_space(space, stimuli, again=lambda: build_space(key, config))


def test_another_name_than_the_key_is_refused():
    pixels = {"_target_": "brain2img.spaces.pixels.Pixels"}
    assert build_space("small", pixels).name == "small"
    with pytest.raises(ValueError, match=r"space\.small: expected its key to be its name, got name=other"):
        build_space("small", {**pixels, "name": "other"})


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Space) for p in parts("space")}, key=str))
def test_tiny(cls, stimuli):
    check_space(cls.tiny(), stimuli)
