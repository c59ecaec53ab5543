"""The encoding model: leave-one-out in closed form, likelihood as a cosine, planted signal, refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from brain2img.decoders.encoding import EncodingModel, _kernel, _ridge
from brain2img.records import BrainBatch


@pytest.mark.parametrize("width", [0.0, 0.5])
def test_left_out_residuals_equal_refitting(width):
    rng = np.random.default_rng(0)
    features, y = rng.standard_normal((12, 5)), rng.standard_normal((12, 3))
    kernel = _kernel(features, features, width=width)
    weights, residual = _ridge(*np.linalg.eigh(kernel), y, penalty=0.1)
    np.testing.assert_allclose(weights, np.linalg.solve(kernel + 1.2 * np.eye(12), y))
    for i in range(12):
        rest = np.delete(np.arange(12), i)
        refitted = np.linalg.solve(kernel[np.ix_(rest, rest)] + 1.2 * np.eye(11), y[rest])
        np.testing.assert_allclose(residual[i], y[i] - kernel[i, rest] @ refitted)


def fitted(toy, tmp_path, **changes):
    data = toy(modality="eeg", n_channels=6, n_times=8, snr=1.0)
    model = EncodingModel(specs=data.specs, targets=data.target_specs, **changes)
    model.fit(data, folder=tmp_path)
    return data, model


def decoded(data, model, split="test"):
    """Return hits and the decoded and true vectors of a split."""
    items = data.items(split)
    found = model.predict(data.batch(items))["code"]
    view = model.learned_spaces()["code"][1]
    hits = []
    for subject in data.subjects:
        mine = (items["subject"] == subject).to_numpy()
        true = view(data.target("code", items.loc[mine, "stimulus_id"].tolist()))
        cosine = found[mine] @ true.T / np.linalg.norm(true, axis=1)
        hits += list(cosine.argmax(1) == np.arange(len(true)))
    return np.array(hits), found


def test_the_cosine_ranks_by_the_likelihood(toy, tmp_path):
    data, model = fitted(toy, tmp_path, widths=[0.5], penalties=[1e-2], shrinkages=[0.3], n_features=None)
    items = data.items("test")
    items = items[items["subject"] == "sub-02"]
    ids = items["stimulus_id"].tolist()
    x = data.signals("sub-02", items["trial_ids"].tolist()).reshape(len(items), -1).astype(float)
    train = data.items("train")
    train = train[train["subject"] == "sub-02"]
    y = data.signals("sub-02", train["trial_ids"].tolist()).reshape(len(train), -1).astype(float)
    code, new = (data.target("code", list(part["stimulus_id"])).astype(float) for part in (train, items))
    shown = data.training_targets("code").astype(float)
    code, new = ((c - shown.mean(0)) / shown.std(0, ddof=1) / 2 for c in (code, new))  # four values, mean square 1
    kernel = np.exp(-0.5 * ((code[:, None] - code[None]) ** 2).sum(-1))
    inverse = np.linalg.inv(kernel + 0.01 * len(y) * np.eye(len(y)))
    residual = inverse @ (y - y.mean(0)) / np.diag(inverse)[:, None]
    covariance = residual.T @ residual / len(y)
    covariance = 0.7 * covariance + 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    predicted = np.exp(-0.5 * ((new[:, None] - code[None]) ** 2).sum(-1)) @ inverse @ (y - y.mean(0))
    precision = np.linalg.inv(covariance)
    likelihood = (x - y.mean(0)) @ precision @ predicted.T - 0.5 * ((predicted @ precision) * predicted).sum(1)
    found = model.predict(data.batch(items))["code"]
    true = model.learned_spaces()["code"][1](data.target("code", ids))
    np.testing.assert_allclose(np.linalg.norm(true, axis=1), np.sqrt(2), rtol=1e-5)  # a block of length 1 a subject
    ranks = (found @ true.T).argsort(1)
    np.testing.assert_array_equal(ranks, likelihood.argsort(1))


def test_it_finds_the_planted_signal_and_none_in_another_pairing(toy, tmp_path):
    data, model = fitted(toy, tmp_path)
    assert decoded(data, model)[0].mean() > 0.8
    shuffled = toy(modality="eeg", n_channels=6, n_times=8, snr=0.0)
    model.fit(shuffled, folder=tmp_path)
    assert decoded(shuffled, model)[0].mean() < 0.45  # 20 queries of 10: above 0.45 in 1 of 10,000 by chance


def test_it_is_the_same_after_saving(toy, tmp_path):
    data, model = fitted(toy, tmp_path)
    model.save(tmp_path)
    again = EncodingModel(specs=data.specs, targets=data.target_specs)
    again.load(tmp_path)
    np.testing.assert_array_equal(decoded(data, model)[1], decoded(data, again)[1])
    other = {name: dataclasses.replace(spec, n_times=4) for name, spec in data.specs.items()}
    with pytest.raises(ValueError, match="expected a model of subjects"):
        EncodingModel(specs=other, targets=data.target_specs).load(tmp_path)
    with pytest.raises(ValueError, match=r"encoding\.npz: expected a whole .* file, got nothing there"):
        again.load(tmp_path / "elsewhere")


def test_a_subject_that_was_not_there_is_refused(toy, tmp_path):
    _, model = fitted(toy, tmp_path)
    batch = BrainBatch(signals={"sub-09": torch.zeros(1, 6, 8)}, rows={"sub-09": torch.arange(1)}, stimulus_ids=["a"])
    with pytest.raises(ValueError, match=r"expected one of the subjects .*got 'sub-09'"):
        model.predict(batch)
    with pytest.raises(ValueError, match="shrinkages in"):
        EncodingModel(specs={}, targets={}, shrinkages=[0.0])
