"""Simulated EEG and MEG: geometry and physics against MNE, planted signals found again, nothing found at snr 0."""

import mne
import numpy as np
import pandas as pd
import pytest
from scipy.signal import welch

from brain2img.simulate import sources
from brain2img.simulate.features import StimulusFeatures
from brain2img.simulate.meeg import simulate_subject
from brain2img.simulate.observer import ceiling, held_out_stimuli
from brain2img.simulate.sensors import EEG_CHANNELS, helmet, make_head

PUBLISHED = ("Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9 FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 "
             "C3 C1 Cz C2 C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz "
             "PO4 PO8 O1 Oz O2").split()
N_TRAIN, N_TEST = 400, 40


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    n = N_TRAIN + N_TEST
    low, middle, high = (rng.standard_normal((n, p)).astype(np.float32) for p in (6, 6, 6))
    return StimulusFeatures(maps=np.zeros((n, 1, 16, 16), np.float32), low=low, middle=middle, high=high,
                            names={"low": tuple(f"map{k}" for k in range(6))})


def make_trials(*, n_train=N_TRAIN, n_test=N_TEST, repetitions=1, n_sessions=2):
    rng = np.random.default_rng(1)
    order = rng.permutation(np.r_[:n_train, np.repeat(np.arange(N_TRAIN, N_TRAIN + n_test), repetitions)])
    trials = pd.DataFrame({"stimulus": order, "stimulus_id": order.astype(str)})
    trials["split"] = np.where(order < N_TRAIN, "train", "test")
    trials["session"] = np.arange(len(trials)) * n_sessions // len(trials)
    trials["repetition"] = trials.groupby("stimulus").cumcount()
    return trials


def record(subject="sub-01", *, features, modality="eeg", trials=None, **kwargs):
    trials = make_trials(n_train=30, n_test=5) if trials is None else trials
    spec, blocks, ideal = simulate_subject(subject, modality=modality, features=features, trials=trials, **kwargs)
    return spec, np.concatenate(list(blocks)), ideal


def correlation(signals, targets, *, n_train):
    """Mean held-out correlation of ridge from signals to targets over target dimensions."""
    x = signals.reshape(len(signals), -1)
    x = (x - x[:n_train].mean(0)) / x[:n_train].std(0)
    y = targets - targets[:n_train].mean(0)
    gram = x[:n_train] @ x[:n_train].T
    dual = np.linalg.solve(gram + 0.3 * np.trace(gram) / n_train * np.eye(n_train), y[:n_train])
    predicted = x[n_train:] @ x[:n_train].T @ dual
    return np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, y[n_train:].T, strict=True)])


@pytest.fixture(scope="module")
def strong(features):
    trials = make_trials()
    return (*record(features=features, trials=trials, snr=12.0), trials)


# --- what comes out -------------------------------------------------------------------------------------------------

def test_channels_are_those_of_things_eeg2(features):
    spec, signals, _ = record(features=features)
    assert list(spec.ch_names) == PUBLISHED == list(EEG_CHANNELS)
    assert signals.shape == (35, 63, 300)
    assert signals.dtype == np.float32
    assert (spec.units, spec.sfreq, spec.tmin, set(spec.ch_types)) == ("V", 250.0, -0.2, {"eeg"})
    assert 5e-6 < signals.std() < 15e-6


def test_meg_is_that_of_things_meg(features):
    spec, signals, _ = record(features=features, modality="meg", sfreq=200.0)
    assert signals.shape == (35, 271, 240)
    assert (spec.units, set(spec.ch_types)) == ("T", {"mag"})
    assert "MLO11" in spec.ch_names
    assert "MRO11" not in spec.ch_names
    assert 150e-15 < signals.std() < 600e-15


@pytest.mark.parametrize("modality", ["eeg", "meg"])
def test_same_arguments_same_recording(features, modality):
    first, second, other, reseeded = (
        record(subject, features=features, modality=modality, n_channels=8, seed=seed)[1]
        for subject, seed in (("sub-01", 0), ("sub-01", 0), ("sub-02", 0), ("sub-01", 1)))
    np.testing.assert_array_equal(first, second)
    for different in (other, reseeded):
        assert abs(np.corrcoef(first.ravel(), different.ravel())[0, 1]) < 0.2


def test_subjects_differ_in_anatomy_but_resemble_each_other(features):
    trials = make_trials(n_train=200, n_test=0)
    (spec, a, _), (other, b, _) = (record(s, features=features, trials=trials, snr=30.0) for s in ("a", "b"))
    assert 0.001 < np.abs(spec.positions - other.positions).max() < 0.03
    alike = np.corrcoef(a.mean(axis=0).ravel(), b.mean(axis=0).ravel())[0, 1]
    assert 0.5 < alike < 0.995


def test_baseline_is_zero(features):
    spec, signals, _ = record(features=features)
    baseline = signals[..., spec.times < -1e-9].mean(axis=-1)
    assert np.abs(baseline).max() < 1e-4 * signals.std()


def test_window_and_rate_are_arguments(features):
    spec, signals, _ = record(features=features, sfreq=100.0, tmin=-0.1, tmax=0.5, n_channels=5)
    assert signals.shape == (35, 5, 60)
    assert spec.tmin == -0.1
    assert record(features=features, tmin=0.0, tmax=0.3, n_channels=5)[1].shape == (35, 5, 75)


# --- physics --------------------------------------------------------------------------------------------------------

def test_lead_field_is_that_of_a_dipole_in_a_sphere():
    """Eq. 25 of Sarvas (1987) for a point magnetometer; an axial gradiometer is the difference of two."""
    head = make_head("meg", sfreq=200.0, n_channels=None, rng=np.random.default_rng(0))
    point, moment = np.array([0.02, -0.05, 0.03]) + head.centre, np.array([1.0, 0.0, 0.0])
    outward = np.array([ch["loc"][9:12] for ch in head.info["chs"]])

    def field(r):
        r, r0 = r - head.centre, point - head.centre
        a = r - r0
        d, n = np.linalg.norm(a, axis=1), np.linalg.norm(r, axis=1)
        f = d * (n * d + n**2 - r @ r0)
        grad = ((d**2 / n + (a * r).sum(1) / d + 2 * d + 2 * n)[:, None] * r
                - (d + 2 * n + (a * r).sum(1) / d)[:, None] * r0)
        across = np.cross(moment, r0)
        return 1e-7 / f[:, None] ** 2 * (f[:, None] * across - (r @ across)[:, None] * grad)

    expected = ((field(head.positions) - field(head.positions + 0.05 * outward)) * outward).sum(axis=1)
    got = head.lead_field(np.array([point, point]), np.array([moment, moment]))[:, 0]
    # MNE integrates over the 18 mm coil, the formula takes its middle.
    np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())


def test_radial_dipole_is_silent_in_meg_only():
    for modality, limit in (("meg", 1e-6), ("eeg", None)):
        head = make_head(modality, sfreq=200.0, n_channels=None, rng=np.random.default_rng(0))
        place = np.array([[0.0, -0.7, 0.0]] * 2)
        got = np.abs(head.lead_field(head.inside(place), np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]))).max(axis=0)
        assert got[0] < limit * got[1] if limit else got[0] > 0.3 * got[1]


def test_helmet_keeps_left_and_right_front_and_back():
    names, points, outward = helmet()
    place = dict(zip(names, points, strict=True))
    assert place["MLT11"][0] < -0.05
    assert place["MRT11"][0] > 0.05
    assert place["MZO03"][1] < -0.05
    assert place["MZF01"][1] > 0.05
    np.testing.assert_allclose(np.linalg.norm(outward, axis=1), 1)
    assert ((points - points.mean(axis=0)) * outward).sum(axis=1).min() > 0


def test_response_at_100_ms_is_largest_over_occipital_cortex(strong):
    spec, signals, _, _ = strong
    response = np.abs(signals.mean(axis=0)[:, np.abs(spec.times - 0.1).argmin()])
    largest = [spec.ch_names[i] for i in np.argsort(response)[-6:]]
    assert all(name.startswith(("O", "PO", "P")) for name in largest), largest
    front = [i for i, name in enumerate(spec.ch_names) if name.startswith(("F", "AF"))]
    assert response[front].mean() < 0.4 * response.max()


def test_responses_to_neighbours_overlap(features):
    """A stimulus is seen in its neighbour's epoch, 0.2 s earlier or later, unless another run began."""
    trials = make_trials(n_train=20, n_test=0, n_sessions=1)
    runs = trials.assign(run=np.arange(20) // 10)
    signals = record(features=features, trials=trials, snr=1e4, tmin=0.0)[1]
    first, then = signals[4][:, 50:150], signals[5][:, :100]
    assert np.corrcoef(first.ravel(), then.ravel())[0, 1] > 0.999
    apart = record(features=features, trials=runs, snr=1e4, tmin=0.0)[1]
    assert np.corrcoef(apart[9][:, 50:150].ravel(), apart[10][:, :100].ravel())[0, 1] < 0.95


@pytest.mark.parametrize("modality", ["eeg", "meg"])
def test_noise_has_one_over_f_and_alpha(features, modality):
    _, signals, _ = record(features=features, modality=modality, trials=make_trials(n_train=150, n_test=0), snr=0.0,
                           sfreq=250.0)
    frequency, power = welch(signals, fs=250.0, nperseg=250, axis=-1)
    power = power.mean(axis=(0, 1))
    assert 9 <= frequency[6:15][power[6:15].argmax()] <= 11
    assert power[frequency == 10] > 2 * np.sqrt(power[frequency == 6] * power[frequency == 15])
    band = ((frequency >= 2) & (frequency <= 6)) | ((frequency >= 16) & (frequency <= 30))
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -1.6 < slope < -0.8


def test_noise_is_correlated_in_space_and_not_hidden_in_few_dimensions(features):
    _, signals, _ = record(features=features, trials=make_trials(n_train=150, n_test=0), snr=0.0)
    x = signals.transpose(1, 0, 2).reshape(63, -1)
    near, far = (np.corrcoef(x[EEG_CHANNELS.index("O1")], x[EEG_CHANNELS.index(name)])[0, 1] for name in ("PO3", "AF8"))
    assert near > 0.7
    assert near > far + 0.2
    assert np.linalg.eigvalsh(np.cov(x))[0] > (1e-6) ** 2


# --- planted signal -------------------------------------------------------------------------------------------------

def test_early_signals_tell_low_and_late_signals_high_features(strong, features):
    """No neighbour's features enter, for trials are in random order."""
    spec, signals, _, trials = strong
    shown = trials["stimulus"].to_numpy()
    scores = {}
    for window, (start, stop) in {"early": (0.08, 0.13), "late": (0.25, 0.45)}.items():
        x = signals[:, :, (spec.times >= start) & (spec.times < stop)][:, :, ::2]
        scores[window] = {group: correlation(x, getattr(features, group)[shown], n_train=340)
                          for group in ("low", "high")}
    assert scores["early"]["low"] > 0.3
    assert scores["late"]["high"] > 0.3
    assert scores["early"]["low"] > scores["early"]["high"] + 0.15
    assert scores["late"]["high"] > scores["late"]["low"] + 0.15


def test_nothing_at_snr_0(features):
    """Neither a score above chance nor any dependence at all: other stimuli leave the very same signals."""
    trials = make_trials(repetitions=2)
    _, signals, ideal = record(features=features, trials=trials, snr=0.0, n_channels=20)
    shown = trials["stimulus"].to_numpy()
    for group in ("low", "middle", "high"):
        assert abs(correlation(signals[:, :, 50::4], getattr(features, group)[shown], n_train=380)) < 0.12
    exchanged = trials.assign(stimulus=np.random.default_rng(2).permutation(shown))
    np.testing.assert_array_equal(signals, record(features=features, trials=exchanged, snr=0.0, n_channels=20)[1])
    ranks = ceiling(ideal, signals=signals, trials=trials)
    np.testing.assert_allclose(ranks["rank"], (N_TEST + 1) / 2)


@pytest.mark.parametrize(("modality", "sfreq"), [("eeg", 250.0), ("meg", 200.0)])
def test_observer_is_right_about_the_noise(features, modality, sfreq):
    """Whitened residuals have variance 1, and the observer recognises what ridge cannot from so few trials."""
    trials = make_trials(n_train=100, repetitions=5)
    _, signals, ideal = record(features=features, modality=modality, sfreq=sfreq, trials=trials, snr=1.0, n_channels=40)
    test = np.flatnonzero(trials["split"] == "test")
    place = np.searchsorted(held_out_stimuli(trials), trials["stimulus"].to_numpy()[test])
    residual = ideal.project(signals[test], test) - ideal.expected[place]
    white = np.linalg.solve(np.linalg.cholesky(ideal.covariance), residual.T)
    assert 0.93 < (white**2).mean() < 1.07
    ranks = ceiling(ideal, signals=signals, trials=trials)
    best = ranks[(ranks["repetitions"] == 5) & (ranks["direction"] == "image_from_brain")]
    assert (best["rank"] == 1).mean() > 0.5


def test_latencies_and_covariance_are_what_they_say():
    grid, probability = sources.latencies()
    np.testing.assert_allclose([probability.sum(), probability @ grid], [1, 0], atol=1e-12)
    assert 0.010 < np.sqrt(probability @ grid**2) < 0.015
    covariance = sources.stationary_covariance(sources.aperiodic_spectrum(np.linspace(0, 125, 801), exponent=1.2),
                                               n_times=50)
    root = sources.factor(covariance)
    np.testing.assert_allclose(root.T @ root, covariance, atol=1e-4)
    np.testing.assert_allclose(np.diag(covariance), 1)


def test_positions_give_a_topography(strong):
    """The report draws maps from names, types and positions alone."""
    spec = strong[0]
    info = mne.create_info(list(spec.ch_names), spec.sfreq, list(spec.ch_types), verbose="ERROR")
    info.set_montage(mne.channels.make_dig_montage(dict(zip(spec.ch_names, spec.positions, strict=True)),
                                                   coord_frame="head"))
    assert len(mne.channels.find_layout(info).names) == 63


# --- messages -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("kwargs", "message"), [
    ({"modality": "ecog"}, "modality: expected 'eeg' or 'meg', got 'ecog'"),
    ({"snr": -1.0}, "snr of subject 'sub-01': expected 0 or more, got -1.0"),
    ({"n_channels": 64}, "n_channels: expected 1 to 63 for EEG, got 64"),
    ({"tmin": 0.1}, "expected tmin <= 0 < tmax, got 0.1 to 1.0 s"),
])
def test_messages(features, kwargs, message):
    with pytest.raises(ValueError, match=message):
        record(features=features, **kwargs)
