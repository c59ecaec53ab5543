"""Runs every stage of an experiment that is not finished, and says where the report is."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from brain2img.analyses.repetitions import repetitions
from brain2img.analyses.time_course import time_course
from brain2img.report.summary import summary_table
from brain2img.stages.apply_prior import apply_prior
from brain2img.stages.caption import caption
from brain2img.stages.collection import members
from brain2img.stages.embed import embed
from brain2img.stages.evaluate import evaluate, load_summary
from brain2img.stages.fit_prior import fit_prior
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.reconstruct import reconstruct
from brain2img.stages.train import train

log = logging.getLogger(__name__)
STAGES: dict[str, Callable[[DictConfig], object]] = {
    "prepare": prepare, "embed": embed, "train": train, "predict": predict, "fit_prior": fit_prior,
    "apply_prior": apply_prior, "reconstruct": reconstruct, "caption": caption, "repetitions": repetitions,
    "time_course": time_course}


def stages_of(cfg: DictConfig) -> list[str]:
    """Return the stages that an experiment asks for, in their order; a prior is fitted and applied where there is one.

    What is made of decoded embeddings asks for the prior to be applied, whether it is fitted now or was before.
    """
    asked = set(cfg.stages)
    if not cfg.get("prior"):
        asked -= {"fit_prior", "apply_prior"}
    elif asked & {"reconstruct", "caption"}:
        asked.add("apply_prior")
    return [name for name in STAGES if name in asked]


def pipeline(cfg: DictConfig) -> Path:
    """Run the stages of every member of an experiment, then score them together; returns ``scores/<name>``."""
    steps = [(name, member) for member in members(cfg) for name in stages_of(member)]
    began = time.monotonic()
    for number, (name, member) in enumerate(steps, start=1):
        log.info("[%d/%d] %s %s (%.0f s so far)", number, len(steps) + 1, name, member.name,
                 time.monotonic() - began)
        STAGES[name](member)
    log.info("[%d/%d] evaluate %s", len(steps) + 1, len(steps) + 1, cfg.name)
    folder = evaluate(cfg)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(summary_table(load_summary(folder)))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Took {time.monotonic() - began:.0f} s.")
    return folder
