"""Writes a simulated study in the layouts of THINGS-MEG: published epochs (FIF) or raw recordings (CTF).

The source is any prepared MEG study of the 271 gradiometers with the window and rate of the published epochs, such as
`brain2img.studies.scenes.Scenes("meg", recording={"sfreq": 200.0, "tmin": -0.1, "tmax": 1.305}, ...)`. Its test images
stand for the published 200, all others for the exemplars. Every ninth trial is followed by a catch trial, of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.data.prepared import PreparedStudy
from brain2img.records import SignalSpec
from brain2img.simulate.continuous import BETWEEN, LEAD, continuous
from brain2img.simulate.ctf import write_ctf

SFREQ, RAW_SFREQ, TMIN, N_TIMES = 200.0, 1200.0, -0.1, 281
_CATCH_EVERY, _CATCH, _TRIGGER = 9, 999999, 64


def write_form(folder: Path, study: PreparedStudy, *, form: str) -> None:
    """Write `study` in a form of the published study ("epochs", "ctf"), with its images."""
    write_images(folder / "object_images", study)
    (write_epochs if form == "epochs" else write_recordings)(folder, study)


def image_name(stimulus_id: str, concept: str) -> str:
    """Return the name of a stimulus as an image of THINGS: its concept, "_", its id."""
    stem = concept.replace(" ", "_")
    return stimulus_id if stimulus_id.startswith(f"{stem}_") else f"{stem}_{stimulus_id}"


def write_images(folder: Path, study: PreparedStudy, *, quality: int = 95) -> None:
    """Write the stimuli as ``<folder>/<concept>/<image>.jpg``."""
    for row, stimulus in study.stimulus_table.iterrows():
        name = image_name(stimulus["stimulus_id"], stimulus["concept"])
        path = folder / stimulus["concept"].replace(" ", "_") / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(study.stimuli.images([row])[0]).convert("RGB").save(path, quality=quality)


def attributes(study: PreparedStudy, subject: str) -> pd.DataFrame:
    """Return the table ``sample_attributes_P<n>.csv`` of a subject, and for each line the `row` of its signals.

    Returns
    -------
    pandas.DataFrame
        In the order of presentation: trial_type, image_path, things_image_nr, things_category_nr, session_nr, run_nr,
        image_on, image_off (s); `row` is -1 for catch trials.
    """
    stimuli = study.stimulus_table.set_index("stimulus_id")
    numbers = {name: i for i, name in enumerate(stimuli.index, start=1)}
    categories = {name: i for i, name in enumerate(sorted(set(stimuli["concept"])), start=1)}
    lines: list[dict[str, object]] = []
    for (session, run), trials in _design(study, subject).groupby(["session", "run"], sort=False):
        onset = LEAD
        for number, trial in enumerate(trials.itertuples()):
            concept = stimuli.loc[trial.stimulus_id, "concept"]
            file = f"{image_name(trial.stimulus_id, concept)}.jpg"
            test = trial.split == "test"
            path = f"images_test_meg/{file}" if test else f"images_meg/{concept.replace(' ', '_')}/{file}"
            shown: list[dict[str, object]] = [{
                "trial_type": "test" if test else "exp", "image_path": path,
                "things_image_nr": numbers[trial.stimulus_id], "things_category_nr": categories[concept],
                "row": trial.row}]
            if number % _CATCH_EVERY == 0:
                shown.append({"trial_type": "catch", "image_path": f"images_catch_meg/catch_{number}.jpg",
                              "things_image_nr": np.nan, "things_category_nr": np.nan, "row": -1})
            for line in shown:
                lines.append({**line, "session_nr": session, "run_nr": run, "image_on": onset,
                              "image_off": onset + 0.5})
                onset += BETWEEN
    return pd.DataFrame(lines)


def _design(study: PreparedStudy, subject: str) -> pd.DataFrame:
    """Return the trials with every test image once a session, as published, whatever sessions the source has."""
    trials = study.trials_of(subject)
    test = trials["split"] == "test"
    if trials[test].groupby(["stimulus_id", "session"]).size().eq(1).all():
        return trials
    sessions = np.sort(trials["session"].unique())
    trials.loc[test, "session"] = sessions[trials.loc[test, "repetition"].to_numpy() % len(sessions)]
    return trials.sort_values(["session", "run"], kind="stable", ignore_index=True)


def _signals(study: PreparedStudy, subject: str, rows: np.ndarray) -> np.ndarray:
    """Return ``(n, C, T)`` float64 signals, noise for the catch trials."""
    spec = study.specs[subject]
    if (spec.n_times, spec.sfreq, round(spec.tmin, 6)) != (N_TIMES, SFREQ, TMIN) or not spec.ch_names:
        raise ValueError(f"signals of subject {subject!r}: expected {N_TIMES} samples from {TMIN} s at {SFREQ:g} Hz, "
                         f"and names of channels, got {spec.n_times} from {spec.tmin:g} s at {spec.sfreq} Hz. Simulate "
                         "with recording={'sfreq': 200.0, 'tmin': -0.1, 'tmax': 1.305}.")
    signals = study.signals(subject)
    out = np.empty((len(rows), spec.n_channels, N_TIMES))
    out[rows >= 0] = signals[rows[rows >= 0]]
    catch = np.flatnonzero(rows < 0)
    out[catch] = np.random.default_rng(0).standard_normal((len(catch), *out.shape[1:])) * signals[:100].std()
    return out


def write_epochs(folder: Path, study: PreparedStudy, *, channel_order: Sequence[int] | None = None,
                 session_order: Sequence[int] | None = None, metadata: bool = True, sfreq: float = SFREQ,
                 split_size: str = "2GB") -> None:
    """Write ``derivatives/preprocessed/preprocessed_P<n>-epo.fif`` of every subject, and the tables of their trials.

    Parameters
    ----------
    folder
        Where the data set is to stand.
    study
        Source.
    channel_order
        Order of the channels in the files, as places in the spec; by default that of the spec.
    session_order
        Order in which the sessions stand in the file; by default that of presentation.
    metadata
        Whether the table of trials is in the files too, as in the published ones.
    sfreq
        Rate that the files claim (Hz).
    split_size
        Largest size of a part.
    """
    import mne
    from mne.baseline import rescale

    for number, subject in enumerate(study.subjects, start=1):
        table = attributes(study, subject)
        _write_table(folder, number, table)
        if session_order is not None:
            table = pd.concat([table[table["session_nr"] == session] for session in session_order], ignore_index=True)
        signals = _signals(study, subject, table["row"].to_numpy())
        times = TMIN + np.arange(N_TIMES) / SFREQ
        signals = rescale(signals, times, (None, 0), mode="zscore", copy=False, verbose="ERROR")
        order = np.arange(signals.shape[1]) if channel_order is None else np.asarray(channel_order)
        values = table["things_image_nr"].fillna(_CATCH).astype(int)
        events = np.c_[1 + 300 * np.arange(len(table)), np.zeros(len(table), dtype=int), values]
        epochs = mne.EpochsArray(
            signals[:, order], _info(study.specs[subject], order, sfreq=sfreq), events, tmin=TMIN,
            metadata=table.drop(columns="row") if metadata else None, verbose="ERROR")
        path = folder / "derivatives" / "preprocessed" / f"preprocessed_P{number}-epo.fif"
        path.parent.mkdir(parents=True, exist_ok=True)
        epochs.save(path, split_size=split_size, verbose="ERROR")


def _info(spec: SignalSpec, order: np.ndarray, *, sfreq: float) -> object:
    """Return MNE's description of the sensors, named as CTF does ("MLC11-1609")."""
    import mne
    from mne.io.constants import FIFF

    info = mne.create_info([f"{spec.ch_names[i]}-1609" for i in order], sfreq, "mag", verbose="ERROR")
    assert spec.positions is not None
    for channel, position in zip(info["chs"], spec.positions[order], strict=True):
        channel["loc"][:3] = position
        channel["coil_type"] = FIFF.FIFFV_COIL_CTF_GRAD
    with info._unlock():  # positions are in head coordinates already; MNE has no public way to say so
        info["dev_head_t"] = mne.Transform("meg", "head")
    return info


def _write_table(folder: Path, number: int, table: pd.DataFrame) -> None:
    path = folder / "sourcedata" / f"sample_attributes_P{number}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.drop(columns="row").to_csv(path, index=False)


def write_recordings(folder: Path, study: PreparedStudy, *, channel_order: Sequence[int] | None = None,
                     sfreq: float = RAW_SFREQ) -> None:
    """Write ``sub-BIGMEG<n>/ses-<ss>/meg/*_meg.ds`` and events of every run, and the tables of the trials.

    Parameters
    ----------
    folder
        Where the data set is to stand.
    study
        Source.
    channel_order
        Order of the channels in the files, as places in the spec; by default that of the spec.
    sfreq
        Rate that the files claim (Hz).
    """
    for number, subject in enumerate(study.subjects, start=1):
        spec = study.specs[subject]
        table = attributes(study, subject)
        _write_table(folder, number, table)
        order = np.arange(spec.n_channels) if channel_order is None else np.asarray(channel_order)
        assert spec.positions is not None
        for (session, run), lines in table.groupby(["session_nr", "run_nr"]):
            signals = continuous(_signals(study, subject, lines["row"].to_numpy())[:, order], sfreq=SFREQ, tmin=TMIN,
                                 raw_sfreq=RAW_SFREQ)
            samples = np.round(lines["image_on"].to_numpy() * RAW_SFREQ).astype(int)
            triggers = np.zeros(signals.shape[1])
            for sample in samples:
                triggers[sample:sample + 12] = _TRIGGER
            triggers[-600:-588] = 32  # end of the run
            stem = f"sub-BIGMEG{number}_ses-{session:02d}_task-main_run-{run:02d}"
            path = folder / f"sub-BIGMEG{number}" / f"ses-{session:02d}" / "meg" / f"{stem}_meg.ds"
            write_ctf(path, signals, triggers=triggers, names=[f"{spec.ch_names[i]}-1609" for i in order],
                      positions=spec.positions[order], sfreq=sfreq)
            pd.DataFrame({"onset": samples / RAW_SFREQ, "duration": 0.5, "trial_type": lines["trial_type"],
                          "value": lines["things_image_nr"], "sample": samples}
                         ).to_csv(path.with_name(f"{stem}_events.tsv"), sep="\t", index=False, na_rep="n/a")
