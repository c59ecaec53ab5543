"""brainmagick (Défossez et al. 2023, arXiv:2208.12266) and SimpleConvTimeAgg beside a plain evaluation.

EEG notes, sections 2.5 and 2.6 (layers), 3 (losses).
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from beside import agree, batch_norm, batch_of, built, cross_entropy, differ, differences, gelu, unit

from brain2img.adapters.spatial_attention import layout
from brain2img.encoders.simple_conv import SimpleConv

WIDTHS = ("encoder.hidden=10", "encoder.channels=6", "adapter.n_virtual=6")
SMALL = {
    "brainmagick_gwilliams": ((*WIDTHS, "encoder.out=8", "adapter.width=32"),
                              {"signals": {"s01": [9, 40], "s02": [7, 40]} | {f"s{i:02d}": None for i in range(3, 28)},
                               "spaces": {"clip": [40, 8]}}),
    "simple_conv_time_agg": ((*WIDTHS, "encoder.out=8", "adapter.width=54"),
                             {"signals": {"sub-01": [9, 40], "sub-02": [9, 40]}, "spaces": {"dino": [5]}})}


def fourier(positions, n_dims, width):
    """Cosines and sines of 2 pi (k x + l y + ...) / 1.4, positions scaled to [0, 1] and moved by 0.2."""
    x = torch.as_tensor(positions, dtype=torch.double)
    x = (x - x.min(0).values) / (x.max(0).values - x.min(0).values) + 0.2
    k = torch.arange(round((width / 2) ** (1 / n_dims)), dtype=torch.double)
    frequencies = torch.cartesian_prod(*[k] * n_dims)
    phase = 2 * math.pi * x @ frequencies.T / 1.4
    return torch.cat([phase.cos(), phase.sin()], 1)


def adapted(P, signals, specs, *, n_dims):
    rows = []
    for subject, x in signals.items():
        places = specs[subject].positions
        embedding = fourier(layout(places) if n_dims == 2 else places, n_dims, P["adapter.heads"].shape[1])
        y = (P["adapter.heads"] @ embedding.T).softmax(1) @ x
        y = F.conv1d(y, P["adapter.initial_linear.0.weight"], P["adapter.initial_linear.0.bias"])
        if f"adapter.matrices.{subject}" in P:
            y = torch.einsum("bct,cd->bdt", y, P[f"adapter.matrices.{subject}"])
        rows.append(y)
    return torch.cat(rows)


def convolutions(P, x, training, *, depth, bare_last):
    for k in range(depth):
        dilation, name = 2 ** (k % 5), f"encoder.sequence.{k}"
        y = F.conv1d(x, P[f"{name}.0.weight"], P[f"{name}.0.bias"], padding=dilation, dilation=dilation)
        if not (bare_last and k == depth - 1):
            y = gelu(batch_norm(P, f"{name}.1", y, training))
        x = x + y if x.shape == y.shape else y
        if k % 2:
            g = F.conv1d(x, P[f"encoder.glus.{k}.0.weight"], P[f"encoder.glus.{k}.0.bias"], padding=1)
            x = g[:, :g.shape[1] // 2] * torch.sigmoid(g[:, g.shape[1] // 2:])
    return x


def contrast(estimate, candidates):
    """From brain to stimulus alone, without temperature, candidates alone normalised."""
    return cross_entropy(estimate.flatten(1) @ unit(candidates.flatten(1)).T)


def brainmagick(specs):
    def evaluate(P, signals, targets, training):
        x = convolutions(P, adapted(P, signals, specs, n_dims=2), training, depth=10, bare_last=False)
        x = gelu(F.conv1d(x, P["encoder.final.0.weight"], P["encoder.final.0.bias"]))
        x = F.conv_transpose1d(x, P["encoder.final.2.weight"], P["encoder.final.2.bias"])
        y = x.transpose(1, 2)  # ours hands on time first
        return {"clip_encoder_output": y}, contrast(y, targets["clip"])
    return evaluate


def time_aggregated(specs):
    def evaluate(P, signals, targets, training):
        x = convolutions(P, adapted(P, signals, specs, n_dims=3), training, depth=4, bare_last=True)
        x = (x * P["encoder.time.weight"][0]).sum(-1) + P["encoder.time.bias"]
        y = x @ P["heads.dino_linear.linear.weight"].T + P["heads.dino_linear.linear.bias"]
        return {"dino_linear": y}, contrast(y, targets["dino"])
    return evaluate


ROWS = [("brainmagick_gwilliams", brainmagick), ("simple_conv_time_agg", time_aggregated)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("row", "reference"), ROWS)
def test_small(composed, row, reference, training):
    overrides, facts = SMALL[row]
    module, specs, embeddings = built(composed, f"published/{row}", *overrides, **facts)
    agree(differences(module, batch_of(specs, embeddings), reference(specs), training=training))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "reference"), ROWS)
def test_published_size(composed, row, reference):
    few = {"signals": {"s01": [208, 360], "s02": [208, 360]}} if row.startswith("brainmagick") else {}
    module, specs, embeddings = built(composed, f"published/{row}", **few)
    agree(differences(module, batch_of(specs, embeddings, n=4), reference(specs), training=True))


@pytest.mark.parametrize(("row", "reference"), ROWS)
def test_a_missing_residual_and_a_wrong_temperature_are_caught(composed, monkeypatch, row, reference):
    overrides, facts = SMALL[row]
    module, specs, embeddings = built(composed, f"published/{row}", *overrides, **facts)
    batch = batch_of(specs, embeddings)
    (_, _, loss), = module.named_losses()
    with monkeypatch.context() as patch:
        patch.setattr(loss.scale, "data", loss.scale.data + 0.5)
        differ(differences(module, batch, reference(specs), training=False), in_outputs=False)
    whole = SimpleConv._layer
    monkeypatch.setattr(SimpleConv, "_layer", lambda self, x, layers: (
        y - x if (y := whole(self, x, layers)).shape == x.shape else y))
    differ(differences(module, batch, reference(specs), training=False), in_outputs=True)
