"""Structural optimisation: the picture of a generator whose network features are the decoded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Generator, Tensor

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Reconstructor
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_diffusers, pictures
from brain2img.records import EmbeddingSpec, Stimuli

LAST_LR, MOMENTUM = 1e-10, 0.9


class FeatureNetwork(Protocol):
    """A network that gives several layers at once, with a gradient, such as `spaces.network_layer.NetworkLayer`."""

    def uid_of(self, layer: str) -> str:
        """Return the uid of the space of one layer."""

    def layers(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Return what the layers make of images ``(n, 3, h, w)`` in [0, 1]."""


class StructuralOptimisation(Reconstructor):
    """Optimise a generator's latents until a network sees in its picture what was decoded.

    After Takagi & Nishimoto (https://arxiv.org/abs/2306.11536) and Shen et al.
    (https://doi.org/10.1371/journal.pcbi.1006633): decoded features of each layer are centred over its units, brought
    to the spread that true features have, and moved back; then the squared differences, each layer's over the squared
    norm of its decoded features, are lowered by 200 steps of SGD with momentum 0.9, whose gradient is divided by its
    mean absolute value, whose rate falls linearly to 1e-10, and after each of which latents shrink by 1 % and are
    clipped.

    Deviations: the published generator (a Caffe network that makes pictures of AlexNet's fc7) is in no library, so an
    autoencoder of diffusers stands there. Its latents are standardised by those of training pictures, so that the
    start is N(0, 1) as published, and clipped to 3 standard deviations (published: 0 to 3 times the range of fc7). The
    rate of 2 belongs to fc7, hence `lr`. Its pictures are in range, so no percentiles are cut off. The spread of true
    features is that of training stimuli, not of ImageNet.

    Parameters
    ----------
    model
        Name of one of our small backbones, folder, or hub id of the autoencoder; safetensors only.
    network
        What sees the picture.
    layers
        Space of decoded features -> name of its layer in `network`.
    subfolder
        Folder of the autoencoder in `model`; "" where it is all there is.
    size
        Height and width of the images (pixels).
    n_steps
        Steps of gradient descent.
    lr
        Rate of the first one, in standard deviations of the latents.
    decay
        By which share latents shrink in each step.
    limit
        Largest latent, in standard deviations.
    device
        Where the generator runs; "auto" takes a GPU if there is one.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tiny_shapes = {"colours": (3, 16, 16)}

    def __init__(self, *, model: str, network: FeatureNetwork, layers: Mapping[str, str], subfolder: str = "",
                 size: int = 224, n_steps: int = 200, lr: float = 0.1, decay: float = 0.01, limit: float = 3.0,
                 device: str = "auto") -> None:
        self.model, self.network, self.layers, self.subfolder, self.size = model, network, layers, subfolder, size
        self.n_steps, self.lr, self.decay, self.limit = n_steps, lr, decay, limit
        self._spread: dict[str, Tensor] = {}  # by `fit`
        self.device, self.needs = device_of(device), tuple(layers)
        if n_steps < 1 or lr <= 0 or not 0 <= decay < 1 or limit <= 0 or not layers:
            raise ValueError(f"reconstructor: expected layers, n_steps of 1 or more, lr and limit above 0 and decay in "
                             f"[0, 1), got {len(layers)} layers, n_steps {n_steps}, lr {lr}, limit {limit}, decay "
                             f"{decay}. Correct them.")

    @cached_property
    def _generator(self) -> Any:
        from diffusers import AutoModel

        model = load_diffusers(AutoModel, self.model, what="reconstructor.model", subfolder=self.subfolder or None,
                              dtype=torch.float32, kind="an autoencoder of diffusers", trust_remote_code=False)
        return model.eval().requires_grad_(False).to(self.device)

    def uid(self) -> str:
        """Return the identity of both networks."""
        return digest([identity(self.model, subfolder=self.subfolder), self.network.uid_of("")])

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse features that are not of this network's layers.

        Raises
        ------
        ValueError
            If a space is not that of its layer.
        """
        for space, layer in self.layers.items():
            if specs[space].uid != self.network.uid_of(layer):
                raise ValueError(f"reconstructor.layers: expected space {space!r} to be layer {layer!r} of the network "
                                 "that sees the pictures, got another space. Correct layers or network, or decode the "
                                 "space of this layer.")

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Measure latents and features of up to 500 training stimuli; `embeddings` are not read: layers are large."""
        rows = np.unique(np.linspace(0, len(stimuli) - 1, 500).astype(int))
        latents, spreads = [], []
        with torch.no_grad():
            for part in np.array_split(rows, -(-len(rows) // 20)):
                images = pictures(stimuli, part.tolist(), size=self.size).to(self.device)
                encoded = self._generator.encode(2 * images - 1)
                latents.append(encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean)
                seen = self.network.layers(images, list(self.layers.values()))
                spreads.append(torch.stack([layer.flatten(1).std(dim=1) for layer in seen], dim=1))
        every = torch.cat(latents)
        self._mean, self._std = every.mean(dim=(0, 2, 3), keepdim=True), every.std(dim=(0, 2, 3), keepdim=True)
        self._spread = dict(zip(self.layers, torch.cat(spreads).mean(dim=0).to(self.device), strict=True))

    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1]; see `interfaces.Reconstructor.reconstruct`."""
        assert self._spread, "fit before reconstruct"
        side = self.size // 2 ** (len(self._generator.config.block_out_channels) - 1)
        wanted = [self._rescaled(embeddings[space].to(self.device), self._spread[space]) for space in self.layers]
        x = torch.stack([torch.randn(self._mean.shape[1], side, side, generator=g) for g in generators]).to(self.device)
        speed = torch.zeros_like(x)
        for lr in torch.linspace(self.lr, LAST_LR, self.n_steps).tolist():
            gradient = self._gradient(x, wanted)
            # picture by picture, so that none depends on those beside it
            speed = MOMENTUM * speed - lr * gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
            x = ((1 - self.decay) * (x + speed)).clamp(-self.limit, self.limit)
        with torch.no_grad():
            return self._picture(x).cpu()

    @staticmethod
    def _rescaled(features: Tensor, spread: Tensor) -> Tensor:
        """Return features ``(B, units)`` with the s.d. over units that true ones have: decoded ones have less."""
        flat = features.flatten(1)
        centre = flat.mean(dim=1, keepdim=True)
        return (flat - centre) / flat.std(dim=1, keepdim=True).clamp(min=1e-12) * spread + centre

    def _gradient(self, x: Tensor, wanted: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            seen = self.network.layers(self._picture(x), list(self.layers.values()))
            loss = torch.stack([((layer.flatten(1) - features) ** 2).sum(dim=1) / (features**2).sum(dim=1)
                                for layer, features in zip(seen, wanted, strict=True)]).sum()
            return torch.autograd.grad(loss, x)[0]

    def _picture(self, x: Tensor) -> Tensor:
        """Return the images ``(B, 3, size, size)`` in [0, 1] of standardised latents."""
        # a VQModel would move latents to its nearest codes, which has no gradient
        exact = {"force_not_quantize": True} if type(self._generator).__name__ == "VQModel" else {}
        return (self._generator.decode(self._mean + self._std * x, **exact).sample / 2 + 0.5).clamp(0, 1)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks that make images of 16 x 16 pixels and see nothing but colours."""
        from diffusers import AutoencoderKL

        class Colours:
            def uid_of(self, layer: str) -> str:
                return f"colours {layer}"

            def layers(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
                return [images - 0.5 for _ in names]

        tiny = cls(model="tiny", network=Colours(), layers={"colours": "all"}, size=16, n_steps=2, device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._generator = AutoencoderKL(
                block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4).eval().requires_grad_(False)
        tiny._mean, tiny._std = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
        tiny._spread = {"colours": torch.ones(())}
        return tiny
