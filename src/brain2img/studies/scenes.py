"""The simulated study `scenes`: drawn scenes, and recordings of them with a known answer."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from brain2img.artifacts import ArrayWriter, read_array, safe_name, write_table
from brain2img.data.prepared import SPLITS, PreparedWriter
from brain2img.interfaces import Study
from brain2img.records import SignalSpec

if TYPE_CHECKING:
    from brain2img.simulate.features import StimulusFeatures
    from brain2img.simulate.observer import Ideal
    from brain2img.simulate.scenes import Scene

log = logging.getLogger(__name__)

#: Arguments of the recording and their defaults, by modality.
_RECORDING: dict[str, dict[str, Any]] = {
    "fmri": {"n_voxels": 1500},
    "eeg": {"sfreq": 250.0, "tmin": -0.2, "tmax": 1.0, "n_channels": None},
    "meg": {"sfreq": 200.0, "tmin": -0.2, "tmax": 1.0, "n_channels": None},
}
#: Seconds between onsets, seconds shown, trials in a run: as in NSD, THINGS-EEG2 and THINGS-MEG.
_PACE = {"fmri": (4.0, 3.0, 62), "eeg": (0.2, 0.1, 410), "meg": (1.5, 0.5, 185)}
N_TEST = 200


class Scenes(Study):
    """Recordings of drawn scenes; every subject sees the same stimuli.

    Test concepts (kind x colour) never occur in training. Besides the prepared study, `prepare` writes
    ``ceiling.parquet``: the ranks that an observer who knows the generator reaches with the recorded test trials.

    Parameters
    ----------
    modality
        "fmri", "eeg" or "meg".
    snr
        Strength of the responses, as `simulate.fmri` (of single voxels and trials) and `simulate.meeg` (a
        factor, 1 for a usual recording) define it. At 0 the signals hold nothing about the stimuli.
    n_subjects
        Subjects "sub-01", "sub-02", ...; a subject's data do not depend on how many others there are.
    n_train, n_val
        Stimuli of these splits; the test split always has 200.
    repetitions
        Split ("train", "val", "test") -> times each of its stimuli is shown; 1 where a split is not named. "gallery":
        other pictures of each test concept, shown to nobody, for galleries of concept means; 0 where not named. They
        change nothing in the recordings.
    n_sessions
        Sessions over which a subject's trials are spread, in an order of the subject's own.
    image_size
        Side of the rendered stimuli (pixels), a multiple of 64.
    seed
        Seed of subjects and noise. Stimuli do not depend on it.
    recording
        fMRI: n_voxels (1500). EEG and MEG: sfreq (250 and 200 Hz), tmin, tmax (-0.2 and 1.0 s), n_channels (None: all
        63 or 271).

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    has_attributes = True

    def __init__(self, modality: str, *, snr: float, n_subjects: int = 3, n_train: int = 1600, n_val: int = 160,
                 repetitions: Mapping[str, int] | None = None, n_sessions: int = 4,
                 image_size: int = 64, seed: int = 0, recording: Mapping[str, Any] | None = None) -> None:
        self.name = f"scenes_{modality}"
        if modality not in _RECORDING:
            raise ValueError(f"study scenes: expected a modality of {sorted(_RECORDING)}, got {modality!r}. "
                             "Set study.modality.")
        self.repetitions = dict.fromkeys(SPLITS, 1) | dict(repetitions or {})
        self.n_gallery = self.repetitions.pop("gallery", 0)
        if self.n_gallery < 0:
            raise ValueError(f"study {self.name}: expected repetitions.gallery of at least 0, got {self.n_gallery}. "
                             "Set study.repetitions.gallery.")
        counts = {"n_subjects": n_subjects, "n_train": n_train, "n_val": n_val, "n_sessions": n_sessions,
                  **{f"repetitions.{split}": n for split, n in self.repetitions.items()}}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"study {self.name}: expected {name} of at least 1, got {count}. Set study.{name}.")
        if image_size < 64 or image_size % 64:
            raise ValueError(f"study {self.name}: expected an image_size of 64, 128, ..., got {image_size}. "
                             "Set study.image_size.")
        if not 0 <= snr < float("inf"):
            raise ValueError(f"study {self.name}: expected a finite snr of at least 0, got {snr}. Set study.snr.")
        for what, got, known in (("recording", set(recording or {}), set(_RECORDING[modality])),
                                 ("repetitions", set(self.repetitions), {*SPLITS, "gallery"})):
            if got - known:
                raise ValueError(f"study {self.name}: expected keys of {what} among {sorted(known)}, got "
                                 f"{sorted(got - known)}. Correct study.{what}.")
        self.modality = modality
        self.n_subjects = n_subjects
        self.n_stimuli = {"train": n_train, "val": n_val, "test": N_TEST}
        self.n_sessions = n_sessions
        self.snr = snr
        self.image_size = image_size
        self.seed = seed
        self.recording = _RECORDING[modality] | dict(recording or {})

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects."""
        return [f"sub-{number:02d}" for number in range(1, self.n_subjects + 1)]

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Render the stimuli, simulate the subjects one by one, and write the study and its ceiling into `out`."""
        from brain2img.simulate.features import stimulus_features
        from brain2img.simulate.observer import ceiling
        from brain2img.simulate.scenes import ids, scene

        if raw is not None:
            raise ValueError(f"study {self.name}: expected no raw files, for it is simulated, got {raw}. "
                             "Leave out raw=.")
        split_of = {stimulus_id: split for split, n in self.n_stimuli.items() for stimulus_id in ids(split, n)}
        shown = len(split_of)  # the others stand at the end
        split_of |= dict.fromkeys(ids("gallery", self.n_gallery * N_TEST), "gallery")
        scenes = [scene(stimulus_id) for stimulus_id in split_of]
        images = self._images(scenes, out)
        features = stimulus_features(scenes[:shown], images[:shown])
        stimuli = pd.DataFrame({
            "stimulus_id": list(split_of), "kind": "image", "file": "images.npy", "pointer": np.arange(len(scenes)),
            "concept": [s.concept for s in scenes], "category": [s.category for s in scenes],
            "captions": [list(s.captions) for s in scenes], "attributes": [s.attributes for s in scenes],
            "split": list(split_of.values())})

        writer = PreparedWriter(out, study=self.name)
        ceilings = []
        for subject in self.subjects:
            trials = self.trials(subject, stimuli[:shown])
            spec, blocks, ideal = self._simulate(subject, features=features, trials=trials)
            if not writer.has_subject(subject):
                log.info("%s: simulating %d trials of %d channels", subject, len(trials), spec.n_channels)
                writer.add_subject(spec, trials=trials, signals=blocks)
            # Judged on what stands on disk, so that a continued call gives the same ceiling.
            signals = read_array(out / f"signals_{safe_name(subject)}.npy")
            ranks = ceiling(ideal, signals=signals, trials=trials)
            ranks.insert(0, "subject", subject)
            ceilings.append(ranks)
        write_table(out / "ceiling.parquet", pd.concat(ceilings, ignore_index=True))
        writer.finish(stimuli)

    def trials(self, subject: str, stimuli: pd.DataFrame) -> pd.DataFrame:
        """Return the trials of a subject in the order of recording.

        Parameters
        ----------
        subject
            Name; the order depends on it and on the seed alone.
        stimuli
            All that are shown: stimulus_id, split.

        Returns
        -------
        pandas.DataFrame
            Columns stimulus (row of `stimuli`), stimulus_id, split, session and run (from 1), onset from the start of
            the run and duration (s), and repetition (from 0, in the order of presentation).
        """
        seed = hashlib.sha256(f"{self.seed}/{subject}/order".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        shown = np.repeat(np.arange(len(stimuli)), stimuli["split"].map(self.repetitions))
        trials = stimuli.iloc[rng.permutation(shown)][["stimulus_id", "split"]]
        trials = trials.rename_axis("stimulus").reset_index()
        between, duration, run_length = _PACE[self.modality]
        trials["session"] = np.repeat(np.arange(1, self.n_sessions + 1),
                                      [len(part) for part in np.array_split(trials["stimulus"], self.n_sessions)])
        together = ["session"]
        if self.modality != "fmri":
            # Responses overlap in rapid presentation: a run holds one split, as in THINGS-EEG2 and THINGS-MEG, so that
            # no training epoch holds the end of the response to a test picture.
            order = trials["split"].map(SPLITS[::-1].index)
            trials = trials.assign(part=order).sort_values(["session", "part"], kind="stable", ignore_index=True)
            trials = trials.drop(columns="part")
            together.append("split")
        place = trials.groupby(together).cumcount()
        starts = trials["session"].ne(trials["session"].shift()) | (place % run_length == 0)
        trials["run"] = starts.groupby(trials["session"]).cumsum()
        trials["onset"] = place % run_length * between
        trials["duration"] = duration
        trials["repetition"] = trials.groupby("stimulus").cumcount()
        return trials

    def _simulate(self, subject: str, *, features: StimulusFeatures, trials: pd.DataFrame
                  ) -> tuple[SignalSpec, Iterator[np.ndarray], Ideal]:
        """Call the simulator of the modality."""
        if self.modality == "fmri":
            from brain2img.simulate import fmri

            return fmri.simulate_subject(subject, features=features, trials=trials, snr=self.snr, seed=self.seed,
                                         **self.recording)
        from brain2img.simulate import meeg

        return meeg.simulate_subject(subject, modality=self.modality, features=features, trials=trials, snr=self.snr,
                                     seed=self.seed, **self.recording)

    def _images(self, scenes: list[Scene], out: Path) -> np.ndarray:
        """Return ``(N, s, s, 3)`` uint8 pictures: those in `out` if an interrupted call left them there, else drawn."""
        from rich.progress import track

        from brain2img.simulate.scenes import render

        path = out / "images.npy"
        if not path.exists():
            shape = (len(scenes), self.image_size, self.image_size, 3)
            writer = ArrayWriter(out, {"images": (shape, "uint8")})
            starts = range(writer.done, len(scenes), 64)
            for start in track(starts, description="drawing scenes", disable=not sys.stderr.isatty()):
                block = [render(s, size=self.image_size) for s in scenes[start:start + 64]]
                writer.write({"images": np.stack(block)})
            writer.close()
        return read_array(path)

    @classmethod
    def tiny(cls) -> Self:
        """Return a study of two subjects and few voxels."""
        return cls("fmri", snr=0.5, n_subjects=2, n_train=40, n_val=8, repetitions={"test": 2}, n_sessions=2,
                   recording={"n_voxels": 60})
