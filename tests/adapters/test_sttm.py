"""The adapter of See Through Their Minds: the published layers, and rows that never meet another subject's part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brain2img.adapters.sttm import STTM
from brain2img.decoders.adaptation import own_names, restrict
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.token_attention import TokenAttention
from brain2img.records import BrainBatch, Grid, SignalSpec


def spec(name: str, n: int, *, n_times: int = 1) -> SignalSpec:
    return SignalSpec(subject=name, modality="fmri", units="a.u.", n_channels=n, n_times=n_times, sfreq=1.0)


def test_it_is_the_published_layers_evaluated_plainly():
    adapter = STTM.tiny().eval()
    x = torch.randn(6, 50, 1)
    first, block = adapter.subjects["sub-01"][0], adapter.subjects["sub-01"][1].fn
    for layer in (first[1], block[1]):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    h = F.gelu(F.layer_norm(x[:, :, 0] @ first[0].weight.T + first[0].bias, (16,), first[1].weight, first[1].bias))
    h = h + F.gelu(F.layer_norm(h @ block[0].weight.T + block[0].bias, (16,), block[1].weight, block[1].bias))
    torch.testing.assert_close(adapter(x, "sub-01").grid[:, :, 0], h)


def test_published_size():
    voxels = {"subj01": 15724, "subj02": 14278, "subj05": 13039, "subj07": 12682}
    with torch.device("meta"):
        adapter = STTM(specs={s: spec(s, n) for s, n in voxels.items()}, grid=Grid(4096, 1))
    for subject, n in voxels.items():
        linear, norm = n * 4096 + 4096, 2 * 4096
        assert sum(p.numel() for p in adapter.parameters_of(subject)) == linear + norm + 4096**2 + 4096 + norm


def test_noise_is_added_in_training_alone():
    adapter = STTM(specs={"a": spec("a", 20)}, grid=Grid(8, 1), dropout=0, block_dropout=0, noise=0.5)
    x = torch.randn(4, 20, 1)
    assert not torch.equal(adapter(x, "a").grid, adapter(x, "a").grid)
    adapter.eval()
    torch.testing.assert_close(adapter(x, "a").grid, adapter(x, "a").grid)


def test_unequal_batches_in_shuffled_order_reach_their_own_subjects_part():
    decoder = DeepDecoder(adapter=STTM.tiny(), encoder=ResidualMLP.tiny(), heads={"tiny": TokenAttention.tiny()},
                          training={"max_epochs": 1})
    module = decoder.module.eval()
    rows = {"sub-01": torch.tensor([4, 0, 3]), "sub-02": torch.tensor([5, 1, 6, 2])}
    signals = {s: torch.randn(len(r), n, 1) for (s, r), n in zip(rows.items(), (50, 40), strict=True)}
    together, _ = module(BrainBatch(signals=signals, rows=rows, stimulus_ids=[""] * 7))
    for s, places in rows.items():
        for i, place in enumerate(places.tolist()):
            alone, _ = module(BrainBatch(signals={s: signals[s][i:i + 1]}, rows={s: torch.tensor([0])},
                                         stimulus_ids=[""]))
            torch.testing.assert_close(together["tiny"][place], alone["tiny"][0])


def test_adapter_only_transfer_trains_input_projection_and_input_block():
    adapter = STTM(specs={"sub-03": spec("sub-03", 30)}, grid=Grid(16, 1))
    decoder = DeepDecoder(adapter=adapter, encoder=ResidualMLP.tiny(), heads={"tiny": TokenAttention.tiny()},
                          training={"max_epochs": 1})
    names = restrict(decoder, subject="sub-03", mode="adapter")
    assert names["trained"] == own_names(decoder, "sub-03")
    assert {n.rsplit(".", 1)[0] for n in names["trained"]} == {
        "adapter.subjects.sub-03.0.0", "adapter.subjects.sub-03.0.1", "adapter.subjects.sub-03.1.fn.0",
        "adapter.subjects.sub-03.1.fn.1"}


def test_what_does_not_fit_is_refused():
    adapter = STTM.tiny()
    with pytest.raises(ValueError, match=r"subject 'sub-01': expected 50 voxels, got 40"):
        adapter(torch.randn(2, 40, 1), "sub-01")
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got 'sub-03'"):
        adapter(torch.randn(2, 40, 1), "sub-03")
    with pytest.raises(ValueError, match=r"expected one of the subjects .*, got None"):
        adapter(torch.randn(2, 40, 1), None)
    with pytest.raises(ValueError, match=r"subject 'a': expected one value per voxel \(T = 1\), got 3 samples"):
        STTM(specs={"a": spec("a", 5, n_times=3)}, grid=Grid(8, 1))
    with pytest.raises(ValueError, match="expected an encoder with a grid of one sample"):
        STTM(specs={}, grid=Grid(8, 2))
