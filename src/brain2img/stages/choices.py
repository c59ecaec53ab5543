"""Checks the choices on a command line before Hydra does, which does not say what there is to choose from."""

from __future__ import annotations

import sys
from pathlib import Path


def check_choices() -> None:
    """End with exit code 1 and one message if an argument ``group=choice`` names a file that ``configs/`` lacks."""
    configs = Path(sys.argv[0]).resolve().parents[1] / "configs"
    for argument in sys.argv[1:]:
        group, equals, value = argument.lstrip("+").partition("=")
        folder = configs / group
        if not equals or not group.isidentifier() or not folder.is_dir() or value in ("", "null") or "{" in value:
            continue
        known = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
        for choice in value.strip("[]").split(","):
            if choice.strip() not in known:
                sys.stderr.write(f"{group}: expected some of {', '.join(known)}, got {choice.strip()!r}. "
                                 f"Correct {argument}.\n")
                sys.exit(1)
