"""brain2img: read images, and later words, out of recordings of human brain activity.

From Python: `compose` the configuration of a command, `call` a command, `open_run` what was trained. They are imported
when they are first asked for, so that ``import brain2img`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain2img.command_line.resolve import call, compose
    from brain2img.notebook import Run, open_run

__version__ = "0.1.0"
__all__ = ["Run", "call", "compose", "open_run"]
_PLACES = {"call": "command_line.resolve", "compose": "command_line.resolve", "Run": "notebook", "open_run": "notebook"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'brain2img': expected one of {', '.join(__all__)}, got {name!r}")
    return getattr(import_module(f"brain2img.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
