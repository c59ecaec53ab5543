"""ATM-S in both layouts and its prior (Li et al. 2024, arXiv:2403.07721) beside a plain evaluation.

EEG notes, sections 2.1 and 2.2 (layers), 3 (losses), 5.1 (prior).
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from beside import (
    agree,
    batch_of,
    built,
    clip_loss,
    differ,
    differences,
    gelu,
    layer_norm,
    linear,
    projector,
    temporal_spatial,
    unit,
)
from torch import nn

from brain2img.priors.networks import EmbeddingUNet

SIZE = [8, 90]
SPACES = {"clip": [12], "clip_text": [12]}
SMALL = {"atm_s_joint": {"signals": {"sub-01": SIZE, "sub-02": SIZE}, "spaces": SPACES},
         "atm_s_time_sub08": {"signals": {"sub-08": SIZE}, "spaces": SPACES}}


def attention(P, x, *, names, n_heads):
    """Scaled products of all tokens, heads side by side."""
    q, k, v = (linear(P, name, x) for name in names)
    width = q.shape[-1] // n_heads
    mixed = [((q[..., h] @ k[..., h].transpose(1, 2)) / math.sqrt(width)).softmax(-1) @ v[..., h]
             for h in (slice(i * width, (i + 1) * width) for i in range(n_heads))]
    return torch.cat(mixed, -1)


def losses(P, y, targets):
    """0.99 and 0.01 of the contrast; the learned logarithm itself is the factor, and e is not normalised."""
    scale = P["heads.clip_projector.losses.info_nce.scale"]
    fixed = math.log(1 / 0.07)
    return (0.99 * clip_loss(y, unit(targets["clip"]), scale)
            + 0.01 * clip_loss(y, unit(targets["clip_text"]), fixed))


def channels_as_tokens(P, signals, targets, training):
    e, rows = "encoder.attn_layer", []
    for subject, x in signals.items():
        token = P[f"adapter.tokens.{subject}"].expand(len(x), 1, -1)
        rows.append(torch.cat([token, linear(P, "encoder.value_embedding", x)], 1))
    x = torch.cat(rows)
    mixed = attention(P, x, names=[f"{e}.attention.{n}_projection" for n in ("query", "key", "value")], n_heads=4)
    x = layer_norm(P, f"{e}.norm1", x + linear(P, f"{e}.attention.out_projection", mixed))
    x = layer_norm(P, f"{e}.norm2", x + linear(P, f"{e}.linear2", gelu(linear(P, f"{e}.linear1", x))))
    y = projector(P, temporal_spatial(P, layer_norm(P, "encoder.norm", x)[:, 1:], training))
    return {"clip_projector": y}, losses(P, y, targets)


def steps_as_tokens(P, signals, targets, training):
    x = torch.cat(list(signals.values()))
    n_channels, n_times = x.shape[1:]
    code = torch.zeros(n_times, n_channels, dtype=x.dtype)
    for i in range(n_channels):
        angle = torch.arange(n_times, dtype=x.dtype) * 10000.0 ** (-(i - i % 2) / n_channels)
        code[:, i] = angle.cos() if i % 2 else angle.sin()
    e = "encoder.attn_layer"
    x = x.transpose(1, 2) + code
    w, b = P[f"{e}.self_attn.in_proj_weight"].chunk(3), P[f"{e}.self_attn.in_proj_bias"].chunk(3)
    parts = {f"{n}.{kind}": value for n, *both in zip("qkv", w, b, strict=True)
             for kind, value in zip(("weight", "bias"), both, strict=True)}
    mixed = attention(parts, x, names="qkv", n_heads=1)
    x = layer_norm(P, f"{e}.norm1", x + linear(P, f"{e}.self_attn.out_proj", mixed))
    x = layer_norm(P, f"{e}.norm2", x + linear(P, f"{e}.linear2", linear(P, f"{e}.linear1", x).relu()))
    x = linear(P, "encoder.subject_wise_linear", x.transpose(1, 2))
    y = projector(P, temporal_spatial(P, x, training))
    return {"clip_projector": y}, losses(P, y, targets)


ROWS = [("atm_s_joint", channels_as_tokens), ("atm_s_time_sub08", steps_as_tokens)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("row", "reference"), ROWS)
def test_small(composed, row, reference, training):
    module, specs, embeddings = built(composed, f"published/{row}", **SMALL[row])
    agree(differences(module, batch_of(specs, embeddings), reference, training=training))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "reference"), ROWS)
def test_published_size(composed, row, reference):
    module, specs, embeddings = built(composed, f"published/{row}")
    agree(differences(module, batch_of(specs, embeddings, n=4), reference, training=True))


def test_an_exponential_scale_and_a_missing_scale_of_attention_are_caught(composed, monkeypatch):
    module, specs, embeddings = built(composed, "published/atm_s_joint", **SMALL["atm_s_joint"])
    batch = batch_of(specs, embeddings)
    agree(differences(module, batch, channels_as_tokens, training=False))
    with monkeypatch.context() as patch:
        patch.setattr(type(module.heads["clip_projector"].losses["info_nce"]), "factor",
                      property(lambda self: self.scale.exp()))
        differ(differences(module, batch, channels_as_tokens, training=False), in_outputs=False)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, dropout_p: (q @ k.mT).softmax(-1) @ v)
        differ(differences(module, batch, channels_as_tokens, training=False), in_outputs=True)
    module, specs, embeddings = built(composed, "published/atm_s_time_sub08", **SMALL["atm_s_time_sub08"])
    module.encoder.positions.zero_()
    differ(differences(module, batch_of(specs, embeddings), steps_as_tokens, training=False), in_outputs=True)


# --- the prior ------------------------------------------------------------------------------------------------------

def prior(P, x, t, condition, keep, *, n_stages, time_width):
    """Encoder and decoder stages with additive skips; every stage adds the time and the condition."""
    rate = torch.exp(-math.log(10000) * torch.arange(time_width // 2, dtype=x.dtype) / (time_width // 2))
    angle = t[:, None] * rate
    code = torch.cat([angle.cos(), angle.sin()], 1)

    def layer(name, y):
        return F.silu(layer_norm(P, f"{name}.1", linear(P, f"{name}.0", y)))

    def entering(side, i, y):
        time = linear(P, f"{side}_time_embedding.{i}.linear_2",
                      F.silu(linear(P, f"{side}_time_embedding.{i}.linear_1", code)))
        return y + time + keep * linear(P, f"{side}_cond_embedding.{i}", condition)

    x, skips = layer("input_layer", x), []
    for i in range(n_stages):
        skips.append(x)
        x = layer(f"encode_layers.{i}", entering("encode", i, x))
    for i in range(n_stages):
        x = layer(f"decode_layers.{i}", entering("decode", i, x)) + skips[-1 - i]
    return linear(P, "output_layer", x)


def prior_differences(network, *, size, n_stages, time_width, n=5):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.ndim > 1:
                p.normal_(0, p.shape[1] ** -0.5)
            else:
                p.normal_(float(name.endswith("weight")), 0.3)
    network.eval()
    x, condition, noise = (torch.randn(n, size, requires_grad=True) for _ in range(3))
    t, keep = torch.randint(0, 1000, (n,)), (torch.arange(n) % 2).float()[:, None]
    y = network(x, t, condition, keep)
    P = {k: p.detach().double().requires_grad_() for k, p in network.named_parameters()}
    wide = [v.detach().double().requires_grad_() for v in (x, condition)]
    expected = prior(P, wide[0], t.double(), wide[1], keep.double(), n_stages=n_stages, time_width=time_width)
    loss, total = (y - noise).square().mean(), (expected - noise.detach().double()).square().mean()
    ours = torch.autograd.grad(loss, [*network.parameters(), x, condition])
    theirs = torch.autograd.grad(total, [*P.values(), *wide])

    def far(a, b):
        return float((a.double() - b).abs().max() / b.abs().max())

    return {"output": far(y.detach(), expected.detach()), "loss": far(loss.detach(), total.detach()),
            **{f"gradient {name}": far(a, b) for name, a, b in zip([*P, "x", "condition"], ours, theirs, strict=True)}}


def test_the_prior_at_small_size_and_another_activation_is_caught():
    network = EmbeddingUNet(shape=(12,), hidden=(12, 8, 6), time_width=8)
    agree(prior_differences(network, size=12, n_stages=2, time_width=8))
    network.decode_layers[0].append(nn.Tanh())
    differ(prior_differences(network, size=12, n_stages=2, time_width=8), in_outputs=True)


@pytest.mark.slow
def test_the_prior_at_published_size():
    agree(prior_differences(EmbeddingUNet(shape=(1024,)), size=1024, n_stages=4, time_width=512))
