"""What the key maps of published checkpoints share: reading a file, and filling a decoder with a full report."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from brain2img.artifacts import read_torch_file
from brain2img.decoders.deep import DeepDecoder
from brain2img.layers import check_weights

log = logging.getLogger(__name__)
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class PublishedWeights(ABC):
    """The key map of one published model: how its checkpoints name weights, and where each has its place."""

    @abstractmethod
    def load(self, decoder: DeepDecoder, path: Path) -> dict[str, Any]:
        """Load the weights of a file into `decoder` and return the report, that of `fill` at least."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Return one of small sizes."""


def read_file(path: Path) -> Any:
    """Return what a file of torch holds, without running code of it.

    Raises
    ------
    ValueError
        If there is none, or it cannot be read so.
    """
    if not path.is_file():
        raise ValueError(f"weights {path}: expected a published checkpoint, got nothing there. "
                         "Give weights=<file>.pth.")
    return read_torch_file(path, what=f"weights {path}", cure="Download the file again.")


def is_state(value: Any) -> bool:
    """Whether this is a state dict: names -> tensors."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def without_wrappers(state: Mapping[Any, Tensor], *, path: Path) -> dict[str, Tensor]:
    """Return the state under the names that its layers have by themselves.

    torch.compile, DistributedDataParallel and FSDP put names of theirs (`WRAPPERS`) before those of what they wrap: the
    whole model or a part, one inside the other. No layer of a published model is called so.

    Raises
    ------
    ValueError
        If two weights would have the same name.
    """
    weights: dict[str, Tensor] = {}
    before: dict[str, str] = {}
    for key, value in state.items():
        name = ".".join(part for part in str(key).split(".") if part not in WRAPPERS)
        if name in weights:
            raise ValueError(f"weights {path}: expected one weight of each name, got {before[name]!r} and {key!r}, of "
                             "a model and of what wraps it. Save the weights of one of them alone.")
        weights[name], before[name] = value, str(key)
    changed = [key for name, key in before.items() if name != key]
    if changed:
        wrappers = sorted({part for key in changed for part in key.split(".") if part in WRAPPERS})
        log.info("weights %s: %s taken out of %d of %d names (e.g. %s): the model was wrapped when it was saved", path,
                 ", ".join(wrappers), len(changed), len(before), changed[0])
    return weights


def number_of(subject: str) -> int | None:
    """Return the number that a subject's name ends with, or None."""
    number = re.search(r"\d+$", subject)
    return int(number.group()) if number else None


def fill(decoder: DeepDecoder, state: Mapping[str, Tensor], *, places: Mapping[str, str], leave_out: Sequence[str],
         path: Path, cure: Any) -> dict[str, Any]:
    """Load published weights into `decoder` and return the report.

    Parameters
    ----------
    decoder
        Whose weights are replaced; left in evaluation mode.
    state
        Their name -> weight.
    places
        Our name of every weight -> theirs.
    leave_out
        Beginnings of their names that this model is known to have no place for.
    path
        Of the file, for messages.
    cure
        Called with the expected and the found weights: what to do about a difference.

    Returns
    -------
    dict
        ``file``, ``matched`` (our key -> theirs), ``left_out``, ``missing``, ``unexpected`` and ``shapes``; the last
        three are empty, or this would have raised.

    Raises
    ------
    ValueError
        If a weight is missing, unexpected, of another shape or not finite; with the full list.
    """
    expected = {places[key]: value for key, value in decoder.module.state_dict().items()}
    left_out = [key for key in state if key not in expected
                and any(f"{key}.".startswith(f"{part}.") for part in leave_out)]
    got = {key: value for key, value in state.items() if key not in left_out}
    check_weights(expected, got, what=f"weights {path}", cure=cure(expected, got))
    bad = [key for key, value in got.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"weights {path}: expected finite values, got NaN or infinity in {bad[:5]}. "
                         "Download the file again.")
    decoder.module.load_state_dict({key: got[place].float() for key, place in places.items()})
    decoder.module.eval()
    log.info("weights %s: %d matched, 0 missing, 0 unexpected, 0 of another shape, %d left out (%s)", path,
             len(places), len(left_out), ", ".join(left_out) or "nothing")
    return {"file": str(path), "matched": dict(places), "left_out": left_out, "missing": [], "unexpected": [],
            "shapes": []}
