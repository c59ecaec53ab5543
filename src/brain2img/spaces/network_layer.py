"""What one layer of a timm network makes of an image, and all layers of one at once, with a gradient."""

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
from brain2img.pretrained.loading import load_timm, pictures, resized
from brain2img.records import EmbeddingSpec, Stimuli


class NetworkLayer(Space):
    """The output of one module of a timm model (https://github.com/huggingface/pytorch-image-models).

    As Takagi & Nishimoto (https://arxiv.org/abs/2306.11536) decode layers of VGG-19: of torchvision's weights
    ("vgg19.tv_in1k"), conv1_2 is "features.2", conv2_2 "features.7", conv3_4 "features.16", conv4_4 "features.25",
    conv5_4 "features.34", fc6 "pre_logits.fc1", fc7 "pre_logits.fc2", fc8 "head.fc". These are values before a ReLU;
    whether theirs are is not in what we have read. The whole picture is seen: none of its edge is cut off.

    Parameters
    ----------
    model
        Name of one of our small backbones, a folder in timm's format, or the name of published weights, which timm
        downloads at first use.
    layer
        Name of a module, as in ``named_modules()`` of the network; "" is the whole network.
    pretrained
        False leaves the weights random: for tests alone.
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.
    """

    def __init__(self, *, model: str, layer: str = "", pretrained: bool = True, device: str = "auto",
                 name: str = "layer") -> None:
        self.model, self.layer, self.pretrained, self.name = model, layer, pretrained, name
        self.device = device_of(device)

    @cached_property
    def _network(self) -> Any:
        return load_timm(self.model, pretrained=self.pretrained, what=f"space {self.name!r}", device=self.device)

    def layers(self, images: Tensor, names: Sequence[str]) -> list[Tensor]:
        """Return what the modules `names` make of images ``(n, 3, h, w)`` in [0, 1], each ``(n, *shape)``.

        Images of another size than the network's are resized (bicubic, antialiased). Differentiable.

        Raises
        ------
        ValueError
            If the network has no such module.
        """
        config, known, outputs = self._network.pretrained_cfg, dict(self._network.named_modules()), {}
        for name in names:
            if name not in known:
                raise ValueError(f"space {self.name!r}: expected layers of {self.model}, got {name!r}. Choose of "
                                 f"{[n for n in known if n]}.")

        def keep(name: str) -> Any:
            # a copy, because the next module may change the values in place
            return lambda module, given, output: outputs.update({name: output.clone()})

        hooks = [known[name].register_forward_hook(keep(name)) for name in names]
        try:
            images = resized(images.to(self.device), tuple(config["input_size"][1:]))
            mean, std = (torch.tensor(config[key], device=self.device)[:, None, None] for key in ("mean", "std"))
            self._network((images - mean) / std)
        finally:
            for hook in hooks:
                hook.remove()
        return [outputs[name] for name in names]

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return the shape of the layer's output."""
        with torch.inference_mode():
            shape = self.layers(torch.zeros(1, 3, 64, 64), [self.layer])[0].shape[1:]
        return EmbeddingSpec(name=self.name, shape=tuple(shape), dtype="float32", uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights and layer."""
        return self.uid_of(self.layer)

    def uid_of(self, layer: str) -> str:
        """Return the `uid` of the space of another layer of this network."""
        return digest(["network_layer", identity(self.model), self.pretrained, layer])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, *shape)`` float32."""
        with torch.inference_mode():
            return self.layers(pictures(stimuli, rows), [self.layer])[0].cpu().numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return the first layer of a small network with random weights."""
        return cls(model="test_resnet", layer="conv1", pretrained=False, device="cpu")
