"""Depth: hidden states of DPT, and the depth map that its neck and head make of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_config, load_model, pixels
from brain2img.records import EmbeddingSpec, Stimuli

_COLOURS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class DPTStates(Space):
    """One of the four hidden states that DPT's neck reads, or the depth map (https://arxiv.org/abs/2103.13413).

    Takagi & Nishimoto (https://arxiv.org/abs/2306.11536) decode the four states of ``Intel/dpt-large``, 577 x 1024
    each, and let neck and head make a depth map of them (`depth`); Brain Captioning (https://arxiv.org/abs/2305.11560)
    decodes depth.

    Parameters
    ----------
    model
        Folder or hub id of a ``DPTForDepthEstimation`` with a vision transformer of its own; safetensors only.
    stage
        0 to 3, the state in the order in which the neck reads them; None: the depth map.
    size
        Height and width of the depth map, which is resized (bicubic) and brought to [-1, 1] picture by picture, as a
        depth-conditioned Stable Diffusion takes it.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If there is no such stage.
    """

    def __init__(self, *, model: str, stage: int | None = None, size: int = 64, device: str = "auto",
                 name: str = "depth") -> None:
        if stage not in (None, 0, 1, 2, 3):
            raise ValueError(f"space {name!r}: expected a stage of 0 to 3, or null for the depth map, got {stage}. "
                             "Correct it.")
        self.model, self.stage, self.size, self.name, self.device = model, stage, size, name, device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import DPTConfig

        config = load_config(DPTConfig, self.model, what=f"space {self.name!r}")
        if config.is_hybrid or config.backbone_config is not None:
            raise ValueError(f"space {self.name!r}: expected a DPT with a vision transformer of its own, got another "
                             f"backbone in {self.model}. Choose one like Intel/dpt-large.")
        return config

    @cached_property
    def _network(self) -> Any:
        from transformers import DPTForDepthEstimation

        return load_model(DPTForDepthEstimation, self.model, what=f"space {self.name!r}", device=self.device)

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(1 + (image size / patch) ** 2, width)`` of a state, or ``(1, size, size)``."""
        if self.stage is None:
            return EmbeddingSpec(name=self.name, shape=(1, self.size, self.size), dtype="float32",
                                 value_range=(-1.0, 1.0), uid=self.uid())
        shape = (1 + (self._config.image_size // self._config.patch_size) ** 2, self._config.hidden_size)
        return EmbeddingSpec(name=self.name, shape=shape, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights and output."""
        return self._uid(self.stage)

    def _uid(self, stage: int | None) -> str:
        return digest(["dpt", identity(self.model), stage, self.size if stage is None else None])

    def check_states(self, states: Sequence[EmbeddingSpec]) -> None:
        """Refuse what `depth` cannot use: it wants the four states of this model in their order.

        Raises
        ------
        ValueError
            If they are not these.
        """
        known = {self._uid(stage): stage for stage in range(4)}
        got = [known.get(spec.uid) for spec in states]
        if got != [0, 1, 2, 3]:
            raise ValueError(f"depth of hidden states: expected stages 0, 1, 2, 3 of {self.model}, got stages {got} "
                             f"(None: not of this model) in spaces {[spec.name for spec in states]}. Correct "
                             "depth_spaces, or decode these spaces.")

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return states ``(n, L, D)`` or depth maps ``(n, 1, size, size)`` (near is high), float32."""
        assert self._config
        with torch.inference_mode():
            images = pixels(stimuli, rows, size=self._config.image_size, colours=_COLOURS).to(self.device)
            hidden = self._network.dpt(images, output_hidden_states=True).hidden_states
            states = [hidden[i + 1] for i in self._config.backbone_out_indices]  # the first are the embedded patches
            return (self.depth(states) if self.stage is None else states[self.stage]).cpu().numpy()

    @torch.inference_mode()
    def depth(self, states: Sequence[Tensor]) -> Tensor:
        """Return the depth maps ``(n, 1, size, size)`` in [-1, 1] of four states ``(n, L, D)``, true or decoded."""
        depths = self._network.head(self._network.neck([state.to(self.device) for state in states], None, None))
        maps = torch.nn.functional.interpolate(depths[:, None], size=(self.size, self.size), mode="bicubic",
                                               align_corners=False)
        low, high = (edge(maps, dim=(1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
        return 2 * (maps - low) / (high - low).clamp(min=1e-12) - 1

    @classmethod
    def tiny(cls) -> Self:
        """Return 8 x 8 depth maps of an untrained network."""
        from transformers import DPTConfig, DPTForDepthEstimation

        tiny = cls(model="tiny", size=8, device="cpu")
        tiny._config = DPTConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32,
            patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
            is_hybrid=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._network = DPTForDepthEstimation(tiny._config).eval().requires_grad_(False)
        return tiny
