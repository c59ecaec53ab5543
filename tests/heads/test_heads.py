"""Heads: published sizes, shapes, bounded outputs."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.heads.linear import LinearHead
from brain2img.heads.projector import Projector
from brain2img.records import EmbeddingSpec

IMAGE = EmbeddingSpec(name="image", shape=(257, 768))


def test_mindbridge_image_head_has_the_published_size():
    with torch.device("meta"):
        head = LinearHead(hidden=(1, 2048), spec=IMAGE, space="image", losses={})
    assert sum(p.numel() for p in head.parameters()) == 404_423_424


def test_linear_head_flattens_tokens_first():
    head = LinearHead(hidden=(3, 4), spec=EmbeddingSpec(name="x", shape=(2, 5)), space="x", losses={})
    hidden = torch.randn(6, 3, 4)
    expected = (hidden.reshape(6, 12) @ head.linear.weight.T + head.linear.bias).reshape(6, 2, 5)
    torch.testing.assert_close(head(hidden, {}), expected)


def test_projector_is_the_published_one():
    head = Projector(hidden=(3, 4), spec=EmbeddingSpec(name="x", shape=(7,)), space="x", losses={}).eval()
    hidden = torch.randn(6, 3, 4)
    x = F.linear(hidden.flatten(1), head.proj[0].weight, head.proj[0].bias)
    x = x + F.linear(F.gelu(x), head.proj[1].fn[1].weight, head.proj[1].fn[1].bias)
    torch.testing.assert_close(head(hidden, {}), F.layer_norm(x, (7,)))


@pytest.mark.parametrize("make", [LinearHead, Projector])
def test_bounded_outputs_keep_their_range(make):
    spec = EmbeddingSpec(name="pixels", shape=(3, 4, 4), value_range=(0, 1))
    options = {"width": 8} if make is Projector else {}
    head = make(hidden=(2, 4), spec=spec, space="pixels", losses={}, bounded="sigmoid", **options)
    out = head(10 * torch.randn(5, 2, 4), {})
    assert out.shape == (5, 3, 4, 4)
    assert 0 <= out.min() < out.max() <= 1
    with pytest.raises(ValueError, match=r"activation: expected one of .* got 'softmax'"):
        make(hidden=(2, 4), spec=spec, space="pixels", losses={}, bounded="softmax")
