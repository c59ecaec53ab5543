"""One continuous recording in which the trials of a simulated study follow their pictures, far enough apart."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

#: Seconds from picture to picture, and before the first and after the last.
BETWEEN, LEAD = 1.5, 1.0


def continuous(signals: np.ndarray, *, sfreq: float, tmin: float, raw_sfreq: float) -> np.ndarray:
    """Return one recording ``(C, n)`` in which each trial follows its picture.

    Pictures are shown every 1.5 s, the first after 1 s; between trials the signal goes over from one to the next on a
    straight line.

    Parameters
    ----------
    signals
        ``(n_trials, C, T)``, at most 1.5 s long.
    sfreq, tmin
        Rate of the trials (Hz), and their first sample relative to the picture (s).
    raw_sfreq
        Rate of the recording (Hz).
    """
    from scipy.signal import resample_poly

    n, n_channels, n_times = signals.shape
    starts = np.round((LEAD + BETWEEN * np.arange(n) + tmin) * sfreq).astype(int)
    known = (starts[:, None] + np.arange(n_times)).ravel()
    values = signals.transpose(1, 0, 2).reshape(n_channels, -1)
    line = np.stack([np.interp(np.arange(round((2 * LEAD + BETWEEN * n) * sfreq)), known, row) for row in values])
    ratio = Fraction(raw_sfreq) / Fraction(sfreq)
    return np.asarray(resample_poly(line, ratio.numerator, ratio.denominator, axis=1, padtype="line"))
