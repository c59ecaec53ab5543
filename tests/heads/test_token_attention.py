"""The token head of See Through Their Minds against torch's own attention, and its size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brain2img.heads.token_attention import TokenAttention
from brain2img.records import EmbeddingSpec


def test_it_is_attention_as_torch_has_it():
    width = 8  # torch's module needs queries as wide as its tokens
    head = TokenAttention(hidden=(1, 16), spec=EmbeddingSpec(name="x", shape=(5, 6)), space="x", losses={},
                          token_width=width, attention_width=width, n_heads=2, mlp_width=12)
    reference = nn.MultiheadAttention(width, 2, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(head.to_qkv.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(head.to_out.weight)
        reference.out_proj.bias.copy_(head.to_out.bias)
    hidden = torch.randn(3, 1, 16)
    tokens = F.linear(F.gelu(F.layer_norm(hidden[:, 0], (16,))), *head.to_tokens[2].parameters()).reshape(3, 5, width)
    normed = F.layer_norm(tokens, (width,))
    x = tokens + reference(normed, normed, normed)[0]
    expected = F.linear(F.gelu(F.linear(x, *head.mlp[0].parameters())), *head.mlp[2].parameters())
    torch.testing.assert_close(head(hidden, {}), expected, atol=1e-5, rtol=1e-5)


def test_published_sizes_and_vectors():
    with torch.device("meta"):
        head = TokenAttention(hidden=(1, 4096), spec=EmbeddingSpec(name="x", shape=(257, 768)), space="x", losses={})
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()}
    assert counts["to_tokens"] == 2 * 4096 + 4096 * 257 * 128 + 257 * 128
    assert counts["to_qkv"] + counts["to_out"] == 4 * 128 * 768 + 128
    assert counts["mlp"] == 128 * 1536 + 1536 + 1536 * 768 + 768
    vector = TokenAttention(hidden=(2, 8), spec=EmbeddingSpec(name="x", shape=(6,)), space="x", losses={})
    assert vector(torch.randn(4, 2, 8), {}).shape == (4, 6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"head of space 'x': expected tokens .* got shape \(4, 8, 8\)"):
        TokenAttention(hidden=(1, 4), spec=EmbeddingSpec(name="x", shape=(4, 8, 8)), space="x", losses={})
    with pytest.raises(ValueError, match="expected attention_width as a multiple of n_heads, got 10 and 4"):
        TokenAttention(hidden=(1, 4), spec=EmbeddingSpec(name="x", shape=(4, 8)), space="x", losses={},
                       attention_width=10, n_heads=4)
