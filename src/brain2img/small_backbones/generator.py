"""How scenes_decoder is trained: an autoencoder, then latent diffusion conditioned on image embeddings.

The result is a folder of diffusers' `KandinskyV22Pipeline`. That pipeline decodes latents as they are (no scaling
factor), so the latents themselves are made to have zero mean and unit variance.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from brain2img.pretrained.loading import load_diffusers
from brain2img.step_training import StepPlan, train

if TYPE_CHECKING:
    from diffusers import VQModel

AUTOENCODER: dict[str, Any] = {
    "block_out_channels": [16, 32, 64], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "mid_block_add_attention": False, "num_vq_embeddings": 8, "scaling_factor": 1.0, "sample_size": 64}
"""Architecture of the autoencoder, diffusers' `VQModel`: 64 x 64 pictures to 4 x 16 x 16 latents (Kandinsky's are an
eighth as wide as the picture)."""
LATENT_NOISE = 0.05
CONDITION_NOISE = 0.3
"""Largest standard deviation of the noise on an embedding, in standard deviations of its dimension."""
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
        self.statistics = nn.BatchNorm2d(AUTOENCODER["latent_channels"], affine=False, momentum=0.05)

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
        running_mean, variance = self.statistics.running_mean, self.statistics.running_var
        assert running_mean is not None
        assert variance is not None
        running_std = (variance + self.statistics.eps).sqrt()  # what the decoder was trained on
        movq = deepcopy(self.movq)
        with torch.no_grad():
            movq.quant_conv.weight.div_(std[:, None, None, None])
            movq.quant_conv.bias.sub_(mean).div_(std)
            # the decoder saw (h - running mean) / running std; from here on it is given (h - mean) / std
            weight = movq.post_quant_conv.weight
            movq.post_quant_conv.bias.add_(weight[:, :, 0, 0] @ ((mean - running_mean) / running_std))
            weight.mul_((std / running_std)[None, :, None, None])
        return movq.eval()


def train_autoencoder(*, images: np.ndarray, plan: StepPlan, work: Path, out: Path) -> None:
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
        # objects differ from their backgrounds in brightness first: without a term of its own colour is learnt last
        red, green, blue = nnf.avg_pool2d(y - x, 4).unbind(1)
        colour = (red - green).abs().mean() + (blue - (red + green) / 2).abs().mean()
        return {"l1": (y - x).abs().mean(), "mse": (y - x).square().mean(), "edges": torch.stack(edges).sum(),
                "colour": 3 * colour}

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_decoder autoencoder")
    movq = model.fold(images[np.linspace(0, len(images) - 1, min(2048, len(images))).astype(int)])
    movq.half().save_pretrained(out, safe_serialization=True, max_shard_size=SHARD)


DENOISER: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "out_channels": 8, "block_out_channels": [48, 128, 192], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "SimpleCrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128, "attention_head_dim": 32, "norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift", "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
"""Architecture of the UNet, of Kandinsky 2.2's blocks: twice the latent channels at its output, the second half unused
(there the published UNet predicts a variance)."""
SCHEDULE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
                            "num_train_timesteps": 1000, "clip_sample": False}
"""Of diffusers' `DDPMScheduler`; its default would clip latents to [-1, 1] at every step."""


def train_denoiser(*, latents: np.ndarray, embeddings: np.ndarray, plan: StepPlan, work: Path, out: Path,
                   unconditional: float = 0.1) -> None:
    """Train the UNet of scenes_decoder and complete the folder of the `KandinskyV22Pipeline`.

    The loss is the mean squared error of the velocity (https://arxiv.org/abs/2202.00512). Time steps are drawn with a
    density that grows as they do: shapes are decided where there is much noise, and learnt last.

    Parameters
    ----------
    latents
        ``(N, 4, 16, 16)`` of the autoencoder in ``out/movq``, of unit variance.
    embeddings
        ``(N, D)`` image embeddings the UNet is conditioned on.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Folder of the pipeline, which has ``movq`` already.
    unconditional
        Share of items whose embedding is replaced by zeros, for classifier-free guidance.
    """
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        unet = UNet2DConditionModel(**DENOISER, encoder_hid_dim=embeddings.shape[1])
    unet.to(memory_format=torch.channels_last)  # a tenth faster
    scheduler = DDPMScheduler(**SCHEDULE)
    z, e = torch.from_numpy(latents), torch.from_numpy(embeddings)
    spread = e.std(dim=0)

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        places = torch.from_numpy(rows)
        kept = torch.rand(len(rows), 1, generator=generator) >= unconditional
        noise = torch.randn(z[places].shape, generator=generator)
        # one time step from each part of the schedule: less noise in the loss than with independent ones
        offsets = (torch.arange(len(rows)) + torch.rand(len(rows), generator=generator)) / len(rows)
        steps = (offsets.sqrt() * len(scheduler)).long().clamp(max=len(scheduler) - 1)
        # a new concept's embedding, and more so a decoded one, lies beside those of training
        level = CONDITION_NOISE * torch.rand(len(rows), 1, generator=generator)
        given = e[places] + level * spread * torch.randn(len(rows), len(spread), generator=generator)
        velocity = unet(scheduler.add_noise(z[places], noise, steps), steps, None,
                        added_cond_kwargs={"image_embeds": given * kept}).sample[:, :z.shape[1]]
        return {"velocity": (velocity - scheduler.get_velocity(z[places], noise, steps)).square().mean()}

    train(unet, loss, n_items=len(z), plan=plan, folder=work, description="scenes_decoder UNet")
    movq = load_diffusers(VQModel, str(out / "movq"), what="autoencoder")
    movq.register_to_config(_name_or_path="scenes_decoder")  # not the folder it was read from
    unet.half().to(memory_format=torch.contiguous_format)
    KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq.half()).save_pretrained(
        out, safe_serialization=True, max_shard_size=SHARD)
