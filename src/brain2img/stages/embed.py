"""Stimuli -> embeddings of every chosen space."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from brain2img.artifacts import ArrayWriter, open_folder, write_json, write_table
from brain2img.data.dataset import chunks
from brain2img.data.prepared import PreparedStudy
from brain2img.stages.build import build_spaces, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.progress import progress
from brain2img.stages.workspace import cache_folder, prepared_folder

log = logging.getLogger(__name__)


@for_each_member
def embed(cfg: DictConfig) -> list[Path]:
    """Embed all stimuli of the prepared study in the chosen spaces, continuing where an earlier call stopped.

    Raises
    ------
    ValueError
        If the study is not prepared, or weights cannot be had.
    """
    prepared = PreparedStudy(prepared_folder(cfg))
    stimuli = prepared.stimuli
    folders = []
    for name, space in build_spaces(cfg).items():
        folder = open_folder(cache_folder(cfg, space=space, prepared=prepared), stage="embed",
                             config={"space": plain(cfg.space[name]), "uid": space.uid()},
                             inputs={"stimuli": prepared.manifest["stimuli"]}, overwrite=cfg.overwrite)
        folders.append(folder.path)
        if folder.finished:
            log.info("embed %s: finished already (%s)", name, folder.path)
            continue
        spec = space.spec(stimuli)
        log.info("embed %d stimuli in space %s %s", len(stimuli), name, spec.shape)
        writer = ArrayWriter(folder.work, {"embeddings": ((len(stimuli), *spec.shape), spec.dtype)})
        parts = [rows for rows in chunks(len(stimuli), cfg.batch_size) if rows[-1] >= writer.done]
        for rows in progress(parts, description=f"embed {name}"):
            writer.write({"embeddings": space.embed(stimuli, rows[max(0, writer.done - rows[0]):])})
        writer.close()
        write_table(folder.work / "stimuli.parquet", stimuli.table[["stimulus_id"]])
        write_json(folder.work / "spec.json", spec.to_json())
        folder.finish()
    return folders
