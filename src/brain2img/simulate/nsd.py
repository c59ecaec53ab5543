"""A small Natural Scenes Dataset with a known answer: its design, with the responses of simulated visual cortex.

The design is that of Allen et al. 2022 (https://doi.org/10.1038/s41593-021-00962-x): eight subjects, pictures shown up
to three times in one order for all, some of them to everybody, the rest to one subject alone; some subjects had fewer
sessions. `nsd_files` writes it in the layouts that people have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from brain2img.records import SignalSpec
from brain2img.simulate import fmri
from brain2img.simulate.features import stimulus_features
from brain2img.simulate.scenes import Scene, ids, render, scene

#: Sessions of subjects 1 to 8 in the whole study of 40, and the last ones that the first release held back.
SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
HELD_BACK = 3
_TESTED = 200  # test scenes there are; more shared pictures come from the validation pool


class SimulatedNSD:
    """Design, betas and pictures of a small NSD.

    Parameters
    ----------
    subjects
        Numbers (1 to 8) of the subjects that are recorded; the design is always that of eight.
    n_sessions
        Sessions of the subjects that have 40 in NSD; the others have 32/40 and 30/40 as many.
    trials_per_session
        Trials of a session (750 in NSD). All sessions together show every picture of a subject three times.
    n_shared
        Pictures that all subjects see (1,000 in NSD); the others are a subject's own.
    n_voxels
        Voxels that respond to the pictures, about: as `fmri.simulate_subject`.
    n_general
        Voxels of `nsdgeneral`: beside those that respond, others of the brain with noise alone. None adds none.
    volume_shape
        Volume (x, y, z), at least 40 x 48 x 36; None is as small as the voxels allow.
    image_size
        Side of the pictures (425 pixels in NSD).
    snr, seed
        As in `fmri.simulate_subject`; the design depends on the seed, too.

    Raises
    ------
    ValueError
        If the trials cannot show every picture three times.
    """

    def __init__(self, *, subjects: Sequence[int] = (1, 4), n_sessions: int = 5, trials_per_session: int = 12,
                 n_shared: int = 6, n_voxels: int = 24, n_general: int | None = None,
                 volume_shape: tuple[int, int, int] | None = None, image_size: int = 64, snr: float = 0.5,
                 seed: int = 0) -> None:
        n_images, rest = divmod(n_sessions * trials_per_session, 3)
        if rest or n_images <= n_shared:
            raise ValueError(f"simulated NSD: expected sessions x trials of 3 x more than {n_shared} pictures, got "
                             f"{n_sessions} x {trials_per_session}. Correct the sizes.")
        self.subjects, self.n_sessions, self.per_session = tuple(subjects), n_sessions, trials_per_session
        self.n_shared, self.n_voxels, self.n_general = n_shared, n_voxels, n_general
        self.volume_shape, self.image_size, self.snr, self.seed = volume_shape, image_size, snr, seed
        self._recordings: dict[int, tuple[SignalSpec, np.ndarray]] = {}
        rng = np.random.default_rng([seed, 73])
        #: Place (from 0) of each trial's picture in the subject's list, the same for all subjects.
        self.order = rng.permutation(np.repeat(np.arange(n_images), 3))
        own = n_images - n_shared
        numbers = rng.permutation(n_shared + 8 * own)
        #: ``(8, n_images)`` rows of the stimulus file, from 0; the shared pictures come first.
        self.images = np.concatenate([np.tile(numbers[:n_shared], (8, 1)), numbers[n_shared:].reshape(8, own)], axis=1)
        #: ``(n_sessions, runs, slots)``: whether a slot of 4 s shows a picture; a run starts and ends without one.
        n_runs = 12 if trials_per_session >= 24 else 2
        sizes = [len(part) for part in np.array_split(np.arange(trials_per_session), n_runs)]
        self.pattern = np.zeros((n_sessions, n_runs, max(75, max(sizes) + 5) if n_runs == 12 else max(sizes) + 5))
        for session in range(n_sessions):
            for run, size in enumerate(sizes):
                slots = rng.permutation(np.arange(2, self.pattern.shape[2] - 2))[:size]
                self.pattern[session, run, slots] = 1

    @property
    def n_stimuli(self) -> int:
        """Rows of the stimulus file (73,000 in NSD)."""
        return int(self.images.max()) + 1

    @property
    def shared(self) -> np.ndarray:
        """Rows of the pictures that all subjects see, ascending."""
        return np.sort(self.images[0, :self.n_shared])

    @property
    def shared_early(self) -> np.ndarray:
        """Rows of the shared pictures shown before the sessions held back (982 in NSD), ascending."""
        before = self.order[:(self.n_sessions - HELD_BACK) * self.per_session]
        return np.sort(self.images[0, np.unique(before[before < self.n_shared])])

    def sessions(self, subject: int) -> int:
        """Return how many sessions a subject has."""
        return SESSIONS[subject - 1] * self.n_sessions // 40

    def early_sessions(self, subject: int) -> int:
        """Return how many of them are in the first release."""
        return max(1, self.sessions(subject) - HELD_BACK)

    def seen(self, *, n_sessions: int | None = None) -> list[int]:
        """Return the rows of the pictures that the recorded subjects saw (in the first sessions), ascending."""
        stop = None if n_sessions is None else n_sessions * self.per_session
        return sorted({int(row) for subject in self.subjects for row in self.trials(subject)["image"].iloc[:stop]})

    def trials(self, subject: int) -> pd.DataFrame:
        """Return the trials in the order of recording: image (row of the stimulus file), session, run, onset (s)."""
        where = np.argwhere(self.pattern)[:self.sessions(subject) * self.per_session]
        table = pd.DataFrame({"image": self.images[subject - 1, self.order[:len(where)]], "session": where[:, 0] + 1,
                              "run": where[:, 1] + 1, "onset": where[:, 2] * 4.0})
        table["repetition"] = table.groupby("image").cumcount()
        return table

    def scene(self, row: int) -> Scene:
        """Return the scene in a row of the stimulus file."""
        place = np.flatnonzero(self.shared == row)
        if not len(place):
            return scene(ids("train", 1, start=row)[0])
        n = int(place[0])
        return scene(ids("test", 1, start=n)[0] if n < _TESTED else ids("val", 1, start=n - _TESTED)[0])

    def image(self, row: int) -> np.ndarray:
        """Return the ``(image_size, image_size, 3)`` uint8 picture in a row of the stimulus file."""
        return render(self.scene(row), size=self.image_size)

    def recording(self, subject: int) -> tuple[SignalSpec, np.ndarray]:
        """Return the voxels that respond, and their betas ``(n_trials, C)`` float32 in percent signal change.

        Voxels are in the order of the flattened volume, as whoever masks a volume finds them.
        """
        if subject not in self._recordings:
            trials = self.trials(subject)
            scenes = [self.scene(row) for row in self.images[subject - 1]]
            features = stimulus_features(scenes, np.stack([render(s) for s in scenes]))
            table = trials.assign(stimulus=self.order[:len(trials)],
                                  split=np.where(trials["image"].isin(self.shared), "test", "train"))
            spec, blocks, _ = fmri.simulate_subject(f"subj{subject:02d}", features=features, trials=table,
                                                    snr=self.snr, n_voxels=self.n_voxels, seed=self.seed)
            assert spec.ijk is not None
            assert spec.affine is not None
            order = np.lexsort(spec.ijk.T[::-1])
            betas = np.concatenate(list(blocks))[:, order, 0]
            first = spec.ijk.min(axis=0) - 1
            x, y, z = (int(n) for n in spec.ijk.max(axis=0) - first + 2)
            shape = (x, y, z)
            if self.volume_shape is not None:
                first = -(np.array(self.volume_shape) - fmri.VOLUME_SHAPE) // 2
                shape = self.volume_shape
            affine = spec.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ first
            spec = dataclasses.replace(spec.select(order), ijk=spec.ijk[order] - first, volume_shape=shape,
                                       affine=affine)
            self._recordings[subject] = spec, betas
        return self._recordings[subject]

    def masks(self, subject: int) -> dict[str, np.ndarray]:
        """Return ``(x, y, z)`` masks: "brain", "nsdgeneral" and, by area, "responding" (0 or the area's number)."""
        spec, _ = self.recording(subject)
        assert spec.ijk is not None
        assert spec.volume_shape is not None
        responding = np.zeros(spec.volume_shape, dtype=np.int16)
        responding[tuple(spec.ijk.T)] = [list(fmri.AREAS).index(roi) + 1 for roi in spec.rois]
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in spec.volume_shape), indexing="ij")
        brain = (sum(axis**2 for axis in axes) < 0.9) | (responding > 0)
        general = responding > 0
        if self.n_general is not None:
            others = np.flatnonzero((brain & ~general).ravel())
            general.ravel()[others[:max(0, self.n_general - int(general.sum()))]] = True
        return {"brain": brain, "nsdgeneral": general, "responding": responding}

    def volumes(self, subject: int, session: int) -> Iterator[np.ndarray]:
        """Yield the ``(x, y, z)`` int16 volume of each trial of a session (from 1): 300 x percent signal change.

        It is the same array each time, filled anew.
        """
        spec, betas = self.recording(subject)
        assert spec.ijk is not None
        brain = self.masks(subject)["brain"]
        rng = np.random.default_rng([self.seed, subject, session])
        volume = np.zeros(brain.shape, dtype=np.int16)
        for trial in range((session - 1) * self.per_session, session * self.per_session):
            volume[brain] = 300 * (0.5 + 1.3 * rng.standard_normal(int(brain.sum()), dtype=np.float32))
            volume[tuple(spec.ijk.T)] = np.rint(300 * betas[trial])
            yield volume

    def standardised(self, subject: int) -> np.ndarray:
        """Return the betas ``(n_trials, C)`` float32 z-scored by session and voxel, as in the re-packagings."""
        _, betas = self.recording(subject)
        parts = betas.reshape(-1, self.per_session, betas.shape[1])
        return ((parts - parts.mean(axis=1, keepdims=True)) / parts.std(axis=1, keepdims=True)).reshape(betas.shape)
