"""What every interface promises, as functions that a part is put through: ``check_<group>(part, ...)``.

Each raises an AssertionError that names the promise. The tests of this folder run them on every YAML of a group, those
of `test_broken_parts` on parts that break one promise each, and `test_adding_a_part` on the examples of the docs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import (
    Augmentation,
    Captioner,
    Decoder,
    Encoder,
    Head,
    Metric,
    Prior,
    Reconstructor,
    Space,
    SubjectAdapter,
)
from brain2img.meaning import Meaning
from brain2img.records import BrainBatch, Decoded, Features, Grid, SignalSpec, Stimuli

SCORE = {"row", "metric", "space", "direction", "gallery", "value"}
CHANCE = {"metric", "space", "direction", "chance", "chance_kind"}
KEYS = ["metric", "space", "direction"]


def calls(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a part gives; what it raises becomes a broken promise that says where."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise AssertionError(f"{what} crashes: {type(error).__name__}: {error}") from error


def same(what: str, a: Any, b: Any, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    a, b = (x.detach().float().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (a, b))
    assert a.shape == b.shape, f"{what}: expected the same twice, got shapes {a.shape} and {b.shape}"
    assert np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True), f"{what}: largest difference {np.abs(a - b).max()}"


def shaped(what: str, got: Any, shape: Sequence[int], dtype: Any) -> None:
    assert tuple(got.shape) == tuple(shape), f"{what}: expected shape {tuple(shape)}, got {tuple(got.shape)}"
    assert got.dtype == dtype, f"{what}: expected {dtype}, got {got.dtype}"
    finite = np.isfinite(got.detach().numpy() if isinstance(got, Tensor) else got).all()
    assert finite, f"{what}: expected finite values"


def within(what: str, got: Any, bounds: tuple[float, float]) -> None:
    low, high = float(got.min()), float(got.max())
    assert bounds[0] <= low <= high <= bounds[1], f"{what}: expected values in {bounds}, got {low} to {high}"


def trained(what: str, output: Tensor, parameters: Mapping[str, Tensor]) -> None:
    """Check that the gradient of `output` reaches every one of `parameters` that is trained."""
    torch.manual_seed(1)
    output.backward(torch.randn_like(output))
    missed = [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
    assert not missed, f"{what}: gradients do not reach {missed}"


def restored(what: str, part: nn.Module, other: nn.Module, run: Callable[[Any], Tensor]) -> None:
    """Check that `other`, built alike with other weights, computes the same with the state of `part`."""
    other.load_state_dict(part.state_dict())
    same(f"{what}: not all that it computes with is in its state_dict", run(part.eval()), run(other.eval()))


def independent(what: str, run: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Check that `run` gives every row of `x` the same, whatever rows come beside it and however often it is asked."""
    whole, kept = run(x), x.clone()
    same(f"{what} is not deterministic", run(x), whole)
    assert torch.equal(x, kept), f"{what} changes what it is given"
    order = torch.arange(len(x) - 1, -1, -1)
    same(f"{what} depends on the order of its rows", run(x[order]), whole[order])
    same(f"{what} depends on the rows beside it", run(x[1:3]), whole[1:3])


def check_encoder(encoder: Encoder, *, again: Callable[[], Encoder] | None = None) -> None:
    assert isinstance(encoder.grid, Grid), f"encoder.grid: expected a Grid, got {encoder.grid!r}"
    x = torch.randn(4, encoder.grid.F, encoder.grid.T, requires_grad=True)
    given = calls("encoder.forward", encoder.train(), Features(x))
    shaped("encoder.hidden does not tell the shape of forward", given, (4, *encoder.hidden), torch.float32)
    trained("encoder", given, {**dict(encoder.named_parameters()), "the grid, hence the adapter": x})
    x = x.detach()
    with torch.no_grad():
        independent("encoder.forward in evaluation", lambda x: encoder.eval()(Features(x)), x)
        other = again() if again else copy.deepcopy(encoder)
        restored("encoder", encoder, other, lambda e: e(Features(x)))


def check_encoder_shapes(encoder: Encoder) -> None:
    """Check, on the meta device, where nothing is computed, that `grid` and `hidden` tell the truth."""
    x = torch.empty(2, encoder.grid.F, encoder.grid.T, device="meta")
    got = calls("encoder.forward", encoder.train(), Features(x))
    assert tuple(got.shape) == (2, *encoder.hidden), \
        f"encoder.hidden does not tell the shape of forward: expected {encoder.hidden}, got {tuple(got.shape[1:])}"


def check_adapter(adapter: SubjectAdapter, *, new: SignalSpec | None = None) -> None:
    """Check an adapter of two subjects or more; `new`: signals of another one, else those of the first renamed."""
    signals = {name: torch.randn(4, spec.n_channels, spec.n_times) for name, spec in adapter.specs.items()}
    own = {name: {id(p) for p in adapter.parameters_of(name)} for name in signals}
    names = {id(p): name for name, p in adapter.named_parameters()}
    for subject, x in signals.items():
        what = f"adapter, subject {subject}"
        adapter.zero_grad()
        features = calls(f"{what}: forward", adapter.train(), x, subject)
        shaped(f"{what}: grid", features.grid, (4, adapter.grid.F, adapter.grid.T), torch.float32)
        if features.tokens is not None:
            shaped(f"{what}: tokens", features.tokens, (4, features.tokens.shape[1], adapter.grid.T), torch.float32)
        if features.grid.requires_grad:
            features.grid.square().sum().backward()
        others = {i for name, ids in own.items() if name != subject for i in ids}
        reached = {id(p) for p in adapter.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert not reached & others, f"{what}: gradients reach another subject's parameters"
        for i in own[subject]:
            assert subject in names[i].split("."), f"{what}: its own {names[i]!r} does not hold its name between dots"
        with torch.no_grad():
            independent(f"{what}: forward in evaluation", lambda x, s=subject: adapter.eval()(x, s).grid, x)
            same(f"{what}: forward after `once` is another", adapter(adapter.once(x, subject), subject).grid,
                 adapter(x, subject).grid)
    try:
        unseen = adapter(next(iter(signals.values())), None)
    except ValueError as error:
        said("adapter, unseen subject", error)
    else:
        assert unseen.grid.shape[1:] == (adapter.grid.F, adapter.grid.T), "adapter, unseen subject: another grid"
    batch = BrainBatch(signals=signals, rows={s: torch.arange(4) + 4 * i for i, s in enumerate(signals)},
                       stimulus_ids=[str(i) for i in range(4 * len(signals))])
    features = {s: adapter.train()(x, s) for s, x in signals.items()}
    for name, loss in calls("adapter.auxiliary_losses", adapter.auxiliary_losses, batch, features).items():
        assert loss.shape == (), f"adapter.auxiliary_losses: expected one number for {name!r}, got {tuple(loss.shape)}"
    known = next(iter(adapter.specs))
    new = new or SignalSpec.from_json({**adapter.specs[known].to_json(), "subject": "sub-new"})
    calls("adapter.add_subject", adapter.add_subject, new)
    assert new.subject in adapter.specs, "adapter.add_subject: specs lacks the new subject"
    added = {id(p) for p in adapter.parameters_of(new.subject)}
    assert not added & set.union(*own.values()), "adapter.add_subject: the new subject shares another's own parameters"
    assert bool(added) == bool(own[known]), "adapter.add_subject: the new subject has no parameters of its own"
    calls("adapter.forward of a new subject", adapter.eval(), torch.randn(2, new.n_channels, new.n_times), new.subject)


def check_head(head: Head, *, again: Callable[[], Head] | None = None,
               done: Mapping[str, Tensor] | None = None) -> None:
    """Check a head; `done`: name -> output ``(4, ...)`` of the heads before it that it reads."""
    assert isinstance(head.prediction, bool), f"head.prediction: expected a bool, got {head.prediction!r}"
    assert isinstance(head.losses, nn.ModuleDict), f"head.losses: expected a ModuleDict, got {type(head.losses)}"
    hidden, done = torch.randn(4, *head.hidden), dict(done or {})
    got = calls("head.forward", head.train(), hidden, done)
    shaped("head.forward", got, (4, *head.decoded.shape), torch.float32)
    target = head.true(torch.rand(4, *head.spec.shape))
    assert target.shape == got.shape, f"head.true: expected shape {tuple(got.shape)}, got {tuple(target.shape)}"
    own = {n: p for n, p in head.named_parameters() if not n.startswith("losses.")}
    if own:
        trained("head", torch.cat([got, target]) if target.requires_grad else got, own)
    if head.spec.value_range:
        within("head.forward", got, head.spec.value_range)
    with torch.no_grad():
        rows = torch.arange(4.0)[:, None, None].expand(4, 1, head.hidden[1])

        def run(x: Tensor, head: Head = head) -> Tensor:
            at = x[:, 0, 0].long()  # the first column says which rows these are, so that `done` can follow
            return head.eval()(hidden[at], {name: value[at] for name, value in done.items()})

        independent("head.forward in evaluation", run, rows)
        restored("head", head, again() if again else copy.deepcopy(head), lambda h: h(hidden, done))


def check_augmentation(augmentation: Augmentation) -> None:
    def run(n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        return calls("augmentation", augmentation, x[:n].clone(), generator=torch.Generator().manual_seed(seed))

    x = torch.randn(6, 5, 7)
    calls("augmentation.begin_epoch", augmentation.begin_epoch, 0, 3)
    for n in (6, 1):
        for seed in range(8):
            got, mixed = run(n, seed)
            shaped("augmentation", got, (n, 5, 7), torch.float32)
            same("augmentation is not a function of its generator", run(n, seed)[0], got)
            if mixed is not None:
                shaped("augmentation: soft targets", mixed, (n, n), torch.float32)
                assert (mixed >= 0).all(), "augmentation: expected soft targets of 0 or more"
                same("augmentation: rows of soft targets do not add up to 1", mixed.sum(1), torch.ones(n))
    given = x.clone()
    augmentation(given, generator=torch.Generator())
    assert torch.equal(given, x), "augmentation changes the signals it is given in place"


def check_decoder(make: Callable[[], Decoder], data: Any, *, folder: Path) -> None:
    """Check a decoder on `data`, whose test trials it predicts; `make` returns an unfitted one."""
    (folder / "fit").mkdir()
    decoder = make()
    calls("decoder.fit", decoder.fit, data, folder=folder / "fit")
    batch = next(iter(data.eval_loader("test")))
    got = calls("decoder.predict", decoder.predict, batch)
    assert set(got) == set(data.target_specs), f"decoder.predict: expected {set(data.target_specs)}, got {set(got)}"
    learned = decoder.learned_spaces()
    for space, array in got.items():
        spec = learned[space][0] if space in learned else data.target_specs[space]
        shaped(f"decoder.predict, space {space}", array, (len(batch), *spec.shape), np.float32)
        same("decoder.predict is not deterministic", decoder.predict(batch)[space], array)
        few = {s: (x[:2], batch.rows[s][:2]) for s, x in batch.signals.items()}
        place = torch.cat([rows for _, rows in few.values()])
        part = BrainBatch(signals={s: x for s, (x, _) in few.items()}, stimulus_ids=[""] * len(place), rows={
            s: torch.arange(2) + 2 * i for i, s in enumerate(few)})
        same("decoder.predict depends on the trials beside it", decoder.predict(part)[space], array[place.numpy()],
             rtol=1e-3, atol=1e-4)
    calls("decoder.save", decoder.save, folder / "fit")
    again = make()
    calls("decoder.load", again.load, folder / "fit")
    for space, array in got.items():
        same("decoder.load gives another decoder", again.predict(batch)[space], array)


def check_prior(make: Callable[[], Prior], shape: tuple[int, ...], *, folder: Path) -> None:
    """Check a prior on embeddings of this shape; `make` returns an unfitted one."""
    def generators(rows: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in rows]

    rng = np.random.default_rng(0)
    true = rng.standard_normal((24, *shape)).astype(np.float32)
    predicted = 0.5 * true + 0.5 * rng.standard_normal(true.shape).astype(np.float32)
    prior = make()
    refuses("prior.sample before fit", prior.sample, predicted, generators=generators(range(24)))
    broken = predicted.copy()
    broken.flat[3] = np.nan
    for what, pair in (("of other shapes", (predicted[:, :1], true)), ("with NaN", (broken, true))):
        refuses(f"prior.fit on arrays {what}", make().fit, *pair, folder=folder / "refused")
    calls("prior.fit", prior.fit, predicted, true, folder=folder / "fit")
    got = calls("prior.sample", prior.sample, predicted[:5], generators=generators(range(5)))
    shaped("prior.sample", got, (5, *shape), np.float32)
    same("prior.sample is not a function of its generators", prior.sample(
        predicted[:5], generators=generators(range(5))), got)
    same("prior.sample depends on the rows beside it", prior.sample(predicted[2:4], generators=generators([2, 3])),
         got[2:4], rtol=1e-3, atol=1e-4)
    calls("prior.save", prior.save, folder / "saved")
    again = make()
    calls("prior.load", again.load, folder / "saved")
    same("prior.load gives another prior", again.sample(predicted[:5], generators=generators(range(5))), got)


def said(what: str, error: ValueError) -> None:
    """Check that a message says what was expected and what came."""
    ours = all(word in str(error) for word in ("expected", "got"))
    assert ours, f"{what}: expected '<what>: expected <x>, got <y>. <cure>', got {str(error)!r}"


def refuses(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that a call ends with a ValueError whose message says what was expected and what came."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        said(what, error)
    except Exception as error:
        raise AssertionError(f"{what}: expected a ValueError, got {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{what}: expected a ValueError, got none")


def check_space(space: Space, stimuli: Stimuli, *, again: Callable[[], Space] | None = None) -> None:
    spec = calls("space.spec", space.spec, stimuli)
    assert spec.uid == space.uid() != "", f"space.spec: expected the uid {space.uid()!r}, got {spec.uid!r}"
    assert spec.name == space.name, f"space.spec: expected the name {space.name!r}, got {spec.name!r}"
    rows = list(range(len(stimuli)))
    whole = calls("space.embed", space.embed, stimuli, rows)
    shaped("space.embed", whole, (len(rows), *spec.shape), np.float32)
    same("space.embed is not deterministic", space.embed(stimuli, rows), whole)
    same("space.embed depends on the stimuli beside it", np.concatenate(
        [space.embed(stimuli, [rows[-1], 1]), space.embed(stimuli, [0])]), whole[[-1, 1, 0]], rtol=1e-3, atol=1e-4)
    if spec.normalised:
        norms = np.linalg.norm(whole.reshape(len(rows), -1), axis=1)
        same("space.embed: not of unit length, as its spec says", norms, np.ones(len(rows)), rtol=1e-3)
    if spec.value_range:
        within("space.embed", whole, spec.value_range)
    if again:
        assert again().uid() == space.uid(), "space.uid: another one for the same settings"


def check_reconstructor(part: Reconstructor, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check a reconstructor, ready to use; `shapes`: space -> shape of an embedding."""
    embeddings = _needed(part, shapes)

    def run(rows: list[int]) -> Tensor:
        return calls("reconstructor.reconstruct", part.reconstruct, {s: x[rows] for s, x in embeddings.items()},
                     generators=[torch.Generator().manual_seed(i) for i in rows])

    got = run([0, 1, 2])
    assert got.shape[:2] == (3, 3), f"reconstruct: expected (3, 3, h, w), got {tuple(got.shape)}"
    shaped("reconstruct", got, got.shape, torch.float32)
    within("reconstruct", got, (0, 1))
    same("reconstruct is not a function of embeddings and generators", run([0, 1, 2]), got)
    same("reconstruct depends on the pictures beside it", run([2, 1]), got[[2, 1]], rtol=1e-3, atol=2e-3)


def check_captioner(part: Captioner, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check a captioner, ready to use; `shapes`: space -> shape of an embedding."""
    embeddings = _needed(part, shapes)
    got = calls("captioner.caption", part.caption, embeddings)
    assert [type(text) for text in got] == [str] * 3, f"caption: expected 3 texts, got {got!r}"
    assert part.caption(embeddings) == got, "caption is not deterministic"
    assert part.caption({s: x[[2, 1]] for s, x in embeddings.items()}) == [got[2], got[1]], \
        "caption depends on the rows beside it"


def _needed(part: Reconstructor | Captioner, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    assert part.needs, f"needs: expected names of spaces, got {part.needs!r}"
    assert set(part.needs) <= set(shapes), f"needs {part.needs}: expected shapes of all of them, got {dict(shapes)}"
    assert isinstance(part.uid(), str), f"uid: expected a text, got {part.uid()!r}"
    torch.manual_seed(0)
    return {space: torch.rand(3, *shapes[space]) for space in part.needs}


def check_metric(metric: Metric, decoded: Callable[[str], Decoded]) -> None:
    """Check a metric; `decoded` returns what was decoded "perfect", by "chance" or all the "same", of 60 stimuli."""
    rng = np.random.default_rng
    table = {kind: calls(f"metric.score, {kind}", metric.score, decoded(kind))
             for kind in ("perfect", "chance", "same")}
    expected = calls("metric.chance", metric.chance, decoded("chance"), generator=rng(0))
    for kind, scores in table.items():
        assert set(scores) >= SCORE, f"metric.score: expected columns {sorted(SCORE)}, got {sorted(scores)}"
        assert len(scores), f"metric.score, {kind}: expected lines, got none"
        scored = {name.partition("/")[0] for name in scores["metric"]}
        assert scored <= set(metric.names), f"metric.names: expected {sorted(scored)} among them, got {metric.names}"
        assert scores["row"].between(0, 59).all(), "metric.score: row is none of the decoded ones"
        doubled = scores.duplicated(["row", *KEYS]).sum()
        assert not doubled, f"metric.score: expected one line per row, metric, space and direction, got {doubled} more"
        proportion = scores["proportion"] if "proportion" in scores else pd.Series(metric.proportion, scores.index)
        assert scores.loc[proportion, "value"].between(0, 1).all(), "metric.proportion: expected values in [0, 1]"
    assert set(expected) >= CHANCE, f"metric.chance: expected columns {sorted(CHANCE)}, got {sorted(expected)}"
    assert set(expected["chance_kind"]) <= {"analytic", "re-pairing"}, "metric.chance: an unknown chance_kind"
    level = expected.set_index(KEYS)["chance"]
    assert level.index.is_unique, "metric.chance: expected one line per metric, space and direction"
    means = {kind: scores.groupby(KEYS)["value"].mean() for kind, scores in table.items()}
    spread = table["chance"].groupby(KEYS)["value"].std().fillna(0)
    for key, best in means["perfect"].items():
        assert key in level.index, f"metric.chance: expected a line for {key}, got none"
        meaning = calls("metric.meaning", metric.meaning, key[0])
        assert isinstance(meaning, Meaning), f"metric.meaning: expected a Meaning of {key[0]!r}, got {meaning!r}"
        assert meaning.label, f"metric.meaning: expected a label of {key[0]!r}, got none"
        if meaning.unit == "%":
            values = pd.concat(scores.loc[scores["metric"] == key[0], "value"] for scores in table.values())
            assert values.between(0, 1).all(), f"metric.unit: expected proportions of {key[0]!r} in [0, 1], got others"
        if meaning.descriptive:
            continue
        better = meaning.sign * (best - level[key])
        assert better > 0, \
            f"metric.higher_is_better is wrong: {key} is {best:.3f} when perfect, chance {level[key]:.3f}"
        margin = 4.5 * max(spread[key], (level[key] * (1 - level[key])) ** 0.5 if 0 < level[key] < 1 else 0) / 60**0.5
        if expected.set_index(KEYS)["chance_kind"][key] == "re-pairing":
            margin += 0.05 * abs(level[key]) + 0.02
        assert abs(means["chance"][key] - level[key]) <= margin, \
            f"metric.chance: {key} is {means['chance'][key]:.4f} for decoded noise, chance {level[key]:.4f}"
        if metric.proportion and not metric.transductive and key in means["same"].index:
            gain = means["same"][key] - level[key]
            assert gain <= margin + 1e-6, f"ties: {key} gains {gain:.4f} over chance where all predictions are the same"
    turned = metric.score(decoded("perfect reversed")).assign(row=lambda t: 59 - t["row"])
    both = table["perfect"].merge(turned, on=[*KEYS, "row"], how="outer", suffixes=("", "_turned"))
    flat = {key for key in level.index if not spread.get(key) and means["chance"].get(key) not in (0, 1)}
    both = both[[key not in flat for key in zip(*(both[k] for k in KEYS), strict=True)]]  # rounding and ties move these
    same("metric.score depends on the order of the rows", both["value_turned"], both["value"])
    again = metric.chance(decoded("chance"), generator=rng(0)).set_index(KEYS)["chance"]
    same("metric.chance is not a function of its generator", again, level)


def check_study(study: Any, raw: Path | None, out: Path) -> None:
    """Check a study on its raw files: what it prepares can be read, and is the same when it is prepared again."""
    tables = []
    for folder in (out / "first", out / "second"):
        folder.mkdir()
        calls("study.prepare", study.prepare, raw, folder)
        prepared = calls("what study.prepare wrote", PreparedStudy, folder, finished=False)
        assert {spec.modality for spec in prepared.specs.values()} == {study.modality}, \
            f"study.modality: expected {study.modality!r}, got {[s.modality for s in prepared.specs.values()]}"
        table = prepared.stimuli.table
        known = "attributes" in table and table["attributes"].map(bool).any()
        assert known == study.has_attributes, f"study.has_attributes: expected {known}, got {study.has_attributes}"
        tables.append((prepared.trials, {s: np.asarray(prepared.signals(s)[:20]) for s in prepared.specs}))
    pd.testing.assert_frame_equal(tables[0][0], tables[1][0])
    for subject, signals in tables[0][1].items():
        same(f"study.prepare, subject {subject}: not the same twice", tables[1][1][subject], signals)
    assert isinstance(study.raw_id(raw), str), f"study.raw_id: expected a text, got {study.raw_id(raw)!r}"
