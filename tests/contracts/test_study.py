"""Every YAML of the group ``study`` keeps what `brain2img.interfaces.Study` promises."""

from __future__ import annotations

import pytest
from parts import parts
from promises import check_study, refuses

from brain2img.interfaces import Study
from brain2img.records import MODALITIES
from brain2img.stages.build import build, class_of
from brain2img.studies.scenes import Scenes


def built(config):
    config = {k: v for k, v in config.items() if k != "raw"}
    if "modality" in config and config["modality"] is None:  # what files cannot say
        config |= {"modality": "eeg", "units": "uV", "sfreq": 100.0, "tmin": 0.0}
    return build(config, Study)


@pytest.mark.parametrize(("key", "config"), parts("study"))
def test_as_built(key, config, tmp_path):
    study = built(config)
    assert study.name
    assert study.modality in MODALITIES
    assert study.variant
    if "raw" in config:
        for raw in (None, tmp_path / "nothing"):
            refuses(f"study {study.name}: prepare from {raw}", study.prepare, raw, tmp_path)


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Study) for p in parts("study")}, key=str))
def test_tiny(cls, tmp_path):
    study = cls.tiny()
    assert isinstance(study, cls)
    if cls is Scenes:  # the others need files: tests/studies has each of them on simulated ones
        check_study(study, None, tmp_path)
