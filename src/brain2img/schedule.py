"""What of a training changes from epoch to epoch: pure functions of the epoch, so that a resumed fit needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def epochs_between(start: float, stop: float, *, n_epochs: int) -> range:
    """Return the epochs from one share of the training to another: from ``int(start n)`` on, before ``int(stop n)``.

    Parameters
    ----------
    start, stop
        Shares in [0, 1], start below stop.
    n_epochs
        Epochs of the whole training.

    Raises
    ------
    ValueError
        If they are no such shares.
    """
    if not 0 <= start < stop <= 1:
        raise ValueError(f"schedule: expected shares 0 <= start < stop <= 1, got start={start} and stop={stop}. "
                         "Correct them in the YAML of the head or the augmentation.")
    # 0.29 * 100 is 28.999999999999996 in binary
    return range(int(start * n_epochs + 1e-9), int(stop * n_epochs + 1e-9))


def cosine_ramp(start: float, stop: float, *, step: int, n_steps: int) -> float:
    """Return step 0 .. n_steps - 1 of half a cosine from `start` to `stop`, both included; `start` if n_steps is 1."""
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * step / max(1, n_steps - 1)))


Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Return how `torch.optim.swa_utils.AveragedModel` is to average: exponentially, the latest of what is no float.

    The decay grows as (1 + n) / (10 + n) with the n-th step up to `decay`, so that short fits do not keep their start.

    Parameters
    ----------
    decay
        In (0, 1).
    """
    def average(averaged: Tensors, latest: Tensors, n_averaged: Tensor | int) -> None:
        step = int(n_averaged) + 1
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, latest, 1 - min(decay, (1 + step) / (10 + step)))
        else:
            torch._foreach_copy_(averaged, latest)

    return average
