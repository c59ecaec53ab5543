"""Measures that preparing never holds a study in memory: time, peak memory and bytes read, sessions of real size.

    python scripts/bench/prepare.py                                   # all forms, 1 and 3 sessions, about 12 minutes
    python scripts/bench/prepare.py --forms hdf5 --sessions 1 3 --folder /scratch/bench --json bench_prepare.json

It writes a subject of THINGS-EEG2 (16,710 + 4,056 presentations a session, 64 channels of float64 at 1000 Hz) and one
of NSD (750 int16 volumes of 81 x 104 x 83 a session, 15,724 voxels of nsdgeneral) with the writers of
`brain2img.simulate`, form by form, and deletes each before the next: 20 GB of disk are needed at a time.

- **prepare** is `Study.prepare`, modules imported before the clock starts.
- **floor** reads the raw files from end to end with NumPy (.nii.gz through `gzip`, as preparing does) and writes an
  array of the prepared size, in blocks. Of chunked HDF5 preparing reads less: only the chunks around its voxels.
- **work** is what must be computed, on blocks that are in memory: the product that takes off the baseline and
  resamples (EEG), taking voxels out of volumes and making them float32 (NSD). It is measured for one session and
  multiplied.

Every measurement is a process of its own, and before each (--cache cold) the pages of the raw files are dropped from
the page cache, so that all read from the disk; with --cache warm the files are read once before each. Whatever lies
between this machine and its disk may keep a cache of its own. Peak RSS is the process' own VmHWM: it counts the pages
of mapped files that are mapped at that moment. RssAnon, sampled every 20 ms, does not. With --jobs, peak RSS is that of
the largest single process (VmHWM, or ru_maxrss of a child), and RssAnon and bytes are those of the parent.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FORMS = ("things_eeg2", "nifti", "hdf5")
SUFFIX = {"nifti": ".nii.gz", "hdf5": ".hdf5"}
TRIALS = {"things_eeg2": 16710 + 4056, "nifti": 750, "hdf5": 750}
SHAPE = {"things_eeg2": (63, 300), "nifti": (15724, 1), "hdf5": (15724, 1)}
VOLUME = (81, 104, 83)
#: Sessions of every subject of the whole study.
WHOLE = {"things_eeg2": (4,) * 10, "nifti": (40, 40, 32, 30, 40, 32, 40, 30), "hdf5": (40, 40, 32, 30, 40, 32, 40, 30)}
#: Goals: peak RSS <= 1.5 x the largest raw file + 1 GB, no larger by more than this with more sessions, time <= 2 x.
MEMORY_FACTOR, MEMORY_REST, MEMORY_NOISE, TIME_FACTOR = 1.5, 1e9, 64e6, 2.0
_BLOCK = 64_000_000
log = logging.getLogger("bench_prepare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--sessions", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--jobs", type=int, default=1, help="sessions prepared at the same time")
    parser.add_argument("--cache", choices=("cold", "warm"), default="cold")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # one measurement, in its own process
    options = parser.parse_args()
    if options.task:
        sys.stdout.write(json.dumps(run_task(**json.loads(options.task))))
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    results = []
    for form in options.forms:
        with tempfile.TemporaryDirectory(prefix="bench_prepare_", dir=options.folder) as folder:
            results += measure(form, Path(folder), options=options)
    sys.stdout.write(report(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(form: str, folder: Path, *, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Write the raw files of a form, and measure preparing, floor and work for each number of sessions."""
    raw, most = folder / "raw", max(options.sessions)
    child({"kind": "write", "form": form, "raw": str(raw), "sessions": most})
    one = child({"kind": "work", "form": form})
    found = []
    for sessions in sorted(options.sessions):
        some = part_of(raw, folder / f"raw_{sessions}", sessions=sessions) if form == "things_eeg2" else raw
        files = raw_files(form, some, sessions=sessions)
        line = {"form": form, "sessions": sessions, "cache": options.cache, "jobs": options.jobs,
                "raw_bytes": sum(path.stat().st_size for path in files),
                "largest_file": max(path.stat().st_size for path in files),
                "work": {"seconds": one["seconds"] * sessions}}
        for kind in ("floor", "prepare"):
            out = folder / "out"
            out.mkdir()
            for path in files:
                bring(path, cache=options.cache)
            line[kind] = child({"kind": kind, "form": form, "raw": str(some), "out": str(out), "sessions": sessions,
                                "jobs": options.jobs})
            shutil.rmtree(out)
        found.append(line)
    return found


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Run one task in a process of its own. This one stays small: a child's ru_maxrss begins with its parent's size."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    shown = {key: f"{value / 1e6:.0f} MB" if key != "seconds" else f"{value:.1f} s" for key, value in result.items()}
    log.info("%s %s%s: %s", task["form"], task["kind"], f" {task['sessions']}" if "sessions" in task else "",
             ", ".join(f"{key} {value}" for key, value in shown.items()))
    return result


def bring(path: Path, *, cache: str) -> None:
    """Drop a file's pages from the page cache, or read it once."""
    if cache == "warm":
        with path.open("rb", buffering=0) as file:
            while file.read(_BLOCK):
                pass
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not written yet are not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def raw_files(form: str, raw: Path, *, sessions: int) -> list[Path]:
    """Return the recordings of the first sessions."""
    if form == "things_eeg2":
        return sorted(raw.glob("raw_data/sub-01/ses-*/*.npy"))
    return sorted(raw.glob(f"nsddata_betas/ppdata/*/*/*/*_session*{SUFFIX[form]}"))[:sessions]


def part_of(raw: Path, part: Path, *, sessions: int) -> Path:
    """Return a folder with the first sessions only: THINGS-EEG2 is refused where folders are left over."""
    subject = part / "raw_data/sub-01"
    subject.mkdir(parents=True)
    (part / "image_set").symlink_to(raw / "image_set")
    for session in sorted((raw / "raw_data/sub-01").glob("ses-*"))[:sessions]:
        (subject / session.name).symlink_to(session)
    return part


# ---- tasks, each in a process of its own


class Measured:
    """Seconds, bytes and memory of what runs in its context."""

    def __enter__(self) -> Measured:
        self.anonymous = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        self._read, self._began = self._io(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, read = time.perf_counter() - self._began, self._io()
        self._ended.set()
        self._thread.join()
        children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.result = {"seconds": seconds, "peak_rss": max(status("VmHWM"), children), "peak_anon": self.anonymous,
                       "from_disk": read["read_bytes"] - self._read["read_bytes"],
                       "by_calls": read["rchar"] - self._read["rchar"]}

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self.anonymous = max(self.anonymous, status("RssAnon"))

    @staticmethod
    def _io() -> dict[str, int]:
        lines = Path("/proc/self/io").read_text().splitlines()
        return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def status(key: str) -> int:
    """Return a size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def run_task(*, kind: str, form: str, raw: str = "", out: str = "", sessions: int = 1,
             jobs: int = 1) -> dict[str, Any]:
    """Run one task and return what it took."""
    if kind == "write":
        began = time.perf_counter()
        (write_eeg if form == "things_eeg2" else write_nsd)(Path(raw), form=form, sessions=sessions)
        return {"seconds": time.perf_counter() - began}
    if kind == "floor":
        return floor(raw_files(form, Path(raw), sessions=sessions), Path(out) / "floor.npy",
                     shape=(sessions * TRIALS[form], *SHAPE[form]))
    return work(form) if kind == "work" else prepare(form, Path(raw), Path(out), sessions=sessions, jobs=jobs)


def prepare(form: str, raw: Path, out: Path, *, sessions: int, jobs: int) -> dict[str, Any]:
    import h5py  # noqa: F401
    import mne
    import nibabel  # noqa: F401
    import scipy.io  # noqa: F401

    from brain2img.data.prepared import PreparedStudy
    from brain2img.studies.nsd import NSD
    from brain2img.studies.things_eeg2 import ThingsEEG2

    mne.create_info(1, 1000.0, "eeg")  # MNE imports its parts when they are first used
    repetitions = {"training": 0, "test": 20 * sessions}  # one session shows half of the training images
    study = (ThingsEEG2(subjects=[1], n_sessions=sessions, repetitions=repetitions, jobs=jobs) if form == "things_eeg2"
             else NSD(subjects=[1], form=form, sessions=sessions, jobs=jobs))
    with Measured() as measured:
        study.prepare(raw, out)
    prepared = PreparedStudy(out, finished=False)
    found = prepared.signals(prepared.subjects[0]).shape
    assert found[1:] == SHAPE[form], found
    assert found[0] == sessions * TRIALS[form], found
    return measured.result


def floor(files: list[Path], out: Path, *, shape: tuple[int, ...]) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    row = int(np.prod(shape[1:]))
    block = rng.standard_normal((max(1, _BLOCK // (4 * row)), row), dtype=np.float32)
    with Measured() as measured:
        for path in files:
            if path.suffix == ".gz":
                with gzip.open(path) as packed:
                    while packed.read(_BLOCK):
                        pass
                continue
            with path.open("rb") as file:
                while len(np.fromfile(file, dtype=np.uint8, count=_BLOCK)):
                    pass
        with out.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for start in range(0, shape[0], len(block)):
                block[:shape[0] - start].tofile(file)
    return measured.result


def work(form: str) -> dict[str, Any]:
    import numpy as np

    from brain2img.studies.nsd_files import SCALE
    from brain2img.studies.things_eeg2 import _chain

    rng = np.random.default_rng(0)
    if form == "things_eeg2":
        import mne

        mne.create_info(1, 1000.0, "eeg")
        n = 64
        epochs = 1e-5 * rng.standard_normal((n * SHAPE[form][0], 1201))
        with Measured() as measured:
            chain = _chain()
            for start in range(0, TRIALS[form], n):
                (epochs[:SHAPE[form][0] * (TRIALS[form] - start)] @ chain).astype(np.float32)
        return measured.result
    n, size = 45, int(np.prod(VOLUME))
    volumes = rng.integers(-1000, 1000, (n, size), dtype=np.int16)
    flat = np.sort(rng.permutation(size)[:SHAPE[form][0]])
    with Measured() as measured:
        for start in range(0, TRIALS[form], n):
            volumes[:TRIALS[form] - start, flat].astype(np.float32) / SCALE
    return measured.result


# ---- raw files of the real size


def write_eeg(raw: Path, *, form: str, sessions: int) -> None:
    """Write a subject of THINGS-EEG2: in a session half of the training images twice, test images 20 times, fillers."""
    import numpy as np
    import pandas as pd

    from brain2img.data.prepared import PreparedStudy
    from brain2img.records import SignalSpec, Stimuli
    from brain2img.simulate.sensors import EEG_CHANNELS
    from brain2img.simulate.things_eeg2_files import N_TIMES, SFREQ, TMIN, write_things_eeg2

    del form
    rng = np.random.default_rng(0)
    concepts = [f"thing{n}" for n in np.repeat(np.arange(1654), 10)] + [f"test{n}" for n in range(200)]
    ids = np.array([f"image{n}" for n in range(len(concepts))])
    tables = []
    for session in range(1, sessions + 1):
        half = rng.permutation(16540).reshape(2, -1)[session % 2]
        for split, shown in (("train", np.concatenate([half, half, half[:170]])),
                             ("test", 16540 + np.concatenate([np.tile(np.arange(200), 20), np.arange(56)]))):
            tables.append(pd.DataFrame({"stimulus_id": ids[rng.permutation(shown)], "split": split,
                                        "session": str(session)}))

    class Noise:
        """Stands for ``(n_trials, 63, 1201)`` signals (V): noise that is cut from one piece."""

        piece = (1e-5 * rng.standard_normal((63, 4 * N_TIMES))).astype(np.float32)

        def __getitem__(self, row: int) -> np.ndarray:
            start = row * 997 % (3 * N_TIMES)
            return self.piece[:, start:start + N_TIMES]

    def pictures(rows: Any) -> np.ndarray:
        """Return small pictures: bringing them into the prepared folder is not what is measured."""
        return np.zeros((len(rows), 8, 8, 3), dtype=np.uint8)

    class Recorded(PreparedStudy):
        """A study whose signals are made as they are asked for."""

        def __init__(self) -> None:
            self.specs = {"sub-01": SignalSpec(
                subject="sub-01", modality="eeg", units="V", n_channels=63, n_times=N_TIMES, sfreq=float(SFREQ),
                tmin=TMIN, ch_names=EEG_CHANNELS, ch_types=("eeg",) * 63)}
            trials = pd.concat(tables, ignore_index=True)
            self.trials = trials.assign(subject="sub-01", row=np.arange(len(trials)))
            self.stimulus_table = pd.DataFrame({"stimulus_id": ids, "concept": concepts, "category": "thing"})

        def signals(self, subject: str) -> Any:
            return Noise()

        def stimuli_of(self, stimulus_ids: Any) -> Stimuli:
            return Stimuli(pd.DataFrame({"stimulus_id": stimulus_ids, "kind": "image"}), pictures)

    # sequences of 20 pictures every 0.2 s and as much pause as makes 5.5 million samples of the training part
    write_things_eeg2(Recorded(), raw, soa=0.2, target_every=20, pause=2.38)


def write_nsd(raw: Path, *, form: str, sessions: int) -> None:
    """Write subject 1 of an NSD of few sessions, each of the real size."""
    from brain2img.simulate.nsd import SimulatedNSD
    from brain2img.simulate.nsd_files import write_published

    sim = SimulatedNSD(subjects=(1,), n_sessions=sessions, trials_per_session=TRIALS[form], n_shared=25 * sessions,
                       n_voxels=2000, n_general=SHAPE[form][0], volume_shape=VOLUME, image_size=64)
    write_published(sim, raw, suffix=SUFFIX[form])


# ---- report


def report(results: list[dict[str, Any]]) -> str:
    """Return the tables: measured, goals, extrapolated."""
    lines = ["", f"Measured ({results[0]['cache']} cache, jobs {results[0]['jobs']}; floor = read + write with NumPy, "
             "work = the products; from disk: also through maps)", "",
             "| form | sessions | raw GB | prepare s | floor s | work s | ratio | peak RSS GB | RssAnon GB "
             "| from disk GB | floor from disk GB |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    goals = ["", "| goal | form | sessions | found | limit | |", "|---|---|---|---|---|---|"]
    for r in results:
        ratio = r["prepare"]["seconds"] / (r["floor"]["seconds"] + r["work"]["seconds"])
        limit = MEMORY_FACTOR * r["largest_file"] + MEMORY_REST
        lines.append(f"| {r['form']} | {r['sessions']} | {r['raw_bytes'] / 1e9:.2f} | {r['prepare']['seconds']:.1f} "
                     f"| {r['floor']['seconds']:.1f} | {r['work']['seconds']:.1f} | {ratio:.2f} "
                     f"| {r['prepare']['peak_rss'] / 1e9:.2f} | {r['prepare']['peak_anon'] / 1e9:.2f} "
                     f"| {r['prepare']['from_disk'] / 1e9:.2f} | {r['floor']['from_disk'] / 1e9:.2f} |")
        goals += [goal("time / (floor + work)", r, ratio, TIME_FACTOR, unit=""),
                  goal("peak RSS", r, r["prepare"]["peak_rss"] / 1e9, limit / 1e9)]
    extrapolated = ["", "Extrapolated, not measured (a straight line through the numbers of sessions; memory is that "
                    "of the most sessions measured)", "", "| form | of | sessions | hours | peak RSS GB |",
                    "|---|---|---|---|---|"]
    for form in dict.fromkeys(r["form"] for r in results):
        few, *_, many = [r for r in results if r["form"] == form] * 2
        if few["sessions"] == many["sessions"]:
            continue
        growth = many["prepare"]["peak_rss"] - few["prepare"]["peak_rss"]
        goals.append(goal("peak RSS grows by", many, growth / 1e9, MEMORY_NOISE / 1e9))
        slope = ((many["prepare"]["seconds"] - few["prepare"]["seconds"]) / (many["sessions"] - few["sessions"]))
        fixed = max(0.0, few["prepare"]["seconds"] - slope * few["sessions"])
        for of, sizes in (("one subject", WHOLE[form][:1]), ("the study", WHOLE[form])):
            hours = (fixed * len(sizes) + slope * sum(sizes)) / 3600
            extrapolated.append(f"| {form} | {of} | {sum(sizes)} | {hours:.2f} "
                                f"| {many['prepare']['peak_rss'] / 1e9:.2f} |")
    return "\n".join([*lines, *goals, *extrapolated, ""])


def goal(what: str, result: dict[str, Any], found: float, limit: float, *, unit: str = " GB") -> str:
    return (f"| {what} | {result['form']} | {result['sessions']} | {found:.2f}{unit} | <= {limit:.2f}{unit} "
            f"| {'met' if found <= limit else 'NOT MET'} |")


if __name__ == "__main__":
    main()
