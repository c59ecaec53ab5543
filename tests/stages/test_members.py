"""Which experiments of a collection a study gets, and which of their parts."""

from __future__ import annotations

import logging

import pytest
from omegaconf import OmegaConf

from brain2img.stages import members as stage
from brain2img.stages.members import collection_name, members, suited

STUDIES = {"fmri": "nsd", "eeg": "things_eeg2", "meg": "things_meg"}


@pytest.fixture
def command(composed, monkeypatch):
    """Return a function that composes what a command line asks for, as Hydra would have it."""

    def make(*overrides: str):
        monkeypatch.setattr(stage, "given_overrides", lambda: list(overrides))
        monkeypatch.setattr(stage, "compose", lambda root, overrides: composed(root, *overrides))
        monkeypatch.setattr(stage.HydraConfig, "get", lambda: OmegaConf.create({"job": {"config_name": "pipeline"}}))
        return composed("pipeline", *overrides)

    return make


def names(cfg):
    return [member.name for member in members(cfg)]


def test_the_demo_has_its_own_modalities_or_those_asked_for(command):
    assert names(command("experiment=demo")) == ["demo/fmri_mindbridge", "demo/fmri_ridge", "demo/eeg_atm",
                                                 "demo/eeg_ridge"]
    assert names(command("experiment=demo", "modalities=[meg]")) == ["demo/meg_atm", "demo/meg_ridge"]


def test_members_may_be_chosen_one_by_one(command):
    assert names(command("experiment=demo", "members=[demo/eeg_ridge]")) == ["demo/eeg_ridge"]


@pytest.mark.parametrize("modality", STUDIES)
def test_a_study_gets_the_members_of_its_modality(command, modality):
    cfg = command("experiment=demo", f"study={STUDIES[modality]}", "raw=somewhere")
    assert collection_name(cfg) == f"demo_{STUDIES[modality]}"
    found = members(cfg)
    assert [m.name.split("/")[1].split("_")[0] for m in found] == [modality] * 2
    for member in found:
        assert member.study.raw == "somewhere"
        assert "attributes" not in member.space
        assert "clip" in member.space
        assert not {"attribute_accuracy", "caption_attributes", "image_attributes"} & set(member.metric)
        assert {head.space for head in member.head.values()} <= {"clip", "pixels", "vae"}


def test_a_name_of_ones_own_is_kept(command):
    cfg = command("experiment=demo", "study=nsd", "name=mine")
    assert names(cfg) == ["mine/fmri_mindbridge", "mine/fmri_ridge"]


def test_a_modality_that_is_not_the_studys_or_not_there_is_refused(command):
    with pytest.raises(ValueError, match=r"modalities: expected that of study nsd \(fmri\), got \['eeg'\]"):
        members(command("experiment=demo", "study=nsd", "modalities=[eeg]"))
    with pytest.raises(ValueError, match=r"expected modalities of \['eeg', 'fmri', 'meg'\], got \['ecog'\]"):
        members(command("experiment=demo", "modalities=[ecog]"))


def test_what_is_left_out_is_said_and_the_headline_goes_on_with_what_is_left(command, caplog):
    cfg = command("study=nsd", "headline.space=attributes")
    with caplog.at_level(logging.WARNING):
        left = suited(cfg)
    assert "left out space attributes; metric attribute_accuracy; head attributes_linear" in caplog.text
    assert left.headline.space == "clip"
    assert "attributes" in cfg.space, "the configuration given is not changed"
    assert suited(command("study=scenes_fmri")).space.keys() == cfg.space.keys()


def test_nothing_left_is_refused(command):
    with pytest.raises(ValueError, match=r"space: expected one that suits study nsd, .* got \['attributes'\]"):
        suited(command("study=nsd", "space=[attributes]"))
