"""Subject tokens: which token goes with which signals, and channels asserted by name."""

import dataclasses

import pytest
import torch

from brain2img.adapters.subject_token import SubjectToken
from brain2img.encoders.atm import ATM
from brain2img.records import Features, Grid


def test_signals_pass_through_with_the_subjects_token():
    adapter = SubjectToken.tiny().eval()
    x = torch.randn(3, 5, 80)
    features = adapter(x, "sub-02")
    torch.testing.assert_close(features.grid, x)
    torch.testing.assert_close(features.tokens, adapter.tokens["sub-02"].expand(3, 1, 80))
    torch.testing.assert_close(adapter(x, None).tokens, adapter.shared.expand(3, 1, 80))


def test_a_shorter_grid_takes_means_of_successive_samples():
    adapter = SubjectToken(specs=SubjectToken.tiny().specs, grid=Grid(5, 26))
    x = torch.randn(2, 5, 80)
    torch.testing.assert_close(adapter(x, "sub-01").grid, x[..., :78].unflatten(-1, (26, 3)).mean(-1))


def test_the_shared_token_is_trained_now_and_then():
    adapter, x = SubjectToken.tiny(), torch.zeros(1, 5, 80)
    torch.manual_seed(0)
    share = sum(torch.equal(adapter(x, "sub-01").tokens[0], adapter.shared) for _ in range(2000)) / 2000
    assert 0.07 < share < 0.13
    adapter.eval()
    assert not any(torch.equal(adapter(x, "sub-01").tokens[0], adapter.shared) for _ in range(100))
    never = SubjectToken(specs=adapter.specs, grid=adapter.grid, shared_token_probability=0)
    assert not any(torch.equal(never(x, "sub-01").tokens[0], never.shared) for _ in range(100))


def test_subjects_can_be_added():
    adapter = SubjectToken.tiny()
    adapter.add_subject(dataclasses.replace(adapter.specs["sub-01"], subject="sub-03"))
    assert [p.shape for p in adapter.parameters_of("sub-03")] == [(1, 80)]
    assert adapter(torch.randn(2, 5, 80), "sub-03").tokens.shape == (2, 1, 80)


def test_messages():
    adapter = SubjectToken.tiny()
    first = adapter.specs["sub-01"]
    swapped = dataclasses.replace(first, subject="x", ch_names=("Pz", "PO4", "PO3", "O1", "O2"))
    with pytest.raises(ValueError, match=r"subject 'x': expected the channels of 'sub-01'.*\('PO3', 'PO4'\)"):
        adapter.add_subject(swapped)
    with pytest.raises(ValueError, match="subject 'y': expected the encoder's 5 channels and 80 samples, got 5 and 70"):
        adapter.add_subject(dataclasses.replace(first, subject="y", n_times=70))
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got 'z'"):
        adapter(torch.randn(1, 5, 80), "z")
    with pytest.raises(ValueError, match=r"shared_token_probability in \[0, 1\], got 2"):
        SubjectToken(specs={}, grid=Grid(5, 80), shared_token_probability=2)


def test_without_token_signals_pass_for_anyone():
    adapter = SubjectToken(specs=SubjectToken.tiny().specs, grid=Grid(5, 80), token=False)
    x = torch.randn(3, 5, 80)
    assert list(adapter.parameters()) == adapter.parameters_of("sub-01") == []
    for subject in ("sub-02", None):
        features = adapter(x, subject)
        assert features.tokens is None
        torch.testing.assert_close(features.grid, x)


def test_every_subject_has_its_own_linear_map_over_time():
    adapter = SubjectToken(specs=SubjectToken.tiny().specs, grid=Grid(5, 12), token=False, linear=True)
    x, own = torch.randn(3, 5, 80), adapter.linears["sub-02"]
    torch.testing.assert_close(adapter(x, "sub-02").grid, torch.einsum("bct,ft->bcf", x, own.weight) + own.bias)
    adapter.add_subject(dataclasses.replace(adapter.specs["sub-01"], subject="sub-03", n_times=70))
    assert adapter(x[..., :70], "sub-03").grid.shape == (3, 5, 12)
    assert [p.shape for p in adapter.parameters_of("sub-03")] == [(12, 70), (12,)]
    with pytest.raises(ValueError, match=r"got None. Every subject needs a part of its own: adapt"):
        adapter(x, None)


def test_joint_atm_with_one_subject_is_atm():
    specs = {"sub-01": SubjectToken.tiny().specs["sub-01"]}
    torch.manual_seed(0)
    shared = ATM(specs=specs, feedforward=16, n_filters=8).eval()
    own = ATM(specs=specs, feedforward=16, n_filters=8, value_embedding=False).eval()
    adapter = SubjectToken(specs=specs, grid=own.grid, linear=True).eval()
    own.load_state_dict({k: v for k, v in shared.state_dict().items() if not k.startswith("value_embedding")})
    adapter.linears["sub-01"].load_state_dict(shared.value_embedding.state_dict())
    x, token = torch.randn(2, 5, 80), adapter.tokens["sub-01"].expand(2, 1, 80)
    torch.testing.assert_close(own(adapter(x, "sub-01")), shared(Features(x, token)))
