"""ATM-S: attention over channels, then temporal and spatial convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.layers import Dropout, TemporalSpatial, common_size, dropout, recomputed
from brain2img.records import Features, Grid, SignalSpec


class ChannelAttention(nn.Module):
    """One post-norm transformer layer whose tokens are channels.

    Parameters
    ----------
    width
        Width of a token: the samples T.
    n_heads
        Heads of ``width // n_heads`` each (62 for 250 samples and 4 heads: 248 of 250, as upstream).
    feedforward
        Width of the feed-forward part.
    dropout
        On attention weights and both branches.
    """

    def __init__(self, width: int, *, n_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        inner = width // n_heads * n_heads
        self.n_heads, self.dropout = n_heads, dropout
        self.attention = nn.ModuleDict({
            "query_projection": nn.Linear(width, inner), "key_projection": nn.Linear(width, inner),
            "value_projection": nn.Linear(width, inner), "out_projection": nn.Linear(inner, width)})
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``(B, n, T)`` to ``(B, n, T)``."""
        q, k, v = (self.attention[f"{name}_projection"](x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                   for name in ("query", "key", "value"))
        p = self.dropout if self.training else 0.0
        if p and x.device.type == "cpu":  # PyTorch's own attention knows no fast way for dropout there
            weights = (q @ k.transpose(-2, -1)).mul_(q.shape[-1] ** -0.5).softmax(dim=-1)
            mixed = dropout(weights, p) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        x = self.norm1(x + dropout(self.attention["out_projection"](mixed.transpose(1, 2).flatten(-2)), p))
        y = dropout(F.gelu(self.linear1(x)), p)
        return self.norm2(x + dropout(self.linear2(y), p))


class ATM(Encoder):
    """The ATM-S encoder of Li et al. (NeurIPS 2024, arXiv:2403.07721), in the upstream layout.

    https://github.com/dongyangli-del/EEG_Image_decode: every channel's T samples are one token (one Linear shared by
    channels), the subject tokens stand before them, one attention layer and a LayerNorm follow; then the convolutions
    of NICE (Song et al. 2024): temporal convolution, average pooling, spatial convolution over all channels, 1 x 1
    projection. Parameters of the convolutions are named as upstream (``tsconv.0.weight``, ``projection.0.weight``).

    Deviations: subject tokens are cut off after attention (``[:, K:]``, as upstream since 2026); the published weights
    of 2024 kept them and lost the last channels (``[:, :C]``), see `published_slice`. The upstream parts that no
    forward pass uses (positional, temporal and mask embeddings, two linear layers) do not exist here.

    Parameters
    ----------
    specs
        Subject -> its signals; C and T must be the same for all.
    bin
        Successive samples that the adapter averages to one of the grid's; 1 as published. Computing time falls with
        its square: attention works on vectors of T / bin samples.
    n_heads, feedforward
        The attention layer.
    n_filters
        Filters of the convolutions: the hidden width H.
    kernel, pool, stride
        Samples of the temporal convolution, of the pooling window and of its step.
    dropout
        In the attention layer, and after the convolutions.
    published_slice
        Keep the first C of all tokens after attention, as the weights published in 2024 need.
    value_embedding
        Whether the Linear on samples is here, shared by all; false where every subject has its own in the adapter
        (upstream: ``joint_train``; here: ``adapter=subject_time adapter.token=true``).

    Attributes
    ----------
    recompute
        Whether the backward pass computes the attention layer anew, some trials at a time, in place of keeping what it
        needs (of 1,024 trials of 63 x 250, about 1 GB); so it is unless set to False. The same numbers either way,
        but for those of dropout.

    Raises
    ------
    ValueError
        If channels or samples differ between subjects, or the window is too short for kernel and pool.
    """

    recompute = True

    def __init__(self, *, specs: Mapping[str, SignalSpec], bin: int = 1, n_heads: int = 4, feedforward: int = 256,
                 n_filters: int = 40, kernel: int = 25, pool: int = 51, stride: int = 5,
                 dropout: tuple[float, float] = (0.25, 0.5), published_slice: bool = False,
                 value_embedding: bool = True) -> None:
        super().__init__()
        n_channels, n_times = common_size(specs, what="ATM encoder", bin=bin)
        self.grid, self.published_slice = Grid(n_channels, n_times), published_slice
        self.value_embedding = nn.Linear(n_times, n_times) if value_embedding else nn.Identity()
        self.embedding_dropout = Dropout(dropout[0])
        self.attn_layer = ChannelAttention(n_times, n_heads=n_heads, feedforward=feedforward, dropout=dropout[0])
        self.norm = nn.LayerNorm(n_times)
        self.tsconv = TemporalSpatial(n_channels, n_times, n_filters=n_filters, kernel=kernel, pool=pool, stride=stride,
                                      dropout=dropout[1])
        self.projection = nn.Sequential(nn.Conv2d(n_filters, n_filters, (1, 1)))
        self.hidden = (self.tsconv.n_steps, n_filters)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, C, T)`` and tokens ``(B, K, T)`` (or None) to ``(B, L, H)``, time first."""
        return self.projection(self.tsconv(self.attend(features))).squeeze(-1).transpose(1, 2)

    def attend(self, features: Features) -> Tensor:
        """Map grid and tokens to channels ``(B, C, T)`` that have seen each other."""
        if not self.recompute:
            return self._attended(features.grid, features.tokens)
        n = self.tsconv.at_once
        grids = features.grid.split(n)
        tokens = (None,) * len(grids) if features.tokens is None else features.tokens.split(n)
        return torch.cat([recomputed(self._attended, *part, random=True) for part in zip(grids, tokens, strict=True)])

    def _attended(self, grid: Tensor, tokens: Tensor | None) -> Tensor:
        x = self.value_embedding(grid)
        n_tokens = 0
        if tokens is not None:
            n_tokens = tokens.shape[1]
            x = torch.cat([tokens.to(x.dtype), x], dim=1)
        x = self.norm(self.attn_layer(self.embedding_dropout(x)))
        return x[:, :self.grid.F] if self.published_slice else x[:, n_tokens:]

    @classmethod
    def tiny(cls) -> Self:
        """Return an encoder of 5 channels and 80 samples."""
        spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=5, n_times=80, sfreq=100.0)
        return cls(specs={"sub-01": spec}, feedforward=16, n_filters=8)
