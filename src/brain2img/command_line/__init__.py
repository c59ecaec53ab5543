"""From what was typed to a stage that runs: the only code that knows Hydra's command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from brain2img.command_line.arguments import CONFIGS, check_command_line
from brain2img.command_line.commands import COMMANDS, Command
from brain2img.command_line.completion import candidates, script

_HINT = """
brain2img <command> --help says what a command does and what there is to choose from;
brain2img completion bash (or zsh) prints what makes the shell complete commands and settings.
"""


def main() -> None:
    """Run what follows ``brain2img`` on the command line: a command and its settings, or list the commands."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
    elif words[0] == "completion":
        sys.stdout.write(candidates(words[2]) if words[1:2] == ["line"] else script(*words[1:2]))
    elif words[0] not in COMMANDS:
        near = get_close_matches(words[0], COMMANDS, n=1)
        sys.stderr.write(f"command: expected one of {', '.join(COMMANDS)}, got {words[0]!r}. "
                         + (f"Did you mean {near[0]}?\n" if near else "brain2img alone says what each does.\n"))
        sys.exit(1)
    else:
        launch(words[0], words[1:])


def launch(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command with settings as they are typed.

    Parameters
    ----------
    name
        One of `COMMANDS`.
    arguments
        Settings and flags of Hydra; None for those of the command line.
    """
    command = COMMANDS[name]
    sys.argv = [f"brain2img {name}", *(sys.argv[1:] if arguments is None else arguments)]
    check_command_line(command.help)
    import hydra
    from omegaconf import DictConfig

    def run_command(cfg: DictConfig) -> None:
        from brain2img.command_line.run import run

        run(command, cfg)

    run_command.__module__ = name  # by which Hydra calls the log folder
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command.root or name)(run_command)()


def _overview() -> str:
    """Return the commands, group by group, with one line each."""
    width = max(map(len, COMMANDS))
    groups: dict[str, list[Command]] = {}
    for command in COMMANDS.values():
        groups.setdefault(command.group, []).append(command)
    lines = ["brain2img <command> [setting=value ...]"]
    for group, members in groups.items():
        lines += ["", group, *(f"  {command.name:{width}}  {command.line}" for command in members)]
    return "\n".join(lines) + "\n" + _HINT
