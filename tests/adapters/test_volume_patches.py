"""Volume patches and ViT3D: no subject has weights, the order of voxels does not matter."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.volume_patches import VolumePatches
from brain2img.encoders.vit3d import ViT3D
from brain2img.heads.two_layers import TwoLayers
from brain2img.records import EmbeddingSpec, Features, Grid, SignalSpec


def test_subjects_have_no_weights_and_new_ones_need_only_a_spec():
    adapter = VolumePatches.tiny()
    assert not list(adapter.parameters())
    assert not adapter.state_dict()
    assert adapter.parameters_of("sub-01") == []
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got None.*add_subject"):
        adapter(torch.randn(2, 50, 1), None)
    adapter.add_subject(dataclasses.replace(adapter.specs["sub-02"], subject="new"))
    x = torch.randn(3, 40, 1)
    assert torch.equal(adapter(x, "new").grid, adapter(x, "sub-02").grid)


def test_the_order_of_voxels_does_not_matter():
    adapter = VolumePatches.tiny()
    x, order = torch.randn(3, 40, 1), np.random.default_rng(0).permutation(40)
    adapter.add_subject(dataclasses.replace(adapter.specs["sub-02"].select(order), subject="new"))
    assert torch.equal(adapter(x[:, order], "new").grid, adapter(x, "sub-02").grid)
    assert adapter(x, "sub-02").grid.abs().sum() > 0


def test_what_lies_outside_of_the_patches_is_left_out_with_a_warning(caplog):
    one = SignalSpec(subject="a", modality="fmri", units="a.u.", n_channels=1, n_times=1, volume_shape=(8, 8, 8),
                     ijk=np.array([[0, 0, 0]]))
    encoder = ViT3D(specs={"a": one}, patch=4, width=8, n_layers=1, n_heads=2)
    adapter = VolumePatches(specs={"a": one}, grid=encoder.grid)
    adapter.add_subject(dataclasses.replace(one, subject="b", n_channels=2, ijk=np.array([[1, 0, 0], [7, 7, 7]])))
    assert "50.0 % of its volume" in caplog.text
    grid = adapter(torch.tensor([[[2.0], [5.0]]]), "b").grid
    assert (grid.shape, grid.sum().item()) == ((1, 64, 1), 2.0)


def test_messages():
    adapter = VolumePatches.tiny()
    with pytest.raises(ValueError, match=r"expected an encoder that takes patches of a volume.*encoder=vit3d"):
        VolumePatches(specs={}, grid=Grid(64, 1))
    with pytest.raises(ValueError, match=r"subject 'sub-01': expected signals of \(50, 1\), got \(40, 1\)"):
        adapter(torch.randn(2, 40, 1), "sub-01")
    with pytest.raises(ValueError, match="subject 'x': expected their places in a volume, got no ijk"):
        adapter.add_subject(SignalSpec(subject="x", modality="fmri", units="a.u.", n_channels=5, n_times=1))
    with pytest.raises(ValueError, match="expected one value per voxel"):
        adapter.add_subject(dataclasses.replace(adapter.specs["sub-01"], n_times=2, sfreq=1.0))
    with pytest.raises(ValueError, match=r"expected output of .* got 'cls'"):
        ViT3D(specs=adapter.specs, output="cls")
    with pytest.raises(ValueError, match="width that 5 heads can share, got 16"):
        ViT3D(specs=adapter.specs, width=16, n_heads=5)


def written_out(encoder, grid):
    """Return what ViT3D should give, layer by layer (normalisation before each branch)."""
    weights = dict(encoder.named_parameters())
    x = grid.transpose(1, 2) @ encoder.patch_embedding.weight.T + encoder.patch_embedding.bias
    x = x + torch.stack([sum(weights[f"position.{axis}"][at] for axis, at in enumerate(place))
                         for place in encoder.grid.coordinates()])
    x = torch.cat([weights["class_token"].expand(len(x), 1, -1), x], dim=1)
    for i, layer in enumerate(encoder.layers):
        def w(name, i=i):
            return weights[f"layers.{i}.{name}"]

        n, length, width = x.shape
        y = F.layer_norm(x, (width,), w("norm1.weight"), w("norm1.bias"))
        q, k, v = (y @ w("self_attn.in_proj_weight").T + w("self_attn.in_proj_bias")).chunk(3, dim=-1)
        heads = layer.self_attn.num_heads
        q, k, v = (a.view(n, length, heads, -1).transpose(1, 2) for a in (q, k, v))
        mixed = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1) @ v
        mixed = mixed.transpose(1, 2).reshape(n, length, width)
        x = x + mixed @ w("self_attn.out_proj.weight").T + w("self_attn.out_proj.bias")
        y = F.layer_norm(x, (width,), w("norm2.weight"), w("norm2.bias"))
        y = F.gelu(y @ w("linear1.weight").T + w("linear1.bias"))
        x = x + y @ w("linear2.weight").T + w("linear2.bias")
    return F.layer_norm(x, (x.shape[-1],), weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize("output", ["class", "mean", "all"])
def test_vit3d_equals_its_layers_written_out(output):
    torch.manual_seed(0)
    tiny = ViT3D.tiny()
    specs = VolumePatches.tiny().specs
    encoder = ViT3D(specs=specs, patch=3, width=16, n_layers=2, n_heads=2, output=output).eval()
    grid = torch.randn(4, encoder.grid.F, encoder.grid.T)
    expected = written_out(encoder, grid)
    expected = {"class": expected[:, :1], "mean": expected[:, 1:].mean(dim=1, keepdim=True), "all": expected}[output]
    torch.testing.assert_close(encoder(Features(grid)), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape[1:] == encoder.hidden
    # the weights do not depend on which patches the subjects fill
    assert {k: v.shape for k, v in tiny.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}


def test_published_size():
    shape = (83, 104, 81)
    flat = np.random.default_rng(0).permutation(np.prod(shape))[:15724]
    spec = SignalSpec(subject="1", modality="fmri", units="a.u.", n_channels=15724, n_times=1, volume_shape=shape,
                      ijk=np.stack(np.unravel_index(flat, shape), axis=1))
    with torch.device("meta"):
        encoder = ViT3D(specs={"1": spec})
        head = TwoLayers(hidden=encoder.hidden, spec=EmbeddingSpec(name="clip", shape=(768,)), space="clip", losses={})
    assert encoder.grid.n_patches == (6, 8, 6)  # 84 x 112 x 84 after padding
    assert encoder.grid.F == 14**3
    layer = 12 * 768**2 + 13 * 768
    assert sum(p.numel() for p in encoder.parameters()) == (
        16 * layer + 2 * 768 + (14**3 + 1) * 768 + (6 + 8 + 6) * 768 + 768)
    assert sum(p.numel() for p in head.parameters()) == 769 * 1024 + 1025 * 768


def test_two_layers_head_follows_the_formula():
    head = TwoLayers(hidden=(2, 3), spec=EmbeddingSpec(name="x", shape=(2, 4)), space="x", losses={}, width=5)
    hidden = torch.randn(6, 2, 3)
    y = F.gelu(hidden.reshape(6, 6) @ head.mlp[0].weight.T + head.mlp[0].bias) @ head.mlp[2].weight.T + head.mlp[2].bias
    torch.testing.assert_close(head(hidden, {}), y.view(6, 2, 4))
