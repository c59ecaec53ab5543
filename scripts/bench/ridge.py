"""Measures ridge at the size of one NSD subject: 15,724 voxels x 8,859 stimuli onto 257 x 768 tokens, 982 test stimuli.

    python scripts/bench/ridge.py                                 # the whole size: 17 GB of disk
    python scripts/bench/ridge.py --targets 16384 --folds 0 --folder /scratch/bench --json bench_ridge.json

Random signals and targets are written to the disk in chunks.

- **ridge** is `Ridge.fit` (one penalty for the space, chosen among 17 on a sample of 1,000 targets in `--folds` inner
  folds; 0: one penalty, untried, as Brain-Diffuser) and `predict`, whose predictions are written to the disk. It begins
  with the signals in a file and ends with predictions in one.
- **floor** is what must be computed, on random numbers in memory, nothing read or written: the Gram matrix, its
  eigendecomposition and those of the inner folds (single precision, as himalaya's), the matrix that maps targets to
  coefficients, the product with every target, and that of the coefficients with the test signals.

Both run in processes of their own, one after the other. Seconds are those of the clock, CPU seconds those of all
threads together: on a machine that is busy with other work only the latter can be compared. With fewer `--targets` than
the whole, the share that is proportional to targets is multiplied up, and labelled as extrapolated. Peak RSS is VmHWM;
coefficients and targets are read and written, never mapped, so that it does not grow with their number, but for the
predictions, which are returned at once (982 x 197,376 float32: 0.8 GB, after the decompositions are gone).
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

VOXELS, STIMULI, TEST, TOKENS = 15_724, 8_859, 982, (257, 768)
WHOLE = TOKENS[0] * TOKENS[1]
#: Goal: peak RSS (bytes).
GOAL = 8e9
log = logging.getLogger("bench_ridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--targets", type=int, default=WHOLE)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--voxels", type=int, default=VOXELS)
    parser.add_argument("--stimuli", type=int, default=STIMULI)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        sys.stdout.write(json.dumps(globals()[f"task_{task.pop('kind')}"](**task)))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    size = {"targets": options.targets, "voxels": options.voxels, "stimuli": options.stimuli}
    with tempfile.TemporaryDirectory(prefix="bench_ridge_", dir=options.folder) as folder:
        child(kind="write", folder=folder, **size)
        results = {**size, "folds": options.folds,
                   "ridge": child(kind="ridge", folder=folder, folds=options.folds, **size),
                   "floor": child(kind="floor", folds=options.folds, **size)}
    sys.stdout.write(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def child(**task: Any) -> dict[str, Any]:
    """Run one task in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], stdout=subprocess.PIPE, check=True,
                          text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    log.info("%s", result)
    return result


def peak() -> int:
    """Return the peak RSS of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def clocks() -> np.ndarray:
    """Return the seconds of the clock, and the CPU seconds of this process."""
    import numpy as np

    return np.array([time.perf_counter(), time.process_time()])


# ---- tasks, each in a process of its own


def task_write(*, folder: str, targets: int, voxels: int, stimuli: int) -> dict[str, Any]:
    """Write random signals (float32) and targets (float16) in chunks."""
    import numpy as np

    from brain2img.artifacts import ArrayWriter

    rng, began = np.random.default_rng(0), time.perf_counter()
    for name, shape, dtype in (("signals", (stimuli + TEST, voxels), "float32"),
                               ("embeddings", (stimuli, targets), "float16")):
        writer = ArrayWriter(Path(folder), {name: (shape, dtype)})
        while writer.done < shape[0]:
            writer.write({name: rng.standard_normal((min(256, shape[0] - writer.done), shape[1]), dtype=np.float32)})
        writer.close()
    return {"seconds": time.perf_counter() - began}


class Data:
    """What `Ridge` asks of `BrainData`, from the files of `task_write`."""

    def __init__(self, folder: Path, *, targets: int, voxels: int, stimuli: int) -> None:
        from brain2img.artifacts import StoredRows
        from brain2img.records import EmbeddingSpec, SignalSpec

        self.specs = {"subj01": SignalSpec(subject="subj01", modality="fmri", units="a.u.", n_channels=voxels,
                                           n_times=1)}
        self.target_specs = {"clip": EmbeddingSpec(name="clip", shape=(targets,))}
        self.stimuli = stimuli
        self._signals = StoredRows(folder / "signals.npy")
        self._targets = StoredRows(folder / "embeddings.npy")

    def items(self, split: str) -> Any:
        """Return a row for each stimulus of a split."""
        import pandas as pd

        rows = range(self.stimuli) if split == "train" else range(self.stimuli, self.stimuli + TEST)
        return pd.DataFrame({"subject": "subj01", "stimulus_id": [str(i) for i in rows],
                             "trial_ids": [[i] for i in rows]})

    def signals(self, subject: str, trial_ids: list[list[int]]) -> Any:
        """Return ``(n, voxels, 1)``."""
        import numpy as np

        return self._signals[np.array(trial_ids)[:, 0]][:, :, None]

    def target_columns(self, space: str, stimulus_ids: list[str], *, start: int, stop: int) -> Any:
        """Return ``(n, stop - start)``."""
        import numpy as np

        return self._targets.columns(np.array(stimulus_ids, dtype=int), start=start, stop=stop).astype(np.float32)


def task_ridge(*, folder: str, folds: int, targets: int, voxels: int, stimuli: int) -> dict[str, Any]:
    """Fit and predict."""
    import torch

    from brain2img.artifacts import ArrayWriter
    from brain2img.decoders.ridge import Ridge
    from brain2img.records import BrainBatch

    data = Data(Path(folder), targets=targets, voxels=voxels, stimuli=stimuli)
    options: dict[str, Any] = {"penalty": "space", "cv": folds} if folds else {"alphas": 60_000.0, "relative": False}
    decoder = Ridge(specs=data.specs, targets=data.target_specs, **options)
    began = clocks()
    times: list[tuple[int, np.ndarray]] = []  # when the first chunk is written, what follows is proportional to targets
    write = ArrayWriter.write

    def timed(self: Any, rows: Any) -> None:
        write(self, rows)
        times.append((self.done, clocks()))

    ArrayWriter.write = timed  # type: ignore[method-assign]
    decoder.fit(data, folder=Path(folder))
    ArrayWriter.write = write  # type: ignore[method-assign]
    fitted, of_fit = clocks(), peak()
    per_target = (times[-1][1] - times[0][1]) / max(1, times[-1][0] - times[0][0])
    items = data.items("test")
    batch = BrainBatch(signals={"subj01": torch.from_numpy(data.signals("subj01", items["trial_ids"].tolist()))},
                       rows={"subj01": torch.arange(TEST)}, stimulus_ids=items["stimulus_id"].tolist())
    writer = ArrayWriter(Path(folder), {"clip": ((TEST, targets), "float16")})
    writer.write(decoder.predict(batch))
    writer.close()
    ended = clocks()
    return {"fit": (fitted - began).tolist(), "predict": (ended - fitted).tolist(),
            "per_target": (per_target + (ended - fitted) / targets).tolist(), "seconds": (ended - began).tolist(),
            "peak_rss": peak(), "peak_rss_of_fit": of_fit}


def task_floor(*, folds: int, targets: int, voxels: int, stimuli: int) -> dict[str, Any]:
    """Time the Gram matrix, the eigendecompositions and the products on random numbers."""
    import torch

    x, new = torch.randn(stimuli, voxels), torch.randn(TEST, voxels)
    steps: dict[str, np.ndarray] = {}
    began = clocks()
    kernel = x.double() @ x.double().T
    steps["gram"] = clocks() - began
    for fold in range(folds):
        kept = kernel[: stimuli - stimuli // folds, : stimuli - stimuli // folds].float()
        began = clocks()
        torch.linalg.eigh(kept)
        steps[f"eigh of fold {fold + 1}"] = clocks() - began
    began = clocks()
    values, vectors = torch.linalg.eigh(kernel)
    steps["eigh"] = clocks() - began
    del kernel
    began = clocks()
    vectors = vectors.float()
    operator = ((x.T @ vectors) / (values.float() + 60_000)) @ vectors.T
    steps["operator"] = clocks() - began
    y = torch.randn(stimuli, 2048)
    began = clocks()
    for start in range(0, targets, 2048):
        part = operator @ y[:, : min(2048, targets - start)]
        new @ part
    steps["products"] = clocks() - began
    return {"steps": {name: step.tolist() for name, step in steps.items()}, "peak_rss": peak(),
            "seconds": sum(steps.values()).tolist(), "per_target": (steps["products"] / targets).tolist()}


# ---- report


def report(results: dict[str, Any]) -> str:
    """Return the table, with what the whole size would take."""
    import numpy as np

    n, folds = results["targets"], results["folds"]
    lines = ["", f"{results['voxels']} voxels x {results['stimuli']} stimuli onto {n} targets, {folds} inner folds, "
             f"{TEST} test stimuli", "", "| | s | CPU s | s per 1,000 targets | CPU s per 1,000 targets |"
             " peak RSS GB |",
             "|---|---|---|---|---|---|"]
    whole = {}
    for name in ("ridge", "floor"):
        r = results[name]
        seconds, each = np.array(r["seconds"]), np.array(r["per_target"])
        whole[name] = seconds + (WHOLE - n) * each
        lines.append(f"| {name} | {seconds[0]:.0f} | {seconds[1]:.0f} | {1000 * each[0]:.2f} | {1000 * each[1]:.2f} "
                     f"| {r['peak_rss'] / 1e9:.2f} |")
    # at most: what the predictions that were not made would take, had they come at the peak
    memory, share = results["ridge"]["peak_rss"] + 4 * TEST * (WHOLE - n), whole["ridge"] / whole["floor"]
    word = "" if n == WHOLE else " (extrapolated from fewer targets)"
    lines += ["", f"{WHOLE} targets{word}: ridge {whole['ridge'][0]:.0f} s ({whole['ridge'][1]:.0f} CPU s), floor "
              f"{whole['floor'][0]:.0f} s ({whole['floor'][1]:.0f} CPU s): {share[0]:.2f} ({share[1]:.2f}) times the "
              "floor",
              f"peak RSS {memory / 1e9:.2f} GB, goal {GOAL / 1e9:g} GB: {'met' if memory <= GOAL else 'NOT MET'}"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
