"""Splits whose folds are subjects: who is trained on, who is tested, and what nobody looks at."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from brain2img.adapters.subject_linear import SubjectLinear
from brain2img.adapters.subject_token import SubjectToken
from brain2img.data.trials import Split
from brain2img.decoders.adaptation import restrict, take_over
from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.ridge import Ridge
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.interfaces import Encoder
from brain2img.losses import MSE
from brain2img.records import Grid

ALONE, OTHERS = "in_subject", "leave_one_subject_out"


class Flat(Encoder):
    """One hidden token: signals and subject token, flattened."""

    def __init__(self, *, specs):
        super().__init__()
        spec = next(iter(specs.values()))
        self.grid, self.hidden = Grid(spec.n_channels, spec.n_times), (1, 16)
        self.linear = nn.Linear((spec.n_channels + 1) * spec.n_times, 16)

    def forward(self, features):
        return self.linear(torch.cat([features.grid, features.tokens], dim=1).flatten(1))[:, None]

    @classmethod
    def tiny(cls):
        raise NotImplementedError


def data_of(toy, kind, fold, **changes):
    return toy(modality="eeg", n_times=3, split={"kind": kind, "fold": fold}, normalisation={"scale": "subject"},
               **changes)


def deep(data, **changes):
    torch.manual_seed(0)
    encoder = Flat(specs=data.specs)
    head = LinearHead(hidden=encoder.hidden, spec=data.target_specs["code"], space="code", losses={"mse": MSE()})
    return DeepDecoder(adapter=SubjectToken(specs=data.specs, grid=encoder.grid, **changes), encoder=encoder,
                       heads={"code": head}, training={"max_epochs": 3, "batch_size": 32, "lr": 0.01})


def swap_labels(data, subject):
    """Exchange what was shown in the training and validation trials of a subject, in the study's own file."""
    path = data.study.folder / "trials.parquet"
    trials = pd.read_parquet(path)
    rng = np.random.default_rng(3)
    for split in ("train", "val"):
        mine = trials.index[(trials["subject"] == subject) & (trials["split"] == split)]
        trials.loc[mine, "stimulus_id"] = rng.permutation(trials.loc[mine, "stimulus_id"].to_numpy())
    trials.to_parquet(path)


def splits(data):
    return {(s, split): set(g["stimulus_id"]) for (s, split), g in data.trials.groupby(["subject", "split"])}


def test_alone_a_subject_is_all_there_is(toy):
    whole = toy(modality="eeg", n_times=3)
    for fold, subject in enumerate(whole.subjects):
        data = data_of(toy, ALONE, fold)
        assert data.subjects == list(data.specs) == list(data.normalisers) == [subject]
        assert splits(data) == {key: ids for key, ids in splits(whole).items() if key[0] == subject}
        assert set(data.single_trials("train")["subject"]) == set(data.items("test")["subject"]) == {subject}


def test_left_out_a_subject_is_tested_on_what_nobody_was_trained_on(toy):
    whole = splits(toy(modality="eeg", n_times=3))
    for fold, (subject, other) in enumerate((("sub-01", "sub-02"), ("sub-02", "sub-01"))):
        data = data_of(toy, OTHERS, fold)
        assert list(data.specs) == [other]
        assert data.unseen == [subject]
        met = splits(data)
        for split in ("train", "val"):
            assert met[other, split] == whole[other, split]
        assert met[subject, "test"] == whole[subject, "test"]
        assert met[subject, "unseen"] == whole[subject, "train"]
        assert set(met) == {(other, "train"), (other, "val"), (other, "unused"), (subject, "test"),
                            (subject, "unseen"), (subject, "unused")}
        assert met[other, "unused"] == whole[other, "test"]
        shown = set().union(*(data.single_trials(s)["stimulus_id"] for s in ("train", "val")))
        assert not shown & set(data.items("test")["stimulus_id"])
        assert set(data.items("test")["subject"]) == {subject}


def test_statistics_of_a_left_out_subject_are_of_its_own_recordings(toy):
    left_out, whole = data_of(toy, OTHERS, 1), toy(modality="eeg", n_times=3, normalisation={"scale": "subject"})
    for subject in whole.subjects:
        for key, value in whole.normalisers[subject].state.items():
            np.testing.assert_array_equal(left_out.normalisers[subject].state[key], value)
    noise = left_out.batch(left_out.items("test"), noise=np.random.default_rng(0)).signals["sub-02"]
    assert noise.shape == (10, 12, 3)


@pytest.mark.parametrize("kind", [ALONE, OTHERS])
def test_labels_of_the_subject_that_is_not_trained_on_change_no_bit(toy, tmp_path, kind):
    """In fold 0 sub-01 is trained on where it is alone, and sub-02 where sub-01 is left out."""
    stranger, predictions = ("sub-02" if kind == ALONE else "sub-01"), []
    for attempt in range(2):
        data = data_of(toy, kind, 0)
        made = []
        for name, decoder in (("deep", deep(data)), ("ridge", Ridge(specs=data.specs, targets=data.target_specs,
                                                                    pooled=True))):
            decoder.fit(data, folder=tmp_path / f"{name}{attempt}")
            made.append(decoder.predict(data.batch(data.items("test")))["code"])
        weights = torch.load(tmp_path / f"deep{attempt}" / "best.ckpt", weights_only=True)["state_dict"]
        predictions.append([*made, *(value.numpy() for value in weights.values())])
        swap_labels(data, stranger)
    before, after = predictions
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    swap_labels(data, "sub-01" if kind == ALONE else "sub-02")
    data = data_of(toy, kind, 0)
    decoder = deep(data)
    decoder.fit(data, folder=tmp_path / "trained")
    assert not np.array_equal(decoder.predict(data.batch(data.items("test")))["code"], before[0])


def test_an_unseen_subject_gets_the_shared_token(toy, tmp_path):
    data = data_of(toy, OTHERS, 0)
    decoder = deep(data, shared_token_probability=0.5)
    start = decoder.module.adapter.shared.detach().clone()
    decoder.fit(data, folder=tmp_path)
    adapter = decoder.module.adapter
    assert not torch.equal(adapter.shared, start), "trained"
    assert list(adapter.tokens) == ["sub-02"]
    batch = data.batch(data.items("test"))
    x = batch.signals["sub-01"]
    with torch.no_grad():
        hidden = decoder.module.encoder(adapter(x, None))
        expected = decoder.module.heads["code"](hidden, {})
    np.testing.assert_allclose(decoder.predict(batch)["code"], expected.numpy(), rtol=1e-6)


def test_adapted_to_its_subject_a_fold_goes_on_from_the_shared_token(toy, tmp_path):
    left_out = data_of(toy, OTHERS, 0)
    trained = deep(left_out, shared_token_probability=0.5)
    trained.fit(left_out, folder=tmp_path)
    mine = data_of(toy, ALONE, 0)
    decoder = deep(mine)
    take_over(decoder, trained.module.state_dict(), subject="sub-01", known=["sub-02"], what="x")
    batch = mine.batch(mine.items("test"))
    np.testing.assert_array_equal(decoder.predict(batch)["code"], trained.predict(batch)["code"])
    assert torch.equal(decoder.module.adapter.tokens["sub-01"], trained.module.adapter.shared)
    assert restrict(decoder, subject="sub-01", mode="adapter")["trained"] == ["adapter.tokens.sub-01"]


def test_what_serves_known_subjects_alone_is_refused_before_it_is_trained(toy, tmp_path, caplog):
    data = data_of(toy, OTHERS, 0)
    with pytest.raises(ValueError, match=r"ridge: expected a subject that it was fitted on, \['sub-02'\], got 'sub-01'"
                                         r"\. .* decoder.pooled=true"):
        Ridge(specs=data.specs, targets=data.target_specs).fit(data, folder=tmp_path)
    betas = toy(split={"kind": OTHERS}, n_channels=36)
    head = LinearHead(hidden=(1, 16), spec=betas.target_specs["code"], space="code", losses={"mse": MSE()})
    linear = DeepDecoder(adapter=SubjectLinear(specs=betas.specs, grid=Grid(16, 1)), encoder=ResidualMLP.tiny(),
                         heads={"code": head}, training={"max_epochs": 1})
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-02'\], got None\. .* adapt the run"):
        linear.fit(betas, folder=tmp_path)
    assert not (tmp_path / "last.ckpt").exists()
    deep(data, shared_token_probability=0).fit(data, folder=tmp_path / "never")
    assert "an unseen subject gets the shared token, which was never trained" in caplog.text


def test_a_pooled_ridge_equals_one_of_all_rows_and_finds_a_shared_map(toy, tmp_path):
    from sklearn.linear_model import Ridge as SklearnRidge

    data = toy(modality="eeg", n_times=3)
    decoder = Ridge(specs=data.specs, targets=data.target_specs, pooled=True, alphas=0.1)
    decoder.fit(data, folder=tmp_path)
    items = data.items("train")
    parts = [items[items["subject"] == s] for s in data.subjects]
    x = np.concatenate([data.signals(s, part["trial_ids"].tolist()).reshape(len(part), -1)
                        for s, part in zip(data.subjects, parts, strict=True)]).astype(float)
    y = data.target("code", pd.concat(parts)["stimulus_id"].tolist())
    unit = np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1))
    reference = SklearnRidge(alpha=0.1 * unit).fit(x, y)
    batch = data.batch(data.items("test"))
    for subject in data.subjects:
        expected = reference.predict(batch.signals[subject].numpy().reshape(len(batch.rows[subject]), -1))
        np.testing.assert_allclose(decoder.predict(batch)["code"][batch.rows[subject].numpy()], expected, atol=1e-3)
        assert decoder.coefficients(subject, "code").shape == (36, 4)
    decoder.save(tmp_path)
    again = Ridge(specs=data.specs, targets=data.target_specs, pooled=True)
    again.load(tmp_path)
    np.testing.assert_array_equal(again.predict(batch)["code"], decoder.predict(batch)["code"])
    with pytest.raises(ValueError, match=r"expected weights of subject 'sub-01'.*got \[\('\(all\)', 'code'\)\]"):
        Ridge(specs=data.specs, targets=data.target_specs).load(tmp_path)


def test_pooled_subjects_must_have_the_same_channels(toy):
    import dataclasses

    specs = toy(modality="eeg", n_times=3).specs
    names = specs["sub-02"].ch_names
    specs = {**specs, "sub-02": dataclasses.replace(specs["sub-02"], ch_names=(*names[1:], names[0]))}
    with pytest.raises(ValueError, match="expected the channels and samples of subject 'sub-01' for subject 'sub-02'"):
        Ridge(specs=specs, targets={}, pooled=True)


def rewrite(data, subject, **changes):
    """Change what ``spec.json`` says of a subject's signals."""
    path = data.study.folder / "spec.json"
    values = json.loads(path.read_text())
    values["subjects"][subject] |= changes
    path.write_text(json.dumps(values))


NAMES = [f"C{i}" for i in range(12)]
OTHER_SIGNALS = [
    ({"ch_names": ["C1", "C0", *NAMES[2:]]}, "got another order of channels: C1 in place of C0"),
    ({"ch_names": [*NAMES[:11], "Fz"]}, r"got 12 channels in place of 12: missing \['C11'\], others \['Fz'\]"),
    ({"sfreq": 50.0}, "got 50.0 in place of 100.0 samples per second"),
    ({"tmin": 0.0}, "got 3 samples from 0 s on in place of 3 from -0.1 s on")]


@pytest.mark.parametrize(("changes", "message"), OTHER_SIGNALS)
def test_a_left_out_subject_with_other_sensors_is_refused(toy, changes, message):
    whole = toy(modality="eeg", n_times=3)
    rewrite(whole, "sub-02", **changes)
    match = rf"study toy, subject 'sub-02', which is left out: expected the channels.* of 'sub-01'.* {message}"
    with pytest.raises(ValueError, match=match):
        data_of(toy, OTHERS, 1)
    data_of(toy, ALONE, 1)  # a model of its own takes them


@pytest.mark.parametrize(("changes", "message"), OTHER_SIGNALS)
def test_statistics_of_other_signals_are_refused(toy, tmp_path, changes, message):
    data = toy(modality="eeg", n_times=3)
    data.save_normalisation(tmp_path)
    toy(modality="eeg", n_times=3).load_normalisation(tmp_path)
    rewrite(data, "sub-02", **changes)
    with pytest.raises(ValueError, match=rf"normalisation of subject 'sub-02': expected the signals it was fitted on, "
                                         rf"{message}.*\. Prepare the study as it was then"):
        toy(modality="eeg", n_times=3).load_normalisation(tmp_path)


def test_statistics_without_names_of_channels_still_load(toy, tmp_path):
    data = toy(modality="eeg", n_times=3)
    expected = {s: dict(n.state) for s, n in data.normalisers.items()}
    for number, state in enumerate(expected.values()):
        np.savez(tmp_path / f"normalisation_{number}.npz", **state)
    (tmp_path / "normalisation.json").write_text(json.dumps(
        {s: f"normalisation_{i}.npz" for i, s in enumerate(expected)}))
    data.load_normalisation(tmp_path)
    for subject, state in expected.items():
        assert data.normalisers[subject].state.keys() == state.keys()


def test_messages(toy):
    one = pd.DataFrame({"subject": "sub-01", "stimulus_id": ["a", "b"], "split": ["train", "test"]})
    with pytest.raises(ValueError, match=r"study x: expected two subjects or more for split.kind=leave_one_subject_out"
                                         r", got \['sub-01'\]"):
        Split(kind=OTHERS).assign(one, what="study x")
    with pytest.raises(ValueError, match=r"study x: expected split.fold 0\.\.0, one for each of its subjects, got 1"):
        Split(kind=ALONE, fold=1).assign(one, what="study x")
