"""What a new subject takes over from a trained decoder, what is trained, and the cycle with known subjects."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from planted import PlantedData, build
from torch import nn

from brain2img.adapters.mindbridge import MindBridge
from brain2img.decoders.adaptation import beside, own_names, restrict, take_over
from brain2img.decoders.deep import DeepDecoder
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.losses import MSE, InfoNCE, PriorLoss
from brain2img.priors.diffusion import DiffusionPrior
from brain2img.priors.mindeye import MindEyeTransformer
from brain2img.records import BrainBatch, EmbeddingSpec, Features, Grid, SignalSpec


def fresh(*, width: int = 32) -> DeepDecoder:
    """Return an untrained decoder of one new subject, of the parts that `planted.build` has."""
    specs = {"sub-03": SignalSpec(subject="sub-03", modality="fmri", units="a.u.", n_channels=45, n_times=1)}
    head = LinearHead(hidden=(1, width), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny",
                      losses={"nce": InfoNCE(), "mse": MSE(weight=0.1)})
    return DeepDecoder(adapter=MindBridge(specs=specs, grid=Grid(width, 1), pool_size=40, bottleneck=4, dropout=0.1),
                       encoder=ResidualMLP(specs={}, width=width, n_blocks=1), heads={"tiny": head},
                       training={"max_epochs": 1})


def adapted(*, mode: str = "reset", frozen: str = "eval"):
    known, new = build(), fresh()
    own = {k: v.clone() for k, v in new.module.state_dict().items()}
    names = take_over(new, known.module.state_dict(), subject="sub-03", known=["sub-01", "sub-02"], what="run")
    return known, new, own, {**names, **restrict(new, subject="sub-03", mode=mode, frozen=frozen)}


def test_shared_weights_are_taken_over_and_the_subjects_own_stay_fresh():
    known, new, own, names = adapted()
    there, here = known.module.state_dict(), new.module.state_dict()
    assert set(names["fresh"]) == {k for k in here if k.startswith(("adapter.embedder.", "adapter.builder."))}
    assert all(torch.equal(here[k], own[k]) for k in names["fresh"])
    assert set(names["taken_over"]) == {k for k in there if not k.startswith("adapter.")} != set()
    assert all(torch.equal(here[k], there[k]) for k in names["taken_over"])
    assert {k.split(".")[2] for k in names["left_out"]} == {"sub-01", "sub-02"}
    assert len(names["left_out"]) + len(names["taken_over"]) == len(there)


def test_a_decoder_of_other_parts_is_refused_with_the_full_list():
    known = build()
    with pytest.raises(ValueError, match=r"(?s)run: expected the .* shape of encoder.mlp.0.0.weight: \(16, 16\) here"):
        take_over(fresh(width=16), known.module.state_dict(), subject="sub-03", known=["sub-01", "sub-02"], what="run")
    with pytest.raises(ValueError, match=r"unexpected: adapter.embedder.sub-02"):
        take_over(fresh(), known.module.state_dict(), subject="sub-03", known=["sub-01"], what="run")


@pytest.mark.parametrize("mode", ["reset", "adapter", "full"])
def test_the_mode_says_what_is_trained(mode):
    _, new, _, names = adapted(mode=mode)
    own = set(own_names(new, "sub-03"))
    everything = {n for n, _ in new.module.named_parameters()}
    assert set(names["trained"]) == (everything if mode == "full" else own)
    assert set(names["frozen"]) == everything - set(names["trained"])
    optimised = {id(p) for p in new.module.parameters() if p.requires_grad}
    assert optimised == {id(p) for n, p in new.module.named_parameters() if n in names["trained"]}


@pytest.mark.parametrize("frozen", ["eval", "train"])
def test_dropout_of_frozen_parts_is_off_unless_asked_for(frozen):
    _, new, _, _ = adapted(frozen=frozen)
    dropouts = {name: m.training for name, m in new.module.named_modules() if isinstance(m, nn.Dropout)}
    assert {name.split(".")[0]: on for name, on in dropouts.items()} == {"adapter": True, "encoder": frozen == "train"}
    _, new, _, _ = adapted(mode="full")
    assert all(m.training for m in new.module.modules())


def test_the_cycle_is_the_published_formula_and_trains_the_new_subject_alone():
    known, new, _, _ = adapted()
    beside(new, known)
    assert not any(k.startswith("known") for k in new.module.state_dict())
    x = torch.randn(6, 50, 1)
    adapter, source = new.module.adapter.eval(), known.module.adapter
    nn.init.normal_(adapter.embedder["sub-03"][0].up_proj.weight)
    e = source.embedder["sub-01"].eval()(nn.functional.adaptive_max_pool1d(x.squeeze(-1), 40))
    back = adapter.embedder["sub-03"](adapter.builder["sub-03"](e))
    with torch.no_grad():
        given = {"sub-01": source(x, "sub-01")}
    losses = adapter.adaptation_losses(given, "sub-03")
    assert set(losses) == {"cycle"}
    torch.testing.assert_close(losses["cycle"], ((e - back) ** 2).mean())
    losses["cycle"].backward()
    assert all(p.grad is not None for p in adapter.parameters_of("sub-03"))
    assert all(p.grad is None for p in source.parameters())
    assert adapter.adaptation_losses({}, "sub-03") == {}


@pytest.mark.parametrize("joint", [False, True])
def test_trials_of_known_subjects_stand_in_all_losses_where_they_do_as_released(joint):
    """All losses, and the gradient of the new subject's parts, against the formulas over both halves of the batch."""
    known, new, _, _ = adapted()
    beside(new, known)
    module, x = new.module.eval(), torch.randn(5, 50, 1)
    adapter, trained = module.adapter, known.module.adapter.eval()
    adapter.known_in_losses, module.augmentation = joint, None
    with torch.no_grad():
        for p in adapter.parameters_of("sub-03"):
            p.add_(0.1 * torch.randn_like(p))
    z, other = torch.randn(4, 8), torch.randn(5, 8)
    voxels = torch.randn(4, adapter.specs["sub-03"].n_channels, 1)
    batch = BrainBatch(
        signals={"sub-03": voxels}, rows={"sub-03": torch.tensor([2, 0, 1, 3])}, stimulus_ids=list("abcd"),
        targets={"tiny": z}, sources=BrainBatch(signals={"sub-01": x}, rows={"sub-01": torch.tensor([1, 0, 2, 4, 3])},
                                                stimulus_ids=list("efghi"), targets={"tiny": other}))
    loss = module.training_step(batch, 1)
    terms = {name: value.item() for name, value in module._sums.items()}
    loss.backward()
    gradients = [p.grad.clone() for p in adapter.parameters_of("sub-03")]
    module.zero_grad()

    def embedded(which, subject, signals):
        pooled = which.pooled(signals, subject)
        return which.embedder[subject](pooled), pooled

    (e, pooled), (known_e, known_pooled) = embedded(adapter, "sub-03", voxels), embedded(trained, "sub-01", x)
    known_e = known_e.detach()
    built, known_built = adapter.builder["sub-03"](e), trained.builder["sub-01"](known_e).detach()

    def decoded(embedding, order):
        hidden = module.encoder(Features(embedding[torch.argsort(torch.tensor(order))].unsqueeze(-1)))
        return module.heads["tiny"](hidden, {})

    p, t = decoded(e, [2, 0, 1, 3]), z
    reconstruction = ((built - pooled) ** 2).mean()
    if joint:
        p, t = torch.cat([p, decoded(known_e, [1, 0, 2, 4, 3])]), torch.cat([z, other])
        reconstruction = torch.cat([built - pooled, known_built - known_pooled]).pow(2).mean()
    head = module.heads["tiny"].losses
    heads = sum(term.weight * term(p, t) for term in head.values())
    cycle = (adapter.embedder["sub-03"](adapter.builder["sub-03"](known_e)) - known_e).pow(2).mean()
    expected = heads + reconstruction + cycle
    torch.testing.assert_close(loss, expected)
    n = 9 if joint else 4
    assert terms["train/adapter/reconstruction"] / n == pytest.approx(reconstruction.item(), rel=1e-5)
    expected.backward()
    for got, p in zip(gradients, adapter.parameters_of("sub-03"), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)


def test_unknown_modes_are_refused():
    new = fresh()
    with pytest.raises(ValueError, match=r"adapt, mode: expected one of \('reset', 'adapter', 'full'\), got 'half'"):
        restrict(new, subject="sub-03", mode="half")
    with pytest.raises(ValueError, match=r"adapt, frozen: expected one of \('eval', 'train'\), got 'on'"):
        restrict(new, subject="sub-03", mode="full", frozen="on")


def with_prior(*, specs, width=32):
    """Return a decoder with a joint prior that standardises."""
    prior = DiffusionPrior(network=partial(MindEyeTransformer, depth=1, heads=2, head_width=8), prediction="sample",
                           scale="standardise", training={"steps": 10, "batch_size": 8, "lr": 1e-3})
    head = LinearHead(hidden=(1, width), spec=EmbeddingSpec(name="tiny", shape=(8,)), space="tiny",
                      losses={"prior": PriorLoss(prior=prior)})
    return DeepDecoder(adapter=MindBridge(specs=specs, grid=Grid(width, 1), pool_size=40, bottleneck=4),
                       encoder=ResidualMLP(specs={}, width=width, n_blocks=1), heads={"tiny": head},
                       training={"max_epochs": 1, "batch_size": 16, "accelerator": "cpu"})


@pytest.mark.parametrize("mode", ["adapter", "full"])
def test_a_joint_prior_keeps_its_statistics_and_frequencies_and_draws_new_noise(mode, tmp_path):
    known, new = with_prior(specs=PlantedData(n=1).specs), with_prior(specs=fresh().module.adapter.specs)
    known.fit(PlantedData(n=64), folder=tmp_path / "known")
    there = {k: v.clone() for k, v in known.module.state_dict().items()}
    take_over(new, there, subject="sub-03", known=["sub-01", "sub-02"], what="run")
    names = restrict(new, subject="sub-03", mode=mode)
    fixed = [k for k in there if "losses.prior.model" in k and ("mean_" in k or "std_" in k or "freqs" in k)]
    assert len(fixed) == 5
    assert not set(fixed) & set(names["trained"])
    loss, p, t = new.module.heads["tiny"].losses["prior"], torch.randn(6, 8), torch.randn(6, 8)
    new.module.begin_epoch(0)
    assert loss(p, t) != loss(p, t)
    assert loss.model.training == (mode == "full")
    data = PlantedData(n=16, specs=new.module.adapter.specs)
    new.fit(data, folder=tmp_path / "new")
    assert all(torch.equal(new.module.state_dict()[k], there[k]) for k in fixed)
    # those of the few stimuli of the new subject would be others
    assert not np.allclose(there["heads.tiny.losses.prior.model.mean_out"], data.training_targets("tiny").mean(axis=0),
                           atol=1e-3)


@pytest.mark.parametrize("mode", ["reset", "adapter"])
def test_a_decoder_that_shares_everything_has_nothing_to_adapt(mode):
    _, new, _, _ = adapted()
    new.module.adapter.parameters_of = lambda subject: []
    with pytest.raises(ValueError, match=rf"mode={mode}: expected parts of subject 'sub-03' alone to train, got none"):
        restrict(new, subject="sub-03", mode=mode)
