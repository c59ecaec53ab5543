"""An example of a person's own study, to be filled with their own files."""

from __future__ import annotations

import logging
import shlex
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from brain2img.simulate.own_study import write_own_study

log = logging.getLogger(__name__)


def new_study(cfg: DictConfig) -> Path:
    """Write the example into the new folder ``raw`` and say how to check it; returns the folder.

    The folder has its name only when it is whole.

    Raises
    ------
    ValueError
        If no folder is given, it is there already, or a number is out of its range.
    """
    if not cfg.raw:
        raise ValueError("raw: expected a folder to write, got none. Give raw=<new folder>.")
    raw = Path(cfg.raw).expanduser().resolve()
    if raw.exists():
        raise ValueError(f"{raw}: expected a folder that is not there yet, got one. Choose another raw=...")
    raw.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw.parent, prefix=f".{raw.name}-") as work:
        made = Path(work) / "raw"
        made.mkdir()
        settings = write_own_study(made, modality=cfg.modality, n_stimuli=cfg.n_stimuli, n_subjects=cfg.n_subjects,
                                   n_repetitions=cfg.n_repetitions, snr=cfg.snr, seed=cfg.seed, raw=raw)
        made.rename(raw)
    log.info("%s is written; README.txt in it explains each file. Check it, as it is or with files of your own:\n"
             "brain2img check study=arrays %s %s", raw, shlex.quote(f"raw={raw}"), settings)
    return raw
