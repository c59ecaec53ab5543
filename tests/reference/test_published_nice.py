"""NICE, NICE-SA and NICE-GA (Song et al. 2024, arXiv:2308.13234) beside a plain evaluation: notes, 2.3 and 3."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from beside import (
    agree,
    batch_of,
    built,
    clip_loss,
    differ,
    differences,
    layer_norm,
    linear,
    projector,
    temporal_spatial,
    unit,
)

from brain2img.layers import Residual

SMALL = {"signals": {"sub-08": [7, 90]}, "spaces": {"clip": [12]}}


def reference(kind):
    def evaluate(P, signals, targets, training):
        x, a = signals["sub-08"], "encoder.spatial.fn"
        if kind == "sa":  # over keys the weights add to 1, which is all that the published product keeps of them
            mixed = F.layer_norm(x, x.shape[-1:]) * P[f"{a}.0.weight"] + P[f"{a}.0.bias"]
            steps = linear(P, f"{a}.1.projection.0", mixed.transpose(1, 2))
            x = x + layer_norm(P, f"{a}.1.projection.1", steps).transpose(1, 2)
        if kind == "ga":  # edges of the first trial alone
            h = x @ P[f"{a}.0.lin.weight"].T
            scores = (h[0] @ P[f"{a}.0.att_src"][0])[None, :] + (h[0] @ P[f"{a}.0.att_dst"][0])[:, None]
            first = F.leaky_relu(scores, 0.2).softmax(1) @ h[0]
            h = F.pad(h[1:], (0, 0, 0, 0, 1, 0)) + F.pad(first[None], (0, 0, 0, 0, 0, len(h) - 1))
            x = x + h + P[f"{a}.0.bias"]
        y = projector(P, temporal_spatial(P, x, training))
        return {"clip_projector": y}, clip_loss(unit(y), unit(targets["clip"]), 1 / 0.07)
    return evaluate


ROWS = [("nice_sub08", ""), ("nice_sa_sub08", "sa"), ("nice_ga_sub08", "ga")]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("row", "kind"), ROWS)
def test_small(composed, row, kind, training):
    module, specs, embeddings = built(composed, f"published/{row}", **SMALL)
    agree(differences(module, batch_of(specs, embeddings), reference(kind), training=training))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kind"), ROWS)
def test_published_size(composed, row, kind):
    module, specs, embeddings = built(composed, f"published/{row}")
    agree(differences(module, batch_of(specs, embeddings), reference(kind), training=True))


def test_a_wrong_temperature_and_a_missing_residual_are_caught(composed, monkeypatch):
    module, specs, embeddings = built(composed, "published/nice_sub08", **SMALL)
    batch = batch_of(specs, embeddings)
    with monkeypatch.context() as patch:
        patch.setattr(module.heads["clip_projector"].losses["info_nce"].scale, "data",
                      module.heads["clip_projector"].losses["info_nce"].scale.data + 0.5)
        differ(differences(module, batch, reference(""), training=False), in_outputs=False)
    monkeypatch.setattr(Residual, "forward", lambda self, x: self.fn(x))
    differ(differences(module, batch, reference(""), training=False), in_outputs=True)


@pytest.mark.parametrize(("row", "kind"), ROWS[1:])
def test_mended_attention_is_caught(composed, row, kind):
    module, specs, embeddings = built(composed, f"published/{row}", "encoder.as_published=false", **SMALL)
    differ(differences(module, batch_of(specs, embeddings), reference(kind), training=False), in_outputs=True)
