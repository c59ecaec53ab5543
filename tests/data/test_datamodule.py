from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.data.dataset import EpochSampler, ReusedMemory
from brain2img.data.normalisation import FittedNormalisation, Normalisation, ledoit_wolf
from brain2img.data.trials import Split, averaged, channel_indices
from brain2img.records import SignalSpec
from brain2img.simulate.sensors import EEG_CHANNELS


def test_scaling_comes_from_training_trials_only(toy):
    data = toy(normalisation={"scale": "subject", "clip": None})
    train = data.trials.query("subject == 'sub-01' and split == 'train'")["row"].to_numpy()
    raw = np.asarray(data.study.signals("sub-01"), dtype=np.float64)
    mean, std = raw[train].mean(axis=(0, 2)), raw[train].std(axis=(0, 2))
    rows = np.arange(len(raw))
    expected = (raw - mean[:, None]) / std[:, None]
    got = data.signals("sub-01", [[r] for r in rows])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unknown", [None, np.nan, pd.NA])
def test_trials_of_an_unknown_session_are_one_session(unknown):
    spec = SignalSpec(subject="s", modality="eeg", units="V", n_channels=3, n_times=50, sfreq=100.0, tmin=0.0,
                      ch_names=("a", "b", "c"), ch_types=("eeg",) * 3)
    x = np.random.default_rng(0).standard_normal((40, 3, 50)).astype("float32")
    states = []
    for session in (unknown, "1"):
        fitted = FittedNormalisation(Normalisation(noise_normalise=True), spec=spec)
        fitted.fit(x, pd.DataFrame({"row": np.arange(40), "session": session}, dtype=object).astype({"row": int}))
        states.append(fitted.state)
    for key in ("whitening", "mean", "std"):
        np.testing.assert_array_equal(states[0][key], states[1][key])


def test_changing_test_trials_changes_no_statistic(toy, tmp_path):
    spec = SignalSpec(subject="s", modality="eeg", units="V", n_channels=3, n_times=50, sfreq=100.0, tmin=0.0,
                      ch_names=("a", "b", "c"), ch_types=("eeg",) * 3)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3, 50)).astype("float32")
    trials = pd.DataFrame({"row": np.arange(40), "session": "1"})
    states = []
    for y in (x, np.concatenate([x[:40], 100 * x[40:]])):
        fitted = FittedNormalisation(Normalisation(noise_normalise=True), spec=spec)
        fitted.fit(y, trials)
        states.append(fitted.state)
    for key in states[0]:
        np.testing.assert_array_equal(states[0][key], states[1][key])


@pytest.mark.parametrize("shape", [(4, 6, 50), (3, 20, 10), (2, 1, 5)])
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e-13])
def test_batched_ledoit_wolf_equals_scikit_learn(shape, unit):
    from sklearn.covariance import ledoit_wolf as reference

    x = np.random.default_rng(0).standard_normal(shape)
    x[:, 0] += 2 * x[:, -1]
    expected = np.stack([reference(trial.T)[0] for trial in x])
    np.testing.assert_allclose(ledoit_wolf(unit * x), unit**2 * expected, rtol=1e-9)


def test_standardised_ledoit_wolf_equals_scikit_learns_discriminant_analysis():
    from sklearn.discriminant_analysis import _cov

    x = np.random.default_rng(0).standard_normal((4, 6, 50)) * np.geomspace(0.1, 10, 6)[:, None]
    expected = np.stack([_cov(trial.T, shrinkage="auto") for trial in x])
    np.testing.assert_allclose(ledoit_wolf(x, standardised=True), expected, rtol=1e-9)
    constant = np.concatenate([x, np.ones((4, 1, 50))], axis=1)
    assert np.isfinite(ledoit_wolf(constant, standardised=True)).all()


@pytest.mark.parametrize(("fit_on", "splits"), [("train", ["train"]), ("not_test", ["train", "val"])])
def test_statistics_come_from_the_trials_asked_for(toy, fit_on, splits):
    data = toy(normalisation={"scale": "subject", "clip": None, "fit_on": fit_on})
    rows = data.trials.query("subject == 'sub-01' and split in @splits")["row"].to_numpy()
    expected = np.asarray(data.study.signals("sub-01"), dtype=np.float64)[rows].mean(axis=(0, 2))
    np.testing.assert_allclose(data.normalisers["sub-01"].state["mean"][0, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["shrinkage", "fit_on", "scale"])
def test_unknown_choices_are_named(name):
    with pytest.raises(ValueError, match=f"data.{name}: expected .*got 'other'. Choose one of these"):
        Normalisation(**{name: "other"})


def test_whitening_equals_the_published_recipe(toy):
    """Mean over trials of scikit-learn's Ledoit-Wolf covariance, to the power -1/2 (scipy), channels only."""
    from scipy.linalg import fractional_matrix_power
    from sklearn.covariance import LedoitWolf

    data = toy(modality="eeg", n_channels=5, n_times=30,
               normalisation={"noise_normalise": True, "scale": "none", "clip": None})
    raw = np.asarray(data.study.signals("sub-01"), dtype=np.float64)
    train = data.trials.query("subject == 'sub-01' and split == 'train'")["row"].to_numpy()
    covariance = np.mean([LedoitWolf().fit(raw[r].T).covariance_ for r in train], axis=0)
    expected = fractional_matrix_power(covariance, -0.5) @ raw[3]
    np.testing.assert_allclose(data.signals("sub-01", [[3]])[0], expected, rtol=2e-3, atol=2e-3)


def test_sessions_are_scaled_apart(toy):
    x = {scale: (data := toy(sessions=2, offset=50.0, normalisation={"scale": scale, "min_trials": 5}))
         .signals("sub-01", [[r] for r in data.trials.query("subject == 'sub-01' and split == 'train'")["row"]])
         for scale in ("session", "subject")}
    session = np.arange(len(x["session"])) % 2
    gap = {scale: abs(v[session == 0].mean() - v[session == 1].mean()) for scale, v in x.items()}
    assert gap["session"] < 0.05
    assert gap["subject"] > 1


def test_repetitions_are_averaged_before_decoding(toy):
    data = toy()
    items = data.items("test")
    assert len(items) == 20
    assert (items["n_averaged"] == 4).all()
    row = items.iloc[3]
    singles = data.signals(row["subject"], [[r] for r in row["trial_ids"]])
    batch = data.batch(items.iloc[[3]])
    np.testing.assert_allclose(batch.signals[row["subject"]][0], singles.mean(axis=0), rtol=1e-5)


def test_batches_keep_the_order_of_their_rows_over_subjects(toy):
    data = toy()
    items = data.items("test").sample(frac=1.0, random_state=0)
    batch = data.batch(items)
    assert batch.stimulus_ids == items["stimulus_id"].tolist()
    np.testing.assert_array_equal(batch.targets["code"], data.target("code", batch.stimulus_ids))
    places = np.concatenate([batch.rows[s].numpy() for s in batch.signals])
    assert sorted(places) == list(range(len(items)))
    for subject in batch.signals:
        assert set(items.iloc[batch.rows[subject].numpy()]["subject"]) == {subject}


@pytest.mark.parametrize("settings", [{}, {"noise_normalise": True}, {"scale": "none"}, {"window": [0.0, 0.1]},
                                      {"exclude_channels": ["C1"]}, {"channels": ["C2", "C0", "C1", "C3"]}])
def test_batches_equal_the_formula_on_the_file_piece_by_piece_or_at_once(toy, settings, monkeypatch):
    monkeypatch.setattr("brain2img.data.normalisation._CACHED", 1000)
    data = toy(modality="eeg", n_channels=4, n_times=30, normalisation=settings, sessions=2)
    normaliser, rows = data.normalisers["sub-01"], np.random.default_rng(0).permutation(120)
    names = data.specs["sub-01"].ch_names
    x = data.study.signals("sub-01")[rows][:, [int(name[1:]) for name in names]][:, :, normaliser.samples]
    sessions = data.study.trials_of("sub-01")["session"].to_numpy()[rows]
    fitted = normaliser.state["sessions"].tolist()
    which = np.array([fitted.index(session) if session in fitted else 0 for session in sessions])
    if settings.get("noise_normalise"):
        x = np.stack([normaliser.state["whitening"][k] @ trial for k, trial in zip(which, x, strict=True)])
    if settings.get("scale") != "none":
        x = (x - normaliser.state["mean"][which]) / normaliser.state["std"][which]
    np.testing.assert_array_equal(data.signals("sub-01", [[row] for row in rows]), x)


def test_batches_that_are_held_stay_as_they_are(toy):
    data = toy(modality="eeg", n_times=30)
    loader = data.train_loader(batch_size=16, seed=0)
    copies = [{s: x.clone() for s, x in batch.signals.items()} for batch in loader]
    held = [batch.signals for batch in loader]
    views = [{s: x[1:, :, 3:] for s, x in batch.signals.items()} for batch in loader]
    for expected, whole, view in zip(copies, held, views, strict=True):
        for subject, x in expected.items():
            np.testing.assert_array_equal(whole[subject], x)
            np.testing.assert_array_equal(view[subject], x[1:, :, 3:])


def test_memory_is_used_again_only_when_nobody_holds_it():
    memory = ReusedMemory()
    first = memory.array(4, 3)
    view = torch.from_numpy(first)[1:]
    place = first.ctypes.data
    del first
    assert memory.array(4, 3).ctypes.data != place  # a view of a tensor of it is left
    del view
    held = [memory.array(2, 3) for _ in range(9)]
    assert place in {x.ctypes.data for x in held}
    assert len({x.ctypes.data for x in held}) == 9


def test_trials_that_are_not_finite_are_refused_when_they_are_first_read(toy):
    data = toy()
    rows = data.trials.query("subject == 'sub-01' and split == 'test'")["row"].tolist()
    data.signals("sub-01", [[row] for row in rows[:-1]])
    path = data.study.folder / "signals_sub-01.npy"
    stored = np.load(path, mmap_mode="r+")
    stored[rows[-1], 3] = np.nan
    stored.flush()
    with pytest.raises(ValueError, match=rf"'sub-01': expected finite values, .* in trial row {rows[-1]}\."):
        data.signals("sub-01", [[row] for row in rows])


def test_drawn_repetitions_are_subsets_and_repeatable():
    trials = pd.DataFrame({"subject": "s", "stimulus_id": ["a"] * 5 + ["b"] * 2, "row": range(7)})
    rows = averaged(trials, n_averaged=3, n_draws=2, seed=1)
    assert rows["stimulus_id"].tolist() == ["a", "a"], "too few repetitions of b"
    assert all(len(set(ids)) == 3 and set(ids) <= set(range(5)) for ids in rows["trial_ids"])
    pd.testing.assert_frame_equal(rows, averaged(trials, n_averaged=3, n_draws=2, seed=1))


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_cover_every_stimulus_once_and_never_share_one(seed):
    trials = pd.DataFrame({"subject": ["a"] * 23 + ["b"] * 23, "stimulus_id": [f"s{i}" for i in range(23)] * 2})
    tested = []
    for fold in range(10):
        split = Split(kind="kfold", n_folds=10, fold=fold, seed=seed, val_fraction=0.1).assign(trials, what="x")
        parts = {s: set(trials["stimulus_id"][split == s]) for s in ("train", "val", "test")}
        assert not parts["train"] & parts["test"]
        assert not parts["val"] & (parts["test"] | parts["train"])
        tested += sorted(parts["test"])
    assert sorted(tested) == sorted(f"s{i}" for i in range(23))


def test_too_many_folds_are_refused():
    trials = pd.DataFrame({"subject": "a", "stimulus_id": ["s0", "s1"]})
    with pytest.raises(ValueError, match="expected at least 10 stimuli for 10 folds, got 2"):
        Split(kind="kfold", n_folds=10).assign(trials, what="study x")
    with pytest.raises(ValueError, match="expected 'study' or 'kfold'"):
        Split(kind="random")


def test_the_sampler_is_a_pure_function_of_seed_and_epoch():
    first, second = EpochSampler(20, batch_size=6, seed=3), EpochSampler(20, batch_size=6, seed=3)
    list(first)
    first.set_epoch(5)
    second.set_epoch(5)
    assert list(first) == list(second)
    assert len({i for batch in first for i in batch}) == 18
    assert len(first) == 3
    second.set_epoch(6)
    assert list(first) != list(second)


def test_noise_has_the_channel_covariance_of_the_training_signals(toy):
    data = toy(modality="eeg", n_channels=4, n_times=40, normalisation={"scale": "subject"})
    items = pd.concat([data.items("test").query("subject == 'sub-01'")] * 200).assign(n_averaged=1)
    noise = data.batch(items, noise=np.random.default_rng(0)).signals["sub-01"].numpy()
    real = data.signals("sub-01", [[r] for r in data._of("sub-01", "train")["row"]])
    real = real - real.mean(axis=0)
    a, b = (np.cov(np.moveaxis(x, 1, 0).reshape(4, -1)) for x in (noise, real))
    np.testing.assert_allclose(a, b, atol=0.05)


def test_window_and_channels_are_chosen_by_time_and_name(toy):
    data = toy(modality="eeg", n_channels=5, n_times=40,
               normalisation={"window": (0.0, 0.19), "channels": ["C3", "C1"]})
    spec = data.specs["sub-01"]
    assert spec.ch_names == ("C3", "C1")
    assert spec.n_times == 20
    assert spec.times[0] == pytest.approx(0.0)
    assert spec.times[-1] == pytest.approx(0.19)


def test_wildcards_give_the_seventeen_electrodes_of_the_data_sets_authors():
    names = tuple(EEG_CHANNELS)
    places = channel_indices(names, n=63, keep=["P*", "O*"], exclude=[], subject="s")
    assert [names[i] for i in places] == ("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2").split()
    assert len(channel_indices(names, n=63, keep=None, exclude=["F*", "Oz"], subject="s")) == 63 - 21 - 1


@pytest.mark.parametrize(("settings", "message"), [
    ({"channels": ["Cz"]}, "got Cz. Correct data.channels"),
    ({"window": (2.0, 3.0)}, "expected data.window within"),
    ({"scale": "minmax"}, "data.scale: expected"),
])
def test_bad_normalisation_settings_are_refused(toy, settings, message):
    with pytest.raises(ValueError, match=message):
        toy(modality="eeg", n_channels=5, n_times=40, normalisation=settings)


def test_whitened_signals_refuse_channel_subsets():
    spec = SignalSpec(subject="s", modality="eeg", units="V", n_channels=2, n_times=5, sfreq=100.0,
                      ch_names=("a", "b"), whitened=True)
    with pytest.raises(ValueError, match="allow_mixed_channels=true"):
        FittedNormalisation(Normalisation(channels=["a"]), spec=spec)
    assert FittedNormalisation(Normalisation(channels=["a"], allow_mixed_channels=True), spec=spec).spec.n_channels == 1


def test_added_noise_has_its_size_and_is_the_same_every_time_for_training_and_test(toy):
    plain, noisy = (toy(modality="eeg", n_channels=5, n_times=200, normalisation={"scale": "none", "added_noise": a})
                    for a in (0.0, 0.5))
    rows = [[r] for r in range(0, 120, 4)]
    clean, got = (data.signals("sub-01", rows) for data in (plain, noisy))
    added = got - clean
    train = plain.trials[(plain.trials["subject"] == "sub-01") & (plain.trials["split"] == "train")]["row"]
    deviation = plain.signals("sub-01", [[r] for r in train]).std(axis=(0, 2))
    np.testing.assert_allclose(added.std(axis=(0, 2)) / deviation, 0.5, rtol=0.05)
    assert np.abs(np.corrcoef(added.reshape(len(rows), -1)) - np.eye(len(rows))).max() < 0.15, "anew in each trial"
    np.testing.assert_array_equal(noisy.signals("sub-01", rows[3:5]), got[3:5])
    other = noisy.signals("sub-02", rows) - plain.signals("sub-02", rows)
    assert abs(np.corrcoef(other.ravel(), added.ravel())[0, 1]) < 0.05
    subset = toy(modality="eeg", n_channels=5, n_times=200, normalisation={"added_noise": 0.5, "scale": "subject"})
    x = subset.signals("sub-01", [[r] for r in train])
    np.testing.assert_allclose(x.std(axis=(0, 2)), 1, rtol=1e-3)  # statistics know of the noise


def test_added_noise_survives_a_saved_run(toy, tmp_path):
    settings = {"modality": "eeg", "n_channels": 5, "n_times": 40, "normalisation": {"added_noise": 1.0}}
    fitted, loaded = toy(**settings), toy(**settings)
    fitted.save_normalisation(tmp_path)
    loaded.load_normalisation(tmp_path)
    np.testing.assert_array_equal(fitted.signals("sub-02", [[3]]), loaded.signals("sub-02", [[3]]))


def test_whitened_signals_refuse_added_noise():
    spec = SignalSpec(subject="s", modality="eeg", units="V", n_channels=2, n_times=5, sfreq=100.0,
                      ch_names=("a", "b"), whitened=True)
    with pytest.raises(ValueError, match=r"expected data.added_noise=0, because the published files are whitened"):
        FittedNormalisation(Normalisation(added_noise=0.5), spec=spec)
    FittedNormalisation(Normalisation(added_noise=0.5, allow_mixed_channels=True), spec=spec)
    with pytest.raises(ValueError, match=r"data.added_noise: expected 0 or more standard deviations, got -1"):
        Normalisation(added_noise=-1)


@pytest.mark.parametrize(("value", "word"), [(0.0, "constant"), (np.nan, "NaN or infinite")])
def test_bad_channels_are_named_before_training(value, word):
    spec = SignalSpec(subject="s7", modality="eeg", units="V", n_channels=2, n_times=5, sfreq=100.0,
                      ch_names=("Oz", "Cz"))
    x = np.random.default_rng(0).standard_normal((30, 2, 5))
    x[:, 1] = value
    trials = pd.DataFrame({"row": np.arange(30), "session": "1"})
    with pytest.raises(ValueError, match=rf"subject 's7'.*1 {word} \(Cz\)"):
        FittedNormalisation(Normalisation(), spec=spec).fit(x, trials)
    fitted = FittedNormalisation(Normalisation(exclude_channels=["Cz"]), spec=spec)
    fitted.fit(x, trials)
    assert fitted.spec.ch_names == ("Oz",)


def test_channels_that_are_constant_in_one_session_are_zero_there(caplog):
    """As voxels of NSD that a session did not cover."""
    x = np.random.default_rng(0).standard_normal((60, 3, 1)).astype(np.float32)
    x[30:, 1] = 0
    trials = pd.DataFrame({"row": np.arange(60), "session": ["1"] * 30 + ["2"] * 30})
    spec = SignalSpec(subject="s", modality="fmri", units="a.u.", n_channels=3, n_times=1)
    fitted = FittedNormalisation(Normalisation(clip=None), spec=spec)
    fitted.fit(x, trials)
    assert "1 of 3 channels are constant over session '2'" in caplog.text
    scaled = fitted(x, np.arange(60), trials["session"].to_numpy())
    expected = np.concatenate([(part - part.mean(0)) / np.where(part.std(0) > 0, part.std(0), 1)
                               for part in (x[:30], x[30:])])
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_statistics_of_other_channels_are_refused(toy, tmp_path):
    toy(n_channels=12).save_normalisation(tmp_path)
    with pytest.raises(ValueError, match="expected 7 channels, got statistics of 12"):
        toy(n_channels=7, seed=1).load_normalisation(tmp_path)


def test_a_target_that_lacks_stimuli_is_refused(toy):
    data = toy()
    with pytest.raises(ValueError, match="Run the embed stage"):
        data.targets["code"].rows(["train-000", "nowhere"])
