"""Every YAML of the group ``augmentation`` keeps what `brain2img.interfaces.Augmentation` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_augmentation

from brain2img.interfaces import Augmentation
from brain2img.stages.build import build


@pytest.mark.parametrize(("key", "config"), parts("augmentation"))
def test_as_built_and_tiny(key, config):
    part = build(config, Augmentation)
    check_augmentation(part)
    check_augmentation(type(part).tiny())
