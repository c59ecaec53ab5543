"""Every configuration composes; what its parts promise is in tests/contracts."""

from __future__ import annotations

import itertools
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from brain2img.command_line.commands import COMMANDS

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
