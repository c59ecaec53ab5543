"""Windows in time and regions of sensors that M/EEG is decoded from, by name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brain2img.records import SignalSpec

REGIONS = {
    "frontal": "Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8",
    "central": "FC5 FC3 FC1 FCz FC2 FC4 FC6 C5 C3 C1 Cz C2 C4 C6",
    "parietal": "CP5 CP3 CP1 CPz CP2 CP4 CP6 P7 P5 P3 P1 Pz P2 P4 P6 P8",
    "temporal": "FT9 FT7 T7 TP9 TP7 TP8 TP10 T8 FT8 FT10",
    "occipital": "PO7 PO3 POz PO4 PO8 O1 Oz O2"}
"""The five regions of the 63 electrodes of THINGS-EEG2 (Li et al. 2024, arXiv:2403.07721), each electrode in one."""
CTF = re.compile(r"M[LRZ]([FCPTO])\d")
"""Names of CTF's MEG sensors: M, left, right or midline, and the initial of the region."""


@dataclass(frozen=True)
class Window:
    """From `start` to `stop` (s after onset), the sample at `stop` not included."""

    start: float
    stop: float

    @property
    def name(self) -> str:
        """Its ends in ms, "0-100"."""
        return f"{round(1000 * self.start)}-{round(1000 * self.stop)}"

    def samples(self, spec: SignalSpec) -> slice | None:
        """Return the samples of signals that lie in it, as many as are whole: 37 of 150 ms at 250 Hz.

        None where the signals do not span it, or hold no sample of it.
        """
        sfreq = spec.sfreq or 1.0
        # times such as 0.1 - 0.2 are a rounding error beside a sample
        first = math.ceil((self.start - spec.tmin) * sfreq - 1e-6)
        n = math.floor((self.stop - self.start) * sfreq + 1e-6)
        return slice(first, first + n) if first >= 0 and n >= 1 and first + n <= spec.n_times else None


def sliding(spec: SignalSpec, *, width: float, step: float, first: float) -> list[Window]:
    """Return windows of one width (s) from `first` on, every `step`, as far as the signals go.

    Raises
    ------
    ValueError
        If width or step is not above 0.
    """
    if width <= 0 or step <= 0:
        raise ValueError(f"windows.sliding: expected width and step above 0 s, got {width} and {step}. Correct them.")
    end = spec.tmin + spec.n_times / (spec.sfreq or 1.0)
    n = math.floor((end - width - first) / step + 1e-6) + 1
    return [Window(round(first + i * step, 6), round(first + i * step + width, 6)) for i in range(max(n, 0))]


def region_channels(specs: Sequence[SignalSpec]) -> dict[str, list[str]]:
    """Return region -> those of its channels that all subjects have, in their order; empty regions are left out.

    EEG by the lists of `REGIONS`, MEG by CTF's sensor names.

    Raises
    ------
    ValueError
        If the names of the channels tell no region.
    """
    names = [name for name in specs[0].ch_names if all(name in spec.ch_names for spec in specs)]
    if specs[0].modality == "meg":
        initials = {name[0].upper(): name for name in REGIONS}
        of = {name: initials[match[1]] for name in names if (match := CTF.match(name))}
    else:
        of = {channel: region for region, channels in REGIONS.items() for channel in channels.split()}
    found = {region: [name for name in names if of.get(name) == region] for region in REGIONS}
    found = {region: channels for region, channels in found.items() if channels}
    if not found:
        raise ValueError(f"regions of {specs[0].modality}: expected channels named as those of the 10-10 system, or "
                         f"CTF sensors (MLO11), got {', '.join(names[:6]) or 'no names'}. Set windows.regions=false.")
    return found


def kept(spec: SignalSpec, *, samples: slice | None = None, channels: Sequence[str] | None = None) -> np.ndarray:
    """Return which values ``(C, T)`` of a subject's signals lie in the samples and the channels; None: in all."""
    inside = np.zeros((spec.n_channels, spec.n_times), dtype=bool)
    rows = np.ones(spec.n_channels, dtype=bool) if channels is None else np.isin(spec.ch_names, list(channels))
    inside[rows, samples or slice(None)] = True
    return inside
