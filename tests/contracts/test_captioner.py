"""Every YAML of the group ``captioner`` keeps what `brain2img.interfaces.Captioner` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_captioner

from brain2img.interfaces import Captioner
from brain2img.stages.build import build, class_of


@pytest.mark.parametrize(("key", "config"), parts("captioner"))
def test_as_built(key, config):
    part = build(config, Captioner)
    assert part.needs
    assert part.fits in (True, False)


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Captioner) for p in parts("captioner")}, key=str))
def test_tiny(cls):
    check_captioner(cls.tiny(), cls.tiny_shapes)
