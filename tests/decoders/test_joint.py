"""Training by schedule and with a joint prior: exact resume, mixing within subjects, and the prior taken out again."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import Killed, PlantedData

from brain2img.adapters.subject_linear import SubjectLinear
from brain2img.augmentations.mixco import MixCo
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.heads.token_projector import TokenProjector
from brain2img.interfaces import Augmentation
from brain2img.losses import MSE, InfoNCE, PriorLoss, SoftCLIP
from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.mindeye import MindEyeTransformer
from brain2img.records import BrainBatch, EmbeddingSpec

SPEC = EmbeddingSpec(name="tiny", shape=(8,))


def prior(**changes):
    return DiffusionPrior(network=partial(MindEyeTransformer, depth=1, heads=2, head_width=8), prediction="sample",
                          noising={"n_times": 100, "betas": "cosine"}, scale="sqrt_width", sampler="ddpm", n_steps=20,
                          condition_dropout=0.2, training={"steps": 10, "batch_size": 8, "lr": 1e-3}, **changes)


def build(**training):
    torch.manual_seed(0)
    encoder = ResidualMLP(specs={}, width=16, n_blocks=1)
    given = {"hidden": encoder.hidden, "spec": SPEC, "space": "tiny"}
    return DeepDecoder(
        adapter=SubjectLinear(specs=PlantedData(n=1).specs, grid=encoder.grid, activation="gelu", dropout=0.2),
        encoder=encoder, augmentation=MixCo(stop=0.5), seed=3, heads={
            "backbone": LinearHead(**given, prediction=False, losses={"prior": PriorLoss(prior=prior(), weight=3.0)}),
            "projector": TokenProjector(**given, source="backbone", width=16, losses={
                "bimixco": InfoNCE(temperature=0.05, learnable=False, stop=0.5),
                "soft_clip": SoftCLIP(temperature=[0.04, 0.08], start=0.5)})},
        training={"max_epochs": 4, "batch_size": 32, "lr": 1e-2, "ema": 0.9, "monitor": "val/top1",
                  "accelerator": "cpu", **training})


def test_resume_is_exact_in_every_phase(tmp_path):
    straight = build()
    straight.fit(PlantedData(), folder=tmp_path / "straight")
    for n in (12 + 5, 12 + 3):  # in the second epoch, which still mixes, and in the third, which does not
        with pytest.raises(Killed):
            build().fit(PlantedData(fail_after=n), folder=tmp_path / "resumed")
    resumed = build()
    resumed.fit(PlantedData(), folder=tmp_path / "resumed")
    last = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("straight", "resumed")]
    for a, b in ((last[0]["state_dict"], last[1]["state_dict"]),
                 (straight.module.state_dict(), resumed.module.state_dict())):
        assert set(a) == set(b)
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert any("losses.prior.model.network.learned_query" in k for k in last[0]["state_dict"])
    rows = [r | {"seconds": 0} for r in last[0]["callbacks"]["History"]["rows"]]
    assert rows == [r | {"seconds": 0} for r in last[1]["callbacks"]["History"]["rows"]]
    assert ["train/projector/bimixco" in r for r in rows] == [True, True, False, False]
    assert ["train/projector/soft_clip" in r for r in rows] == [False, False, True, True]
    assert all("train/backbone/prior" in r and "val/backbone/prior" in r for r in rows)


def test_the_joint_prior_is_trained_and_can_be_taken_out(tmp_path):
    decoder = build()
    before = {k: v.clone() for k, v in decoder.joint_priors()["tiny"].model.state_dict().items()}
    decoder.fit(PlantedData(), folder=tmp_path / "run")
    joint = decoder.joint_priors()["tiny"]
    after = joint.model.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved == {k for k in after if "std_" not in k and "mean_" not in k and "freqs" not in k}
    joint.save(tmp_path / "prior")
    other = prior()
    other.load(tmp_path / "prior")
    given = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    a, b = (p.sample(given, generators=[torch.Generator().manual_seed(i) for i in range(5)]) for p in (joint, other))
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="expected one of these settings"):
        prior(seed=1).load(tmp_path / "prior")


def test_validation_gives_the_prior_the_same_noise_every_time():
    decoder = build()
    decoder.module.eval()
    loss = decoder.module.heads["backbone"].losses["prior"]
    p, t = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.equal(loss(p, t), loss(p, t))


class Swap(Augmentation):
    """Mixes a quarter of the next trial of the same subject into each."""

    def __call__(self, x, *, generator):
        share = 0.75 * torch.eye(len(x)) + 0.25 * torch.eye(len(x)).roll(1, dims=1)
        return torch.einsum("ij,jct->ict", share, x), share

    @classmethod
    def tiny(cls):
        return cls()


def test_mixtures_stay_within_a_subject_where_subjects_are_unequal_and_shuffled():
    decoder = build()
    decoder.module.augmentation = Swap()
    data, places = PlantedData(), [0, 200, 7, 201, 202, 3, 250]  # 3 rows of the first subject, 4 of the second
    batch = data.batch("train", places)
    # every target says who and what it belongs to
    owner = torch.tensor([0 if p < 192 else 1 for p in places])
    augmented, share = decoder.module._augment(batch)
    assert [batch.rows[s].tolist() for s in batch.rows] == [[0, 2, 5], [1, 3, 4, 6]]
    torch.testing.assert_close(share.sum(dim=1), torch.ones(7))
    assert not (share.bool() & (owner[:, None] != owner[None, :])).any()
    for s in batch.signals:
        rows = batch.rows[s]
        torch.testing.assert_close(torch.einsum("ij,jct->ict", share[rows][:, rows], batch.signals[s]),
                                   augmented.signals[s])
    expected = torch.zeros(7, 7)
    for mine in ([0, 2, 5], [1, 3, 4, 6]):
        for i, row in enumerate(mine):
            expected[row, row] += 0.75
            expected[row, mine[(i + 1) % len(mine)]] += 0.25
    torch.testing.assert_close(share, expected)


def test_rows_reach_the_adapter_of_their_subject_alone():
    module = build().module.eval()
    data, places = PlantedData(), [0, 200, 7, 201, 202, 3, 250]
    whole, _ = module(data.batch("train", places))
    for i, p in enumerate(places):
        alone, _ = module(data.batch("train", [p]))
        torch.testing.assert_close(alone["projector"][0], whole["projector"][i], atol=1e-5, rtol=1e-5)
    batch = BrainBatch(signals={"sub-09": torch.randn(2, 50, 1)}, rows={"sub-09": torch.arange(2)},
                       stimulus_ids=["a", "b"])
    with pytest.raises(ValueError, match=r"expected one of the subjects \['sub-01', 'sub-02'\], got None"):
        module(batch)


def test_the_retrieval_of_any_head_can_be_monitored():
    for monitor, found in (("val/top1", {"val/top1": 0.0}),
                           ("val/backbone/top1", {"val/top1": 0.0, "val/backbone/top1": 1.0})):
        module = build(monitor=monitor).module.eval()
        module.trainer = SimpleNamespace(num_val_batches=[2])
        for places in (range(40), range(40, 60)):
            batch = PlantedData().batch("val", places)
            true = batch.targets["tiny"]
            module.forward = lambda _, true=true: ({"backbone": true, "projector": -true}, {})
            module.validation_step(batch, 0)
        row = module.pop_metrics()
        assert {key: value for key, value in row.items() if "top1" in key} == found
        assert module.pop_metrics() == {}


def test_an_epoch_without_a_loss_is_refused(tmp_path):
    torch.manual_seed(0)
    encoder = ResidualMLP(specs={}, width=16, n_blocks=1)
    head = LinearHead(hidden=encoder.hidden, spec=SPEC, space="tiny", losses={"s": SoftCLIP(start=0.5)})
    adapter = SubjectLinear(specs=PlantedData(n=1).specs, grid=encoder.grid)
    decoder = DeepDecoder(adapter=adapter, encoder=encoder, heads={"h": head},
                          training={"max_epochs": 4, "batch_size": 32, "accelerator": "cpu"})
    with pytest.raises(ValueError, match="losses: expected one that counts in epoch 1 of 4, got none"):
        decoder.fit(PlantedData(), folder=tmp_path)


def test_an_unknown_prior_is_not_in_other_decoders():
    head = LinearHead(hidden=(1, 16), spec=SPEC, space="tiny", losses={"m": MSE()})
    encoder = ResidualMLP(specs={}, width=16, n_blocks=1)
    decoder = DeepDecoder(adapter=SubjectLinear(specs=PlantedData(n=1).specs, grid=encoder.grid), encoder=encoder,
                          heads={"h": head}, training={"max_epochs": 1})
    assert decoder.joint_priors() == {}
