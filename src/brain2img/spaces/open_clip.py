"""Image and text embeddings of any open_clip model: published weights by name, or a folder in its own format."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from brain2img.artifacts import digest, file_digest, read_json
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity, locate
from brain2img.pretrained.open_clip_models import load_open_clip
from brain2img.records import EmbeddingSpec, Stimuli

log = logging.getLogger(__name__)


class OpenCLIP(Space):
    """The joint embedding of an open_clip model (https://github.com/mlfoundations/open_clip), evaluation transform.

    The evaluation transform is used, not the training one with its random crops, which is what several published
    feature caches hold by mistake.

    Parameters
    ----------
    model
        Name of an architecture open_clip knows ("ViT-H-14"); or one of our small backbones ("scenes_clip"), or a
        folder, in open_clip's format: ``open_clip_config.json``, weights and, where text needs it, a tokenizer.
    pretrained
        For an architecture: tag of published weights ("laion2b_s32b_b79k"), a path to a checkpoint, or None for random
        weights by `seed`: an untrained network still separates images, but knows nothing about them.
    seed
        Seed of random weights.
    of
        "image"; "text": the mean over the captions of a stimulus; or "patches": the last hidden state of every image
        patch ``(L, width)`` after the final LayerNorm, without class token, projection or normalisation (the target of
        MindEye2 with ViT-bigG-14: 256 x 1664). There images in [0, 1] are taken for ones in [-1, 1], so that its
        targets are of washed-out pictures; here they are not.
    n_captions
        How many captions of a stimulus are embedded, the first ones; None for all. Only of text.
    prompt
        What stands around a caption, in whose place stands {}: "This picture is {}" in ATM, of the name of a concept.
    normalise
        Store unit vectors; False stores them raw, and losses normalise.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If `of` is none of these, patches are to be normalised, or a prompt has no place for the caption.
    """

    def __init__(self, *, model: str, pretrained: str | None = None, seed: int = 0, of: str = "image",
                 n_captions: int | None = None, prompt: str = "{}", normalise: bool = False, device: str = "auto",
                 name: str = "clip") -> None:
        if of not in ("image", "text", "patches"):
            raise ValueError(f"space {name!r}: expected of to be image, text or patches, got {of!r}. Correct it.")
        if of == "patches" and normalise:
            raise ValueError(f"space {name!r}: expected patches as they are, got normalise=true. Set normalise=false.")
        if "{}" not in prompt:
            raise ValueError(f"space {name!r}: expected a prompt with {{}} for the caption, got {prompt!r}. "
                             "Correct it.")
        self.model_name, self.pretrained, self.seed, self.prompt = model, pretrained, seed, prompt
        self.of, self.n_captions, self.normalise, self.name = of, n_captions, normalise, name
        self.device = device_of(device)

    @cached_property
    def _folder(self) -> Path | None:
        folder = Path(locate(self.model_name))
        return folder if folder.is_dir() else None

    @cached_property
    def _config(self) -> dict[str, Any]:
        import open_clip

        if self._folder is not None:
            file = self._folder / "open_clip_config.json"
            if not file.exists():
                raise ValueError(f"space {self.name!r}: expected {file.name} in {self._folder}, got none. "
                                 "Give a folder in open_clip's format, or the name of an architecture.")
            return read_json(file, keys=("model_cfg",), advice="Give a folder in open_clip's format.")["model_cfg"]
        config = open_clip.get_model_config(self.model_name)
        if config is None:
            known = open_clip.list_models()
            raise ValueError(f"space {self.name!r}: expected an open_clip architecture or a folder, got "
                             f"{self.model_name!r}. Choose one of {', '.join(known[:8])}, ... ({len(known)} in all).")
        return config

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        assert self._config
        if self.pretrained is None and self._folder is None:
            log.warning("space %s: %s with random weights (seed %d): its embeddings carry little meaning", self.name,
                        self.model_name, self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model, transform = load_open_clip(
                self.model_name if self._folder is None else f"local-dir:{self._folder}", pretrained=self.pretrained,
                what=f"space {self.name!r}")
        return model.eval().requires_grad_(False).to(self.device), transform

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(D,)`` with D the model's joint embedding width, of patches ``(L, width)``."""
        n_views = min([len(t) for t in stimuli.table["captions"]], default=0) if self.of == "text" else 1
        n_views = n_views if self.n_captions is None or self.of != "text" else min(n_views, self.n_captions)
        if n_views < 1:
            raise ValueError(f"space {self.name!r}: expected captions of every stimulus, got a stimulus without. "
                             "Leave this space out for this study, or take of: image.")
        vision = self._config["vision_cfg"]
        shape: tuple[int, ...] = (int(self._config["embed_dim"]),)
        if self.of == "patches":
            if "patch_size" not in vision:
                raise ValueError(f"space {self.name!r}: expected a vision transformer for of: patches, got "
                                 f"{self.model_name!r}. Choose a ViT, or of: image.")
            shape = ((vision["image_size"] // vision["patch_size"]) ** 2, vision["width"])
        return EmbeddingSpec(name=self.name, shape=shape, dtype="float16" if self.of == "patches" else "float32",
                             n_views=n_views, view_rule="single" if n_views == 1 else "mean",
                             normalised=self.normalise, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of architecture, weights and transform."""
        weights: Any = self.pretrained
        if self._folder is not None:
            weights = identity(str(self._folder))
        elif self.pretrained is None:
            state = hashlib.sha256()
            for key, value in sorted(self._model[0].state_dict().items()):
                state.update(key.encode() + value.cpu().numpy().tobytes())
            weights = state.hexdigest()[:16]
        elif Path(self.pretrained).exists():
            weights = file_digest(Path(self.pretrained))
        return digest(["open_clip", json.dumps(self._config, sort_keys=True), weights, self.normalise,
                       *([] if self.of == "image" else [self.of, self.n_captions]),
                       *([] if self.prompt == "{}" else [self.prompt])])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, D)`` or ``(n, L, width)`` float32 embeddings."""
        model, transform = self._model
        with torch.inference_mode():
            if self.of != "text":
                images = torch.stack([transform(Image.fromarray(image)) for image in stimuli.images(rows)])
                if self.of == "patches":
                    model.visual.output_tokens = True
                    embeddings = model.visual(images.to(self.device))[1]
                else:
                    embeddings = model.encode_image(images.to(self.device), normalize=self.normalise)
            else:
                texts = [list(stimuli.table["captions"].iloc[row])[:self.n_captions] for row in rows]
                prompts = [self.prompt.replace("{}", text) for each in texts for text in each]
                tokens = self._tokenize(prompts).to(self.device)
                parts = model.encode_text(tokens, normalize=self.normalise).split([len(each) for each in texts])
                embeddings = torch.stack([part.mean(dim=0) for part in parts])
                embeddings = torch.nn.functional.normalize(embeddings, dim=-1) if self.normalise else embeddings
        return embeddings.float().cpu().numpy()

    @cached_property
    def _tokenize(self) -> Any:
        import open_clip

        return open_clip.get_tokenizer(self.model_name if self._folder is None else f"local-dir:{self._folder}")

    @classmethod
    def tiny(cls) -> Self:
        """Return the small backbone of the simulated study."""
        return cls(model="scenes_clip")
