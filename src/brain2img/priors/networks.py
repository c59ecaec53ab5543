"""Networks of the diffusion prior: noisy embedding, time step and condition -> prediction of the noise or the like.

All are called ``network(x, t, condition, keep)`` with `x` and `condition` ``(B, *shape)``, time steps `t` ``(B,)`` and
`keep` ``(B, 1)``, 1 where the condition is seen and 0 where it is dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class PriorNetwork(ABC, nn.Module):
    """A network for embeddings of one shape."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """Map ``(B, *shape)``, ``(B,)``, ``(B, *shape)``, ``(B, 1)`` to ``(B, *shape)``."""


class EmbeddingUNet(PriorNetwork):
    """Fully connected U-Net over vectors with additive skips, as in ATM.

    Li et al. 2024, arXiv:2403.07721, `DiffusionPriorUNet` of
    https://github.com/dongyangli-del/EEG_Image_decode/blob/main/Generation/diffusion_prior.py, with its names of
    parameters: with D = 1024 and the defaults the same 9,675,648 weights. There the condition is dropped for a whole
    batch at once, here row by row.

    Parameters
    ----------
    shape
        ``(D,)`` of the embeddings.
    hidden
        Widths from the outermost to the innermost layer.
    time_width
        Width of the sinusoidal time embedding.
    dropout
        After every layer.

    Raises
    ------
    ValueError
        If the embeddings are no vectors.
    """

    def __init__(self, *, shape: tuple[int, ...], hidden: Sequence[int] = (1024, 512, 256, 128, 64),
                 time_width: int = 512, dropout: float = 0.1) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # seconds, which few commands need

        super().__init__()
        if len(shape) != 1 or len(hidden) < 2:
            raise ValueError(f"EmbeddingUNet: expected embeddings (D,) and two or more widths, got {shape} and "
                             f"{list(hidden)}. Use TokenTransformer for embeddings (L, D).")

        def layer(n_in: int, n_out: int, *, drop: bool = True) -> nn.Sequential:
            parts = [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.SiLU()]
            return nn.Sequential(*parts, *([nn.Dropout(dropout)] if drop else []))

        down = list(pairwise(hidden))
        up = [(inner, outer) for outer, inner in reversed(down)]
        self.time_proj = Timesteps(time_width, True, 0)
        self.input_layer = layer(shape[0], hidden[0], drop=False)
        self.encode_time_embedding = nn.ModuleList(TimestepEmbedding(time_width, n) for n, _ in down)
        self.encode_cond_embedding = nn.ModuleList(nn.Linear(shape[0], n) for n, _ in down)
        self.encode_layers = nn.ModuleList(layer(n, m) for n, m in down)
        self.decode_time_embedding = nn.ModuleList(TimestepEmbedding(time_width, n) for n, _ in up)
        self.decode_cond_embedding = nn.ModuleList(nn.Linear(shape[0], n) for n, _ in up)
        self.decode_layers = nn.ModuleList(layer(n, m) for n, m in up)
        self.output_layer = nn.Linear(hidden[0], shape[0])

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """See `PriorNetwork.forward`."""
        time = self.time_proj(t)
        x = self.input_layer(x)
        skips = []
        for layer, at, given in zip(self.encode_layers, self.encode_time_embedding, self.encode_cond_embedding,
                                    strict=True):
            skips.append(x)
            x = layer(x + at(time) + keep * given(condition))
        for layer, at, given in zip(self.decode_layers, self.decode_time_embedding, self.decode_cond_embedding,
                                    strict=True):
            x = layer(x + at(time) + keep * given(condition)) + skips.pop()
        return self.output_layer(x)


class TokenTransformer(PriorNetwork):
    """Transformer over condition tokens, a time token and the noisy tokens, which it returns.

    The layout of MindEye's prior (Scotti et al. 2023, arXiv:2305.18274), itself that of DALL-E 2: 2L + 1 tokens,
    learned null tokens where the condition is dropped. The layers are PyTorch's (normalisation first, GELU) and not
    those of dalle2-pytorch (rotary and relative positions, one shared key and value, SwiGLU): published weights do not
    fit.

    Parameters
    ----------
    shape
        ``(L, D)`` of the embeddings.
    width, depth, heads
        Of the transformer; the feed-forward layers are four times as wide.
    dropout
        In the layers.

    Raises
    ------
    ValueError
        If the embeddings are no sequences of tokens.
    """

    def __init__(self, *, shape: tuple[int, ...], width: int = 768, depth: int = 6, heads: int = 12,
                 dropout: float = 0.0) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # seconds, which few commands need

        super().__init__()
        if len(shape) != 2:
            raise ValueError(f"TokenTransformer: expected embeddings (L, D), got {shape}. Use EmbeddingUNet for (D,).")
        self.n_tokens = shape[0]
        self.time_proj = Timesteps(width, True, 0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.noisy, self.given = nn.Linear(shape[1], width), nn.Linear(shape[1], width)
        self.positions = nn.Parameter(0.02 * torch.randn(2 * self.n_tokens + 1, width))
        self.null = nn.Parameter(0.02 * torch.randn(self.n_tokens, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, shape[1])

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """See `PriorNetwork.forward`."""
        seen = torch.where(keep[:, :, None] > 0, self.given(condition), self.null)
        time = self.time_embedding(self.time_proj(t))[:, None]
        tokens = torch.cat([seen, time, self.noisy(x)], dim=1) + self.positions
        return self.out(self.blocks(tokens)[:, -self.n_tokens:])
