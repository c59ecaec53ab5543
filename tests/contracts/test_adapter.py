"""Every YAML of the group ``adapter`` keeps what `brain2img.interfaces.SubjectAdapter` promises."""

from __future__ import annotations

import pytest
from parts import SIGNALS, eeg, fmri, parts
from promises import check_adapter

from brain2img.interfaces import SubjectAdapter
from brain2img.records import Grid
from brain2img.stages.build import build, class_of
from brain2img.volumes import VolumeGrid

GRIDS = [("fmri", Grid(24, 1)), ("eeg", Grid(9, 250)), ("eeg", Grid(9, 125)), ("eeg", Grid(24, 1)), ("fmri", None)]
"""Signals and the grid of an encoder; None: patches of a volume."""


def built(config):
    """Return the adapter onto a grid that it takes, and signals of a new subject."""
    errors = []
    for modality, grid in GRIDS:
        try:
            new = eeg("sub-03") if modality == "eeg" else fmri("sub-03", n_voxels=52)
            return build(config, SubjectAdapter, specs=SIGNALS[modality],
                         grid=grid or VolumeGrid.of(SIGNALS["fmri"], patch=14)), new
        except (ValueError, TypeError) as error:
            errors.append(str(error))
    raise AssertionError(f"adapter: takes none of these signals and grids: {errors}")


@pytest.mark.parametrize(("key", "config"), parts("adapter"))
def test_as_built(key, config):
    adapter, new = built({**config, **({"pool_size": 64} if "pool_size" in config else {})})
    check_adapter(adapter, new=new)


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], SubjectAdapter) for p in parts("adapter")}, key=str))
def test_tiny(cls):
    adapter = cls.tiny()
    assert list(adapter.specs) == ["sub-01", "sub-02"]
    check_adapter(adapter)
