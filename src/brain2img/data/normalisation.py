"""Window, channels, noise normalisation and scaling, fitted on the training trials of one split."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from brain2img.artifacts import StoredRows
from brain2img.data.rois import roi_places
from brain2img.data.trials import channel_indices, session_names
from brain2img.records import SignalSpec

log = logging.getLogger(__name__)
CHUNK = 128
#: Bytes of signals that are normalised at a time: they stay in the processor's cache from step to step.
_CACHED = 1_000_000
POOLED = "(all)"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is done to signals before a decoder sees them; the statistics come from training trials only.

    Parameters
    ----------
    window
        First and last time kept (s, both inclusive); None keeps all samples.
    channels
        Names of the channels to keep, in this order, or shell wildcards for several ("O*"); None keeps all.
    exclude_channels
        Names of channels to leave out.
    rois
        Labels of the regions whose voxels to keep, or shell wildcards for several ("V1*"); None keeps all.
    noise_normalise
        Multivariate noise normalisation: whiten the channels by the inverse square root of the mean over training
        trials of the Ledoit-Wolf covariance over time, session by session (Guggenmos et al. 2018,
        https://doi.org/10.1016/j.neuroimage.2018.02.044; as in THINGS-EEG2, training partition only).
    shrinkage
        "plain": the Ledoit-Wolf covariance of the signals; "standardised": of the channels of each trial brought to
        unit variance, and back, as THINGS-EEG2 was published
        (`sklearn.discriminant_analysis.LinearDiscriminantAnalysis` with ``shrinkage="auto"``).
    fit_on
        "train": statistics come from the training trials; "not_test": also from what is held out of them, as where
        published recipes whiten before they split. Validation is then not wholly unseen; the test split is.
    scale
        "session": z-score every channel with the mean and s.d. of the session's training trials (of all training
        trials where the session has fewer than `min_trials`); "subject": of all training trials; "none".
    clip
        Clip scaled signals to +-clip, or None.
    min_trials
        Fewest training trials from which statistics of one session are taken.
    allow_mixed_channels
        Allow a subset of channels, or added noise, of signals that are already whitened, where every channel holds a
        mixture.
    added_noise
        Standard deviation of white Gaussian noise that is added to every channel before anything else, relative to the
        channel's over the trials that statistics are fitted on: what worse sensors would have recorded. It depends on
        the subject and the row of the trial alone, so that it is the same in every epoch, and in training and test.
    """

    window: tuple[float, float] | None = None
    channels: list[str] | None = None
    exclude_channels: list[str] = field(default_factory=list)
    rois: list[str] | None = None
    noise_normalise: bool = False
    shrinkage: str = "plain"
    fit_on: str = "train"
    scale: str = "session"
    clip: float | None = 20.0
    min_trials: int = 20
    allow_mixed_channels: bool = False
    added_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.scale not in ("session", "subject", "none"):
            raise ValueError(f"data.scale: expected 'session', 'subject' or 'none', got {self.scale!r}. "
                             "Choose one of these.")
        for name, known in (("shrinkage", ("plain", "standardised")), ("fit_on", ("train", "not_test"))):
            if getattr(self, name) not in known:
                raise ValueError(f"data.{name}: expected one of {known}, got {getattr(self, name)!r}. Choose one of "
                                 "these.")
        if not 0 <= self.added_noise < np.inf:
            raise ValueError(f"data.added_noise: expected 0 or more standard deviations, got {self.added_noise}. "
                             "Correct it.")


def ledoit_wolf(x: np.ndarray, *, standardised: bool = False) -> np.ndarray:
    """Return the Ledoit-Wolf covariance of every trial, as `sklearn.covariance.ledoit_wolf` does one at a time.

    Ledoit & Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.

    Parameters
    ----------
    x
        ``(n, C, T)`` float64: C variables, T samples of each trial.
    standardised
        Bring the variables of each trial to unit variance before, and back after.

    Returns
    -------
    numpy.ndarray
        ``(n, C, C)`` in the squared unit of `x`.
    """
    n_channels, n_times = x.shape[1:]
    x = x - x.mean(axis=2, keepdims=True)
    scale = x.std(axis=2, keepdims=True) if standardised else np.ones((len(x), n_channels, 1))
    scale[scale == 0] = 1.0
    x = x / scale
    covariance = np.stack([trial @ trial.T for trial in x]) / n_times
    mu = np.trace(covariance, axis1=1, axis2=2) / n_channels
    square = np.einsum("nij,nij->n", covariance, covariance)
    # sum over pairs of channels of their squared products = squared power, sample by sample
    fourth = (np.einsum("nct,nct->nt", x, x) ** 2).sum(axis=1)
    delta = square - n_channels * mu**2
    beta = np.clip((fourth / n_times - square) / n_times, 0, delta)
    shrinkage = np.divide(beta, delta, out=np.zeros_like(beta), where=delta > 0)[:, None, None]
    return ((1 - shrinkage) * covariance + shrinkage * mu[:, None, None] * np.eye(n_channels)) * (
        scale * scale.swapaxes(1, 2))


@dataclass(frozen=True)
class _Moments:
    """Number of values, mean and sum of squared deviations of every channel; chunks are merged without cancellation.

    Chan, Golub & LeVeque 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """

    n: int = 0
    mean: Any = 0.0
    square: Any = 0.0

    @classmethod
    def of(cls, x: np.ndarray) -> _Moments:
        n = x.shape[0] * x.shape[2]
        mean = x.mean(axis=(0, 2), dtype=np.float64)
        return cls(n, mean, ((x - mean[:, None].astype(x.dtype)) ** 2).sum(axis=(0, 2), dtype=np.float64))

    def merged(self, other: _Moments) -> _Moments:
        n = self.n + other.n
        delta = other.mean - self.mean
        return _Moments(n, self.mean + delta * other.n / n,
                        self.square + other.square + delta**2 * self.n * other.n / n)

    @property
    def std(self) -> Any:
        return np.sqrt(self.square / self.n)


class _Finite:
    """Which trials of a file were found finite: each is looked at once, not in every epoch."""

    rows = np.zeros(0, dtype=bool)
    _signals: StoredRows | None = None

    def of(self, signals: np.ndarray | StoredRows) -> _Finite:
        """Return it for these signals; an array in memory may change and is always looked at."""
        if not isinstance(signals, StoredRows) or signals is not self._signals:
            self.rows = np.zeros(len(signals), dtype=bool)
            self._signals = signals if isinstance(signals, StoredRows) else None
        return self


class FittedNormalisation:
    """A `Normalisation` with the statistics of one subject.

    Parameters
    ----------
    config
        What to do.
    spec
        The subject's signals as prepared.
    """

    def __init__(self, config: Normalisation, *, spec: SignalSpec) -> None:
        self.config = config
        what = f"signals of subject {spec.subject!r}"
        subset = any(c is not None for c in (config.channels, config.rois)) or bool(config.exclude_channels)
        if spec.whitened and subset and not config.allow_mixed_channels:
            raise ValueError(f"{what}: expected all channels, because the published files are whitened and every "
                             "channel is a mixture, got a subset. Use all, or set data.allow_mixed_channels=true.")
        if spec.whitened and config.added_noise and not config.allow_mixed_channels:
            raise ValueError(f"{what}: expected data.added_noise=0, because the published files are whitened and noise "
                             f"of sensors would have been mixed, got {config.added_noise:g}. Use 0, or set "
                             "data.allow_mixed_channels=true.")
        self.places = channel_indices(spec.ch_names, n=spec.n_channels, keep=config.channels,
                                      exclude=list(config.exclude_channels), subject=spec.subject)
        if config.rois is not None:
            self.places = self.places[np.isin(self.places, roi_places(spec, config.rois))]
        # in the order of the file, too
        self._all_channels = np.array_equal(self.places, np.arange(spec.n_channels))
        self.samples = slice(None)
        if config.window is not None and spec.n_times > 1:
            first, last = config.window
            step = 0.5 / (spec.sfreq or 1.0)
            inside = np.flatnonzero((spec.times >= first - step) & (spec.times < last + step))
            if len(inside) == 0:
                raise ValueError(f"{what}: expected data.window within {spec.times[0]:.3f}..{spec.times[-1]:.3f} s, "
                                 f"got {first}..{last} s. Correct data.window.")
            self.samples = slice(int(inside[0]), int(inside[-1]) + 1)
        self.spec = spec.select(self.places, samples=self.samples)
        self.state: dict[str, np.ndarray] = {}
        self._finite = _Finite()

    def _raw(self, signals: np.ndarray | StoredRows, rows: np.ndarray) -> np.ndarray:
        x = np.asarray(signals[rows], dtype=np.float32)
        x = x[:, :, self.samples] if self._all_channels else x[:, self.places, self.samples]
        return self._noisy(x.copy(), rows) if "noise" in self.state else x

    def _noisy(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Add the sensor noise of each trial to `x` ``(n, C, T)`` in place, where there is any; returns it."""
        if "noise" in self.state:
            subject = zlib.crc32(self.spec.subject.encode())
            for trial, row in zip(x, rows.tolist(), strict=True):
                drawn = np.random.default_rng([57, subject, row]).standard_normal(trial.shape, dtype=np.float32)
                trial += self.state["noise"] * drawn
        return x

    def _read(self, signals: np.ndarray | StoredRows, rows: np.ndarray, *, out: np.ndarray) -> None:
        """Read channels and samples of trials into `out` ``(n, C, T)`` float32."""
        if isinstance(signals, StoredRows) and self._all_channels and out.shape[1:] == signals.shape[1:]:
            signals.read(rows, out=out)
            self._noisy(out, rows)
        else:
            out[...] = self._raw(signals, rows)

    def fit(self, signals: np.ndarray | StoredRows, trials: pd.DataFrame) -> None:
        """Fit on the given trials (training trials, unless `fit_on` says otherwise), in chunks.

        Parameters
        ----------
        signals
            ``(n_trials, C, T)`` signals of the subject, on disk.
        trials
            Training trials with `row` and `session`.

        Raises
        ------
        ValueError
            If a channel is constant, or NaN or infinite, over the training trials. One that is constant in a session
            alone is warned of.
        """
        by_session = {str(name): np.sort(group["row"].to_numpy())
                      for name, group in trials.groupby(session_names(trials))}
        own = [name for name, rows in by_session.items() if len(rows) >= self.config.min_trials]
        names = [POOLED, *own] if len(by_session) > 1 else [POOLED]
        if self.config.scale != "session" and not self.config.noise_normalise:
            names = [POOLED]
        self.state = {"sessions": np.array(names)}
        if self.config.added_noise:
            clean = _Moments()
            for rows in by_session.values():
                for start in range(0, len(rows), CHUNK):
                    clean = clean.merged(_Moments.of(self._raw(signals, rows[start:start + CHUNK])))
            self.state["noise"] = (self.config.added_noise * clean.std[:, None]).astype(np.float32)
        if self.config.noise_normalise:
            self.state["whitening"] = self._whitening(signals, by_session, names)
        finite = self._finite.of(signals)
        moments = {name: _Moments() for name in names}
        for name, rows in by_session.items():
            for start in range(0, len(rows), CHUNK):
                x = self._raw(signals, rows[start:start + CHUNK])
                self._refuse(~np.isfinite(x).all(axis=(0, 2)), "NaN or infinite")
                finite.rows[rows[start:start + CHUNK]] = True
                if "whitening" in self.state:
                    x = self.state["whitening"][names.index(name) if name in names else 0] @ x
                chunk = _Moments.of(x)
                for key in {POOLED, name} & set(names):
                    moments[key] = moments[key].merged(chunk)
        flat = {name: moments[name].std <= 1e-7 * np.abs(moments[name].mean) for name in names}
        self._refuse(flat[POOLED], "constant")
        for name in names[1:]:  # voxels that a session did not cover, channels that failed in it: 0 there
            if flat[name].any():
                log.warning("signals of subject %r: %d of %d channels are constant over session %r, and 0 there when "
                            "scaled", self.spec.subject, flat[name].sum(), len(flat[name]), name)
        self.state["mean"] = np.array([moments[name].mean for name in names], dtype=np.float32)[:, :, None]
        self.state["std"] = np.array([np.where(flat[name], 1, moments[name].std) for name in names],
                                     dtype=np.float32)[:, :, None]

    def _whitening(self, signals: np.ndarray | StoredRows, by_session: dict[str, np.ndarray],
                   names: list[str]) -> np.ndarray:
        """Return ``(n_names, C, C)`` inverse square roots of the mean covariance over trials."""
        if self.spec.n_times < 2:
            raise ValueError(f"signals of subject {self.spec.subject!r}: expected several samples in time for "
                             "data.noise_normalise, got one. Set data.noise_normalise=false for betas.")
        sums = {}
        for name, rows in by_session.items():
            total = np.zeros((self.spec.n_channels,) * 2)
            for start in range(0, len(rows), CHUNK):
                x = self._raw(signals, rows[start:start + CHUNK])
                self._refuse(~np.isfinite(x).all(axis=(0, 2)), "NaN or infinite")
                total += ledoit_wolf(x.astype(np.float64),
                                     standardised=self.config.shrinkage == "standardised").sum(axis=0)
            sums[name] = total
        out = []
        for name in names:
            chosen = list(by_session) if name == POOLED else [name]
            covariance = sum(sums[c] for c in chosen) / sum(len(by_session[c]) for c in chosen)
            values, vectors = np.linalg.eigh(covariance)
            values = np.maximum(values, values.max() * 1e-12)
            out.append((vectors / np.sqrt(values)) @ vectors.T)
        return np.array(out, dtype=np.float32)

    def _refuse(self, bad: np.ndarray, word: str) -> None:
        if not bad.any():
            return
        names = self.spec.ch_names or tuple(f"channel {i}" for i in self.places)
        shown = ", ".join(names[i] for i in np.flatnonzero(bad)[:5])
        raise ValueError(
            f"signals of subject {self.spec.subject!r}: expected finite, varying channels over the training trials, "
            f"got {int(bad.sum())} {word} ({shown}{', ...' if bad.sum() > 5 else ''}). Leave them out with "
            f"data.exclude_channels=[...], or repair the raw files.")

    def __call__(self, signals: np.ndarray | StoredRows, rows: np.ndarray, sessions: np.ndarray, *,
                 out: np.ndarray | None = None) -> np.ndarray:
        """Return normalised trials ``(n, C, T)`` float32.

        Parameters
        ----------
        signals
            Signals of the subject, on disk.
        rows, sessions
            Places of the trials in `signals`, and their sessions as strings.
        out
            Where to write them; by default a new array.
        """
        assert self.state, "fit or load before use"
        numbers = {name: i for i, name in enumerate(self.state["sessions"].tolist())}
        which = np.array([numbers.get(session, 0) for session in sessions], dtype=int)
        shape = (len(rows), self.spec.n_channels, self.spec.n_times)
        out = np.empty(shape, dtype=np.float32) if out is None else out
        assert (out.shape, out.dtype) == (shape, np.float32), f"{out.shape} {out.dtype} for {shape}"
        finite = self._finite.of(signals)
        step = max(1, _CACHED // (4 * self.spec.n_channels * self.spec.n_times))
        for start in range(0, len(rows), step):
            some, x = rows[start:start + step], out[start:start + step]
            self._read(signals, some, out=x)
            if not (finite.rows[some].all() or np.isfinite(x).all()):
                bad = some[~np.isfinite(x).all(axis=(1, 2))]
                raise ValueError(f"signals of subject {self.spec.subject!r}: expected finite values, got NaN or "
                                 f"infinity in trial row {int(bad[0])}. Repair the raw files and prepare the study "
                                 "again.")
            finite.rows[some] = True
            self._normalise(x, which[start:start + step])
        return out

    def _normalise(self, x: np.ndarray, which: np.ndarray) -> None:
        """Normalise trials ``(n, C, T)`` in place, each with the statistics of the given number."""
        if "whitening" in self.state:
            x[...] = self.state["whitening"][which] @ x
        if self.config.scale == "none":
            return
        k = which if self.config.scale == "session" else np.zeros_like(which)
        x -= self.state["mean"][k]
        x /= self.state["std"][k]
        if self.config.clip is not None:
            np.clip(x, -self.config.clip, self.config.clip, out=x)

    @property
    def signals(self) -> dict[str, np.ndarray]:
        """What is stored of the signals beside the statistics: names of the channels; rate (Hz), start (s), samples."""
        return {"ch_names": np.array(self.spec.ch_names, dtype=str),
                "times": np.array([self.spec.sfreq or 0.0, self.spec.tmin, self.spec.n_times])}

    def load(self, state: dict[str, Any]) -> None:
        """Take over statistics fitted before, with `signals` where they were stored with it.

        Raises
        ------
        ValueError
            If they are of other channels, another order of them, another sampling rate or another window.
        """
        names, times = (state.pop(key, None) for key in ("ch_names", "times"))
        n_channels = state["mean"].shape[1]
        if times is not None:
            fitted = SignalSpec(subject=self.spec.subject, modality=self.spec.modality, units=self.spec.units,
                                n_channels=n_channels, n_times=int(times[2]), sfreq=float(times[0]) or None,
                                tmin=float(times[1]), ch_names=tuple(names.tolist()))
            if other := self.spec.difference(fitted):
                raise ValueError(f"normalisation of subject {self.spec.subject!r}: expected the signals it was fitted "
                                 f"on, got {other}. Prepare the study as it was then, or train the run again.")
        if n_channels != self.spec.n_channels:
            raise ValueError(f"normalisation of subject {self.spec.subject!r}: expected {self.spec.n_channels} "
                             f"channels, got statistics of {n_channels}. The run belongs to another study.")
        self.state = dict(state)
