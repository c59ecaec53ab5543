"""Files of torch are read here alone: onto the CPU, whatever they were saved on, and without running code in them."""

from __future__ import annotations

import argparse
import codecs
import errno
import pathlib
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.artifacts.content import check_content
from brain2img.artifacts.system_errors import is_of_the_system

_NOT_WEIGHTS = {b"version https://git-lfs": "a pointer of Git LFS, not the file itself: fetch it with git lfs pull",
                b"<!doctype": "a web page: the address needs a login, or is another one",
                b"<html": "a web page: the address needs a login, or is another one"}
"""How files begin that are often there in place of weights -> what they are, and what helps."""


def read_torch_file(path: Path, *, what: str, cure: str) -> Any:
    """Return what a file of torch holds: tensors, numbers and text, arrays and scalars of NumPy, paths, namespaces.

    Errors of the system (no permission, too many open files, no memory) are raised as they are.

    Parameters
    ----------
    path
        The file.
    what
        What messages call it: "checkpoint last.ckpt".
    cure
        What helps where the file is damaged.

    Raises
    ------
    ValueError
        If it is damaged or changed since its folder was finished, no file of torch, or asks for anything that could
        run code, with the name of that.
    """
    import torch

    check_content(path)
    with path.open("rb") as file:
        begins = file.read(64).lower()
    for mark, found in _NOT_WEIGHTS.items():
        if begins.startswith(mark):
            raise ValueError(f"{what}: expected a file of torch, got {found}.")
    try:
        with torch.serialization.safe_globals(_harmless()):
            try:  # mapped, so that an optimizer beside the weights, twice as large, is not read
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)|unrecognized function ([\w.]+)", str(error))
        if asked is None:
            raise _damaged(path, error, what=what, cure=cure) from error
        raise ValueError(f"{what}: expected tensors, numbers, text and containers of them, got a file that asks for "
                         f"{asked[1] or asked[2]}, which cannot be read without running code. If you trust it, save "
                         "its weights alone where it was made: torch.save(model.state_dict(), ...).") from error
    except RuntimeError as error:
        if is_of_the_system(error):
            raise
        raise _damaged(path, error, what=what, cure=cure) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a seek beyond the file
            raise
        raise _damaged(path, error, what=what, cure=cure) from error
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise _damaged(path, error, what=what, cure=cure) from error


def _damaged(path: Path, error: Exception, *, what: str, cure: str) -> ValueError:
    unpickler = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))  # beside advice to read it without care
    reason = unpickler[1] if unpickler else str(error).partition("\n")[0] or type(error).__name__
    size = path.stat().st_size
    got = f"a truncated or damaged file of {size} bytes" if size else "an empty one"
    return ValueError(f"{what}: expected a whole checkpoint, got {got} ({reason}). {cure}")


@cache
def _harmless() -> list[Any]:
    """Return what a file may ask for beside tensors: it holds data, and building it does nothing else."""
    from numpy._core.multiarray import _reconstruct, scalar

    built: list[Callable[..., Any]] = [scalar, _reconstruct]
    named: list[Any] = [(one, f"numpy.{core}.multiarray.{one.__name__}") for one in built for core in ("core", "_core")]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SUMm"}
    paths: list[Any] = [(pathlib.PurePosixPath, f"{place}.{name}") for place in ("pathlib", "pathlib._local")
                        for name in ("PosixPath", "PurePosixPath")]
    paths += [(pathlib.PureWindowsPath, f"{place}.{name}") for place in ("pathlib", "pathlib._local")
              for name in ("WindowsPath", "PureWindowsPath")]
    return [*named, *paths, np.ndarray, np.dtype, *kinds, argparse.Namespace, codecs.encode]
