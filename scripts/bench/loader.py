"""Measures that training streams from the disk: random batches of a prepared study against the raw mapped read.

    python scripts/bench/loader.py                            # 1 and 4 GB, batches of 1,024 trials, about 4 minutes
    python scripts/bench/loader.py --sizes 1 8 --subjects 4 --folder /scratch/bench --json bench_loader.json

Prepared studies of 63 channels x 300 samples float32 are written with `PreparedWriter`, with targets of 1,024 numbers.

- **Rate**, on the largest study: batches of `BrainData.train_loader` (what training iterates: `ItemDataset`, signals
  and targets, as tensors) against plain NumPy, which takes the same rows out of a memory-mapped file into a float32
  array. Both are timed batch by batch in one process, in turns, now the one first and now the other; medians are
  compared. "no normalisation" is scale=none, for which trials are only checked for NaN; what "scaled" (the default:
  z-score by session, clipped) and "whitened" cost more is the price of normalising. Warm: the files were read before,
  so that their pages are in the page cache; cold (7 batches): their pages are dropped before every batch.
- **Memory**, for each size in a process of its own: the statistics are fitted and one epoch of batches is read. Peak
  RSS is VmHWM, in which the pages of mapped files count as long as they are mapped; RssAnon and RssFile (mapped files)
  are sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SHAPE = (63, 300)
SESSIONS, STIMULI, WIDTH = 4, 1000, 1024
NORMALISATIONS: dict[str, dict[str, Any]] = {
    "no normalisation": {"scale": "none", "clip": None}, "scaled": {},
    "whitened": {"noise_normalise": True, "scale": "none", "clip": None}}
#: Goals: share of the raw rate, and growth of peak RSS from the smallest to the largest study (bytes).
SHARE, GROWTH = 0.7, 64e6
log = logging.getLogger("bench_loader")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 4], help="GB of signals")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=21, help="batches of each kind")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        sys.stdout.write(json.dumps(globals()[f"task_{task.pop('kind')}"](**task)))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"batch_size": options.batch_size, "subjects": options.subjects, "memory": [], "rate": []}
    largest = max(options.sizes)
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory(prefix="bench_loader_", dir=options.folder) as folder:
            child(kind="write", folder=folder, size=size, subjects=options.subjects)
            for normalisation in NORMALISATIONS if size == largest else ["scaled"]:
                results["memory"].append(child(kind="memory", folder=folder, size=size, batch_size=options.batch_size,
                                               normalisation=normalisation))
            rates = [*(("warm", name, options.repeats) for name in NORMALISATIONS), ("cold", "no normalisation", 7)]
            for cache, normalisation, repeats in rates if size == largest else []:
                results["rate"].append(child(kind="rate", folder=folder, batch_size=options.batch_size, cache=cache,
                                             repeats=repeats, normalisation=normalisation))
    sys.stdout.write(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def child(**task: Any) -> dict[str, Any]:
    """Run one task in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], stdout=subprocess.PIPE, check=True,
                          text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    log.info("%s", {key: value for key, value in result.items() if key != "seconds"})
    return result


# ---- tasks, each in a process of its own


def task_write(*, folder: str, size: float, subjects: int) -> dict[str, Any]:
    """Write a prepared study with embeddings of its stimuli."""
    import numpy as np
    import pandas as pd

    from brain2img.artifacts import open_folder, write_array, write_json, write_table
    from brain2img.data.prepared import PreparedWriter
    from brain2img.records import EmbeddingSpec, SignalSpec

    began, rng, out = time.perf_counter(), np.random.default_rng(0), Path(folder) / "prepared"
    out.mkdir()
    n = round(size * 1e9 / (4 * SHAPE[0] * SHAPE[1]) / subjects)
    ids = [f"stimulus{i}" for i in range(STIMULI)]
    splits = ["val"] * 10 + ["test"] * 10 + ["train"] * (STIMULI - 20)
    writer = PreparedWriter(out, study="bench")
    for subject in range(subjects):
        shown = rng.integers(0, STIMULI, n)
        shown[:STIMULI] = np.arange(min(n, STIMULI))
        spec = SignalSpec(subject=f"sub-{subject:02d}", modality="eeg", units="V", n_channels=SHAPE[0],
                          n_times=SHAPE[1], sfreq=250.0, tmin=-0.2, ch_names=tuple(f"E{i}" for i in range(SHAPE[0])),
                          ch_types=("eeg",) * SHAPE[0])
        trials = pd.DataFrame({"stimulus_id": [ids[i] for i in shown], "split": [splits[i] for i in shown],
                               "session": np.sort(np.arange(n) % SESSIONS).astype(str)})
        trials["repetition"] = trials.groupby("stimulus_id").cumcount()
        blocks = (1e-5 * rng.standard_normal((min(500, n - start), *SHAPE), dtype=np.float32)
                  for start in range(0, n, 500))
        writer.add_subject(spec, trials=trials, signals=blocks)
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids}),
                  images=np.zeros((STIMULI, 8, 8), dtype=np.uint8))
    stage = open_folder(Path(folder) / "cache", stage="embed", config={}, inputs={})
    write_array(stage.work / "embeddings.npy", rng.standard_normal((STIMULI, WIDTH), dtype=np.float32))
    write_table(stage.work / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
    write_json(stage.work / "spec.json", EmbeddingSpec(name="target", shape=(WIDTH,), dtype="float32").to_json())
    stage.finish()
    return {"written": size, "trials": n * subjects, "seconds": time.perf_counter() - began}


def opened(folder: str, *, normalisation: str) -> Any:
    """Return the study's data as training has it."""
    from brain2img.artifacts import EmbeddingCache
    from brain2img.data.datamodule import BrainData
    from brain2img.data.normalisation import Normalisation
    from brain2img.data.prepared import PreparedStudy
    from brain2img.data.trials import Split

    data = BrainData(PreparedStudy(Path(folder) / "prepared", finished=False), split=Split(),
                     targets={"target": EmbeddingCache(Path(folder) / "cache")},
                     normalisation=Normalisation(**NORMALISATIONS[normalisation]))
    data.fit_normalisation()
    return data


def task_rate(*, folder: str, batch_size: int, repeats: int, cache: str, normalisation: str) -> dict[str, Any]:
    """Time batches of the loader and of plain NumPy in turns."""
    import numpy as np

    data = opened(folder, normalisation=normalisation)
    files = {s: Path(folder) / f"prepared/signals_{s}.npy" for s in data.subjects}
    mapped = {subject: np.load(path, mmap_mode="r") for subject, path in files.items()}
    items, seconds = data.single_trials("train"), {"loader": [], "raw": []}
    loader = data.train_loader(batch_size=batch_size, seed=0)
    batches, same, epoch = iter(loader), iter(loader.sampler), 0  # the sampler's order is a function of seed and epoch
    for path in files.values():
        with path.open("rb", buffering=0) as file:
            while file.read(64_000_000):
                pass
    for repeat in range(repeats):
        if repeat and repeat % len(loader) == 0:
            epoch += 1
            loader.sampler.set_epoch(epoch)
            batches, same = iter(loader), iter(loader.sampler)
        chosen = items.iloc[next(same)]
        rows = {s: chosen.loc[chosen["subject"] == s, "trial_ids"].map(lambda ids: ids[0]).to_numpy()
                for s in data.subjects}
        for kind in ("loader", "raw") if repeat % 2 else ("raw", "loader"):
            if cache == "cold":
                mapped.clear()  # pages that are mapped are not dropped
                for subject, path in files.items():
                    drop(path)
                    mapped[subject] = np.load(path, mmap_mode="r")
            began = time.perf_counter()
            if kind == "loader":
                batch = next(batches)
            else:
                arrays = {s: np.asarray(mapped[s][mine], dtype=np.float32) for s, mine in rows.items()}
            seconds[kind].append(time.perf_counter() - began)
        assert {s: len(x) for s, x in batch.signals.items()} == {s: len(x) for s, x in arrays.items()}
        if normalisation == "no normalisation":
            assert all(np.array_equal(batch.signals[s], arrays[s]) for s in arrays), "other trials"
        del batch, arrays  # what is freed inside a measurement would count in it
    rates = {kind: batch_size / float(np.median(times)) for kind, times in seconds.items()}
    return {"cache": cache, "normalisation": normalisation, **{f"{kind}_per_s": rate for kind, rate in rates.items()},
            "share": rates["loader"] / rates["raw"], "seconds": seconds}


def drop(path: Path) -> None:
    """Drop a file's pages from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def task_memory(*, folder: str, size: float, batch_size: int, normalisation: str) -> dict[str, Any]:
    """Fit the statistics, read an epoch, and return the peaks of memory."""
    peaks, ended = {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def sample() -> None:
        while not ended.wait(0.005):
            for key in peaks:
                peaks[key] = max(peaks[key], status(key))

    import torch  # noqa: F401

    from brain2img.data import datamodule  # noqa: F401

    before = status("VmRSS")
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        data = opened(folder, normalisation=normalisation)
        n = sum(len(batch.stimulus_ids) for batch in data.train_loader(batch_size=batch_size, seed=0))
    finally:
        ended.set()
        thread.join()
    return {"size": size, "normalisation": normalisation, "trials": n, "imports": before, "peak_rss": status("VmHWM"),
            **peaks}


def status(key: str) -> int:
    """Return a size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


# ---- report


def report(results: dict[str, Any]) -> str:
    """Return the tables of rates and memory, with the goals."""
    lines = ["", f"Batches of {results['batch_size']} random trials, {results['subjects']} subjects", "",
             "| cache | normalisation | raw trials/s | loader trials/s | share | |", "|---|---|---|---|---|---|"]
    for r in results["rate"]:
        mark = "" if r["normalisation"] != "no normalisation" else met(r["share"] >= SHARE, f">= {SHARE:.0%}")
        lines.append(f"| {r['cache']} | {r['normalisation']} | {r['raw_per_s']:.0f} | {r['loader_per_s']:.0f} "
                     f"| {r['share']:.0%} | {mark} |")
    lines += ["", "| study GB | normalisation | imports GB | peak RSS GB | RssAnon GB | RssFile GB | |",
              "|---|---|---|---|---|---|---|"]
    least = results["memory"][0]["peak_rss"]
    for r in results["memory"]:
        growth = r["peak_rss"] - least
        mark = "" if r["normalisation"] != "scaled" else met(growth <= GROWTH, f"grows by {growth / 1e6:.0f} MB")
        lines.append(f"| {r['size']:g} | {r['normalisation']} | {r['imports'] / 1e9:.2f} | {r['peak_rss'] / 1e9:.2f} "
                     f"| {r['RssAnon'] / 1e9:.2f} | {r['RssFile'] / 1e9:.2f} | {mark} |")
    return "\n".join([*lines, ""])


def met(reached: bool, what: str) -> str:
    return f"{what}: {'met' if reached else 'NOT MET'}"


if __name__ == "__main__":
    main()
