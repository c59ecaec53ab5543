"""Image embeddings of any open_clip model: published weights by name, or an architecture of our own in a small JSON."""

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

from brain2img.artifacts import digest, file_digest
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, Stimuli

log = logging.getLogger(__name__)

OWN_MODELS = Path(__file__).parent


class OpenCLIP(Space):
    """The image embedding of an open_clip model (https://github.com/mlfoundations/open_clip), evaluation transform.

    The evaluation transform is used, not the training one with its random crops, which is what several published
    feature caches hold by mistake.

    Parameters
    ----------
    model
        Name of an architecture open_clip knows ("ViT-H-14"), or of a JSON file beside this module ("scenes_clip").
    pretrained
        Tag of published weights ("laion2b_s32b_b79k"), a path to a checkpoint, or None for random weights by `seed`:
        an untrained network still separates images, but knows nothing about them.
    seed
        Seed of random weights.
    normalise
        Store unit vectors; False stores them raw, and losses normalise.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, pretrained: str | None = None, seed: int = 0, normalise: bool = False,
                 device: str = "auto", name: str = "clip") -> None:
        self.model_name, self.pretrained, self.seed = model, pretrained, seed
        self.normalise, self.name = normalise, name
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    @cached_property
    def _config(self) -> dict[str, Any]:
        import open_clip

        own = OWN_MODELS / f"{self.model_name}.json"
        if own.exists():
            open_clip.add_model_config(own)
        config = open_clip.get_model_config(self.model_name)
        if config is None:
            known = [*sorted(path.stem for path in OWN_MODELS.glob("*.json")), *open_clip.list_models()]
            raise ValueError(f"space {self.name!r}: expected an open_clip architecture, got {self.model_name!r}. "
                             f"Choose one of {', '.join(known[:8])}, ... ({len(known)} in all).")
        return config

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        import open_clip

        assert self._config
        if self.pretrained is None:
            log.warning("space %s: %s with random weights (seed %d): its embeddings carry little meaning", self.name,
                        self.model_name, self.seed)
        level = logging.root.manager.disable
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            logging.disable(logging.WARNING)  # open_clip tells every step to the root logger
            try:
                model, _, transform = open_clip.create_model_and_transforms(
                    self.model_name, pretrained=self.pretrained, weights_only=True)
            except (RuntimeError, OSError, ValueError) as error:
                raise ValueError(
                    f"space {self.name!r}: expected weights {self.pretrained!r} for {self.model_name}, got "
                    f"{type(error).__name__}: {str(error).splitlines()[0]}. Give a tag of open_clip.list_pretrained(), "
                    "a checkpoint path, or download the weights on a machine with network access first.") from error
            finally:
                logging.disable(level)
        return model.eval().requires_grad_(False).to(self.device), transform

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return shape ``(D,)`` with D the model's joint embedding width."""
        return EmbeddingSpec(name=self.name, shape=(int(self._config["embed_dim"]),), dtype="float32",
                             normalised=self.normalise, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of architecture, weights and transform."""
        weights: Any = self.pretrained
        if self.pretrained is None:
            state = hashlib.sha256()
            for key, value in sorted(self._model[0].state_dict().items()):
                state.update(key.encode() + value.cpu().numpy().tobytes())
            weights = state.hexdigest()[:16]
        elif Path(self.pretrained).exists():
            weights = file_digest(Path(self.pretrained))
        return digest(["open_clip", json.dumps(self._config, sort_keys=True), weights, self.normalise])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, D)`` float32 image embeddings."""
        model, transform = self._model
        images = torch.stack([transform(Image.fromarray(image)) for image in stimuli.images(rows)])
        with torch.inference_mode():
            return model.encode_image(images.to(self.device), normalize=self.normalise).float().cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return the small architecture with random weights."""
        return cls(model="scenes_clip")
