"""Published MindBridge weights: outputs and losses against a plain evaluation of the same layers; files that differ."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from brain2img.adapters.mindbridge import MindBridge
from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.mindbridge_weights import MindBridgeWeights
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.losses import MSE, SoftCLIP
from brain2img.records import BrainBatch, EmbeddingSpec, Grid, SignalSpec
from brain2img.stages.build import _parts, plain

POOL, WIDTH, NARROW, IMAGE, TEXT = 24, 12, 3, (5, 4), (3, 4)
VOXELS = {"subj01": 50, "subj02": 41, "subj07": 60}


def published_state(numbers=("1", "2", "7"), *, n_blocks=4, builders=True, pool=POOL, seed=0):
    """Return random weights under the names, and in the order, of the published files."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def linear(key, n_out, n_in):
        state[f"{key}.weight"] = torch.randn(n_out, n_in, generator=generator) / math.sqrt(n_in)
        state[f"{key}.bias"] = 0.1 * torch.randn(n_out, generator=generator)

    def norm(key, n):
        state[f"{key}.weight"] = 1 + 0.1 * torch.randn(n, generator=generator)
        state[f"{key}.bias"] = 0.1 * torch.randn(n, generator=generator)

    for s in numbers:
        linear(f"embedder.{s}.0.down_proj", NARROW, pool)
        linear(f"embedder.{s}.0.up_proj", pool, NARROW)
        linear(f"embedder.{s}.1", WIDTH, pool)
        norm(f"embedder.{s}.2", WIDTH)
    for k in range(n_blocks):
        linear(f"translator.mlp.{k}.0", WIDTH, WIDTH)
        norm(f"translator.mlp.{k}.1", WIDTH)
    linear("head_image", math.prod(IMAGE), WIDTH)
    linear("head_text", math.prod(TEXT), WIDTH)
    for s in numbers if builders else ():
        linear(f"builder.{s}.0", pool, WIDTH)
        norm(f"builder.{s}.1", pool)
        linear(f"builder.{s}.3.down_proj", NARROW, pool)
        linear(f"builder.{s}.3.up_proj", pool, NARROW)
    return state


def decoder(subjects=tuple(VOXELS), *, n_blocks=4, pool=POOL, auxiliary=1.0, **changes):
    """Return a small decoder with random weights of its own."""
    torch.manual_seed(9)
    specs = {s: SignalSpec(subject=s, modality="fmri", units="a.u.", n_channels=VOXELS.get(s, 45), n_times=1)
             for s in subjects}
    heads = {f"{space}_linear": LinearHead(
        hidden=(1, WIDTH), spec=EmbeddingSpec(name=space, shape=shape), space=space,
        losses={"soft_clip": SoftCLIP(temperature=0.005), "mse": MSE(weight=10_000, normalise=True)})
        for space, shape in (("clip", IMAGE), ("clip_text", TEXT))}
    return DeepDecoder(
        adapter=MindBridge(specs=specs, grid=Grid(WIDTH, 1), pool_size=pool, bottleneck=NARROW,
                           reconstruction=auxiliary, cycle=auxiliary, **changes),
        encoder=ResidualMLP(specs={}, width=WIDTH, n_blocks=n_blocks), heads=heads,
        training={"max_epochs": 1, "accelerator": "cpu"})


def layout(**options):
    return MindBridgeWeights(heads={"clip_linear": "head_image", "clip_text_linear": "head_text"}, **options)


def saved(path, state, **beside):
    torch.save({"epoch": 600, "model_state_dict": state, **beside}, path)
    return path


def shuffled_batch(counts, seed=0):
    """Return unequal numbers of trials of the subjects, in shuffled order."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation([s for s, n in counts.items() for _ in range(n)])
    rows = {s: torch.from_numpy(np.flatnonzero(owner == s)) for s in counts}
    generator = torch.Generator().manual_seed(seed)
    signals = {s: torch.randn(len(r), VOXELS[s], 1, generator=generator) for s, r in rows.items()}
    targets = {"clip": torch.randn(len(owner), *IMAGE, generator=generator),
               "clip_text": torch.randn(len(owner), *TEXT, generator=generator)}
    return BrainBatch(signals=signals, rows=rows, stimulus_ids=[f"s{i}" for i in range(len(owner))], targets=targets)


class Plain:
    """The published layers and losses written out, trial by trial, from a state dict alone (evaluation mode)."""

    def __init__(self, state):
        self.state = {key: value.double() for key, value in state.items()}

    def linear(self, x, key):
        return x @ self.state[f"{key}.weight"].T + self.state[f"{key}.bias"]

    def norm(self, x, key):
        centred = x - x.mean()
        return centred / torch.sqrt((centred**2).mean() + 1e-5) * self.state[f"{key}.weight"] + self.state[
            f"{key}.bias"]

    def gelu(self, x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def adapter(self, x, key):
        return x + self.linear(self.linear(x, f"{key}.down_proj").clamp(min=0), f"{key}.up_proj")

    def pool(self, voxels):
        n = len(voxels)
        return torch.stack([voxels[k * n // POOL:math.ceil((k + 1) * n / POOL)].max() for k in range(POOL)])

    def embed(self, pooled, s):
        x = self.linear(self.adapter(pooled, f"embedder.{s}.0"), f"embedder.{s}.1")
        return self.gelu(self.norm(x, f"embedder.{s}.2"))

    def build(self, embedded, s):
        x = self.gelu(self.norm(self.linear(embedded, f"builder.{s}.0"), f"builder.{s}.1"))
        return self.adapter(x, f"builder.{s}.3")

    def heads(self, x):
        for k in range(4):
            x = x + self.gelu(self.norm(self.linear(x, f"translator.mlp.{k}.0"), f"translator.mlp.{k}.1"))
        return self.linear(x, "head_image"), self.linear(x, "head_text")

    @staticmethod
    def soft_clip(p, t, temperature=0.005):
        def softmax(rows):
            e = torch.exp(rows - rows.max(dim=1, keepdim=True).values)
            return e / e.sum(dim=1, keepdim=True)

        q = softmax(t @ t.T / temperature)
        logits = p @ t.T / temperature
        forth, back = (-(q * torch.log(softmax(x) + 1e-300)).sum(dim=1).mean() for x in (logits, logits.T))
        return (forth + back) / 2


@pytest.mark.parametrize(("subjects", "counts"), [
    (("subj01",), {"subj01": 6}), (tuple(VOXELS), {"subj07": 2, "subj01": 7, "subj02": 4})],
    ids=["MindSingle", "MindBridge"])
def test_outputs_and_losses_equal_a_plain_evaluation_of_the_published_layers(tmp_path, subjects, counts):
    numbers = [str(int(s[-2:])) for s in subjects]
    single = len(subjects) == 1
    state = published_state(numbers, builders=not single)
    assert len(state) == (28 if single else 68)
    ours = decoder(subjects, auxiliary=0.0 if single else 1.0)
    report = layout().load(ours, saved(tmp_path / "last.pth", state))
    assert len(report["matched"]) == len(state)
    plain_model, batch = Plain(state), shuffled_batch(counts)
    with torch.no_grad():
        outputs, features = ours.module(batch)
        terms, total = ours.module._head_losses(outputs, batch, None)
        auxiliary = ours.module.adapter.auxiliary_losses(batch, features)
    pooled = {s: [plain_model.pool(x[:, 0].double()) for x in batch.signals[s]] for s in counts}
    embedded = {s: torch.stack([plain_model.embed(x, str(int(s[-2:]))) for x in pooled[s]]) for s in counts}
    expected = {"clip_linear": torch.zeros(len(batch), math.prod(IMAGE), dtype=torch.float64),
                "clip_text_linear": torch.zeros(len(batch), math.prod(TEXT), dtype=torch.float64)}
    for s, rows in batch.rows.items():  # no row may reach another subject's layers
        for row, e in zip(rows.tolist(), embedded[s], strict=True):
            expected["clip_linear"][row], expected["clip_text_linear"][row] = plain_model.heads(e)
    sums = 0.0
    for name, space in (("clip_linear", "clip"), ("clip_text_linear", "clip_text")):
        torch.testing.assert_close(outputs[name].flatten(1).double(), expected[name], atol=1e-5, rtol=1e-5)
        p, t = (x / x.norm(dim=1, keepdim=True) for x in (expected[name], batch.targets[space].flatten(1).double()))
        wanted = {"soft_clip": plain_model.soft_clip(p, t), "mse": ((p - t) ** 2).mean()}
        for key, value in wanted.items():
            torch.testing.assert_close(terms[f"{name}/{key}"].double(), value, atol=1e-5, rtol=1e-4)
        sums += wanted["soft_clip"] + 10_000 * wanted["mse"]
    torch.testing.assert_close(total.double(), sums, atol=1e-4, rtol=1e-4)
    if single:
        assert auxiliary == {}
        return
    errors = [((plain_model.build(e, str(int(s[-2:]))) - x) ** 2).mean()
              for s in counts for e, x in zip(embedded[s], pooled[s], strict=True)]
    torch.testing.assert_close(auxiliary["reconstruction"].double(), torch.stack(errors).mean(), atol=1e-5, rtol=1e-5)
    cycles = []
    for a in counts:
        for b in set(counts) - {a}:
            n = str(int(b[-2:]))
            back = torch.stack([plain_model.embed(plain_model.build(e, n), n) for e in embedded[a]])
            cycles.append(((back - embedded[a]) ** 2).mean().item())
    assert min(abs(auxiliary["cycle"].item() - value) for value in cycles) < 1e-5


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("old", [False, True])
def test_both_layouts_of_file_are_read_and_every_weight_is_taken(tmp_path, prefix, old):
    state = published_state()
    beside = {"optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "lr_scheduler": {"last_epoch": 1},
              "train_losses": [1.0], "val_losses": [2.0], "lrs": [3e-4]} if old else {}
    ours = decoder()
    report = layout().load(ours, saved(tmp_path / "x.pth", {prefix + k: v.half() for k, v in state.items()}, **beside))
    assert (report["layout"], report["epoch"]) == ("before July 2024" if old else "current", 600)
    assert report["subjects"] == {"subj01": "1", "subj02": "2", "subj07": "7"}
    assert report["left_out"] == report["missing"] == report["unexpected"] == report["shapes"] == []
    assert sorted(report["matched"].values()) == sorted(state)
    for key, value in ours.module.state_dict().items():
        torch.testing.assert_close(value, state[report["matched"][key]].half().float(), atol=0, rtol=0)


def test_parts_are_left_out_only_where_they_are_named(tmp_path):
    path = saved(tmp_path / "x.pth", published_state())
    with pytest.raises(ValueError, match=r"(?s)unexpected: embedder\.2\.1\.weight.*layout\.leave_out=\[builder\].*"
                                         r"layout\.leave_out=\[embedder\.2,builder\.2,embedder\.7,builder\.7\]"):
        layout().load(decoder(("subj01",), auxiliary=0.0), path)
    parts = ["builder", "embedder.2", "embedder.7"]
    report = layout(leave_out=parts).load(decoder(("subj01",), auxiliary=0.0), path)
    assert len(report["left_out"]) == 16 * 3 - 8
    assert layout(subjects={"x": "7"}, leave_out=["builder", "embedder.1", "embedder.2"]).load(
        decoder(("x",), auxiliary=0.0), path)["subjects"] == {"x": "7"}


def test_files_that_do_not_fit_are_refused_with_every_difference(tmp_path):
    path, state = tmp_path / "x.pth", published_state()

    def refused(match, made=None, ours=None, options=None, **file):
        if made is not None:
            saved(path, made, **file)
        with pytest.raises(ValueError, match=match):
            layout(**(options or {})).load(decoder() if ours is None else ours, path)

    refused(r"expected subject 'subj05' as number '5' in the file, got a file with \['1', '2', '7'\]", state,
            decoder(("subj01", "subj05")))
    refused(r"(?s)expected the 60 weights.*8 differences.*unexpected: translator\.mlp\.2\.0\.weight.*"
            r"encoder\.n_blocks=4 \(here 2\)", ours=decoder(n_blocks=2))
    refused(r"(?s)missing: translator\.mlp\.3\.0\.weight.*encoder\.n_blocks=3 \(here 4\)", published_state(n_blocks=3))
    renamed = {k.replace("head_text", "head_words"): v for k, v in state.items()}
    refused(r"(?s)missing: head_text\.weight.*missing: head_text\.bias.*unexpected: head_words\.weight", renamed)
    refused(r"(?s)shape of embedder\.1\.1\.weight: \(12, 24\) here, \(12, 30\) there.*"
            r"adapter\.pool_size=30 \(here 24\)", published_state(pool=30))
    refused(r"expected finite values, got NaN or infinity in \['head_image.bias'\]",
            {**state, "head_image.bias": state["head_image.bias"] * float("nan")})
    refused("with 'model_state_dict' and none but .*got the keys .*'code'", state, code=1)
    torch.save(state, path)
    refused(r"got the keys \['builder\.1\.0\.bias'")
    torch.save({"epoch": 1, "model_state_dict": {"a": SimpleNamespace()}}, path)
    refused("cannot be read without running code")
    path.write_bytes(b"no checkpoint")
    refused(r"expected a whole checkpoint, got a truncated or damaged file of 13 bytes \(Unsupported operand")
    with pytest.raises(ValueError, match="expected a published checkpoint, got nothing"):
        layout().load(decoder(), tmp_path / "nowhere")


@pytest.mark.parametrize("counts", [{"subj01": 7, "subj02": 1, "subj07": 4}, {"subj07": 5, "subj01": 1}])
def test_rows_never_reach_another_subjects_adapter(counts):
    ours, batch = decoder(), shuffled_batch(counts, seed=3)
    ours.module.eval()
    with torch.no_grad():
        outputs, _ = ours.module(batch)
        for s, rows in batch.rows.items():
            for place, row in enumerate(rows.tolist()):
                hidden = ours.module.encoder(ours.module.adapter(batch.signals[s][place:place + 1], s))
                torch.testing.assert_close(outputs["clip_linear"][row], ours.module.heads["clip_linear"](hidden, {})[0],
                                           atol=1e-5, rtol=1e-5)
    outputs, _ = ours.module(batch)
    lone = int(batch.rows[next(s for s, n in counts.items() if n == 1)][0])
    outputs["clip_linear"][lone].sum().backward()
    for s in ours.module.adapter.specs:  # the loss of a trial changes its own subject's layers alone
        moved = any(p.grad is not None and p.grad.abs().max() > 0
                    for p in ours.module.adapter.embedder[s].parameters())
        assert moved == (counts.get(s) == 1)


def test_training_on_synthetic_pairs_adds_the_losses_of_the_heads():
    ours, batch = decoder(synthetic=0.5), shuffled_batch({"subj01": 5, "subj02": 3})
    module = ours.module.eval()
    _, features = module(batch)
    torch.manual_seed(1)
    terms, total = module._synthetic_losses(batch, features, None)
    torch.manual_seed(1)
    made, places = module.adapter.synthetic_trials(batch, features)
    decoded = module.heads["clip_linear"](module.encoder(made), {}).flatten(1)
    target = batch.targets["clip"].flatten(1)[places]
    expected = F.mse_loss(F.normalize(decoded, dim=1), F.normalize(target, dim=1))
    torch.testing.assert_close(terms["synthetic/clip_linear/mse"], expected)
    weights = {"soft_clip": 1.0, "mse": 10_000.0}
    torch.testing.assert_close(total, 0.5 * sum(weights[name.split("/")[-1]] * v for name, v in terms.items()))
    assert len(terms) == 4
    assert decoder().module._synthetic_losses(batch, features, None) == ({}, 0.0)


@pytest.mark.parametrize(("experiment", "total"), [
    ("mindbridge_subj01", 561_283_712), ("mindbridge_subj125", 655_783_168), ("mindbridge_subj1257", 693_579_264)])
def test_published_experiments_have_the_published_numbers_of_parameters(composed, experiment, total):
    cfg = composed("train", f"experiment=published/{experiment}")
    published = plain(cfg.published)
    specs = {s: SignalSpec(subject=s, modality="fmri", units="a.u.", n_channels=n, n_times=1)
             for s, n in published["voxels"].items()}
    spaces = {s: EmbeddingSpec(name=s, shape=shape) for s, shape in published["spaces"].items()}
    with torch.device("meta"):
        parts = _parts(OmegaConf.to_container(cfg, resolve=True), SimpleNamespace(specs=specs, target_specs=spaces))

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    adapter, encoder, heads = parts["adapter"], parts["encoder"], parts["heads"]
    assert list(published["voxels"]) == list(cfg.data.subjects)
    first = cfg.data.subjects[0]
    assert count(adapter.embedder[first][0]) == 2_105_472
    assert count(adapter.embedder[first]) == 18_888_832
    assert count(encoder) == 16_801_792
    assert count(heads["clip_linear"]) == 404_423_424
    assert count(heads["clip_text_linear"]) == 121_169_664
    assert count(encoder, *heads.values()) == 542_394_880
    assert count(adapter, encoder, *heads.values()) == total == published["parameters"]
    if len(specs) > 1:
        assert count(adapter.builder["subj01"]) == 18_907_264
        assert sum(p.numel() for p in adapter.parameters_of("subj02")) == 37_796_096
        with torch.device("meta"):
            adapter.add_subject(dataclasses.replace(specs["subj01"], subject="subj03"))
        assert count(adapter, encoder, *heads.values()) == total + 37_796_096
    else:
        assert len(adapter.builder) == 0
