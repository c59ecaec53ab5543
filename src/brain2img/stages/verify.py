"""Finished folders -> whether every file in them is still the one that was written."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from brain2img.artifacts import keep_contents, read_manifest, seal_holds
from brain2img.artifacts.content import compare, cure, files_of
from brain2img.stages.workspace import outputs

log = logging.getLogger(__name__)


def verify(cfg: DictConfig) -> list[Path]:
    """Compare every file of the finished folders in ``folder`` (by default all results) with what was written.

    Damaged and missing files are named with the stage that makes them again, additional ones are listed. Of folders of
    an older version no hashes were kept: with ``record=true`` those of what is there now are kept from here on. Cached
    pictures and captions belong to no finished folder: reconstruct and caption look at them when they use them.

    Returns
    -------
    list[Path]
        The folders.

    Raises
    ------
    ValueError
        If there is no finished folder, or a file is damaged or missing.
    """
    root = Path(cfg.folder).expanduser().resolve() if cfg.folder else outputs(cfg)
    folders = [Path(place) for place, _, names in sorted(os.walk(root)) if "manifest.json" in names]
    if not folders:
        raise ValueError(f"verify {root}: expected a finished folder of a stage, or a folder of such, got "
                         f"{'none in it' if root.exists() else 'nothing there'}. Give folder=<one under outputs>.")
    bad, n_files, size = 0, 0, sum(path.stat().st_size for folder in folders for path in files_of(folder))
    with Progress(TextColumn("verify"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), transient=True,
                  disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=size)
        for folder in folders:
            try:
                manifest = read_manifest(folder)
                if not seal_holds(manifest):
                    raise ValueError(f"{folder / 'manifest.json'}: expected the manifest that was written, got one "
                                     f"that was changed since. {cure(folder / 'manifest.json')}")
                if "contents" not in manifest:
                    _without(folder, record=cfg.record)
                    continue
                found = compare(folder, manifest, done=lambda n: bar.advance(task, n))
            except ValueError as error:
                log.error("damaged: %s", error)
                bad += 1
                continue
            for line in found.damaged:
                log.error("damaged: %s", line)
            for name in found.missing:
                log.error("missing: %s. %s", folder / name, cure(folder / name))
            for name in found.additional:
                log.info("additional: %s, which no stage wrote", folder / name)
            bad += len(found.damaged) + len(found.missing)
            n_files += found.n_files
    if bad:
        raise ValueError(f"verify {root}: expected the {n_files} files of {len(folders)} finished folders as they were "
                         f"written, got {bad} that are not. Make them again as said above.")
    log.info("verify: %d files of %d finished folders are as they were written (%.1f MB)", n_files, len(folders),
             size / 1e6)
    return folders


def _without(folder: Path, *, record: bool) -> None:
    """Say that no hashes of a folder were kept, or keep them now."""
    if record:
        keep_contents(folder)
        log.info("%s: hashes of its files are kept from now on", folder)
    else:
        log.warning("%s: no hashes of its files were kept (an older version wrote it): nothing was compared. With "
                    "record=true those of what is there now are.", folder)
