"""The class token of another head."""

import pytest
import torch

from brain2img.heads.first_token import FirstToken
from brain2img.heads.latent_decoder import LatentDecoder
from brain2img.heads.token_attention import TokenAttention
from brain2img.records import EmbeddingSpec


def test_it_is_the_first_token_or_the_vector_itself_and_has_no_weights():
    head, tokens = FirstToken.tiny(), torch.randn(2, 3, 8)
    assert torch.equal(head(torch.randn(2, 1, 16), {"backbone": tokens}), tokens[:, 0])
    assert torch.equal(head(torch.randn(2, 1, 16), {"backbone": tokens[:, 1]}), tokens[:, 1])
    assert not list(head.parameters())
    with pytest.raises(ValueError, match=r"expected source to be a head before it, of \[\], got 'backbone'"):
        head(torch.randn(2, 1, 16), {})
    with pytest.raises(ValueError, match=r"expected tokens of shape \(8,\) from head 'backbone', got \(7,\)"):
        head(torch.randn(2, 1, 16), {"backbone": torch.randn(2, 3, 7)})


@pytest.mark.parametrize("made", [
    lambda state: TokenAttention(hidden=(2, 16), spec=EmbeddingSpec(name="x", shape=(3, 8)), space="x", losses={},
                                 state=state),
    lambda state: LatentDecoder(hidden=(2, 16), spec=EmbeddingSpec(name="x", shape=(4, 8, 8)), space="x", losses={},
                                widths=(8, 16), map_channels=8, state=state)])
def test_heads_of_one_state_read_no_other(made):
    torch.manual_seed(0)
    head, hidden = made(1).eval(), torch.randn(3, 2, 16)
    other, own = hidden.clone(), hidden.clone()
    other[:, 0] += 1.0
    own[:, 1] *= torch.randn(16)
    assert torch.equal(head(other, {}), head(hidden, {}))
    assert not torch.allclose(head(own, {}), head(hidden, {}))
    both = made(None).eval()
    assert not torch.allclose(both(other, {}), both(hidden, {}))
