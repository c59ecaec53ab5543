"""ATM-S against the published order of operations and the published sizes."""

import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.subject_token import SubjectToken
from brain2img.encoders.atm import ATM
from brain2img.heads.projector import Projector
from brain2img.losses import InfoNCE
from brain2img.records import EmbeddingSpec, Features, Grid, SignalSpec


def published(**options):
    spec = SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=63, n_times=250, sfreq=250.0)
    return ATM(specs={"sub-01": spec}, **options)


def test_parameters_add_to_the_published_number():
    encoder = published()
    head = Projector(hidden=encoder.hidden, spec=EmbeddingSpec(name="clip", shape=(1024,)), space="clip",
                     losses={"info_nce": InfoNCE()})
    adapter = SubjectToken(specs={f"sub-{i:02d}": SignalSpec(subject=f"sub-{i:02d}", modality="eeg", units="V",
                                                             n_channels=63, n_times=250, sfreq=250.0)
                                  for i in range(10)}, grid=encoder.grid)
    counts = {part: sum(p.numel() for p in part.parameters()) for part in (encoder, head, adapter)}
    conv = sum(p.numel() for part in (encoder.tsconv, encoder.projection) for p in part.parameters())
    assert conv == 103_680
    assert counts[head] == 2_527_232 + 1  # Proj_eeg and logit_scale
    unused_upstream = {"subject_wise_linear": 2 * (250 * 250 + 250), "temporal_embedding": 250 * 4,
                       "mask_embedding": 250, "mask_token": 250}
    assert sum(counts.values()) + sum(unused_upstream.values()) == 3_202_413
    shapes = {k: tuple(v.shape) for k, v in encoder.state_dict().items()}
    assert shapes["attn_layer.attention.query_projection.weight"] == (248, 250)
    assert shapes["tsconv.0.weight"] == (40, 1, 1, 25)
    assert shapes["tsconv.4.weight"] == (40, 40, 63, 1)
    assert shapes["tsconv.5.running_var"] == (40,)
    assert shapes["projection.0.weight"] == (40, 40, 1, 1)
    assert tuple(head.state_dict()["proj.1.fn.1.weight"].shape) == (1024, 1024)
    assert tuple(head.state_dict()["proj.0.weight"].shape) == (1024, 1440)


def attended(encoder, sequence):
    """One post-norm transformer layer, written out."""
    layer = encoder.attn_layer
    q, k, v = (layer.attention[f"{n}_projection"](sequence).view(*sequence.shape[:2], 4, -1)
               for n in ("query", "key", "value"))
    weights = torch.softmax(torch.einsum("blhe,bshe->bhls", q, k) / q.shape[-1] ** 0.5, dim=-1)
    mixed = torch.einsum("bhls,bshd->blhd", weights, v).reshape(*sequence.shape[:2], -1)
    x = layer.norm1(sequence + layer.attention["out_projection"](mixed))
    return encoder.norm(layer.norm2(x + layer.linear2(F.gelu(layer.linear1(x)))))


@pytest.mark.parametrize("training", [False, True])
def test_output_equals_the_published_order_of_operations(training):
    torch.manual_seed(0)
    encoder = published(dropout=(0.0, 0.0)).train(training).double()
    reference = published(dropout=(0.0, 0.0)).train(training).double()
    reference.load_state_dict(encoder.state_dict())
    x, token = torch.randn(3, 63, 250).double(), torch.randn(3, 1, 250).double()
    y = attended(reference, torch.cat([token, reference.value_embedding(x)], dim=1))[:, 1:]
    y = reference.projection(torch.nn.Sequential(*reference.tsconv)(y.unsqueeze(1)))  # convolution, then pooling
    expected = y.permute(0, 2, 3, 1).reshape(3, -1)  # 'b e h w -> b (h w) e', flat
    got = encoder(Features(x, token))
    assert got.shape == (3, 36, 40)
    torch.testing.assert_close(got.flatten(1), expected)
    for name, value in reference.state_dict().items():  # running statistics
        torch.testing.assert_close(encoder.state_dict()[name], value)
    if training:
        got.square().sum().backward()
        expected.square().sum().backward()
        for a, b in zip(encoder.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        single = encoder.float().eval()(Features(x.float(), token.float()))
        torch.testing.assert_close(single, encoder.double()(Features(x, token)).float(), atol=1e-5, rtol=1e-5)


def test_slices_after_attention():
    torch.manual_seed(0)
    encoder = ATM.tiny().eval()
    x, token = torch.randn(2, 5, 80), torch.randn(2, 1, 80)
    whole = attended(encoder, torch.cat([token, encoder.value_embedding(x)], dim=1))
    torch.testing.assert_close(encoder.attend(Features(x, token)), whole[:, 1:])
    encoder.published_slice = True
    torch.testing.assert_close(encoder.attend(Features(x, token)), whole[:, :5])
    encoder.published_slice = False
    torch.testing.assert_close(encoder.attend(Features(x)), attended(encoder, encoder.value_embedding(x)))


def test_bins_shorten_the_grid():
    encoder = published(bin=2, kernel=13, pool=25)
    assert encoder.grid == Grid(63, 125)
    assert encoder(Features(torch.randn(2, 63, 125))).shape == (2, *encoder.hidden)


def test_messages():
    def spec(name, n_channels, n_times):
        return SignalSpec(subject=name, modality="eeg", units="V", n_channels=n_channels, n_times=n_times, sfreq=250.0)

    with pytest.raises(ValueError, match="expected the same channels and samples for all subjects"):
        ATM(specs={"a": spec("a", 5, 100), "b": spec("b", 6, 100)})
    with pytest.raises(ValueError, match="expected at least 75 samples for kernel 25 and pool 51, got 74"):
        ATM(specs={"a": spec("a", 5, 74)})


@pytest.mark.parametrize("n_tokens", [0, 2])
def test_attention_computed_anew_part_by_part_changes_nothing(n_tokens):
    torch.manual_seed(0)
    x, tokens = torch.randn(5, 63, 250).double(), torch.randn(5, n_tokens, 250).double().requires_grad_()
    kept, anew = (published(dropout=(0.0, 0.0)).double() for _ in range(2))
    kept.recompute = False
    anew.load_state_dict(kept.state_dict())
    anew.tsconv.at_once = 2
    features, results = Features(x, tokens if n_tokens else None), []
    for encoder in (kept, anew):
        y = encoder.attend(features)
        leaves = [*(p for name, p in encoder.named_parameters() if not name.startswith(("tsconv", "projection"))),
                  *([tokens] if n_tokens else [])]
        results.append([y, *torch.autograd.grad((y ** 3).sum(), leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
