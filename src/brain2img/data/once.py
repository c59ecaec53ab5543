"""Keeps what a part without parameters makes of single trials, so that it is made once and not in every epoch."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class KeptTrials:
    """Single trials after a fixed function, each computed when it is first asked for and then read from a file.

    The file has no name: it ends with the process, however that ends. It is read and written, not mapped, so that a
    full disk is an error and the memory of the process does not grow.

    Parameters
    ----------
    data
        The `brain2img.data.datamodule.BrainData` whose trials these are.
    function
        Maps ``(n, C, T)`` signals of one subject, and its name, to ``(n, ...)`` float32.
    folder
        Existing folder with room for the file.
    """

    def __init__(self, data: Any, function: Callable[[Tensor, str], Tensor], *, folder: Path) -> None:
        self._data, self._function, self._folder = data, function, folder
        self._files: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._made: dict[str, np.ndarray] = {}

    def __call__(self, subject: str, rows: np.ndarray) -> np.ndarray:
        """Return ``(n, ...)`` float32 for the trials of a subject at these rows of its signals, in their order."""
        known = self._made.get(subject, np.zeros(0, dtype=bool))
        if len(known) <= rows.max():
            known = self._made[subject] = np.pad(known, (0, int(rows.max()) + 1 - len(known)))
        new = np.flatnonzero(~known[rows])
        if len(new):
            made = self._compute(subject, rows[new])
            if len(new) == len(rows):
                return made
        out = np.empty((len(rows), *self._shapes[subject]), dtype=np.float32)
        if len(new):
            out[new] = made
        file, size = self._files[subject].fileno(), 4 * math.prod(self._shapes[subject])
        for place in np.setdiff1d(np.arange(len(rows)), new):
            got = os.preadv(file, [memoryview(out[place]).cast("B")], int(rows[place]) * size)
            assert got == size, f"{got} of {size} bytes of {subject}, trial {rows[place]}"
        return out

    def _compute(self, subject: str, rows: np.ndarray) -> np.ndarray:
        signals = torch.from_numpy(self._data.signals(subject, [[int(row)] for row in rows]))
        with torch.no_grad():
            made = np.ascontiguousarray(self._function(signals, subject).numpy(), dtype=np.float32)
        if subject not in self._files:
            self._files[subject] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open until the end
            self._shapes[subject] = made.shape[1:]
        for row, values in zip(rows, made, strict=True):
            os.pwrite(self._files[subject].fileno(), memoryview(values).cast("B"), int(row) * values.nbytes)
        self._made[subject][rows] = True
        return made
