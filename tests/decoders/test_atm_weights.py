"""Published ATM-S weights of both layouts: outputs against a plain evaluation of the file; what does not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from brain2img.adapters.subject_token import SubjectToken
from brain2img.artifacts import Predictions
from brain2img.decoders.atm_weights import ATMWeights
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.atm import ATM
from brain2img.encoders.atm_time import ATMTime
from brain2img.heads.projector import Projector
from brain2img.losses import InfoNCE
from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec
from brain2img.simulate.sensors import EEG_CHANNELS
from brain2img.stages.embed import embed
from brain2img.stages.import_weights import import_weights
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare

NAMES, T, D, WIDTH = ("Pz", "PO3", "PO4", "O1", "O2"), 90, 12, 4 * 8
E, A = "encoder.enc_embedding", "encoder.encoder.attn_layers.0"


class State:
    """Random weights under published names."""

    def __init__(self, seed=0):
        self.generator, self.state = torch.Generator().manual_seed(seed), {}

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.generator) / math.sqrt(math.prod(shape[1:]) or 1)

    def linear(self, key, *shape):
        self.state[f"{key}.weight"], self.state[f"{key}.bias"] = self.draw(*shape), 0.1 * self.draw(shape[0])

    def norm(self, key, n, *, batch=False):
        self.state[f"{key}.weight"], self.state[f"{key}.bias"] = 1 + 0.1 * self.draw(n), 0.1 * self.draw(n)
        if batch:
            self.state[f"{key}.running_mean"] = 0.1 * self.draw(n)
            self.state[f"{key}.running_var"] = 1 + 0.1 * self.draw(n).abs()
            self.state[f"{key}.num_batches_tracked"] = torch.tensor(7)

    def convolutions(self):
        self.linear("enc_eeg.0.tsconv.0", 8, 1, 1, 25)
        self.norm("enc_eeg.0.tsconv.2", 8, batch=True)
        self.linear("enc_eeg.0.tsconv.4", 8, 8, len(NAMES), 1)
        self.norm("enc_eeg.0.tsconv.5", 8, batch=True)
        self.linear("enc_eeg.0.projection.0", 8, 8, 1, 1)
        self.linear("proj_eeg.0", D, WIDTH)
        self.linear("proj_eeg.1.fn.1", D, D)
        self.norm("proj_eeg.2", D)
        self.state["logit_scale"] = torch.tensor(2.7)
        return self.state


def upstream(*, rows=10, conv=False, joint=False):
    """The layout of section 8.2 of the notes: dead parts, subject table, linear1 or conv1."""
    s = State()
    for i in range(10) if joint else [None]:
        s.linear(f"{E}.value_embedding" + ("" if i is None else f".{i}"), T, T)
    s.state[f"{E}.position_embedding.pe"] = torch.randn(1, 5000, T)
    s.state[f"{E}.temporal_embedding.embed.weight"] = torch.randn(T, 4)
    s.state[f"{E}.subject_embedding.subject_embedding.weight"] = s.draw(rows, T) * 9
    for name in ("subject_embedding.shared_embedding", "subject_embedding.mask_embedding", "mask_token"):
        s.state[f"{E}.{name}"] = s.draw(1, T) * 9
    for name in ("query", "key", "value"):
        s.linear(f"{A}.attention.{name}_projection", 88, T)
    s.linear(f"{A}.attention.out_projection", T, 88)
    kind, axes = ("conv", (1,)) if conv else ("linear", ())
    s.linear(f"{A}.{kind}1", 16, T, *axes)
    s.linear(f"{A}.{kind}2", T, 16, *axes)
    for name in (f"{A}.norm1", f"{A}.norm2", "encoder.encoder.norm"):
        s.norm(name, T)
    for i in range(2):
        s.linear(f"subject_wise_linear.{i}", T, T)
    return s.convolutions()


def earlier():
    """The layout of section 8.1 of the notes: a dead copy of the transformer layer, one subject-wise linear."""
    s, c = State(1), len(NAMES)
    s.state["attention_model.pos_encoder.pe"] = torch.randn(5000, c, generator=s.generator)
    for prefix in ("attention_model.encoder_layer", "attention_model.transformer_encoder.layers.0"):
        s.state[f"{prefix}.self_attn.in_proj_weight"] = s.draw(3 * c, c)
        s.state[f"{prefix}.self_attn.in_proj_bias"] = 0.1 * s.draw(3 * c)
        s.linear(f"{prefix}.self_attn.out_proj", c, c)
        s.linear(f"{prefix}.linear1", 16, c)
        s.linear(f"{prefix}.linear2", c, 16)
        s.norm(f"{prefix}.norm1", c)
        s.norm(f"{prefix}.norm2", c)
    s.linear("subject_wise_linear.0", T, T)
    return s.convolutions()


def signals(subject, **changes):
    return SignalSpec(**{"subject": subject, "modality": "eeg", "units": "V", "n_channels": len(NAMES), "n_times": T,
                         "sfreq": 250.0, "ch_names": NAMES, **changes})


def decoder(*subjects, time=False, published_slice=True, joint=False, **changes):
    """Return a small decoder with weights of its own."""
    torch.manual_seed(9)
    specs = {s: signals(s, **changes) for s in subjects or ("sub-08",)}
    encoder = ATMTime(specs=specs, feedforward=16, n_filters=8) if time else ATM(
        specs=specs, feedforward=16, n_filters=8, published_slice=published_slice, value_embedding=not joint)
    head = Projector(hidden=encoder.hidden, spec=EmbeddingSpec(name="clip", shape=(D,)), space="clip",
                     losses={"info_nce": InfoNCE(normalise="legacy_atm")})
    return DeepDecoder(adapter=SubjectToken(specs=specs, grid=encoder.grid, token=not time, linear=joint),
                       encoder=encoder, heads={"clip_projector": head},
                       training={"max_epochs": 1, "accelerator": "cpu"})


def layout(**options):
    return ATMWeights(**{"channels": NAMES, **options})


def saved(path, state):
    torch.save(state, path)
    return path


def lin(s, x, key):
    return x @ s[f"{key}.weight"].flatten(1).T + s[f"{key}.bias"]


def norm(s, x, key):
    return F.layer_norm(x, x.shape[-1:], s[f"{key}.weight"], s[f"{key}.bias"])


def plain_tail(s, x):
    """Convolutions, projection and projector, in the published order, from the state dict alone."""
    def batch_norm(y, key):
        mean, var = (s[f"{key}.running_{k}"][:, None, None] for k in ("mean", "var"))
        return (y - mean) / torch.sqrt(var + 1e-5) * s[f"{key}.weight"][:, None, None] + s[f"{key}.bias"][:, None, None]

    key = "enc_eeg.0.tsconv"
    y = F.avg_pool2d(F.conv2d(x.unsqueeze(1), s[f"{key}.0.weight"], s[f"{key}.0.bias"]), (1, 51), (1, 5))
    y = F.conv2d(F.elu(batch_norm(y, f"{key}.2")), s[f"{key}.4.weight"], s[f"{key}.4.bias"])
    y = F.conv2d(F.elu(batch_norm(y, f"{key}.5")), s["enc_eeg.0.projection.0.weight"],
                 s["enc_eeg.0.projection.0.bias"])
    y = lin(s, y.permute(0, 2, 3, 1).flatten(1), "proj_eeg.0")  # b e h w -> b (h w e)
    return norm(s, y + lin(s, F.gelu(y), "proj_eeg.1.fn.1"), "proj_eeg.2")


def plain_upstream(s, x, *, subject, first):
    """The upstream model written out, a trial of subject number `subject`."""
    s = {k: v.double() for k, v in s.items()}
    table = s[f"{E}.subject_embedding.subject_embedding.weight"]
    token = table[subject] if subject < len(table) else s[f"{E}.subject_embedding.shared_embedding"][0]
    value = f"{E}.value_embedding" + (f".{subject}" if f"{E}.value_embedding.weight" not in s else "")
    tokens = torch.cat([token.expand(len(x), 1, -1), lin(s, x, value)], dim=1)
    q, k, v = (lin(s, tokens, f"{A}.attention.{n}_projection").unflatten(-1, (4, 22)) for n in
               ("query", "key", "value"))
    share = torch.softmax(torch.einsum("blhe,bshe->bhls", q, k) / math.sqrt(22), dim=-1)
    mixed = torch.einsum("bhls,bshe->blhe", share, v).flatten(2)
    y = norm(s, tokens + lin(s, mixed, f"{A}.attention.out_projection"), f"{A}.norm1")
    kind = "conv" if f"{A}.conv1.weight" in s else "linear"
    y = norm(s, y + lin(s, F.gelu(lin(s, y, f"{A}.{kind}1")), f"{A}.{kind}2"), f"{A}.norm2")
    y = norm(s, y, "encoder.encoder.norm")
    return plain_tail(s, y[:, :len(NAMES)] if first else y[:, 1:])


def plain_earlier(s, x):
    """The earlier model written out."""
    s, key = {k: v.double() for k, v in s.items()}, "attention_model.transformer_encoder.layers.0"
    steps = x.transpose(1, 2) + s["attention_model.pos_encoder.pe"][:T]
    q, k, v = (steps @ s[f"{key}.self_attn.in_proj_weight"].T + s[f"{key}.self_attn.in_proj_bias"]).chunk(3, dim=-1)
    share = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(len(NAMES)), dim=-1)
    y = norm(s, steps + lin(s, share @ v, f"{key}.self_attn.out_proj"), f"{key}.norm1")
    y = norm(s, y + lin(s, lin(s, y, f"{key}.linear1").clamp(min=0), f"{key}.linear2"), f"{key}.norm2")
    return plain_tail(s, lin(s, y.transpose(1, 2), "subject_wise_linear.0"))


def outputs(ours, xs):
    """Return the decoded embeddings of a batch with some trials of each subject, by subject."""
    place = {s: torch.arange(i * len(x), (i + 1) * len(x)) for i, (s, x) in enumerate(xs.items())}
    batch = BrainBatch(signals={s: x.float() for s, x in xs.items()}, rows=place,
                       stimulus_ids=[str(i) for i in range(sum(map(len, xs.values())))])
    with torch.no_grad():
        decoded = ours.module.eval()(batch)[0]["clip_projector"]
    return {s: decoded[rows].double() for s, rows in place.items()}


@pytest.mark.parametrize(("rows", "conv", "first", "joint"), [
    (10, False, True, False), (10, True, False, False), (2, True, True, False), (10, False, True, True)])
def test_upstream_files_give_the_outputs_of_a_plain_evaluation(tmp_path, rows, conv, first, joint):
    state, numbers = upstream(rows=rows, conv=conv, joint=joint), {"sub-01": 1, "sub-08": 8}
    if not joint:
        numbers["sub-10"] = 10  # beyond both tables
    ours = decoder(*numbers, published_slice=first, joint=joint)
    report = layout(published_slice=first).load(ours, saved(tmp_path / "40.pth", state))
    xs = {s: torch.randn(3, len(NAMES), T, generator=torch.Generator().manual_seed(n)).double()
          for s, n in numbers.items()}
    for s, got in outputs(ours, xs).items():
        expected = plain_upstream(state, xs[s], subject=numbers[s], first=first)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert report["layout"] == "upstream"
    assert report["subjects"] == {s: n if n < rows else "shared" for s, n in numbers.items()}
    assert ours.module.heads["clip_projector"].losses["info_nce"].scale.item() == pytest.approx(2.7)
    dead = {"subject_wise_linear.0.weight", "subject_wise_linear.0.bias", "subject_wise_linear.1.weight",
            "subject_wise_linear.1.bias", f"{E}.position_embedding.pe", f"{E}.temporal_embedding.embed.weight",
            f"{E}.mask_token", f"{E}.subject_embedding.mask_embedding"}
    others = {f"{E}.value_embedding.{i}.{p}" for i in range(10) if i not in (1, 8) for p in ("weight", "bias")}
    table = {f"{E}.subject_embedding.subject_embedding.weight[{i}]" for i in range(rows) if i not in numbers.values()}
    assert set(report["left_out"]) == dead | table | (others if joint else set())
    assert report["missing"] == report["unexpected"] == report["shapes"] == []
    assert len(report["matched"]) == len(ours.module.state_dict())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_earlier_files_give_the_outputs_of_a_plain_evaluation(tmp_path, prefix):
    state, ours = earlier(), decoder("sub-08", time=True)
    report = layout().load(ours, saved(tmp_path / "40.pth", {prefix + k: v for k, v in state.items()}))
    x = torch.randn(4, len(NAMES), T).double()
    torch.testing.assert_close(outputs(ours, {"sub-08": x})["sub-08"], plain_earlier(state, x), atol=1e-5, rtol=1e-5)
    assert report["layout"] == "earlier"
    assert set(report["left_out"]) == {k for k in state if k.startswith("attention_model.encoder_layer.")}
    assert set(report["matched"].values()) | set(report["left_out"]) == set(state)


def test_files_that_do_not_fit_are_refused_with_every_difference(tmp_path):
    path, state = tmp_path / "40.pth", upstream()

    def refused(match, made=None, ours=None, **options):
        if made is not None:
            saved(path, made)
        with pytest.raises(ValueError, match=match):
            layout(**options).load(ours or decoder(), path)

    refused(r"missing: proj_eeg\.2\.bias", {k: v for k, v in state.items() if k != "proj_eeg.2.bias"})
    refused(r"(?s)unexpected: proj_img\.0\.weight.*unexpected: extra", {**state, "proj_img.0.weight": torch.zeros(2, 2),
                                                                        "extra": torch.zeros(1)})
    refused(r"(?s)shape of enc_eeg\.0\.tsconv\.0\.weight: \(8, 1, 1, 25\) here, \(8, 1, 1, 5\) there.*written with: "
            r"encoder\.kernel=5 \(here 25\)", {**state, "enc_eeg.0.tsconv.0.weight": torch.zeros(8, 1, 1, 5)})
    refused(r"(?s)missing: encoder\.enc_embedding\.value_embedding\.weight.*adapter\.linear=true "
            r"encoder\.value_embedding=false", upstream(joint=True))
    refused(r"got NaN or infinity in \['logit_scale'\]", {**state, "logit_scale": torch.tensor(math.nan)})
    refused(r"a decoder of the earlier layout.*got ATM\. Choose encoder=atm_time", earlier())
    refused(r"a decoder of the upstream layout.*got ATMTime\. Choose encoder=atm\.", state,
            decoder(time=True))
    refused(r"expected encoder\.published_slice=False as layout\.published_slice, got True", state,
            published_slice=False)
    refused("expected a bare state dict, names -> tensors, got dict", {"epoch": 1, "model_state_dict": state})
    refused("cannot be read without running code", {"a": SimpleNamespace()})
    with pytest.raises(ValueError, match="expected a published checkpoint, got nothing"):
        layout().load(decoder(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize(("changes", "match"), [
    ({"ch_names": ("Pz", "PO4", "PO3", "O1", "O2")}, r"5 channels .* got 5 \(another order: \[\('PO3', 'PO4'\)"),
    ({"ch_names": NAMES[:4], "n_channels": 4}, r"got 4 \(missing \['O2'\], other \[\]\)\. Select the same ones"),
    ({"ch_names": (*NAMES[:4], "Fz")}, r"got 5 \(missing \['O2'\], other \['Fz'\]\)"),
    ({"sfreq": 200.0}, "subject 'sub-08': expected 250 Hz, got 200.0"),
    ({"n_times": 100}, r"expected 90 samples from 0 s on, got 100 from 0 s on\. Set data\.window"),
    ({"tmin": -0.2}, "expected 90 samples from 0 s on, got 90 from -0.2 s on")])
@pytest.mark.parametrize("time", [False, True])
def test_signals_that_are_not_those_of_the_weights_are_refused(tmp_path, changes, match, time):
    path = saved(tmp_path / "40.pth", earlier() if time else upstream())
    with pytest.raises(ValueError, match=match):
        layout().load(decoder("sub-08", time=time, **changes), path)


def test_the_layout_names_the_channels_of_the_study():
    told = yaml.safe_load((Path(__file__).parents[2] / "configs/layout/atm.yaml").read_text())["channels"]
    assert tuple(told) == tuple(EEG_CHANNELS)


STAGE = ["experiment=scenes_eeg/atm", "layout=atm", "study.n_subjects=2", "study.n_train=24", "study.n_val=8",
         "study.n_sessions=1", "study.repetitions={train:1,val:1,test:2}", "data.min_trials=5", "data.scale=subject",
         "data.noise_normalise=false", "data.clip=null", "data.window=[0.0,0.356]", "data.channels=[Pz,PO3,PO4,O1,O2]",
         "layout.channels=[Pz,PO3,PO4,O1,O2]", "space=[pixels]", "space.pixels.size=2", "head=[clip_atm]",
         "head.clip_projector.space=pixels", "encoder={bin:1,feedforward:16,n_filters:8,kernel:25,pool:51,stride:5,"
         "published_slice:true}", "trainer.accelerator=cpu", "conditions=[decoded]", "name=taken"]


def test_a_published_file_becomes_a_run_whose_predictions_are_those_of_its_weights(composed, tmp_path):
    state = upstream()
    cfg = composed("import_weights", *STAGE, f"weights={saved(tmp_path / '40.pth', state)}")
    prepare(cfg)
    embed(cfg)
    run = import_weights(cfg)
    report = json.loads((run / "fold-0_seed-0" / "imported.json").read_text())
    assert (report["layout"], report["subjects"], report["missing"]) == ("upstream", {"sub-01": 1, "sub-02": 2}, [])
    assert f"{E}.position_embedding.pe" in report["left_out"]
    predict(cfg)
    found = Predictions(tmp_path / "outputs/predictions/taken/decoded")
    # from the files alone: channels by name, window, z-scores of the training trials, mean of the repetitions
    study = next((tmp_path / "outputs/prepared").rglob("spec.json")).parent
    specs, trials = json.loads((study / "spec.json").read_text())["subjects"], pd.read_parquet(study / "trials.parquet")
    for number, subject in ((1, "sub-01"), (2, "sub-02")):
        names, mine = specs[subject]["ch_names"], trials[trials["subject"] == subject].sort_values("row")
        x = np.load(study / f"signals_{subject}.npy").astype(float)[:, [names.index(name) for name in NAMES]]
        start = round(-specs[subject]["tmin"] * 250)
        x = x[:, :, start:start + T]
        training = x[(mine["split"] == "train").to_numpy()]
        x = (x - training.mean(axis=(0, 2), keepdims=True)) / training.std(axis=(0, 2), keepdims=True)
        rows = found.rows[found.rows["subject"] == subject]
        mean = [x[(mine["stimulus_id"] == s).to_numpy()].mean(axis=0) for s in rows["stimulus_id"]]
        expected = plain_upstream(state, torch.from_numpy(np.stack(mean)), subject=number, first=True)
        got = found.embeddings("pixels", rows.index.to_numpy()).reshape(len(rows), -1)
        np.testing.assert_allclose(got, expected, atol=2e-3)
        assert np.std(expected.numpy(), axis=0).mean() > 0.1, "predictions differ from stimulus to stimulus"
    cfg.layout.channels, cfg.name = ["Pz", "PO4", "PO3", "O1", "O2"], "moved"
    with pytest.raises(ValueError, match=r"weights .*40\.pth, subject 'sub-01': expected the 5 channels of the weights "
                                         r"in their order, got 5 \(another order: \[\('PO4', 'PO3'\)"):
        import_weights(cfg)
