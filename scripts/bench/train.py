"""Measures a training step of every deep decoder against what it cannot do without, on the CPU in fp32.

    python scripts/bench/train.py                                     # all models, published and small size
    python scripts/bench/train.py --models published/mindbridge_subj01 demo/fmri_mindbridge --steps 11
    python scripts/bench/train.py --models published/atm_s_sub08 published/meg_image_decoder
    python scripts/bench/train.py --models demo/fmri_mindbridge --plain --json bench_train.json

- **step** is what `DeepDecoder.fit` does for one batch, in Lightning's loop with its callbacks (averaged weights where
  trainer.ema is set), on batches of noise in memory, pooled once as `fit` keeps them: zeroing, forward, losses,
  backward, clipping, AdamW. From the end of one batch to the end of the next. Loading is what loader.py measures.
- **floor** is the matrix products and convolutions of that step alone, forward and backward, and a bare
  torch.optim.AdamW(fused=True) step on the same parameters. The products have the sizes and places in memory of a real
  step; what it computes twice, to save memory, is in it once, and what it does not compute, because two linear maps
  were made one, is not in it. The **floor of the published layers** has the products of the layers one by one.

A model is a process of its own. In it step and floor take turns; step / floor is the median over turns, of which the
first four do not count. Peak memory is VmHWM of the process after the first step. A model at published size needs
about 17 bytes a parameter, and is left out where that is not free. Where other work shares the machine,
OMP_NUM_THREADS=1 with --clock cpu counts the seconds that the process ran rather than those that passed. --plain trains
with AdamW's default loop, and clipping that always writes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
#: Goal for the models of GOALS; bytes a parameter takes: weights, gradients, two moments and some room.
RATIO, BYTES = 1.3, 17
GOALS = ("published/mindbridge", "published/atm_s_", "published/meg_image_decoder")
WARM_UP = 4
log = logging.getLogger("bench_train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="experiments; by default all published ones and those on scenes")
    parser.add_argument("--steps", type=int, default=9, help="that are measured")
    parser.add_argument("--batch-size", type=int, help="trials; by default that of the experiment")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--plain", action="store_true", help="AdamW and clipping as they come")
    parser.add_argument("--give-back", action="store_true", help="freed memory goes back to the system")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if options.task:
        sys.stdout.write(json.dumps(measure(**json.loads(options.task))))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    experiments = ROOT / "configs/experiment"
    found = [str(path.relative_to(experiments).with_suffix(""))
             for folder in ("published", "scenes") for path in sorted((experiments / folder).glob("*.yaml"))]
    results = []
    for model in options.models or found:
        result = child(model=model, steps=options.steps, batch_size=options.batch_size, plain=options.plain,
                       clock=options.clock, give_back=options.give_back)
        log.info("%s: %s", model, result)
        if "left_out" not in result:
            results.append(result)
    sys.stdout.write(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def child(**task: Any) -> dict[str, Any]:
    """Run one task in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], stdout=subprocess.PIPE, check=True,
                          text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---- one model, in a process of its own


def measure(*, model: str, steps: int, batch_size: int | None, plain: bool, clock: str,
            give_back: bool) -> dict[str, Any]:
    """Train `model` for some steps, in turns with its floor."""
    import torch

    from brain2img.analyses.counting import count
    from brain2img.decoders.callbacks import AveragedWeights
    from brain2img.decoders.deep import DeepDecoder
    from brain2img.decoders.module import DeepModule
    from brain2img.decoders.settings import own_randomness
    from brain2img.memory import keep_freed
    from brain2img.stages.build import build_decoder

    keep_freed(not give_back)  # as every command does on a machine of 16 GB
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    config, signals, embeddings = described(model)
    if "deep" not in config["decoder"]["_target_"]:
        return {"left_out": f"{config['decoder']['_target_']} is not trained in steps"}
    config["trainer"] |= {"accelerator": "cpu", "precision": "32-true", "max_epochs": 1, "accumulate": 1,
                          "batch_size": batch_size or config["trainer"]["batch_size"]}
    n_parameters = count(config, signals=signals, embeddings=embeddings).live
    if n_parameters * BYTES > free():
        return {"left_out": f"{n_parameters * BYTES / 1e9:.1f} GB are needed, {free() / 1e9:.1f} GB are free"}
    data: Any = type("Data", (), {"specs": signals, "target_specs": embeddings})
    decoder = build_decoder(config, data=data, seed=0)
    assert isinstance(decoder, DeepDecoder)
    if plain:
        DeepModule.configure_gradient_clipping = plain_clipping  # type: ignore[method-assign]
    ema = decoder.settings.ema
    now = time.perf_counter if clock == "wall" else time.process_time
    turns = interleaved(decoder, plain=plain, now=now)
    batches = noise(signals, embeddings, size=decoder.settings.batch_size, n=2)
    adapter, pooling = decoder.module.adapter, None
    if adapter.has_fixed_part and decoder.module.augmentation is None:
        pooling = once(adapter, batches, now=now)

    class Loader:  # a list would be several loaders to Lightning
        def __len__(self) -> int:
            return WARM_UP + steps

        def __iter__(self) -> Any:
            return (batches[i % 2] for i in range(WARM_UP + steps))

    with own_randomness():
        torch.manual_seed(0)
        trainer = decoder._trainer([*([AveragedWeights(ema)] if ema else []), turns])
        trainer.fit(decoder.module, Loader())
    taken = {key: values[-steps:] for key, values in turns.seconds.items()}

    def ratio(*floor: str) -> float | None:
        """Return how many times the floor a step takes, the median over turns."""
        if not set(floor) <= set(taken):
            return None
        return statistics.median(step / sum(parts) for step, *parts in zip(
            taken["step"], *(taken[key] for key in floor), strict=True))

    seconds = {key: statistics.median(values) for key, values in taken.items()}
    return {"model": model, "plain": plain, "parameters": n_parameters, "batch": decoder.settings.batch_size,
            "threads": torch.get_num_threads(), "ema": ema, "clip": decoder.settings.gradient_clip, **seconds,
            "samples_per_second": decoder.settings.batch_size / seconds["step"], "peak_rss": turns.peak,
            "ratio": ratio("products", "adamw"), "ratio_without_adamw": ratio("products"),
            "ratio_published": ratio("published", "adamw"),
            "pooling": pooling, "clock": clock}


def described(model: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the training configuration of an experiment, and the signals and embeddings it is for."""
    from hydra import compose, initialize_config_dir

    from brain2img.analyses.counting import embeddings_of, signals_of
    from brain2img.data.prepared import PreparedStudy
    from brain2img.interfaces import Study
    from brain2img.stages.build import build, build_spaces, plain
    from brain2img.stages.workspace import training_config

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("base", overrides=[f"experiment={model}"])
    published = plain(cfg.get("published"))
    if published:
        return training_config(cfg), signals_of(published), embeddings_of(published)
    with tempfile.TemporaryDirectory(prefix="bench_train_") as folder:  # the study itself, with few stimuli
        build({**plain(cfg.study), "n_train": 64, "n_val": 8}, Study).prepare(None, Path(folder))
        study = PreparedStudy(Path(folder), finished=False)
        stimuli = study.stimuli_of(list(study.stimulus_table["stimulus_id"]))
        embeddings = {name: space.spec(stimuli) for name, space in build_spaces(cfg).items()}
        return training_config(cfg), dict(study.specs), embeddings


def noise(signals: dict[str, Any], embeddings: dict[str, Any], *, size: int, n: int) -> list[Any]:
    """Return batches of `size` trials, as many of each subject."""
    import torch

    from brain2img.records import BrainBatch

    generator, batches = torch.Generator().manual_seed(0), []
    for _ in range(n):
        subject = torch.arange(size) % len(signals)
        rows = {name: torch.nonzero(subject == i).flatten() for i, name in enumerate(signals)}
        batches.append(BrainBatch(
            signals={name: torch.randn(len(rows[name]), spec.n_channels, spec.n_times, generator=generator)
                     for name, spec in signals.items()}, rows=rows, stimulus_ids=[str(i) for i in range(size)],
            targets={name: torch.rand(size, *spec.shape, generator=generator) for name, spec in embeddings.items()}))
    return batches


def interleaved(decoder: Any, *, plain: bool, now: Callable[[], float]) -> Any:
    """Return a callback that measures every batch and, after it, the floor."""
    import torch
    from lightning.pytorch import Callback
    from loader import status

    from brain2img import layers
    from brain2img.layers import TemporalSpatial

    class Turns(Callback):
        """The first batch shows the peak of memory, the next ones are recorded, then step and floor take turns."""

        def __init__(self) -> None:
            self.seconds: dict[str, list[float]] = {"step": [], "products": [], "adamw": []}
            self.parts: dict[str, Callable[[], None]] = {}
            self.peak, self.recording = 0, ExitStack()

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if plain:
                for group in trainer.optimizers[0].param_groups:
                    group["fused"] = None
            self.merged = any(isinstance(m, TemporalSpatial) for m in pl_module.modules())
            self.begun = now()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
            if index in (1, 2) and (index == 1 or self.merged):
                self.recording.enter_context(mock.patch.object(layers, "checkpoint", lambda f, *a, **_: f(*a)))
                if index == 2:
                    self.recording.enter_context(mock.patch.object(TemporalSpatial, "forward", in_published_order))
                self.recorded = self.recording.enter_context(recorder())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.seconds["step"].append(now() - self.begun)
            self.recording.close()
            if index == 0:
                self.peak = status("VmHWM")
            elif index == 1:
                self.parts = {"products": self.recorded.alone(), "adamw": bare_step(trainer.optimizers[0])}
            elif index == 2 and self.merged:
                self.parts["published"] = self.recorded.alone()
            for key, part in self.parts.items():
                begun = now()
                with torch.no_grad():
                    part()
                self.seconds.setdefault(key, []).append(now() - begun)
            self.begun = now()

    return Turns()


def in_published_order(convolutions: Any, x: Any) -> Any:
    """What `TemporalSpatial` computes, layer by layer."""
    for layer in convolutions:
        x = layer(x if x.ndim == 4 else x.unsqueeze(1))
    return x.transpose(2, 3)


def recorder() -> Any:
    """Return a context that records the matrix products and convolutions inside it, forward and backward.

    Sizes and places in memory are kept (`calls`), values are not; `alone()` returns a function that repeats what was
    recorded on noise, and does nothing else. What is added to a product is not repeated.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    multiplied = {aten.mm.default: slice(0, 2), aten.addmm.default: slice(1, 3),
                  aten.bmm.default: slice(0, 2), aten.baddbmm.default: slice(1, 3)}
    convolutions = (aten.convolution.default, aten.convolution_backward.default)

    class Recorded(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Any, list[Any]]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in multiplied:
                operands = args[multiplied[func]]
                self.calls.append((aten.mm.default if operands[0].ndim == 2 else aten.bmm.default,
                                   [Place.of(a) for a in operands]))
            elif func in convolutions:
                self.calls.append((func, [Place.of(a) for a in args]))
            return func(*args, **(kwargs or {}))

        def alone(self) -> Callable[[], None]:
            memory: dict[tuple[int, int], torch.Tensor] = {}
            calls = [(func, [a.filled(i, memory) if isinstance(a, Place) else a for i, a in enumerate(args)])
                     for func, args in self.calls]

            def run() -> None:
                for func, args in calls:
                    func(*args)

            return run

    return Recorded()


class Place(NamedTuple):
    """Size of a tensor and its place in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> Any:
        """Return the place of a tensor, and anything else as it is."""
        return cls(tuple(value.shape), value.stride()) if hasattr(value, "stride") else value

    def filled(self, operand: int, memory: dict[tuple[int, int], Any]) -> Any:
        """Return noise in such a place; operands of one call never share memory."""
        import torch

        n = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return memory.setdefault((operand, n), torch.randn(n)).as_strided(self.shape, self.stride)


def bare_step(optimizer: Any) -> Any:
    """Return the step of a fused AdamW that shares parameters and moments with `optimizer`, and changes no weight."""
    import torch

    bare = torch.optim.AdamW([p for group in optimizer.param_groups for p in group["params"]], lr=0.0,
                             weight_decay=0.0, fused=True)
    bare.state = optimizer.state
    return bare.step


def plain_clipping(self: Any, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
                   ) -> None:
    self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val,
                        gradient_clip_algorithm=gradient_clip_algorithm)


def once(adapter: Any, batches: list[Any], *, now: Callable[[], float]) -> float:
    """Pool the signals of the batches in their place; return the seconds that one batch takes."""
    import torch

    seconds = []
    for _ in range(WARM_UP + 5):
        begun = now()
        with torch.no_grad():
            pooled = [{s: adapter.once(x, s) for s, x in batch.signals.items()} for batch in batches]
        seconds.append((now() - begun) / len(batches))
    for batch, signals in zip(batches, pooled, strict=True):
        batch.signals.update(signals)
    return statistics.median(seconds[WARM_UP:])


def free() -> int:
    """Return the bytes of memory that are free or can be freed."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])


# ---- report


def report(results: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    clocks = "; ".join(sorted({f"{r['clock']} seconds, threads: {r['threads']}" for r in results}))
    lines = ["", f"CPU, fp32; floor = matrix products and convolutions + fused AdamW; {clocks}", "",
             "| model | parameters | batch | samples / s | step s | products s | AdamW s | step / floor "
             "| step / products | step / floor of the published layers | pooling ms | peak RSS GB | goal |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for r in results:
        best = min(r["ratio"], r["ratio_published"] or r["ratio"])
        goal = f"<= {RATIO} {'met' if best <= RATIO else 'NOT MET'}" if r["model"].startswith(GOALS) else ""
        if goal and best != r["ratio"] and r["ratio"] > RATIO:
            goal += " for the published layers, NOT for those made one"
        pooled = "" if r["pooling"] is None else f"{1e3 * r['pooling']:.1f}"
        published = "" if r["ratio_published"] is None else f"{r['ratio_published']:.2f}"
        lines.append(f"| {r['model']}{' (plain)' if r['plain'] else ''} | {r['parameters'] / 1e6:.2f} M | {r['batch']} "
                     f"| {r['samples_per_second']:.1f} | {r['step']:.4f} | {r['products']:.4f} | {r['adamw']:.4f} "
                     f"| {r['ratio']:.2f} | {r['ratio_without_adamw']:.2f} | {published} | {pooled} "
                     f"| {r['peak_rss'] / 1e9:.2f} | {goal} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
