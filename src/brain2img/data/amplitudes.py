"""Whether EEG and MEG have the amplitude that heads have, for a wrong unit is a factor of a thousand or a million.

The typical amplitudes are those MNE draws recordings with (``mne.defaults.DEFAULTS["scalings_plot_raw"]``: EEG 20 uV,
magnetometers 1 pT, planar gradiometers 400 fT/cm). The least that counts as plausible is a two-hundredth of them, the
most 250 times as much (for magnetometers a thousandth and a hundred times): above the noise of amplifiers and sensors
(Haemaelaeinen et al. 1993, https://doi.org/10.1103/RevModPhys.65.413, give 3 fT/sqrt(Hz), and 0.05 to 1 pT for
responses and rhythms), below what drifts and movements do to most of the channels at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brain2img.data.sessions import Session


@dataclass(frozen=True)
class _Kind:
    """SI unit, typical, least and greatest spread of a kind of channel, and units it is taken for by mistake."""

    name: str
    unit: str
    typical: float
    least: float
    most: float
    mistaken: dict[str, float]


_ELECTRIC = {"uV": 1e-6, "mV": 1e-3, "nV": 1e-9}
_KINDS = {
    "eeg": _Kind("EEG", "V", 2e-5, 1e-7, 5e-3, _ELECTRIC),
    "mag": _Kind("MEG (magnetometers)", "T", 1e-12, 1e-15, 1e-10, {"fT": 1e-15, "pT": 1e-12, "nT": 1e-9}),
    "grad": _Kind("MEG (gradiometers)", "T/m", 4e-11, 2e-13, 1e-8, {"fT/cm": 1e-13, "pT/m": 1e-12, "fT/m": 1e-15,
                                                                   "T/cm": 1e2}),
}
#: Units that signals of `brain2img.records.SignalSpec` may be in for the check to mean something.
SI = ("V", "T", "T/m")
#: Samples of a channel that tell its spread well enough.
_SAMPLES = 20_000


def spread(signals: np.ndarray, *, ch_types: Sequence[str]) -> dict[str, float]:
    """Return kind of channel -> the median over its channels of their robust standard deviation.

    Parameters
    ----------
    signals
        ``(C, T)`` or ``(n, C, T)``; the deviation of a channel is 1.4826 times its median absolute deviation over all
        samples (of very many trials, over those of every second, third, ... one).
    ch_types
        MNE type of each channel; those other than "eeg", "mag" and "grad" are passed over.
    """
    trials = signals[None] if signals.ndim == 2 else signals
    trials = trials[::1 + trials.shape[0] * trials.shape[2] // _SAMPLES]
    by_channel = trials.transpose(1, 0, 2).reshape(len(ch_types), -1).astype(np.float64)
    deviation = 1.4826 * np.median(np.abs(by_channel - np.median(by_channel, axis=1, keepdims=True)), axis=1)
    types = np.asarray(ch_types)
    return {kind: float(np.median(deviation[types == kind])) for kind in _KINDS if (types == kind).any()}


def check_amplitude(signals: np.ndarray, *, ch_types: Sequence[str], what: str,
                    cure: str = "Correct the unit in the files") -> None:
    """Refuse EEG and MEG whose amplitude no head has.

    Bounds on the spread (see `spread`): EEG 0.1 uV to 5 mV, magnetometers and axial gradiometers in tesla 1 fT to
    100 pT, planar gradiometers 2 fT/cm to 100 pT/cm.

    Parameters
    ----------
    signals
        ``(C, T)`` or ``(n, C, T)`` in V, T or T/m; not whitened, not z-scored.
    ch_types
        MNE type of each channel.
    what
        What messages call the signals.
    cure
        What messages advise.

    Raises
    ------
    ValueError
        Naming the signals, what was found, and the unit that it looks like.
    """
    for name, found in spread(signals, ch_types=ch_types).items():
        kind = _KINDS[name]
        if kind.least <= found <= kind.most or not np.isfinite(found):  # NaN is refused elsewhere, by trial
            continue
        raise ValueError(
            f"{what}: expected {kind.name} in {kind.unit} to spread by {kind.least:g} to {kind.most:g} {kind.unit} "
            f"(robust standard deviation, median over channels), got {found:.3g}{_guess(found, kind)}. {cure}.")


def _guess(found: float, kind: _Kind) -> str:
    """Return in words which unit numbers of this size look like, or that they look like nothing known."""
    if found == 0:
        return ", a flat line"
    factors = {f"{name} read as {kind.unit}": scale for name, scale in kind.mistaken.items()}
    factors |= {f"{kind.unit} scaled as if they were {name}": 1 / scale for name, scale in kind.mistaken.items()}
    off = {words: abs(np.log10(found * factor / kind.typical)) for words, factor in factors.items()}
    best = min(off, key=lambda words: off[words])
    return f", which looks like {best}" if off[best] < 1.5 else ""


@dataclass(frozen=True, eq=False)
class PlausibleSession:
    """Reads a session and refuses blocks of an amplitude that no head has, before they are written."""

    session: Session
    ch_types: Sequence[str]
    what: str
    cure: str

    def __call__(self) -> Iterator[np.ndarray]:
        """Yield the blocks of the session."""
        for block in self.session():
            if block.ndim == 3 and block.shape[1] == len(self.ch_types):  # other shapes are refused where it is written
                check_amplitude(block, ch_types=self.ch_types, what=self.what, cure=self.cure)
            yield block
