"""Predictions that a prior is fitted on: of stimuli that the decoder which makes them has not seen."""

from __future__ import annotations

import logging

import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, Predictions, open_folder
from brain2img.data.datamodule import BrainData
from brain2img.data.trials import at_most
from brain2img.stages.build import plain
from brain2img.stages.predict import decode_rows
from brain2img.stages.runs import FoldRun
from brain2img.stages.train import train_fold
from brain2img.stages.workspace import folder_of, outputs, relative

log = logging.getLogger(__name__)

SOURCES = {"out_of_fold": "held_out", "validation": "prior", "training": "train", "joint": "val"}
"""Where the predictions come from, and the split of `brain2img.data.trials.Split` that is then decoded."""


def prior_predictions(cfg: DictConfig, runs: list[FoldRun]) -> Predictions:
    """Return ``predictions/<name>/<source>``, made first where it is not there.

    "out_of_fold": every training stimulus, decoded by a decoder of the run's own configuration that was trained
    without it and without its concept (where test concepts are new to the decoder, else without the stimulus alone).
    It costs as many trainings as `folds`; each sees that much less of the data, so its predictions are a little worse
    than the run's. "validation": the validation stimuli that ``split.prior_fraction`` keeps from early stopping,
    decoded by the run itself. "training": the training stimuli decoded by the run itself, which has seen them; some
    published recipes do so, but such predictions are closer to the truth than those of new stimuli. "joint": the
    validation stimuli, decoded by the run itself, to score the prior that was trained with it; nothing is fitted.

    Noise of a prediction depends on how many repetitions are averaged, and a prior corrects the noise it was fitted on.
    ``repetitions: match`` averages as many as at test, or all where there are fewer, and says so; "all" or a number are
    taken as they stand.

    Raises
    ------
    ValueError
        If the source or `repetitions` is unknown, or the run has no stimuli of that kind.
    """
    settings = plain(cfg.prior_fit)
    source, repetitions = settings["source"], settings["repetitions"]
    if source not in SOURCES:
        raise ValueError(f"prior_fit.source: expected one of {list(SOURCES)}, got {source!r}. Correct it.")
    if not (repetitions in ("match", "all") or (isinstance(repetitions, int) and repetitions > 0)):
        raise ValueError(f"prior_fit.repetitions: expected match, all or a number, got {repetitions!r}. Correct it.")
    if source == "validation" and not runs[0].manifest.config["split"].get("prior_fraction"):
        raise ValueError("prior_fit.source=validation: expected a run that kept validation stimuli from early "
                         f"stopping, got one with split.prior_fraction=0 ({runs[0].folder.parent}). Train it with "
                         "split.prior_fraction=0.5, or use prior_fit.source=out_of_fold.")
    if source == "out_of_fold" and runs[0].manifest.stage == "adapt":
        raise ValueError("prior_fit.source=out_of_fold: expected a run that was trained from fresh weights, of which "
                         f"each part can be trained anew, got an adapted one ({runs[0].folder.parent}). Use "
                         "prior_fit.source=validation, with a run whose split.prior_fraction is above 0.")
    decoders = list(enumerate(runs))
    config = {"split": SOURCES[source], "condition": source, "repetitions": repetitions, "seed": cfg.seed}
    if source == "out_of_fold":
        config["folds"] = settings["folds"]
        decoders = [(i, part) for i, run in enumerate(runs) for part in _train_parts(run, cfg)]
    root = outputs(cfg)
    folder = open_folder(folder_of(cfg, "predictions", cfg.name, source), stage="predict", config=config,
                         inputs={relative(part.folder, root): part.manifest.id for _, part in decoders},
                         overwrite=cfg.overwrite)
    if not folder.finished:
        log.info("predict %s of %s", source.replace("_", " "), runs[0].manifest.name)
        data = [part.data() for _, part in decoders]
        rows = _rows(decoders, data, runs, split=SOURCES[source], repetitions=repetitions, seed=cfg.seed)
        _check(rows, runs, source=source)
        decode_rows(folder.work, rows, decoders=[part for _, part in decoders], data=data, batch_size=cfg.batch_size,
                    by="decoder")
        folder.finish(condition=source, label=runs[0].manifest.label, study_name=runs[0].manifest.study_name,
                      run=relative(runs[0].folder.parent, root))
    return Predictions(folder.path)


def _train_parts(run: FoldRun, cfg: DictConfig) -> list[FoldRun]:
    """Train the decoder of a run once for each part of its training stimuli, without that part."""
    manifest, n_parts, root = run.manifest, int(cfg.prior_fit.folds), outputs(cfg)
    found = {name: EmbeddingCache(run.stored(path)) for name, path in manifest.paths["caches"].items()}
    parts = []
    for part in range(n_parts):
        path = run.folder.parent / "out_of_fold" / run.folder.name / f"part-{part}-of-{n_parts}"
        train_fold(path, config=manifest.training, prepared=run.prepared, found=found, root=root,
                   place={**manifest.place, "held_out": [part, n_parts]}, facts=manifest.facts(n_fold_runs=1),
                   overwrite=cfg.overwrite,
                   description=f"train {manifest.name} {run.folder.name} without part {part + 1} of {n_parts}")
        parts.append(FoldRun(path, root))
    return parts


def _rows(decoders: list[tuple[int, FoldRun]], data: list[BrainData], runs: list[FoldRun], *, split: str,
          repetitions: str | int, seed: int) -> pd.DataFrame:
    tables = []
    for number, ((i, _), mine) in enumerate(zip(decoders, data, strict=True)):
        items = mine.items(split)
        if repetitions != "all":
            items = at_most(items, int(_test_repetitions(mine) if repetitions == "match" else repetitions), seed=seed)
        tables.append(items.assign(run=i, decoder=number,
                                   draw=runs[i].manifest.split_seed if len(runs) > 1 else items["draw"]))
    rows = pd.concat(tables, ignore_index=True)
    if rows.empty:
        raise ValueError(f"run {runs[0].folder.parent}: expected stimuli of split {split!r} for the prior, got none. "
                         "Choose another prior_fit.source.")
    got, wanted = rows["n_averaged"].mean(), _test_repetitions(data[0])
    if split == SOURCES["joint"]:
        return rows
    if got < 0.9 * wanted:
        log.warning("prior: its predictions average %.3g repetitions a stimulus, those of the test %.3g: it is fitted "
                    "to more noise than it will meet and corrects too much. Validation stimuli often have more "
                    "repetitions: prior_fit.source=validation.", got, wanted)
    elif got > 1.1 * wanted:
        log.warning("prior: its predictions average %.3g repetitions a stimulus, those of the test %.3g: it is fitted "
                    "to less noise than it will meet. Use prior_fit.repetitions=match.", got, wanted)
    return rows


def _test_repetitions(data: BrainData) -> float:
    return float(data.items("test")["n_averaged"].median())


def _check(rows: pd.DataFrame, runs: list[FoldRun], *, source: str) -> None:
    """Assert that every stimulus stands where it may, and that no test stimulus is among them."""
    for i, run in enumerate(runs):
        split = run.data().trials.groupby("split")["stimulus_id"].agg(set)
        mine = rows[rows["run"] == i]
        met = set(mine["stimulus_id"])
        assert met == split[{"validation": "prior", "joint": "val"}.get(source, "train")], "all meant for it, no others"
        assert not met & (split["test"] | (split.get("val", set()) if source != "joint" else set())), "no test stimulus"
        assert not mine.duplicated(["subject", "stimulus_id"]).any(), "every stimulus is held out once"
