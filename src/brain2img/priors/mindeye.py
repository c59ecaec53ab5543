"""The network of MindEye's diffusion prior: a transformer over decoded tokens, a time token and noisy tokens."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brain2img.priors.networks import PriorNetwork

SCALE = 16.0
"""Factor on the cosine of queries and keys."""
N_BUCKETS, MAX_DISTANCE = 32, 128
"""Of the relative position bias: as many distances share a bias, all from this one on the last."""
ROTARY = 32
"""Values of every query and key that are rotated by their position, at most."""


class Gain(nn.Module):
    """LayerNorm with a gain and no bias.

    Parameters
    ----------
    width
        Of the last axis.
    stable
        Divide by the largest value first.
    """

    def __init__(self, width: int, *, stable: bool = False) -> None:
        super().__init__()
        self.stable = stable
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return F.layer_norm(x, x.shape[-1:], self.g)


class RelativeBias(nn.Module):
    """A learned number per head for how far a key stands before a query; all keys after it share that of distance 0.

    As in T5 (Raffel et al. 2020): small distances have one each, larger ones share them on a logarithmic scale.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(N_BUCKETS, heads)

    @staticmethod
    def buckets(n_queries: int, n_keys: int) -> Tensor:
        """Return ``(n_queries, n_keys)`` long: which of the learned numbers belongs to each pair."""
        distance = (torch.arange(n_queries)[:, None] - torch.arange(n_keys)[None, :]).clamp(min=0)
        exact = N_BUCKETS // 2
        ratio = torch.log(distance.clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact)
        far = (exact + (ratio * (N_BUCKETS - exact)).long()).clamp(max=N_BUCKETS - 1)
        return torch.where(distance < exact, distance, far)

    def forward(self, n_queries: int, n_keys: int) -> Tensor:
        """Return ``(heads, n_queries, n_keys)``."""
        table = self.relative_attention_bias
        return table(self.buckets(n_queries, n_keys).to(table.weight.device)).permute(2, 0, 1)


class Attention(nn.Module):
    """Attention by cosine, many queries and one key and value for all heads, and a learned key that is always there.

    Parameters
    ----------
    width, heads, head_width
        Sizes.
    """

    def __init__(self, width: int, *, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Gain(width)
        self.null_kv = nn.Parameter(torch.randn(2, head_width))
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, width, bias=False), Gain(width))

    def forward(self, x: Tensor, *, bias: Tensor, angles: Tensor) -> Tensor:
        """Map ``(B, n, width)`` to the same, with ``(heads, n, n + 1)`` biases and ``(n, rotated)`` angles."""
        x = self.norm(x)
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x).chunk(2, dim=-1)
        q, k = rotated(q, angles), rotated(k, angles)
        null_k, null_v = (part.expand(len(x), 1, -1) for part in self.null_kv)
        k = F.normalize(torch.cat([null_k, k], dim=1), dim=-1)[:, None].expand(-1, self.heads, -1, -1)
        v = torch.cat([null_v, v], dim=1)[:, None].expand(-1, self.heads, -1, -1)
        out = F.scaled_dot_product_attention(F.normalize(q, dim=-1), k, v, attn_mask=bias.to(q)[None], scale=SCALE)
        return self.to_out(out.transpose(1, 2).flatten(2))


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate successive pairs of the first values of `x` ``(..., n, d)`` by ``(n, rotated)`` angles (radians)."""
    n_rotated = angles.shape[-1]
    head, tail = x[..., :n_rotated], x[..., n_rotated:]
    first, second = head.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([-second, first], dim=-1).flatten(-2)
    return torch.cat([head * angles.cos() + rotated * angles.sin(), tail], dim=-1)


class SwiGLU(nn.Module):
    """The first half, times SiLU of the second."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., 2 n)`` to ``(..., n)``."""
        value, gate = x.chunk(2, dim=-1)
        return value * F.silu(gate)


class Transformer(nn.Module):
    """Attention and feed-forward, each added to its input, and a projection; see `MindEyeTransformer`."""

    def __init__(self, width: int, *, depth: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.rel_pos_bias = RelativeBias(heads)
        rotary = min(ROTARY, head_width)
        # a parameter, though never trained, since it is counted among the published ones
        self.freqs = nn.Parameter(10000.0 ** (-torch.arange(0, rotary, 2) / rotary), requires_grad=False)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(width, heads=heads, head_width=head_width), nn.Sequential(
                Gain(width), nn.Linear(width, 8 * width, bias=False), SwiGLU(), nn.Identity(), nn.Identity(),
                nn.Linear(4 * width, width, bias=False))]) for _ in range(depth))
        self.norm = Gain(width, stable=True)
        self.project_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, n, width)`` to the same."""
        n = x.shape[1]
        bias = self.rel_pos_bias(n, n + 1)
        angles = (torch.arange(n, device=x.device)[:, None] * self.freqs).repeat_interleave(2, dim=-1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            x = x + attention(x, bias=bias, angles=angles)
            x = x + feed_forward(x)
        return self.project_out(self.norm(x))


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time step, and a perceptron of two hidden layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_rates = width // 2
        self.net = nn.Sequential(nn.Linear(2 * self.n_rates, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width),
                                 nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Map ``(B,)`` to ``(B, width)``."""
        rates = torch.exp(torch.arange(self.n_rates, device=t.device) * (-math.log(10000) / (self.n_rates - 1)))
        angles = t.float()[:, None] * rates
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=-1))


class MindEyeTransformer(PriorNetwork):
    """Transformer over the decoded tokens, one of the time step, and the noisy tokens, which it returns without noise.

    MindEye (Scotti et al., NeurIPS 2023, arXiv:2305.18274, https://github.com/MedARC-AI/fMRI-reconstruction-NSD): 2 x
    257 + 1 tokens of 768, depth 6, 12 heads of 64: 56,055,184 weights, 16 of them the frequencies of the rotary
    positions, which are not trained. MindEye2 (arXiv:2403.11207): 256 tokens of 1664, 32 heads of 52: 259,865,216.
    The layers are those of dalle2-pytorch (https://github.com/lucidrains/DALLE2-pytorch): LayerNorm with gain alone,
    one key and value for all heads, rotary positions on 32 values, a learned key that is always there, cosine times
    16, a relative bias that all layers share, SwiGLU. No position after the query is told from another by that bias.

    Dropped conditions become learned null tokens; in training, noisy tokens do so, too. Embeddings ``(D,)`` are one
    token. `TokenTransformer` is the same layout of PyTorch's own layers.

    Parameters
    ----------
    shape
        ``(L, D)`` or ``(D,)`` of the embeddings.
    depth, heads, head_width
        Of the transformer, whose width is D.
    input_dropout
        Share of the rows whose noisy tokens are replaced in training; published 0.2.

    Raises
    ------
    ValueError
        If the embeddings are neither tokens nor vectors of an even width above 2.
    """

    def __init__(self, *, shape: tuple[int, ...], depth: int = 6, heads: int = 12, head_width: int = 64,
                 input_dropout: float = 0.2) -> None:
        super().__init__()
        if len(shape) not in (1, 2) or shape[-1] % 2 or shape[-1] < 4 or head_width % 2:
            raise ValueError(f"MindEyeTransformer: expected embeddings (L, D) or (D,) with D even, 4 or more, and an "
                             f"even head_width, got {shape} and {head_width}. Choose another network for this space.")
        self.shape, self.input_dropout = tuple(shape), input_dropout
        n_tokens, width = (1, *shape)[-2:]
        self.to_time_embeds = TimeEmbedding(width)
        self.learned_query = nn.Parameter(width**-0.5 * torch.randn(n_tokens, width))
        self.null_brain_embeds = nn.Parameter(torch.randn(n_tokens, width))
        self.null_image_embed = nn.Parameter(torch.randn(n_tokens, width))
        self.causal_transformer = Transformer(width, depth=depth, heads=heads, head_width=head_width)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, keep: Tensor) -> Tensor:
        """See `PriorNetwork.forward`."""
        tokens = (len(x), *self.learned_query.shape)
        seen = torch.where(keep[:, :, None] > 0, condition.reshape(tokens), self.null_brain_embeds)
        noisy = x.reshape(tokens)
        if self.training and self.input_dropout:
            # the global generator, as for dropout: the trainer seeds it anew
            kept = torch.rand(len(x), 1, 1, device=x.device) >= self.input_dropout
            noisy = torch.where(kept, noisy, self.null_image_embed)
        out = self.causal_transformer(torch.cat(
            [seen, self.to_time_embeds(t)[:, None], noisy + self.learned_query], dim=1))
        return out[:, -tokens[1]:].reshape(x.shape)
