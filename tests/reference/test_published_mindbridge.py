"""MindBridge (Wang et al. 2024, arXiv:2404.07850) beside a plain evaluation: fMRI notes, 2.2 and 2.3."""

from __future__ import annotations

import pytest
import torch
from beside import agree, batch_of, built, differ, differences, gelu, layer_norm, linear, soft_clip, unit

from brain2img.encoders.residual_mlp import ResidualMLP

SMALL = (("adapter.pool_size=32", "adapter.bottleneck=4", "encoder.width=12"),
         {"voxels": {"subj01": 50, "subj02": 41, "subj05": None}, "spaces": {"clip": [3, 4], "clip_text": [2, 5]}})


def bottleneck(P, name, x):
    return x + linear(P, f"{name}.up_proj", linear(P, f"{name}.down_proj", x).relu())


def pooled(x, size):
    """Maximum over the voxels of each of `size` windows."""
    n = x.shape[1]
    return torch.stack([x[:, k * n // size:-(-(k + 1) * n // size)].amax(1) for k in range(size)], 1)


def embedded(P, subject, x):
    e = f"adapter.embedder.{subject}"
    return gelu(layer_norm(P, f"{e}.2", linear(P, f"{e}.1", bottleneck(P, f"{e}.0", x))))


def rebuilt(P, subject, e):
    b = f"adapter.builder.{subject}"
    return bottleneck(P, f"{b}.3", gelu(layer_norm(P, f"{b}.1", linear(P, f"{b}.0", e))))


def reference(P, signals, targets, training):
    size = next(p for name, p in P.items() if name.endswith("down_proj.weight")).shape[1]
    given = {s: pooled(x[..., 0], size) for s, x in signals.items()}
    e = {s: embedded(P, s, x) for s, x in given.items()}
    x = torch.cat(list(e.values()))
    for k in range(sum(name.startswith("encoder.mlp") and name.endswith("0.weight") for name in P)):
        x = x + gelu(layer_norm(P, f"encoder.mlp.{k}.1", linear(P, f"encoder.mlp.{k}.0", x)))
    outputs, loss = {}, 0.0
    for space in ("clip", "clip_text"):
        p, t = linear(P, f"heads.{space}_linear.linear", x), targets[space]
        outputs[f"{space}_linear"] = p.view_as(t)
        loss = loss + soft_clip(p, t, 0.005) + 1e4 * (unit(p) - unit(t.flatten(1))).square().mean()
    if len(e) > 1:
        a, b = (list(e)[i] for i in torch.randperm(len(e))[:2].tolist())
        loss = loss + (embedded(P, b, rebuilt(P, b, e[a])) - e[a]).square().mean()
        loss = loss + torch.cat([rebuilt(P, s, e[s]) - given[s] for s in e]).square().mean()
    return outputs, loss


def seeded(module):
    """Let the pair of the cycle be drawn from the seed that the plain evaluation draws from."""
    whole = module.adapter.auxiliary_losses

    def losses(batch, features):
        torch.manual_seed(1)
        return whole(batch, features)

    module.adapter.auxiliary_losses = losses
    return module


@pytest.mark.parametrize("training", [True, False])
def test_small(composed, training):
    overrides, facts = SMALL
    module, specs, embeddings = built(composed, "published/mindbridge_subj125", *overrides, **facts)
    agree(differences(seeded(module), batch_of(specs, embeddings), reference, training=training))


def test_one_subject(composed):
    overrides, facts = SMALL
    facts = {**facts, "voxels": {"subj01": 50}}
    module, specs, embeddings = built(composed, "published/mindbridge_subj01", *overrides, **facts)
    agree(differences(module, batch_of(specs, embeddings), reference, training=True))


@pytest.mark.slow
def test_published_size(composed):
    """With fewer values of both spaces, whose heads alone hold 526 million weights."""
    module, specs, embeddings = built(composed, "published/mindbridge_subj125",
                                      voxels={"subj01": 15724, "subj02": 14278},
                                      spaces={"clip": [2, 768], "clip_text": [2, 768]})
    agree(differences(seeded(module), batch_of(specs, embeddings, n=4), reference, training=True))


def test_a_wrong_temperature_and_a_missing_residual_are_caught(composed, monkeypatch):
    overrides, facts = SMALL
    module, specs, embeddings = built(composed, "published/mindbridge_subj125", *overrides, **facts)
    batch = batch_of(specs, embeddings)
    soft = module.heads["clip_linear"].losses["soft_clip"]
    with monkeypatch.context() as patch:
        patch.setattr(soft, "temperature", 0.01)
        differ(differences(seeded(module), batch, reference, training=False), in_outputs=False)
    whole = ResidualMLP.forward
    monkeypatch.setattr(ResidualMLP, "forward",
                        lambda self, features: whole(self, features) - features.grid.transpose(1, 2))
    differ(differences(seeded(module), batch, reference, training=False), in_outputs=True)
