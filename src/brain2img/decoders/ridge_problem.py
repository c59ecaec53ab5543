"""What one regression starts from: the training signals of a subject in the units in which they are penalised."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from brain2img.devices import device_of

log = logging.getLogger(__name__)

#: Memory of the targets that are read at once for a sample of them (bytes).
_READ = 128_000_000


@dataclass(frozen=True)
class Problem:
    """One subject (or several as one) and one set of voxels: the training signals, and how one is made from a signal.

    Parameters
    ----------
    subject
        Its name.
    features
        ``(p,)`` which of the ``C * T`` values of a signal are used.
    stimuli
        The stimulus of each row; of single trials, one more often than once.
    x
        ``(n, p)`` float32, ``(signals - centre) * scale`` of these values.
    centre, scale
        ``(p,)`` float32.
    """

    subject: str
    features: np.ndarray
    stimuli: list[str]
    x: Tensor
    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, data: Any, subject: str, *, features: np.ndarray, single: bool, standardise: bool, relative: bool,
           cv: int, of: Sequence[str] | None = None) -> Self:
        """Read the training signals of a subject (those of several where `of` names them); options as of `Ridge`.

        Raises
        ------
        ValueError
            If there are fewer stimuli than two for each of two inner folds.
        """
        items = data.single_trials("train") if single else data.items("train")
        of = of or [subject]
        items = pd.concat([items[items["subject"] == name] for name in of])
        n = items["stimulus_id"].nunique()
        if n < 4:
            raise ValueError(f"training stimuli of subject {subject!r}: expected at least 4 for inner folds, got {n}. "
                             "Hold out fewer stimuli, or add some.")
        if n < 2 * cv:
            log.warning("ridge %s: %d training stimuli are enough for %d inner folds, not for decoder.cv=%d", subject,
                        n, n // 2, cv)
        parts = [data.signals(name, items.loc[items["subject"] == name, "trial_ids"].tolist()) for name in of]
        x = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(len(items), -1)
        del parts
        if len(features) < x.shape[1]:
            x = np.ascontiguousarray(x[:, features])
        centre = x.mean(axis=0)
        x -= centre
        scale = np.ones_like(centre)
        if standardise:
            std = x.std(axis=0)
            scale = np.divide(1, std, out=scale, where=std > 0)
            x *= scale
        if relative:
            unit = np.sqrt(np.mean(np.sum(x**2, axis=1)))
            x /= unit
            scale = scale / unit
        signals = torch.from_numpy(x).to(device_of())
        return cls(subject, features, items["stimulus_id"].tolist(), signals, centre, scale.astype(np.float32))

    def content(self) -> list[str]:
        """Return hashes of the signals, and of what brought them there."""
        return [hashlib.sha256(np.ascontiguousarray(part).data).hexdigest()
                for part in (self.x.cpu().numpy(), self.centre, self.scale)]

    def folds(self, n: int, *, seed: int) -> Any:
        """Return n inner folds over the rows that never share a stimulus, a splitter of scikit-learn.

        Fewer where there are not two stimuli for each.
        """
        from sklearn.model_selection import KFold, PredefinedSplit

        stimuli, which = np.unique(self.stimuli, return_inverse=True)
        folds = KFold(min(n, len(stimuli) // 2), shuffle=True, random_state=seed)
        if len(stimuli) == len(self.stimuli):
            return folds
        fold_of = np.empty(len(stimuli), dtype=int)
        for number, (_, held) in enumerate(folds.split(stimuli)):
            fold_of[held] = number
        return PredefinedSplit(fold_of[which])

    def sampled(self, data: Any, space: str, columns: np.ndarray) -> np.ndarray:
        """Return some values ``(n, d)`` of the embeddings, a few whole embeddings at a time."""
        stop = int(columns[-1]) + 1
        step = max(1, _READ // (4 * stop))
        return np.concatenate([data.target_columns(space, self.stimuli[i:i + step], start=0, stop=stop)[:, columns]
                               for i in range(0, len(self.stimuli), step)])
