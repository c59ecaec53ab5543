"""A decoder without trunk is linear, and takes the grid its adapter is to make."""

import torch

from brain2img.adapters.subject_token import SubjectToken
from brain2img.encoders.identity import Identity
from brain2img.heads.linear import LinearHead
from brain2img.records import EmbeddingSpec, Features, Grid


def test_from_signals_to_embedding_all_is_linear():
    specs = SubjectToken.tiny().specs
    encoder = Identity(specs=specs, n_times=12)
    assert (encoder.grid, encoder.hidden, list(encoder.parameters())) == (Grid(5, 12), (5, 12), [])
    adapter = SubjectToken(specs=specs, grid=encoder.grid, token=False, linear=True)
    head = LinearHead(hidden=encoder.hidden, spec=EmbeddingSpec(name="x", shape=(7,)), space="x", losses={})

    def decode(x):
        return head(encoder(adapter(x, "sub-01")), {})

    a, b, zero = torch.randn(3, 5, 80), torch.randn(3, 5, 80), torch.zeros(3, 5, 80)
    torch.testing.assert_close(decode(2 * a - b) - decode(zero), 2 * decode(a) - decode(b) - decode(zero))
    assert Identity(specs=specs, bin=4).grid == Grid(5, 20)
    x = torch.randn(2, 5, 20)
    assert torch.equal(encoder(Features(x)), x)
