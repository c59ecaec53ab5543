"""Both pathways of See Through Their Minds: a plain evaluation, the published sizes, nulls, and what the guide does."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from brain2img.encoders.sttm import STTM
from brain2img.heads.latent_decoder import LatentDecoder
from brain2img.records import EmbeddingSpec, Features


def size(module):
    return sum(p.numel() for p in module.parameters())


def plain_block(x, w, name, activation):
    y = x @ w[f"{name}.fn.0.weight"].T + w[f"{name}.fn.0.bias"]
    y = F.layer_norm(y, y.shape[1:]) * w[f"{name}.fn.1.weight"] + w[f"{name}.fn.1.bias"]
    return x + activation(y)


def test_both_states_equal_a_plain_evaluation():
    torch.manual_seed(0)
    for guided in (True, False):
        encoder = STTM(specs={}, width=6, n_blocks=2, guided=guided).eval()
        w = {k: v + 0.2 * torch.randn_like(v) for k, v in encoder.state_dict().items()}
        encoder.load_state_dict(w)
        x = torch.randn(4, 6)
        high, low = x, x
        for i in range(2):
            high, low = plain_block(high, w, f"high.{i}", F.gelu), plain_block(low, w, f"low.{i}", F.silu)
        merged = plain_block(low + (high if guided else w["null_high"]), w, "merge", F.silu)
        torch.testing.assert_close(encoder(Features(x[..., None])), torch.stack([high, merged], dim=1))


def test_published_size_of_the_encoder_and_of_the_latents():
    with torch.device("meta"):
        encoder = STTM(specs={})
        head = LatentDecoder(hidden=encoder.hidden, spec=EmbeddingSpec(name="vae", shape=(4, 64, 64)), space="vae",
                             losses={}, widths=(64, 128, 256), bias=False, state=1)
    block = 4096**2 + 4096 + 2 * 4096
    assert size(encoder) == (4 + 4 + 1) * block + 4096
    assert size(head.linear) == 4096 * 64 * 16 * 16
    assert size(head.norm) == 2 * 64
    assert head.map_shape == (64, 16, 16)


def test_in_training_a_share_of_the_low_level_is_the_null_and_the_high_level_stays():
    torch.manual_seed(0)
    encoder = STTM(specs={}, width=8, n_blocks=1, dropout=0.0, p_null=0.4)
    x = torch.randn(1, 8, 1).expand(2000, 8, 1)
    with torch.no_grad():
        trained, evaluated = encoder(Features(x)), encoder.eval()(Features(x))
        replaced = encoder.merge(encoder.null_low + evaluated[:, 0])
    torch.testing.assert_close(trained[:, 0], evaluated[:, 0])
    is_null = (trained[:, 1] - replaced).abs().amax(dim=1) < 1e-5
    assert 0.35 < is_null.float().mean() < 0.45
    torch.testing.assert_close(trained[~is_null, 1], evaluated[~is_null, 1])


def test_the_guide_changes_the_latents_and_is_a_constant_for_their_loss_unless_told_otherwise():
    torch.manual_seed(0)
    head = LatentDecoder(hidden=(2, 16), spec=EmbeddingSpec(name="vae", shape=(4, 8, 8)), space="vae", losses={},
                         widths=(8, 16), map_channels=8, state=1).eval()
    x = Features(torch.randn(3, 16, 1))
    for settings, changes, reaches in (({}, True, False), ({"detach": False}, True, True), ({"guided": False}, False,
                                                                                            False)):
        encoder = STTM(specs={}, width=16, n_blocks=1, **settings).eval()
        latents = head(encoder(x), {})
        latents.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in encoder.low.parameters())
        assert any(p.grad is not None and p.grad.any() for p in encoder.high.parameters()) == reaches
        with torch.no_grad():
            encoder.high[0].fn[0].weight += 1.0 * torch.randn(16, 16)
            assert torch.equal(head(encoder(x), {}), latents) != changes
