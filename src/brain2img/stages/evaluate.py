"""Predictions and reconstructions -> scores, summary and report."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import (
    EmbeddingCache,
    Predictions,
    Reconstructions,
    git_commit,
    open_folder,
    read_manifest,
    versions,
    write_json,
    write_table,
)
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Metric
from brain2img.metrics.aggregate import differences, records
from brain2img.records import Decoded
from brain2img.report.page import write_report
from brain2img.stages.build import build_metrics, plain
from brain2img.stages.run import members
from brain2img.stages.workspace import CONDITIONS, fold_runs, outputs, relative

log = logging.getLogger(__name__)
CURVES = ("repetitions", "time_course")


def evaluate(cfg: DictConfig) -> Path:
    """Score every member under every condition and write the report; returns ``scores/<name>``.

    Raises
    ------
    ValueError
        If predictions are missing.
    """
    root = outputs(cfg)
    configs = members(cfg)
    name = configs[0].name if len(configs) == 1 else cfg.name
    found = [_Member(member, root) for member in configs]
    folder = open_folder(
        root / "scores" / name, stage="evaluate", overwrite=cfg.overwrite,
        config={"metrics": [plain(member.metric) for member in configs], "seed": cfg.seed,
                "labels": [member.manifest["label"] for member in found],
                "headline": [plain(member.headline) for member in configs]},
        inputs={key: value for member in found for key, value in member.inputs().items()})
    if folder.finished:
        log.info("evaluate: finished already (%s)", folder.path)
        return folder.path
    tables, chances, entries = [], [], []
    for member in found:
        log.info("score %s", member.name)
        rows, chance = member.score(seed=cfg.seed)
        tables.append(rows)
        chances.append(chance)
        entries.append(member.entry())
    for study in {member.prepared.folder: member.prepared for member in found}.values():
        rows, chance = _ceiling(study)
        tables.append(rows)
        chances.append(chance)
    scores = pd.concat([t for t in tables if len(t)], ignore_index=True)
    chance = pd.concat([c for c in chances if len(c)], ignore_index=True)
    rng = np.random.default_rng([cfg.seed, 5])
    summary = {
        "name": name, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": ["python", *sys.argv],
        "seconds": sum(sum(e["seconds"].values()) for e in entries), "git": git_commit(), "versions": versions(),
        "records": records(scores, chance, generator=rng),
        "differences": _differences(scores, baseline=cfg.baseline, generator=rng),
        "members": entries, "outputs": relative(root, folder.path)}
    write_table(folder.work / "scores.parquet", scores)
    for curve in CURVES:
        parts = [pd.read_parquet(m.curve(curve) / f"{curve}.parquet") for m in found if m.has_curve(curve)]
        if parts:
            write_table(folder.work / f"{curve}.parquet", pd.concat(parts, ignore_index=True))
    write_json(folder.work / "summary.json", summary)
    write_report(folder.work)
    folder.finish()
    return folder.path


def _differences(scores: pd.DataFrame, *, baseline: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    scores = scores[scores["decoder"] != "ceiling"]
    if set(scores["decoder"]) <= {baseline} or baseline not in set(scores["decoder"]):
        log.info("no differences to %s: it is not among the decoders scored here", baseline)
        return []
    return differences(scores, baseline=baseline, generator=generator)


class _Member:
    """One decoder on one study: its predictions and reconstructions under every condition that was made."""

    def __init__(self, cfg: DictConfig, root: Path) -> None:
        self.cfg, self.root = cfg, root
        self.name = cfg.name
        self.runs = fold_runs(cfg)
        self.manifest = self.runs[0].manifest
        self.prepared: PreparedStudy = self.runs[0].prepared
        self.study = self.manifest["later"]["study_label"] or self.prepared.name
        self.caches = {name: EmbeddingCache(root / path) for name, path in self.manifest["paths"]["caches"].items()}
        self.predictions = {c: Predictions(root / "predictions" / self.name / c) for c in CONDITIONS
                            if c == "decoded" or (root / "predictions" / self.name / c / "manifest.json").exists()}
        self.reconstructions = {c: Reconstructions(root / "reconstructions" / self.name / c) for c in CONDITIONS
                                if (root / "reconstructions" / self.name / c / "manifest.json").exists()}

    def curve(self, curve: str) -> Path:
        return self.root / curve / self.name

    def has_curve(self, curve: str) -> bool:
        return (self.curve(curve) / "manifest.json").exists()

    def inputs(self) -> dict[str, str]:
        found = {f"{self.name} predictions {c}": p.manifest["id"] for c, p in self.predictions.items()}
        found |= {f"{self.name} reconstructions {c}": r.manifest["id"] for c, r in self.reconstructions.items()}
        return found | {f"{self.name} {c}": read_manifest(self.curve(c))["id"] for c in CURVES if self.has_curve(c)}

    def entry(self) -> dict[str, Any]:
        """Return what the report needs to know of this member."""
        stages = {"prepare": self.prepared.manifest["seconds"],
                  "train": sum(run.manifest["seconds"] for run in self.runs),
                  "predict": sum(p.manifest["seconds"] for p in self.predictions.values()),
                  "reconstruct": sum(r.manifest["seconds"] for r in self.reconstructions.values())}
        return {"experiment": self.name, "study": self.study, "modality": self.prepared.modality,
                "decoder": self.manifest["label"], "headline": plain(self.cfg.headline),
                "subjects": self.manifest["subjects"], "seed": self.manifest["seed"],
                "n_fold_runs": len(self.runs),
                "prepared": relative(self.prepared.folder, self.root),
                "run": relative(self.runs[0].folder.parent, self.root),
                "predictions": {c: relative(p.folder, self.root) for c, p in self.predictions.items()},
                "reconstructions": {c: relative(r.folder, self.root) for c, r in self.reconstructions.items()},
                "seconds": stages}

    def score(self, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the row-level scores of every condition, and the chance levels (found on the decoded rows)."""
        metrics = build_metrics(self.cfg)
        tables, chances = [], []
        for condition, predictions in self.predictions.items():
            reconstructions = self.reconstructions.get(condition)
            for subject in self.manifest["subjects"]:
                places = np.flatnonzero(predictions.rows["subject"] == subject)
                decoded = self._decoded(predictions, reconstructions, places)
                for metric in metrics.values():
                    part = _fitting(metric, decoded)
                    if part is None:
                        continue
                    same = self._labels(metric, condition, subject, predictions, places)
                    table = metric.score(part)
                    stimuli = predictions.rows["stimulus_id"].to_numpy()[places[table["row"]]]
                    if "proportion" in table:  # a metric may tell it line by line
                        same.pop("proportion")
                    tables.append(table.assign(**same, stimulus_id=stimuli, row=places[table["row"]]))
                    if condition == "decoded":
                        rng = np.random.default_rng([seed, 6])
                        chance = metric.chance(part, generator=rng)
                        chances += [chance.assign(**{**same, "condition": c}) for c in self.predictions]
        return pd.concat(tables, ignore_index=True), pd.concat(chances, ignore_index=True)

    def _labels(self, metric: Metric, condition: str, subject: str, predictions: Predictions,
                places: np.ndarray) -> dict[str, Any]:
        used = {head["space"] for head in self.manifest["config"].get("head", {}).values()}
        return {"study": self.study, "subject": subject, "modality": self.prepared.specs[subject].modality,
                "decoder": self.manifest["label"], "condition": condition,
                "repetitions": int(predictions.rows["n_averaged"].iloc[places].median()),
                "transductive": metric.transductive, "proportion": metric.proportion,
                "circular": "images" in metric.needs and bool(used & set(metric.needs))}

    def _decoded(self, predictions: Predictions, reconstructions: Reconstructions | None,
                 places: np.ndarray) -> Decoded:
        ids = predictions.rows["stimulus_id"].to_numpy()[places]
        gallery_ids = sorted(set(ids))
        gallery = {}
        for space in predictions.specs:
            cache = self.caches[space]
            gallery[space] = np.asarray(cache.array[cache.rows(gallery_ids)], dtype=np.float32)
        return Decoded(
            truth=np.searchsorted(gallery_ids, ids), gallery_ids=tuple(gallery_ids), gallery=gallery,
            embeddings={space: predictions.embeddings(space, places) for space in predictions.specs},
            specs=predictions.specs,
            images=None if reconstructions is None else reconstructions.images(places),
            gallery_images=None if reconstructions is None else self.prepared.stimuli_of(gallery_ids).images())


def _fitting(metric: Metric, decoded: Decoded) -> Decoded | None:
    """Return what the metric needs, or None where that was not decoded."""
    for need in metric.needs:
        if (need == "images" and decoded.images is None) or (need == "captions" and decoded.captions is None):
            return None
        if need not in ("*", "images", "captions") and need not in decoded.embeddings:
            return None
    return decoded


def _ceiling(study: PreparedStudy) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the scores of the ideal observer of a simulated study, from the ranks it wrote when it was prepared."""
    path = study.folder / "ceiling.parquet"
    if not path.exists():
        return pd.DataFrame(), pd.DataFrame()
    ranks = pd.read_parquet(path)
    ranks = ranks[ranks["repetitions"] == ranks["repetitions"].max()]
    gallery = int(ranks["gallery"].iloc[0])
    values = {"top1": (ranks["rank"] <= 1, 1 / gallery), "top5": (ranks["rank"] <= 5, 5 / gallery),
              "two_way": ((gallery - ranks["rank"]) / (gallery - 1), 0.5)}
    tables, chances = [], []
    for metric, (value, chance) in values.items():
        tables.append(pd.DataFrame({
            "study": study.name, "subject": ranks["subject"], "modality": study.modality, "decoder": "ceiling",
            "condition": "decoded", "space": "generator", "stimulus_id": ranks["stimulus_id"], "metric": metric,
            "direction": ranks["direction"], "gallery": gallery, "repetitions": ranks["repetitions"],
            "transductive": False, "circular": False, "proportion": metric != "two_way", "value": value.astype(float),
            "row": -1}))
        keys = tables[-1].drop(columns=["stimulus_id", "value", "row"]).drop_duplicates()
        chances.append(keys.assign(chance=chance, chance_kind="analytic"))
    return pd.concat(tables, ignore_index=True), pd.concat(chances, ignore_index=True)


def load_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json`` of a scores folder."""
    return json.loads((folder / "summary.json").read_text())
