"""The earlier ATM-S against the published order of operations and the published sizes."""

import math

import pytest
import torch
from torch import nn

from brain2img.encoders.atm_time import ATMTime
from brain2img.heads.projector import Projector
from brain2img.losses import InfoNCE
from brain2img.records import EmbeddingSpec, Features, SignalSpec


def made(n_channels=63, n_times=250, **options):
    spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0)
    return ATMTime(specs={"sub-01": spec}, **options)


@pytest.mark.parametrize(("options", "width", "live"), [
    ({}, 1440, 2_970_202), ({"kernel": 5, "pool": 17}, 1840, 3_655_541 - 276_539)])
def test_sizes_are_the_published_ones(options, width, live):
    encoder = made(**options)
    head = Projector(hidden=encoder.hidden, spec=EmbeddingSpec(name="clip", shape=(1024,)), space="clip",
                     losses={"info_nce": InfoNCE()})
    assert math.prod(encoder.hidden) == width
    assert sum(p.numel() for p in encoder.attn_layer.parameters()) == 276_539
    assert sum(p.numel() for part in (encoder, head) for p in part.parameters()) == live


@pytest.mark.parametrize("channels", [6, 7])
def test_output_equals_the_layers_written_out(channels):
    torch.manual_seed(0)
    encoder = made(channels, 90, feedforward=11, n_filters=8).double().eval()
    layer, x = encoder.attn_layer, torch.randn(3, channels, 90).double()
    code = torch.tensor([[(math.sin if i % 2 == 0 else math.cos)(t / 10_000 ** ((i - i % 2) / channels))
                          for i in range(channels)] for t in range(90)], dtype=torch.float64)
    torch.testing.assert_close(encoder.positions, code, atol=1e-4, rtol=0)
    steps = x.transpose(1, 2) + encoder.positions
    q, k, v = (steps @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, dim=-1)
    share = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(channels), dim=-1)
    y = layer.norm1(steps + layer.self_attn.out_proj(share @ v))
    y = layer.norm2(y + layer.linear2(layer.linear1(y).clamp(min=0)))
    y = encoder.subject_wise_linear(y.transpose(1, 2))
    y = encoder.projection(nn.Sequential(*encoder.tsconv)(y.unsqueeze(1))).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(encoder(Features(x)), y)


def test_messages():
    with pytest.raises(ValueError, match="expected at least 75 samples for kernel 25 and pool 51, got 74"):
        made(5, 74)
    specs = {name: SignalSpec(subject=name, modality="eeg", units="V", n_channels=n, n_times=90, sfreq=250.0)
             for name, n in (("a", 5), ("b", 6))}
    with pytest.raises(ValueError, match="earlier ATM encoder: expected the same channels and samples for all"):
        ATMTime(specs=specs)
