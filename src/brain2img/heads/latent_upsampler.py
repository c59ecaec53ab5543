"""ATM's low-level branch: one vector of hidden states -> latents of an autoencoder, by transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Self, Unpack

from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import L1
from brain2img.records import EmbeddingSpec


class LatentUpsampler(Head):
    """All hidden values as the channels of one pixel, doubled in height and width until the latents are reached.

    ATM (Li et al., NeurIPS 2024, arXiv:2403.07721, https://github.com/dongyangli-del/EEG_Image_decode): 63 x 128 values
    of the subject's Linear over time (``adapter=subject_time encoder=identity encoder.n_times=128``) are a 1 x 1 map;
    six transposed convolutions (kernel 4, stride 2) onto 1024, 512, 256, 128, 64 and 32 channels, each with batch norm
    and ReLU, give 64 x 64; 1 x 1 convolutions 32 -> 16 -> 4 end it. Since 2026 one, 32 -> 4, with Dropout 0.5. Trained
    by L1 on the mean of the autoencoder's posterior. That norm and ReLU stand behind the 16 channels, too, is our
    reading: the notes do not say.

    Parameters
    ----------
    widths
        Channels after every doubling; of smaller latents, the last ones of these.
    last
        Channels between the last two convolutions; None for one convolution (2026).
    dropout
        Before the last convolution: 0.5 in 2026.
    **given
        What every head takes: see `Head`.

    Raises
    ------
    ValueError
        If the space is none of square latents of such a side, or `widths` are too few.
    """

    def __init__(self, *, widths: Sequence[int] = (1024, 512, 256, 128, 64, 32), last: int | None = 16,
                 dropout: float = 0.0, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        shape, side = self.spec.shape, self.spec.shape[-1]
        n_doubled = side.bit_length() - 1
        if len(shape) != 3 or shape[1] != side or side != 2**n_doubled or not 0 < n_doubled <= len(widths):
            raise ValueError(f"LatentUpsampler head of {self.space!r}: expected latents (C, h, h) with h a power of "
                             f"two up to {2 ** len(widths)}, got {shape}. Choose a space of latents, or more widths.")
        sizes = [self.n_hidden, *widths[-n_doubled:]]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.BatchNorm2d(n_out), nn.ReLU()]
        if last is not None:
            layers += [nn.ConvTranspose2d(sizes[-1], last, 1), nn.BatchNorm2d(last), nn.ReLU()]
        self.upsampler = nn.Sequential(*layers, nn.Dropout(dropout),
                                       nn.ConvTranspose2d(last or sizes[-1], shape[0], 1))

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, C, h, h)``; `done` is not needed."""
        return self.upsampler(hidden.flatten(1)[:, :, None, None])

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to latents of 4 x 8 x 8."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(4, 8, 8)), space="tiny",
                   losses={"l1": L1()}, widths=(16, 12, 8), last=4)
