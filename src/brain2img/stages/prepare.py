"""Raw recordings and stimuli -> a prepared study."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from brain2img.artifacts import digest, open_folder
from brain2img.data.prepared import PreparedStudy
from brain2img.data.same_stimuli import settle
from brain2img.data.trials import OVER_SUBJECTS
from brain2img.simulate import NOTE
from brain2img.stages.build import build_study
from brain2img.stages.collection import for_each_member
from brain2img.stages.workspace import folder_to_prepare, prepared_folders

log = logging.getLogger(__name__)


@for_each_member
def prepare(cfg: DictConfig) -> Path:
    """Prepare the study that ``study`` describes; returns the folder.

    A finished one stands on its own: where its raw files have been moved away, it is taken as it is.

    Where its own split divides a stimulus that has several ids, it is not finished before ``split.duplicates`` says
    what to do; signals are not read again then.

    Raises
    ------
    ValueError
        If raw files are missing or damaged, or a stimulus crosses splits; nothing that looks finished is left.
    """
    study, raw, config = build_study(cfg)
    if raw is not None and not raw.exists() and not cfg.overwrite and len(found := prepared_folders(cfg)) == 1:
        log.info("prepare %s: finished already (%s); its raw files are not at hand (%s)", study.name, found[0], raw)
        return found[0]
    place, raw_id = folder_to_prepare(cfg)
    folder = open_folder(place, stage="prepare", config=config, inputs={"raw": raw_id}, overwrite=cfg.overwrite)
    if folder.finished:
        log.info("prepare %s: finished already (%s)", study.name, folder.path)
        return folder.path
    log.info("prepare %s -> %s", study.name, folder.path)
    study.prepare(raw, folder.work)
    prepared = PreparedStudy(folder.work, finished=False)
    prepared.validate()
    if cfg.split.kind in ("study", *OVER_SUBJECTS):
        settle(prepared.trials, same_as=prepared.same_as, duplicates=cfg.split.duplicates, what=f"study {study.name}")
    folder.finish(study=study.name, stimuli=_stimuli_id(prepared), splits=prepared.split_hashes(),
                  subjects=prepared.subjects,
                  simulated=raw is not None and (raw / NOTE).is_file())
    return folder.path


def _stimuli_id(prepared: PreparedStudy) -> str:
    """Return an identity of the stimuli by what they show, so that studies that share them share embeddings."""
    table = prepared.stimulus_table
    columns = ("stimulus_id", "content", "captions", "attributes")
    return digest([table[column].astype(str).tolist() for column in columns])
