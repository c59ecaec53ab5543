"""From what is asked for to a complete configuration, from Python as on the command line."""

from __future__ import annotations

import logging
import subprocess
import sys

import hydra
import pytest
from omegaconf import OmegaConf

import brain2img
from brain2img.command_line.arguments import CONFIGS
from brain2img.command_line.resolve import Request, suited
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member, members
from brain2img.stages.workspace import folder_of

STUDIES = {"fmri": "nsd", "eeg": "things_eeg2", "meg": "things_meg"}


def names(cfg):
    return [member.name for member in members(cfg)]


def test_the_demo_has_its_own_modalities_or_those_asked_for(composed):
    assert names(composed("pipeline", "experiment=demo")) == ["demo/fmri_mindbridge", "demo/fmri_ridge",
                                                              "demo/eeg_atm", "demo/eeg_ridge"]
    assert names(composed("train", "experiment=demo", "modalities=[meg]")) == ["demo/meg_atm", "demo/meg_ridge"]


def test_members_may_be_chosen_one_by_one_and_are_complete(composed, tmp_path):
    (member,) = members(composed("pipeline", "experiment=demo", "members=[demo/eeg_ridge]", "seed=3"))
    alone = composed("pipeline", "experiment=demo/eeg_ridge", "seed=3")
    assert member.paths.outputs == str(tmp_path / "outputs")
    assert {k: v for k, v in plain(member).items() if k != "typed"} == {
        k: v for k, v in plain(alone).items() if k != "typed"}


@pytest.mark.parametrize("modality", STUDIES)
def test_a_study_gets_the_members_of_its_modality(composed, modality):
    cfg = composed("pipeline", "experiment=demo", f"study={STUDIES[modality]}", "raw=somewhere")
    assert cfg.name == f"demo_{STUDIES[modality]}"
    found = members(cfg)
    assert [m.name.split("/")[1].split("_")[0] for m in found] == [modality] * 2
    for member in found:
        assert member.study.raw == "somewhere"
        assert "attributes" not in member.space
        assert "clip" in member.space
        assert not {"attribute_accuracy", "caption_attributes", "image_attributes"} & set(member.metric)
        assert {head.space for head in member.head.values()} <= {"clip", "pixels", "vae"}


def test_a_name_of_ones_own_is_kept(composed):
    cfg = composed("pipeline", "experiment=demo", "study=nsd", "name=first")
    assert names(cfg) == ["first/fmri_mindbridge", "first/fmri_ridge"]


def test_a_modality_that_is_not_the_studys_or_not_there_is_refused(composed):
    with pytest.raises(ValueError, match=r"modalities: expected that of study nsd \(fmri\), got \['eeg'\]"):
        composed("pipeline", "experiment=demo", "study=nsd", "modalities=[eeg]")
    with pytest.raises(ValueError, match=r"expected modalities of \['eeg', 'fmri', 'meg'\], got \['ecog'\]"):
        composed("pipeline", "experiment=demo", "modalities=[ecog]")


def test_what_is_left_out_is_said_and_the_headline_goes_on_with_what_is_left(composed, caplog):
    with caplog.at_level(logging.WARNING):
        left = composed("train", "study=nsd", "headline.space=attributes")
    assert "left out space attributes; metric attribute_accuracy; head attributes_linear" in caplog.text
    assert left.headline.space == "clip"
    complete = composed("train", "study=scenes_fmri")
    assert {"clip", "pixels", "attributes"} == set(suited(complete).space)


def test_nothing_left_is_refused(composed):
    with pytest.raises(ValueError, match=r"space: expected one that suits study nsd, .* got \['attributes'\]"):
        composed("train", "study=nsd", "space=[attributes]")


def test_a_run_beside_a_collection_and_a_missing_run_are_refused(composed, tmp_path):
    with pytest.raises(ValueError, match=r"run: expected one run for one experiment, got run=x beside .* 'demo'"):
        composed("predict", "experiment=demo", "run=x")
    for command in ("adapt", "sweep"):
        with pytest.raises(ValueError, match="run: expected a trained run to adapt, got none"):
            composed(command, "subject=sub-01")


def test_an_ablation_has_a_configuration_for_every_row_and_seed(composed):
    rows = composed("ablate", "ablation.n_seeds=2", "trainer.max_epochs=7", "name=short").ablation.rows
    assert [config.seed for config in rows.recipe.configs] == [0, 1]
    assert rows.recipe.configs[1].name == "short/recipe_seed-1"
    (single,) = rows["single trials"].configs
    assert (single.trainer.repetitions, single.trainer.max_epochs) == ("single", 7)
    assert rows.baseline.configs[0].encoder["_target_"] != single.encoder["_target_"]
    for row in rows.values():
        for config in row.configs:
            folder_of(config, "train", config.name)  # a name that can be that of a folder
    with pytest.raises(ValueError, match=r"ablation: expected an experiment and rows without parts of it, got"):
        composed("ablate", "ablation.without=null")


def test_an_unknown_command_and_settings_that_cannot_be_read_are_refused_from_python():
    with pytest.raises(ValueError, match=r"command: expected one of pipeline, .* got 'trian'"):
        brain2img.compose("trian")
    with pytest.raises(ValueError, match=r"space: expected one value, got several"):
        brain2img.compose("train", "space=pixels,clip_small")
    with pytest.raises(ValueError, match=r"got null for one\. Leave a group out with ~<group>, as in ~prior"):
        brain2img.compose("train", "experiment=demo/fmri_ridge", "prior=null")
    with pytest.raises(AttributeError, match="expected one of Run, call, compose, open_run, got 'trian'"):
        brain2img.trian  # noqa: B018


def test_what_hydra_alone_composed_of_a_collection_is_refused():
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("base", overrides=["experiment=demo"])
        alone = hydra.compose("base", overrides=[])
    with pytest.raises(ValueError, match=r"collection 'demo': expected a complete .* brain2img\.compose"):
        members(cfg)
    with pytest.raises(ValueError, match=r"name: expected one of the results, got none"):
        folder_of(alone, "train", alone.name)


def test_a_function_of_one_experiment_takes_all_members_of_a_collection():
    seen = []

    @for_each_member
    def stage(cfg):
        seen.append(cfg.seed)
        return cfg.seed

    assert stage(OmegaConf.create({"members": [{"seed": 1}, {"seed": 2}]})) == 2
    assert stage(OmegaConf.create({"members": None, "seed": 3})) == 3
    assert seen == [1, 2, 3]


def test_settings_that_were_typed_are_told_from_their_parts():
    request = Request("base", ("study=nsd", "trainer.lr=1", "+space@metric_space=[x]", "~head"), None, ())
    assert request.chose("study")
    assert not request.chose("trainer")
    assert request.names("trainer.lr")
    assert not request.names("trainer.l")
    assert request.groups == {"study", "trainer", "metric_space", "head"}


def test_importing_the_package_loads_no_library():
    code = ("import sys, brain2img; assert 'torch' not in sys.modules and 'hydra' not in sys.modules; "
            "print(sorted(set(dir(brain2img)) & {'compose', 'open_run'}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['compose', 'open_run']"


def test_resolving_loads_no_library_that_a_stage_alone_needs():
    code = ("import sys, brain2img.command_line.resolve; "
            "print({'diffusers', 'lightning', 'matplotlib', 'mne', 'torchvision', 'transformers'} & set(sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
