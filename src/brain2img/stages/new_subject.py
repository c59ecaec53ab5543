"""What a trained run and a new subject must have in common before one is adapted to the other, and its name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig

from brain2img.artifacts import EmbeddingCache, differences, read_manifest
from brain2img.data.datamodule import BrainData
from brain2img.data.prepared import PreparedStudy
from brain2img.data.trials import OVER_SUBJECTS
from brain2img.interfaces import Encoder, SubjectAdapter
from brain2img.stages.build import build, identity_of_study, plain
from brain2img.stages.quoting import command
from brain2img.stages.runs import FoldRun
from brain2img.stages.workspace import prepared_folder

log = logging.getLogger(__name__)


def target_study(cfg: DictConfig, run: FoldRun) -> PreparedStudy:
    """Return the study of the new subject: the one that the run was trained on, where the settings describe that."""
    study = plain(cfg.study)
    if study.get("raw") is None and not differences(run.manifest.study, identity_of_study(study)):
        return run.prepared
    return PreparedStudy(prepared_folder(cfg))


def runs_without(subject: str | None, runs: Sequence[FoldRun]) -> list[FoldRun]:
    """Return the folds to adapt: of a run whose folds are subjects those not trained on `subject`, else all."""
    found = [run for run in runs if subject not in run.manifest.subjects]
    over_subjects = runs[0].manifest.config["split"]["kind"] in OVER_SUBJECTS
    return found if over_subjects and found else list(runs)


def adapted_name(base: str, cfg: DictConfig) -> str:
    """Return the name of the adaptation of the run `base` where none is given: it says what distinguishes it."""
    words = [base, cfg.subject, cfg.mode]
    if isinstance(plain(cfg.trials), list):
        return "_".join(map(str, [*words, "sweep"]))
    order = ["first"] if cfg.order == "first" else [f"draw-{cfg.draw}"] if cfg.draw else []
    return "_".join(map(str, [*words, "all" if cfg.trials is None else cfg.trials, *order]))


def check_new(subject: str | None, prepared: PreparedStudy, run: FoldRun) -> str:
    """Return the name of the new subject.

    Raises
    ------
    ValueError
        If it is not in the study, the run knows it already (with the voxels of this study, or with others), or the
        study is of another modality.
    """
    known = run.manifest.subjects
    if subject is None or subject not in prepared.subjects:
        raise ValueError(f"subject: expected one of study {prepared.name}, {prepared.subjects}, got {subject!r}. Give "
                         f"one that the run does not know (it knows {known}).")
    if prepared.name == run.manifest.study_name and subject in known:
        difference = _difference(prepared, run, subject)
        raise ValueError(
            f"subject {subject!r}: expected one that the run does not know, got one it was trained with"
            + (f", there with other signals ({difference}). Its weights fit those alone: prepare the study as it was "
               "then, or train another run." if difference else
               f". Decode it: {command('predict', run=str(run.folder.parent))}"))
    modality = run.prepared.modality if _has_study(run) else prepared.modality
    if prepared.modality != modality:
        raise ValueError(f"study {prepared.name}: expected one of the run's modality ({modality}), got "
                         f"{prepared.modality}. Adapt a run of the same kind of recording.")
    return subject


def _difference(prepared: PreparedStudy, run: FoldRun, subject: str) -> str:
    if not _has_study(run):
        return ""
    here, there = prepared.specs[subject], run.prepared.specs[subject]
    if here.n_channels != there.n_channels:
        return f"{there.n_channels} channels in training, {here.n_channels} here"
    if here.rois != there.rois:
        sets = [", ".join(sorted(set(spec.rois))) or "none" for spec in (there, here)]
        return f"ROIs {sets[0]} in training, {sets[1]} here" if sets[0] != sets[1] else "ROIs in another order"
    return "other channels" if here.ch_names != there.ch_names else ""


def _has_study(run: FoldRun) -> bool:
    """Tell whether the prepared study of a run is still there."""
    return (run.stored(run.manifest.paths["prepared"]) / "manifest.json").exists()


def target_caches(run: FoldRun, prepared: PreparedStudy) -> dict[str, EmbeddingCache]:
    """Return the embeddings of the study's stimuli in the spaces of the run, by the same weights.

    Raises
    ------
    ValueError
        If one is missing.
    """
    found: dict[str, EmbeddingCache] = {}
    for name, path in run.manifest.paths["caches"].items():
        uid = read_manifest(run.stored(path), what=f"embeddings of space {name!r}")["config"]["uid"]
        for folder in (run.stored(path), *sorted((run.root / "cache" / prepared.name).glob(f"{name}-*"))):
            if (folder / "manifest.json").exists() and _is(read_manifest(folder), uid=uid, prepared=prepared):
                found.setdefault(name, EmbeddingCache(folder))
        if name not in found:
            raise ValueError(f"embeddings of space {name!r}: expected those of study {prepared.name} by the weights "
                             f"of the run ({uid}), got none. Run the embed stage on this study with the run's "
                             "space=[...].")
    return found


def _is(manifest: Mapping, *, uid: str, prepared: PreparedStudy) -> bool:
    return manifest["config"]["uid"] == uid and manifest["inputs"]["stimuli"] == prepared.manifest["stimuli"]


def sources_of(cfg: DictConfig, run: FoldRun, prepared: PreparedStudy) -> list[str]:
    """Return the known subjects whose trials train the new one's parts, too (the cycle of reset-tuning).

    Raises
    ------
    ValueError
        If one that is asked for by name is not known to the run.
    """
    asked, known = plain(cfg.source_subjects), run.manifest.subjects
    if asked == "auto":
        if cfg.mode != "reset" or not run.manifest.config["adapter"].get("cycle"):
            return []
        if not _has_study(run):
            log.warning("adapt: the cycle with known subjects is left out, for the study of the run is not there (%s)",
                        run.manifest.paths["prepared"])
            return []
        return list(known)
    unknown = sorted(set(asked or []) - set(known))
    if unknown:
        raise ValueError(f"source_subjects: expected some of the run's {known}, got {unknown}. Choose some of these, "
                         "or [] for none.")
    return list(asked or [])


def check_signals(run: FoldRun, data: BrainData) -> None:
    """Refuse sensors that do not fit what the run shares between subjects.

    Sampling rate and window must be those of its training. Whether the channels must be, too, by name and in order, the
    adapter of the run says when it is built for both.

    Raises
    ------
    ValueError
        Naming what differs.
    """
    if not _has_study(run):
        return
    known, (new,) = next(iter(run.data().specs.values())), data.specs.values()
    if not known.ch_names:
        return
    if other := new.difference(known, channels=False):
        raise ValueError(f"study {data.study.name}, subject {new.subject!r}: expected the sampling rate and the window "
                         f"that run {run.folder.parent} was trained on, got {other}. Prepare the study at this rate, "
                         "with the run's window inside what is kept.")
    config, beside = run.manifest.config, dataclasses.replace(known, subject=f"{known.subject} of the run")
    with torch.random.fork_rng(devices=[]):
        encoder = build(config["encoder"], Encoder, specs={beside.subject: beside})
        build(config["adapter"], SubjectAdapter, specs={beside.subject: beside, new.subject: new}, grid=encoder.grid)


def check_splits(run: FoldRun, data: BrainData) -> None:
    """Refuse a new subject whose validation or test stimuli the run was trained with.

    Raises
    ------
    ValueError
        If there are any.
    """
    if not _has_study(run) or run.prepared.name != data.study.name:
        return
    trained = run.data().trials
    met = set(trained.loc[trained["split"] == "train", "stimulus_id"])
    kept = data.trials.loc[~data.trials["split"].isin(("train", "unused")), "stimulus_id"]
    first = {**run.prepared.same_as, **data.study.same_as} if data.same_as else {}
    met_first = {first.get(s, s) for s in met}
    crossing = sorted(s for s in set(kept) if first.get(s, s) in met_first)
    if crossing:
        raise ValueError(f"study {data.study.name}: expected validation and test stimuli that the run was not trained "
                         f"with, got {len(crossing)} that it was ({crossing[0]!r}, ...). Use a split by the study "
                         "(split.kind=study) for a run that is to be adapted.")
