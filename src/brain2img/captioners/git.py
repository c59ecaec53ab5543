"""GIT: captions from decoded image features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from brain2img.devices import device_of
from brain2img.interfaces import Captioner
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_config, load_model, load_tokenizer, tiny_tokenizer
from brain2img.records import EmbeddingSpec


class _Features(nn.Module):
    """Stands where the image encoder stood: its "pictures" ``(B, 1, L, D)`` are image features already."""

    def forward(self, features: Tensor, **_: Any) -> Any:
        """Return them as the encoder would."""
        return SimpleNamespace(last_hidden_state=features[:, 0])


class GIT(Captioner):
    """The text decoder of GIT (https://arxiv.org/abs/2205.14100), reading decoded image features in place of true ones.

    As Brain Captioning does (https://arxiv.org/abs/2305.11560); how long its captions are and how they are searched is
    not published in what we have read. Decoding is greedy, or beam search, hence deterministic.

    Parameters
    ----------
    model
        Folder or hub id of a ``GitForCausalLM`` with its tokenizer; safetensors only.
    space
        Space of this model's image features, ``(L, D)``.
    n_beams
        1 is greedy.
    max_length
        Most tokens of a caption.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    """

    tiny_shapes = {"git": (5, 16)}

    def __init__(self, *, model: str, space: str = "git", n_beams: int = 1, max_length: int = 20,
                 device: str = "auto") -> None:
        self.model, self.space, self.n_beams, self.max_length = model, space, n_beams, max_length
        self.needs, self.device = (space,), device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import GitConfig

        return load_config(GitConfig, self.model, what=f"captioner {self.model}")

    @cached_property
    def _language(self) -> Any:
        from transformers import GitForCausalLM

        return _reading_features(load_model(GitForCausalLM, self.model, what=f"captioner {self.model}",
                                            device=self.device))

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, what=f"captioner {self.model}")

    def uid(self) -> str:
        """Return the identity of the weights."""
        return identity(self.model)

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse features of another shape than this model's; see `interfaces.Maker.check`."""
        vision, got = self._config.vision_config, specs[self.space].shape
        expected = (1 + (vision.image_size // vision.patch_size) ** 2, vision.hidden_size)
        if got != expected:
            raise ValueError(f"captioner {self.model}: expected image features of shape {expected}, got {got} in space "
                             f"{self.space!r}. Choose the space of this model's features.")

    @torch.inference_mode()
    def caption(self, embeddings: Mapping[str, Tensor]) -> list[str]:
        """Map space -> ``(B, L, D)`` to B captions."""
        features = embeddings[self.space].to(device=self.device, dtype=torch.float32)
        tokens = self._language.generate(pixel_values=features[:, None], num_beams=self.n_beams, do_sample=False,
                                         max_length=self.max_length)
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks that string eight words together for features ``(5, 16)``."""
        from transformers import GitConfig, GitForCausalLM

        tiny = cls(model="tiny", max_length=6, device="cpu")
        tiny._tokenizer = tiny_tokenizer(bos_token="[CLS]", eos_token="[SEP]")
        tiny._config = tiny_config(len(tiny._tokenizer))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._language = _reading_features(GitForCausalLM(GitConfig(**tiny._config.to_dict())).eval())
        return tiny


def _reading_features(model: Any) -> Any:
    """Return the model without its image encoder, taking features of images for images."""
    model.git.image_encoder = _Features()
    return model


def tiny_config(n_words: int) -> Any:
    """Return the configuration of a small GIT: pictures of 16 x 16 pixels, features ``(5, 16)``."""
    from transformers import GitConfig

    return GitConfig(
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8},
        vocab_size=n_words, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=2, eos_token_id=3)
