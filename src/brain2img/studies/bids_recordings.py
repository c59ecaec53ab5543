"""EEG and MEG recordings of a BIDS dataset, read through MNE-BIDS and cut into epochs run by run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.studies.bids_files import BIDSFile
from brain2img.studies.edf import Timing, mend_edf
from brain2img.studies.marks import Quality, honour_bad_channels
from brain2img.studies.recordings import naming

log = logging.getLogger(__name__)

#: What is prepared where a setting is "auto". EEG as Li et al. 2024 (ATM, https://arxiv.org/abs/2403.07721) prepared
#: THINGS-EEG2: 0.1-100 Hz, 250 Hz; MEG as Hebart et al. 2023 prepared THINGS-MEG: 0.1-40 Hz, 200 Hz.
BAND = {"eeg": (0.1, 100.0), "meg": (0.1, 40.0)}
SFREQ = {"eeg": 250.0, "meg": 200.0}
TYPES = {"eeg": ("eeg",), "meg": ("mag", "grad")}
_ONLY_EXTRA = ("crosstalk", "calibration")
#: By how much the resampling of odd rates may be off at the far end of an epoch (s).
_DRIFT = 5e-5
_BLOCK_BYTES = 64_000_000
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is done with the recordings of a run; nothing is fitted.

    Parameters
    ----------
    band
        Lower and upper limit (Hz) of the filter, either of them None for none; "auto" as in `BAND`; None: as recorded.
    notch
        Frequency of the mains (50 or 60), filtered out with its harmonics below the upper limit; or a list of
        frequencies (Hz). None: not filtered out.
    sfreq
        Samples per second of what is prepared; "auto" as in `SFREQ`; None: as recorded.
    tmin, tmax
        Window (s) about the onset.
    baseline
        From and to (s): what the mean of every epoch and channel is taken over and subtracted. None: left.
    reference
        EEG: "average", names of channels, or None as recorded; "auto" is the average. MEG has none.
    picks
        Types of channels that are taken, of "eeg", "mag" and "grad"; "auto": all of the datatype.
    montage
        Name of a montage of MNE ("colin27_1005", "biosemi64") that tells where EEG electrodes are; "auto": as the
        dataset says, else by colin27_1005 (the 10-05 system) where it knows all names; None: as the dataset says.
    """

    band: Sequence[float | None] | str | None = "auto"
    notch: float | Sequence[float] | None = None
    sfreq: float | str | None = "auto"
    tmin: float = -0.2
    tmax: float = 1.0
    baseline: Sequence[float] | None = (-0.2, 0.0)
    reference: str | Sequence[str] | None = "auto"
    picks: str | Sequence[str] = "auto"
    montage: str | None = "auto"

    def __post_init__(self) -> None:
        if not self.tmin < self.tmax:
            raise ValueError(f"study.recording: expected a window from tmin to a later tmax, got {self.tmin} to "
                             f"{self.tmax} s. Correct study.recording.tmin and tmax.")
        if self.baseline is not None and not (
                len(self.baseline) == 2 and self.tmin - 1e-9 <= self.baseline[0] <= self.baseline[1] <= self.tmax):
            raise ValueError(f"study.recording.baseline: expected [from, to] within {self.tmin} to {self.tmax} s, got "
                             f"{list(self.baseline)}. Correct it, or set it to null.")

    def of(self, datatype: str, *, quality: Quality) -> Settings:
        """Return what "auto" stands for in a datatype.

        Raises
        ------
        ValueError
            If a setting is impossible.
        """
        band = BAND[datatype] if self.band == "auto" else (None, None) if self.band is None else self.band
        if isinstance(band, str) or len(band) != 2 or (None not in band and not 0 <= band[0] < band[1]):  # type: ignore
            raise ValueError(f"study.recording.band: expected [lower, upper] in Hz, either of them null for none, got "
                             f"{band}. Correct it.")
        types = TYPES[datatype] if self.picks == "auto" else tuple(
            [self.picks] if isinstance(self.picks, str) else self.picks)
        if not types or not set(types) <= set(TYPES[datatype]):
            raise ValueError(f"study.recording.picks: expected types of {TYPES[datatype]}, got {list(types)}. "
                             "Correct it.")
        sfreq = SFREQ[datatype] if self.sfreq == "auto" else self.sfreq
        if isinstance(sfreq, str) or (sfreq is not None and sfreq <= 0):
            raise ValueError(f"study.recording.sfreq: expected samples per second, 'auto' or null, got {sfreq!r}. "
                             "Correct it.")
        reference = ("average" if datatype == "eeg" else None) if self.reference == "auto" else self.reference
        if datatype == "meg" and reference is not None:
            raise ValueError(f"study.recording.reference: expected null for MEG, got {reference}. Set it to auto.")
        notch = () if self.notch is None else self.notch if isinstance(self.notch, (int, float)) else tuple(self.notch)
        reference = reference if isinstance(reference, str) or reference is None else tuple(reference)
        return Settings(datatype, (band[0], band[1]), notch, sfreq, types, reference, quality, self)


@dataclass(frozen=True)
class Settings:
    """`Recording` with every "auto" replaced, and what of `marks.Quality` matters when recordings are read."""

    datatype: str
    band: tuple[float | None, float | None]
    notch: float | tuple[float, ...]
    sfreq: float | None
    types: tuple[str, ...]
    reference: str | tuple[str, ...] | None
    quality: Quality
    asked: Recording

    def mains(self, sfreq: float) -> list[float]:
        """Return the frequencies (Hz) that are filtered out of a recording of this rate."""
        if isinstance(self.notch, tuple):
            return list(self.notch)
        upper = min(self.band[1] or np.inf, 0.475 * sfreq)
        return [float(f) for f in np.arange(self.notch, upper, self.notch)]

    def words(self) -> str:
        """Return in words what was done, for the spec of the signals."""
        lower, upper = self.band
        parts = [f"{f'{lower:g}' if lower else '0'}-{f'{upper:g}' if upper else 'all'} Hz" if lower or upper else "",
                 f"notch {self.notch}" if self.notch else "",
                 f"reference: {self.reference if isinstance(self.reference, str) else ', '.join(self.reference)}"
                 if self.reference else ""]
        return "; ".join(part for part in parts if part)


def recordings(folder: Path, datatype: str, *, files: Sequence[BIDSFile]) -> list[BIDSFile]:
    """Return those of the files in a folder that are whole recordings: of a split FIF the first part alone.

    Raises
    ------
    ValueError
        If two files hold the same run.
    """
    from mne_bids.config import ALLOWED_DATATYPE_EXTENSIONS

    endings = {*ALLOWED_DATATYPE_EXTENSIONS[datatype], *(("",) if datatype == "meg" else ())}  # BTi: a folder
    found = [file for file in files if file.suffix == datatype and file.extension.lower() in endings
             and (file.extension or file.path.is_dir()) and file.entities.get("acq") not in _ONLY_EXTRA
             and int(file.entities.get("split", "1")) == 1]
    for one, other in pairwise(found):
        if one.entities == other.entities:
            raise ValueError(f"{folder}: expected one recording of a run, got {one.path.name} and {other.path.name}. "
                             "Remove one of them.")
    return sorted(found, key=BIDSFile.order)


def open_recording(file: BIDSFile, *, root: Path, settings: Settings) -> tuple[Any, Timing | None]:
    """Open a recording without reading its signals: bad channels, bad spans, types and positions are in it.

    Marks in the file itself count beside those of ``channels.tsv`` and ``events.tsv``.

    Returns
    -------
    tuple
        `mne.io.BaseRaw` with the channels of the types asked for; and of EDF and BDF when its samples were taken, for
        there may be gaps between them.

    Raises
    ------
    ValueError
        If it is damaged, or has no channels of the types asked for.
    """
    import mne
    import mne_bids

    path = mne_bids.get_bids_path_from_fname(file.path, check=False).update(
        root=root, datatype=settings.datatype, extension=file.extension or ".pdf")
    with naming(file.path):
        raw = mne_bids.read_raw_bids(path, verbose="WARNING")
        if file.extension.lower() in (".fif", ".ds", ".set"):  # MNE-BIDS puts what the tables say in place of these
            own = mne.io.read_raw(file.path, verbose="WARNING", **(
                {"allow_maxshield": True} if file.extension == ".fif" else {}))
            raw.info["bads"] = [name for name in raw.ch_names if name in {*raw.info["bads"], *own.info["bads"]}]
            for onset, duration, text in zip(own.annotations.onset, own.annotations.duration,
                                             own.annotations.description, strict=True):
                if str(text).upper().startswith("BAD"):
                    raw.annotations.append(onset - own.first_time + raw.first_time, duration, text)
    there = raw.get_channel_types()
    if not set(settings.types) & set(there):
        raise ValueError(f"{file.path}: expected channels of type {' or '.join(settings.types)}, got "
                         f"{', '.join(sorted(set(there)))}. Correct its channels.tsv, study.datatype or "
                         "study.recording.picks.")
    chosen = [name for name, kind in zip(raw.ch_names, there, strict=True) if kind in settings.types]
    when = None
    if file.extension.lower() in (".edf", ".bdf"):
        when = _mended(raw, chosen, path=file.path, unit=settings.quality.unit)
    raw.pick(chosen)
    if file.extension == ".ds":  # the serial number of the system ("MLC11-1609") is no part of the name
        raw.rename_channels(lambda name: re.sub(r"-\d+$", "", name))
    if settings.datatype == "eeg":
        raw = _with_positions(raw, settings.asked.montage, path=file.path)
    return raw, when


def _mended(raw: Any, chosen: list[str], *, path: Path, unit: str | None) -> Timing:
    """Make of an EDF or BDF what its header says; spans that the table of events calls bad stay."""
    bad = [(onset - raw.first_time, duration, text) for onset, duration, text in zip(
        raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True)
        if str(text).upper().startswith("BAD")]
    when = mend_edf(raw, path=path, channels=chosen, unit=unit)
    if len(when.joints):
        for onset, duration, text in bad:
            start, stop = (max(0, int(when.samples(np.array([time]))[0])) for time in (onset, onset + duration))
            raw.annotations.append(start / when.sfreq + raw.first_time, max(0, stop - start) / when.sfreq, text)
    return when


def _with_positions(raw: Any, montage: str | None, *, path: Path) -> Any:
    """Return the recording with the places of its electrodes, as `Recording.montage` says."""
    import mne

    if montage is None or (montage == "auto" and known_positions(raw.info) is not None):
        return raw
    name = "colin27_1005" if montage == "auto" else montage
    try:
        standard = mne.channels.make_standard_montage(name)
    except ValueError as error:
        raise ValueError(f"study.recording.montage: expected 'auto' or one of "
                         f"{', '.join(mne.channels.get_builtin_montages())}, got {name!r}. Choose one.") from error
    places = {label.lower() for label in standard.ch_names}
    unknown = [label for label in raw.ch_names if label.lower() not in places]
    if unknown and montage != "auto":
        raise ValueError(f"{path}: expected channels of the montage {name}, got {', '.join(unknown[:_SHOWN])}, which "
                         "it does not know. Choose another with study.recording.montage, or write electrodes.tsv.")
    return raw if unknown else raw.set_montage(standard, match_case=False, verbose="WARNING")


def known_positions(info: Any) -> np.ndarray | None:
    """Return where the sensors are, ``(C, 3)`` in metres, head coordinates; None where that is not known of all."""
    import mne

    places = np.array([channel["loc"][:3] for channel in info["chs"]])
    if not np.isfinite(places).all() or not places.any(axis=1).all():
        return None
    meg = np.array([kind in ("mag", "grad") for kind in info.get_channel_types()])
    if meg.any() and info["dev_head_t"] is not None:
        places[meg] = mne.transforms.apply_trans(info["dev_head_t"], places[meg])
    return places


def units_of(types: Sequence[str]) -> str:
    """Return the units of signals of these types of channels."""
    return " and ".join(dict.fromkeys({"eeg": "V", "mag": "T", "grad": "T/m"}[kind] for kind in types))


@dataclass(frozen=True, eq=False)
class Run:
    """A run of which epochs are cut: the recording, and the samples of its events, counted from its first."""

    file: BIDSFile
    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class BIDSSession:
    """Reads the runs of one session one by one, each whole.

    Parameters
    ----------
    root
        Root of the dataset.
    runs
        Its runs, in order.
    ch_names
        Channels that are taken, in this order.
    sfreq
        Samples per second of the epochs.
    settings
        What is done with them.
    """

    root: Path
    runs: tuple[Run, ...]
    ch_names: tuple[str, ...]
    sfreq: float
    settings: Settings

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield blocks ``(n, C, T)`` float32 (V, T or T/m)."""
        for run in self.runs:
            raw, _ = open_recording(run.file, root=self.root, settings=self.settings)
            with naming(run.file.path):
                raw.load_data(verbose="WARNING")
            signals = self._cleaned(raw, path=run.file.path)
            yield from epochs(signals, run.samples, sfreq=float(raw.info["sfreq"]), to=self.sfreq,
                              asked=self.settings.asked)

    def _cleaned(self, raw: Any, *, path: Path) -> np.ndarray:
        """Return the signals ``(C, n)`` of the channels that are taken: mended, referenced and filtered."""
        settings = self.settings
        bads = honour_bad_channels(raw, policy=settings.quality.bad_channels, what=str(path))
        if settings.quality.bad_channels == "drop":
            raw.drop_channels(bads)
        raw.info["bads"] = []  # what is kept takes part in the reference
        if settings.reference is not None:
            names = settings.reference if isinstance(settings.reference, str) else list(settings.reference)
            lacking = [] if isinstance(names, str) else [name for name in names if name not in raw.ch_names]
            if lacking:
                raise ValueError(f"{path}: expected the channels of study.recording.reference, got none named "
                                 f"{', '.join(lacking)}. Correct study.recording.reference.")
            raw.set_eeg_reference(names, projection=False, verbose="WARNING")
        sfreq = float(raw.info["sfreq"])
        lower, upper = settings.band
        if upper is not None and upper >= sfreq / 2:
            upper = None  # nothing is above
        apart = ("edge", "bad_acq_skip")
        if lower or upper:
            raw.filter(lower, upper, skip_by_annotation=apart, verbose="WARNING")
        if mains := settings.mains(sfreq):
            raw.notch_filter(mains, skip_by_annotation=apart, verbose="WARNING")
        signals: np.ndarray = raw.get_data(picks=list(self.ch_names))
        return signals


def epochs(signals: np.ndarray, samples: np.ndarray, *, sfreq: float, to: float,
           asked: Recording) -> Iterator[np.ndarray]:
    """Cut epochs and bring them to another rate, with a low-pass filter against aliasing.

    An epoch is cut about the sample of its event and resampled by itself, so that the event lies on a sample whatever
    the two rates are (`scipy.signal.resample_poly`: zero phase).

    Parameters
    ----------
    signals
        ``(C, n)`` of a whole run.
    samples
        ``(n,)`` whole numbers: where events were, counted from the first sample.
    sfreq, to
        Samples per second of the run and of the epochs.
    asked
        Window and baseline.

    Yields
    ------
    numpy.ndarray
        ``(n, C, T)`` float32; the first sample is the one nearest to `tmin`.
    """
    from scipy.signal import resample_poly

    p, q = _fraction(sfreq / to, within=_DRIFT / max(abs(asked.tmin), abs(asked.tmax)))
    first, last = sample_range(asked.tmin, asked.tmax, sfreq=to)
    reach = 0 if p == q else 10 * max(1, -(-p // q)) + 1  # of resample_poly's filter
    start = p * int(np.floor((first * p / q - reach) / p))
    stop = int(np.ceil(last * p / q)) + reach + 1
    begin = first - start * q // p
    window = np.arange(start, stop)
    n_at_once = max(1, _BLOCK_BYTES // (8 * len(signals) * len(window)))
    base = None if asked.baseline is None else sample_range(*asked.baseline, sfreq=to)
    for at in range(0, len(samples), n_at_once):
        where = np.clip(samples[at:at + n_at_once, None] + window, 0, signals.shape[1] - 1)
        block = signals[:, where].transpose(1, 0, 2)
        if p != q:
            block = resample_poly(block, q, p, axis=-1, padtype="edge")
        block = block[..., begin:begin + last - first + 1]
        if base is not None:
            block = block - block[..., base[0] - first:base[1] - first + 1].mean(axis=-1, keepdims=True)
        yield block.astype(np.float32)


def _fraction(ratio: float, *, within: float) -> tuple[int, int]:
    """Return the fraction of smallest denominator that is off by a share of at most `within` (600.615 / 200 Hz)."""
    for limit in count(1):
        found = Fraction(ratio).limit_denominator(limit)
        if abs(found / Fraction(ratio) - 1) <= within:
            return found.numerator, found.denominator
    raise AssertionError("every number has such a fraction")


def sample_range(start: float, stop: float, *, sfreq: float) -> tuple[int, int]:
    """Return the first and the last sample within a window (s) about an event that is sample 0."""
    return int(np.ceil(start * sfreq - 1e-6)), int(np.floor(stop * sfreq + 1e-6))
