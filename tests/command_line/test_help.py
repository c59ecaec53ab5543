"""The front door: every command is listed and answers --help at once, with examples and choices; shells complete it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brain2img.command_line.arguments import CONFIGS
from brain2img.command_line.commands import COMMANDS
from brain2img.command_line.completion import candidates, script

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEAVY = ("torch", "numpy", "pandas", "lightning", "mne", "sklearn", "hydra", "omegaconf")
SCRIPTS = [p for folder in ("scripts", "data_prep") for p in sorted((ROOT / folder).glob("*.py"))]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_console_command_lists_every_command_with_one_line():
    done = run(str(BIN / "brain2img"))
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.line in done.stdout
        assert f"brain2img {name}" in command.help, "an example of its own"
        assert len(command.line) < 120


def test_a_wrong_command_is_answered_with_the_nearest():
    done = run(str(BIN / "brain2img"), "trian", "experiment=demo")
    assert done.returncode == 1
    assert "got 'trian'. Did you mean train?" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_and_choices(name, command):
    code, said = command(name, "--help")
    assert code == 0
    assert said.startswith(COMMANDS[name].help)
    assert f"  adapter: {', '.join(sorted(path.stem for path in (CONFIGS / 'adapter').glob('*.yaml')))}\n" in said


def test_help_imports_nothing_heavy():
    code = ("import sys; sys.argv = ['brain2img', 'train', '--help']\nfrom brain2img.command_line import main\n"
            f"try: main()\nfinally: sys.stderr.write(' '.join(m for m in {HEAVY} if m in sys.modules))")
    done = run(sys.executable, "-c", code)
    assert "brain2img train experiment=demo" in done.stdout
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_are_the_same_commands(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 12
    if path.parent.name == "scripts":
        assert f'launch("{path.stem}")' in text
        assert COMMANDS[path.stem].group == COMMANDS["pipeline"].group
    else:
        assert f'launch("prepare", ["study={path.stem}' in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function(name):
    assert callable(COMMANDS[name].load())


def test_words_are_completed():
    assert candidates("brain2img tra").split() == ["train", "train_small_backbones"]
    assert "encoder=" in candidates("brain2img train enc").split()
    assert candidates("brain2img train encoder=shallow_fbcsp_").split() == ["shallow_fbcsp_small"]
    assert candidates("brain2img train nothing=x") == ""


def test_bash_completes():
    code = (f"PATH={BIN}:$PATH; source <(brain2img completion bash); COMP_LINE='brain2img train encoder=ni'; "
            "COMP_POINT=${#COMP_LINE}; _brain2img; echo \"${COMPREPLY[@]}\"")
    files = (Path(__file__).parents[2] / "configs" / "encoder").glob("ni*.yaml")
    assert run("bash", "-c", code).stdout.split() == sorted(path.stem for path in files)
    assert "bashcompinit" in script("zsh")
