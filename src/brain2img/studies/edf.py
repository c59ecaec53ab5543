"""EDF and BDF recordings with what MNE passes over: units it does not know, gaps between records, ranges, rates, sizes.

https://www.edfplus.info/specs/edfplus.html: a file may be discontinuous (EDF+D), its records beginning at the times
that stand in their annotations. MNE puts the records one after the other and leaves the annotations at their times; it
reads every unit but uV and mV as volts, an empty range as a range of 1, and upsamples slower channels in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brain2img.studies.recordings import naming, places

log = logging.getLogger(__name__)

#: Volts in a unit.
UNITS = {"V": 1.0, "mV": 1e-3, "uV": 1e-6, "nV": 1e-9}
#: How MNE spells the units that it knows; all others it reads as volts.
_KNOWN_TO_MNE = {"uV": 1e-6, "\u00b5V": 1e-6, "\u03bcV": 1e-6, "\x83\xcaV": 1e-6, "mV": 1e-3}
#: Width in bytes of what the header says of each channel, in order.
_FIELDS = {"label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8, "digital_min": 8,
           "digital_max": 8, "prefilter": 80, "n_samples": 8, "reserved": 32}
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14(.*)", re.DOTALL)


@dataclass(frozen=True)
class Channel:
    """What the header says of a channel: label, unit, ranges, samples in a record."""

    label: str
    unit: str
    physical: tuple[float, float]
    digital: tuple[float, float]
    n_samples: int

    @property
    def annotations(self) -> bool:
        """Whether it holds annotations, not a signal."""
        return self.label in ("EDF Annotations", "BDF Annotations")

    @property
    def volts(self) -> float | None:
        """Volts in its unit, however that is spelled; None where it is blank or none of V, mV, uV, nV."""
        words = self.unit
        for mu in ("\x83\xca", "\u00ce\u00bc", "\u00b5", "\u03bc"):  # Shift JIS, UTF-8 read as Latin-1, micro, mu
            words = words.replace(mu, "u")
        if words.startswith("M"):
            return None  # nobody measures megavolts, but nobody can know what is meant
        found = re.fullmatch(r"(|n|u|micro|m|milli|nano)v(?:olts?)?", words.lower())
        return None if found is None else {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "micro": 1e-6, "milli": 1e-3,
                                           "nano": 1e-9}[found[1]]


@dataclass(frozen=True)
class Header:
    """What stands at the beginning of an EDF or BDF file, checked against its size.

    Parameters
    ----------
    path
        The file.
    width
        Bytes of a sample: 2 (EDF) or 3 (BDF).
    n_bytes
        Size of the header.
    n_records, duration
        Records, and seconds in each.
    discontinuous
        Whether the file calls itself EDF+D or BDF+D.
    channels
        All channels, those of annotations too.
    """

    path: Path
    width: int
    n_bytes: int
    n_records: int
    duration: float
    discontinuous: bool
    channels: tuple[Channel, ...]

    def sfreq(self, channel: Channel) -> float:
        """Return the samples per second of a channel (Hz)."""
        return channel.n_samples / self.duration


@dataclass(frozen=True, eq=False)
class Timing:
    """When the samples of a recording were taken, for its records may have gaps between them.

    Parameters
    ----------
    starts
        ``(n_records,)`` times at which the records begin (s), the first at 0.
    duration
        Seconds in a record.
    sfreq
        Samples per second (Hz).
    """

    starts: np.ndarray
    duration: float
    sfreq: float

    @property
    def joints(self) -> np.ndarray:
        """Samples, counted over the records as they stand in the file, before which there is a gap."""
        return (1 + np.flatnonzero(self._gaps)) * round(self.duration * self.sfreq)

    @property
    def _gaps(self) -> np.ndarray:
        # a sample more or less is the rounding of whoever wrote the times
        return np.diff(self.starts) - self.duration > 1.5 / self.sfreq

    @property
    def resumed(self) -> np.ndarray:
        """Times (s) at which the recording goes on after each gap."""
        return self.starts[1:][self._gaps]

    def samples(self, onsets: np.ndarray) -> np.ndarray:
        """Return the sample at which something happened, counted over the records; -1 where nothing was recorded then.

        Parameters
        ----------
        onsets
            ``(n,)`` times from the beginning of the recording (s), as annotations and events tables have them.
        """
        onsets = np.asarray(onsets, dtype=float)
        half = 0.5 / self.sfreq
        record = np.searchsorted(self.starts, onsets + half, side="right") - 1
        inside = onsets - self.starts[np.maximum(record, 0)]
        length = round(self.duration * self.sfreq)
        within = np.rint(inside * self.sfreq).astype(np.int64)
        return np.where((record >= 0) & (within < length), record * length + within, -1)

    def times(self, samples: np.ndarray) -> np.ndarray:
        """Return when samples, counted over the records, were taken (s from the beginning)."""
        length = round(self.duration * self.sfreq)
        record = np.minimum(np.asarray(samples) // length, len(self.starts) - 1)
        return np.asarray(self.starts[record] + (samples - record * length) / self.sfreq)


def read_header(path: Path) -> Header:
    """Read and check the header of an EDF or BDF file.

    Raises
    ------
    ValueError
        If it is no such header, or the size of the file is another than it says: MNE reads a truncated file as a
        shorter one.
    """
    path = Path(path)
    with naming(path), path.open("rb") as file:
        fixed = file.read(256)
        width = 3 if fixed[:1] == b"\xff" else 2
        n_bytes, n_records, n_channels = (int(fixed[part]) for part in (slice(184, 192), slice(236, 244),
                                                                        slice(252, 256)))
        duration = float(fixed[244:252])
        columns = {name: [file.read(size).decode("latin-1").strip(" \0") for _ in range(n_channels)]
                   for name, size in _FIELDS.items()}
        channels = tuple(Channel(label, unit, physical=(float(low), float(high)), digital=(float(least), float(most)),
                                 n_samples=int(n_samples))
                         for label, unit, low, high, least, most, n_samples in zip(*(
                             columns[name] for name in ("label", "unit", "physical_min", "physical_max", "digital_min",
                                                        "digital_max", "n_samples")), strict=True))
    if all(channel.annotations for channel in channels) or duration <= 0:
        raise ValueError(f"{path}: expected signals, got annotations alone. Give the file that holds the signals.")
    record = width * sum(channel.n_samples for channel in channels)
    size = path.stat().st_size
    if n_records < 0 and (size - n_bytes) % record == 0:
        n_records = (size - n_bytes) // record
        log.warning("%s: its header does not say how many records there are (the recording was not closed); all %d "
                    "that are there are read", path, n_records)
    elif n_records < 0:
        raise ValueError(f"{path}: expected whole records of {record} bytes, got {(size - n_bytes) % record} bytes "
                         "more (the recording was not closed, or the file is truncated). Fetch it again, or cut the "
                         "last record off.")
    elif size != n_bytes + n_records * record:
        raise ValueError(f"{path}: expected {n_bytes + n_records * record} bytes by its header, got {size}. Fetch it "
                         "again, or correct the number of records in its header.")
    return Header(path, width, n_bytes, n_records, duration, fixed[192:197] in (b"EDF+D", b"BDF+D"), channels)


def _annotations(header: Header) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """Return the time at which each record begins (NaN where it does not say), and all annotations (onset, s, text)."""
    starts = np.full(header.n_records, np.nan)
    found: list[tuple[float, float, str]] = []
    ends = header.width * np.cumsum([channel.n_samples for channel in header.channels])
    file = np.memmap(header.path, dtype=np.uint8, mode="r", offset=header.n_bytes,
                     shape=(header.n_records, int(ends[-1]))) if header.n_records else np.empty((0, int(ends[-1])))
    first = True
    for channel, end in zip(header.channels, ends, strict=True):
        if not channel.annotations:
            continue
        for number, record in enumerate(np.array(file[:, end - header.width * channel.n_samples:end])):
            for place, tal in enumerate(bytes(record).split(b"\0")):
                match = _TAL.fullmatch(tal)
                if match is None:
                    continue
                onset, duration, texts = float(match[1]), float(match[2] or 0), match[3].decode(errors="replace")
                if first and place == 0:
                    starts[number] = onset
                found += [(onset, duration, text) for text in texts.split("\x14") if text]
        first = False
    return starts, found


def timing(header: Header, *, sfreq: float) -> Timing:
    """Return when the samples of a recording of `sfreq` Hz were taken.

    Raises
    ------
    ValueError
        If records of a discontinuous file do not say when they begin, or begin before the last has ended.
    """
    starts, _ = _annotations(header)
    if np.isnan(starts).any():
        if header.discontinuous:
            raise ValueError(f"{header.path}: expected every record to say when it begins, as the file is "
                             f"discontinuous, got none in record {int(np.argmax(np.isnan(starts)))}. Write it as a "
                             "continuous file (EDF+C), or in parts.")
        starts = header.duration * np.arange(header.n_records)
    starts = starts - starts[:1]
    early = np.diff(starts) < header.duration - 1.5 / sfreq
    if early.any():
        raise ValueError(f"{header.path}: expected records one after the other, got record {1 + int(np.argmax(early))} "
                         f"at {starts[1:][early][0]:g} s, before the last has ended. Fetch the file again.")
    return Timing(starts, header.duration, sfreq)


def open_edf(path: Path, *, channels: Sequence[str] | None = None, unit: str | None = None) -> tuple[Any, Timing]:
    """Open a recording without reading the signals, where that can be.

    Parameters
    ----------
    path
        An EDF, EDF+, BDF or BDF+ file; what its ending is does not matter.
    channels
        The channels of voltages that are to be read, whatever their case; the others are there too, unless they have
        another rate. None for all that are no annotations and no triggers ("Status").
    unit
        Unit of those of them whose header states none, or an unknown one (a key of `UNITS`); None refuses these.

    Returns
    -------
    raw
        `mne.io.BaseRaw`, all of `channels` in volts. Annotations stand at the samples that were taken when they
        happened; before each gap between records there are "BAD boundary" and "EDGE boundary", as
        `mne.concatenate_raws` makes them. What happened in a gap is left out, with a warning.
    timing : Timing
        When the samples were taken: events of other files are placed with ``timing.samples``.

    Raises
    ------
    ValueError
        If the file is damaged, channels are missing or have no range, no unit, or different rates.
    """
    import mne

    header = read_header(path)
    chosen = _chosen(header, channels=channels, unit=unit)
    rates = {header.sfreq(channel) for channel in chosen}
    others = [channel.label for channel in header.channels if not channel.annotations
              and header.sfreq(channel) not in rates]
    with naming(path):
        read = mne.io.read_raw_bdf if header.width == 3 else mne.io.read_raw_edf
        raw = read(_with_ending(header), exclude=others, preload=False, verbose="WARNING")
    return raw, mend_edf(raw, path=path, channels=channels, unit=unit)


def _with_ending(header: Header) -> Path:
    ending = ".bdf" if header.width == 3 else ".edf"
    if header.path.suffix.lower() != ending:
        raise ValueError(f"{header.path}: expected a name that ends in {ending}, for that is what the file is, got "
                         f"{header.path.suffix!r}. Rename it.")
    return header.path


def mend_edf(raw: Any, *, path: Path, channels: Sequence[str] | None = None, unit: str | None = None) -> Timing:
    """Make of what MNE (or MNE-BIDS) has read from an EDF or BDF file what the file says; see `open_edf`.

    Parameters
    ----------
    raw
        `mne.io.BaseRaw` of this file; changed in place. Its signals are loaded where units have to be corrected, its
        annotations are replaced by the file's own where there are gaps.
    path, channels, unit
        As for `open_edf`.

    Returns
    -------
    Timing
        When the samples were taken.

    Raises
    ------
    ValueError
        As `open_edf`.
    """
    header = read_header(path)
    chosen = _chosen(header, channels=channels, unit=unit)
    sfreq = header.sfreq(chosen[0])
    if abs(raw.info["sfreq"] - sfreq) > 1e-6 * sfreq:
        raise ValueError(f"{path}: expected {sfreq:g} samples per second, those of {chosen[0].label}, got "
                         f"{raw.info['sfreq']:g}, those of faster channels. Leave out the faster channels.")
    names = [name.lower() for name in raw.ch_names]
    for channel in chosen:
        factor = (channel.volts or UNITS[unit or "V"]) / _KNOWN_TO_MNE.get(channel.unit, 1.0)
        if factor != 1.0:
            raw.load_data(verbose="WARNING")
            raw.apply_function(lambda x, factor=factor: x * factor, picks=[names.index(channel.label.lower())],
                               verbose="WARNING")
    when = timing(header, sfreq=sfreq)
    if len(when.joints):
        _place_annotations(raw, _annotations(header), when=when, path=path)
    return when


def _chosen(header: Header, *, channels: Sequence[str] | None, unit: str | None) -> list[Channel]:
    """Return the channels to be read, checked."""
    if unit is not None and unit not in UNITS:
        raise ValueError(f"study.quality.unit: expected one of {', '.join(UNITS)}, got {unit!r}. Choose one of these.")
    path = header.path
    signals = [channel for channel in header.channels if not channel.annotations]
    if channels is None:
        chosen = [channel for channel in signals if channel.label.lower() not in ("status", "trigger")]
        labels = [channel.label.lower() for channel in chosen]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"{path}: expected channels of different names, got {', '.join(twice[:5])} twice. Rename "
                             "them in the header.")
    else:
        chosen = [signals[i] for i in places([channel.label for channel in signals], wanted=channels, path=path)]
    for channel in chosen:
        what = f"{path}: channel {channel.label}"
        if channel.digital[0] >= channel.digital[1] or channel.physical[0] == channel.physical[1]:
            raise ValueError(f"{what}: expected ranges with a least and a greatest value, got physical "
                             f"{channel.physical[0]:g} to {channel.physical[1]:g} and digital {channel.digital[0]:g} "
                             f"to {channel.digital[1]:g}. Correct them in the header, or export the file again.")
        if channel.volts is None and unit is None:
            raise ValueError(f"{what}: expected a unit of V, mV, uV or nV in the header, got "
                             f"{channel.unit or 'none'!r}. Set study.quality.unit, e.g. to uV, if you know it.")
    rates: dict[float, str] = {header.sfreq(channel): channel.label for channel in reversed(chosen)}
    if len(rates) > 1:
        raise ValueError(f"{path}: expected one rate of all channels, got "
                         f"{', '.join(f'{rate:g} Hz ({label}, ...)' for rate, label in sorted(rates.items()))}. "
                         "Export the channels at one rate, or choose channels of one.")
    guessed = [channel.label for channel in chosen if channel.volts is None]
    if guessed:
        log.warning("%s: %d channels state no known unit (%s, ...); they are read as %s, as set", path, len(guessed),
                    guessed[0], unit)
    return chosen


def _place_annotations(raw: Any, found: tuple[np.ndarray, list[tuple[float, float, str]]], *, when: Timing,
                       path: Path) -> None:
    """Give a recording with gaps its annotations at the samples taken then, and marks at the gaps."""
    import mne

    starts, annotations = found
    joints = when.joints / when.sfreq
    onsets, durations, texts, lost = [], [], [], 0
    for onset, duration, text in sorted(annotations):
        # as MNE has it, times count from the first record
        inside = [float(place) / when.sfreq for place in when.samples(np.array([onset, onset + duration]) - starts[0])]
        for i, time in enumerate((onset - starts[0], onset + duration - starts[0])):
            if inside[i] < 0:  # in a gap: the joint that stands for it, or an end
                gap = int(np.searchsorted(when.resumed, time, side="right"))
                inside[i] = joints[gap] if gap < len(joints) else raw.n_times / when.sfreq
        if when.samples(np.array([onset - starts[0]]))[0] < 0 and inside[0] == inside[1]:
            lost += 1
            continue
        onsets.append(inside[0])
        durations.append(inside[1] - inside[0])
        texts.append(text)
    for joint in joints:
        onsets += [joint, joint]
        durations += [0.0, 0.0]
        texts += ["BAD boundary", "EDGE boundary"]
    raw.set_annotations(mne.Annotations(onsets, durations, texts, orig_time=raw.info["meas_date"]), verbose="WARNING")
    log.warning("%s: the recording has %d gaps; trials over them are marked as bad, and %d annotations in them are "
                "left out", path, len(joints), lost)
