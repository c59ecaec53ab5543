"""The folders stages hand over: manifest, finished or not, predictions, reconstructions, embeddings.

A folder is *finished* when its ``manifest.json`` is there (it is written last) and the stage configuration and the
input ids in it equal those now asked for. Work happens under temporary names that are renamed at the end, so that a
killed stage never leaves something that looks whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.records import EmbeddingSpec

VERSIONED = ("brain2img", "torch", "lightning", "numpy", "scipy", "scikit-learn", "scikit-image", "himalaya", "mne",
             "open_clip_torch", "pandas", "hydra-core")


def digest(value: Any, *, length: int = 16) -> str:
    """Return a short SHA-256 of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Return a short SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` and rename it to `path` on success.

    Raises
    ------
    ValueError
        If the disk is full; nothing is left under either name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free / 1e6
            raise ValueError(
                f"disk: expected room to write {path.name} into {path.parent}, got a full disk ({free:.0f} MB free). "
                "Free some space or set paths.outputs to another disk, then run the same command again.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write ``.npy`` atomically."""
    with writing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write ``.parquet`` atomically."""
    with writing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_array(path: Path) -> np.ndarray:
    """Memory-map an ``.npy`` file.

    Raises
    ------
    ValueError
        If the file is missing, truncated or not a plain array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path.name}: expected the file in {path.parent}, got nothing. "
                         "Run the stage that writes it again with overwrite=true.") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: expected a whole .npy array, got a truncated or damaged file of {path.stat().st_size} bytes "
            f"({error}). Run the stage that wrote it again with overwrite=true.") from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Return a line for every value in which two nested configurations differ."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, prefix=f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} there, {b!r} asked for")
    return lines


def git_commit() -> str:
    """Return the commit of this code, "-dirty" where files differ from it, "unknown" outside a repository."""
    run = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
                         capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that shape a result."""
    found = {"python": sys.version.split()[0]}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_manifest(folder: Path, *, what: str = "folder") -> dict[str, Any]:
    """Return the manifest of a finished folder.

    Raises
    ------
    ValueError
        If the folder is missing or unfinished.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        state = "an unfinished one" if Path(folder).exists() else "nothing"
        raise ValueError(f"{what} {folder}: expected a finished folder with manifest.json, got {state}. "
                         "Run the stage that writes it (again: it continues where it stopped).")
    return json.loads(path.read_text())


@dataclass
class StageFolder:
    """One stage's folder while it is being made; see `open_folder`."""

    path: Path
    work: Path
    head: dict[str, Any]
    finished: bool
    started: float

    @property
    def id(self) -> str:
        """Identity of the content: stage, configuration and inputs."""
        return self.head["id"]

    def finish(self, **facts: Any) -> None:
        """Write the manifest and, when the folder was redone beside an old one, swap them."""
        manifest = {**self.head, **facts, "git": git_commit(), "versions": versions(), "command": sys.argv,
                    "seconds": round(time.monotonic() - self.started, 1),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(self.work / "manifest.json", manifest)
        (self.work / "started.json").unlink(missing_ok=True)
        if self.work != self.path:
            _swap(self.work, self.path)
        self.finished = True


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{word}")


def _swap(new: Path, path: Path) -> None:
    old = _beside(path, "old")
    if old.exists():
        shutil.rmtree(old)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    if old.exists():
        shutil.rmtree(old)


def open_folder(path: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str],
                overwrite: bool = False) -> StageFolder:
    """Open the folder of one stage: finished, to be continued, or to be made.

    Parameters
    ----------
    path
        Final place of the folder.
    stage
        Name of the stage.
    config
        The part of the resolved configuration that shapes the result.
    inputs
        Name -> id of everything the stage reads.
    overwrite
        Redo a folder made with other settings; the old one stays until the new one is whole.

    Raises
    ------
    ValueError
        If a folder made with other settings or inputs is there and `overwrite` is false; names the differences.
    """
    head = {"stage": stage, "config": dict(config), "inputs": dict(inputs)}
    head = json.loads(json.dumps(head, default=str))
    head["id"] = digest(head)
    started = time.monotonic()
    new = _beside(path, "new")
    if (new / "manifest.json").exists():  # killed between the manifest and the swap
        _swap(new, path)
    old = _beside(path, "old")
    if old.exists():
        shutil.rmtree(old) if path.exists() else os.replace(old, path)
    there = next((json.loads(p.read_text()) for p in (path / "manifest.json", path / "started.json") if p.exists()),
                 None)
    if there is not None and there["id"] != head["id"] and not overwrite:
        lines = differences({k: there[k] for k in ("stage", "config", "inputs")},
                            {k: head[k] for k in ("stage", "config", "inputs")})
        raise ValueError(
            f"{path}: expected the result of the settings asked for, got one of other settings:\n  "
            + "\n  ".join(lines)
            + "\nGive this one another name=..., or replace the old one with overwrite=true.")
    if there is not None and there["id"] == head["id"] and (path / "manifest.json").exists() and not overwrite:
        return StageFolder(path, path, head, finished=True, started=started)
    work = path
    if overwrite and path.exists():
        # what an interrupted `overwrite` began goes on where it stopped
        begun = new / "started.json"
        if new.exists() and not (begun.exists() and json.loads(begun.read_text())["id"] == head["id"]):
            shutil.rmtree(new)
        work = new
    elif path.exists() and there is None and any(path.iterdir()):
        raise ValueError(f"{path}: expected an empty or an unfinished stage folder, got other files. "
                         "Choose another name=... or move them away.")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "started.json").exists():
        write_json(work / "started.json", head)
    return StageFolder(path, work, head, finished=False, started=started)


class ArrayWriter:
    """Writes ``<name>.npy`` files row by row in one pass that survives being killed.

    Parameters
    ----------
    folder
        Where the arrays will stand.
    arrays
        Name -> (shape with the row axis first, dtype).
    """

    def __init__(self, folder: Path, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self.folder = folder
        self.layout = {name: [list(shape), str(dtype)] for name, (shape, dtype) in arrays.items()}
        self._progress = folder / "rows_done.json"
        begun = json.loads(self._progress.read_text()) if self._progress.exists() else {}
        parts_there = all(self._part(name).exists() for name in arrays)
        resume = begun.get("layout") == self.layout and parts_there
        self.done = int(begun["done"]) if resume else 0
        need = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())
        free = shutil.disk_usage(folder).free
        if not resume and need > free:
            raise ValueError(f"disk: expected {need / 1e6:.0f} MB free for {folder}, got {free / 1e6:.0f} MB. "
                             "Free some space or set paths.outputs to another disk.")
        self._arrays = {name: np.lib.format.open_memmap(self._part(name), mode="r+" if resume else "w+", shape=shape,
                                                        dtype=dtype)
                        for name, (shape, dtype) in arrays.items()}

    def _part(self, name: str) -> Path:
        return self.folder / f".{name}.npy.part"

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append the same number of rows to every array."""
        n = len(next(iter(rows.values())))
        for name, values in rows.items():
            self._arrays[name][self.done:self.done + n] = values
            self._arrays[name].flush()
        self.done += n
        write_json(self._progress, {"layout": self.layout, "done": self.done})

    def close(self) -> None:
        """Rename the arrays to their final names; asserts that every row was written."""
        for name, array in list(self._arrays.items()):
            assert self.done == array.shape[0], f"{name}: {self.done} of {array.shape[0]} rows written"
            array.flush()
            del self._arrays[name]
            os.replace(self._part(name), self.folder / f"{name}.npy")
        self._progress.unlink(missing_ok=True)


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings of a study's stimuli in one space: ``cache/<study>/<space>-<uid>/``."""

    folder: Path

    @property
    def spec(self) -> EmbeddingSpec:
        """What the embeddings are."""
        read_manifest(self.folder, what="embeddings")
        return EmbeddingSpec.from_json(json.loads((self.folder / "spec.json").read_text()))

    @property
    def stimulus_ids(self) -> list[str]:
        """Stimulus id of every row."""
        return pd.read_parquet(self.folder / "stimuli.parquet")["stimulus_id"].tolist()

    @property
    def array(self) -> np.ndarray:
        """Memory-mapped ``(N, *shape)`` embeddings."""
        return read_array(self.folder / "embeddings.npy")

    def rows(self, stimulus_ids: Sequence[str]) -> np.ndarray:
        """Return the row of each stimulus id.

        Raises
        ------
        ValueError
            If a stimulus is not in the cache.
        """
        index = pd.Index(self.stimulus_ids).get_indexer(pd.Index(list(stimulus_ids)))
        if (index < 0).any():
            missing = [s for s, i in zip(stimulus_ids, index, strict=True) if i < 0]
            raise ValueError(f"embeddings {self.folder}: expected all stimuli of the study, got none for "
                             f"{len(missing)} of them ({missing[0]!r}, ...). Run the embed stage for this study.")
        return index


class Predictions:
    """Decoded embeddings, ``predictions/<name>/``: the meeting point of decoders and everything after them.

    ``rows.parquet`` has one line per decoded row: subject, stimulus_id, n_averaged, draw, trial_ids (list), and
    `array_row`, its place in the arrays. ``spaces.json`` says for each space where its array lies (relative path) and
    what it is, so that a control condition is a folder that points at another one, never a copy.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="predictions")
        self.rows = pd.read_parquet(self.folder / "rows.parquet")
        self._spaces = json.loads((self.folder / "spaces.json").read_text())
        self.specs = {name: EmbeddingSpec.from_json(entry["spec"]) for name, entry in self._spaces.items()}

    def array(self, space: str) -> tuple[Path, np.ndarray]:
        """Return the file of a space and its memory-mapped array (before `array_row` is applied)."""
        if space not in self._spaces:
            raise ValueError(f"predictions {self.folder}: expected space {space!r}, got {sorted(self._spaces)}. "
                             "Train a head for it, or choose one of these.")
        path = (self.folder / self._spaces[space]["path"]).resolve()
        return path, read_array(path)

    def embeddings(self, space: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, *shape)`` float32 of the given rows (all by default)."""
        places = self.rows["array_row"].to_numpy()
        array = self.array(space)[1]
        return np.asarray(array[places if rows is None else places[rows]], dtype=np.float32)

    @staticmethod
    def write(folder: Path, *, rows: pd.DataFrame, specs: Mapping[str, EmbeddingSpec],
              paths: Mapping[str, Path] | None = None) -> None:
        """Write ``rows.parquet`` and ``spaces.json``; arrays are ``<space>.npy`` here unless `paths` says where."""
        write_table(folder / "rows.parquet", rows if "array_row" in rows else rows.assign(array_row=range(len(rows))))
        write_json(folder / "spaces.json", {
            name: {"path": os.path.relpath(paths[name], folder.resolve()) if paths else f"{name}.npy",
                   "spec": spec.to_json()} for name, spec in specs.items()})


class Reconstructions:
    """Images made from predictions, ``reconstructions/<name>/``: ``index.parquet`` and PNG files."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what="reconstructions")
        self.index = pd.read_parquet(self.folder / "index.parquet")

    def images(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, h, w, 3)`` uint8 images of the given rows of `index` (all by default)."""
        files = self.index["file"].to_numpy()
        files = files if rows is None else files[np.asarray(rows)]
        return np.stack([np.asarray(Image.open(self.folder / file).convert("RGB")) for file in files])


def safe_name(text: str, *, length: int = 60) -> str:
    """Return `text` as a file name of letters, digits, '-' and '_' that no other id shares."""
    plain = "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "_" for c in text)[:length]
    return plain if plain == text else f"{plain}-{digest(text, length=6)}"
