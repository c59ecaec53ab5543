"""What a command line can be told before Hydra composes it: help at once, and what there is to choose from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from brain2img.plugins import config_folders

HELP = """
Every setting can be given as key=value: name=, seed=, overwrite=true, paths.outputs=<folder>, trainer.max_epochs=5, ...
--cfg job prints all of them as they would be used; -m with several values runs them one after the other.

Choices (group=choice; space, head, metric, reconstructor and captioner take several, as in space=[pixels,attributes]):
"""


CONFIGS = Path(__file__).resolve().parents[3] / "configs"
"""The configuration of this project: it lies beside ``src``."""


def groups() -> list[Path]:
    """Return the folders that choices are made from."""
    return sorted(path for path in CONFIGS.iterdir() if path.is_dir() and path.name not in ("hydra", "paths"))


def choices(folder: Path) -> list[str]:
    """Return what there is to choose from in a group, here and in plug-ins; not what experiments are based on."""
    found = {str(path.relative_to(place).with_suffix("")) for base in (CONFIGS, *config_folders())
             for place in [base / folder.name] for path in place.rglob("*.yaml")}
    return sorted(name for name in found if not name.startswith("base/"))


def no_place(error: BaseException) -> str:
    """Return what is said where not even the log of a command can be written."""
    place = getattr(error, "filename", None) or "the log of this command"
    return (f"paths.outputs: expected a folder that can be written to, got {getattr(error, 'strerror', error)} at "
            f"{place}. Free some space there, or give paths.outputs=<folder on another disk>.")


def _say_errors_plainly() -> None:
    """Let what goes wrong before a stage begins end as one message: Hydra itself makes the folder of the log."""
    asked = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints a traceback and ends the process

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        from hydra.errors import CompactHydraException
        from omegaconf.errors import OmegaConfBaseException

        from brain2img.command_line.composing import RefusedError

        in_a_stage = any(frame.f_globals["__name__"] == "brain2img.command_line.run" for frame, _ in walk_tb(trace))
        compact = isinstance(error, CompactHydraException | OmegaConfBaseException | RefusedError)
        if asked or in_a_stage or not (compact or (isinstance(error, OSError) and error.errno is not None)):
            sys.__excepthook__(kind, error, trace)
        elif compact:
            refused = isinstance(error, RefusedError) or error.__cause__ is None  # which says all there is to say
            causes = [error] if refused else [error, error.__cause__]
            sys.stderr.write("".join(f"{cause}\n" for cause in causes))
        else:
            sys.stderr.write(no_place(error) + "\n")

    sys.excepthook = say


def check_command_line(help_text: str) -> None:
    """Let Hydra obey nothing but configs/ and the command line (`composing.guard`), and see to what it does badly.

    Answer ``--help``, and end with exit code 1 and one message where ``group=choice`` names no file of ``configs/``.

    Configurations of older commands are not loaded (``--experimental-rerun``): Hydra reads them as a pickle, which can
    run code. What a user typed is obeyed: ``--config-dir``, ``--config-path``, ``hydra.searchpath``; what lies there is
    checked as any other file.

    Hydra takes seconds for the first and does not say what there is to choose from for the second.

    Parameters
    ----------
    help_text
        What the command does, with examples.
    """
    _say_errors_plainly()
    found = groups()
    if {"--help", "-h"} & set(sys.argv[1:]):
        lines = [f"  {folder.name}: {', '.join(choices(folder))}" for folder in found if choices(folder)]
        sys.stdout.write(help_text + HELP + "\n".join(lines) + "\n")
        sys.exit(0)
    if any(argument.startswith("--experimental-rerun") for argument in sys.argv[1:]):
        sys.stderr.write("--experimental-rerun: expected no file of an older command, got one, which can run code "
                         "as it is read. Type the settings, or give run=<folder>.\n")
        sys.exit(1)
    from brain2img.command_line.composing import guard

    guard()
    if any(argument.startswith(("--config-", "-cd", "-cp", "hydra.searchpath")) for argument in sys.argv[1:]):
        return  # there are choices elsewhere, too; Hydra names them
    for argument in sys.argv[1:]:
        group, equals, value = argument.lstrip("+").partition("=")
        group = group.partition("@")[0]
        if not equals or CONFIGS / group not in found or value in ("", "null", "[]") or "{" in value:
            continue
        known = choices(CONFIGS / group)
        for choice in value.strip("[]").split(","):
            if choice.strip() not in known:
                sys.stderr.write(f"{group}: expected some of {', '.join(known)}, got {choice.strip()!r}. "
                                 f"Correct {argument}.\n")
                sys.exit(1)
