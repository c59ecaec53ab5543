"""Ridge of many targets: equality with himalaya and scikit-learn, chunks, resuming, bands, ROIs, renormalisation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import KFold, LeaveOneOut, cross_val_predict

from brain2img.decoders import ridge
from brain2img.decoders.ridge import Ridge
from brain2img.decoders.ridge_problem import Problem
from brain2img.decoders.ridge_solver import choose, decompose, gram, renormalisation
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec


class LinearData:
    """One subject, `n` training stimuli seen `repeats` times, two spaces with a planted map; what `Ridge` asks of data.

    Voxels of the ROI "noisy" hold large noise alone.
    """

    def __init__(self, *, n=60, p=90, noise=0.5, noisy=0, repeats=1, seed=0):
        rng, self.unseen = np.random.default_rng(seed), []
        self.specs = {"sub-01": SignalSpec(
            subject="sub-01", modality="fmri", units="a.u.", n_channels=p + noisy, n_times=1,
            rois=("early",) * (p // 2) + ("ventral",) * (p - p // 2) + ("noisy",) * noisy)}
        self.target_specs = {"a": EmbeddingSpec(name="a", shape=(3, 5)), "b": EmbeddingSpec(name="b", shape=(4,))}
        code = rng.standard_normal((n + 40, 6))
        self.ids = [f"s{i:03d}" for i in range(n + 40)]
        self.values = {s: (2 + code @ rng.standard_normal((6, spec.size))).astype(np.float32)
                       for s, spec in self.target_specs.items()}
        clean = code @ rng.standard_normal((6, p))
        self.seen = np.concatenate([np.repeat(np.arange(n), repeats), np.arange(n, n + 40)])
        x = clean[self.seen] + noise * rng.standard_normal((len(self.seen), p))
        self.x = np.concatenate([3 + x, 8 * rng.standard_normal((len(x), noisy))], axis=1).astype(np.float32)
        self.n_train, self.reads = n * repeats, 0

    def single_trials(self, split):
        rows = range(self.n_train)
        return pd.DataFrame({"subject": "sub-01", "stimulus_id": [self.ids[self.seen[i]] for i in rows],
                             "trial_ids": [[i] for i in rows]})

    def items(self, split):
        trials = self.single_trials(split)
        return trials.groupby(["subject", "stimulus_id"], as_index=False)["trial_ids"].sum()

    def signals(self, subject, trial_ids):
        return np.stack([self.x[ids].mean(axis=0) for ids in trial_ids])[:, :, None]

    def target_columns(self, space, ids, *, start, stop):
        self.reads += 1
        return self.values[space][[self.ids.index(i) for i in ids]][:, start:stop].copy()

    @property
    def test(self):
        x = self.x[self.n_train:]
        batch = BrainBatch(signals={"sub-01": torch.from_numpy(x[:, :, None])},
                           rows={"sub-01": torch.arange(len(x))}, stimulus_ids=self.ids[-40:])
        return batch, {s: v[-40:] for s, v in self.values.items()}


def fitted(data, folder, **options):
    decoder = Ridge(specs=data.specs, targets=data.target_specs, **options)
    decoder.fit(data, folder=folder)
    return decoder


def training(data):
    """Return averaged training signals and the targets of space "a"."""
    n = len(data.items("train"))
    return data.signals("sub-01", data.items("train")["trial_ids"])[:, :, 0], data.values["a"][:n]


@pytest.mark.parametrize("p", [90, 30], ids=["more voxels", "more stimuli"])
def test_equals_scikit_learn_with_the_published_kind_of_penalty(tmp_path, p):
    data = LinearData(p=p)
    decoder = fitted(data, tmp_path, alphas={"a": 60.0, "b": 0.5, "c": None}, relative=False, standardise=True)
    batch, _ = data.test
    x = training(data)[0].astype(float)
    new = data.x[data.n_train:].astype(float)
    x, new = (x - x.mean(axis=0)) / x.std(axis=0), (new - x.mean(axis=0)) / x.std(axis=0)
    got = decoder.predict(batch)
    for space, alpha in (("a", 60.0), ("b", 0.5)):
        expected = SklearnRidge(alpha=alpha).fit(x, data.values[space][:60].astype(float)).predict(new)
        np.testing.assert_allclose(got[space].reshape(40, -1), expected, atol=1e-5 * np.abs(expected).max())
    assert got["a"].shape == (40, 3, 5)


@pytest.mark.parametrize("p", [90, 30], ids=["more voxels", "more stimuli"])
def test_chooses_and_solves_as_himalaya(p):
    data = LinearData(p=p, noise=2.0)
    x, y = training(data)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    x /= np.sqrt((x**2).sum(axis=1).mean())
    grid, folds = np.logspace(-3, 3, 9), KFold(4, shuffle=True, random_state=0)
    set_backend("torch")
    reference = KernelRidgeCV(alphas=grid, kernel="precomputed", cv=folds, warn=False).fit(x @ x.T, y)
    tensor = torch.from_numpy(x)
    chosen = choose(tensor, y, penalties=grid, folds=folds, kernel=gram(tensor))
    np.testing.assert_allclose(chosen.penalties, reference.best_alphas_.numpy(), rtol=1e-4)
    assert len(set(chosen.penalties)) > 1
    expected = x.T @ reference.dual_coef_.numpy()
    got = decompose(tensor).coefficients(torch.from_numpy(y).double(), torch.from_numpy(chosen.penalties)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(decompose(tensor).operator(0.3).numpy() @ y, SklearnRidge(
        alpha=0.3, fit_intercept=False).fit(x.astype(float), y).coef_.T, atol=1e-5)


def test_the_primal_choice_of_himalaya_is_the_same(monkeypatch):
    data = LinearData(p=20, noise=2.0)
    x, y = training(data)
    x, y = torch.from_numpy(x - x.mean(axis=0)), y - y.mean(axis=0)
    arguments = {"penalties": np.logspace(0, 4, 9), "folds": KFold(4, shuffle=True, random_state=0)}
    kernel = choose(x, y, **arguments)
    monkeypatch.setattr("brain2img.decoders.ridge_solver._LARGEST_KERNEL", 10)
    np.testing.assert_array_equal(choose(x, y, **arguments).penalties, kernel.penalties)


def test_one_penalty_a_space_is_the_best_of_its_targets_together(tmp_path):
    data = LinearData(noise=3.0)
    decoder = fitted(data, tmp_path, penalty="space", alphas=(1e-2, 1e2, 9), cv=4)
    x = training(data)[0].astype(float)
    x -= x.mean(axis=0)
    x /= np.sqrt((x**2).sum(axis=1).mean())
    for i, space in enumerate(data.target_specs):
        y = data.values[space][:60].astype(float)
        y -= y.mean(axis=0)
        errors = [np.mean([((y[test] - SklearnRidge(alpha=a, fit_intercept=False).fit(x[train], y[train]).predict(
            x[test]))**2).mean() for train, test in KFold(4, shuffle=True, random_state=0).split(x)])
            for a in decoder.alphas[space]]
        used = np.load(tmp_path / f"ridge_0_{i}" / "penalties.npy")
        assert set(used) == {decoder.alphas[space][int(np.argmin(errors))]}


def test_chunks_do_not_matter(tmp_path, monkeypatch):
    data = LinearData(noise=2.0)
    batch, _ = data.test
    whole = fitted(data, tmp_path / "whole", rescale="training").predict(batch)
    monkeypatch.setattr(ridge, "CHUNK", 4 * 91 * 2)
    monkeypatch.setattr(ridge, "AT_ONCE", 4 * 60 * 4)
    parts = fitted(data, tmp_path / "parts", rescale="training").predict(batch)
    for space in whole:
        np.testing.assert_allclose(parts[space], whole[space], atol=1e-5)


def test_a_fit_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    data = LinearData()
    batch, _ = data.test
    straight = fitted(data, tmp_path / "straight").predict(batch)
    monkeypatch.setattr(ridge, "CHUNK", 4 * 91 * 3)
    write, written = ridge.ArrayWriter.write, []

    def stopping(self, rows):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(self.done)
        write(self, rows)

    monkeypatch.setattr(ridge.ArrayWriter, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        fitted(data, tmp_path / "stopped")
    monkeypatch.setattr(ridge.ArrayWriter, "write", lambda self, rows: (written.append(self.done), write(self, rows)))
    monkeypatch.setattr(ridge, "choose", lambda *_, **__: pytest.fail("penalties were chosen already"))
    resumed = fitted(data, tmp_path / "stopped").predict(batch)
    assert written == [0, 3, 6, 9, 12, 0, 3]  # five chunks of space a, two of b, none twice
    for space in straight:
        np.testing.assert_allclose(resumed[space], straight[space], atol=1e-5)


def test_other_data_in_the_same_folder_are_fitted_anew(tmp_path):
    first, second = LinearData(), LinearData(seed=1)
    fitted(first, tmp_path)
    batch, _ = second.test
    np.testing.assert_array_equal(fitted(second, tmp_path).predict(batch)["b"],
                                  fitted(second, tmp_path / "other").predict(batch)["b"])


def test_spaces_are_decoded_from_their_rois_alone(tmp_path):
    data = LinearData()
    decoder = fitted(data, tmp_path, rois={"a": ["early"], "b": ["early", "ventral"]})
    batch, _ = data.test
    before = decoder.predict(batch)
    batch.signals["sub-01"][:, 45:] = 0
    after = decoder.predict(batch)
    np.testing.assert_array_equal(after["a"], before["a"])
    assert np.abs(after["b"] - before["b"]).max() > 0.1
    alone = dataclasses.replace(data.specs["sub-01"].select(np.arange(45)), rois=())
    only, full = LinearData(), data.x
    only.specs, only.x = {"sub-01": alone}, full[:, :45]
    np.testing.assert_allclose(fitted(only, tmp_path / "only").predict(only.test[0])["a"], before["a"], atol=1e-5)
    decoder.save(tmp_path)
    again = Ridge(specs=data.specs, targets=data.target_specs, rois={"a": ["ear*"], "b": None, "c": None})
    again.load(tmp_path)
    np.testing.assert_array_equal(again.predict(batch)["a"], after["a"])


def test_bands_find_the_roi_that_is_noise(tmp_path):
    data = LinearData(n=80, p=40, noisy=200, noise=1.0)
    batch, true = data.test
    plain = fitted(data, tmp_path / "plain", penalty="space", cv=4)
    banded = fitted(data, tmp_path / "banded", penalty="space", cv=4, bands="rois")

    def error(decoder):
        return float(np.mean((decoder.predict(batch)["a"].reshape(40, -1) - true["a"])**2) / true["a"].var())

    assert error(banded) < 0.25 < 0.5 < error(plain)
    scales = np.load(tmp_path / "banded" / "ridge_0_0" / "scales.npy")
    assert scales[40:].max() ** 2 < 0.1 < scales[:40].min() ** 2


def test_renormalised_predictions_are_those_of_held_out_stimuli(tmp_path):
    data = LinearData(noise=3.0)
    x, y = training(data)
    x, y = x.astype(float), y.astype(float)
    alpha = 40.0
    held_out = cross_val_predict(SklearnRidge(alpha=alpha), x, y, cv=LeaveOneOut())
    how = decompose(torch.from_numpy((x - x.mean(axis=0)).astype(np.float32)))
    centred = torch.from_numpy(y - y.mean(axis=0))
    fitted_values = torch.from_numpy(x - x.mean(axis=0)) @ how.operator(alpha) @ centred
    shift, factor = renormalisation(fitted_values, centred, how.leverages(alpha)[:, None])
    np.testing.assert_allclose(factor, y.std(axis=0) / held_out.std(axis=0), rtol=1e-5)
    np.testing.assert_allclose(shift, (y.mean(axis=0) - held_out.mean(axis=0)) * factor.numpy(), atol=1e-5)
    decoder = fitted(data, tmp_path, alphas=alpha, relative=False, rescale="training")
    batch, _ = data.test
    plain = SklearnRidge(alpha=alpha).fit(x, y).predict(data.x[data.n_train:].astype(float))
    expected = (plain - held_out.mean(axis=0)) / held_out.std(axis=0) * y.std(axis=0) + y.mean(axis=0)
    np.testing.assert_allclose(decoder.predict(batch)["a"].reshape(40, -1), expected, atol=1e-4)


@pytest.mark.parametrize("rescale", [None, "training"])
def test_a_single_trial_is_decoded_as_among_others(tmp_path, rescale):
    data = LinearData()
    decoder = fitted(data, tmp_path, rescale=rescale)
    batch, _ = data.test
    alone = BrainBatch(signals={"sub-01": batch.signals["sub-01"][7:8]}, rows={"sub-01": torch.arange(1)},
                       stimulus_ids=batch.stimulus_ids[7:8])
    np.testing.assert_allclose(decoder.predict(alone)["a"][0], decoder.predict(batch)["a"][7], atol=1e-5)


def test_folds_of_single_trials_keep_a_stimulus_together(tmp_path):
    data = LinearData(n=30, p=40, repeats=3)
    problem = Problem.of(data, "sub-01", features=np.arange(40), single=True, standardise=False, relative=True, cv=4)
    assert problem.x.shape == (90, 40)
    stimuli, held = np.array(problem.stimuli), []
    for train, test in problem.folds(4, seed=0).split(np.zeros(90)):
        assert not set(stimuli[train]) & set(stimuli[test])
        held += test.tolist()
    assert sorted(held) == list(range(90))
    decoder = fitted(data, tmp_path, trials="single", alphas=5.0, relative=False)
    x, y = data.x[:90].astype(float), data.values["a"][data.seen[:90]].astype(float)
    expected = SklearnRidge(alpha=5.0).fit(x, y).predict(data.x[90:].astype(float))
    np.testing.assert_allclose(decoder.predict(data.test[0])["a"].reshape(40, -1), expected, atol=1e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"penalty": "voxel"}, r"decoder\.penalty: expected one of \('target', 'space'\), got 'voxel'"),
    ({"bands": "rois"}, r"decoder\.bands: expected decoder\.penalty=space, got penalty=target"),
    ({"rescale": "test"}, r"decoder\.rescale: expected one of \(None, 'training'\), got 'test'"),
    ({"rescale": "training", "trials": "single"}, r"decoder\.rescale: expected decoder\.trials=averaged"),
    ({"alphas": {"a": 1.0}}, r"decoder\.alphas: expected one entry for each of the spaces \['a', 'b'\], got \['a'\]"),
    ({"alphas": 0.0}, r"decoder\.alphas of space 'a': expected a penalty above 0"),
    ({"rois": {"c": ["early"]}}, r"decoder\.rois: expected spaces of \['a', 'b'\], got \['c'\]"),
    ({"rois": {"a": ["V9"]}}, r"subject 'sub-01': expected some of \['early', 'ventral'\], got 'V9'.*decoder\.rois"),
])
def test_bad_options_are_refused(options, message):
    data = LinearData(n=8, p=6)
    with pytest.raises(ValueError, match=message):
        Ridge(specs=data.specs, targets=data.target_specs, **options)


def test_rois_of_voxels_without_labels_are_refused():
    bare = {"sub-01": SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=4, n_times=1)}
    with pytest.raises(ValueError, match=r"regions of subject 'sub-01': expected a label for every voxel, got none"):
        Ridge(specs=bare, targets={"a": EmbeddingSpec(name="a", shape=(3,))}, rois={"a": ["V1"]})


def test_columns_of_targets_are_those_of_whole_targets(toy):
    data = toy()
    ids = ["train-003", "test-051", "train-003"]
    np.testing.assert_array_equal(data.target_columns("code", ids, start=1, stop=3), data.target("code", ids)[:, 1:3])
