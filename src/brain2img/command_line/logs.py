"""What libraries say while a stage runs: each warning reaches the user once, and all of them the log file.

Silent is only what is listed in `HARMLESS`, with the reason. What is dangerous is an error where it arises
(`pretrained.loading`): weights that are missing, an activation that the weights were not trained with.
"""

from __future__ import annotations

import logging
import re
import site
import sysconfig
from pathlib import Path

HARMLESS: tuple[tuple[str, str, str], ...] = (
    ("braindecode", r"Montage name 'standard_10\d+' is deprecated",
     "MNE renames its montages, the positions stay: it is for braindecode to follow"),
    ("torch", r"Using padding='same' with even kernel lengths",
     "says that a convolution takes more memory, and gives the same values"))
"""Library, beginning of its message (a regular expression), and why nobody needs to see it."""
_OWN_HANDLERS = ("transformers", "diffusers", "mne", "lightning.pytorch", "lightning.fabric")
"""Loggers that their libraries give a handler of their own, whose records would not reach ours."""
SHOWN = 240
"""Characters of a warning on the terminal; the log file has all of it."""
_OWN = f"{Path(__file__).resolve().parents[1]}/"
_WARNING = re.compile(r"(?P<path>.+?):\d+: (?P<category>\w+): (?P<text>.*?)(\n  .*)?\Z", re.DOTALL)
_PLACES = tuple(dict.fromkeys(str(Path(place)) for place in (*site.getsitepackages(), sysconfig.get_path("stdlib"))))


class _Shared(logging.Logger):
    """A library's root logger whose records reach the handlers of the command, and no others."""

    @property  # type: ignore[override]
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        return

    def addHandler(self, hdlr: logging.Handler) -> None:
        if type(hdlr) is not logging.StreamHandler:  # by which they write to the terminal themselves
            super().addHandler(hdlr)


class OncePerCommand(logging.Filter):
    """Lets our own records pass, and of libraries each warning once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        library, text = said_by(record)
        if not library:
            return True
        if record.levelno < logging.WARNING:
            return False
        key = (library, re.sub(r"0x[0-9a-f]+|\d+", "#", text))  # other numbers do not make another warning
        if key in self._seen or any(library == name and re.match(begin, text) for name, begin, _ in HARMLESS):
            return False
        self._seen.add(key)
        return True


class Brief(logging.Formatter):
    """Shows our own records as they are, and those of libraries in one line with the library's name."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        library, text = said_by(record)
        if not library:
            return super().format(record)
        line = " ".join(text.split())
        return f"{library}: {line if len(line) <= SHOWN else line[:SHOWN - 3] + '...'}"


def said_by(record: logging.LogRecord) -> tuple[str, str]:
    """Return which library a record is of, "" for this package and scripts, and what it says."""
    text = record.getMessage()
    if record.name != "py.warnings":
        return library_of(record.pathname), text
    found = _WARNING.match(text)  # as Python formats one
    if found is None:
        return "Python", text
    said = f"{found['text'].strip()} ({found['category']}, {Path(found['path']).name})"
    # where a library warns in the name of who called it, this is a line of ours
    return library_of(found["path"]) or "Python", said


def library_of(path: str) -> str:
    """Return which library a source file is of: the name of its package, or "" for this package and scripts."""
    if path.startswith(_OWN):
        return ""
    for place in _PLACES:
        if path.startswith(f"{place}/"):
            return path[len(place) + 1:].split("/")[0].removesuffix(".py")
    return ""


def warns_or_is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is of this package, or a warning of a library and no advice."""
    return record.levelno >= logging.WARNING or not said_by(record)[0]


def show_libraries(terminal: logging.Handler, *files: logging.Handler) -> None:
    """Bring warnings of libraries into the log of the command: each once on `terminal`, all of them into `files`."""
    for file in files:
        file.addFilter(warns_or_is_ours)
    terminal.addFilter(OncePerCommand())
    terminal.setFormatter(Brief("%(message)s"))
    logging.captureWarnings(True)
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.__class__ = _Shared
        logger.handlers.clear()
