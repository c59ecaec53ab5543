"""What a person has marked as bad in a recording: channels (``info["bads"]``) and spans (BAD annotations), honoured.

For any study of EEG or MEG, on what MNE reads. `Quality` holds the settings; a study gives its recordings to
`honour_bad_channels`, `good_events` and `good_epochs`, writes what is left out into ``left_out.parquet``, and says in
`brain2img.records.SignalSpec.filtered` what was interpolated or dropped, in the words of `in_words`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

log = logging.getLogger(__name__)

CHOICES = {"bad_channels": ("interpolate", "drop", "refuse", "keep"), "bad_spans": ("drop", "refuse", "keep"),
           "amplitudes": ("refuse", "keep")}
#: Centre of the sphere (head coordinates, m) for fields where the shape of the head was not digitised.
_CENTRE = (0.0, 0.0, 0.04)
_HEAD_POINTS = 15


@dataclass(frozen=True)
class Quality:
    """What becomes of what is marked as bad, or looks wrong, in a recording.

    Parameters
    ----------
    bad_channels
        Channels marked as bad: "interpolate" them from the others, recording by recording (spherical splines, or
        fields of the sources that explain the others, as MNE does); "drop" them for all subjects and sessions; "refuse"
        the recording; "keep" them as they are.
    bad_spans
        Trials that overlap a span marked as bad: "drop" them (they are listed in ``left_out.parquet``), "refuse" the
        recording, or "keep" them.
    amplitudes
        Amplitudes that no head has: "refuse" or "keep".
    unit
        Unit of the EDF and BDF channels whose header states none or an unknown one ("uV", "mV", "V", "nV"); None
        refuses these.

    Raises
    ------
    ValueError
        If a setting is none of its choices.
    """

    bad_channels: str = "interpolate"
    bad_spans: str = "drop"
    amplitudes: str = "refuse"
    unit: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"study.quality.{name}: expected one of {choices}, got {getattr(self, name)!r}. "
                                 "Choose one of these.")

    @classmethod
    def of(cls, settings: Mapping[str, Any] | None) -> Self:
        """Return the settings as a study's `quality` gives them, those that are not there at their defaults."""
        known = [field.name for field in fields(cls)]
        unknown = set(settings or {}) - set(known)
        if unknown:
            raise ValueError(f"study.quality: expected the settings {', '.join(known)}, got "
                             f"{', '.join(sorted(unknown))}. Correct study.quality.")
        return cls(**(settings or {}))


def honour_bad_channels(recording: Any, *, policy: str, what: str, among: Sequence[str] | None = None) -> list[str]:
    """Deal with the channels that a recording calls bad.

    Parameters
    ----------
    recording
        `mne.io.BaseRaw` or `mne.BaseEpochs`. "interpolate" loads its signals, changes them in place and empties
        ``info["bads"]``; "drop" changes nothing: the caller leaves out what is returned, in all sessions alike.
    policy
        As `Quality.bad_channels`.
    what
        What messages call the recording.
    among
        Names of the channels that matter; None for all of EEG and MEG.

    Returns
    -------
    list of str
        The bad channels that matter, in their order in the recording.

    Raises
    ------
    ValueError
        If the policy is to refuse, or bad channels cannot be interpolated: no positions, or most channels are bad.
    """
    info = recording.info
    types = dict(zip(info["ch_names"], recording.get_channel_types(), strict=True))
    wanted = [name for name, kind in types.items() if kind in ("eeg", "mag", "grad")
              and (among is None or name in set(among))]
    bads = [name for name in wanted if name in info["bads"]]
    if not bads or policy in ("keep", "drop"):
        return bads
    named = f"{', '.join(bads[:5])}{', ...' if len(bads) > 5 else ''}"
    other = "study.quality.bad_channels=drop or keep"
    if policy == "refuse":
        raise ValueError(f"{what}: expected no channel marked as bad, got {len(bads)} ({named}). Set {other}, or "
                         "interpolate.")
    assert policy == "interpolate", policy
    placed = {channel["ch_name"] for channel in info["chs"]
              if np.isfinite(channel["loc"][:3]).all() and np.any(channel["loc"][:3])}
    lost = [name for name in wanted if name not in placed]
    if lost:
        raise ValueError(f"{what}: expected positions of the channels, to interpolate the bad ones ({named}), got none "
                         f"of {', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}. Give a montage, or set {other}.")
    if 2 * len(bads) > len(wanted):
        raise ValueError(f"{what}: expected most channels to be good, to interpolate the others, got {len(bads)} bad "
                         f"ones of {len(wanted)} ({named}). Leave this recording out, or set {other}.")
    ignored = [name for name in info["bads"] if name not in bads]
    info["bads"] = bads
    head_points = len(info["dig"] or ())
    recording.load_data(verbose="WARNING")
    recording.interpolate_bads(reset_bads=True, origin="auto" if head_points >= _HEAD_POINTS else _CENTRE,
                               verbose="WARNING")
    info["bads"] = ignored
    return bads


def good_events(raw: Any, samples: np.ndarray, *, tmin: float, tmax: float, policy: str, what: str) -> np.ndarray:
    """Tell which trials of a continuous recording overlap a span marked as bad.

    Spans are annotations whose description begins with "BAD", in any case, as MNE has it. One without duration is a
    joint (where recordings were put together, or paused): trials that reach over it are bad.

    Parameters
    ----------
    raw
        `mne.io.BaseRaw`.
    samples
        ``(n,)`` samples of the events, counted from the first of the recording (of MNE's events, less
        ``raw.first_samp``).
    tmin, tmax
        First and last time of a trial relative to its event (s).
    policy
        As `Quality.bad_spans`.
    what
        What messages call the recording.

    Returns
    -------
    numpy.ndarray
        ``(n,)`` of str: "" where the trial is good, else why it is not. Where the policy is to keep them, all are good
        but those that reach over a joint, for these hold two times.

    Raises
    ------
    ValueError
        If the policy is to refuse.
    """
    sfreq = raw.info["sfreq"]
    first, last = samples + round(tmin * sfreq), samples + round(tmax * sfreq)
    reasons = np.full(len(samples), "", dtype=object)
    joint = np.zeros(len(samples), dtype=bool)
    for onset, duration, text in zip(raw.annotations.onset, raw.annotations.duration, raw.annotations.description,
                                     strict=True):
        if not str(text).lower().startswith("bad"):
            continue
        begin, end = (round((time - raw.first_time) * sfreq) for time in (onset, onset + duration))
        over = (first < begin) & (begin <= last) if duration == 0 else (first <= end) & (begin <= last)
        joint |= over & (duration == 0)
        reasons[over & (reasons == "")] = f"overlaps {text}"
    return _by_policy(reasons, policy=policy, what=what, never=joint)


def good_epochs(epochs: Any, *, policy: str, what: str) -> np.ndarray:
    """Tell which epochs overlap a span that is marked as bad in the annotations they carry.

    Parameters
    ----------
    epochs
        `mne.BaseEpochs`.
    policy, what
        As for `good_events`.

    Returns
    -------
    numpy.ndarray
        As from `good_events`, one for each epoch that is there.

    Raises
    ------
    ValueError
        If the policy is to refuse.
    """
    reasons = np.full(len(epochs), "", dtype=object)
    if epochs.annotations is not None and len(epochs.annotations):
        for row, inside in enumerate(epochs.get_annotations_per_epoch()):
            bad = [text for *_, text in inside if str(text).lower().startswith("bad")]
            if bad:
                reasons[row] = f"overlaps {bad[0]}"
    return _by_policy(reasons, policy=policy, what=what)


def _by_policy(reasons: np.ndarray, *, policy: str, what: str, never: np.ndarray | None = None) -> np.ndarray:
    bad = reasons != ""
    if policy == "refuse" and bad.any():
        raise ValueError(f"{what}: expected no trial in a span marked as bad, got {bad.sum()} of {len(bad)} (trial "
                         f"{int(np.argmax(bad))} {reasons[bad][0]}). Set study.quality.bad_spans=drop or keep.")
    kept = bad & ~(np.zeros(len(bad), dtype=bool) if never is None else never)
    if policy == "keep" and kept.any():
        log.warning("%s: %d of %d trials overlap a span marked as bad; they are kept, as set", what, kept.sum(),
                    len(bad))
        return np.where(kept, "", reasons)
    return reasons


def in_words(bads: Mapping[str, Sequence[str]], *, policy: str) -> str:
    """Return what became of bad channels, for the spec of the signals and for the log; "" where there are none.

    Parameters
    ----------
    bads
        Name of a session or recording -> its bad channels.
    policy
        As `Quality.bad_channels`.
    """
    where: dict[str, list[str]] = {}
    for session, names in bads.items():
        for name in names:
            where.setdefault(name, []).append(session)
    if not where:
        return ""
    done = {"interpolate": "interpolated", "drop": "dropped for all", "keep": "kept"}[policy]
    return f"bad channels {done}: " + ", ".join(f"{name} ({', '.join(there)})" for name, there in sorted(where.items()))
