"""Predictions, reconstructions and captions -> scores, summary and report."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import git_commit, open_folder, read_json, typed, versions, write_json, write_table
from brain2img.metrics.aggregate import differences, records
from brain2img.report.scores import write_report
from brain2img.report.style import CEILING, STIMULI
from brain2img.stages.build import plain
from brain2img.stages.collection import members
from brain2img.stages.features import PictureFeatures
from brain2img.stages.scoring import CURVES, MemberScores, observer
from brain2img.stages.workspace import folder_of, outputs, relative

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> Path:
    """Score every member under every condition and write the report; returns ``scores/<name>``.

    Raises
    ------
    ValueError
        If predictions are missing.
    """
    root = outputs(cfg)
    configs = members(cfg)
    name = configs[0].name if len(configs) == 1 else str(cfg.name)
    features = PictureFeatures(batch_size=cfg.batch_size)
    found = [MemberScores(member, root, features=features) for member in configs]
    folder = open_folder(
        folder_of(cfg, "scores", name), stage="evaluate", overwrite=cfg.overwrite,
        config={"metrics": [plain(member.metric) for member in configs], "seed": cfg.seed,
                "metric_spaces": [plain(member.get("metric_space")) for member in configs],
                "labels": [member.manifest.label for member in found],
                "headline": [plain(member.headline) for member in configs]},
        inputs={key: value for member in found for key, value in member.inputs().items()})
    if folder.finished:
        log.info("evaluate: finished already (%s)", folder.path)
        return folder.path
    scored = []
    for member in found:
        log.info("score %s", member.name)
        scored.append(member.score(seed=cfg.seed))
    scored += [observer(m.prepared, label=m.study) for m in {m.study: m for m in reversed(found)}.values()]
    scored += [m.ceiling(seed=cfg.seed) for m in {m.study: m for m in reversed(found) if m.pictures}.values()]
    entries = [member.entry() for member in found]
    scores, chance = (pd.concat([table for table in tables if len(table)], ignore_index=True)
                      for tables in zip(*scored, strict=True))
    rng = np.random.default_rng([cfg.seed, 5])
    summary = {
        "name": name, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": typed(),
        "seconds": sum(sum(e["seconds"].values()) for e in entries), "git": git_commit(), "versions": versions(),
        "baseline": str(cfg.baseline), "records": records(scores, chance, generator=rng),
        "differences": _differences(scores, baseline=cfg.baseline, generator=rng),
        "members": entries, "outputs": relative(root, folder.path)}
    write_table(folder.work / "scores.parquet", scores)
    for curve in CURVES:
        parts = [table for member in found if (table := member.curve(curve)) is not None]
        if parts:
            write_table(folder.work / f"{curve}.parquet", pd.concat(parts, ignore_index=True))
    write_json(folder.work / "summary.json", summary)
    size = write_report(folder.work).stat().st_size
    folder.finish()
    log.info("report: %s (%.1f MB)", folder.path / "report.html", size / 1e6)
    return folder.path


def _differences(scores: pd.DataFrame, *, baseline: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    scores = scores[~scores["decoder"].isin([CEILING, STIMULI])]
    if set(scores["decoder"]) <= {baseline} or baseline not in set(scores["decoder"]):
        log.info("no differences to %s: it is not among the decoders scored here", baseline)
        return []
    return differences(scores, baseline=baseline, generator=generator)


def load_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json`` of a scores folder."""
    return read_json(folder / "summary.json")
