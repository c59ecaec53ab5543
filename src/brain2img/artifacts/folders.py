"""The folder of one stage: its manifest, finished or not, and how an old one is replaced."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from brain2img.artifacts.content import CONTENTS, read_contents, write_contents
from brain2img.artifacts.files import digest, write_json
from brain2img.artifacts.owner import Claim, beside, claim
from brain2img.artifacts.process import typed
from brain2img.artifacts.reading import read_begun, read_json

log = logging.getLogger(__name__)

VERSIONED = ("brain2img", "torch", "lightning", "numpy", "scipy", "scikit-learn", "scikit-image", "himalaya", "mne",
             "open_clip_torch", "diffusers", "transformers", "pandas", "hydra-core")

MARKS = ("manifest.json", "started.json")
"""Files of which the folder of a stage has one: that of a finished one, that of one to be continued."""


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
        If the folder is missing or unfinished, or the manifest damaged.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        state = "an unfinished one" if Path(folder).exists() else "nothing"
        raise ValueError(f"{what} {folder}: expected a finished folder with manifest.json, got {state}. "
                         "Run the stage that writes it (again: it continues where it stopped).")
    manifest: dict[str, Any] = read_json(path, keys=("id",))
    if path not in _told and not seal_holds(manifest):
        _told.add(path)
        log.warning("%s: expected the manifest that was written, got one that was changed since: what it says of this "
                    "folder may not be true. Look at it, or make the folder again with overwrite=true.", path)
    return manifest


_told: set[Path] = set()


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as JSON gives it back, with a hash of all of it: see `seal_holds`."""
    plain = json.loads(json.dumps(manifest, default=str))
    return {**plain, "seal": digest(plain)}


def seal_holds(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest is as it was written; one of an older version, without a seal, is taken for it."""
    return manifest.get("seal") in (None, digest({k: v for k, v in manifest.items() if k != "seal"}))


def keep_contents(folder: Path) -> None:
    """Keep hashes of the files of a finished folder as they are now, in place of those that were kept, if any.

    Raises
    ------
    ValueError
        As `read_manifest`.
    """
    manifest = {key: value for key, value in read_manifest(folder).items() if key != "seal"}
    write_json(folder / "manifest.json", sealed({**manifest, "contents": write_contents(folder)}))


@dataclass
class StageFolder:
    """One stage's folder while it is being made; see `open_folder`."""

    path: Path
    work: Path
    head: dict[str, Any]
    finished: bool
    started: float
    claim: Claim | None = None

    @property
    def id(self) -> str:
        """Identity of the content: stage, configuration and inputs."""
        return self.head["id"]

    def finish(self, **facts: Any) -> None:
        """Write hashes of the files and the manifest and, when the folder was redone beside an old one, swap them.

        Then the folder is given up.

        Raises
        ------
        ValueError
            If another process took over meanwhile.
        """
        assert self.claim is not None, f"{self.path}: finished twice"
        self.claim.check()
        manifest = {**self.head, **facts, "git": git_commit(), "versions": versions(), "command": typed(),
                    "seconds": round(time.monotonic() - self.started, 1),
                    "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(self.work / "manifest.json", sealed({**manifest, "contents": write_contents(self.work)}))
        (self.work / "started.json").unlink(missing_ok=True)
        if self.work != self.path:
            replace_folder(self.path, self.work)
        self.finished = True
        self.release()

    def release(self) -> None:
        """Give the folder up, as it is: whoever opens it next goes on with it."""
        if self.claim is not None:
            self.claim.release()
            self.claim = None


def files_below(folder: Path) -> list[str]:
    """Return the files of a folder that are results, relative to it, sorted; not those of finished ones inside it."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if not (here / name / "manifest.json").exists()]
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(set(found) - {*MARKS, CONTENTS})


def _written(folder: Path, *, like: Path, marks: Sequence[str]) -> set[str] | None:
    """Return the files of `folder` that are ours: those it keeps hashes of, else what is written now (`like`).

    None where the folder itself is not.
    """
    if not folder.is_dir() or not any((folder / mark).is_file() for mark in marks):
        return None
    manifest: Any = None
    with suppress(OSError, ValueError):  # none, or a damaged one
        manifest = json.loads((folder / "manifest.json").read_text())
    if isinstance(manifest, dict):
        if not {"stage", "id"} <= set(manifest):
            return None  # many programs call a file so
        if "contents" in manifest:
            with suppress(OSError, ValueError):
                return set(read_contents(folder, manifest))
    half_written = {name for name in files_below(folder) if Path(name).name.startswith(".")}
    return {*files_below(like), *half_written, "rows_done.json"}


def replace_folder(path: Path, new: Path, *, marks: Sequence[str] = MARKS) -> None:
    """Let `new` take the place of the folder `path`; files there that are not ours are moved aside, not deleted.

    Parameters
    ----------
    path, new
        The folders.
    marks
        Files of which a folder of ours has one.
    """
    old = beside(path, "old")
    if old.exists():
        shutil.rmtree(old)
    if path.exists() or path.is_symlink():
        _keep_others(path, like=new, marks=marks)
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    if old.exists():
        shutil.rmtree(old)


def _there(path: Path, *, overwrite: bool) -> dict[str, Any] | None:
    """Return what stands in a folder by its manifest or what was begun, None if neither is there, {} of damaged notes.

    Raises
    ------
    ValueError
        If the manifest is damaged and `overwrite` false.
    """
    head, finished, begun = ("stage", "config", "inputs", "id"), path / "manifest.json", path / "started.json"
    if finished.exists():
        return (read_begun(finished, keys=head) or {}) if overwrite else read_json(finished, keys=head)
    return (read_begun(begun, keys=head) or {}) if begun.exists() else None


def _keep_others(path: Path, *, like: Path, marks: Sequence[str]) -> None:
    """Move what no stage wrote from `path` to a folder beside it, and say so."""
    kept = path.with_name(f"kept_{path.name}_{time.strftime('%Y%m%d-%H%M%S')}")
    written = _written(path, like=like, marks=marks)
    if written is None:
        os.replace(path, kept)
        log.warning("%s: was not written by brain2img; it is moved to %s", path, kept)
        return
    others = [name for name in files_below(path) if name not in written and not _is_litter(name)]
    for name in others:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path / name, kept / name)
    if others:
        log.warning("%s: %d files there were not written by brain2img (%s); they are moved to %s", path, len(others),
                    ", ".join(others[:3]) + (", ..." if len(others) > 3 else ""), kept)


def _is_litter(name: str) -> bool:
    """Return whether a file is one that desktops and file servers leave everywhere."""
    last = Path(name).name
    return last in (".DS_Store", "Thumbs.db", "desktop.ini") or last.startswith(("._", ".nfs"))


def open_folder(path: Path, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str],
                overwrite: bool = False) -> StageFolder:
    """Open the folder of one stage: finished, to be continued, or to be made.

    What is not finished belongs to this process until `StageFolder.finish`, or until the object is gone; see
    `brain2img.artifacts.owner`.

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
        Redo a folder made with other settings; the old one stays until the new one is whole, and files in it that no
        stage wrote are then moved aside.

    Raises
    ------
    ValueError
        If a folder made with other settings or inputs is there and `overwrite` is false (names the differences), if its
        manifest is damaged and `overwrite` is false, or if another command is at work there.
    """
    head = {"stage": stage, "config": dict(config), "inputs": dict(inputs)}
    head = json.loads(json.dumps(head, default=str))
    head["id"] = digest(head)
    started = time.monotonic()
    if not overwrite and _is_finished(path, head):  # nothing to write: not even a claim, for it may be read-only
        return StageFolder(path, path, head, finished=True, started=started)
    claimed = claim(path)
    try:
        folder = _open(path, head, overwrite=overwrite, started=started)
    except BaseException:
        claimed.release()
        raise
    if folder.finished:
        claimed.release()
    else:
        folder.claim = claimed
    return folder


def _is_finished(path: Path, head: Mapping[str, Any]) -> bool:
    """Return whether the result asked for is there, and nothing is left to mend beside it."""
    if any(beside(path, word).exists() for word in ("new", "old")):
        return False
    manifest = path / "manifest.json"
    return manifest.exists() and read_json(manifest, keys=("id",))["id"] == head["id"]


def _open(path: Path, head: dict[str, Any], *, overwrite: bool, started: float) -> StageFolder:
    """Open a folder that this process owns."""
    new = beside(path, "new")
    if read_begun(new / "manifest.json"):  # killed between the manifest and the swap
        replace_folder(path, new)
    old = beside(path, "old")
    if old.exists():
        shutil.rmtree(old) if path.exists() else os.replace(old, path)
    there = _there(path, overwrite=overwrite)
    # of damaged notes nobody knows what they are of: redone beside, as with `overwrite`
    overwrite = overwrite or there == {}
    there = there or None
    if there is not None and there["id"] != head["id"] and not overwrite:
        lines = differences({k: there[k] for k in ("stage", "config", "inputs")},
                            {k: head[k] for k in ("stage", "config", "inputs")})
        raise ValueError(
            f"{path}: expected the result of the settings asked for, got one of other settings:\n  "
            + "\n  ".join(lines)
            + "\nGive this one another name=..., or replace the old one with overwrite=true.")
    if there is not None and there.get("id") == head["id"] and (path / "manifest.json").exists() and not overwrite:
        return StageFolder(path, path, head, finished=True, started=started)
    work = path
    if overwrite and path.exists():
        # what an interrupted `overwrite` began goes on where it stopped
        begun = new / "started.json"
        if new.exists() and (read_begun(begun) or {}).get("id") != head["id"]:
            shutil.rmtree(new)
        work = new
    elif path.exists() and there is None and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: expected an empty or an unfinished stage folder, got other files. "
                         "Choose another name=... or move them away.")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "started.json").exists():
        write_json(work / "started.json", head)
    return StageFolder(path, work, head, finished=False, started=started)
