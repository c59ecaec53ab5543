"""What keeping and comparing hashes of a folder's files costs, beside writing and reading them, in one run.

python scripts/bench/content.py --megabytes 2000 --folder outputs/bench

Prints seconds, GB/s and the ratio to writing or reading. "Cold": the file is not in memory, as far as the system lets
its pages go. Rows are read in random order, 256 at a time, as an epoch of training does: twice, for only the first
time is compared.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main(megabytes: int, folder: Path) -> None:
    import numpy as np

    from brain2img.artifacts import StoredRows, compare_on_opening, open_folder, read_array, write_array
    from brain2img.artifacts.content import write_contents

    n, place = megabytes * 1_000_000 // 60_000, folder / f"bench_content_{os.getpid()}"
    array = np.random.default_rng(0).standard_normal((n, 60, 250), dtype=np.float32)
    gigabytes, seconds = array.nbytes / 1e9, {}

    def measure(name: str, call: Callable[[], object], *, beside: str | None = None) -> None:
        began = time.perf_counter()
        call()
        seconds[name] = time.perf_counter() - began
        ratio = f"  {seconds[name] / seconds[beside]:5.2f} of: {beside}" if beside else ""
        sys.stdout.write(f"{name:42s}{seconds[name]:8.2f} s {gigabytes / seconds[name]:6.2f} GB/s{ratio}\n")
        sys.stdout.flush()

    def cold() -> None:
        descriptor = os.open(place / "x.npy", os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    def epochs(rows: StoredRows, *, n_epochs: int) -> None:
        order = np.random.default_rng(1)
        for _ in range(n_epochs):
            for part in np.array_split(order.permutation(n), max(1, n // 256)):
                rows[part]

    try:
        stage = open_folder(place, stage="bench", config={}, inputs={})
        measure("write", lambda: (write_array(stage.work / "x.npy", array), os.sync()))
        measure("hash when finished", lambda: write_contents(stage.work), beside="write")
        stage.finish()
        for state in ("warm", "cold"):
            for compared in (False, True):
                compare_on_opening(compared)
                how = f"{'compare and ' if compared else ''}read, {state}"
                for name, call in ((f"map: {how}", lambda: read_array(place / "x.npy").sum()),
                                          *((f"rows, {k} epochs: {how}", lambda k=k: epochs(StoredRows(
                                              place / "x.npy"), n_epochs=k)) for k in (1, 5))):
                    os.utime(place / "x.npy")  # so that it is compared anew
                    if state == "cold":
                        cold()
                    measure(name, call, beside=name.replace("compare and ", "") if compared else None)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("outputs"))
    options = parser.parse_args()
    main(options.megabytes, options.folder.expanduser())
