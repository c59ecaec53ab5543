"""Every configuration composes; what its parts promise is in tests/contracts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from brain2img.command_line.commands import COMMANDS
from brain2img.command_line.composing import guard
from brain2img.interfaces import (
    Augmentation,
    Captioner,
    Decoder,
    Encoder,
    Head,
    Metric,
    Prior,
    Reconstructor,
    Space,
    SubjectAdapter,
)
from brain2img.stages.build import build_space, class_of, constructor

CONFIGS = Path(__file__).parents[1] / "configs"
ROOTS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p.stem != "base")
ALONE = ("download", "new_study", "simulate", "train_small_backbones")  # these know no experiments
FILES = {str(p.relative_to(CONFIGS / "experiment").with_suffix("")): yaml.safe_load(p.read_text())
         for p in sorted((CONFIGS / "experiment").rglob("*.yaml"))}
EXPERIMENTS = [name for name in FILES if not name.startswith("base/")]  # what others are based on is none
INTERFACES = {"adapter": SubjectAdapter, "augmentation": Augmentation, "captioner": Captioner, "decoder": Decoder,
              "encoder": Encoder, "head": Head, "metric": Metric, "prior": Prior, "reconstructor": Reconstructor,
              "space": Space}
SWAPPED = ("encoder", "adapter", "decoder", "prior", "augmentation")


def _bases(name: str) -> list[str]:
    """Return the experiments that one is based on."""
    listed = [d for d in FILES[name].get("defaults", []) if isinstance(d, str)]
    return [d.removeprefix("/experiment/") for d in listed if d.startswith("/experiment/")]


def _levels(name: str) -> int:
    return max((1 + _levels(base) for base in _bases(name)), default=0)


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
    root = COMMANDS[root].root or root if root in COMMANDS else root
    cfg = _composed(root, *([f"experiment={experiment}"] if experiment else []))
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert resolved["study"]["_target_"].startswith("brain2img.studies.")
    for member in itertools.chain(resolved["members"] or (), *resolved.get("by_modality", {}).values()):
        assert member in EXPERIMENTS
    if not (resolved["members"] or resolved.get("by_modality")):
        _fit(resolved)


def _composed(root: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(root, overrides=list(overrides))


def _fit(cfg: dict) -> None:
    """Check, without building parts at their sizes, that each takes its settings, and that heads fit the spaces."""
    deep = class_of(cfg["decoder"], Decoder).has_parts
    for group, interface in INTERFACES.items():
        if not cfg.get(group) or (not deep and group in ("adapter", "augmentation", "encoder", "head")):
            continue
        for part in [cfg[group]] if "_target_" in cfg[group] else cfg[group].values():
            constructor(class_of(part, interface)).bind_partial(**{k: v for k, v in part.items() if k != "_target_"})
    if deep:
        assert {head["space"] for head in cfg["head"].values()} == set(cfg["space"])


@pytest.mark.parametrize("name", FILES)
def test_experiments_choose_and_set_no_size_of_a_part(name):
    """What is set beside a choice would stay when another takes its place; it belongs into a choice of the group."""
    assert not set(INTERFACES) & set(FILES[name]), "make a file of the group, based on the choice, and choose that"


@pytest.mark.parametrize("name", FILES)
def test_experiments_have_at_most_two_levels_above_them(name):
    assert _levels(name) <= 2
    if name.startswith("base/"):
        assert not _bases(name), "a base is based on none"
        assert "name" not in FILES[name], "a base is no experiment"


def test_collections_stand_at_the_top_and_experiments_in_folders():
    collections = {name for name, said in FILES.items() if {"members", "by_modality"} & set(said)}
    assert collections == {name for name in FILES if "/" not in name}


def _swaps() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield an experiment that chooses an encoder and another choice of every group, so that each choice has a turn."""
    deep = [e for e in EXPERIMENTS if any("override /encoder" in d for d in FILES[e].get("defaults", ()))]
    choices = {group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in SWAPPED}
    for i in range(max(len(deep), *map(len, choices.values()))):
        yield deep[i % len(deep)], {group: found[i % len(found)] for group, found in choices.items()}


@pytest.mark.parametrize(("experiment", "chosen"), _swaps())
def test_a_choice_brings_its_own_settings_alone(experiment, chosen):
    cfg = _composed("base", f"experiment={experiment}", *(f"{group}={choice}" for group, choice in chosen.items()))
    assert {group: cfg[group] for group in chosen} == {group: _own(group, choice) for group, choice in chosen.items()}


def _own(group: str, choice: str) -> DictConfig:
    """Return what a choice says, with what it is based on."""
    said = OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    bases = [_own(group, base) for base in said.pop("defaults", ()) if base != "_self_"]
    return OmegaConf.merge(*bases, said)


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


def test_what_experiments_are_based_on_is_no_choice(command):
    code, said = command("train", "experiment=base/pictures", "--cfg", "job")
    assert code == 1
    assert "got 'base/pictures'" in said


@pytest.mark.parametrize("choice", sorted(p.stem for p in (CONFIGS / "space").glob("*.yaml")))
def test_a_space_is_called_as_its_key(choice):
    for key, config in OmegaConf.to_container(_composed("base", f"space=[{choice}]").space).items():
        assert config.get("name", key) == key
        if {"model", "pretrained"}.isdisjoint(config):  # needs no weights to be built
            assert build_space(key, config).name == key


def test_a_space_of_another_name_than_its_key_is_refused():
    pixels = {"_target_": "brain2img.spaces.pixels.Pixels", "size": 4}
    assert build_space("small", pixels).name == "small", "the key is enough"
    with pytest.raises(ValueError, match=r"space\.small: expected its key to be its name, got name=pixels\. Leave"):
        build_space("small", {**pixels, "name": "pixels"})


LAB = """# @package _global_
defaults: [/experiment/demo/eeg_ridge, override /encoder: atm, override /adapter: subject_token,
  override /decoder: deep, override /head: [attributes_projector, clip_projector], override /trainer: demo_eeg]
encoder: {bin: 4, kernel: 6}
head: {clip_projector: {width: 77}, attributes_projector: {width: 78}}
space: {early: {_target_: brain2img.spaces.pixels.Pixels, size: 3}}
trainer: {max_epochs: 3}
study: {n_train: 7}
name: lab
"""


@pytest.fixture
def lab(tmp_path):
    """Return a function that composes the experiment of a lab that has written sizes of parts into it."""
    guard()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "lab.yaml").write_text(LAB)

    def settings(*overrides: str):
        return OmegaConf.to_container(_composed("base", f"hydra.searchpath=[file://{tmp_path}]", *overrides))

    return settings


@pytest.mark.parametrize(("group", "choice"), [("encoder", "nice"), ("adapter", "spatial_attention"),
                                               ("trainer", "nice"), ("study", "scenes_meg"), ("head", "[clip_nice]")])
def test_what_is_chosen_anew_never_takes_the_sizes_of_what_it_replaces(lab, group, choice):
    chosen = lab("experiment=lab", f"{group}={choice}")[group]
    assert chosen == lab(f"{group}={choice}")[group]
    assert chosen != lab("experiment=lab")[group]


def test_what_is_chosen_again_keeps_the_sizes_of_the_experiment_and_what_was_typed_counts(lab):
    own = lab("experiment=lab")
    assert (own["encoder"]["kernel"], own["head"]["clip_projector"]["width"]) == (6, 77)
    assert lab("experiment=lab", "encoder=atm") == own
    typed = lab("experiment=lab", "encoder=nice", "encoder.bin=2")["encoder"]
    assert typed == {**lab("encoder=nice")["encoder"], "bin": 2}
    assert lab("experiment=lab", "encoder={bin:5}")["encoder"] == {**own["encoder"], "bin": 5}
    heads = lab("experiment=lab", "head=[clip_projector]")["head"]
    assert heads == {"clip_projector": own["head"]["clip_projector"]}, "what is said of the other head is gone"
    spaces = lab("experiment=lab", "space=[clip_small]")["space"]
    assert set(spaces) == {"clip", "early"}, "a space of the experiment's own stays"


def test_raw_files_are_given_in_one_way(command):
    code, said = command("prepare", "study=nsd", "study.raw=somewhere", "--cfg", "job")
    assert code == 1
    assert "study.raw: expected raw files to be given in one way" in said
    assert "Write raw=somewhere." in said
