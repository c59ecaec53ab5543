"""The deep decoder: recovery, exact resume, checkpoints, messages."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import Killed, PlantedData, build

from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.module import retrieval_top1, shared_stimuli
from brain2img.decoders.settings import TrainingSettings, epoch_file
from brain2img.heads.linear import LinearHead
from brain2img.losses import MSE
from brain2img.records import BrainBatch, EmbeddingSpec


def equal(a, b):
    if isinstance(a, dict):
        return set(a) == set(b) and all(equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def state(folder):
    """All of ``last.ckpt`` but Lightning's bookkeeping of where it is inside an epoch."""
    return {k: v for k, v in torch.load(folder / "last.ckpt", weights_only=True).items() if k != "loops"}


def stopped_and_resumed(folder, *, after, data, training):
    for n in after:
        with pytest.raises(Killed):
            build(**training).fit(PlantedData(**data, fail_after=n), folder=folder)
    decoder = build(**training)
    decoder.fit(PlantedData(**data), folder=folder)
    return decoder


CASES = {
    "all": ({}, {}, (12 * 2 + 5, 7)),
    "odd accumulation, no average": ({"accumulate": 5, "ema": None, "precision": "bf16-mixed"}, {}, (12 + 5,)),
    "rare validation": ({"check_val_every": 2, "schedule": "cosine"}, {"n": 190}, (11 + 2, 11 + 1)),
    "no validation": ({}, {"validation": False}, (12 * 3 + 5,)),
}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(tmp_path, case):
    training, data, after = CASES[case]
    straight = build(**training)
    straight.fit(PlantedData(**data), folder=tmp_path / "straight")
    resumed = stopped_and_resumed(tmp_path / "resumed", after=after, data=data, training=training)
    assert equal(state(tmp_path / "straight"), state(tmp_path / "resumed"))
    assert equal(dict(straight.module.state_dict()), dict(resumed.module.state_dict()))
    rows = list(csv.DictReader((tmp_path / "resumed/logs/metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == list(range(4))


def test_a_finished_fit_is_left_alone_and_early_stopping_is_remembered(tmp_path):
    training = {"max_epochs": 12, "patience": 1, "lr": 1e-9, "schedule": "none", "ema": None}
    build(**training).fit(PlantedData(), folder=tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["callbacks"]["Checkpoints"]["stopped"]
    assert last["epoch"] < 11
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    build(**training).fit(PlantedData(), folder=tmp_path)
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before


def test_weights_of_the_last_epochs_are_kept_where_asked_for_and_resumed_exactly(tmp_path):
    training = {"max_epochs": 4, "keep_last": 2}
    build(max_epochs=4).fit(PlantedData(), folder=tmp_path / "plain")
    assert not (tmp_path / "plain" / "epochs").exists()
    straight = build(**training)
    straight.fit(PlantedData(), folder=tmp_path / "straight")
    # killed in the second epoch, and in the fourth, when those of the second are to go
    stopped_and_resumed(tmp_path / "resumed", after=(12 + 5, 12 * 2 + 7), data={}, training=training)
    for name in ("straight", "resumed"):
        assert sorted(p.name for p in (tmp_path / name / "epochs").iterdir()) == ["epoch-0002.ckpt", "epoch-0003.ckpt"]
    for file in (epoch_file(2), epoch_file(3)):
        assert equal(*(torch.load(tmp_path / name / file, weights_only=True) for name in ("straight", "resumed")))
    last = torch.load(tmp_path / "straight/last.ckpt", weights_only=True)
    kept = torch.load(tmp_path / "straight" / epoch_file(3), weights_only=True)
    assert kept["epoch"] == 3
    assert equal(kept["state_dict"], last["state_dict"])
    assert equal(state(tmp_path / "plain"), state(tmp_path / "straight")), "training itself is the same"
    straight.load(tmp_path / "straight", file=epoch_file(2))
    third = torch.load(tmp_path / "straight" / epoch_file(2), weights_only=True)["state_dict"]
    assert equal(dict(straight.module.state_dict()), third)
    assert not equal(third, kept["state_dict"])
    with pytest.raises(ValueError, match=r"trainer.keep_last: expected 0 or more epochs, got -1"):
        TrainingSettings.of({"max_epochs": 1, "keep_last": -1})


def test_the_last_epochs_are_those_before_an_early_stop(tmp_path):
    build(max_epochs=12, patience=1, lr=1e-9, schedule="none", ema=None, keep_last=2).fit(PlantedData(),
                                                                                          folder=tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"]
    assert last < 11
    kept = [tmp_path / epoch_file(epoch) for epoch in (last - 1, last)]
    assert sorted((tmp_path / "epochs").iterdir()) == kept


def top1(decoder, data):
    batch = next(iter(data.eval_loader("val", batch_size=1000)))
    predicted = torch.from_numpy(decoder.predict(batch)["tiny"])
    return retrieval_top1(predicted, batch.targets["tiny"], batch.stimulus_ids)


def test_a_planted_map_is_recovered_and_a_shuffled_one_is_not(tmp_path):
    data, shuffled = PlantedData(), PlantedData(shuffled=True)
    decoder = build(max_epochs=6)
    decoder.fit(data, folder=tmp_path / "a")
    assert top1(decoder, data) > 0.7  # chance is 1 / 60
    none = build(max_epochs=3)
    none.fit(shuffled, folder=tmp_path / "b")
    assert top1(none, shuffled) < 8 / 120  # 99.9 % of binomial(120, 1 / 60) lies below


def test_the_kept_weights_are_the_averaged_ones_of_the_best_epoch(tmp_path):
    decoder = build()
    decoder.fit(PlantedData(), folder=tmp_path)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    rows = list(csv.DictReader((tmp_path / "logs/metrics.csv").open()))
    assert best["epoch"] == int(np.argmax([float(row["val/top1"]) for row in rows]))
    assert best["score"] == max(float(row["val/top1"]) for row in rows)
    assert top1(decoder, PlantedData()) == pytest.approx(best["score"])
    decoder.save(tmp_path)
    assert equal(torch.load(tmp_path / "best.ckpt", weights_only=True), best)
    if best["epoch"] == last["epoch"]:
        assert equal(best["state_dict"], last["callbacks"]["AveragedWeights"]["average"])
    assert set(rows[0]) == {
        "epoch", "lr", "seconds", "train/tiny/nce", "train/tiny/mse", "train/adapter/reconstruction",
        "train/adapter/cycle", "train/loss", "val/tiny/nce", "val/tiny/mse", "val/loss", "val/top1"}
    assert any(path.name.startswith("events.out.tfevents") for path in (tmp_path / "logs").iterdir())


def test_prediction_does_not_depend_on_chunks_or_order():
    decoder = build()
    batch = next(iter(PlantedData().eval_loader("val", batch_size=1000)))
    whole = decoder.predict(batch)["tiny"]
    assert whole.shape == (120, 8)
    assert whole.dtype == np.float32
    for places in ([5, 100, 3], [119, 0]):
        part = PlantedData().batch("val", places)
        np.testing.assert_allclose(decoder.predict(part)["tiny"], whole[places], atol=1e-5)
    torch.testing.assert_close(decoder.module.eval()(batch)[0]["tiny"].detach(), torch.from_numpy(whole))


def test_soft_targets_of_subjects_are_put_in_their_places():
    module = build().module
    batch = PlantedData().batch("train", [0, 200, 1, 201, 2, 202, 3])
    mixed, soft_targets = module._augment(batch)
    assert torch.allclose(soft_targets.sum(dim=1), torch.ones(7))
    subject = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    assert (soft_targets[subject[:, None] != subject[None, :]] == 0).all()
    for name, rows in batch.rows.items():
        weights = soft_targets[rows][:, rows]
        torch.testing.assert_close(mixed.signals[name], torch.einsum("ij,jct->ict", weights, batch.signals[name]))


def test_top1_counts_ties_in_part_and_repeats_once():
    target = torch.eye(3)[[0, 1, 2, 0]]
    ids = ["a", "b", "c", "a"]
    assert retrieval_top1(target, target, ids) == 1.0
    predicted = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1], [1.0, 1, 0]])
    assert retrieval_top1(predicted, target, ids) == pytest.approx((1 + 0 + 1 / 3 + 1 / 2) / 4)
    expected = [[x == y for y in ids] for x in ids]
    assert shared_stimuli(ids).tolist() == expected


def test_biases_and_norms_are_not_decayed():
    decoder = build(schedule="none", weight_decay=0.1)
    groups = decoder.module.configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(p): n for n, p in decoder.module.named_parameters()}
    free = {names[id(p)] for p in groups[1]["params"]}
    assert {"heads.tiny.linear.bias", "encoder.mlp.0.1.weight", "heads.tiny.losses.nce.scale"} <= free
    assert not any(n.endswith("linear.weight") for n in free)


def test_the_fused_step_with_clipping_is_the_plain_one():
    ours, plain = (build(schedule="none", weight_decay=0.1).module for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    optimizer = ours.configure_optimizers()
    assert all(group["fused"] for group in optimizer.param_groups)
    assert not any(g["fused"] for g in build(schedule="none", precision="16-mixed").module.configure_optimizers()
                   .param_groups)
    reference = torch.optim.AdamW([{"params": [p for p in plain.parameters() if (p.ndim > 1) == decayed],
                                    "weight_decay": 0.1 * decayed} for decayed in (True, False)],
                                  lr=ours.settings.lr, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e-4, 30.0):  # clipped, left alone, clipped
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            p.grad = size * torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        ours.configure_gradient_clipping(optimizer, gradient_clip_val=0.5)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0)
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_a_number_still_shows_after_clipping():
    module = build(schedule="none").module
    optimizer = module.configure_optimizers()
    for p in module.parameters():
        p.grad = torch.full_like(p, torch.nan)
    module.configure_gradient_clipping(optimizer, gradient_clip_val=1.0)
    assert all(p.grad.isnan().all() for p in module.parameters())


def test_norms_are_decayed_where_a_published_recipe_does_so():
    groups = build(schedule="none", decay="weights_and_norms").module
    kinds = groups.configure_optimizers().param_groups
    names = {id(p): n for n, p in groups.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in kinds)
    assert "encoder.mlp.0.1.weight" in decayed
    assert {"encoder.mlp.0.1.bias", "heads.tiny.linear.bias", "heads.tiny.losses.nce.scale"} <= free
    assert decayed | free == set(names.values())


def test_what_is_decayed_is_chosen_by_policy_and_by_name():
    def decayed(**settings):
        module = build(schedule="none", weight_decay=0.1, **settings).module
        names = {id(p): n for n, p in module.named_parameters()}
        groups = module.configure_optimizers().param_groups
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[id(p)] for p in groups[0]["params"]}, set(names.values())

    weights, every = decayed()
    assert decayed(decay="all") == (every, every)
    also = {n for n in every if n.startswith("adapter.") or n.endswith(".scale")}
    assert also - weights, "biases of the adapter and the scale of the contrast"
    assert decayed(decay_also=["adapter.*", "*.scale"])[0] == weights | also
    with pytest.raises(ValueError, match=r"decay_also: expected patterns of names .*, got 'encodr\.\*', which"):
        decayed(decay_also=["encodr.*"])


def test_a_step_of_the_chosen_optimizer_is_that_written_out():
    """Two steps of Adam with its decay in the gradient, and of AdamW with it on the weights, by their formulas."""
    gradients = [torch.tensor([[1.0, -2.0], [0.5, 0.25]]), torch.tensor([[-0.5, 1.0], [2.0, 0.0]])]
    for name, betas in (("Adam", (0.5, 0.999)), ("AdamW", (0.9, 0.95))):
        settings = TrainingSettings.of({"max_epochs": 1, "optimizer": name, "betas": betas, "eps": 1e-3, "lr": 0.1,
                                        "weight_decay": 0.2})
        layer = torch.nn.Linear(2, 2, bias=False)
        optimizer, x = settings.optimizer_of(layer), layer.weight.detach().clone()
        m, v = torch.zeros(2, 2), torch.zeros(2, 2)
        for step, gradient in enumerate(gradients, start=1):
            layer.weight.grad = gradient.clone()
            optimizer.step()
            if name == "Adam":
                gradient = gradient + 0.2 * x
            else:
                x = x - 0.1 * 0.2 * x
            m, v = betas[0] * m + (1 - betas[0]) * gradient, betas[1] * v + (1 - betas[1]) * gradient**2
            x = x - 0.1 * (m / (1 - betas[0]**step)) / ((v / (1 - betas[1]**step)).sqrt() + 1e-3)
            torch.testing.assert_close(layer.weight.detach(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"optimizer": "SGD"}, r"trainer.optimizer: expected one of \('AdamW', 'Adam'\), got 'SGD'"),
    ({"decay": "none"}, r"trainer.decay: expected one of"), ({"betas": [0.9]}, r"trainer.betas: expected two numbers"),
    ({"monitor": "last", "patience": 3}, r"trainer.patience: expected null where the last epoch is kept")])
def test_impossible_settings_of_the_optimizer_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings.of({"max_epochs": 1, **settings})


def test_the_last_epoch_is_kept_where_it_is_asked_for(tmp_path):
    chosen, last = build(max_epochs=3), build(max_epochs=3, monitor="last")
    chosen.fit(PlantedData(), folder=tmp_path / "chosen")
    last.fit(PlantedData(), folder=tmp_path / "last")
    kept = torch.load(tmp_path / "last/last.ckpt", weights_only=True)["state_dict"]
    assert equal(dict(last.module.state_dict()), dict(kept))
    rows = list(csv.DictReader((tmp_path / "last/logs/metrics.csv").open()))
    assert float(rows[-1]["val/top1"]) > 0, "it is validated all the same"


def test_a_smaller_last_batch_is_trained_on_where_it_is_asked_for(tmp_path, monkeypatch):
    """384 trials in batches of 100: three, and one of 84."""
    from brain2img.decoders.module import DeepModule

    sizes, step = [], DeepModule.training_step
    monkeypatch.setattr(DeepModule, "training_step", lambda self, batch, i: sizes.append(len(batch)) or step(
        self, batch, i))
    for drop_last, expected in ((True, [100, 100, 100]), (False, [100, 100, 100, 84])):
        sizes.clear()
        build(max_epochs=1, batch_size=100, accumulate=1, drop_last=drop_last).fit(PlantedData(),
                                                                                   folder=tmp_path / str(drop_last))
        assert sizes == expected


@pytest.mark.parametrize("ema", [None, 0.5])
def test_validation_does_not_depend_on_the_size_of_its_chunks(tmp_path, monkeypatch, ema):
    rows = {}
    for chunk in (7, 50, 256):
        monkeypatch.setattr("brain2img.decoders.deep.CHUNK", chunk)
        folder = tmp_path / str(chunk)
        decoder = build(max_epochs=2, ema=ema)
        decoder.fit(PlantedData(), folder=folder)
        last = list(csv.DictReader((folder / "logs/metrics.csv").open()))[-1]
        rows[chunk] = {key: float(value) for key, value in last.items() if key.startswith("val/")}
    assert {"val/loss", "val/tiny/nce", "val/tiny/mse", "val/top1"} <= set(rows[256])
    for chunk in (7, 50):
        assert rows[chunk] == pytest.approx(rows[256], rel=1e-5)
    # the contrast is that over all 120 trials, of the weights that are kept
    whole = PlantedData().batch("val", range(120))
    decoder.load(folder, file="last.ckpt")
    head = decoder.module.heads["tiny"]
    with torch.no_grad():
        outputs, _ = decoder.module(whole)
        expected = head.losses["nce"](outputs["tiny"], whole.targets["tiny"],
                                      same=shared_stimuli(whole.stimulus_ids)).item()
    assert rows[256]["val/tiny/nce"] == pytest.approx(expected, rel=1e-5)
    assert rows[256]["val/loss"] == pytest.approx(expected + 0.1 * rows[256]["val/tiny/mse"], rel=1e-5)


def test_save_and_load(tmp_path):
    first, second = build(), build(seed=1)
    first.save(tmp_path)
    second.load(tmp_path)
    assert equal(dict(first.module.state_dict()), dict(second.module.state_dict()))


def test_random_generators_of_the_caller_are_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    decoder = DeepDecoder.tiny()
    torch.manual_seed(5)
    decoder.fit(PlantedData(), folder=tmp_path)
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    build().save(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)shape of encoder.mlp.0.0.weight: \(24, 24\) here, \(32, 32\) there.*"
                                         "Use the configuration"):
        build(width=24).load(tmp_path)
    other = build()
    other.module.heads["more"] = LinearHead(hidden=(1, 32), spec=EmbeddingSpec(name="b", shape=(2,)), space="b",
                                            losses={})
    with pytest.raises(ValueError, match=r"missing: heads\.more\.linear\.weight"):
        other.load(tmp_path)
    with pytest.raises(ValueError, match="expected a trained model, got nothing"):
        other.load(tmp_path / "nowhere")
    (tmp_path / "best.ckpt").write_bytes((tmp_path / "best.ckpt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected a whole checkpoint, got a truncated or damaged file of 1000 bytes"):
        build().load(tmp_path)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"last.ckpt: expected a whole checkpoint"):
        build().fit(PlantedData(), folder=tmp_path)


def test_an_allocation_of_slurm_is_not_taken_for_processes_of_ours(monkeypatch):
    """A shell of salloc, or a job with several tasks: one of them trains on one device."""
    for key, value in {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
                       "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "2"}.items():
        monkeypatch.setenv(key, value)
    trainer = build()._trainer([])
    assert (trainer.world_size, trainer.num_nodes, trainer.global_rank) == (1, 1, 0)


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"state_dict": SimpleNamespace()}, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=r"asks for types\.SimpleNamespace, which cannot be read without running code"):
        build().load(tmp_path)
    for other in ({"state_dict": Path("/")}, {"weights": {}}, torch.ones(2)):
        torch.save(other, tmp_path / "best.ckpt")
        with pytest.raises(ValueError, match=r"best\.ckpt: expected a checkpoint of this project, got "):
            build().load(tmp_path)


def test_parts_that_do_not_fit_are_refused(tmp_path):
    parts = DeepDecoder.tiny().module
    spec = EmbeddingSpec(name="x", shape=(8,))

    def head(space="tiny", **options):
        return LinearHead(hidden=(1, 16), spec=spec, space=space, losses={"mse": MSE()}, **options)

    def made(heads, encoder=parts.encoder):
        return DeepDecoder(adapter=parts.adapter, encoder=encoder, heads=heads, training={"max_epochs": 1})

    with pytest.raises(ValueError, match=r"space 'tiny': expected one head with prediction=true, got \['a', 'b'\]"):
        made({"a": head(), "b": head()})
    with pytest.raises(ValueError, match=r"expected one head with prediction=true, got \[\]"):
        made({"a": head(prediction=False)})
    with pytest.raises(ValueError, match="expected at least one head"):
        made({})
    with pytest.raises(ValueError, match="expected an adapter onto the encoder's grid"):
        made({"a": head()}, encoder=type(parts.encoder)(specs={}, width=8))
    with pytest.raises(ValueError, match=r"head 'a': expected targets of space 'clip', got only \['tiny'\]"):
        made({"a": head("clip")}).fit(PlantedData(), folder=tmp_path)


def test_settings_are_checked(caplog):
    for values, match in (({"max_epochs": 1, "epochs": 2}, "expected keys of .* got 'epochs'"),
                          ({}, "expected max_epochs, got none"),
                          ({"max_epochs": 0}, "trainer.max_epochs: expected 1 or more, got 0"),
                          ({"max_epochs": 1, "precision": "8"}, "trainer.precision: expected one of"),
                          ({"max_epochs": 1, "ema": 1.5}, "trainer.ema: expected a decay between 0 and 1")):
        with pytest.raises(ValueError, match=match):
            TrainingSettings.of(values)


def test_an_unknown_monitor_and_a_diverging_fit_end_with_a_message(tmp_path):
    with pytest.raises(ValueError, match=r"trainer.monitor: expected one of \['val/loss', .*got 'val/top9'"):
        build(monitor="val/top9").fit(PlantedData(), folder=tmp_path / "a")
    with pytest.raises(ValueError, match="expected a finite loss in epoch 0, got"):
        build(lr=1e30, gradient_clip=None, schedule="none").fit(PlantedData(), folder=tmp_path / "b")


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    build(max_epochs=8).fit(PlantedData(n=960), folder=tmp_path / "straight")
    code = ("import sys; from pathlib import Path; from planted import Killed, PlantedData, build; "
            "build(max_epochs=8).fit(PlantedData(n=960), folder=Path(sys.argv[1]))")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    folder = tmp_path / "killed"
    rng = np.random.default_rng(0)
    for kills in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=env)
        before = (folder / "last.ckpt").stat().st_mtime_ns if kills else 0
        while process.poll() is None:
            now = (folder / "last.ckpt").stat().st_mtime_ns if (folder / "last.ckpt").exists() else 0
            if now != before:
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    build(max_epochs=8).fit(PlantedData(n=960), folder=folder)
    assert equal(state(tmp_path / "straight"), state(folder))
    assert equal(*(torch.load(f / "best.ckpt", weights_only=True) for f in (tmp_path / "straight", folder)))


def test_the_same_stimulus_of_two_subjects_is_no_negative():
    decoder = build()
    batch = PlantedData().batch("train", [0, 1, 192, 193])  # train0 and train1 of both subjects
    assert batch.stimulus_ids == ["train0", "train1", "train0", "train1"]
    outputs = {"tiny": batch.targets["tiny"]}
    terms, _ = decoder.module._head_losses(outputs, batch, None)
    cosine = F.cosine_similarity(batch.targets["tiny"][:1], batch.targets["tiny"][1:2])
    factor = 1 / 0.07
    expected = -torch.log(1 / (2 + 2 * torch.exp(factor * (cosine - 1))))
    torch.testing.assert_close(terms["tiny/nce"], expected.squeeze())


def test_predicting_needs_no_targets():
    batch = PlantedData().batch("val", [0, 1])
    bare = BrainBatch(signals=batch.signals, rows=batch.rows, stimulus_ids=batch.stimulus_ids)
    np.testing.assert_array_equal(build().predict(bare)["tiny"], build().predict(batch)["tiny"])


def test_a_terminated_fit_does_not_look_finished(tmp_path):
    data = PlantedData()
    plain = data.batch

    def batch(split, places):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(split, places)

    data.batch = batch
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        build().fit(data, folder=tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
