"""A language model that continues from embedding tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from brain2img.artifacts import is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Captioner
from brain2img.layers import check_weights
from brain2img.pretrained import check_condition, identity, locate
from brain2img.pretrained.loading import load_model, load_tokenizer, tiny_tokenizer
from brain2img.records import EmbeddingSpec

WEIGHTS, SIZES = "prefix.safetensors", "prefix.json"


class PrefixProjection(nn.Module):
    """Embedding ``(B, D)`` -> tokens ``(B, n_prefix, H)``: standardised, then the perceptron of ClipCap.

    Parameters
    ----------
    width
        D.
    n_prefix
        Number of tokens.
    hidden
        H, the width of the language model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, width: int, n_prefix: int, hidden: int) -> None:
        super().__init__()
        self.sizes = {"width": width, "n_prefix": n_prefix, "hidden": hidden}
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        between = n_prefix * hidden // 2
        self.layers = nn.Sequential(nn.Linear(width, between), nn.Tanh(), nn.Linear(between, n_prefix * hidden))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return ``(B, n_prefix, H)``."""
        tokens = self.layers((embeddings - self.mean) / self.std)
        return tokens.unflatten(1, (self.sizes["n_prefix"], self.sizes["hidden"]))


class PrefixLanguageModel(Captioner):
    """Caption an embedding by a causal language model of transformers that reads it as its first tokens.

    After ClipCap (Mokady et al. 2021, https://arxiv.org/abs/2111.09734). The folder holds what the library's
    ``save_pretrained`` writes for model and tokenizer, and beside it ``prefix.safetensors`` and ``prefix.json``.
    Decoding is greedy, or beam search, hence deterministic. Half precision on a GPU, single precision elsewhere.

    Parameters
    ----------
    model
        Name of one of our small backbones, or a folder; safetensors only.
    space
        Space of shape ``(D,)`` that is captioned.
    n_beams
        1 is greedy.
    max_length
        Most tokens of a caption.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    """

    tiny_shapes = {"clip": (12,)}

    def __init__(self, *, model: str, space: str = "clip", n_beams: int = 1, max_length: int = 32,
                 device: str = "auto") -> None:
        self.model, self.space, self.n_beams, self.max_length = model, space, n_beams, max_length
        self.needs = (space,)
        self.device = device_of(device)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float16 if self.device.startswith("cuda") else torch.float32

    def _missing(self, error: Exception) -> ValueError:
        return ValueError(f"captioner.model: expected a folder with a language model, a tokenizer and {WEIGHTS}, got "
                          f"{type(error).__name__} for {self.model!r}: {(str(error).splitlines() or [''])[0]} Train "
                          "one with brain2img train_small_backbones, or give the folder of another.")

    @cached_property
    def _sizes(self) -> dict[str, int]:
        try:
            return json.loads((Path(locate(self.model)) / SIZES).read_text())
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise self._missing(error) from error

    @cached_property
    def _projection(self) -> PrefixProjection:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        projection = PrefixProjection(**self._sizes)
        try:
            state = load_file(Path(locate(self.model)) / WEIGHTS)
        except (OSError, SafetensorError) as error:
            if is_of_the_system(error):
                raise
            raise self._missing(error) from error
        check_weights(projection.state_dict(), state, what=f"{self.model}/{WEIGHTS}",
                      cure="Train the captioner again: its files do not belong together.")
        projection.load_state_dict(state)
        return projection.eval().requires_grad_(False).to(device=self.device, dtype=self._dtype)

    @cached_property
    def _language(self) -> Any:
        from transformers import AutoModelForCausalLM

        return load_model(AutoModelForCausalLM, self.model, what=f"captioner {self.model}", device=self.device,
                          dtype=self._dtype, local_files_only=True, trust_remote_code=False)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, what=f"captioner {self.model}", local_files_only=True)

    def uid(self) -> str:
        """Return the identity of the weights."""
        return identity(self.model)

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse embeddings of another space than the weights were trained on; see `interfaces.Captioner.check`."""
        check_condition(self.model, condition=specs[self.space])
        width, got = self._sizes["width"], specs[self.space].shape
        if got != (width,):
            raise ValueError(f"captioner {self.model}: expected embeddings of shape {(width,)}, got {got} in space "
                             f"{self.space!r}. Choose the space whose embeddings it was trained on.")

    @torch.inference_mode()
    def caption(self, embeddings: Mapping[str, Tensor]) -> list[str]:
        """Map space -> ``(B, D)`` to B captions.

        Raises
        ------
        ValueError
            If weights are missing or do not fit, or captions of `max_length` are too long for the model.
        """
        limit = self._language.config.max_position_embeddings - self._sizes["n_prefix"]
        if not 1 <= self.max_length <= limit:
            raise ValueError(f"captioner.max_length: expected 1 to {limit} tokens for {self.model}, got "
                             f"{self.max_length}. Correct it.")
        prefix = self._projection(embeddings[self.space].to(device=self.device, dtype=self._dtype))
        tokens = self._language.generate(
            inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=self.max_length, num_beams=self.n_beams, do_sample=False,
            pad_token_id=self._tokenizer.eos_token_id, eos_token_id=self._tokenizer.eos_token_id)
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks that string eight words together for embeddings of 12 values."""
        from transformers import GPT2Config, GPT2LMHeadModel

        tiny = cls(model="tiny", max_length=6, device="cpu")
        tiny._tokenizer = tiny_tokenizer(eos_token="[EOS]")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._projection = PrefixProjection(width=12, n_prefix=2, hidden=8).eval()
            tiny._language = GPT2LMHeadModel(GPT2Config(
                vocab_size=len(tiny._tokenizer), n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=2,
                eos_token_id=2, pad_token_id=0)).eval()
        tiny._sizes = tiny._projection.sizes
        return tiny
