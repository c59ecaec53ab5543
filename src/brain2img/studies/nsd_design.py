"""What NSD showed to whom and when, and what is common to the layouts it is found in.

Allen et al. 2022, https://doi.org/10.1038/s41593-021-00962-x; layout by the data manual, https://cvnlab.slite.page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.studies.matlab import read_matlab

#: Where the design may lie.
DESIGN = ("nsddata/experiments/nsd/nsd_expdesign.mat", "nsd_expdesign.mat")
#: Sessions of subjects 1 to 8, and the last ones of each that the first release held back.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
HELD_BACK = 3
#: Seconds that a picture is shown; one begins in slots of 4 s.
DURATION = 3.0
_SLOT = 4.0
#: Sessions -> pictures, shared pictures and trials with shared pictures in them, as published; None is not stated.
_COUNTS = {27: (None, None, 1985), 29: (None, None, 2113), 30: (9209, 907, 2188), 32: (9411, 930, 2371),
           37: (9841, 982, 2770), 40: (10000, 1000, 3000)}


def subject_name(subject: int) -> str:
    """Return the subject as NSD writes it: "subj01"."""
    return f"subj{subject:02d}"


def n_sessions(subject: int, *, sessions: str | int, of: int = 40) -> int:
    """Return how many sessions of a subject are asked for.

    Parameters
    ----------
    subject
        1 to 8.
    sessions
        "all", "early" (without those that the first release held back) or the number of the last one wanted.
    of
        Sessions in the design; simulated ones of fewer keep the proportions of the subjects.
    """
    there = SESSIONS[subject - 1] * of // 40
    if sessions == "early":
        return max(1, there - HELD_BACK)
    return there if sessions == "all" else min(int(sessions), there)


def existing(raw: Path, *places: str, cure: str) -> Path:
    """Return the first of `places` that is in `raw`.

    Raises
    ------
    ValueError
        If there is none.
    """
    for place in places:
        if (raw / place).exists():
            return raw / place
    raise ValueError(f"{places[0]}: expected it in {raw}, got nothing there. {cure}")


@dataclass(frozen=True)
class Design:
    """What was shown when: ``nsd_expdesign.mat``, with all numbers from 0.

    Parameters
    ----------
    order
        ``(n_trials,)`` place of each trial's picture in the list of the subject; the same for all subjects.
    images
        ``(8, n_images)`` these lists: rows of ``nsd_stimuli.hdf5``.
    shared
        Rows of the pictures that all subjects see, ascending.
    pattern
        ``(sessions, runs, slots)``: whether a slot of 4 s shows a picture.
    """

    order: np.ndarray
    images: np.ndarray
    shared: np.ndarray
    pattern: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Design:
        """Read and check the file.

        Raises
        ------
        ValueError
            If it is damaged, its parts contradict each other, or its counts are not those published.
        """
        names = ("masterordering", "subjectim", "sharedix", "stimpattern")
        values = read_matlab(path, names=names, source="Fetch NSD's own file.")
        order, images, shared = (values[name].astype(np.int64) - 1 for name in names[:3])
        design = cls(order.ravel(), images, np.sort(shared.ravel()), values["stimpattern"] > 0)
        design._check(path)
        return design

    def _check(self, path: Path) -> None:
        if self.images.ndim != 2 or len(self.images) != len(SESSIONS) or self.pattern.ndim != 3:
            raise ValueError(f"{path}: expected the pictures of {len(SESSIONS)} subjects in subjectim and (sessions, "
                             f"runs, slots) in stimpattern, got {self.images.shape} and {self.pattern.shape}. "
                             "Fetch NSD's own file.")
        shown = int(self.pattern.sum())
        if shown != len(self.order) or not np.isin(self.order, np.arange(self.images.shape[1])).all():
            raise ValueError(f"{path}: expected a picture of {self.images.shape[1]} for each of {shown} shown by "
                             f"stimpattern, got {len(self.order)} in masterordering, or others. Fetch NSD's own file.")
        for subject, seen in enumerate(self.images, start=1):
            if not np.array_equal(np.sort(seen[:len(self.shared)]), self.shared):
                raise ValueError(f"{path}: expected the pictures of sharedix at the head of every subject's subjectim, "
                                 f"got others for {subject_name(subject)}. Fetch NSD's own file.")
        if (len(self.order), self.images.shape[1]) != (30000, 10000):
            return
        sizes = self.pattern.sum(axis=(1, 2))
        for sessions, published in _COUNTS.items():
            before = self.order[:sizes[:sessions].sum()]
            shared = before < len(self.shared)
            found = (len(np.unique(before)), len(np.unique(before[shared])), int(shared.sum()))
            if any(p not in (None, f) for p, f in zip(published, found, strict=True)):
                raise ValueError(f"{path}: expected {published} pictures, shared pictures and trials with these in the "
                                 f"first {sessions} sessions, as published, got {found}. Fetch NSD's own file.")

    @property
    def n_sessions(self) -> int:
        """Sessions of those who had all."""
        return len(self.pattern)

    @property
    def shared_early(self) -> np.ndarray:
        """Rows of the shared pictures shown before the sessions held back: the 982."""
        before = self.order[:self.pattern[:self.n_sessions - HELD_BACK].sum()]
        return np.sort(self.images[0, np.unique(before[before < len(self.shared)])])

    def trials(self, subject: int, *, sessions: int) -> pd.DataFrame:
        """Return the trials of a subject's first sessions in the order of recording.

        Returns
        -------
        pandas.DataFrame
            image (row of ``nsd_stimuli.hdf5``), session and run (from 1), onset from the start of the run and duration
            (s), place (of the trial within its session, from 0).
        """
        where = np.argwhere(self.pattern[:sessions])
        table = pd.DataFrame({"image": self.images[subject - 1, self.order[:len(where)]], "session": where[:, 0] + 1,
                              "run": where[:, 1] + 1, "onset": where[:, 2] * _SLOT, "duration": DURATION})
        table["place"] = table.groupby("session").cumcount()
        return table
