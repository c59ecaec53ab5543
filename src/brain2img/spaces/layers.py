"""Several layers of one backbone at once, for targets that fuse them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from brain2img.artifacts import digest
from brain2img.devices import device_of
from brain2img.interfaces import Space
from brain2img.pretrained import identity, locate
from brain2img.pretrained.loading import load_timm
from brain2img.pretrained.open_clip_models import load_open_clip
from brain2img.records import EmbeddingSpec, Stimuli

LIBRARIES = ("timm", "open_clip")


class Layers(Space):
    """What several modules of one timm or open_clip network make of an image, in one pass, put together flat.

    Middle layers of the target's backbone carry what EEG tells better than the last one does: "Shallow Alignment"
    (2601.21948) aligns to one of them, SAMGA (2604.17782) fuses several. The parts of an embedding are named after the
    layers (`EmbeddingSpec.parts`), so that a head can standardise and weigh each (head=shared_space). Nothing is
    normalised here. Evaluation transform.

    Parameters
    ----------
    model
        One of our small backbones, a folder in the library's format, or the name of published weights.
    library
        "timm" or "open_clip" (the image tower).
    layers
        Names of modules, as in ``named_modules()`` of the network (of open_clip: of its ``visual``); "" is the
        network's own output.
    pretrained
        open_clip: tag of the published weights. timm: left None; False leaves weights random, for tests alone.
    side
        Feature maps ``(c, h, w)`` are averaged over a grid of this side (1: over the whole picture); the tokens of a
        transformer likewise, class token first where it has one (then ``1 + side ** 2`` tokens).
    device
        Where the model runs; "auto" takes a GPU if there is one.
    name
        Key of the space in the configuration.

    Raises
    ------
    ValueError
        If the library is unknown, no layer is named, or the network has no such module.
    """

    def __init__(self, *, model: str, layers: Sequence[str], library: str = "timm", pretrained: Any = None,
                 side: int = 1, device: str = "auto", name: str = "layers") -> None:
        if library not in LIBRARIES:
            raise ValueError(f"space {name!r}: expected library to be one of {LIBRARIES}, got {library!r}. Correct it.")
        if not layers or side < 1:
            raise ValueError(f"space {name!r}: expected names of layers and a side of 1 or more, got {list(layers)} "
                             f"and {side}. Correct space.{name}.")
        self.model, self.library, self.layers, self.pretrained = model, library, list(layers), pretrained
        self.side, self.name, self.device = side, name, device_of(device)

    @cached_property
    def _network(self) -> tuple[Any, Any]:
        """Return the network and its transform."""
        folder = Path(locate(self.model))
        local = f"local-dir:{folder}" if folder.is_dir() else self.model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, transform = self._of_timm() if self.library == "timm" else self._of_open_clip(local)
        known = dict(network.named_modules())
        for layer in self.layers:
            if layer not in known:
                raise ValueError(f"space {self.name!r}: expected layers of {self.model}, got {layer!r}. Choose of "
                                 f"{[n for n in known if n]}.")
        return network.eval().requires_grad_(False).float().to(self.device), transform

    def _of_timm(self) -> tuple[Any, Any]:
        import timm

        network = load_timm(self.model, pretrained=self.pretrained is not False, what=f"space {self.name!r}",
                            device=self.device)
        return network, timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    def _of_open_clip(self, model: str) -> tuple[Any, Any]:
        whole, transform = load_open_clip(model, pretrained=self.pretrained or None, what=f"space {self.name!r}")
        return whole.visual, transform

    def _run(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return layer -> ``(n, size)``."""
        network, transform = self._network
        known, outputs = dict(network.named_modules()), {}

        def keep(layer: str) -> Any:
            def hook(module: Any, given: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else output
                outputs[layer] = self._pooled(first, n=len(images), layer=layer)
            return hook

        hooks = [known[layer].register_forward_hook(keep(layer)) for layer in self.layers]
        try:
            with torch.inference_mode():
                network(torch.stack([transform(image) for image in images]).to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: outputs[layer].float().cpu() for layer in self.layers}

    def _pooled(self, output: Tensor, *, n: int, layer: str) -> Tensor:
        """Return ``(n, size)`` of maps ``(n, c, h, w)``, tokens ``(n, L, c)`` or ``(L, n, c)``, or vectors."""
        if output.ndim == 4:
            return F.adaptive_avg_pool2d(output, min(self.side, *output.shape[-2:])).flatten(1)
        if output.ndim == 3:
            tokens = output if output.shape[0] == n else output.transpose(0, 1)
            n_first = tokens.shape[1] - int(tokens.shape[1] ** 0.5) ** 2  # class and register tokens
            first, patches = tokens[:, :n_first], tokens[:, n_first:].transpose(1, 2)
            square = patches.unflatten(2, (int(patches.shape[2] ** 0.5), -1))
            pooled = F.adaptive_avg_pool2d(square, min(self.side, square.shape[-1])).flatten(2).transpose(1, 2)
            return torch.cat([first[:, :1], pooled], dim=1).flatten(1)
        if output.ndim == 2:
            return output.clone()
        raise ValueError(f"space {self.name!r}, layer {layer!r}: expected maps, tokens or vectors, got values of shape "
                         f"{tuple(output.shape)}. Choose another layer.")

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return the flat shape and its parts, one a layer."""
        outputs = self._run([Image.new("RGB", (64, 64))] * 2)
        parts = {layer or "output": values.shape[1] for layer, values in outputs.items()}
        return EmbeddingSpec(name=self.name, shape=(sum(parts.values()),), dtype="float16", parts=parts, uid=self.uid())

    def uid(self) -> str:
        """Return the identity of weights, transform, layers and pooling."""
        return digest(["layers", self.library, identity(self.model), self.pretrained, self.layers, self.side])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, size)`` float32."""
        images = [Image.fromarray(image) for image in stimuli.images(rows)]
        return torch.cat(list(self._run(images).values()), dim=1).numpy()

    @classmethod
    def tiny(cls) -> Self:
        """Return two layers of a small network with random weights."""
        return cls(model="test_vit", layers=["blocks.0", ""], pretrained=False, device="cpu")
