"""Image features of GIT, from which its text decoder writes a caption."""

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


class GITFeatures(Space):
    """All tokens of GIT's image encoder, before the projection to its text decoder (https://arxiv.org/abs/2205.14100).

    What Brain Captioning (https://arxiv.org/abs/2305.11560) decodes; which size of GIT and which of its layers it takes
    is not published in what we have read. Of ``microsoft/git-base-coco``: 197 x 768.

    Parameters
    ----------
    model
        Folder or hub id of a ``GitForCausalLM``; safetensors only.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, device: str = "auto", name: str = "git") -> None:
        self.model, self.name, self.device = model, name, device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import GitConfig

        return load_config(GitConfig, self.model, what=f"space {self.name!r}").vision_config

    @cached_property
    def _encoder(self) -> Any:
        from transformers import GitForCausalLM

        return load_model(GitForCausalLM, self.model, what=f"space {self.name!r}",
                          device=self.device).git.image_encoder

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(1 + (image size / patch) ** 2, width)``."""
        shape = (1 + (self._config.image_size // self._config.patch_size) ** 2, self._config.hidden_size)
        return EmbeddingSpec(name=self.name, shape=shape, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of the weights."""
        return digest(["git", identity(self.model)])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, L, D)`` float32."""
        with torch.inference_mode():
            images = pixels(stimuli, rows, size=self._config.image_size).to(self.device)
            return self._encoder(images).last_hidden_state.cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return 5 tokens of 16 values of an untrained network."""
        from transformers import GitVisionConfig, GitVisionModel

        tiny = cls(model="tiny", device="cpu")
        tiny._config = GitVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, image_size=16,
                                       num_attention_heads=2, patch_size=8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._encoder = GitVisionModel(tiny._config).eval().requires_grad_(False)
        return tiny
