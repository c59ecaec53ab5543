"""All projected tokens of a CLIP of transformers: what Versatile Diffusion is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_config, load_model, load_tokenizer
from brain2img.records import EmbeddingSpec, Stimuli

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels (0..1) that CLIP was trained on; see `CLIPImageProcessor` of transformers."""


class CLIPTokens(Space):
    """Every token of CLIP (Radford et al. 2021, arXiv:2103.00020), projected, divided by the norm of the pooled one.

    The targets of MindEye and MindBridge (Wang et al. 2024, https://github.com/littlepure2333/MindBridge). Image: last
    hidden state, layer norm, visual projection; all tokens divided by the L2 norm of the first, the class token. Text:
    last hidden state (77 tokens, padded), text projection; all divided by the norm of the projected embedding of the
    end of the text. In both the pooled embedding has norm 1 and the others keep their size relative to it.

    Deviations: the published recipe embeds an augmented image in every step and takes the captions of a stimulus in
    turn; here a stimulus has one target, of the image as it is and of its first caption (or the mean over several).

    Parameters
    ----------
    model
        Hub id, downloaded at first use, or a folder in transformers' format.
    of
        "image" or "text".
    n_captions
        How many captions of a stimulus are embedded, the first ones; their tokens are averaged place by place. None
        for all. Only of text.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If `of` is neither "image" nor "text".
    """

    def __init__(self, *, model: str = "openai/clip-vit-large-patch14", of: str = "image", n_captions: int | None = 1,
                 device: str = "auto", name: str = "clip") -> None:
        if of not in ("image", "text"):
            raise ValueError(f"space {name!r}: expected of to be image or text, got {of!r}. Correct it.")
        self.model, self.of, self.n_captions, self.name = model, of, n_captions, name
        self.device = device_of(device)

    @cached_property
    def _config(self) -> Any:
        from transformers import CLIPConfig

        config = load_config(CLIPConfig, self.model, what=f"space {self.name!r}")
        return config.vision_config if self.of == "image" else config.text_config

    @cached_property
    def _network(self) -> Any:
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

        cls = CLIPVisionModelWithProjection if self.of == "image" else CLIPTextModelWithProjection
        return load_model(cls, self.model, what=f"space {self.name!r}", device=self.device, config=self._config)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, what=f"space {self.name!r}")

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(L, D)``: (257, 768) of images, (77, 768) of text with CLIP ViT-L/14."""
        config, n_views = self._config, 1
        if self.of == "image":
            n_tokens = (config.image_size // config.patch_size) ** 2 + 1
        else:
            n_tokens = config.max_position_embeddings
            n_views = min([len(captions) for captions in stimuli.table["captions"]], default=0)
            n_views = n_views if self.n_captions is None else min(n_views, self.n_captions)
        if n_views < 1:
            raise ValueError(f"space {self.name!r}: expected captions of every stimulus, got a stimulus without. "
                             "Leave this space out for this study, or take of: image.")
        return EmbeddingSpec(name=self.name, shape=(n_tokens, config.projection_dim), dtype="float16",
                             n_views=n_views, view_rule="single" if n_views == 1 else "mean", uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights, of what is embedded, and of how many captions."""
        return digest(["clip_tokens", identity(self.model), self.of,
                       *([] if self.of == "image" else [self.n_captions])])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, L, D)`` float32."""
        with torch.inference_mode():
            if self.of == "image":
                embeddings = self._of_images(torch.stack([self._pixels(image) for image in stimuli.images(rows)]))
            else:
                texts = [list(stimuli.table["captions"].iloc[row])[:self.n_captions] for row in rows]
                tokens = self._of_texts([text for each in texts for text in each])
                embeddings = torch.stack([part.mean(dim=0) for part in tokens.split([len(each) for each in texts])])
        return embeddings.float().cpu().numpy()

    def _pixels(self, image: np.ndarray) -> Tensor:
        """Return ``(3, size, size)``: shorter edge resized (bicubic), centre cropped, normalised as CLIP wants it."""
        size, picture = self._config.image_size, Image.fromarray(image)
        scale = size / min(picture.size)
        width, height = (max(size, int(edge * scale)) for edge in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        x = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        return torch.from_numpy(((x - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)

    def _of_images(self, pixels: Tensor) -> Tensor:
        network = self._network
        # without the pooling, which normalises the class token alone
        last = network.vision_model(pixel_values=pixels.to(self.device)).last_hidden_state
        tokens = network.visual_projection(network.vision_model.post_layernorm(last))
        return tokens / tokens[:, :1].norm(dim=-1, keepdim=True)

    def _of_texts(self, texts: list[str]) -> Tensor:
        network = self._network
        ids = self._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt",
                              max_length=self._config.max_position_embeddings)["input_ids"].to(self.device)
        output = network(input_ids=ids)  # no mask, as Versatile Diffusion: what pads comes after the end of the text
        tokens = F.linear(output.last_hidden_state, network.text_projection.weight)
        return tokens / output.text_embeds[:, None].norm(dim=-1, keepdim=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return the tokens ``(17, 8)`` of an untrained network for pictures of 32 x 32 pixels."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        tiny = cls(model="tiny", device="cpu")
        tiny._config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, image_size=32,
                                        num_attention_heads=2, patch_size=8, projection_dim=8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny._network = CLIPVisionModelWithProjection(tiny._config).eval().requires_grad_(False)
        return tiny
