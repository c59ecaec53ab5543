"""Predictions of stimuli a decoder has not seen + their true embeddings -> a prior for each space."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, Predictions, open_folder, read_json, read_manifest, write_json
from brain2img.data.trials import grouping
from brain2img.interfaces import Prior
from brain2img.metrics.ranking import RankScore, rank_table, similarity
from brain2img.stages.apply_prior import prior_place, row_generators
from brain2img.stages.build import build_prior, plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.held_out import prior_predictions
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)

LABELS = {"out_of_fold": "out-of-fold predictions of training stimuli",
          "validation": "predictions of validation stimuli kept from early stopping",
          "training": "training predictions",
          "joint": "training trials, jointly with the decoder"}


@for_each_member
def fit_prior(cfg: DictConfig) -> Path:
    """Fit the prior for every space of ``prior_fit.spaces``, one a fold and, where asked, a subject.

    With ``prior_fit.source=joint`` it was trained with the decoder (`brain2img.losses.PriorLoss`) and is taken out of
    the run; all validation stimuli score it then, the ones that chose the run's best epoch.

    Writes ``priors/<name>/<space>/run-<i>[_<subject>]/``. A share of the stimuli (``prior_fit.holdout``) is kept from
    the fit; how well their predictions match the true embeddings before and after the prior stands in the manifest.

    Raises
    ------
    ValueError
        If no prior is chosen, the run is missing or decodes no such space, or a value is not finite.
    """
    if not cfg.get("prior"):
        raise ValueError("prior: expected one to fit, got none. Choose prior=affine or prior=diffusion.")
    settings, runs = plain(cfg.prior_fit), fold_runs(cfg)
    missing = sorted(set(settings["spaces"]) - set(runs[0].manifest.paths["caches"]))
    if missing or not settings["spaces"]:
        raise ValueError(f"prior_fit.spaces: expected spaces of {sorted(runs[0].manifest.paths['caches'])}, got "
                         f"{settings['spaces']}. Choose some that the run {runs[0].folder.parent} decodes.")
    if settings["source"] == "joint" and not runs[0].data().has_validation:
        raise ValueError(f"prior_fit.source=joint: expected a run with validation stimuli, which score the prior, got "
                         f"none ({runs[0].folder.parent}). Train it with split.val_fraction above 0.")
    predictions = prior_predictions(cfg, runs)
    if settings["source"] == "training":
        log.warning("prior: fitted on training predictions, which are closer to the truth than those of new stimuli. "
                    "Use prior_fit.source=out_of_fold unless you repeat a published recipe.")
    per_subject = build_prior(cfg).per_subject if settings["per_subject"] is None else settings["per_subject"]
    if settings["source"] == "joint" and per_subject:
        raise ValueError("prior_fit.per_subject: expected one prior for all subjects, since it was trained jointly "
                         "with the decoder, got one a subject. Set prior_fit.per_subject=false.")
    caches = {space: EmbeddingCache(runs[0].stored(runs[0].manifest.paths["caches"][space]))
              for space in settings["spaces"]}
    folder = open_folder(
        folder_of(cfg, "priors", cfg.name), stage="fit_prior", overwrite=cfg.overwrite,
        config={"prior": plain(cfg.prior), **settings, "per_subject": per_subject, "seed": cfg.seed},
        inputs={"predictions": predictions.manifest["id"],
                **{space: read_manifest(cache.folder)["id"] for space, cache in caches.items()}})
    if folder.finished:
        log.info("fit_prior: finished already (%s)", folder.path)
        return folder.path
    lines = []
    for i, run in enumerate(runs):
        unit = _units(run)
        joint = _joint_priors(run, cfg) if settings["source"] == "joint" else {}
        for space, cache in caches.items():
            for subject, rows in _groups(predictions.rows, i, per_subject=per_subject):
                place = prior_place(folder.work, space, run=i, subject=subject)
                if not (place / "scores.json").exists():
                    kept = np.ones(len(rows), dtype=bool) if joint else _held_back(
                        predictions.rows.loc[rows, "stimulus_id"], unit, share=settings["holdout"], seed=cfg.seed)
                    _fit(place, predictions, space, cache, rows=rows, kept=kept, cfg=cfg, joint=joint.get(space))
                line = {"space": space, "run": i, "subject": subject, **read_json(place / "scores.json")}
                _tell(line)
                lines.append(line)
    folder.finish(source=LABELS[settings["source"]], validation=lines, runs=[run.manifest.id for run in runs],
                  uids={space: predictions.specs[space].uid for space in caches},
                  study_name=runs[0].manifest.study_name)
    return folder.path


def _joint_priors(run: FoldRun, cfg: DictConfig) -> dict[str, Prior]:
    """Return space -> the prior that was trained with the decoder of a run.

    Raises
    ------
    ValueError
        If there is none for a space of ``prior_fit.spaces``.
    """
    found = run.decoder(run.data()).joint_priors()
    lacking = sorted(set(plain(cfg.prior_fit)["spaces"]) - set(found))
    if lacking:
        raise ValueError(f"prior_fit.source=joint: expected a run whose decoder trained a prior for {lacking}, got one "
                         f"with priors for {sorted(found)} ({run.folder}). Add brain2img.losses.PriorLoss to the "
                         "losses of the head, or use prior_fit.source=out_of_fold.")
    return found


def _groups(rows: pd.DataFrame, run: int, *, per_subject: bool) -> Iterator[tuple[str | None, np.ndarray]]:
    of_run = rows[rows["run"] == run]
    if not per_subject:
        yield None, of_run.index.to_numpy()
        return
    for subject, group in of_run.groupby("subject", sort=False):
        yield str(subject), group.index.to_numpy()


def _units(run: FoldRun) -> dict[str, str]:
    """Return stimulus id -> what is kept together when stimuli are divided."""
    data = run.data()
    table = data.study.stimulus_table
    return grouping(dict(zip(data.trials["stimulus_id"], data.trials["split"], strict=True)),
                    dict(zip(table["stimulus_id"], table["concept"], strict=True)), same_as=data.same_as)


def _held_back(stimulus_ids: Sequence[str], unit: dict[str, str], *, share: float, seed: int) -> np.ndarray:
    """Return for every row whether it is kept from the fit, for scoring."""
    if not 0 <= share < 1:
        raise ValueError(f"prior_fit.holdout: expected a share from 0 to below 1, got {share}. Correct it.")
    groups = np.array(sorted({unit[s] for s in stimulus_ids}), dtype=object)
    chosen = set(np.random.default_rng([seed, 32]).permutation(groups)[:round(share * len(groups))])
    return np.array([unit[s] in chosen for s in stimulus_ids], dtype=bool)


def _fit(place: Path, predictions: Predictions, space: str, cache: EmbeddingCache, *, rows: np.ndarray,
         kept: np.ndarray, cfg: DictConfig, joint: Prior | None = None) -> None:
    """Fit one prior into `place`, on the rows that are not `kept`, or take the `joint` one; score it on the others."""
    ids = predictions.rows["stimulus_id"].to_numpy()[rows]
    predicted = predictions.embeddings(space, rows)
    gallery, places = np.unique(ids, return_inverse=True)
    true = np.asarray(cache.array[cache.rows(gallery.tolist())], dtype=np.float32)
    prior = build_prior(cfg)
    if joint is None:
        log.info("fit prior of %s, %s: %d predictions", space, place.name, (~kept).sum())
        prior.fit(predicted[~kept], true[places[~kept]], folder=place / "fit")
        prior.save(place)
    else:
        joint.save(place)
        prior.load(place)  # whose settings are those asked for, or it says what differs
    scores = {"n_fitted": int((~kept).sum())}
    if kept.any():
        shown, truth = np.unique(places[kept], return_inverse=True)
        scores |= _scores(prior, predicted[kept], true[shown], truth, rows=rows[kept], seed=cfg.seed)
    write_json(place / "scores.json", scores)


def _scores(prior: Prior, predicted: np.ndarray, gallery: np.ndarray, truth: np.ndarray, *, rows: np.ndarray,
            seed: int) -> dict[str, Any]:
    """Compare predictions, before and after the prior, to the true embeddings of their stimuli.

    Cosine to the own stimulus, how often that one is the nearest and among the five nearest of the `gallery`, and the
    length of the embeddings over that of the true ones.
    """
    scores: dict[str, Any] = {"n_stimuli": len(gallery), "n_rows": len(truth)}
    true = gallery.reshape(len(gallery), -1)
    for name, values in (("prediction", predicted),
                         ("prior", prior.sample(predicted, generators=row_generators(seed, rows)))):
        flat = values.reshape(len(values), -1)
        cosine = similarity(flat, true, kind="cosine")
        ranks = rank_table(cosine, truth)
        scores[name] = {"cosine": float(np.nanmean(cosine[np.arange(len(truth)), truth])),
                        **{name: float(RankScore.named(name).values(ranks).mean()) for name in ("top1", "top5")},
                        "norm": float(np.linalg.norm(flat, axis=1).mean() / np.linalg.norm(true, axis=1).mean())}
    return scores


def _tell(line: dict[str, Any]) -> None:
    if "prior" not in line:
        log.info("prior of %s: fitted on %d predictions, not scored (prior_fit.holdout leaves none)", line["space"],
                 line["n_fitted"])
        return
    before, after = line["prediction"], line["prior"]
    log.info("prior of %s%s, %d stimuli kept from the fit: cosine %.3f -> %.3f, top-1 %.1f -> %.1f %%, top-5 %.1f -> "
             "%.1f %%, length %.2f -> %.2f of the true one", line["space"],
             f", {line['subject']}" if line["subject"] else "", line["n_stimuli"], before["cosine"], after["cosine"],
             100 * before["top1"], 100 * after["top1"], 100 * before["top5"], 100 * after["top5"], before["norm"],
             after["norm"])
