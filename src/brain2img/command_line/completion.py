"""Completion in the shell: commands, groups of the configuration and their choices."""

from __future__ import annotations

import sys

from brain2img.command_line.arguments import CONFIGS, choices, groups
from brain2img.command_line.commands import COMMANDS

_BASH = """\
_brain2img() {
    local IFS=$'\\n'
    COMPREPLY=($(brain2img completion line "${COMP_LINE:0:$COMP_POINT}"))
}
complete -o nospace -o default -F _brain2img brain2img
"""
_SHELLS = {"bash": _BASH, "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH}


def script(shell: str = "") -> str:
    """Return what a shell is to read: ``source <(brain2img completion bash)``; ends the command for others."""
    if shell not in _SHELLS:
        sys.stderr.write(f"completion: expected one of {', '.join(_SHELLS)}, got {shell or 'none'}. "
                         "Type: source <(brain2img completion bash)\n")
        sys.exit(1)
    return _SHELLS[shell]


def candidates(line: str) -> str:
    """Return how the last word of a command line may go on, a candidate a line.

    Bash takes ``=`` for the end of a word, so of ``encoder=n`` it wants what may stand after it.
    """
    words = line.split(" ")
    if len(words) <= 2:
        found = [f"{name} " for name in COMMANDS]
        return _beginning(found, words[-1])
    group, equals, begun = words[-1].partition("=")
    if not equals:
        return _beginning([f"{folder.name}=" for folder in groups()], group)
    if (CONFIGS / group) not in groups():
        return ""
    before, _, last = begun.rpartition(",")
    head = before + "," if before else "[" if last.startswith("[") else ""
    return _beginning([head + name for name in choices(CONFIGS / group)], head + last.lstrip("["))


def _beginning(words: list[str], start: str) -> str:
    return "".join(f"{word}\n" for word in words if word.startswith(start))
