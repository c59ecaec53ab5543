"""Structural optimisation through small autoencoders and networks, some of which were saved to the disk."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from brain2img.interfaces import Reconstructor
from brain2img.reconstructors.structure import StructuralOptimisation
from brain2img.records import EmbeddingSpec, Stimuli
from brain2img.spaces.network_layer import NetworkLayer
from brain2img.stages.build import build

N, LAYERS = 3, {"first": "conv1", "second": "layer1"}


@pytest.fixture(scope="module")
def network():
    return NetworkLayer(model="test_resnet", pretrained=False, device="cpu")


@pytest.fixture(scope="module", params=[AutoencoderKL, VQModel], ids=["kl", "vq"])
def weights(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoencoder")
    request.param(block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                  up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4).save_pretrained(folder)
    return folder


def stimuli(n: int = 5, size: int = 20) -> Stimuli:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Stimuli(pd.DataFrame(index=range(n)), lambda rows: images[list(rows)])


def made(weights, network, **changes) -> StructuralOptimisation:
    reconstructor = StructuralOptimisation(model=str(weights), network=network, layers=LAYERS,
                                           **{"size": 16, "n_steps": 4, "device": "cpu", **changes})
    reconstructor.fit({}, stimuli())
    return reconstructor


def generators(rows=range(N)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in rows]


@pytest.fixture(scope="module")
def decoded(network):
    """Features of other pictures, as no picture of the generator has them."""
    images = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return {space: layer + 0.3 * torch.randn(layer.shape, generator=torch.Generator().manual_seed(8))
                for space, layer in zip(LAYERS, network.layers(images, list(LAYERS.values())), strict=True)}


def test_pictures_are_those_of_the_published_steps_written_out(weights, network, decoded):
    reconstructor = made(weights, network, n_steps=2, lr=0.2, limit=1.5)
    generator = reconstructor._generator
    vq = isinstance(generator, VQModel)
    images = torch.from_numpy(stimuli().images()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        small = torch.nn.functional.interpolate(images, size=(16, 16), mode="bicubic", antialias=True).clamp(0, 1)
        latents = generator.encode(2 * small - 1)
        latents = latents.latents if vq else latents.latent_dist.mean
        seen = network.layers(small, list(LAYERS.values()))
    mean = torch.stack([latents[:, c].mean() for c in range(4)])[:, None, None]
    std = torch.stack([latents[:, c].std() for c in range(4)])[:, None, None]

    def picture(x):
        z = (mean + std * x)[None]
        return (generator.decode(z, **({"force_not_quantize": True} if vq else {})).sample / 2 + 0.5).clamp(0, 1)

    expected = []
    for row in range(N):
        wanted = []
        for true, features in zip(seen, decoded.values(), strict=True):
            spread = np.mean([one.numpy().std(ddof=1) for one in true])
            f = features[row]
            wanted.append((f - f.mean()) / f.std() * float(spread) + f.mean())
        x, speed = torch.randn(4, 8, 8, generator=generators()[row]), torch.zeros(4, 8, 8)
        for step in range(2):
            x = x.clone().requires_grad_()
            loss = sum(((got[0] - f) ** 2).sum() / (f**2).sum()
                       for got, f in zip(network.layers(picture(x), list(LAYERS.values())), wanted, strict=True))
            (gradient,) = torch.autograd.grad(loss, x)
            speed = 0.9 * speed - 0.2 * (1 - step) * gradient / gradient.abs().mean()
            x = (0.99 * (x.detach() + speed)).clamp(-1.5, 1.5)
        expected.append(picture(x).detach())
    # row by row and in few steps, as differences in the order of sums grow from step to step
    got = torch.cat([reconstructor.reconstruct({space: layer[[i]] for space, layer in decoded.items()},
                                               generators=generators([i])) for i in range(N)])
    assert got.std() > 0.01
    torch.testing.assert_close(got, torch.cat(expected), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_planted_picture_is_approached(weights, network):
    reconstructor = made(weights, network, n_steps=40)
    with torch.no_grad():
        true = reconstructor._picture(torch.randn(N, 4, 8, 8, generator=torch.Generator().manual_seed(5)).clamp(-2, 2))
        features = dict(zip(LAYERS, network.layers(true, list(LAYERS.values())), strict=True))
    got = reconstructor.reconstruct(features, generators=generators())
    start = made(weights, network, n_steps=1, lr=1e-6).reconstruct(features, generators=generators())
    near = ((got - true) ** 2).mean(dim=(1, 2, 3)) / ((start - true) ** 2).mean(dim=(1, 2, 3))
    assert (near < 0.4).all(), near
    others = reconstructor.reconstruct({space: layer.roll(1, 0) for space, layer in features.items()},
                                       generators=generators())
    assert (((others - true) ** 2).mean(dim=(1, 2, 3)) > 2 * ((got - true) ** 2).mean(dim=(1, 2, 3))).all()


def test_a_picture_depends_on_its_row_alone_and_not_on_the_spread_of_its_features(weights, network, decoded):
    reconstructor = made(weights, network)
    together = reconstructor.reconstruct(decoded, generators=generators())
    near = {"atol": 1e-3, "rtol": 0}
    alone = [reconstructor.reconstruct({space: layer[[i]] for space, layer in decoded.items()},
                                       generators=generators([i])) for i in range(N)]
    torch.testing.assert_close(torch.cat(alone), together, **near)
    centres = {space: layer.mean(dim=(1, 2, 3), keepdim=True) for space, layer in decoded.items()}
    shrunken = {space: centres[space] + 0.2 * (layer - centres[space]) for space, layer in decoded.items()}
    torch.testing.assert_close(reconstructor.reconstruct(shrunken, generators=generators()), together, **near)
    with torch.no_grad():  # as another reconstructor would call it
        torch.testing.assert_close(reconstructor.reconstruct(decoded, generators=generators()), together)


def test_the_yaml_makes_the_network_and_what_does_not_fit_is_refused(weights, network, tmp_path):
    reconstructor = build({
        "_target_": "brain2img.reconstructors.structure.StructuralOptimisation", "model": str(weights), "device": "cpu",
        "network": {"_target_": "brain2img.spaces.network_layer.NetworkLayer", "model": "test_resnet",
                    "pretrained": False}, "layers": LAYERS}, Reconstructor)
    assert reconstructor.fits
    assert reconstructor.needs == ("first", "second")
    assert reconstructor.uid() == made(weights, network).uid()
    specs = {space: EmbeddingSpec(name=space, shape=(1,), uid=NetworkLayer(
        model="test_resnet", layer=layer, pretrained=False).uid()) for space, layer in LAYERS.items()}
    reconstructor.check(specs)
    with pytest.raises(ValueError, match="expected space 'second' to be layer 'layer1' of the network"):
        reconstructor.check({**specs, "second": specs["first"]})
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got 2 layers, n_steps 0"):
        made(weights, network, n_steps=0)
    with pytest.raises(ValueError, match=r"expected an autoencoder of diffusers .*nowhere"):
        made(tmp_path / "nowhere", network)


def test_a_layer_is_what_the_module_makes_before_the_next_changes_it_in_place(network):
    import timm

    plain, seen = timm.create_model("test_resnet").eval(), stimuli(size=16)
    plain.load_state_dict(network._network.state_dict())
    space = NetworkLayer(model="test_resnet", layer="conv1", pretrained=False, device="cpu", name="first")
    config, images = plain.pretrained_cfg, torch.from_numpy(seen.images()).permute(0, 3, 1, 2).float() / 255
    sized = torch.nn.functional.interpolate(images, size=config["input_size"][1:], mode="bicubic", antialias=True)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = plain.conv1((sized.clamp(0, 1) - mean) / std)
    assert expected.min() < 0, "what follows sets these to 0"
    np.testing.assert_allclose(space.embed(seen, range(5)), expected.numpy(), atol=1e-5)
    assert space.spec(seen).shape == expected.shape[1:]
    assert len({space.uid(), network.uid(), network.uid_of("layer1")}) == 3
    with pytest.raises(ValueError, match=r"expected layers of test_resnet, got 'conv9'. Choose of .*'conv1'"):
        network.layers(images, ["conv9"])
    with pytest.raises(ValueError, match="space 'layer': expected a timm model, got RuntimeError for 'no_such'"):
        NetworkLayer(model="no_such").spec(seen)
