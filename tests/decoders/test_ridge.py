from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from brain2img.decoders.ridge import Ridge


def fitted(data, tmp_path, **changes):
    decoder = Ridge(specs=data.specs, targets=data.target_specs, **changes)
    decoder.fit(data, folder=tmp_path)
    return decoder


def test_equals_scikit_learn_for_a_given_penalty(toy, tmp_path):
    data = toy()
    decoder = fitted(data, tmp_path, alphas=(0.1, 0.1, 1))
    batch = data.batch(data.items("test"))
    for subject in data.subjects:
        items = data.items("train").query("subject == @subject")
        x = data.signals(subject, items["trial_ids"].tolist()).reshape(len(items), -1).astype(float)
        y = data.target("code", items["stimulus_id"].tolist())
        unit = np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
        reference = SklearnRidge(alpha=0.1 * unit).fit(x, y)
        expected = reference.predict(batch.signals[subject].numpy().reshape(len(batch.rows[subject]), -1))
        got = decoder.predict(batch)["code"][batch.rows[subject].numpy()]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_recovers_a_planted_map_and_nothing_where_nothing_is(toy, tmp_path):
    correlations = {}
    for snr in (3.0, 0.0):
        data = toy(snr=snr)
        batch = data.batch(data.items("test"))
        predicted = fitted(data, tmp_path).predict(batch)["code"]
        true = batch.targets["code"].numpy()
        correlations[snr] = np.corrcoef(predicted.ravel(), true.ravel())[0, 1]
    assert correlations[3.0] > 0.95
    # 10 test stimuli x 4 dimensions: |r| of independent values stays below 3.29 / sqrt(40) in 99.9 % of cases
    assert abs(correlations[0.0]) < 3.29 / np.sqrt(40)


def test_saved_and_loaded_it_predicts_the_same(toy, tmp_path):
    data = toy()
    decoder = fitted(data, tmp_path)
    decoder.save(tmp_path)
    again = Ridge(specs=data.specs, targets=data.target_specs)
    again.load(tmp_path)
    batch = data.batch(data.items("test"))
    np.testing.assert_array_equal(decoder.predict(batch)["code"], again.predict(batch)["code"])


def test_weights_of_other_signals_are_refused(toy, tmp_path):
    data, other = toy(), toy(n_channels=7, seed=1)
    fitted(data, tmp_path).save(tmp_path)
    with pytest.raises(ValueError, match=r"expected weights \(8, 4\) for subject 'sub-01'.* got \(13, 4\)"):
        Ridge(specs=other.specs, targets=other.target_specs).load(tmp_path)
    with pytest.raises(ValueError, match=r"ridge\.json: expected a whole .* file, got nothing there"):
        Ridge(specs=data.specs, targets=data.target_specs).load(tmp_path / "nowhere")


def test_few_stimuli_have_fewer_inner_folds_and_too_few_are_refused(toy, tmp_path, caplog):
    data = toy()
    with caplog.at_level("WARNING"):
        fewer = fitted(data, tmp_path / "a", cv=30)
    assert "40 training stimuli are enough for 20 inner folds, not for decoder.cv=30" in caplog.text
    batch = data.batch(data.items("test"))
    np.testing.assert_array_equal(fewer.predict(batch)["code"],
                                  fitted(data, tmp_path / "b", cv=20).predict(batch)["code"])
    data.trials = data.trials[(data.trials["split"] != "train") | (data.trials["stimulus_id"] < "train-003")]
    with pytest.raises(ValueError, match=r"'sub-01': expected at least 4 for inner folds, got 3\."):
        fitted(data, tmp_path / "c")
