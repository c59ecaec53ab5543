"""What of a training changes from epoch to epoch: pure functions of the epoch, so that a resumed fit needs no state."""

from __future__ import annotations

import math


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
