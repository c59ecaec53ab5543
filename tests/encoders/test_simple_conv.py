"""SimpleConv against the published order of operations, channels first and layer by layer."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.spatial_attention import SpatialAttention
from brain2img.encoders.simple_conv import SimpleConv
from brain2img.records import Features, Grid, SignalSpec


def spec(n_times=60, name="sub-01", **options):
    return SignalSpec(subject=name, modality="meg", units="T", n_channels=5, n_times=n_times, sfreq=120.0, **options)


def encoder_of(n_times=60, **options):
    return SimpleConv(specs={"sub-01": spec(n_times)},
                      **{"channels": 5, "hidden": 6, "depth": 7, "period": 3, "out": 9, **options})


def by_hand(encoder, x, *, period, depth, glu, final, aggregate):
    """The published modules on ``(B, C, T)``, one after the other."""
    for k in range(depth):
        conv, *rest = encoder.sequence[k]
        dilation = 2 ** (k % period)
        y = F.conv1d(F.pad(x, (dilation, dilation)), conv.weight, conv.bias, dilation=dilation)
        if rest:
            norm = rest[0]
            y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, encoder.training, 0.1)
            y = F.gelu(y)
        else:
            assert final is None
            assert k == depth - 1
        x = x + y if x.shape == y.shape else y
        if glu and (k + 1) % glu == 0:
            a, b = F.conv1d(x, encoder.glus[k][0].weight, encoder.glus[k][0].bias, padding=1).chunk(2, dim=1)
            x = a * torch.sigmoid(b)
    if final == "complex":
        x = F.gelu(F.conv1d(x, encoder.final[0].weight, encoder.final[0].bias))
    if final:
        x = F.conv_transpose1d(x, encoder.final[-1].weight, encoder.final[-1].bias)
    if aggregate is None:
        return x.transpose(1, 2)
    if aggregate == "mean":
        return x.mean(dim=2)[:, None]
    if aggregate == "linear":
        return encoder.time(x).transpose(1, 2)
    keys = x.transpose(1, 2)
    scores = encoder.scores(torch.tanh(encoder.keys(keys))).squeeze(2)
    return torch.einsum("bt,bth->bh", scores.softmax(dim=1), keys)[:, None]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("aggregate", [None, "mean", "linear", "attention"])
@pytest.mark.parametrize(("final", "glu"), [("complex", 2), ("linear", 3), (None, 1), ("complex", 0)])
def test_equals_the_published_order_of_operations(training, aggregate, final, glu):
    torch.manual_seed(0)
    sizes = {"final": final, "glu": glu, "aggregate": aggregate}
    encoder, reference = (encoder_of(**sizes).double().train(training) for _ in range(2))
    for name, value in encoder.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    reference.load_state_dict(encoder.state_dict())
    x = torch.randn(4, 5, 60, dtype=torch.float64)
    got = encoder(Features(x))
    expected = by_hand(reference, x, period=3, depth=7, **sizes)
    assert got.shape == (4, *encoder.hidden)
    assert encoder.hidden == ((1 if aggregate else 60), 9)
    torch.testing.assert_close(got, expected)
    (got**2).sum().backward()
    (expected**2).sum().backward()
    for (name, a), b in zip(encoder.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
    for name, value in reference.named_buffers():
        if "running" in name:
            torch.testing.assert_close(encoder.state_dict()[name], value)
    single = encoder.float().eval()(Features(x.float()))
    torch.testing.assert_close(single, encoder.double()(Features(x)).float(), atol=1e-5, rtol=1e-5)


def test_dilations_are_the_published_ones():
    encoder = SimpleConv(specs={"sub-01": spec()}, hidden=4, out=4)
    assert [layers[0].dilation[0] for layers in encoder.sequence] == [1, 2, 4, 8, 16] * 2
    assert [k for k, gate in enumerate(encoder.glus) if isinstance(gate, torch.nn.Sequential)] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(("n_subjects", "total"), [(27, 9_565_054), (96, 14_595_154), (19, 8_981_854),
                                                   (33, 10_002_454)])
def test_brainmagick_has_its_published_size(n_subjects, total):
    specs = {f"s{i:02d}": spec(360, f"s{i:02d}", positions=torch.rand(5, 3).numpy()) for i in range(n_subjects)}
    with torch.device("meta"):
        encoder = SimpleConv(specs=specs)
        adapter = SpatialAttention(specs=specs, grid=encoder.grid)
    counts = [sum(p.numel() for p in part.parameters()) for part in (adapter, encoder)]
    assert sum(counts) == total == 7_596_754 + 72_900 * n_subjects
    assert encoder.grid == Grid(270, 360)
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    assert shapes["sequence.0.0.weight"] == (320, 270, 3)
    assert shapes["glus.1.0.weight"] == (640, 320, 3)
    assert shapes["final.0.weight"] == (640, 320, 1)
    assert shapes["final.2.weight"] == (640, 1024, 1)


def test_simple_conv_time_agg_has_its_published_size():
    specs = {"s": spec(256, "s", positions=torch.rand(5, 3).numpy())}
    with torch.device("meta"):
        encoder = SimpleConv(specs=specs, depth=4, final=None, out=512, aggregate="linear")
        adapter = SpatialAttention(specs=specs, grid=encoder.grid, n_dims=3, width=2000, subject_layers=False)
    counts = [sum(p.numel() for p in part.parameters()) for part in (adapter, encoder)]
    assert sum(counts) == 4_170_867 == 4_170_610 + 256 + 1


def test_the_meg_decoder_has_the_sizes_of_its_layers():
    with torch.device("meta"):
        encoder = SimpleConv(specs={"s": spec(181, "s")}, depth=4, out=2048, aggregate="linear")
    blocks = [sum(p.numel() for k in ks for part in (encoder.sequence[k], encoder.glus[k]) for p in part.parameters())
              for ks in ((0, 1), (2, 3))]
    assert blocks == [1_183_360, 1_231_360]
    assert sum(p.numel() for p in encoder.final.parameters()) == 1_518_208
    assert sum(p.numel() for p in encoder.time.parameters()) == 182


def test_bins_shorten_the_grid():
    assert encoder_of(61, bin=3).grid == Grid(5, 20)
    assert encoder_of(61, bin=3)(Features(torch.randn(2, 5, 20))).shape == (2, 20, 9)


def test_messages():
    with pytest.raises(ValueError, match="expected the same samples for all subjects, at least bin = 1, got"):
        SimpleConv(specs={"a": spec(60), "b": spec(50)})
    with pytest.raises(ValueError, match=r"at least bin = 100, got \{'sub-01': 60\}"):
        encoder_of(bin=100)
    with pytest.raises(ValueError, match=r"expected final of \('complex', 'linear'\) or null, got 'x'"):
        encoder_of(final="x")
    with pytest.raises(ValueError, match=r"expected aggregate of \('mean', .* or null, got 'x'"):
        encoder_of(aggregate="x")
