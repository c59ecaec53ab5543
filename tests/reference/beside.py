"""Sets a decoder that is built from the YAML of a published row beside a plain evaluation of the paper's formulas.

The plain evaluation is a function of a dictionary of parameters and of a batch, in double precision; ours is a training
step in single precision, without dropout. Norms take the statistics of the batch where `training`, else random ones.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from brain2img.analyses.counting import embeddings_of, signals_of
from brain2img.records import BrainBatch
from brain2img.stages.build import build_decoder, plain
from brain2img.stages.workspace import training_config

TOLERANCE = 5e-5
"""Largest difference from the plain evaluation, as a share of the largest value."""


def built(composed, experiment, *overrides, seed=0, **facts):
    """Return (module, specs, embeddings) of an experiment, with random weights, statistics and gains, without dropout.

    `facts` take the place of those of ``published``: voxels, signals, spaces.
    """
    cfg = composed("train", f"experiment={experiment}", *overrides)
    published = {**plain(cfg.published), **facts}
    specs, embeddings = signals_of(published), embeddings_of(published)
    torch.manual_seed(seed)
    module = build_decoder(training_config(cfg), data=SimpleNamespace(specs=specs, target_specs=embeddings),
                           seed=seed).module
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("scale"):
                continue
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5)
            else:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_(0, 0.3)
            elif name.endswith("running_var"):
                b.uniform_(0.5, 1.5)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    return module, specs, embeddings


def batch_of(specs, embeddings, *, n=6):
    """Return random trials of all subjects, n of each, every one of another stimulus."""
    total = n * len(specs)
    return BrainBatch(
        signals={s: torch.randn(n, spec.n_channels, spec.n_times, requires_grad=True) for s, spec in specs.items()},
        rows={s: torch.arange(i * n, (i + 1) * n) for i, s in enumerate(specs)},
        stimulus_ids=[str(i) for i in range(total)],
        targets={name: torch.randn(total, *spec.shape) for name, spec in embeddings.items()})


def differences(module, batch, reference, *, training):
    """Return what -> relative difference: of outputs, loss, and gradients of parameters and signals.

    `reference` maps (parameters, signals, targets, training) to (head -> output, loss).
    """
    module.train(training)
    torch.manual_seed(1)
    start = {k: v.detach().double().clone() for k, v in module.state_dict().items()}  # before statistics move
    outputs, features = module(batch)
    torch.manual_seed(1)
    _, loss = module._head_losses(outputs, batch, None)
    for value in module.adapter.auxiliary_losses(batch, features).values():
        loss = loss + value
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, [*(dict(module.named_parameters())[n] for n in names), *batch.signals.values()],
                               allow_unused=True)
    leaves = {n: start[n].requires_grad_() for n in names}
    signals = {s: x.detach().double().requires_grad_() for s, x in batch.signals.items()}
    torch.manual_seed(1)
    targets = {k: t.double() for k, t in batch.targets.items()}
    expected, total = reference({**start, **leaves}, signals, targets, training)
    theirs = torch.autograd.grad(total, [*leaves.values(), *signals.values()], allow_unused=True)
    largest = max(float(g.abs().max()) for g in theirs if g is not None)
    found = {f"output {name}": _far(outputs[name], y) for name, y in expected.items()}
    found["loss"] = _far(loss, total)
    for what, a, b in zip([*names, *signals], ours, theirs, strict=True):
        if a is None and b is None:
            continue
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        size = float(b.abs().max())
        if size < 1e-9 * largest:  # zero, e.g. of a bias before a norm: what ours has is rounding
            size = largest
        found[f"gradient {what}"] = float((a.double() - b).abs().max()) / max(size, 1e-3 * largest)
    return found


def _far(a, b):
    return float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max())


def agree(found, tolerance=TOLERANCE):
    """Check that all differences are small."""
    wrong = {what: value for what, value in found.items() if not value <= tolerance}
    assert not wrong, wrong
    assert {"loss"} < set(found)


def differ(found, *, in_outputs):
    """Check that the comparison catches a mistake: in the outputs, or in the loss alone."""
    outputs = max(value for what, value in found.items() if what.startswith("output"))
    assert (outputs if in_outputs else found["loss"]) > 1e-3
    assert in_outputs or outputs < TOLERANCE


# --- formulas that several papers share -----------------------------------------------------------------------------

def linear(P, name, x):
    y = x @ P[f"{name}.weight"].T
    return y + P[f"{name}.bias"] if f"{name}.bias" in P else y


def layer_norm(P, name, x):
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * P[f"{name}.weight"] + P[f"{name}.bias"]


def batch_norm(P, name, x, training):
    """Norm of the channels of ``(B, H, ...)``."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    axes = [i for i in range(x.ndim) if i != 1]
    mean = x.mean(axes) if training else P[f"{name}.running_mean"]
    variance = x.var(axes, unbiased=False) if training else P[f"{name}.running_var"]
    scaled = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    return scaled * P[f"{name}.weight"].view(shape) + P[f"{name}.bias"].view(shape)


def gelu(x):
    return x * (1 + torch.erf(x / 2 ** 0.5)) / 2


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def cross_entropy(logits, share=None):
    share = torch.eye(len(logits), dtype=logits.dtype) if share is None else share
    return -(share * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()


def clip_loss(a, b, factor):
    return (cross_entropy(factor * a @ b.T) + cross_entropy(factor * b @ a.T)) / 2


def soft_clip(p, t, temperature):
    p, t = unit(p.flatten(1)), unit(t.flatten(1))
    share = (t @ t.T / temperature).softmax(1)
    return (cross_entropy(p @ t.T / temperature, share) + cross_entropy(t @ p.T / temperature, share)) / 2


def temporal_spatial(P, x, training, *, pool=51, stride=5):
    """Steps 3 and 4 of the notes' section 2.1: ``(B, C, T)`` -> flat, time first, filter last."""
    y = F.conv2d(x[:, None], P["encoder.tsconv.0.weight"], P["encoder.tsconv.0.bias"])
    y = F.avg_pool2d(y, (1, pool), (1, stride))
    y = F.elu(batch_norm(P, "encoder.tsconv.2", y, training))
    y = F.conv2d(y, P["encoder.tsconv.4.weight"], P["encoder.tsconv.4.bias"])
    y = F.elu(batch_norm(P, "encoder.tsconv.5", y, training))
    y = F.conv2d(y, P["encoder.projection.0.weight"], P["encoder.projection.0.bias"])
    return y[:, :, 0].transpose(1, 2).flatten(1)


def projector(P, x, head="heads.clip_projector"):
    """Step 5 there: Linear, residual of GELU and Linear, LayerNorm."""
    x = linear(P, f"{head}.proj.0", x)
    return layer_norm(P, f"{head}.proj.2", x + linear(P, f"{head}.proj.1.fn.1", gelu(x)))
