"""Measures the memory of a leave-one-subject-out fold at real size: ATM-S, 10 subjects of THINGS-EEG2's trials.

    python scripts/bench/memory.py                                  # 20 steps of 1,024 trials; needs 0.2 GB of disk
    python scripts/bench/memory.py --steps 3 --subjects 3 --whiten --json bench_memory.json

Each subject has the 66,160 training trials of THINGS-EEG2 (16,540 images, 4 times) and 800 test trials (200 images),
63 channels x 250 samples in float32: 4.2 GB. They are one file under ten names, and of its trials one in `EVERY` is
noise on the disk, the others are holes, which read as zeros: the reads, their number and their sizes are those of real
files. 1,000 training images are set aside for validation. The fold is what scripts/train.py does: statistics of all ten
subjects, `DeepDecoder.fit` for so many steps with its validation, and the prediction of the one left out. Targets have
1,024 numbers. Peak RSS is VmHWM, in which mapped files count; RssAnon is sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

SHAPE, WIDTH, EVERY = (63, 250), 1024, 51  # odd, so that every session has some
N_IMAGES, N_REPEATED, N_VAL, N_TEST = 16_540, 4, 1_000, 200
#: Goal (bytes).
GOAL = 3e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--whiten", action="store_true", help="noise normalisation, too, as published")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        sys.stdout.write(json.dumps(globals()[f"task_{task.pop('kind')}"](**task)))
        return
    with tempfile.TemporaryDirectory(prefix="bench_memory_", dir=options.folder) as folder:
        written = child(kind="write", folder=folder, subjects=options.subjects)
        result = written | child(kind="fold", folder=folder, steps=options.steps, batch_size=options.batch_size,
                                 whiten=options.whiten)
    sys.stdout.write(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def child(**task: Any) -> dict[str, Any]:
    """Run one task in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], stdout=subprocess.PIPE, check=True,
                          text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def task_write(*, folder: str, subjects: int) -> dict[str, Any]:
    """Write the study: tables of real size, and one file of signals under the name of every subject."""
    import numpy as np
    import pandas as pd

    from brain2img.artifacts import open_folder, write_array, write_json, write_table
    from brain2img.data.prepared import PreparedWriter
    from brain2img.records import EmbeddingSpec, SignalSpec

    rng, out = np.random.default_rng(0), Path(folder) / "prepared"
    out.mkdir()
    ids = [f"image-{i:05d}.jpg" for i in range(N_IMAGES + N_TEST)]
    splits = ["val"] * N_VAL + ["train"] * (N_IMAGES - N_VAL) + ["test"] * N_TEST
    shown = np.repeat(np.arange(len(ids)), N_REPEATED)
    n = len(shown)
    writer = PreparedWriter(out, study="bench")
    one = pd.DataFrame({"stimulus_id": [ids[N_VAL]], "split": ["train"], "repetition": 0})
    for subject in range(subjects):
        spec = SignalSpec(subject=f"sub-{subject + 1:02d}", modality="eeg", units="V", n_channels=SHAPE[0],
                          n_times=SHAPE[1], sfreq=250.0, ch_names=tuple(f"E{i}" for i in range(SHAPE[0])),
                          ch_types=("eeg",) * SHAPE[0])
        writer.add_subject(spec, trials=one, signals=[np.ones((1, *SHAPE), dtype=np.float32)])
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids}),
                  images=np.zeros((len(ids), 8, 8), dtype=np.uint8))
    # the tables and files of so many trials in the place of those of one
    columns = pd.read_parquet(out / "trials.parquet")
    mine = pd.DataFrame({"stimulus_id": np.array(ids, dtype=object)[shown], "repetition": np.tile(range(4), len(ids)),
                         "split": np.array(splits, dtype=object)[shown], "session": (np.arange(n) % 4).astype(str)})
    trials = pd.concat([mine.assign(subject=s, row=np.arange(n)) for s in columns["subject"]], ignore_index=True)
    write_table(out / "trials.parquet", trials.reindex(columns=columns.columns))
    files = sorted(out.glob("signals_*.npy"))
    for file in files:
        file.unlink()
    signals = np.lib.format.open_memmap(files[0], mode="w+", dtype=np.float32, shape=(n, *SHAPE))
    for place in range(0, n, EVERY):
        signals[place] = 1e-5 * rng.standard_normal(SHAPE, dtype=np.float32)
    signals.flush()
    for file in files[1:]:
        os.link(files[0], file)
    stage = open_folder(Path(folder) / "cache", stage="embed", config={}, inputs={})
    write_array(stage.work / "embeddings.npy", rng.standard_normal((len(ids), WIDTH), dtype=np.float32))
    write_table(stage.work / "stimuli.parquet", pd.DataFrame({"stimulus_id": ids}))
    write_json(stage.work / "spec.json", EmbeddingSpec(name="clip", shape=(WIDTH,), dtype="float32").to_json())
    stage.finish()
    return {"subjects": subjects, "gb_each": n * 4 * SHAPE[0] * SHAPE[1] / 1e9, "trials_each": n,
            "gb_on_disk": files[0].stat().st_blocks * 512 / 1e9}


def task_fold(*, folder: str, steps: int, batch_size: int, whiten: bool) -> dict[str, Any]:
    """Train a fold for some steps and decode the subject left out; returns the peaks of memory after each part."""
    import torch
    from hydra import compose, initialize_config_dir
    from loader import status

    from brain2img.artifacts import EmbeddingCache
    from brain2img.data.prepared import PreparedStudy
    from brain2img.memory import keep_freed
    from brain2img.stages.build import build_data, build_decoder, plain

    keep_freed()  # as every command does
    peak, ended, found = [0], threading.Event(), {}

    def sample() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], status("RssAnon"))

    def done(part: str, since: float) -> float:
        found[part] = {"rss": status("VmHWM"), "anonymous": peak[0], "now": status("RssAnon"),
                       "seconds": time.monotonic() - since}
        return time.monotonic()

    threading.Thread(target=sample, daemon=True).start()
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "configs"), version_base="1.3"):
        config = plain(compose("base", overrides=[
            "adapter=subject_token", "encoder=atm", "head=[clip_projector]", "decoder=deep", "data.scale=subject",
            f"data.noise_normalise={str(whiten).lower()}", f"trainer.batch_size={batch_size}", "trainer.max_epochs=1",
            "trainer.accelerator=cpu", "trainer.schedule=none", "split.kind=leave_one_subject_out"]))
    clock = done("imports", time.monotonic())
    data = build_data(config, prepared=PreparedStudy(Path(folder) / "prepared", finished=False), fold=0,
                      caches={"clip": EmbeddingCache(Path(folder) / "cache")})
    clock = done("tables", clock)
    data.fit_normalisation()
    clock = done("statistics", clock)
    decoder = build_decoder(config, data=data, seed=0)
    whole = data.train_loader

    def first(**settings: Any) -> Any:
        """Return the loader of the whole fold, which stops after so many batches."""
        loader = whole(**settings)
        loader.sampler.__class__ = type("First", (type(loader.sampler),), {
            "__len__": lambda self: steps,
            "__iter__": lambda self: islice(super(type(self), self).__iter__(), steps)})
        return loader

    data.train_loader = first  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory(dir=folder) as run:
        decoder.fit(data, folder=Path(run))
    clock = done("training", clock)
    decoded = decoder.predict(data.batch(data.items("test")))
    done("prediction", clock)
    ended.set()
    return {"unseen": data.unseen, "decoded": len(decoded["clip"]), "steps": steps, "batch_size": batch_size,
            "threads": torch.get_num_threads(), "whiten": whiten, "parts": found}


def report(result: dict[str, Any]) -> str:
    """Return the table of peaks, with the goal."""
    from loader import met

    lines = ["", f"{result['subjects']} subjects of {result['gb_each']:.1f} GB ({result['trials_each']:,} trials), "
             f"{result['gb_on_disk']:.2f} GB on the disk; {result['steps']} steps of {result['batch_size']:,} trials, "
             f"{result['unseen'][0]} left out", "",
             "| after | peak RSS GB | peak anonymous GB | anonymous GB | s |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {p['rss'] / 1e9:.2f} | {p['anonymous'] / 1e9:.2f} | {p['now'] / 1e9:.2f} "
              f"| {p['seconds']:.0f} |" for name, p in result["parts"].items()]
    peak = result["parts"]["prediction"]["rss"]
    return "\n".join([*lines, "", met(peak < GOAL, f"peak RSS below {GOAL / 1e9:g} GB"), ""])


if __name__ == "__main__":
    main()
