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

from brain2img.decoders.deep import DeepDecoder
from brain2img.layers import check_weights

log = logging.getLogger(__name__)


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
    try:
        try:  # mapped, so that an optimizer beside the weights, twice as large, is not read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"weights {path}: expected a checkpoint of tensors and numbers, got one that cannot be "
                         f"read without running code in it ({reason}). Download the file again.") from error


def is_state(value: Any) -> bool:
    """Whether this is a state dict: names -> tensors."""
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def without_module(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefix ``module.`` where every key has it."""
    named = {str(key): value for key, value in state.items()}
    return {key.removeprefix("module."): v for key, v in named.items()} if all(
        key.startswith("module.") for key in named) else named


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
