"""Hidden states -> image tokens that attend to each other: the token head of See Through Their Minds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.interfaces import Head, HeadArguments
from brain2img.losses import MSE
from brain2img.records import EmbeddingSpec


class TokenAttention(Head):
    """LayerNorm, GELU, Linear to narrow tokens, self-attention among them, MLP to the width of the space.

    STTM (arXiv:2403.06361, https://github.com/YulongBonjour/STTM): 257 tokens of 128, 8 heads with queries, keys and
    values of 768 in all, MLP 128 -> 1536 -> 768. Our notes do not say whether the attention is added to its input,
    nor its normalisation, nor which biases it has: here the attended tokens are added to their LayerNormed input's
    residual (pre-norm), queries, keys and values have no bias, and the MLP is Linear, GELU, Linear.

    Parameters
    ----------
    token_width
        Width of a token before the MLP.
    attention_width
        Of queries, keys and values, over all attention heads.
    n_heads
        Attention heads.
    mlp_width
        Hidden width of the MLP.
    state
        Which of the L hidden states it reads; None for all.
    **given
        What every head takes: see `Head`.

    Raises
    ------
    ValueError
        If the space has more than two axes, or `attention_width` is no multiple of `n_heads`.
    """

    def __init__(self, *, token_width: int = 128, attention_width: int = 768, n_heads: int = 8, mlp_width: int = 1536,
                 state: int | None = None, **given: Unpack[HeadArguments]) -> None:
        super().__init__(**given)
        if len(self.spec.shape) > 2:
            raise ValueError(f"head of space {self.space!r}: expected tokens (N, D) or a vector (D,), got shape "
                             f"{self.spec.shape}. Choose another head for this space.")
        if attention_width % n_heads:
            raise ValueError(f"head of space {self.space!r}: expected attention_width as a multiple of n_heads, got "
                             f"{attention_width} and {n_heads}. Correct the YAML of the head.")
        self.n_heads = n_heads
        self.state = state
        size = self.hidden[1] if state is not None else self.n_hidden
        self.n_tokens, self.width = (self.spec.shape if len(self.spec.shape) == 2 else (1, self.spec.shape[0]))
        self.token_width = token_width
        self.to_tokens = nn.Sequential(nn.LayerNorm(size), nn.GELU(), nn.Linear(size, self.n_tokens * token_width))
        self.norm = nn.LayerNorm(token_width)
        self.to_qkv = nn.Linear(token_width, 3 * attention_width, bias=False)
        self.to_out = nn.Linear(attention_width, token_width)
        self.mlp = nn.Sequential(nn.Linear(token_width, mlp_width), nn.GELU(), nn.Linear(mlp_width, self.width))

    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, L, H)`` to ``(B, *shape)``; `done` is not needed."""
        read = hidden.flatten(1) if self.state is None else hidden[:, self.state]
        tokens = self.to_tokens(read).unflatten(1, (self.n_tokens, self.token_width))
        q, k, v = (part.unflatten(2, (self.n_heads, -1)).transpose(1, 2)
                   for part in self.to_qkv(self.norm(tokens)).chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.mlp(tokens + self.to_out(attended)).reshape(len(hidden), *self.spec.shape)

    @classmethod
    def tiny(cls) -> Self:
        """Return a head from hidden states (1, 16) to 3 tokens of 8."""
        return cls(hidden=(1, 16), spec=EmbeddingSpec(name="tiny", shape=(3, 8)), space="tiny", losses={"mse": MSE()},
                   token_width=4, attention_width=8, n_heads=2, mlp_width=12)
