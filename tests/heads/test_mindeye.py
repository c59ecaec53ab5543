"""MindEye from voxels to embedding: equality with a plain evaluation, published sizes, dead blocks, precision."""

import pytest
import torch
from torch import nn

from brain2img.adapters.subject_linear import SubjectLinear
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.latent_decoder import LatentDecoder
from brain2img.heads.linear import LinearHead
from brain2img.heads.token_projector import TokenProjector
from brain2img.losses import L1, MSE
from brain2img.records import EmbeddingSpec, Features, SignalSpec


def network(*, voxels, width, shape, projector, n_blocks=4, activation="gelu"):
    """Return adapter, trunk and both heads as the experiments put them together."""
    spec = EmbeddingSpec(name="clip", shape=shape)
    encoder = ResidualMLP(specs={}, width=width, n_blocks=n_blocks, dropout=0.15)
    signals = {"s": SignalSpec(subject="s", modality="fmri", units="a.u.", n_channels=voxels, n_times=1)}
    heads = {"losses": {"mse": MSE()}, "hidden": encoder.hidden, "spec": spec, "space": "clip"}
    return nn.ModuleDict({
        "adapter": SubjectLinear(specs=signals, grid=encoder.grid, activation=activation, dropout=0.5 if activation
                                 else 0.0),
        "encoder": encoder, "backbone": LinearHead(**heads),
        "projector": TokenProjector(**heads, source="backbone", width=projector)})


def size(module):
    return sum(p.numel() for p in module.parameters())


def plain_norm(x, weights, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def plain_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def plain_linear(x, weights, name):
    return torch.einsum("...i,oi->...o", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]


def test_brain_network_equals_a_plain_evaluation():
    torch.manual_seed(0)
    net = network(voxels=11, width=12, shape=(3, 6), projector=10).eval()
    w = {k: v.detach() + 0.1 * torch.randn_like(v) for k, v in net.state_dict().items()}
    net.load_state_dict(w)
    x = torch.randn(7, 11)
    hidden = net["encoder"](net["adapter"](x[..., None], "s"))
    done = {"backbone": net["backbone"](hidden, {})}
    out = net["projector"](hidden, done)

    y = plain_gelu(plain_norm(plain_linear(x, w, "adapter.linears.s.0"), w, "adapter.linears.s.1"))
    for i in range(4):
        y = y + plain_gelu(plain_norm(plain_linear(y, w, f"encoder.mlp.{i}.0"), w, f"encoder.mlp.{i}.1"))
    backbone = plain_linear(y, w, "backbone.linear").reshape(7, 3, 6)
    torch.testing.assert_close(done["backbone"], backbone, atol=1e-5, rtol=1e-5)
    z = backbone
    for i in (0, 3, 6):
        z = plain_linear(plain_gelu(plain_norm(z, w, f"projector.projector.{i}")), w, f"projector.projector.{i + 2}")
    torch.testing.assert_close(out, z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("voxels", "published"), [
    (15724, 947_579_904), (14278, 941_657_088), (13039, 936_582_144), (12682, 935_119_872)])
def test_brain_network_has_the_published_size(voxels, published):
    with torch.device("meta"):
        assert size(network(voxels=voxels, width=4096, shape=(257, 768), projector=2048)) == published


class Mixer(nn.Module):
    """The trunk of MindEye2 as section 4.2 of our notes states it, on sequences of length `n`."""

    def __init__(self, width, n, n_blocks=4):
        super().__init__()

        def block(size):
            return nn.Sequential(nn.LayerNorm(size), nn.Linear(size, size), nn.GELU(), nn.Dropout(0.15),
                                 nn.Linear(size, size))

        self.first = nn.ModuleList(block(width) for _ in range(n_blocks))
        self.second = nn.ModuleList(block(n) for _ in range(n_blocks))

    def forward(self, x):
        residual1, residual2 = x, x.transpose(1, 2)
        for first, second in zip(self.first, self.second, strict=True):
            x = first(x) + residual1
            residual1 = x
            x = second(x.transpose(1, 2)) + residual2
            residual2 = x
            x = x.transpose(1, 2)
        return x


def test_the_trunk_of_mindeye2_adds_a_constant_and_its_first_mixers_are_dead():
    torch.manual_seed(0)
    mixer, x = Mixer(8, 1).eval(), torch.randn(6, 1, 8)
    for layer in mixer.second:
        nn.init.normal_(layer[0].bias)
    out = mixer(x)
    shift = out - x
    torch.testing.assert_close(shift, shift[:1, :, :1].expand_as(shift), atol=1e-5, rtol=0)
    out.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in mixer.first.parameters())
    longer = Mixer(8, 2).eval()
    longer(torch.randn(6, 2, 8)).square().sum().backward()
    assert all(p.grad.any() for block in longer.first for p in block.parameters())
    # so that a trunk without blocks and a bias behind it compute the same
    trunk = ResidualMLP(specs={}, width=8, n_blocks=0)
    torch.testing.assert_close(trunk(Features(x.transpose(1, 2))), x)
    assert size(trunk) == 0
    with torch.device("meta"):
        published = Mixer(4096, 1)
    assert (size(published.first), size(published.second)) == (134_283_264, 24)


def test_mindeye2_without_what_is_dead_has_the_published_size():
    with torch.device("meta"):
        net = network(voxels=15724, width=4096, shape=(256, 1664), projector=1664, n_blocks=0, activation=None)
        low = LatentDecoder(hidden=(1, 4096), spec=EmbeddingSpec(name="vae", shape=(4, 28, 28)), space="vae",
                            losses={"l1": L1()}, widths=(32, 64, 128), dropout=0.3)
    dead, constants, auxiliary = 134_283_264, 24, 559_616
    assert size(net["adapter"]) == 64_409_600
    assert size(low) + auxiliary == 15_158_628
    assert size(net) - size(net["adapter"]) + size(low) + dead + constants + auxiliary == 1_903_020_028


def test_latents_are_decoded_in_single_precision_whatever_is_around():
    torch.manual_seed(0)
    head, hidden = LatentDecoder.tiny().eval(), 50 * torch.randn(3, 1, 16)
    expected = head(hidden, {})
    assert expected.shape == (3, 4, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden, {}), expected)
        assert head(hidden.bfloat16(), {}).dtype == torch.float32
    plain = (hidden.flatten(1) @ head.linear.weight.T + head.linear.bias).view(3, 8, 4, 4)
    centred = plain - plain.mean((1, 2, 3), keepdim=True)
    normed = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head.upsampler(normed), expected, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    head = TokenProjector.tiny()
    with pytest.raises(ValueError, match=r"expected source to be a head before it, of \['other'\], got 'backbone'"):
        head(torch.randn(2, 1, 16), {"other": torch.randn(2, 3, 8)})
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(3, 8\) from head 'backbone', got \(4, 8\)"):
        head(torch.randn(2, 1, 16), {"backbone": torch.randn(2, 4, 8)})
    for shape, widths in (((16,), (8, 16)), ((4, 9, 8), (8, 16)), ((4, 10, 10), (8, 8, 16))):
        with pytest.raises(ValueError, match=r"expected latents \(C, h, w\) with sides divisible by"):
            LatentDecoder(hidden=(1, 16), spec=EmbeddingSpec(name="t", shape=shape), space="t", losses={},
                          widths=widths, map_channels=8)
    with pytest.raises(ValueError, match="activation: expected one of"):
        ResidualMLP(specs={}, width=8, activation="tanh")
