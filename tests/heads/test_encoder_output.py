"""The encoder's output as an embedding."""

import pytest
import torch

from brain2img.heads.encoder_output import EncoderOutput
from brain2img.records import EmbeddingSpec


def test_hidden_states_are_the_embedding():
    head = EncoderOutput(hidden=(3, 4), spec=EmbeddingSpec(name="x", shape=(3, 4)), space="x", losses={})
    hidden = torch.randn(5, 3, 4)
    assert torch.equal(head(hidden, {}), hidden)
    assert not list(head.parameters())
    flat = EncoderOutput(hidden=(1, 12), spec=EmbeddingSpec(name="x", shape=(3, 4)), space="x", losses={})
    assert torch.equal(flat(hidden.view(5, 1, 12), {}), hidden)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"of 'x': expected an encoder that gives the 7 values .* got .*\(3, 4\)"):
        EncoderOutput(hidden=(3, 4), spec=EmbeddingSpec(name="x", shape=(7,)), space="x", losses={})
