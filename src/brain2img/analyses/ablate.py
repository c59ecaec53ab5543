"""One factor off at a time: an experiment without each of its parts, beside what it is measured against."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf, open_dict

from brain2img.artifacts import Predictions, digest, open_folder, write_table
from brain2img.metrics.intervals import bootstrap, paired_difference
from brain2img.metrics.ranking import RankScore, rank_table, similarity
from brain2img.report.ablation import write_ablation
from brain2img.stages.build import plain
from brain2img.stages.decoded_ranks import ideal_ranks
from brain2img.stages.embed import embed
from brain2img.stages.predict import predict
from brain2img.stages.prepare import prepare
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.train import train
from brain2img.stages.workspace import folder_of, outputs

log = logging.getLogger(__name__)
SPLITS = ("val", "test")
FULL = "recipe"


@dataclass(frozen=True)
class Row:
    """One line of the table: how it is called, and its configurations, one for each seed."""

    key: str
    label: str
    configs: tuple[DictConfig, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds it is trained with."""
        return tuple(int(config.seed) for config in self.configs)


def ablate(cfg: DictConfig) -> Path:
    """Train every row of ``ablation`` with its seeds and rank the stimuli; writes and returns ``ablations/<name>``.

    Each of ``ablation.rows`` is the experiment with some overrides; ``baseline`` and ``others`` are other experiments
    on the same data. Every training is a run like any other (``train/<name>/<row>_seed-<s>``), so an interrupted
    ablation goes on with what is missing. ``ranks.parquet`` has the rank of the seen stimulus for every row, seed,
    subject and stimulus; ``ablation.parquet`` the accuracies with bootstrap intervals over stimuli, and the
    differences to the full recipe, paired by subject and stimulus over the seeds that both have; ``ablation.png`` and
    ``report.html`` show them. Rows with several seeds have one line more, "<row>, ensemble": the mean of their
    standardised similarities; ``ensembles`` names some of several rows, each row's seeds together. What helps is to be
    judged by the validation column; the test column is there for the paper.

    Raises
    ------
    ValueError
        If an ensemble names a row that is not there.
    """
    rows = [Row(key, row["label"], tuple(map(OmegaConf.create, row["configs"])))
            for key, row in plain(cfg.ablation)["rows"].items()]
    ensembles = _ensembles(plain(cfg.ablation), rows)
    runs = {(row.key, seed): _trained(cfg, row, config) for row in rows
            for seed, config in zip(row.seeds, row.configs, strict=True)}
    folder = open_folder(folder_of(cfg, "ablations", cfg.name), stage="ablate", overwrite=cfg.overwrite,
                         config={"rows": {row.key: [row.label, list(row.seeds)] for row in rows}, "seed": cfg.seed,
                                 "ensembles": ensembles},
                         inputs={f"{key} {seed}": digest([run.manifest.id for run in found])
                                 for (key, seed), (_, found) in runs.items()})
    if not folder.finished:
        ranks = pd.concat([part for split in SPLITS for part in _all_ranks(rows, runs, ensembles, split=split)],
                          ignore_index=True)
        table = _table(ranks, rows, seed=cfg.seed)
        write_table(folder.work / "ranks.parquet", ranks)
        write_table(folder.work / "ablation.parquet", table)
        first = next(iter(runs.values()))[1][0]
        facts = {"study": first.manifest.study_name, "subjects": first.manifest.subjects,
                 "ceiling": _ceiling(first), "n_train": int((first.data().trials["split"] == "train").sum())}
        write_ablation(folder.work, table, facts=facts)
        folder.finish(**facts)
    log.info("ablation: %s", folder.path / "report.html")
    return folder.path


def _trained(cfg: DictConfig, row: Row, config: DictConfig) -> tuple[DictConfig, list[FoldRun]]:
    """Run the stages of one training that are not finished; returns its configuration and its folds."""
    log.info("ablation: %s, seed %d", row.label, config.seed)
    prepare(config)
    embed(config)
    train(config)
    for split in SPLITS:
        part = config.copy()
        with open_dict(part):
            part.predict_split = split
            part.run = str(outputs(cfg) / "train" / config.name)
            part.name = f"{config.name}/{split}"
        predict(part)
    return config, fold_runs(config)


def _ensembles(ablation: Mapping[str, Any], rows: list[Row]) -> dict[str, list[str]]:
    """Return name -> rows whose similarities are averaged: those of one row with several seeds, and those named."""
    found = {f"{row.key}, ensemble": [row.key] for row in rows if len(row.seeds) > 1}
    for name, keys in (ablation.get("ensembles") or {}).items():
        unknown = sorted(set(keys) - {row.key for row in rows})
        if unknown:
            raise ValueError(f"ablation.ensembles: expected rows of {[row.key for row in rows]}, got {unknown}. "
                             "Correct it.")
        found[name] = list(keys)
    return found


def _all_ranks(rows: list[Row], runs: Mapping[tuple[str, int], tuple[DictConfig, list[FoldRun]]],
               ensembles: Mapping[str, list[str]], *, split: str) -> Iterator[pd.DataFrame]:
    """Yield the ranks of every row, seed, fold and subject, then those of the ensembles."""
    similarities: dict[str, list[_Similarities]] = {}
    for row in rows:
        for seed in row.seeds:
            for part in _similarities(*runs[row.key, seed], split=split):
                similarities.setdefault(row.key, []).append(part)
                yield _ranked(part).assign(row=row.key, seed=seed, split=split)
    for name, keys in ensembles.items():
        together: dict[str, list[_Similarities]] = {}
        for part in (part for key in keys for part in _row_means(similarities[key])):
            together.setdefault(part.subject, []).append(part)
        for parts in together.values():
            yield _ranked(_mean(parts)).assign(row=name, seed=-1, split=split)


@dataclass(frozen=True)
class _Similarities:
    """``(n, N)`` similarities of the rows of one subject to the stimuli `ids`."""

    subject: str
    rows: pd.DataFrame
    ids: list[str]
    values: np.ndarray


def _similarities(config: DictConfig, found: list[FoldRun], *, split: str) -> Iterator[_Similarities]:
    """Yield the similarities of one trained run, fold by fold and subject by subject."""
    space = config.headline.space
    predictions = Predictions(outputs(config) / "predictions" / config.name / split / "decoded")
    for (run, subject), group in predictions.rows.groupby(["run", "subject"], sort=False):
        ids = sorted(set(group["stimulus_id"]))
        cache = found[run].caches()[space]
        true = np.asarray(cache.array[cache.rows(ids)], dtype=np.float32).reshape(len(ids), -1)
        predicted = predictions.embeddings(space, group.index.to_numpy()).reshape(len(group), -1)
        yield _Similarities(str(subject), group.sort_values("stimulus_id"), ids,
                            similarity(predicted, true, kind="cosine")[np.argsort(group["stimulus_id"].to_numpy())])


def _row_means(parts: list[_Similarities]) -> list[_Similarities]:
    """Return the mean over the seeds of a row, one for each subject."""
    return [_mean([part for part in parts if part.subject == subject])
            for subject in dict.fromkeys(part.subject for part in parts)]


def _mean(parts: list[_Similarities]) -> _Similarities:
    """Return the mean of standardised similarities of the same rows; each query's are standardised alone."""
    first = parts[0]
    total = np.zeros_like(first.values, dtype=np.float64)
    for part in parts:
        assert list(part.rows["stimulus_id"]) == list(first.rows["stimulus_id"]), "members rank the same rows"
        total += (part.values - part.values.mean(axis=1, keepdims=True)) / part.values.std(axis=1, keepdims=True)
    return _Similarities(first.subject, first.rows, first.ids, total / len(parts))


def _ranked(part: _Similarities) -> pd.DataFrame:
    truth = np.searchsorted(part.ids, part.rows["stimulus_id"])
    ranks = rank_table(part.values, truth).set_index(part.rows.index)
    return part.rows[["subject", "stimulus_id", "n_averaged"]].join(ranks)


def _table(ranks: pd.DataFrame, rows: list[Row], *, seed: int) -> pd.DataFrame:
    """Return top-1 and top-5 of every row and split, means over seeds, and differences to the recipe; intervals."""
    rng, lines = np.random.default_rng([seed, 12]), []
    labels = {row.key: row.label for row in rows}
    for (split, key), group in ranks.groupby(["split", "row"], sort=False):
        full = ranks[(ranks["split"] == split) & (ranks["row"] == FULL)]
        for score in (RankScore.named("top1"), RankScore.named("top5")):
            hits = group.assign(hit=score.values(group))
            low, high = bootstrap(hits["hit"].to_numpy(), hits["stimulus_id"].to_numpy(), generator=rng)
            line = {"row": key, "label": labels.get(key, key), "split": split, "metric": score.name,
                    "value": hits["hit"].mean(), "low": low, "high": high, "n_seeds": hits["seed"].nunique(),
                    "seed_sd": hits.groupby("seed")["hit"].mean().std(), "gallery": int(group["candidates"].max()),
                    "repetitions": group["n_averaged"].median()}
            change = _difference(hits, full.assign(hit=score.values(full)), rng=rng)
            line |= dict(zip(("difference", "difference_low", "difference_high"), change, strict=True))
            lines.append(line)
    return pd.DataFrame(lines)


def _difference(hits: pd.DataFrame, full: pd.DataFrame, *, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the mean difference to the recipe with its interval, over the seeds that both have, else the means."""
    keys = ["subject", "stimulus_id"]
    common = sorted(set(hits["seed"]) & set(full["seed"]))
    if common:
        hits, full = hits[hits["seed"].isin(common)], full[full["seed"].isin(common)]
    a, b = (table.groupby(keys)["hit"].mean().sort_index() for table in (hits, full))
    assert a.index.equals(b.index), "all rows rank the same stimuli"
    return paired_difference(a.to_numpy(), b.to_numpy(), a.index.get_level_values("stimulus_id").to_numpy(),
                             generator=rng)


def _ceiling(run: FoldRun) -> float | None:
    """Return top-1 of the ideal observer with all repetitions, of a simulated study."""
    ranks = ideal_ranks(run.prepared)
    if ranks is None:
        return None
    return float(RankScore.named("top1").values(ranks[ranks["direction"] == "image_from_brain"]).mean())
