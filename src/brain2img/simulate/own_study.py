"""An example of a person's own study: a dozen drawn pictures, each shown several times, in the files of `Arrays`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.simulate import NOTE, fmri, meeg
from brain2img.simulate.features import stimulus_features
from brain2img.simulate.scenes import ids, render, scene

#: What is simulated of each modality, the factor to the unit of the file, and that unit.
RECORDINGS: Mapping[str, tuple[Mapping[str, Any], float, str]] = {
    "eeg": ({"sfreq": 100.0, "tmin": -0.2, "tmax": 0.8, "n_channels": 32}, 1e6, "uV"),
    "meg": ({"sfreq": 100.0, "tmin": -0.2, "tmax": 0.8, "n_channels": 60}, 1e15, "fT"),
    "fmri": ({"n_voxels": 200}, 1.0, "psc")}
_RUN, _PACE = 40, {"eeg": 1.5, "meg": 1.5, "fmri": 4.0}

_README = """\
An example of a study of one's own, in the files that study=arrays reads. All of it is simulated: nobody was recorded.
Replace each file by your own and keep the names. docs/own_data.md says more.

signals_<subject>.npy   One array a subject: trials x channels{samples} ({unit}), float32. Also .mat or .h5.
trials.csv              One line for each trial, in the order of the arrays.
                        subject      as in the names of the files of signals
                        stimulus_id  what was shown: the name of a picture in stimuli/ without its ending
                        session, run, onset (s from the start of the run), repetition: leave out what you do not know
                        split        (not here) train, val or test; without it stimuli are held out at random, or left
                                     out in turns
                        row          (not here) place in the array, from 0, if the order is another
stimuli/                One picture for each stimulus_id.
stimuli.csv             May be left out: captions (several with | between them), concept (class) and category.
channels.csv            May be left out: {channels}

What the files cannot say is said on the command line: {settings}
Check all that before anything long is run:

brain2img check study=arrays raw={raw} {settings}
"""


def write_own_study(folder: Path, *, modality: str = "eeg", n_stimuli: int = 12, n_repetitions: int = 10,
                    n_subjects: int = 2, snr: float = 3.0, seed: int = 0, raw: Path | None = None) -> str:
    """Write the example into an existing folder; returns the settings that the command line has to say.

    Parameters
    ----------
    folder
        Where the files go.
    modality
        "eeg", "meg" or "fmri".
    n_stimuli, n_repetitions, n_subjects
        Different pictures, times that each is shown, and people.
    snr
        Factor on the responses (EEG, MEG), or signal-to-noise ratio of a trial (fMRI); 0 leaves nothing of the stimuli.
    seed
        Seed of subjects and noise.
    raw
        Where the folder will lie, for its README.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """
    if modality not in RECORDINGS:
        raise ValueError(f"modality: expected one of {', '.join(RECORDINGS)}, got {modality!r}. Choose one of these.")
    if min(n_stimuli, n_repetitions, n_subjects) < 1 or n_stimuli > 200:
        raise ValueError(f"new study: expected 1 to 200 stimuli, and repetitions and subjects, got {n_stimuli}, "
                         f"{n_repetitions} and {n_subjects}. Correct n_stimuli, n_repetitions or n_subjects.")
    recording, factor, unit = RECORDINGS[modality]
    names = list(ids("test", n_stimuli))
    scenes = [scene(name) for name in names]
    images = np.stack([render(s, size=64) for s in scenes])
    features = stimulus_features(scenes, images)
    labels = [f"{number:03d}_{s.kind}".replace(" ", "_") for number, s in enumerate(scenes, start=1)]
    (folder / "stimuli").mkdir()
    for label, image in zip(labels, images, strict=True):
        Image.fromarray(image).save(folder / "stimuli" / f"{label}.png")
    pd.DataFrame({"stimulus_id": labels, "captions": ["|".join(s.captions[:2]) for s in scenes],
                  "concept": [s.concept for s in scenes], "category": [s.category for s in scenes]}
                 ).to_csv(folder / "stimuli.csv", index=False)
    tables = []
    for number in range(1, n_subjects + 1):
        subject = f"sub-{number:02d}"
        trials = _trials(n_stimuli, n_repetitions, modality=modality, seed=seed + number)
        common = {"features": features, "trials": trials, "snr": snr, "seed": seed, **recording}
        spec, blocks, _ = (fmri.simulate_subject(subject, **common) if modality == "fmri" else
                           meeg.simulate_subject(subject, modality=modality, **common))
        x = (np.concatenate(list(blocks)) * factor).astype(np.float32)
        np.save(folder / f"signals_{subject}.npy", x[:, :, 0] if modality == "fmri" else x, allow_pickle=False)
        _channels(spec, modality).to_csv(
            folder / (f"channels_{subject}.csv" if modality == "fmri" else "channels.csv"), index=False)
        tables.append(trials.assign(subject=subject, stimulus_id=[labels[i] for i in trials["stimulus"]]))
    columns = ["subject", "stimulus_id", "session", "run", "onset", "repetition"]
    pd.concat(tables)[columns].to_csv(folder / "trials.csv", index=False)
    (folder / NOTE).write_text("Simulated by brain2img as an example of a study of one's own: nobody was recorded.\n")
    times = "" if modality == "fmri" else f" study.sfreq={recording['sfreq']:g} study.tmin={recording['tmin']:g}"
    settings = f"study.modality={modality} study.units={unit}{times}"
    told = ("roi of each voxel, one file a subject (channels_<subject>.csv)" if modality == "fmri" else
            "name, type and place (x, y, z in metres) of each channel")
    (folder / "README.txt").write_text(_README.format(
        samples="" if modality == "fmri" else " x samples", unit=unit, channels=told, settings=settings,
        raw=raw or folder))
    return settings


def _trials(n_stimuli: int, n_repetitions: int, *, modality: str, seed: int) -> pd.DataFrame:
    """Return the trials of a subject: every stimulus once in random order, then all again."""
    rng = np.random.default_rng([seed, 83])
    order = np.concatenate([rng.permutation(n_stimuli) for _ in range(n_repetitions)])
    place = np.arange(len(order))
    half = place >= len(order) / 2
    within = np.where(half, place - int(np.argmax(half)) if half.any() else 0, place)
    return pd.DataFrame({"stimulus": order, "split": "train", "session": half.astype(int) + 1,
                         "run": within // _RUN + 1, "onset": within % _RUN * _PACE[modality],
                         "repetition": place // n_stimuli, "stimulus_id": [f"{i}" for i in order]})


def _channels(spec: Any, modality: str) -> pd.DataFrame:
    if modality == "fmri":
        return pd.DataFrame({"roi": list(spec.rois)})
    places = np.round(spec.positions, 5)
    return pd.DataFrame({"name": list(spec.ch_names), "type": list(spec.ch_types), "x": places[:, 0],
                         "y": places[:, 1], "z": places[:, 2]})
