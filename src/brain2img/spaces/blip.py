"""Image features of BLIP, from which its text decoder writes a caption."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_config, load_model, pixels
from brain2img.records import EmbeddingSpec, Stimuli


class BLIPFeatures(Space):
    """All tokens of BLIP's vision transformer, after its last norm (https://arxiv.org/abs/2201.12086).

    What Takagi & Nishimoto (https://arxiv.org/abs/2306.11536) decode for captions: 226 x 768 at 240 pixels. Their
    checkpoint ``model_base_capfilt_large`` is ``Salesforce/blip-image-captioning-base`` in transformers; positions are
    interpolated from those of 384 pixels in both.

    Parameters
    ----------
    model
        Folder or hub id of a ``BlipForConditionalGeneration``; safetensors only.
    size
        Height and width (pixels) to which stimuli are resized, bicubic.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, size: int = 240, device: str = "auto", name: str = "blip") -> None:
        self.model, self.size, self.name, self.device = model, size, name, device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import BlipConfig

        config = load_config(BlipConfig, self.model, what=f"space {self.name!r}").vision_config
        if self.size % config.patch_size:
            raise ValueError(f"space {self.name!r}: expected a size divisible by the patches of {config.patch_size} "
                             f"pixels, got {self.size}. Correct space.{self.name}.size.")
        return config

    @cached_property
    def _vision(self) -> Any:
        from transformers import BlipForConditionalGeneration

        return load_model(BlipForConditionalGeneration, self.model, what=f"space {self.name!r}",
                          device=self.device).vision_model

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(1 + (size / patch) ** 2, width)``."""
        shape = (1 + (self.size // self._config.patch_size) ** 2, self._config.hidden_size)
        return EmbeddingSpec(name=self.name, shape=shape, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights and image size."""
        return digest(["blip", identity(self.model), self.size])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, L, D)`` float32."""
        assert self._config
        with torch.inference_mode():
            images = pixels(stimuli, rows, size=self.size).to(self.device)
            return self._vision(images, interpolate_pos_encoding=True).last_hidden_state.cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return 5 tokens of 16 values of an untrained network."""
        from transformers import BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel

        tiny = cls(model="tiny", size=16, device="cpu")
        tiny._config = BlipVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, image_size=16,
                                        num_attention_heads=2, patch_size=8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._vision = BlipVisionModel(tiny._config).eval().requires_grad_(False)
        return tiny
