"""BLIP: captions from decoded image features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from brain2img.devices import device_of
from brain2img.interfaces import Captioner
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_config, load_model, load_tokenizer, tiny_tokenizer
from brain2img.records import EmbeddingSpec


class BLIP(Captioner):
    """The text decoder of BLIP (https://arxiv.org/abs/2201.12086), reading decoded features in place of an image's.

    As Takagi & Nishimoto do (https://arxiv.org/abs/2306.11536): beam search with 3 beams, 5 to 20 tokens, repetition
    penalty 1.5, no prompt.

    Parameters
    ----------
    model
        Folder or hub id of a ``BlipForConditionalGeneration`` with its tokenizer; safetensors only.
    space
        Space of this model's image features, ``(L, D)``, of pictures of any size.
    n_beams
        1 is greedy.
    min_length, max_length
        Fewest and most tokens of a caption.
    repetition_penalty
        Above 1, words that stand there already become less likely.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    """

    tiny_shapes = {"blip": (5, 16)}

    def __init__(self, *, model: str, space: str = "blip", n_beams: int = 3, min_length: int = 5, max_length: int = 20,
                 repetition_penalty: float = 1.5, device: str = "auto") -> None:
        self.model, self.space, self.n_beams = model, space, n_beams
        self.min_length, self.max_length, self.repetition_penalty = min_length, max_length, repetition_penalty
        self.needs, self.device = (space,), device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import BlipConfig

        return load_config(BlipConfig, self.model, what=f"captioner {self.model}")

    @cached_property
    def _language(self) -> Any:
        from transformers import BlipForConditionalGeneration

        return load_model(BlipForConditionalGeneration, self.model, what=f"captioner {self.model}",
                          device=self.device).text_decoder

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, what=f"captioner {self.model}")

    def uid(self) -> str:
        """Return the identity of the weights."""
        return identity(self.model)

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse features of another width than this model's; see `interfaces.Maker.check`."""
        width, got = self._config.vision_config.hidden_size, specs[self.space].shape
        if len(got) != 2 or got[1] != width:
            raise ValueError(f"captioner {self.model}: expected image features of shape (tokens, {width}), got {got} "
                             f"in space {self.space!r}. Choose the space of this model's features.")

    @torch.inference_mode()
    def caption(self, embeddings: Mapping[str, Tensor]) -> list[str]:
        """Map space -> ``(B, L, D)`` to B captions."""
        features = embeddings[self.space].to(device=self.device, dtype=torch.float32)
        text = self._config.text_config
        tokens = self._language.generate(
            input_ids=torch.full((len(features), 1), text.bos_token_id, device=self.device),
            encoder_hidden_states=features, do_sample=False,
            encoder_attention_mask=torch.ones(features.shape[:2], dtype=torch.long, device=self.device),
            eos_token_id=text.sep_token_id, pad_token_id=text.pad_token_id, num_beams=self.n_beams,
            min_length=self.min_length, max_length=self.max_length, repetition_penalty=self.repetition_penalty)
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks that string eight words together for features ``(L, 16)``."""
        from transformers import BlipForConditionalGeneration

        tiny = cls(model="tiny", max_length=8, device="cpu")
        tiny._tokenizer = tiny_tokenizer(bos_token="[DEC]", eos_token="[SEP]")
        tiny._config = tiny_config(len(tiny._tokenizer))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._language = BlipForConditionalGeneration(tiny._config).eval().text_decoder
        return tiny


def tiny_config(n_words: int) -> Any:
    """Return the configuration of a small BLIP: pictures of 16 x 16 pixels, features ``(5, 16)``."""
    from transformers import BlipConfig

    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}
    text = {"vocab_size": n_words, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "is_decoder": True}
    return BlipConfig(vision_config=vision, text_config=text, projection_dim=8)
