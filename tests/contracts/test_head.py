"""Every YAML of the group ``head`` keeps what `brain2img.interfaces.Head` promises."""

from __future__ import annotations

import pytest
import torch
from parts import parts, spec
from promises import check_head

from brain2img.interfaces import Head
from brain2img.losses import Loss
from brain2img.stages.build import build, class_of

SPACES = [spec("vector", 16), spec("tokens", 3, 24), spec("latents", 4, 8, 8),
          spec("layers", 16, parts={"a": 8, "b": 8})]
PIXELS = spec("pixels", 3, 8, 8, value_range=(0, 1))
HIDDEN = (2, 8)


def given(config, space):
    """Return the outputs of the head before it, for one that reads another's."""
    if "source" not in config:
        return {}
    shape = (3, *space.shape) if "first_token" in config["_target_"] else space.shape
    return {config["source"]: torch.randn(4, *shape)}


def built(config):
    """Return the head for every space that it takes."""
    found, errors = [], []
    for space in [PIXELS] if config.get("bounded") == "sigmoid" else SPACES:
        try:
            found.append((build(config, Head, hidden=HIDDEN, spec=space), space))
        except ValueError as error:
            errors.append(str(error))
    assert found, f"head: takes none of {[s.shape for s in SPACES]}: {errors}"
    return found


@pytest.mark.parametrize(("key", "config"), parts("head"))
def test_as_built(key, config):
    if "width" in config:
        config = {**config, "width": config["width"] and 16}
    for head, space in built(config):
        check_head(head, done=given(config, space),
                   again=lambda space=space: build(config, Head, hidden=HIDDEN, spec=space))
        for name, loss in head.losses.items():
            assert isinstance(loss, Loss), name
            if loss.prior is None or len(space.shape) == 1:  # the prior that stands for the experiment's
                loss.prepare(space)


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Head) for p in parts("head")}, key=str))
def test_tiny(cls):
    head = cls.tiny()
    config = {"_target_": cls.__module__, **({"source": head.source} if hasattr(head, "source") else {})}
    check_head(head, again=cls.tiny, done=given(config, head.spec))
