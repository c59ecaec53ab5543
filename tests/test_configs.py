"""Every configuration composes; what its parts promise is in tests/contracts."""

from __future__ import annotations

import itertools
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from brain2img.command_line.commands import COMMANDS
from brain2img.command_line.composing import guard

CONFIGS = Path(__file__).parents[1] / "configs"
ROOTS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem != "base")
ALONE = ("download", "new_study", "simulate", "train_small_backbones")  # these know no experiments
EXPERIMENTS = sorted(str(p.relative_to(CONFIGS / "experiment").with_suffix(""))
                     for p in (CONFIGS / "experiment").rglob("*.yaml"))


def _pairs() -> list:
    """Return the root `pipeline` with every experiment, every root with one; slow: with one of each folder.

    Every root is based on base.yaml (next test), which merges what experiments speak of into it.
    """
    roots = sorted(set(ROOTS) - set(ALONE))
    of_each_folder = {Path(e).parent: e for e in reversed(EXPERIMENTS)}.values()
    fast = [("pipeline", e) for e in (None, *EXPERIMENTS)] + [(r, e) for r in roots for e in (None, "demo/eeg_atm")]
    slow = {(r, e) for r in roots for e in of_each_folder} - set(fast)
    return [*dict.fromkeys(fast), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in sorted(slow))]


@pytest.mark.parametrize(("root", "experiment"), _pairs())
def test_roots_compose_with_experiments(root, experiment):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        root = COMMANDS[root].root or root if root in COMMANDS else root
        cfg = hydra.compose(root, overrides=[f"experiment={experiment}"] if experiment else [])
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert resolved["study"]["_target_"].startswith("brain2img.studies.")
    for member in itertools.chain(resolved["members"] or (), *resolved.get("by_modality", {}).values()):
        assert member in EXPERIMENTS


def test_every_root_is_based_on_base():
    def bases(root: str) -> list[str]:
        return [d for d in yaml.safe_load((CONFIGS / f"{root}.yaml").read_text())["defaults"] if d in (*ROOTS, "base")]

    for root in set(ROOTS) - set(ALONE):
        found = bases(root)
        while found != ["base"]:  # by way of another root
            assert len(found) == 1, root
            found = bases(found[0])


def test_every_command_has_a_root_and_the_other_way_round():
    assert {command.root or name for name, command in COMMANDS.items()} == {"base", *ROOTS}
    for root in ROOTS:
        text = (CONFIGS / f"{root}.yaml").read_text()
        assert len([line for line in text.splitlines() if line and not line.startswith("#")]) > 3, "else base serves it"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_yaml_files_are_short(path):
    root = path.parent == CONFIGS
    assert len(path.read_text().splitlines()) <= (40 if root else 25)


def test_only_paths_reads_the_environment():
    readers = [p for p in CONFIGS.rglob("*.yaml") if "oc.env" in p.read_text()]
    assert {p.parent.name for p in readers} == {"paths"}


@pytest.mark.parametrize(("choice", "both"), [
    ("head=[clip_atm,clip_nice]", "head: expected choices with keys of their own, got clip_atm and clip_nice"),
    ("space=[clip_small,clip_vit_h14]", "space: expected choices with keys of their own, got clip_small and "
                                        "clip_vit_h14, which are both 'clip'")])
def test_two_choices_on_one_key_are_refused(command, choice, both):
    code, said = command("train", choice, "--cfg", "job")
    assert code == 1
    assert both in said


def settings(*overrides):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("base", overrides=list(overrides)))


@pytest.fixture
def guarded():
    guard()


SWAPS = [("demo/eeg_atm", "encoder", "nice"), ("scenes_eeg/eeg_conformer", "encoder", "atm"),
         ("scenes_meg/meg_decoder", "encoder", "simple_conv"), ("scenes/vit3d", "encoder", "residual_mlp"),
         ("demo/fmri_mindbridge", "adapter", "subject_linear"), ("scenes_eeg/recipe", "adapter", "spatial_attention"),
         ("scenes/brain_captioning", "decoder", "encoding"), ("scenes/mindeye", "prior", "diffusion"),
         ("scenes_eeg/protocols/atm_joint", "study", "scenes_meg"), ("demo/eeg_atm", "trainer", "nice"),
         ("mindbridge", "study", "things_eeg2"), ("scenes_eeg/nice_ga", "encoder", "atm_time")]


@pytest.mark.parametrize(("experiment", "group", "choice"), SWAPS)
def test_what_is_chosen_anew_never_takes_the_sizes_of_what_it_replaces(guarded, experiment, group, choice):
    chosen = settings(f"experiment={experiment}", f"{group}={choice}")[group]
    assert chosen == settings(f"{group}={choice}")[group]
    assert chosen != settings(f"experiment={experiment}")[group]


def test_what_is_chosen_again_keeps_the_sizes_of_the_experiment_and_what_was_typed_counts(guarded):
    assert settings("experiment=demo/eeg_atm", "encoder=atm") == settings("experiment=demo/eeg_atm")
    nice = settings("experiment=demo/eeg_atm", "encoder=nice", "encoder.bin=2")["encoder"]
    assert nice == {**settings("encoder=nice")["encoder"], "bin": 2}
    heads = settings("experiment=scenes/mindbridge", "head=[clip_linear,attributes_linear]")["head"]
    assert set(heads) == {"clip_linear", "attributes_linear"}, "what the experiment says of the text head is gone"
    assert heads["clip_linear"]["losses"]["mse"]["weight"] == 6.5
    other = settings("experiment=scenes/mindbridge", "head=[clip_linear_contrastive]")["head"]
    assert other == settings("head=[clip_linear_contrastive]")["head"]
    spaces = settings("experiment=sttm", "space=[clip_small]")["space"]
    assert set(spaces) == {"clip", "clip_backbone", "clip_global", "clip_text"}, "spaces of the experiment's own stay"


def test_raw_files_are_given_in_one_way(command):
    code, said = command("prepare", "study=nsd", "study.raw=somewhere", "--cfg", "job")
    assert code == 1
    assert "study.raw: expected raw files to be given in one way" in said
    assert "Write raw=somewhere." in said
