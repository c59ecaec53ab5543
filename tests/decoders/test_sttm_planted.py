"""See Through Their Minds from voxels to embedding and latents: a planted signal, its random weights, its transfer."""

from functools import partial

import numpy as np
import pytest
import torch
from planted import PlantedData

from brain2img.adapters.sttm import STTM as Adapter
from brain2img.augmentations.mixco import MixCo
from brain2img.decoders.adaptation import restrict, take_over
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.sttm import STTM
from brain2img.heads.latent_decoder import LatentDecoder
from brain2img.heads.token_attention import TokenAttention
from brain2img.heads.token_projector import TokenProjector
from brain2img.losses import L1, InfoNCE, PriorLoss, SoftCLIP
from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.sttm import STTMTransformer
from brain2img.records import EmbeddingSpec, SignalSpec

LATENTS = np.random.default_rng(7).standard_normal((8, 4 * 4 * 4)).astype(np.float32) / 3
NEW = {"sub-03": SignalSpec(subject="sub-03", modality="fmri", units="a.u.", n_channels=45, n_times=1)}


class Data(PlantedData):
    """`PlantedData` whose stimuli have latents, too."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.target_specs["vae"] = EmbeddingSpec(name="vae", shape=(4, 4, 4))

    def batch(self, split, places):
        made = super().batch(split, places)
        made.targets["vae"] = (made.targets["tiny"] @ torch.from_numpy(LATENTS)).reshape(-1, 4, 4, 4)
        return made


def build(*, specs=None, seed=0, **training):
    torch.manual_seed(seed)
    encoder = STTM(specs={}, width=32, n_blocks=1)
    given = {"hidden": encoder.hidden, "spec": EmbeddingSpec(name="tiny", shape=(8,)), "space": "tiny"}
    prior = DiffusionPrior(network=partial(STTMTransformer, depth=1, heads=2), prediction="sample", sampler="ddpm",
                           noising={"n_times": 100, "betas": "cosine"}, scale="none", training={
                               "steps": 10, "batch_size": 8, "lr": 1e-3})
    heads = {
        "backbone": TokenAttention(**given, state=0, token_width=16, attention_width=16, n_heads=2, mlp_width=32,
                                   prediction=False, losses={"prior": PriorLoss(prior=prior, weight=30.0)}),
        "projector": TokenProjector(**given, source="backbone", width=16, losses={
            "bimixco": InfoNCE(temperature=0.05, learnable=False, stop=0.35),
            "soft_clip": SoftCLIP(temperature=[0.04, 0.06], start=0.35)}),
        "latents": LatentDecoder(hidden=encoder.hidden, spec=EmbeddingSpec(name="vae", shape=(4, 4, 4)), space="vae",
                                 state=1, widths=(16, 32), map_channels=16, losses={"l1": L1(weight=3.0)})}
    adapter = Adapter(specs=specs or PlantedData(n=1).specs, grid=encoder.grid, dropout=0.1)
    return DeepDecoder(adapter=adapter, encoder=encoder, heads=heads, augmentation=MixCo(stop=0.35), training={
        "max_epochs": 20, "batch_size": 32, "lr": 1e-2, "random_balance": True, "monitor": "val/top1",
        "accelerator": "cpu", **training})


def agreement(decoder, data, space):
    """Return the correlation of decoded and true embeddings of the validation trials."""
    batch = data.batch("val", range(len(data.rows["val"])))
    true = batch.targets[space].numpy()
    return np.corrcoef(decoder.predict(batch)[space].ravel(), true.ravel())[0, 1]


def top1(decoder, data):
    """Return how often the decoded vector of a validation trial is nearest to its own stimulus, of 60."""
    batch = data.batch("val", range(len(data.rows["val"])))
    p, t = (torch.nn.functional.normalize(torch.as_tensor(v), dim=1) for v in (decoder.predict(batch)["tiny"],
                                                                             batch.targets["tiny"][:60]))
    return ((p @ t.T).argmax(1) == torch.arange(len(p)) % 60).float().mean()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_levels_find_the_planted_signal_and_none_in_shuffled_trials(tmp_path):
    data, decoder = Data(n=600), build()
    decoder.fit(data, folder=tmp_path / "run")
    assert agreement(decoder, data, "vae") > 0.6
    assert top1(decoder, data) > 0.4, "chance is 1 in 60"
    shuffled = build()
    shuffled.fit(Data(n=600, shuffled=True), folder=tmp_path / "shuffled")
    assert abs(agreement(shuffled, data, "vae")) < 0.15


def test_two_sums_are_weighed_by_a_random_share_in_training_alone():
    decoder = build()
    module, batch = decoder.module, Data().batch("train", range(24))
    outputs, _ = module(batch)
    for training in (True, False):
        module.train(training)
        module.begin_epoch(2)
        shares = []
        for _ in range(60):
            terms, total = module._head_losses(outputs, batch, None)
            prior, other = 30 * terms["backbone/prior"], terms["projector/bimixco"] + 3 * terms["latents/l1"]
            shares.append(((total - other) / (prior - other)).item())
        if training:
            assert 0 < min(shares) < max(shares) < 1
            assert np.std(shares) > 0.15
            assert 0.35 < np.mean(shares) < 0.65
        else:
            torch.testing.assert_close(total, prior + other)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adapter_only_transfer_trains_the_adapter_for_both_levels(tmp_path):
    known = build()
    known.fit(Data(n=600), folder=tmp_path / "known")
    weights = {k: v.clone() for k, v in known.module.state_dict().items()}
    data, decoder = Data(specs=NEW, n=600), build(specs=NEW, seed=1)
    take_over(decoder, weights, subject="sub-03", known=["sub-01", "sub-02"], what="known")
    before = {k: v.clone() for k, v in decoder.module.state_dict().items()}
    names = restrict(decoder, subject="sub-03", mode="adapter")
    decoder.fit(data, folder=tmp_path / "adapted")
    after = decoder.module.state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == set(names["trained"]) == \
        {k for k in after if k.startswith("adapter.subjects.sub-03.")}
    assert agreement(decoder, data, "vae") > 0.6
    assert top1(decoder, data) > 0.4, "chance is 1 in 60"
