"""Settings and commands as Hydra and a shell read them back: what messages tell people to type."""

from __future__ import annotations

import re
import shlex
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def override(key: str, value: Any) -> str:
    """Return ``key=value`` as Hydra reads it back; text is quoted where its grammar would read something else."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, (list, tuple)):
        return f"{key}=[{','.join(override('', item)[1:] for item in value)}]"
    if not isinstance(value, str) or _reads_as(value):
        return f"{key}={value}"
    mark = "'" if '"' in value and "'" not in value else '"'
    held = re.sub(rf"(\\*)({mark}|\Z)", lambda found: found[1] * 2 + ("\\" + mark if found[2] else ""), value)
    return f"{key}={mark}{held}{mark}"


def _reads_as(text: str) -> bool:
    try:
        read = OverridesParser.create().parse_override(f"key={text}")
        return bool(text) and not read.is_sweep_override() and read.value() == text
    except HydraException:
        return False


def argument(key: str, value: Any) -> str:
    """Return one setting as a word of a shell command, quoted for the shell and for Hydra."""
    return shlex.quote(override(key, value))


def command(name: str, **settings: Any) -> str:
    """Return a command that a shell obeys."""
    return " ".join(["brain2img", name, *(argument(key, value) for key, value in settings.items())])
