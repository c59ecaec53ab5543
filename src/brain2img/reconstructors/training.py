"""How scenes_decoder is trained: an autoencoder, then latent diffusion conditioned on image embeddings.

The result is a folder of diffusers' `KandinskyV22Pipeline`. That pipeline decodes latents as they are (no scaling
factor), so the latents themselves are made to have zero mean and unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from brain2img.training import Plan, train

if TYPE_CHECKING:
    from diffusers import VQModel

AUTOENCODER = {
    "block_out_channels": [16, 32, 64], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "mid_block_add_attention": False, "num_vq_embeddings": 8, "scaling_factor": 1.0, "sample_size": 64}
"""Architecture of the autoencoder, diffusers' `VQModel`: 64 x 64 pictures to 16 x 16 x 4 latents."""
LATENT_NOISE = 0.1
SHARD = "7MB"


def as_signed(images: np.ndarray) -> Tensor:
    """Return ``(n, h, w, 3)`` uint8 pictures as ``(n, 3, h, w)`` float32 in [-1, 1], as diffusers' autoencoders do."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class _Autoencoder(nn.Module):
    """A `VQModel` without quantisation whose latents are standardised by running statistics."""

    def __init__(self) -> None:
        from diffusers import VQModel

        super().__init__()
        self.movq: VQModel = VQModel(**AUTOENCODER)
        self.movq.quantize.requires_grad_(False)
        self.statistics = nn.BatchNorm2d(int(AUTOENCODER["latent_channels"]), affine=False, momentum=0.05)

    def forward(self, x: Tensor, generator: Generator) -> Tensor:
        latents = self.statistics(self.movq.encode(x).latents)
        # noise keeps the decoder tolerant of latents that are not exactly right, as those of a denoiser are
        latents = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        return self.movq.decode(latents, force_not_quantize=True).sample

    def fold(self, images: np.ndarray) -> VQModel:
        """Return the `VQModel` with the standardisation folded into its last and first 1 x 1 convolutions."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), 64):
                parts.append(self.movq.encode(as_signed(images[start:start + 64])).latents)
            latents = torch.cat(parts).transpose(0, 1).flatten(1).double()
            mean, std = latents.mean(1).float(), latents.std(1).float()
        running_std = (self.statistics.running_var + self.statistics.eps).sqrt()  # what the decoder was trained on
        movq = deepcopy(self.movq)
        with torch.no_grad():
            movq.quant_conv.weight.div_(std[:, None, None, None])
            movq.quant_conv.bias.sub_(mean).div_(std)
            # the decoder saw (h - running mean) / running std; from here on it is given (h - mean) / std
            weight = movq.post_quant_conv.weight
            movq.post_quant_conv.bias.add_(weight[:, :, 0, 0] @ ((mean - self.statistics.running_mean) / running_std))
            weight.mul_((std / running_std)[None, :, None, None])
        return movq.eval()


def train_autoencoder(*, images: np.ndarray, plan: Plan, work: Path, out: Path) -> None:
    """Train the autoencoder of scenes_decoder and save it (``save_pretrained``, half precision).

    Parameters
    ----------
    images
        ``(N, 64, 64, 3)`` uint8.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Folder ``movq`` of the pipeline.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _Autoencoder()

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        x = as_signed(images[rows])
        y = model(x, generator)
        edges = [(y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (-1, -2)]
        return {"l1": (y - x).abs().mean(), "mse": (y - x).square().mean(), "edges": torch.stack(edges).sum()}

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_decoder autoencoder")
    movq = model.fold(images[np.linspace(0, len(images) - 1, min(2048, len(images))).astype(int)])
    movq.half().save_pretrained(out, safe_serialization=True, max_shard_size=SHARD)
