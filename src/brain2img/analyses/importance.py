"""Which voxels a trained decoder reads: their contributions to what is decoded, as maps in the subject's volume."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, safe_name, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.interfaces import Decoder
from brain2img.metrics.intervals import Resampler, quantiles
from brain2img.records import BrainBatch, SignalSpec
from brain2img.report.volumes import save_importance_figure, write_map
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.progress import progress
from brain2img.stages.runs import one_fold
from brain2img.stages.workspace import folder_of
from brain2img.volumes import geometry

log = logging.getLogger(__name__)
METHODS = ("gradient", "occlusion")


@for_each_member
def importance(cfg: DictConfig) -> Path:
    """Find what every voxel contributes to decoding the stimuli of a split; writes ``importance/<name>``.

    Decoded and true embedding of the headline's space are compared around the training mean: a trial's alignment is
    ``<f(x) - f(0), y>``, y being the unit vector from the mean training embedding to the true one, f(0) what an average
    recording decodes to. `importance.method` says how it is divided among voxels:

    * "gradient": signal times slope, ``x_v d<f(x), y>/dx_v`` (gradient x input, Shrikumar et al. 2016,
      arXiv:1605.01713). For ridge, whose slope is its coefficients, this is exact: the voxels' shares add up to the
      alignment.
    * "occlusion": what is lost when a cube of `importance.block` voxels is put at its training mean (Zeiler & Fergus
      2014, arXiv:1311.2901), divided evenly among its voxels. For ridge and single voxels the same as "gradient".

    Both are averaged over repetition-averaged stimuli that the decoder was not trained on, and divided by the mean
    length of ``f(x) - f(0)``: a subject's voxels together give the mean cosine, or nearly so in a deep decoder. A voxel
    that carries nothing has expectation 0 whatever weight the decoder gives it, which absolute weights have not.

    ``importance.parquet``: one row a voxel (place, region, noise ceiling, contribution, standard error over stimuli).
    ``regions.parquet``: sums by region with bootstrap intervals over stimuli, where the study knows regions.
    ``importance_<subject>.nii.gz`` in the subject's volume (NaN where there is no voxel), and slices of it as
    ``importance_<subject>.png``.

    Raises
    ------
    ValueError
        If voxels have no places or the signals a time axis, the split is empty, or a setting is unknown.
    """
    run = one_fold(cfg)
    settings, space = plain(cfg.importance), cfg.headline.space
    if settings["method"] not in METHODS or settings["block"] < 1:
        raise ValueError(f"importance: expected a method of {METHODS} and a block of at least 1 voxel, got "
                         f"{settings['method']!r} and {settings['block']}. Correct them.")
    data = run.data()
    if space not in data.target_specs:
        raise ValueError(f"headline.space: expected a decoded space of {sorted(data.target_specs)}, got {space!r}. "
                         "Set headline.space to one of these.")
    for spec in data.specs.values():
        geometry(spec, needs_affine=True)
        if spec.n_times != 1:
            raise ValueError(f"signals of subject {spec.subject!r}: expected one value per voxel (T = 1), got "
                             f"{spec.n_times} samples. Average over time first.")
    folder = open_folder(folder_of(cfg, "importance", cfg.name), stage="importance", overwrite=cfg.overwrite,
                         inputs={"run": run.manifest.id}, config={**settings, "space": space, "seed": cfg.seed})
    if folder.finished:
        log.info("importance: finished already (%s)", folder.path)
        return folder.path
    decoder, items = run.decoder(data), data.items(settings["split"])
    if items.empty:
        raise ValueError(f"run {run.folder}: expected trials in split {settings['split']!r}, got none. Set "
                         "importance.split to one of "
                         f"{sorted(set(data.trials['split']))}; prefer one that was not trained on.")
    voxels, regions = [], []
    for subject, spec in data.specs.items():
        of_subject = items[items["subject"] == subject].reset_index(drop=True)
        log.info("importance of %d voxels of %s, %d stimuli", spec.n_channels, subject, len(of_subject))
        shares = contributions(decoder, data, of_subject, subject=subject, space=space, method=settings["method"],
                               block=settings["block"], batch_size=cfg.batch_size)
        table = _of_voxels(spec, shares)
        voxels.append(table)
        if any(spec.rois):
            regions.append(_of_regions(spec, shares, rng=np.random.default_rng([cfg.seed, 11])))
        values, path = table["importance"].to_numpy(), folder.work / f"importance_{safe_name(subject)}"
        write_map(values, spec, path.with_name(f"{path.name}.nii.gz"))
        save_importance_figure(values, spec, path.with_name(f"{path.name}.png"))
    facts = {"study": data.study.name, "decoder": run.manifest.label, "space": space, "method": settings["method"]}
    write_table(folder.work / "importance.parquet", pd.concat(voxels, ignore_index=True).assign(**facts))
    if regions:
        found = pd.concat(regions, ignore_index=True).assign(**facts)
        write_table(folder.work / "regions.parquet", found)
        log.info("%s", found[["subject", "region", "voxels", "value", "low", "high"]].to_string(index=False))
    folder.finish(study_name=data.study.name, label=run.manifest.label, subjects=list(data.specs))
    log.info("%s", folder.path)
    return folder.path


def contributions(decoder: Decoder, data: BrainData, items: pd.DataFrame, *, subject: str, space: str, method: str,
                  block: int, batch_size: int) -> np.ndarray:
    """Return what every voxel adds to the alignment of every stimulus, ``(n, C)``; see `importance`.

    Parameters
    ----------
    decoder
        The trained decoder.
    data
        Its data.
    items
        The n rows of one subject, as `BrainData.items` lays them out.
    subject, space
        Whose signals, and the decoded space.
    method, block
        See `importance`.
    batch_size
        Rows that are decoded at once.
    """
    spec = data.specs[subject]
    mean = data.mean_target(space).ravel()
    still = decoder.predict(_one(torch.zeros(1, spec.n_channels, 1), subject))[space].reshape(1, -1)
    shares, lengths = [], []
    for part in progress(chunks(len(items), batch_size), description=f"importance {subject}"):
        batch = data.batch(items.iloc[part])
        y = data.target(space, items["stimulus_id"].iloc[part].tolist()).reshape(len(part), -1) - mean
        y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
        x = batch.signals[subject]
        decoded = decoder.predict(batch)[space].reshape(len(part), -1)
        lengths.append(np.linalg.norm(decoded - still, axis=1))
        if method == "gradient":
            slope = decoder.slopes(batch, space=space, directions=y.astype(np.float32))[subject]
            shares.append((x.numpy() * slope)[:, :, 0])
        else:
            shares.append(_lost(decoder, x, y, decoded, spec=spec, space=space, block=block))
    return np.concatenate(shares) / max(float(np.concatenate(lengths).mean()), 1e-12)


def _one(x: torch.Tensor, subject: str) -> BrainBatch:
    return BrainBatch(signals={subject: x}, rows={subject: torch.arange(len(x))}, stimulus_ids=[""] * len(x))


def _lost(decoder: Decoder, x: torch.Tensor, y: np.ndarray, decoded: np.ndarray, *, spec: SignalSpec, space: str,
          block: int) -> np.ndarray:
    """Return ``(n, C)`` what is lost without each voxel's cube, divided among the voxels of the cube."""
    _, cube, counts = np.unique(geometry(spec)[0] // block, axis=0, return_inverse=True, return_counts=True)
    cube = cube.ravel()
    whole = np.einsum("nd,nd->n", decoded, y)
    out = np.empty((len(x), spec.n_channels), dtype=np.float32)
    for number in progress(range(len(counts)), description="occlude"):
        places = np.flatnonzero(cube == number)
        without = x.clone()
        without[:, places] = 0.0
        rest = decoder.predict(_one(without, spec.subject))[space].reshape(len(x), -1)
        out[:, places] = ((whole - np.einsum("nd,nd->n", rest, y)) / counts[number])[:, None]
    return out


def _of_voxels(spec: SignalSpec, shares: np.ndarray) -> pd.DataFrame:
    ijk = geometry(spec)[0]
    columns: Mapping[str, Any] = {"i": ijk[:, 0], "j": ijk[:, 1], "k": ijk[:, 2]}
    ceiling = np.full(spec.n_channels, np.nan) if spec.noise_ceiling is None else spec.noise_ceiling
    return pd.DataFrame({"subject": spec.subject, "voxel": np.arange(spec.n_channels), **columns,
                         "roi": list(spec.rois) or "", "noise_ceiling": ceiling, "importance": shares.mean(axis=0),
                         "error": shares.std(axis=0) / np.sqrt(len(shares))})


def _of_regions(spec: SignalSpec, shares: np.ndarray, *, rng: np.random.Generator) -> pd.DataFrame:
    """Return the summed contribution of every region, with bootstrap intervals over stimuli."""
    rois, lines, resampler = np.array(spec.rois), [], Resampler(rng)
    for region in dict.fromkeys(spec.rois):
        inside = rois == region
        values = shares[:, inside].sum(axis=1)
        low, high = quantiles(resampler.means(values), confidence=0.95)
        lines.append({"subject": spec.subject, "region": region or "(none)", "voxels": int(inside.sum()),
                      "value": float(values.mean()), "low": low, "high": high,
                      "per_voxel": float(values.mean()) / int(inside.sum())})
    return pd.DataFrame(lines)
