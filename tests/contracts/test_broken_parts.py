"""The contracts bite: parts that each break one promise, and the name of the promise that catches them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from decoded import decoded_of
from promises import (
    check_adapter,
    check_augmentation,
    check_captioner,
    check_encoder,
    check_head,
    check_metric,
    check_prior,
    check_reconstructor,
    check_space,
    check_study,
)
from torch import Tensor, nn

from brain2img.adapters.subject_linear import SubjectLinear
from brain2img.augmentations.mixco import MixCo
from brain2img.captioners.nearest_caption import NearestCaption
from brain2img.encoders.residual_mlp import ResidualMLP
from brain2img.heads.linear import LinearHead
from brain2img.interfaces import Metric
from brain2img.metrics.mse import MSE
from brain2img.metrics.retrieval import Retrieval
from brain2img.priors.affine import Affine
from brain2img.reconstructors.pixels import PixelDecoding
from brain2img.records import Features, Stimuli
from brain2img.spaces.pixels import Pixels
from brain2img.studies.scenes import Scenes


def encoder(**changes):
    """Return a sound encoder with one method or attribute of another kind."""
    made = type("Broken", (ResidualMLP,), {k: v for k, v in changes.items() if callable(v)}).tiny()
    for name, value in changes.items():
        if not callable(value):
            setattr(made, name, value)
    return made


def sound(self, features: Features) -> Tensor:
    return ResidualMLP.forward(self, features)


@pytest.mark.parametrize(("changes", "match"), [
    ({"forward": lambda self, f: f.grid @ f.grid}, "encoder.forward crashes: RuntimeError"),
    ({"hidden": (2, 16)}, "encoder.hidden does not tell the shape of forward"),
    ({"forward": lambda self, f: sound(self, Features(f.grid.detach()))}, "gradients do not reach .*the grid"),
    ({"forward": lambda self, f: sound(self, f).detach().requires_grad_()}, "gradients do not reach"),
    ({"forward": lambda self, f: sound(self, f) - sound(self, f).mean(0)}, "depends on the rows beside it"),
    ({"forward": lambda self, f: sound(self, f) + torch.randn(1)}, "not deterministic"),
    ({"forward": lambda self, f: sound(self, Features(f.grid.mul_(2)))}, "changes what it is given|crashes"),
    ({"forward": lambda self, f: sound(self, f) / 0}, "expected finite values"),
    ({"grid": (16, 1)}, "expected a Grid"),
])
def test_a_broken_encoder_is_caught(changes, match):
    with pytest.raises(AssertionError, match=match):
        check_encoder(encoder(**changes))


def test_an_encoder_that_keeps_weights_to_itself_is_caught():
    class Hidden(ResidualMLP):
        def __init__(self, **given):
            super().__init__(**given)
            self.secret = [nn.Linear(16, 16)]

        def forward(self, features):
            return self.secret[0](super().forward(features))

    with pytest.raises(AssertionError, match="not all that it computes with is in its state_dict"):
        check_encoder(Hidden.tiny(), again=Hidden.tiny)


class SharedLinear(SubjectLinear):
    def forward(self, x, subject):
        other = self.linears["sub-02" if subject == "sub-01" else "sub-01"]
        return Features(super().forward(x, subject).grid + next(other.parameters()).sum())


class NamelessLinear(SubjectLinear):
    def add_subject(self, spec):
        super().add_subject(spec)
        self.linears[spec.subject.replace("-", "_")] = self.linears.pop(spec.subject)

    def parameters_of(self, subject):
        return list(self.linears[subject.replace("-", "_")].parameters())

    def forward(self, x, subject):
        return Features(self.linears[self.known(subject).replace("-", "_")](x.flatten(1)).unsqueeze(-1))


class WrongGrid(SubjectLinear):
    def forward(self, x, subject):
        return Features(super().forward(x, subject).grid[:, 1:])


class SilentAdd(SubjectLinear):
    def add_subject(self, spec):
        if len(self.specs) < 2:
            super().add_subject(spec)


@pytest.mark.parametrize(("cls", "match"), [
    (SharedLinear, "gradients reach another subject's parameters"), (NamelessLinear, "does not hold its name"),
    (WrongGrid, "grid: expected shape"), (SilentAdd, "specs lacks the new subject")])
def test_a_broken_adapter_is_caught(cls, match):
    with pytest.raises(AssertionError, match=match):
        check_adapter(cls.tiny())


class Flat(LinearHead):
    def forward(self, hidden: Tensor, done: Mapping[str, Tensor]) -> Tensor:
        return super().forward(hidden, done).repeat(1, 2)


class Idle(LinearHead):
    def __init__(self, **given):
        super().__init__(**given)
        self.idle = nn.Linear(3, 3)


class Centred(LinearHead):
    def forward(self, hidden, done):
        out = super().forward(hidden, done)
        return out - out.mean(0)


@pytest.mark.parametrize(("cls", "match"), [
    (Flat, "head.forward: expected shape"), (Idle, r"gradients do not reach \['idle.weight'"),
    (Centred, "depends on the rows beside it")])
def test_a_broken_head_is_caught(cls, match):
    with pytest.raises(AssertionError, match=match):
        check_head(cls.tiny())


class Unmixed(MixCo):
    def __call__(self, x, *, generator):
        x, mixed = super().__call__(x, generator=generator)
        return x, None if mixed is None else 2 * mixed


class Global(MixCo):
    def __call__(self, x, *, generator):
        return x + torch.randn_like(x), None


class InPlace(MixCo):
    def __call__(self, x, *, generator):
        return x.mul_(2), None


@pytest.mark.parametrize(("cls", "match"), [
    (Unmixed, "do not add up to 1"), (Global, "not a function of its generator"), (InPlace, "in place")])
def test_a_broken_augmentation_is_caught(cls, match):
    with pytest.raises(AssertionError, match=match):
        check_augmentation(cls.tiny())


class Batchwise(Affine):
    def sample(self, predicted, *, generators):
        return super().sample(predicted, generators=generators) + np.float32(len(predicted))


class Trusting(Affine):
    def fit(self, predicted, true, *, folder):
        super().fit(np.nan_to_num(predicted), true, folder=folder)


class Forgetful(Affine):
    def save(self, folder):
        self.fit(np.random.default_rng(1).standard_normal((24, 12)), np.ones((24, 12)), folder=folder)
        super().save(folder)


@pytest.mark.parametrize(("cls", "match"), [
    (Batchwise, "depends on the rows beside it"), (Trusting, "prior.fit on arrays with NaN: expected a ValueError"),
    (Forgetful, "prior.load gives another prior")])
def test_a_broken_prior_is_caught(cls, match, tmp_path):
    with pytest.raises(AssertionError, match=match):
        check_prior(cls.tiny, (12,), folder=tmp_path)


class Nameless(Pixels):
    def spec(self, stimuli):
        return dataclasses.replace(super().spec(stimuli), uid="another")


class Bright(Pixels):
    def embed(self, stimuli, rows):
        return super().embed(stimuli, rows) * 2


class Whole(Pixels):
    def embed(self, stimuli, rows):
        found = super().embed(stimuli, rows)
        return found / max(1, len(found))


class Double(Pixels):
    def embed(self, stimuli, rows):
        return super().embed(stimuli, rows).astype(float)


@pytest.mark.parametrize(("cls", "match"), [
    (Nameless, "space.spec: expected the uid"), (Bright, "space.embed: expected values in"),
    (Whole, "depends on the stimuli beside it"), (Double, "space.embed: expected .*float32")])
def test_a_broken_space_is_caught(cls, match):
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    stimuli = Stimuli(pd.DataFrame({"stimulus_id": list("abcde")}), lambda rows: images[list(rows)])
    check_space(Pixels.tiny(), stimuli)
    with pytest.raises(AssertionError, match=match):
        check_space(cls.tiny(), stimuli)


class Loud(PixelDecoding):
    def reconstruct(self, embeddings, *, generators):
        return super().reconstruct(embeddings, generators=generators) + 1


class Together(PixelDecoding):
    def reconstruct(self, embeddings, *, generators):
        made = super().reconstruct(embeddings, generators=generators)
        return made / made.max() * made.mean()


@pytest.mark.parametrize(("cls", "match"), [(Loud, "expected values in"), (Together, "depends on the pictures beside")])
def test_a_broken_reconstructor_is_caught(cls, match):
    with pytest.raises(AssertionError, match=match):
        check_reconstructor(cls.tiny(), cls.tiny_shapes)


class Short(NearestCaption):
    def caption(self, embeddings):
        return super().caption(embeddings)[:1]


def test_a_broken_captioner_is_caught():
    with pytest.raises(AssertionError, match="caption: expected 3 texts"):
        check_captioner(Short.tiny(), Short.tiny_shapes)


class WrongWay(MSE):
    higher_is_better = True


class LuckyTies(Retrieval):
    """Counts a tie as won, as many public scripts do."""

    def score(self, decoded):
        table = super().score(decoded)
        every = np.ptp(decoded.embeddings["clip"], axis=0).max() == 0
        return table.assign(value=1.0) if every else table


class WrongChance(Retrieval):
    def chance(self, decoded, *, generator):
        return super().chance(decoded, generator=generator).assign(chance=0.5)


class OtherNames(Retrieval):
    def score(self, decoded):
        return super().score(decoded).replace({"metric": {"top1": "first"}})


class Unsteady(Retrieval):
    def score(self, decoded):
        return super().score(decoded).assign(value=lambda t: t["value"] * (t["row"] % 2))


@pytest.mark.parametrize(("cls", "match"), [
    (WrongWay, "metric.higher_is_better is wrong"), (LuckyTies, "ties: .* gains"),
    (WrongChance, "metric.higher_is_better is wrong|metric.chance"), (OtherNames, "metric.names: expected"),
    (Unsteady, "depends on the order of the rows")])
def test_a_broken_metric_is_caught(cls, match):
    with pytest.raises(AssertionError, match=match):
        check_metric(cls.tiny(), decoded_of(cls.tiny()))


class NoConstructor(Metric):
    """A sound metric that needs no constructor, which is nothing wrong."""

    names, needs = ("sign_agreement",), ("clip",)

    def _values(self, decoded, truth):
        pairs = np.sign(decoded.embeddings["clip"]) == np.sign(decoded.gallery["clip"][truth])
        return pairs.mean(axis=1)

    def score(self, decoded):
        return pd.DataFrame({"row": range(len(decoded)), "metric": self.names[0], "space": "clip", "direction": "",
                             "gallery": 0, "value": self._values(decoded, decoded.truth)})

    def chance(self, decoded, *, generator):
        values = [self._values(decoded, generator.permutation(decoded.truth)) for _ in range(200)]
        return pd.DataFrame([{"metric": self.names[0], "space": "clip", "direction": "", "chance": np.mean(values),
                              "chance_kind": "re-pairing"}])

    @classmethod
    def tiny(cls):
        return cls()


def test_a_metric_without_constructor_is_sound():
    check_metric(NoConstructor.tiny(), decoded_of(NoConstructor.tiny()))


class WrongModality(Scenes):
    def prepare(self, raw, out):
        super().prepare(raw, out)
        self.modality = "eeg"


def test_a_broken_study_is_caught(tmp_path):
    with pytest.raises(AssertionError, match=r"study\.modality: expected 'eeg'"):
        check_study(WrongModality.tiny(), None, tmp_path)
