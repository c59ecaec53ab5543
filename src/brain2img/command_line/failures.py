"""What an error that ends a command says to a user: what it is, and what helps. Only the rest is a defect of ours."""

from __future__ import annotations

import errno
import json
import re
import traceback
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from brain2img.artifacts import is_out_of_memory
from brain2img.command_line.composing import said_of

PACKAGE = Path(__file__).resolve().parents[1]
_OF_A_FILE = {
    errno.ENOSPC: "Free space there, or choose another paths.outputs, and run the same command again: it goes on",
    errno.EDQUOT: "Your quota is used up: free space there, or choose another paths.outputs",
    errno.EACCES: "You may not do this there: correct its owner or permissions, or choose another path",
    errno.EPERM: "You may not do this there: correct its owner or permissions, or choose another path",
    errno.EROFS: "Choose a path on a file system that can be written, e.g. with paths.outputs",
    errno.EMFILE: "Raise the limit of open files of your shell (ulimit -n 4096), or lower jobs",
    errno.ENFILE: "The machine has too many open files: close other programs, or lower jobs",
    errno.ENOENT: "Correct the path, or run the stage that writes it",
    errno.ENOTDIR: "Correct the path: a part of it is a file",
    errno.EISDIR: "Correct the path: a file was meant, not a folder",
    errno.EEXIST: "Move it away, or choose another name",
    errno.ENAMETOOLONG: "Choose a shorter name or path",
    errno.EAGAIN: "Another process holds it: wait for that one, then run the same command again",
    errno.EBUSY: "Another process holds it: wait for that one, then run the same command again",
    errno.ETXTBSY: "Another process holds it: wait for that one, then run the same command again",
    errno.ENOLCK: "The file system gives no locks: choose paths.outputs on another one",
    errno.ESTALE: "The network file system lost it: run the same command again, or look at its connection",
    errno.EIO: "The disk or the network file system failed: look at its health, then run the same command again",
}
"""Kind of error of a file -> what helps."""


def said(error: BaseException, *, kept: Path) -> str | None:
    """Return what a user is told of this error, or None where it must be a defect of this package.

    Parameters
    ----------
    error
        What ended the command.
    kept
        File with the traceback.
    """
    text, kind = str(error).strip(), type(error).__name__
    first = text.splitlines()[0] if text else kind
    if isinstance(error, UnicodeDecodeError):
        return (f"text: expected {error.encoding}, got bytes that are not ({error.reason} at byte {error.start}, "
                f"in {_where(error)}). Save the file as {error.encoding}; the traceback is in {kept}.")
    if isinstance(error, (HydraException, OmegaConfBaseException, RecursionError)):
        return said_of(error)
    if isinstance(error, ValueError):
        return text if _is_ours(error) else (
            f"{kind} in {_where(error)}: expected values that it takes, got: {first}. If no file or setting of "
            f"yours is at fault, please report it; the traceback is in {kept}.")
    if is_out_of_memory(error):
        return (f"memory: expected enough of it, got: {first}. Lower batch_size or trainer.batch_size (and raise "
                "trainer.accumulate), jobs, or the number of voxels, or take a larger machine; what is done is kept.")
    if isinstance(error, ImportError):
        return _of_a_library(error, first)
    if isinstance(error, BrokenPipeError):
        return f"output: expected someone to read it, got a closed pipe. The traceback is in {kept}."
    if isinstance(error, OSError) and "undefined symbol" in text:
        return _of_a_library(error, first)
    if isinstance(error, OSError) and error.errno is not None:
        cure = _OF_A_FILE.get(error.errno, "Look at this file and its file system")
        return (f"{error.filename or 'a file'}: expected to read or write it, got: {error.strerror or first}. {cure}; "
                f"the traceback is in {kept}.")
    if kind == "MisconfigurationException":  # of Lightning
        return f"trainer: expected settings that this machine can obey, got: {first} Correct trainer.*."
    if isinstance(error, RuntimeError) and re.search(r"\bCUDA|cuDNN|NVIDIA driver", text):
        return (f"GPU: expected one that works with this PyTorch, got: {first}. Look at nvidia-smi; "
                "trainer.accelerator=cpu and device=cpu of a space do without.")
    return None


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it, and not a library that was handed something it does not take."""
    if isinstance(error, json.JSONDecodeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return not frames or Path(frames[-1].filename).is_relative_to(PACKAGE) or "expected" in str(error)


def _where(error: BaseException) -> str:
    """Return the place in this package that an error passed last."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in frame.filename]
    return f"{Path(ours[-1].filename).relative_to(PACKAGE)}, line {ours[-1].lineno}" if ours else "a library"


def _of_a_library(error: BaseException, first: str) -> str:
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name:
        extra = extra_of(name)
        how = (f'make install, or pip install ".[{extra}]", in the folder of brain2img' if extra else
               f"pip install {name.replace('_', '-')}")
        return f"library {name}: expected it to be installed, got none. Install it: {how}"
    return (f"library {name or 'of Python'}: expected one that loads, got: {first}. It is broken or was built for "
            "another version of what it stands on: install the versions of the lock again (make install).")


def extra_of(module: str) -> str | None:
    """Return the extra of this package that brings a library, or None."""
    try:
        wanted = requires("brain2img") or []
    except PackageNotFoundError:
        return None
    for line in wanted:
        found = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"]([^'\"]+)['\"]", line)
        if found and re.sub(r"[-_.]+", "_", found[1]).lower() == module.lower():
            return found[2]
    return None
