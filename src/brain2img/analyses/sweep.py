"""A new subject with ever more data: a trained run adapted to it, against a model trained on it alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, open_dict

from brain2img.artifacts import open_folder, read_manifest, write_table
from brain2img.data.trials import seconds_per_trial
from brain2img.decoders.settings import read_checkpoint
from brain2img.metrics.intervals import paired_difference
from brain2img.metrics.ranking import RankScore, accuracy
from brain2img.report.sweep import write_sweep
from brain2img.stages.adapt import Adaptation, adapt, in_steps
from brain2img.stages.build import plain
from brain2img.stages.decoded_ranks import ranks_of_run
from brain2img.stages.new_subject import runs_without
from brain2img.stages.runs import FoldRun, fold_order, fold_runs
from brain2img.stages.train import train_fold
from brain2img.stages.workspace import folder_of, outputs

log = logging.getLogger(__name__)
ADAPTED, DEDICATED = "adapted", "dedicated"


def sweep(cfg: DictConfig) -> Path:
    """Train both models on every amount of data and rank the test stimuli; writes and returns ``sweeps/<name>``.

    Both see the same trials, for as many optimizer steps; ``dedicated`` may give the second its own learning rate and
    the like. ``ranks.parquet`` has the rank of the seen stimulus for every amount, subset, model and stimulus;
    ``sweep.parquet`` accuracies with bootstrap intervals over stimuli, and ``differences.parquet`` those between the
    models, paired by stimulus; ``sweep.png`` and ``report.html`` show them. Single models are runs like any other
    (``train/<name>/<model>_<amount>``), so an interrupted sweep goes on with what is missing.

    Raises
    ------
    ValueError
        If an amount is listed twice, or for what `brain2img.stages.adapt.adapt` refuses.
    """
    amounts = plain(cfg.trials)
    if not isinstance(amounts, list) or not amounts or len(set(amounts)) < len(amounts):
        raise ValueError(f"trials: expected a list of different amounts, got {amounts!r}. Give trials=[50,200,800].")
    base = runs_without(cfg.subject, fold_runs(cfg))
    name = str(cfg.name)
    trained = [(amount, draw, *_train(cfg, amount, draw, name=name)) for amount in amounts
               for draw in range(1 if amount is None or cfg.order == "first" else int(cfg.n_draws))]
    runs = [run for line in trained for model in line[2:] for run in model]
    space, split = base[0].manifest.later["headline"]["space"], cfg.predict_split
    folder = open_folder(folder_of(cfg, "sweeps", name), stage="sweep", overwrite=cfg.overwrite,
                         config={"space": space, "split": split, "seed": cfg.seed, "mode": cfg.mode},
                         inputs={str(run.folder.relative_to(outputs(cfg))): run.manifest.id for run in runs})
    if not folder.finished:
        lines = [_ranks(run, space=space, split=split, batch_size=cfg.batch_size).assign(model=model, draw=draw)
                 for _, draw, adapted, dedicated in trained
                 for model, found in ((ADAPTED, adapted), (DEDICATED, dedicated)) for run in found]
        ranks = pd.concat(lines, ignore_index=True)
        table, differences = _table(ranks, seed=cfg.seed), _differences(ranks, seed=cfg.seed)
        for file, content in (("ranks", ranks), ("sweep", table), ("differences", differences)):
            write_table(folder.work / f"{file}.parquet", content)
        facts = {"run": base[0].manifest.name, "subject": cfg.subject, "mode": cfg.mode, "space": space,
                 "split": split, "study": base[0].manifest.study_name,
                 "known": base[0].manifest.subjects, "n_draws": int(cfg.n_draws)}
        write_sweep(folder.work, table, differences, facts=facts)
        folder.finish(**facts)
    log.info("sweep: %s", folder.path / "report.html")
    return folder.path


def _train(cfg: DictConfig, amount: int | str | None, draw: int, *, name: str) -> tuple[list[FoldRun], list[FoldRun]]:
    """Train the adapted and the dedicated model of one amount; returns their folds."""
    root, word = outputs(cfg), f"{'all' if amount is None else amount}_draw-{draw}"
    settings_of_fold = cfg.copy()
    with open_dict(settings_of_fold):
        settings_of_fold.trials, settings_of_fold.draw, settings_of_fold.name = amount, draw, f"{name}/{ADAPTED}_{word}"
    adapted = adapt(settings_of_fold)
    alone = folder_of(cfg, "train", name, f"{DEDICATED}_{word}")
    base = runs_without(cfg.subject, fold_runs(cfg))
    for run in base:
        plan, manifest = Adaptation.of(settings_of_fold, run), run.manifest
        n = read_manifest(adapted / run.folder.name)["adapted"]["trials"]["n"]
        trainer = in_steps({**plan.config["trainer"], **plain(cfg.dedicated)}, n_trials=n, steps=cfg.steps)
        train_fold(alone / run.folder.name, config={**plan.config, "trainer": trainer}, prepared=plan.prepared,
                   found=plan.caches, root=root, place=manifest.place, overwrite=cfg.overwrite,
                   facts=manifest.facts(name=f"{name}/{alone.name}", label=f"{manifest.label}_{DEDICATED}",
                                        n_fold_runs=len(base), study=plan.study, study_name=plan.prepared.name),
                   description=f"train on {plan.subject} alone, {n} trials, subset {draw}")
    first, second = ([FoldRun(path, root) for path in sorted(folder.glob("fold-*"), key=fold_order)]
                     for folder in (adapted, alone))
    return first, second


def _ranks(run: FoldRun, *, space: str, split: str, batch_size: int) -> pd.DataFrame:
    """Rank the stimuli of a split for one trained model, with what it was trained on and how it was chosen."""
    data = run.data()
    found = ranks_of_run(run, data, space=space, split=split, batch_size=batch_size)
    used = data.trials[data.trials["split"] == "train"]
    seconds = seconds_per_trial(data.trials)
    facts = read_checkpoint(run.folder / "best.ckpt")
    return found.assign(
        fold=run.manifest.fold, seed=run.manifest.seed, trials=len(used),
        minutes=np.nan if seconds is None else len(used) * seconds / 60, monitor=facts.get("monitor"),
        validation=facts.get("score"))


def _table(ranks: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return accuracy over trials for both models, means over subsets, with bootstrap intervals over stimuli."""
    keys, rng = ["model", "trials"], np.random.default_rng([seed, 9])
    facts = ranks.groupby(keys).agg(minutes=("minutes", "first"), subject=("subject", "first"),
                                    repetitions=("n_averaged", "median"), n_draws=("draw", "nunique"),
                                    monitor=("monitor", "first"))
    one_each = ranks.drop_duplicates([*keys, "draw", "fold", "seed"])
    facts["validation"] = one_each.groupby(keys)["validation"].mean()
    table = accuracy(ranks, by=keys, generator=rng).merge(facts.reset_index(), on=keys)
    return table.sort_values(["metric", "trials", "model"], ignore_index=True)


def _differences(ranks: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return adapted minus dedicated for every amount, paired by stimulus and subset."""
    keys, lines, rng = ["draw", "fold", "seed", "stimulus_id"], [], np.random.default_rng([seed, 10])
    for trials, group in ranks.groupby("trials", sort=True):
        a, b = (group[group["model"] == m].set_index(keys).sort_index() for m in (ADAPTED, DEDICATED))
        assert a.index.equals(b.index), "both models rank the same stimuli"
        for score in (RankScore.named("top1"), RankScore.named("top5")):
            mean, low, high = paired_difference(score.values(a), score.values(b), generator=rng,
                                                stimuli=a.index.get_level_values("stimulus_id").to_numpy())
            lines.append({"trials": trials, "metric": score.name, "difference": mean, "low": low, "high": high})
    return pd.DataFrame(lines)
