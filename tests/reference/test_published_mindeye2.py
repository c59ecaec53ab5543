"""MindEye2 (Scotti et al. 2024, arXiv:2403.11207) beside a plain evaluation: fMRI notes, 4.2 and 4.3.

Unmixed trials; the prior, whose term is left out here, stands beside its own evaluation in ``test_mindeye_prior.py``.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from beside import agree, batch_of, built, clip_loss, differ, differences, gelu, layer_norm, linear, soft_clip, unit

from brain2img.heads.latent_decoder import LatentDecoder

FACTS = {"voxels": {"subj01": 50}, "spaces": {"clip": [3, 8], "clip_backbone": [3, 8], "vae": [4, 8, 8]}}
SMALL = ("encoder.width=16", "head.clip_projector.width=12", "head.clip_backbone.losses.prior.weight=0.0")
D = "heads.vae_latents"


def group_norm(P, name, x, n_groups, eps):
    grouped = x.reshape(len(x), n_groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    scaled = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).view_as(x)
    return scaled * P[f"{name}.weight"].view(1, -1, 1, 1) + P[f"{name}.bias"].view(1, -1, 1, 1)


def conv(P, name, x):
    weight = P[f"{name}.weight"]
    return F.conv2d(x, weight, P[f"{name}.bias"], padding=weight.shape[-1] // 2)


def residual_block(P, name, x):
    y = conv(P, f"{name}.conv1", F.silu(group_norm(P, f"{name}.norm1", x, 32, 1e-6)))
    y = conv(P, f"{name}.conv2", F.silu(group_norm(P, f"{name}.norm2", y, 32, 1e-6)))
    return y + (conv(P, f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in P else x)


def self_attention(P, name, x):
    tokens = group_norm(P, f"{name}.group_norm", x, 32, 1e-6).flatten(2).transpose(1, 2)
    q, k, v = (linear(P, f"{name}.to_{n}", tokens) for n in "qkv")
    mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return x + linear(P, f"{name}.to_out.0", mixed).transpose(1, 2).reshape(x.shape)


def latents(P, hidden, shape):
    """Linear onto 64 small maps, GroupNorm(1), decoder of an autoencoder of widths 128, 64, 32."""
    u = f"{D}.upsampler"
    x = linear(P, f"{D}.linear", hidden).view(len(hidden), 64, shape[1] // 4, shape[2] // 4)
    x = conv(P, f"{u}.conv_in", group_norm(P, f"{D}.norm", x, 1, 1e-5))
    x = residual_block(P, f"{u}.mid_block.resnets.0", x)
    x = residual_block(P, f"{u}.mid_block.resnets.1", self_attention(P, f"{u}.mid_block.attentions.0", x))
    for i in range(3):
        for j in range(2):
            x = residual_block(P, f"{u}.up_blocks.{i}.resnets.{j}", x)
        if i < 2:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = conv(P, f"{u}.up_blocks.{i}.upsamplers.0.conv", x)
    return conv(P, f"{u}.conv_out", F.silu(group_norm(P, f"{u}.conv_norm_out", x, 32, 1e-6)))


def reference(phase):
    def evaluate(P, signals, targets, training):
        hidden = linear(P, "adapter.linears.subj01.0", signals["subj01"][..., 0])  # the mixers add constants alone
        backbone = linear(P, "heads.clip_backbone.linear", hidden).view_as(targets["clip"])
        y = backbone
        for norm, layer in ((0, 2), (3, 5), (6, 8)):
            y = gelu(layer_norm(P, f"heads.clip_projector.projector.{norm}", y))
            y = linear(P, f"heads.clip_projector.projector.{layer}", y)
        low = latents(P, hidden, targets["vae"].shape[1:])
        flat = y.flatten(1), targets["clip"].flatten(1)
        contrast = (clip_loss(unit(flat[0]), unit(flat[1]), 1 / 0.006) if phase == "bimixco"
                    else soft_clip(*flat, 0.004))
        return ({"clip_backbone": backbone, "clip_projector": y, "vae_latents": low},
                contrast + 0.5 * (low - targets["vae"]).abs().mean())
    return evaluate


def made(composed, *overrides, phase="bimixco", **facts):
    module, specs, embeddings = built(composed, "published/mindeye2_subj01", *overrides, **facts)
    for _, _, loss in module.named_losses():
        loss.begin_epoch(0 if phase == "bimixco" else 49, 150, generator=torch.Generator())
    return module, batch_of(specs, embeddings)


@pytest.mark.parametrize("phase", ["bimixco", "soft_clip"])
def test_small(composed, phase):
    agree(differences(*made(composed, *SMALL, phase=phase, **FACTS), reference(phase), training=True))


@pytest.mark.slow
def test_published_size(composed):
    """With 8 of the 256 tokens, whose linear map alone holds 1,745 million weights."""
    facts = {"spaces": {"clip": [8, 1664], "clip_backbone": [8, 1664], "vae": [4, 28, 28]}}
    found = differences(*made(composed, SMALL[-1], **facts), reference("bimixco"), training=True)
    agree(found)


def test_a_wrong_temperature_and_a_missing_norm_are_caught(composed, monkeypatch):
    module, batch = made(composed, *SMALL, **FACTS)
    loss = module.heads["clip_projector"].losses["bimixco"]
    with monkeypatch.context() as patch:
        patch.setattr(loss.scale, "data", loss.scale.data - 1)
        differ(differences(module, batch, reference("bimixco"), training=False), in_outputs=False)
    monkeypatch.setattr(LatentDecoder, "forward", lambda self, hidden, done: self.upsampler(
        self.linear(hidden.flatten(1)).unflatten(1, self.map_shape)))
    differ(differences(module, batch, reference("bimixco"), training=False), in_outputs=True)
