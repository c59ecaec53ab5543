"""Accuracy over amounts of training data, by hardware: a log-linear law and what it foretells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, open_dict

from brain2img.artifacts import digest, open_folder, safe_name, write_table
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import OVER_SUBJECTS
from brain2img.metrics.intervals import bootstrap
from brain2img.metrics.ranking import RankScore
from brain2img.metrics.scaling_law import ScalingLaw, check_distance, fit_law, flag, resampled_means
from brain2img.report.scaling import write_scaling
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.decoded_ranks import ideal_ranks, ranks_of_run
from brain2img.stages.embed import embed
from brain2img.stages.prepare import prepare
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.train import train
from brain2img.stages.workspace import folder_of, prepared_folder

log = logging.getLogger(__name__)
METRICS = ("top1", "top5", "two_way")
AXES = ("trials", "subjects")
MIN_POINTS = 3
"""Fewest points of a law: two fit any line, and nothing would be left to check it by."""
SETTINGS = ("channels", "exclude_channels", "added_noise", "allow_mixed_channels")
"""What hardware may say of ``data``."""


@dataclass(frozen=True)
class Point:
    """One training: with which hardware, amount (None: all trials) and random subset, and what of the data it takes."""

    hardware: str
    amount: int | None
    draw: int
    data: Mapping[str, Any]
    subjects: tuple[str, ...] | None
    scored: tuple[str, ...] | None


@for_each_member
def scaling(cfg: DictConfig) -> Path:
    """Train the experiment on every amount, with every hardware, and fit the law; writes ``scaling/<name>``.

    ``scaling.axis=trials``: amounts are training trials of every subject. ``subjects``: numbers of subjects trained
    together; in a draw, few subjects are a part of many, and those of the smallest number are scored throughout, so
    that the curve is not one of other people. Draws begin with different subjects, as long as there are some. Every
    training is a run (``train/<name>/<hardware>_<amount>_draw-<d>``), so an interrupted command goes on with what is
    missing.

    ``ranks.parquet`` has the rank of the seen stimulus for every training, subject and stimulus; ``scaling.parquet``
    accuracies with bootstrap intervals over stimuli, and why a point is left out of the fit (`flag`); ``fits.parquet``
    the laws, with the largest amount foretold from the others; ``extrapolated.parquet`` and ``needed.parquet`` what
    they say of amounts and accuracies asked for; ``scaling.png`` and ``report.html`` show them.

    Raises
    ------
    ValueError
        If amounts, axis or hardware do not fit the study, or an amount to extrapolate to is too far.
    """
    settings = plain(cfg.scaling)
    prepare(cfg)
    points = _points(cfg, settings, study=PreparedStudy(prepared_folder(cfg)))
    embed(cfg)
    runs = {point: _trained(cfg, point, axis=settings["axis"]) for point in points}
    folder = open_folder(folder_of(cfg, "scaling", cfg.name), stage="scaling", overwrite=cfg.overwrite,
                         config={**settings, "space": cfg.headline.space, "split": cfg.predict_split,
                                 "seed": cfg.seed},
                         inputs={_word(p): digest([run.manifest.id for run in found])
                                 for p, found in runs.items()})
    if not folder.finished:
        ranks = pd.concat([_ranks(cfg, point, found, axis=settings["axis"]) for point, found in runs.items()],
                          ignore_index=True)
        first = next(iter(runs.values()))[0]
        ceilings = _ceilings(first) if cfg.predict_split == "test" else {}
        tables = tabulated(ranks, settings, seed=cfg.seed, ceilings=ceilings)
        for name, table in {"ranks": ranks, **tables}.items():
            write_table(folder.work / f"{name}.parquet", table)
        facts = {"study": first.manifest.study_name, "label": first.manifest.label, "split": cfg.predict_split,
                 "axis": settings["axis"], "link": settings["link"], "space": str(cfg.headline.space),
                 "n_draws": int(settings["n_draws"]), "use_flagged": bool(settings["use_flagged"])}
        write_scaling(folder.work, tables, facts=facts)
        folder.finish(**facts)
    log.info("scaling: %s", folder.path / "report.html")
    return folder.path


def _points(cfg: DictConfig, settings: Mapping[str, Any], *, study: PreparedStudy) -> list[Point]:
    """Return all trainings, after checking what can be checked before the first."""
    axis, amounts, hardware = settings["axis"], settings["amounts"], settings["hardware"]
    known = plain(cfg.data.subjects) or list(study.subjects)
    if axis not in AXES:
        raise ValueError(f"scaling.axis: expected one of {AXES}, got {axis!r}. Correct it.")
    if not isinstance(amounts, list) or len(amounts) < 2 or len(set(amounts)) < len(amounts):
        raise ValueError(f"scaling.amounts: expected a list of two different amounts or more, got {amounts!r}. Give "
                         "scaling.amounts=[100,200,400].")
    numbers = [a for a in amounts if a is not None]
    if axis == "subjects":
        if plain(cfg.split)["kind"] in OVER_SUBJECTS:
            raise ValueError(f"scaling.axis=subjects: expected subjects trained together, got split.kind="
                             f"{cfg.split.kind}. Choose an experiment of joint training.")
        if len(numbers) < len(amounts) or max(numbers) > len(known) or min(numbers) < 1:
            raise ValueError(f"scaling.amounts: expected numbers of subjects from 1 to {len(known)}, got {amounts}. "
                             "Correct them.")
    if len(numbers) == len(amounts):
        check_distance(np.array(settings["extrapolate"] or []), largest=max(numbers), beyond=settings["beyond"])
    _check_hardware(hardware, study=study, subjects=known)
    people, turn = np.random.default_rng([int(cfg.seed), 43]).permutation(known), min(numbers, default=0)
    orders = [list(np.roll(people, -draw * turn)) for draw in range(int(settings["n_draws"]))]  # other people first
    points = []
    for (name, data), amount in product(hardware.items(), amounts):
        whole = amount is None or (axis == "subjects" and amount == len(known) == min(numbers))
        for draw, order in enumerate(orders[:1] if whole else orders):
            subjects, scored = None, None
            if axis == "subjects":
                chosen, scored = set(order[:amount]), tuple(sorted(order[:min(numbers)]))
                subjects = tuple(s for s in known if s in chosen)  # the order of a list is part of a run's settings
            points.append(Point(name, amount, draw, _Frozen(data or {}), subjects, scored))
    return points


class _Frozen(dict):
    """Settings that can stand in a `Point` as a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(digest(dict(self)))


def _check_hardware(hardware: Any, *, study: PreparedStudy, subjects: Sequence[str]) -> None:
    if not isinstance(hardware, dict) or not hardware:
        raise ValueError(f"scaling.hardware: expected names with settings of data, got {hardware!r}. Give "
                         "scaling.hardware={all: {}, occipital: {channels: [PO*,O*]}}, or hardware=eeg.")
    for name, data in hardware.items():
        unknown = sorted(set(data or {}) - set(SETTINGS))
        if unknown:
            raise ValueError(f"scaling.hardware.{name}: expected some of {SETTINGS}, got {unknown}. Correct it.")
        for subject in subjects:
            names = study.specs[subject].ch_names
            lacking = [c for c in (data or {}).get("channels") or []
                       if not any(c == n or fnmatchcase(n, c) for n in names)]
            if lacking:
                raise ValueError(f"hardware {name!r}: expected channels that {subject} of study {study.name} has, got "
                                 f"{', '.join(lacking)}, which it lacks. Leave them out, and say so in the name.")


def _word(point: Point) -> str:
    amount = "all" if point.amount is None else point.amount
    return f"{safe_name(point.hardware)}_{amount}_draw-{point.draw}"


def _trained(cfg: DictConfig, point: Point, *, axis: str) -> list[FoldRun]:
    """Train one point, unless it is finished; returns its folds."""
    mine = cfg.copy()
    with open_dict(mine):
        mine.name, mine.run = f"{cfg.name}/{_word(point)}", None
        for key, value in point.data.items():
            mine.data[key] = value
        if axis == "subjects":
            mine.data.subjects = list(point.subjects or ())
        elif point.amount is not None:
            mine.split.train_trials, mine.split.train_seed = point.amount, point.draw
    train(mine)
    return fold_runs(mine)


def _ranks(cfg: DictConfig, point: Point, runs: Sequence[FoldRun], *, axis: str) -> pd.DataFrame:
    """Rank the stimuli of the split for every subject that is scored."""
    lines = []
    for run in runs:
        data = run.data()
        found = ranks_of_run(run, data, space=cfg.headline.space, split=cfg.predict_split, batch_size=cfg.batch_size)
        if axis == "subjects":
            amount = len(point.subjects or ())
        else:
            counts = data.trials[data.trials["split"] == "train"].groupby("subject").size()
            if counts.nunique() > 1:
                raise ValueError(f"scaling.amounts: expected as many training trials of every subject, got "
                                 f"{counts.to_dict()}. Give a number instead of null.")
            amount = int(counts.iloc[0])
        lines.append(found.assign(fold=run.manifest.fold, seed=run.manifest.seed, amount=amount))
    table = pd.concat(lines, ignore_index=True).assign(hardware=point.hardware, draw=point.draw)
    return table if point.scored is None else table[table["subject"].isin(point.scored)]


def tabulated(ranks: pd.DataFrame, settings: Mapping[str, Any], *, seed: int,
              ceilings: Mapping[str, float]) -> dict[str, pd.DataFrame]:
    """Return the tables "scaling", "fits", "extrapolated" and "needed" of `ranks`, as `scaling` describes them.

    Parameters
    ----------
    ranks
        hardware, amount, draw, subject, stimulus_id, n_averaged, and `brain2img.metrics.ranking.rank_table`.
    settings
        link, use_flagged, extrapolate, beyond, needed.
    seed
        Of the bootstrap.
    ceilings
        Metric -> accuracy that no decoder can pass; 1 where it is not known.
    """
    rng = np.random.default_rng([seed, 14])
    tables: dict[str, list[dict[str, Any]]] = {"scaling": [], "fits": [], "extrapolated": [], "needed": []}
    for hardware, metric in product(ranks["hardware"].unique(), METRICS):
        score, mine = RankScore.named(metric), ranks[ranks["hardware"] == hardware]
        mine = mine.assign(value=score.values(mine))
        key = {"hardware": hardware, "metric": metric}
        chance = float(score.chance(mine["candidates"]).mean())
        cells, lines = [], []
        for amount, group in mine.groupby("amount"):
            cells.append(group.pivot_table(index="draw", columns="stimulus_id", values="value").to_numpy())
            value = float(cells[-1].mean())
            low, high = bootstrap(group["value"].to_numpy(), group["stimulus_id"].to_numpy(), generator=rng)
            lines.append({**key, "amount": amount, "value": value, "low": low, "high": high, "chance": chance,
                          "gallery": int(group["candidates"].max()), "n_draws": group["draw"].nunique(),
                          "repetitions": group["n_averaged"].median(),
                          "flag": flag(value, low, chance=chance, ceiling=ceilings.get(metric, 1.0))})
        tables["scaling"] += lines
        points = pd.DataFrame(lines)
        check_distance(np.array(settings["extrapolate"] or []), largest=points["amount"].max(),
                       beyond=settings["beyond"])
        drawn = resampled_means(cells, generator=rng)
        kept = np.flatnonzero(settings["use_flagged"] | (points["flag"] == "").to_numpy())
        line = {**key, "link": settings["link"], "n_points": len(kept), "left_out": len(points) - len(kept)}
        if len(kept) < MIN_POINTS:
            tables["fits"].append(line)
            continue

        def fit(which: np.ndarray, points: pd.DataFrame = points, drawn: np.ndarray = drawn, chance: float = chance,
                n: int = cells[0].shape[1]) -> ScalingLaw:
            chosen = points.iloc[which]
            return fit_law(chosen["amount"].to_numpy(), chosen["value"].to_numpy(), drawn[:, which], chance=chance,
                           n_stimuli=n, link=settings["link"])

        law = fit(kept)
        tables["fits"].append({**line, **_described(law), **_held_out(fit, kept, points, drawn)})
        for amount in [*points["amount"], *(settings["extrapolate"] or [])]:
            band = law.at(np.array([amount]), beyond=True)  # how far is checked by what was measured
            tables["extrapolated"].append({**key, "amount": amount, **{name: float(x[0]) for name, x in
                                              zip(("value", "low", "high"), band, strict=True)},
                                           "extrapolation": bool(amount > law.largest)})
        for target in settings["needed"] or []:
            if target > chance:
                amount, low, high = law.needed(target)
                tables["needed"].append({**key, "accuracy": target, "amount": amount, "low": low, "high": high,
                                         "smallest": float(points["amount"].iloc[kept].min()), "largest": law.largest})
    return {name: pd.DataFrame(lines) for name, lines in tables.items()}


def _described(law: ScalingLaw) -> dict[str, float]:
    low, high = np.quantile(law.draws, [0.025, 0.975], axis=0)
    return {f"{name}{end}": float(values[i]) for i, name in enumerate(("intercept", "slope"))
            for end, values in (("", law.coefficients), ("_low", low), ("_high", high))} | {
                "r2": law.r2, "rmse": law.rmse, "largest": law.largest}


def _held_out(fit: Any, kept: np.ndarray, points: pd.DataFrame, drawn: np.ndarray) -> dict[str, Any]:
    """Foretell the largest amount of the fit from the others: value, band, and whether the measured one agrees."""
    last, law = kept[-1], fit(kept[:-1])
    at = points["amount"].to_numpy()[[last]]
    value, low, high = (float(x[0]) for x in law.at(at, beyond=True))
    off = np.quantile(drawn[:, last] - law.drawn(at)[:, 0], [0.025, 0.975])
    return {"held_out": float(at[0]), "foretold": value, "foretold_low": low, "foretold_high": high,
            "measured": float(points["value"].iloc[last]), "agrees": bool(off[0] <= 0 <= off[1])}


def _ceilings(run: FoldRun) -> dict[str, float]:
    """Return what the ideal observer of a simulated study reaches with all repetitions and channels."""
    ranks = ideal_ranks(run.prepared)
    if ranks is None:
        return {}
    ranks = ranks[ranks["direction"] == "image_from_brain"]
    return {name: float(RankScore.named(name).values(ranks).mean()) for name in ("top1", "top5")}
