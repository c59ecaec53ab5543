"""Simulated EEG and MEG with a known answer: stimulus features -> dipoles -> sensors, plus brain and sensor noise.

Early, middle and late responses are driven by low-, middle- and high-level features through saturating, rectifying and
compressive units. They vary in latency from trial to trial and run into the responses to the pictures before and
after, 0.2 s apart in EEG (as in THINGS-EEG2) and 1.5 s in MEG. Responses, 1/f noise and alpha pass through the
subject's own MNE forward model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from brain2img.records import SignalSpec
from brain2img.simulate import sources
from brain2img.simulate.observer import Ideal, held_out_stimuli
from brain2img.simulate.sensors import Head, make_head

if TYPE_CHECKING:
    from brain2img.simulate.features import StimulusFeatures

#: Trials in a block, at most, and values in a block, at most (float32).
_BLOCK_TRIALS, _BLOCK_VALUES = 500, 20_000_000
_N_BACKGROUND, _N_ALPHA = 300, 8
#: Independent time courses that the background dipoles have together, at most.
_BACKGROUND_RANK = 64
#: Share of a unit's weights (variance) that belongs to one subject alone.
_OWN_MIXING = 0.3
#: Trials from which the observer's covariance of overlap and latency is estimated, at most.
_OVERLAP_TRIALS = 2000


@dataclass(frozen=True)
class _Scale:
    """Sizes at `snr` 1, in the units of the signals: peak of the mean response, rms of each kind of noise.

    `evoked` and `alpha` are of the channel where they are largest, `background` is the mean over channels.
    """

    units: str
    evoked: float
    background: float
    alpha: float
    sensor: float
    soa: float


_SCALES = {"eeg": _Scale("V", 5e-6, 8e-6, 6e-6, 3e-6, 0.2),
           "meg": _Scale("T", 100e-15, 250e-15, 200e-15, 100e-15, 1.5)}


def _generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a generator that depends on the seed and the names alone."""
    entropy = [seed, *(zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names)]
    return np.random.default_rng(np.random.SeedSequence(entropy))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Generator:
    """All that is fixed about one subject.

    Parameters
    ----------
    evoked, background, alpha
        ``(C, n)`` fields of the dipoles, scaled: units of the signals per unit of source amplitude.
    amplitudes
        ``(n_stimuli, n_dipoles, K)`` amplitude of every time course in every dipole, float32.
    background_factor, alpha_factor
        ``(r, T)`` factors of the temporal covariances, float32.
    gains, noises
        ``(n_trials,)`` gain of each trial's session, and its noise relative to 1.
    sensor
        Standard deviation of sensor noise.
    soa
        Samples from one picture to the next.
    times
        ``(T,)`` seconds from onset.
    stimuli, runs
        ``(n_trials,)`` row of each trial in the features, and number of the run, within which pictures follow
        each other.
    shifts
        ``(n_trials,)`` latency of each trial: index into the grid of `sources.latencies`.
    noise_seed
        Entropy from which the generator of each block is made.
    """

    evoked: np.ndarray
    background: np.ndarray
    alpha: np.ndarray
    amplitudes: np.ndarray
    background_factor: np.ndarray
    alpha_factor: np.ndarray
    gains: np.ndarray
    noises: np.ndarray
    sensor: float
    soa: int
    sfreq: float
    times: np.ndarray
    stimuli: np.ndarray
    runs: np.ndarray
    shifts: np.ndarray
    noise_seed: tuple[int, str, str]

    @cached_property
    def n_baseline(self) -> int:
        """Number of samples before onset."""
        return int((self.times < -1e-9).sum())

    @cached_property
    def kernels(self) -> np.ndarray:
        """``(n_shifts, K, length)`` responses from onset on, a whole number of stimulus intervals long."""
        length = -(-round(sources.RESPONSE_END * self.sfreq) // self.soa) * self.soa
        grid, _ = sources.latencies()
        return sources.responses(np.arange(length) / self.sfreq, shifts=grid).astype(np.float32)

    def blocks(self) -> list[tuple[int, int]]:
        """Return first and last + 1 trial of every block; no block crosses runs."""
        size = max(1, min(_BLOCK_TRIALS, _BLOCK_VALUES // (len(self.evoked) * len(self.times))))
        edges = np.flatnonzero(np.diff(self.runs)) + 1
        return [(start, min(start + size, stop))
                for first, stop in zip([0, *edges], [*edges, len(self.runs)], strict=True)
                for start in range(first, stop, size)]

    def source_responses(self, start: int, stop: int) -> np.ndarray:
        """Return what the dipoles do in trials `start` to `stop` of one run, neighbours included: ``(n, d, T)``."""
        length, soa = self.kernels.shape[-1], self.soa
        first_sample = round(self.times[0] * self.sfreq)
        before = -(-(length - min(first_sample, 0)) // soa)
        after = -(-max(first_sample + len(self.times), 1) // soa)
        run = np.flatnonzero(self.runs == self.runs[start])
        low, high = max(start - before, run[0]), min(stop + after, run[-1] + 1)

        own = np.empty((high - low, self.amplitudes.shape[1], length), dtype=np.float32)
        amplitudes, shifts = self.amplitudes[self.stimuli[low:high]], self.shifts[low:high]
        for shift in np.unique(shifts):
            own[shifts == shift] = amplitudes[shifts == shift] @ self.kernels[shift]
        # Onsets are a fixed interval apart: responses are added up interval by interval on one long time axis.
        n_parts = length // soa
        line = np.zeros((own.shape[1], (stop - start) + before + after + n_parts, soa), dtype=np.float32)
        place = low - (start - before)
        for part in range(n_parts):
            line[:, place + part:place + part + len(own)] += own[:, :, part * soa:(part + 1) * soa].swapaxes(0, 1)
        onsets = (before + np.arange(stop - start)) * soa + first_sample
        return sliding_window_view(line.reshape(len(line), -1), len(self.times), axis=1)[:, onsets].swapaxes(0, 1)

    def recorded(self) -> Iterator[np.ndarray]:
        """Yield the recorded trials, ``(n, C, T)`` float32, baseline-corrected."""
        n_evoked, n_background, n_alpha = (field.shape[1] for field in (self.evoked, self.background, self.alpha))
        with_response = bool(self.evoked.any())
        fields = np.concatenate([self.evoked, self.background, self.alpha], axis=1).astype(np.float32)
        fields = fields if with_response else fields[:, n_evoked:]
        n_times = len(self.times)
        for number, (start, stop) in enumerate(self.blocks()):
            rng = _generator(*self.noise_seed, number)
            n, noise = stop - start, self.noises[start:stop, None, None].astype(np.float32)
            parts = [self.source_responses(start, stop)] if with_response else []
            for n_sources, factor in ((n_background, self.background_factor), (n_alpha, self.alpha_factor)):
                latent = rng.standard_normal((n, n_sources, len(factor)), dtype=np.float32)
                if factor is self.alpha_factor:
                    # Its strength wanders from trial to trial; the mean square stays 1.
                    latent *= np.exp(0.5 * rng.standard_normal((n, 1, 1), dtype=np.float32) - 0.25)
                latent *= noise
                parts.append((latent.reshape(-1, len(factor)) @ factor).reshape(n, n_sources, n_times))
            block = rng.standard_normal((n, len(fields), n_times), dtype=np.float32)
            block *= np.float32(self.sensor) * noise
            block += np.matmul(fields, np.concatenate(parts, axis=1))
            if self.n_baseline:
                block -= block[..., :self.n_baseline].mean(axis=-1, keepdims=True)
            block *= self.gains[start:stop, None, None].astype(np.float32)
            yield block


def _fields(head: Head, scale: _Scale, *, units: sources.Units, snr: float, seed: int, subject: str,
            modality: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the scaled fields of response, background and alpha dipoles, ``(C, n)`` each."""
    own = _generator(seed, subject, modality, "places")
    evoked = sources.place_dipoles(shared=_generator(seed, "places"), own=own)
    background = sources.place_background(_N_BACKGROUND, rng=own)
    alpha = sources.place_alpha(_N_ALPHA, rng=own)
    points, directions = (np.concatenate(parts) for parts in zip(evoked, background, alpha, strict=True))
    fields = head.lead_field(head.inside(points), directions)
    ends = [len(evoked[0]), len(evoked[0]) + _N_BACKGROUND]
    evoked_field, background_field, alpha_field = np.split(fields, ends, axis=1)

    # Many weak dipoles: only the covariance of their sum matters, which few independent time courses can carry.
    vectors, strengths, _ = np.linalg.svd(background_field, full_matrices=False)
    background_field = (vectors * strengths)[:, :_BACKGROUND_RANK]

    # Peak of the mean response over channels and time; it sets the scale, so that snr means the same in every head.
    mean = np.zeros((evoked_field.shape[1], len(sources.KERNELS)))
    mean[units.dipole, units.kernel] = units.mean
    courses = sources.responses(np.arange(0, sources.RESPONSE_END, 0.004), shifts=np.zeros(1))[0]
    peak = np.abs(evoked_field @ mean @ courses).max()
    # Recordings differ in quality from subject to subject.
    quality = np.exp(0.1 * own.standard_normal())
    return (evoked_field * (snr * quality * scale.evoked / peak),
            background_field * (scale.background / np.sqrt((background_field**2).sum(axis=1).mean())),
            alpha_field * (scale.alpha / np.linalg.norm(alpha_field, axis=1).max()))


def _contralateral(names: tuple[str, ...], *, right: np.ndarray) -> np.ndarray:
    """Return the weight ``(p, n)`` of features "map@row,column" (8 x 8) for latents of either half of the brain.

    Early cortex sees the opposite half of the picture; features without a place count fully.
    """
    columns = np.array([int(name.rsplit(",", 1)[1]) if "@" in name else -1 for name in names])[:, None]
    opposite = np.where(right, columns < 4, columns >= 4) | (columns < 0)
    return np.where(opposite, 1.0, 0.2)


def _amplitudes(features: StimulusFeatures, *, units: sources.Units, n_dipoles: int, seed: int,
                subject: str) -> np.ndarray:
    """Return ``(n_stimuli, n_dipoles, K)`` float32: what each stimulus does to each time course of each dipole.

    Features drive nonlinear latents, and units mix latents; in both, most weights are common to all subjects.
    """
    amplitudes = np.zeros((len(features), n_dipoles, len(sources.KERNELS)), dtype=np.float32)
    for stage, (group, n_latents) in sources.DRIVEN_BY.items():
        def weights(name: str, shape: tuple[int, int], stage: str = stage) -> np.ndarray:
            common, own = (_generator(seed, *who, name, stage).standard_normal(shape) for who in ((), (subject,)))
            return np.sqrt(1 - _OWN_MIXING) * common + np.sqrt(_OWN_MIXING) * own

        values = getattr(features, group).astype(np.float64)
        member = np.flatnonzero(units.stage == stage)
        into_latents = weights("latents", (values.shape[1], n_latents))
        # The dipoles of a patch act much alike: they share most of a mixing.
        patch = units.dipole[member] // sources.PER_PATCH * len(sources.KERNELS) + units.kernel[member]
        _, place = np.unique(patch, return_inverse=True)
        into_units = (np.sqrt(0.7) * weights("patches", (n_latents, place.max() + 1))[:, place]
                      + np.sqrt(0.3) * weights("units", (n_latents, len(member))))
        number = np.arange(n_latents)
        if stage == "early":
            right = number % 2 == 0
            into_latents *= _contralateral(features.names["low"], right=right)
            into_units *= np.where(right[:, None] == units.right[member], 1.0, 0.3)
        drive = _standardised(values @ into_latents)
        saturating, rectified, compressed = np.tanh(1.5 * drive), np.maximum(drive, 0), np.cbrt(drive)
        latents = _standardised(np.choose(number // 2 % 3, [saturating, rectified, compressed]))
        amplitudes[:, units.dipole[member], units.kernel[member]] = units.mean[member] + sources.MODULATION[stage] * (
            _standardised(latents @ into_units))
    return amplitudes


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return each column with mean 0 and standard deviation 1 (0 where it is constant)."""
    deviation = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(deviation > 1e-9, deviation, np.inf)


def _ideal(generator: _Generator, trials: pd.DataFrame, *, direction: np.ndarray) -> Ideal:
    """Return what the observer needs: see `brain2img.simulate.observer`.

    Trials are compressed by spatial filters and time courses that keep what a matched filter under the noise would
    keep; `direction` ``(C, d)`` is the field of the response dipoles, not 0 even where `snr` is.
    """
    n_times, n_baseline = len(generator.times), generator.n_baseline
    correct = np.eye(n_times)
    if n_baseline:
        correct[:n_baseline] -= 1.0 / n_baseline
    test = np.flatnonzero(trials["split"] == "test")
    loudness = float((generator.noises[test] ** 2).mean()) if len(test) else 1.0
    noise = [(loudness * (field @ field.T), correct.T @ time @ correct) for field, time in (
        (generator.background, generator.background_factor.T @ generator.background_factor.astype(float)),
        (generator.alpha, generator.alpha_factor.T @ generator.alpha_factor.astype(float)),
        (generator.sensor * np.eye(len(generator.evoked)), np.eye(n_times)))]

    _, probability = sources.latencies()
    start = generator.n_baseline
    courses = np.zeros((generator.kernels.shape[1], n_times))
    mean_kernel = np.tensordot(probability, generator.kernels, axes=1)
    late = np.tensordot(np.gradient(probability), generator.kernels, axes=1)
    length = min(n_times - start, mean_kernel.shape[1])
    courses[:, start:start + length] = mean_kernel[:, :length]
    changes = np.zeros_like(courses)
    changes[:, start:start + length] = late[:, :length]

    # Matched filters of the separable approximation: (inverse covariance) @ (patterns), in space and in time.
    space = sum(s * np.trace(t) / n_times for s, t in noise)
    time = sum(t * np.trace(s) for s, t in noise)
    filters = _matched(space, direction)
    windows = _matched(time, (np.concatenate([courses, changes]) @ correct).T)

    candidates = held_out_stimuli(trials)
    through = (filters.T @ generator.evoked, courses @ correct @ windows)
    expected = np.einsum("qd,ndk,kr->nqr", through[0], generator.amplitudes[candidates].astype(float), through[1],
                         optimize=True)
    covariance = np.sum([np.kron(filters.T @ s @ filters, windows.T @ t @ windows) for s, t in noise], axis=0)

    deviations: list[np.ndarray] = []
    for start, stop in generator.blocks():
        rows = test[(test >= start) & (test < stop)]
        if len(rows) and generator.evoked.any() and sum(len(d) for d in deviations) < _OVERLAP_TRIALS:
            present = generator.source_responses(start, stop)[rows - start] @ (correct @ windows).astype(np.float32)
            place = np.searchsorted(candidates, generator.stimuli[rows])
            deviations.append(np.einsum("qd,ndr->nqr", through[0], present, optimize=True) - expected[place])
    expected = expected.reshape(len(candidates), filters.shape[1] * windows.shape[1])
    if deviations:
        deviation = np.concatenate(deviations).reshape(-1, expected.shape[1])
        expected = expected + deviation.mean(axis=0)
        covariance += np.cov(deviation.T, bias=True)
    covariance[np.diag_indices_from(covariance)] *= 1 + 1e-6

    def project(signals: np.ndarray, rows: np.ndarray) -> np.ndarray:
        seen = np.matmul(filters.T, np.matmul(signals / generator.gains[rows, None, None], windows))
        return seen.reshape(len(signals), -1)

    return Ideal(expected=expected, covariance=covariance, project=project)


def _matched(covariance: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Return orthonormal-in-noise filters ``(n, r)`` that span ``inverse(covariance) @ patterns``."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-8 * values[-1]
    whiten = vectors[:, kept] / np.sqrt(values[kept])
    basis, strength, _ = np.linalg.svd(whiten.T @ patterns, full_matrices=False)
    return whiten @ basis[:, strength > 1e-3 * strength[0]]


def simulate_subject(subject: str, *, modality: str, features: StimulusFeatures, trials: pd.DataFrame, snr: float = 1.0,
                     sfreq: float = 250.0, tmin: float = -0.2, tmax: float = 1.0, n_channels: int | None = None,
                     seed: int = 0) -> tuple[SignalSpec, Iterator[np.ndarray], Ideal]:
    """Simulate the recording of one subject; it depends on the arguments alone, not on other subjects.

    Parameters
    ----------
    subject
        Name of the subject; together with `seed` it fixes anatomy, mixing and noise.
    modality
        "eeg" (63 channels, volts) or "meg" (271 axial gradiometers, tesla).
    features
        Features of all stimuli.
    trials
        In the order of recording: stimulus (row in `features`), session, split, and run where there are runs. Pictures
        follow each other within a run; the trials of a run must stand together.
    snr
        Factor on the responses at unchanged noise; 0 leaves no trace of any stimulus.
    sfreq
        Samples per second (Hz).
    tmin, tmax
        Window around onset (s); `tmax` is not included.
    n_channels
        Record only this many channels, spread over the head; None for all.
    seed
        Seed of the study.

    Returns
    -------
    spec : SignalSpec
        What the signals are.
    signals : iterator of numpy.ndarray
        Blocks ``(n, C, T)`` float32 in the order of `trials`, corrected by the mean before onset.
    ideal : Ideal
        What the ideal observer knows.

    Raises
    ------
    ValueError
        If `snr`, `modality`, `n_channels` or the window cannot be.
    """
    if not snr >= 0:
        raise ValueError(f"snr of subject {subject!r}: expected 0 or more, got {snr}. Set study.snr, e.g. to 1.")
    if not tmin <= 0 < tmax:
        raise ValueError(f"window of subject {subject!r}: expected tmin <= 0 < tmax, got {tmin} to {tmax} s. "
                         "Set study.tmin and study.tmax, e.g. to -0.2 and 1.0.")
    head = make_head(modality, sfreq=sfreq, n_channels=n_channels, rng=_generator(seed, subject, modality, "head"))
    scale, units = _SCALES[modality], sources.make_units()
    evoked, background, alpha = _fields(head, scale, units=units, snr=1.0, seed=seed, subject=subject,
                                        modality=modality)
    n_times = round((tmax - tmin) * sfreq)
    own = _generator(seed, subject, modality, "rhythms")
    frequencies = np.linspace(0.0, sfreq / 2, 8 * n_times + 1)
    brain = sources.aperiodic_spectrum(frequencies, exponent=own.uniform(1.1, 1.4))
    rhythm = sources.alpha_spectrum(frequencies, peak=own.uniform(9.5, 10.5))
    sessions = pd.factorize(trials["session"])[0]
    runs = trials.groupby([c for c in ("session", "run") if c in trials], sort=False).ngroup().to_numpy()
    of_session = _generator(seed, subject, modality, "sessions").standard_normal((sessions.max(initial=0) + 1, 2))
    gains, noises = np.exp(np.array([0.05, 0.1]) * of_session)[sessions].T
    _, probability = sources.latencies()
    generator = _Generator(
        evoked=snr * evoked, background=background, alpha=alpha,
        amplitudes=_amplitudes(features, units=units, n_dipoles=evoked.shape[1], seed=seed, subject=subject),
        background_factor=sources.factor(sources.stationary_covariance(brain, n_times=n_times)),
        alpha_factor=sources.factor(sources.stationary_covariance(rhythm, n_times=n_times)),
        gains=gains, noises=noises, sensor=scale.sensor, soa=round(scale.soa * sfreq), sfreq=sfreq,
        times=np.round(tmin * sfreq) / sfreq + np.arange(n_times) / sfreq,
        stimuli=trials["stimulus"].to_numpy(), runs=runs,
        shifts=_generator(seed, subject, modality, "latency").choice(len(probability), size=len(trials), p=probability),
        noise_seed=(seed, subject, modality))
    spec = SignalSpec(subject=subject, modality=modality, units=scale.units, n_channels=len(head.kept), n_times=n_times,
                      sfreq=sfreq, tmin=float(generator.times[0]), ch_names=head.ch_names, ch_types=head.ch_types,
                      positions=head.positions)
    return spec, generator.recorded(), _ideal(generator, trials, direction=evoked)
