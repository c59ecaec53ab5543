"""Latents of the autoencoder of a latent diffusion model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from brain2img.artifacts import digest, is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity, locate
from brain2img.pretrained.loading import load_diffusers, pictures
from brain2img.records import EmbeddingSpec, Stimuli

AUTOENCODERS = ("VQModel", "AutoencoderKL")


class VAELatents(Space):
    """Latents of an image in a diffusers autoencoder: what a diffusion model starts from and ends with.

    Of a ``VQModel`` (the MoVQ of Kandinsky 2.2) the values before quantisation, unscaled, as its pipelines use them; of
    an ``AutoencoderKL`` (Stable Diffusion) the posterior's mean, times the scaling factor of its configuration.

    Parameters
    ----------
    model
        Name of one of our small backbones, folder, or hub id.
    subfolder
        Folder of the autoencoder in it ("movq", "vae", or "" where it is all there is).
    size
        Height and width (pixels) to which stimuli are resized, bicubic.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, subfolder: str = "movq", size: int = 64, device: str = "auto",
                 name: str = "vae") -> None:
        self.model, self.subfolder, self.size, self.name = model, subfolder, size, name
        self.device = device_of(device)

    @cached_property
    def _config(self) -> dict[str, Any]:
        from diffusers import VQModel

        try:
            config = dict(VQModel.load_config(locate(self.model), subfolder=self.subfolder or None))
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise self._missing(error) from error
        if config["_class_name"] not in AUTOENCODERS:
            raise ValueError(f"space {self.name!r}: expected an autoencoder of {AUTOENCODERS}, got "
                             f"{config['_class_name']} in {self.model}/{self.subfolder}. Choose another subfolder.")
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        if self.size % factor:
            raise ValueError(f"space {self.name!r}: expected a size divisible by {factor}, as {self.model} shrinks it "
                             f"by that, got {self.size}. Correct space.{self.name}.size.")
        return {**config, "side": self.size // factor}

    @cached_property
    def _autoencoder(self) -> Any:
        import diffusers

        cls = getattr(diffusers, self._config["_class_name"])
        model = load_diffusers(cls, self.model, what=f"space {self.name!r}", subfolder=self.subfolder or None,
                              dtype=torch.float32, kind="an autoencoder of diffusers")
        return model.eval().requires_grad_(False).to(self.device)

    def _missing(self, error: Exception) -> ValueError:
        return ValueError(f"space {self.name!r}: expected the weights of an autoencoder in {self.model} (folder "
                          f"{self.subfolder!r}, safetensors), got {type(error).__name__}: {str(error).splitlines()[0]} "
                          "Give a folder or hub id that holds them, or download them on a machine with network access "
                          "first.")

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(latent channels, size / f, size / f)`` with f the factor by which the network shrinks."""
        channels = self._config.get("vq_embed_dim") or self._config["latent_channels"]
        return EmbeddingSpec(name=self.name, shape=(channels, self._config["side"], self._config["side"]),
                             dtype="float32", uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights and image size."""
        return digest(["vae", json.dumps(self._config, sort_keys=True, default=str),
                       identity(self.model, subfolder=self.subfolder), self.size])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, C, h, w)`` float32 latents."""
        with torch.inference_mode():
            return self._latents(pictures(stimuli, rows, size=self.size).to(self.device) * 2 - 1).cpu().numpy()

    def _latents(self, images: Tensor) -> Tensor:
        encoded = self._autoencoder.encode(images)
        if self._config["_class_name"] == "VQModel":
            return encoded.latents
        config = self._autoencoder.config
        return (encoded.latent_dist.mean - (config.shift_factor or 0)) * config.scaling_factor

    @classmethod
    def tiny(cls) -> Self:
        """Return 8 x 8 latents of a small untrained MoVQ."""
        from diffusers import VQModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            autoencoder = VQModel(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, num_vq_embeddings=8, vq_embed_dim=4)
        tiny = cls(model="tiny", size=16, device="cpu")
        tiny._autoencoder = autoencoder.eval().requires_grad_(False)
        tiny._config = {**autoencoder.config, "_class_name": "VQModel", "side": 8}
        return tiny
