"""Writes a simulated study in the layouts of Alljoined-1.6M: EDF recordings, or flat preprocessed files.

The source is any prepared EEG study from -0.2 s at 250 Hz with the 32 channels, such as
`brain2img.studies.scenes.Scenes("eeg", ...)`. Its runs become blocks, its test images the test images. In the
recordings pictures follow each other every 1.5 s, not every 0.2 s, so that the responses of the source, which hold
their neighbours' already, do not overlap once more.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.artifacts import write_table
from brain2img.data.prepared import PreparedStudy
from brain2img.simulate.continuous import BETWEEN, LEAD, continuous

CHANNELS = tuple("""
    Cz FCz AFz Fp1 F5 F1 CP5 CP3 CP1 P1 P3 P5 P7 PO7 PO3 O1
    Pz POz Oz O2 PO4 PO8 P8 P6 P4 P2 CP2 CP4 CP6 F2 F6 Fp2
""".split())
SFREQ, RAW_SFREQ, TMIN = 250.0, 256, -0.2
_ODDBALL_EVERY = 7
#: Samples before onset, which the flat files leave out, and samples that they keep.
_BEFORE, _KEPT = 50, 250


def write_form(folder: Path, study: PreparedStudy, *, form: str) -> None:
    """Write `study` in a form of the published study ("edf", "preprocessed"), with its images."""
    write_images(folder, study)
    (write_recordings if form == "edf" else write_flat)(folder, study)


def numbers(study: PreparedStudy) -> dict[str, int]:
    """Return the number of every stimulus: those of training and validation first, then those of the test."""
    test = set(study.trials.loc[study.trials["split"] == "test", "stimulus_id"])
    ids = study.stimulus_table["stimulus_id"].tolist()
    return {name: i for i, name in enumerate([*(n for n in ids if n not in test), *(n for n in ids if n in test)])}


def write_images(folder: Path, study: PreparedStudy, *, quality: int = 95) -> None:
    """Write the stimuli as ``<folder>/stimuli/images/<number>.jpg``, and the table of their categories."""
    number = numbers(study)
    table = study.stimulus_table
    (folder / "stimuli" / "images").mkdir(parents=True, exist_ok=True)
    (folder / "preprocessed_eeg").mkdir(exist_ok=True)
    for row, name in enumerate(table["stimulus_id"]):
        image = Image.fromarray(study.stimuli.images([row])[0]).convert("RGB")
        image.save(folder / "stimuli" / "images" / f"{number[name]:05d}.jpg", quality=quality)
    write_table(folder / "preprocessed_eeg" / "experiment_metadata_categories.parquet", pd.DataFrame({
        "image_path": [_image_path(number[name]) for name in table["stimulus_id"]],
        "category_name": table["concept"].str.replace(" ", "_"), "super_category": table["category"]}))


def _image_path(number: int) -> str:
    return f"/srv/images/{number:05d}.jpg"


def stimulus_order(study: PreparedStudy, subject: str) -> pd.DataFrame:
    """Return ``stim_order.parquet`` of a subject, oddballs in it, and for each line the `row` of its signals or -1."""
    number = numbers(study)
    concepts = study.stimulus_table.set_index("stimulus_id")["concept"]
    nth = {name: i for i, name in enumerate(sorted(set(concepts)))}
    lines: list[dict[str, object]] = []
    for (session, run), trials in study.trials_of(subject).groupby(["session", "run"], sort=False):
        for place, trial in enumerate(trials.itertuples()):
            shown = [("stim_test" if trial.split == "test" else "stim_train", number[trial.stimulus_id], trial.row)]
            if place % _ODDBALL_EVERY == 3:
                shown.append(("oddball", len(number), -1))
            for partition, image, row in shown:
                lines.append({"session": session, "block_id": run, "partition": partition,
                              "image_path": _image_path(image), "row": row,
                              "category_num": nth[concepts[trial.stimulus_id]] if row >= 0 else -1})
    return pd.DataFrame(lines)


def signals_of(study: PreparedStudy, subject: str, rows: np.ndarray) -> np.ndarray:
    """Return ``(n, 32, T)`` float64 (V) of the given rows, in the order of `CHANNELS`."""
    spec = study.specs[subject]
    if spec.sfreq != SFREQ or round(spec.tmin, 6) != TMIN or spec.n_times < _BEFORE + _KEPT:
        raise ValueError(f"signals of subject {subject!r}: expected at least {_BEFORE + _KEPT} samples from {TMIN} s "
                         f"at {SFREQ:g} Hz, got {spec.n_times} from {spec.tmin:g} s at {spec.sfreq} Hz. Simulate with "
                         "recording={'sfreq': 250.0, 'tmin': -0.2, 'tmax': 1.0}.")
    missing = [name for name in CHANNELS if name not in spec.ch_names]
    if missing:
        raise ValueError(f"signals of subject {subject!r}: expected the channels {', '.join(CHANNELS)}, got none named "
                         f"{', '.join(missing)}. Simulate with all channels.")
    places = [spec.ch_names.index(name) for name in CHANNELS]
    return np.asarray(study.signals(subject)[rows][:, places, :_BEFORE + _KEPT], dtype=float)


def write_recordings(folder: Path, study: PreparedStudy, *, channel_order: Sequence[int] | None = None,
                     unmarked: Collection[int] = (), missing: Collection[tuple[int, int]] = (),
                     sfreq: int = RAW_SFREQ) -> None:
    """Write ``raw_eeg/sub-<ss>/session_<ss>/block_<bb>/*.edf`` and ``stim_order.parquet`` of every subject.

    Parameters
    ----------
    folder
        Where the data set is to stand.
    study
        Source.
    channel_order
        Order of the channels in the files, as places in `CHANNELS`; by default theirs.
    unmarked
        Rows of the source whose marker is lost.
    missing
        (session, block) of which there is no file.
    sfreq
        Rate that the files claim (Hz).
    """
    from edfio import Edf, EdfAnnotation, EdfSignal

    order = np.arange(len(CHANNELS)) if channel_order is None else np.asarray(channel_order)
    for number, subject in enumerate(study.subjects, start=1):
        table = stimulus_order(study, subject)
        there = folder / "raw_eeg" / f"sub-{number:02d}"
        there.mkdir(parents=True)
        write_table(there / "stim_order.parquet", table.drop(columns="row"))
        for (session, run), lines in table.groupby(["session", "block_id"]):
            if (session, run) in missing:
                continue
            rows = lines["row"].to_numpy()
            trials = signals_of(study, subject, np.maximum(rows, 0))
            signals = continuous(np.where((rows >= 0)[:, None, None], trials, 0), sfreq=SFREQ, tmin=TMIN,
                                 raw_sfreq=RAW_SFREQ)
            signals = signals[:, :signals.shape[1] // sfreq * sfreq] * 1e6
            annotations = []
            for place, line in enumerate(lines.itertuples()):
                onset = round((LEAD + BETWEEN * place) * RAW_SFREQ) / RAW_SFREQ
                image = int(Path(line.image_path).stem)
                if line.row not in unmarked:
                    annotations.append(EdfAnnotation(onset, None, f"{line.partition},{image},-1,{place}"))
                if line.row < 0:
                    annotations.append(EdfAnnotation(onset + 0.3, None, f"behav,0,-1,{place}"))
            bound = float(np.ceil(np.abs(signals).max())) + 1
            labels = ["Afz" if name == "AFz" else name for name in CHANNELS]  # as EMOTIV writes it
            channels = [EdfSignal(signals[i], sfreq, label=labels[i], physical_dimension="uV",
                                  physical_range=(-bound, bound)) for i in order]
            counter = np.arange(signals.shape[1], dtype=np.float64) % 128
            auxiliary = [EdfSignal(counter, sfreq, label=label, physical_range=(0, 255))
                         for label in ("Counter", "CQ_Overall")]
            path = there / f"session_{session:02d}" / f"block_{run:02d}" / (
                f"Subject {number}, Session {session}, Block {run}_EPOCFLEX.edf")
            path.parent.mkdir(parents=True)
            Edf([auxiliary[0], *channels, auxiliary[1]], annotations=annotations, data_record_duration=1).write(path)


def whitened(study: PreparedStudy, subject: str) -> np.ndarray:
    """Return ``(n_trials, 32, 250)`` as the flat files hold them: from onset on, whitened session by session.

    The whitening matrix is the inverse square root of the mean covariance of the session's training trials (the
    authors shrink each covariance first).
    """
    trials = study.trials_of(subject)
    signals = signals_of(study, subject, np.arange(len(trials)))
    out = np.empty((len(trials), len(CHANNELS), _KEPT))
    for session in trials["session"].unique():
        of_session = (trials["session"] == session).to_numpy()
        train = signals[of_session & (trials["split"] != "test").to_numpy()]
        centred = train - train.mean(axis=-1, keepdims=True)
        covariance = np.einsum("nct,ndt->cd", centred, centred) / (len(train) * signals.shape[-1])
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, 1e-3 * values[-1])
        out[of_session] = (vectors / np.sqrt(values)) @ vectors.T @ signals[of_session][..., _BEFORE:]
    return out


def write_flat(folder: Path, study: PreparedStudy, *, channel_order: Sequence[int] | None = None,
               dropped: Collection[int] = ()) -> None:
    """Write ``preprocessed_eeg/sub-<ss>/preprocessed_eeg_{training,test}_flat.npy`` and their table of trials.

    Parameters
    ----------
    folder
        Where the data set is to stand.
    study
        Source.
    channel_order
        Order of the channels in the files, as places in `CHANNELS`; by default theirs.
    dropped
        Rows of the source that the table calls dropped and the files lack.
    """
    order = np.arange(len(CHANNELS)) if channel_order is None else np.asarray(channel_order)
    for number, subject in enumerate(study.subjects, start=1):
        table = stimulus_order(study, subject)
        there = folder / "preprocessed_eeg" / f"sub-{number:02d}"
        there.mkdir(parents=True)
        kept = ~table["row"].isin([-1, *dropped])
        write_table(there / "experiment_metadata.parquet", table.drop(columns="row").assign(dropped=~kept))
        signals = whitened(study, subject)
        for partition, name in (("stim_train", "training"), ("stim_test", "test")):
            rows = table.loc[kept & (table["partition"] == partition), "row"].to_numpy()
            values = {"preprocessed_eeg_data": np.ascontiguousarray(signals[rows][:, order]),
                      "configs": {"sfreq": 250, "mvnn_dim": "epochs"}, "ch_names": [CHANNELS[i] for i in order],
                      "times": round(TMIN * RAW_SFREQ) / RAW_SFREQ + np.arange(_BEFORE, _BEFORE + _KEPT) / SFREQ}
            with (there / f"preprocessed_eeg_{name}_flat.npy").open("wb") as file:
                pickle.dump(values, file, protocol=pickle.HIGHEST_PROTOCOL)
