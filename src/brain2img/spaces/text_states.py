"""States of the text encoder of a latent diffusion model: what its cross-attention is conditioned on."""

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
from brain2img.pretrained.loading import load_config, load_model, load_tokenizer, tiny_tokenizer
from brain2img.records import EmbeddingSpec, Stimuli


class TextStates(Space):
    """Last hidden states of a CLIP text encoder, mean over the captions of a stimulus.

    The `c` of Takagi & Nishimoto (https://doi.org/10.1101/2022.11.18.517004): 77 x 768 in Stable Diffusion 1.4.

    Parameters
    ----------
    model
        Folder or hub id of a diffusers pipeline (``text_encoder``, ``tokenizer``); safetensors only.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, device: str = "auto", name: str = "clip_text") -> None:
        self.model, self.name, self.device = model, name, device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import CLIPTextConfig

        return load_config(CLIPTextConfig, self.model, what=f"space {self.name!r}", subfolder="text_encoder")

    @cached_property
    def _encoder(self) -> Any:
        from transformers import CLIPTextModel

        return load_model(CLIPTextModel, self.model, what=f"space {self.name!r}", device=self.device,
                          subfolder="text_encoder")

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, what=f"space {self.name!r}", subfolder="tokenizer")

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(tokens, width)``.

        Raises
        ------
        ValueError
            If a stimulus has no caption.
        """
        n_views = min([len(texts) for texts in stimuli.table["captions"]], default=0)
        if n_views < 1:
            raise ValueError(f"space {self.name!r}: expected captions of every stimulus, got a stimulus without. "
                             "Leave this space out for this study.")
        return EmbeddingSpec(name=self.name, shape=(self._config.max_position_embeddings, self._config.hidden_size),
                             n_views=n_views, view_rule="single" if n_views == 1 else "mean", uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights and vocabulary."""
        parts = [identity(self.model, subfolder=part) for part in ("text_encoder", "tokenizer")]
        return digest(["text_states", *parts])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, L, D)`` float32."""
        texts = [list(stimuli.table["captions"].iloc[row]) for row in rows]
        tokens = self._tokenizer([text for each in texts for text in each], padding="max_length", truncation=True,
                                 max_length=self._config.max_position_embeddings, return_tensors="pt")
        with torch.inference_mode():
            # without a mask, as Stable Diffusion does it
            states = self._encoder(tokens["input_ids"].to(self.device)).last_hidden_state
            return torch.stack([part.mean(dim=0) for part in states.split([len(t) for t in texts])]).cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return 6 tokens of 16 values of an untrained network that knows eight words."""
        from transformers import CLIPTextConfig, CLIPTextModel

        tiny = cls(model="tiny", device="cpu")
        tiny._tokenizer = tiny_tokenizer(eos_token="[EOS]")
        tiny._config = CLIPTextConfig(vocab_size=len(tiny._tokenizer), hidden_size=16, intermediate_size=32,
                                      num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=6,
                                      eos_token_id=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._encoder = CLIPTextModel(tiny._config).eval().requires_grad_(False)
        return tiny
