"""The losses of ATM and NICE, as their experiments put them together, against the published formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from brain2img.records import BrainBatch, EmbeddingSpec, SignalSpec
from brain2img.stages.build import build_decoder
from brain2img.stages.workspace import training_config

N, D = 6, 12


def contrast(e, v, scale):
    """CE in both directions between rows e and unit rows v, times a scale."""
    logits, own = scale * e @ F.normalize(v, dim=1).T, torch.arange(N)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


FORMULAS = {  # raw logit_scale, and e as it is, where ATM has it so
    "atm_s_sub08": lambda e, v, t: 0.99 * contrast(e, v, math.log(1 / 0.07)) + 0.01 * contrast(e, t,
                                                                                            math.log(1 / 0.07)),
    "atm_s_time_reconstruction_sub08": lambda e, v, t: 10 * (
        0.9 * ((e - F.normalize(v, dim=1)) ** 2).mean() + 0.1 * contrast(e, v, math.log(1 / 0.07))),
    "nice_sub08": lambda e, v, t: contrast(F.normalize(e, dim=1), v, 1 / 0.07)}


@pytest.mark.parametrize("experiment", FORMULAS)
def test_the_loss_of_a_step_is_the_published_formula(composed, experiment):
    config = training_config(composed("train", f"experiment=published/{experiment}", "trainer.accelerator=cpu"))
    spaces = {head["space"]: EmbeddingSpec(name=head["space"], shape=(D,)) for head in config["head"].values()}
    specs = {"sub-08": SignalSpec(subject="sub-08", modality="eeg", units="V", n_channels=4, n_times=80, sfreq=250.0)}
    module = build_decoder(config, data=SimpleNamespace(specs=specs, target_specs=spaces), seed=0).module.eval()
    generator = torch.Generator().manual_seed(0)
    v, t = (20 * torch.randn(N, D, generator=generator) for _ in range(2))
    batch = BrainBatch(signals={"sub-08": torch.randn(N, 4, 80, generator=generator)}, rows={"sub-08": torch.arange(N)},
                       stimulus_ids=[str(i) for i in range(N)],
                       targets={"clip": v, "clip_text": t} if len(spaces) == 2 else {"clip": v})
    with torch.no_grad():
        outputs, _ = module(batch)
        total = module._head_losses(outputs, batch, None)[1]
    torch.testing.assert_close(total, FORMULAS[experiment](outputs["clip_projector"], v, t))
    for name, output in outputs.items():  # text is ranked by the same output
        assert torch.equal(output, outputs["clip_projector"]), name
