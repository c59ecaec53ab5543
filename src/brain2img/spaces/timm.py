"""Embeddings of any timm model: DINOv2, classifiers, and the small networks of our own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity
from brain2img.pretrained.loading import load_timm
from brain2img.records import EmbeddingSpec, Stimuli

log = logging.getLogger(__name__)

OUTPUTS = ("features", "tokens", "logits")


class TimmModel(Space):
    """What a timm model (https://github.com/huggingface/pytorch-image-models) makes of an image, evaluation transform.

    Parameters
    ----------
    model
        Name of one of our small backbones ("scenes_dino"), a folder in timm's format, or the name of published weights
        ("vit_large_patch14_dinov2.lvd142m"), which timm downloads at first use.
    output
        "features" ``(D,)``, pooled, before the classifier; "tokens" ``(L, D)``, all tokens of a transformer, class and
        register tokens first; "logits" ``(n_classes,)``, with the names of the classes as labels where the model has
        them.
    size
        Height and width the image is resized to (pixels); None for the model's own.
    pretrained
        False leaves the weights random: for tests alone.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If `output` is unknown.
    """

    def __init__(self, *, model: str, output: str = "features", size: int | None = None, pretrained: bool = True,
                 device: str = "auto", name: str = "dino") -> None:
        if output not in OUTPUTS:
            raise ValueError(f"space {name!r}: expected output to be one of {OUTPUTS}, got {output!r}. Correct it.")
        self.model, self.output, self.size, self.pretrained, self.name = model, output, size, pretrained, name
        self.device = device_of(device)

    @cached_property
    def _model(self) -> Any:
        return load_timm(self.model, pretrained=self.pretrained, what=f"space {self.name!r}", device=self.device,
                         **({} if self.size is None else {"img_size": self.size}))

    @cached_property
    def _transform(self) -> Any:
        import timm

        return timm.data.create_transform(**timm.data.resolve_model_data_config(self._model), is_training=False)

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return the shape of the chosen output, and the names of classes as labels."""
        labels = tuple(self._model.pretrained_cfg.get("label_names") or ()) if self.output == "logits" else ()
        shape = self._run([Image.new("RGB", (64, 64))]).shape[1:]
        return EmbeddingSpec(name=self.name, shape=shape, dtype="float32", labels=labels, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights, transform and output."""
        return digest(["timm", identity(self.model), self.output, self.size, self.pretrained])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, *shape)`` float32."""
        return self._run([Image.fromarray(image) for image in stimuli.images(rows)])

    def _run(self, images: Sequence[Image.Image]) -> np.ndarray:
        x = torch.stack([self._transform(image) for image in images]).to(self.device)
        with torch.inference_mode():
            if self.output == "logits":
                y = self._model(x)
            else:
                y = self._model.forward_features(x)
                if self.output == "features":
                    y = self._model.forward_head(y, pre_logits=True)
                elif y.ndim != 3:
                    raise ValueError(f"space {self.name!r}: expected a transformer with tokens, got {self.model!r} "
                                     f"with features of shape {tuple(y.shape)[1:]}. Take output: features.")
        return y.float().cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return a small network with random weights."""
        return cls(model="test_vit", pretrained=False)
