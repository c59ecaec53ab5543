"""The low-level branch of MindEye: hidden states -> latents of a diffusion model's autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self, Unpack

import torch
from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import L1
from brain2img.records import EmbeddingSpec


class LatentDecoder(Head):
    """Linear onto a small map of many channels, GroupNorm, and the decoder half of an untrained autoencoder.

    MindEye (Scotti et al., NeurIPS 2023, arXiv:2305.18274): a model of its own, Linear (no bias) onto 64 x 16 x 16,
    then 64 -> 4 channels, 64 x 64, widths 64, 128, 256. MindEye2 (arXiv:2403.11207): a branch on the shared trunk,
    Linear onto 64 x 7 x 7, Dropout 0.3, then 4 x 28 x 28, widths 32, 64, 128. STTM (arXiv:2403.06361): as MindEye, on
    the low-level state of its encoder. The decoder is `diffusers`' VAE ``Decoder`` with one layer a block.

    Always in single precision, whatever the precision of the training: this is where published runs in half precision
    got NaN. Left out: the auxiliary tokens of 512 values (three 1 x 1 convolutions on the map; 559,616 weights), which
    are there for a contrast with VICRegL feature maps.

    Parameters
    ----------
    widths
        Channels of the decoder, from the last block to the first; each but one doubles height and width.
    map_channels
        Channels of the map.
    dropout
        On the map.
    bias
        Of the linear layer.
    state
        Which of the L hidden states it reads; None for all.
    **given
        What every head takes: see `Head`.

    Raises
    ------
    ValueError
        If the space is none of latents, or its sides cannot be halved as often as needed.
    """

    def __init__(self, *, widths: Sequence[int] = (64, 128, 256), map_channels: int = 64, dropout: float = 0.0,
                 bias: bool = True, state: int | None = None, **given: Unpack[HeadArguments]) -> None:
        from diffusers.models.autoencoders.vae import Decoder

        super().__init__(**given)
        factor, shape = 2 ** (len(widths) - 1), self.spec.shape
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise ValueError(f"LatentDecoder head of {self.space!r}: expected latents (C, h, w) with sides divisible "
                             f"by {factor}, got {shape}. Choose a space of latents, or fewer widths.")
        self.map_shape = (map_channels, shape[1] // factor, shape[2] // factor)
        self.state = state
        self.linear = nn.Linear(self.hidden[1] if state is not None else self.n_hidden, math.prod(self.map_shape),
                                bias=bias)
        self.dropout, self.norm = nn.Dropout(dropout), nn.GroupNorm(1, map_channels)
        self.upsampler = Decoder(
            in_channels=map_channels, out_channels=shape[0], up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(widths), layers_per_block=1, norm_num_groups=math.gcd(32, *widths))

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, C, h, w)``; `done` is not needed."""
        kind = hidden.device.type
        with torch.autocast(kind if kind != "meta" else "cpu", enabled=False):
            read = hidden.flatten(1) if self.state is None else hidden[:, self.state]
            x = self.dropout(self.linear(read.float()))
            return self.upsampler(self.norm(x.unflatten(1, self.map_shape)))

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to latents of 4 x 8 x 8."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(4, 8, 8)), space="tiny",
                   losses={"l1": L1()}, widths=(8, 16), map_channels=8)
