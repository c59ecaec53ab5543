"""Every YAML of the group ``reconstructor`` keeps what `brain2img.interfaces.Reconstructor` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_reconstructor

from brain2img.interfaces import Reconstructor
from brain2img.stages.build import build, class_of


@pytest.mark.parametrize(("key", "config"), parts("reconstructor"))
def test_as_built(key, config):
    part = build(config, Reconstructor)
    assert part.needs
    assert part.fits in (True, False)


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Reconstructor) for p in parts("reconstructor")}, key=str))
def test_tiny(cls):
    check_reconstructor(cls.tiny(), cls.tiny_shapes)
