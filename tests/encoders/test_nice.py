"""NICE against its layers written out; what its two attentions do as published, and mended."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brain2img.encoders.nice import NICE
from brain2img.heads.projector import Projector
from brain2img.losses import InfoNCE
from brain2img.records import EmbeddingSpec, Features, SignalSpec


def made(n_channels=63, n_times=250, **options):
    spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0)
    return NICE(specs={"sub-01": spec}, **options)


def small(**options):
    torch.manual_seed(0)
    return made(5, 90, n_filters=8, **options).double().eval()


@pytest.mark.parametrize(("width", "learnable", "total"), [(768, False, 1_802_496), (1024, True, 2_630_913)])
def test_sizes_are_the_published_ones(width, learnable, total):
    encoder = made()
    head = Projector(hidden=encoder.hidden, spec=EmbeddingSpec(name="clip", shape=(width,)), space="clip",
                     losses={"info_nce": InfoNCE(learnable=learnable)}, initial_std=0.02)
    assert sum(p.numel() for part in (encoder, head) for p in part.parameters()) == total
    for weight in (encoder.tsconv[4].weight, head.proj[0].weight, head.proj[1].fn[1].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert encoder.tsconv[5].weight.mean().item() == pytest.approx(1, abs=0.02)
    assert encoder.tsconv[5].weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert made(initial_std=None).tsconv[5].weight.unique().tolist() == [1]


def test_published_self_attention_is_drawn_anew_and_the_mended_one_is_not():
    linears = {published: [layer.weight for layer in made(spatial="self_attention", as_published=published).spatial
                           .modules() if isinstance(layer, nn.Linear)] for published in (True, False)}
    assert len(linears[True]) == 3
    for weight in linears[True]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in linears[False]:
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (63 + 63)), rel=0.05), "Xavier-normal"


def convolved(encoder, x):
    """The published order: temporal convolution, then pooling; rearranged to (h w) e."""
    y = encoder.projection(nn.Sequential(*encoder.tsconv)(x.unsqueeze(1)))
    return y.permute(0, 2, 3, 1).flatten(1, 2)


def norm(x, layer):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5) * layer.weight \
        + layer.bias


def by_hand_self_attention(layer, x, *, mended):
    """One trial at a time, one channel at a time."""
    out = torch.zeros_like(x)
    for b, trial in enumerate(x):
        q, k = (norm(trial.T @ part[0].weight.T + part[0].bias, part[1]).T for part in (layer.query, layer.key))
        mixed = torch.zeros_like(trial)
        for c in range(len(trial)):
            scores = torch.stack([(q[c] * k[m]).sum() / math.sqrt(90 // 30) for m in range(len(trial))])
            share = scores.exp() / scores.exp().sum()
            mixed[c] = sum(share[m] * trial[m if mended else c] for m in range(len(trial)))
        out[b] = norm(mixed.T @ layer.projection[0].weight.T + layer.projection[0].bias, layer.projection[1]).T
    return out


def by_hand_graph(layer, x, *, mended):
    """Messages along a list of edges, as a graph library passes them."""
    n_trials, n_channels, _ = x.shape
    h = x.flatten(0, 1) @ layer.lin.weight.T
    trials = range(n_trials if mended else 1)
    edges = {(b * n_channels + i, b * n_channels + j) for b in trials for i in range(n_channels)
             for j in range(n_channels) if i != j} | {(i, i) for i in range(len(h))}
    out = torch.zeros_like(h)
    for goal in range(len(h)):
        sources = [i for i, j in sorted(edges) if j == goal]
        scores = torch.stack([F.leaky_relu(h[i] @ layer.att_src[0] + h[goal] @ layer.att_dst[0], 0.2) for i in sources])
        share = scores.exp() / scores.exp().sum()
        out[goal] = sum(a * h[i] for a, i in zip(share, sources, strict=True)) + layer.bias
    return out.view_as(x)


@pytest.mark.parametrize("mended", [True, False])
@pytest.mark.parametrize("spatial", [None, "self_attention", "graph_attention"])
def test_output_equals_the_layers_written_out(spatial, mended):
    encoder, x = small(spatial=spatial, as_published=not mended), torch.randn(3, 5, 90).double()
    y = x
    if spatial == "self_attention":
        first, attention = encoder.spatial.fn[0], encoder.spatial.fn[1]
        y = x + by_hand_self_attention(attention, norm(x, first), mended=mended)
    elif spatial == "graph_attention":
        y = x + by_hand_graph(encoder.spatial.fn[0], x, mended=mended)
    torch.testing.assert_close(encoder(Features(x)), convolved(encoder, y))


@pytest.mark.parametrize("mended", [True, False])
def test_published_attention_weights_cancel(mended):
    encoder, x = small(spatial="self_attention", as_published=not mended), torch.randn(3, 5, 90).double()
    before = encoder(Features(x))
    for part in (encoder.spatial.fn[1].query, encoder.spatial.fn[1].key):
        nn.init.normal_(part[0].weight)
    assert torch.allclose(encoder(Features(x)), before, atol=1e-12) is not mended


@pytest.mark.parametrize("mended", [True, False])
def test_published_graph_joins_the_channels_of_the_first_trial_alone(mended):
    encoder, x = small(spatial="graph_attention", as_published=not mended), torch.randn(3, 5, 90).double()
    other = x.clone()
    other[:, 4] += 1  # what channel 4 tells channel 0
    changed = [not torch.allclose(a[0], b[0]) for a, b in zip(encoder.spatial(x), encoder.spatial(other), strict=True)]
    assert changed == [True, mended, mended]
    alone = torch.cat([encoder(Features(trial[None])) for trial in x])
    assert torch.allclose(encoder(Features(x)), alone) is mended  # whether a trial's output depends on its batch


def test_messages():
    with pytest.raises(ValueError, match=r"NICE encoder: expected spatial of .*, got 'none'. Correct encoder.spatial"):
        made(spatial="none")
    with pytest.raises(ValueError, match="expected at least 75 samples for kernel 25 and pool 51, got 74"):
        made(5, 74)
