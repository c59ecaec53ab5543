"""When and where M/EEG can be decoded: windows in time, regions of sensors and single sensors, for every space."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from brain2img.artifacts import open_folder, write_table
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.data.windows import Window, kept, region_channels, sliding
from brain2img.metrics.curves import clusters, peaks, table_of
from brain2img.records import BrainBatch, SignalSpec
from brain2img.report.windows import write_windows
from brain2img.stages.build import plain
from brain2img.stages.collection import for_each_member
from brain2img.stages.decoded_ranks import rank_rows
from brain2img.stages.progress import progress
from brain2img.stages.runs import FoldRun, fold_runs
from brain2img.stages.train import train_again
from brain2img.stages.workspace import folder_of

log = logging.getLogger(__name__)
METHODS = ("train", "ridge", "mask")


@dataclass(frozen=True)
class Extent:
    """What is decoded from: a kind ("whole", "growing", "sliding", "region", "sensor"), and which window or channels.

    Of a sensor, all others.
    """

    kind: str
    name: str
    window: Window | None = None
    channels: tuple[str, ...] | None = None

    def facts(self) -> dict[str, Any]:
        """Return its columns of the tables."""
        window = self.window or Window(np.nan, np.nan)
        return {"kind": self.kind, "name": self.name, "start": window.start, "stop": window.stop,
                "n_channels": len(self.channels) if self.channels is not None else None}


@for_each_member
def windows(cfg: DictConfig) -> Path:
    """Decode a trained M/EEG run's test stimuli from every window and region; writes and returns ``windows/<name>``.

    `windows.how`: "train" trains the run's own decoder anew for each, on that window or those channels alone;
    "ridge" fits ridge in its place. Every such decoder is a run under ``train/<name>/windows``, resumed like any
    other. Whitening and scaling are fitted within the window, too. "mask" keeps the trained run and sets all values
    outside to 0, the training mean: cheap, but the decoder has never met such input, so a low score need not mean that
    a window knows little; where channels are whitened (``data.noise_normalise``), a masked channel is a mixture centred
    on its sensor.

    Encoders that bin, convolve and pool over time (ATM, NICE) are scaled to the window by one rule, see `scaled`; the
    published code (Li et al. 2024) pools neighbouring windows differently, and mixes the length with the architecture.

    Growing windows begin at onset; sliding ones go as far as the epoch (the prepared one, or with "mask" the run's).
    Windows beyond it are left out, with a warning. All folds, all decoded spaces: ``ranks.parquet`` (rank of the seen
    stimulus), ``windows.parquet`` (top-1, top-5, two-way with intervals over stimuli), ``peaks.parquet`` (time of the
    peak and of half maximum of each space), ``clusters.parquet`` (when two-way is above chance), figures and a page.

    Raises
    ------
    ValueError
        If the signals have no time axis, the method is unknown or cannot do what is asked for, or no window is left.
    """
    runs, settings = fold_runs(cfg), plain(cfg.windows)
    how, manifest = settings["how"], runs[0].manifest
    if how not in METHODS:
        raise ValueError(f"windows.how: expected one of {METHODS}, got {how!r}. Correct it.")
    if how != "mask" and settings["sensors"]:
        raise ValueError(f"windows.sensors: expected windows.how=mask, which silences one sensor at a time, got {how}. "
                         "Set windows.how=mask or windows.sensors=false.")
    if how == "mask" and manifest.config["data"]["scale"] == "none":
        raise ValueError(f"run {runs[0].folder.parent}: expected scaled signals, of which 0 is the training mean, for "
                         "windows.how=mask, got data.scale=none. Use windows.how=train or ridge.")
    data = [run.data() for run in runs]
    specs = {subject: normaliser.spec for fold in data for subject, normaliser in fold.normalisers.items()}
    parts = parts_of(settings, list(specs.values()) if how == "mask" else [runs[0].prepared.specs[s] for s in specs],
                     used=list(specs.values()))
    folder = open_folder(folder_of(cfg, "windows", cfg.name), stage="windows", overwrite=cfg.overwrite,
                         inputs={run.folder.name: run.manifest.id for run in runs},
                         config={**settings, "seed": cfg.seed})
    if folder.finished:
        log.info("windows: finished already (%s)", folder.path)
        return folder.path
    rows = pd.concat([fold.items("test") for fold in data])
    galleries = {subject: sorted(set(group["stimulus_id"])) for subject, group in rows.groupby("subject")}
    if how == "mask":
        found = [_masked(run, fold, parts, galleries=galleries, batch_size=cfg.batch_size)
                 for run, fold in zip(runs, data, strict=True)]
    else:
        found = [_trained(run, parts, galleries=galleries, cfg=cfg, specs=specs) for run in runs]
    ranks = pd.concat([table for fold in found for table in fold], ignore_index=True)
    tables = {"ranks": ranks, "windows": table_of(ranks, seed=cfg.seed), "peaks": peaks(ranks, seed=cfg.seed),
              "clusters": clusters(ranks, seed=cfg.seed)}
    for name, table in tables.items():
        write_table(folder.work / f"{name}.parquet", table)
    facts = {"run": manifest.name, "study": manifest.study_name, "how": how,
             "label": "ridge" if how == "ridge" else manifest.label}
    regions = {part.name: part.channels or () for part in parts if part.kind == "region"}
    write_windows(folder.work, tables, spec=next(iter(specs.values())), regions=regions, facts=facts)
    folder.finish(**facts)
    log.info("windows: %s", folder.path / "report.html")
    return folder.path


def parts_of(settings: Mapping[str, Any], specs: Sequence[SignalSpec], *, used: Sequence[SignalSpec]) -> list[Extent]:
    """Return everything that is asked for, the whole first.

    Parameters
    ----------
    settings
        ``windows`` of the configuration.
    specs
        The subjects' signals in whose epoch the windows must lie.
    used
        The subjects' signals as the run uses them: its channels.

    Raises
    ------
    ValueError
        If the signals have no time axis, channels have no known names, or no window lies within the epoch.
    """
    if any(spec.n_times == 1 for spec in specs):
        raise ValueError(f"windows: expected signals with a time axis, got one sample a trial ({specs[0].modality}). "
                         "For betas see brain2img regions.")
    asked = [("growing", Window(0.0, stop)) for stop in settings["growing"] or []]
    if settings["sliding"]:
        asked += [("sliding", window) for window in sliding(specs[0], **settings["sliding"])]
    parts = [Extent(kind, window.name, window) for kind, window in asked
             if all(window.samples(spec) is not None for spec in specs)]
    outside = [window.name for kind, window in asked if (kind, window) not in [(p.kind, p.window) for p in parts]]
    if outside:
        log.warning("windows: left out %s ms, which the epoch (%.3f to %.3f s) does not span", ", ".join(outside),
                    specs[0].times[0], specs[0].times[-1])
    if outside and not parts:
        raise ValueError(f"windows: expected some within {specs[0].times[0]:.3f} to {specs[0].times[-1]:.3f} s, got "
                         f"{', '.join(outside)} ms. Correct windows.growing and windows.sliding.")
    if settings["regions"]:
        parts += [Extent("region", name, channels=tuple(names)) for name, names in region_channels(used).items()]
    if settings["sensors"]:
        names = used[0].ch_names
        if any(spec.ch_names != names for spec in used):
            raise ValueError("windows.sensors: expected the same channels for all subjects, got different ones. Set "
                             "windows.sensors=false, or select the same channels.")
        parts += [Extent("sensor", name, channels=tuple(n for n in names if n != name)) for name in names]
    return [Extent("whole", "all"), *parts]


def scaled(encoder: Mapping[str, Any], *, n_times: int, whole: int) -> dict[str, int]:
    """Return ``bin``, ``kernel``, ``pool`` and ``stride`` of an encoder for a window of `n_times` of `whole` samples.

    Each shrinks in proportion and is at least 1 sample: tokens keep their width as long as ``bin`` can shrink, and the
    output its number of steps as long as ``stride`` can. An encoder has those of them that its YAML has.
    """
    n_bins = max(1, round(encoder.get("bin", 1) * n_times / whole))
    ratio = (n_times // n_bins) / (whole // encoder.get("bin", 1))
    found = {key: max(1, round(encoder[key] * ratio)) for key in ("kernel", "pool", "stride")
             if isinstance(encoder.get(key), int)}
    return {**found, **({"bin": n_bins} if "bin" in encoder else {})}


def _trained(run: FoldRun, parts: Sequence[Extent], *, galleries: Mapping[str, list[str]], cfg: DictConfig,
             specs: Mapping[str, SignalSpec]) -> Iterator[pd.DataFrame]:
    """Train a decoder for every part of one fold, and yield the ranks."""
    settings, config = plain(cfg.windows), run.manifest.config
    ridge = settings["ridge"] if settings["how"] == "ridge" else None
    whole = next(iter(specs.values()))
    for number, part in enumerate(parts, start=1):
        log.info("windows %d of %d: %s %s", number, len(parts), part.kind, part.name)
        changes: dict[str, Any] = {}
        encoder: dict[str, Any] = {}
        if part.channels is not None:
            changes["channels"] = list(part.channels)
        if part.window is not None:
            spec = run.prepared.specs[whole.subject]
            samples = part.window.samples(spec)
            assert samples is not None, "windows beyond the epoch are left out"
            changes["window"] = [float(spec.times[samples][0]), float(spec.times[samples][-1])]
            encoder = scaled(config.get("encoder") or {}, n_times=samples.stop - samples.start, whole=whole.n_times)
        fold = run
        if changes or ridge is not None:
            fold = train_again(run, name=f"{cfg.name}/windows/{settings['how']}_{part.kind}_{part.name}", data=changes,
                               overwrite=cfg.overwrite, ridge=ridge, encoder=encoder)
        data = fold.data()
        yield from _ranks(fold, data, _batches(data, cfg.batch_size), part, galleries=galleries)


def _masked(run: FoldRun, data: BrainData, parts: Sequence[Extent], *, galleries: Mapping[str, list[str]],
            batch_size: int) -> Iterator[pd.DataFrame]:
    """Decode one fold with all values outside of each part at 0, and yield the ranks."""
    batches, decoder = _batches(data, batch_size), run.decoder(data)
    for part in progress(parts, description="mask"):
        inside = {subject: torch.from_numpy(kept(
            n.spec, samples=part.window.samples(n.spec) if part.window else None, channels=part.channels))
            for subject, n in data.normalisers.items()}
        masked = [(items, dataclasses.replace(batch, signals={s: x * inside[s] for s, x in batch.signals.items()}))
                  for items, batch in batches]
        yield from _ranks(run, data, masked, part, galleries=galleries, decoder=decoder)


def _batches(data: BrainData, batch_size: int) -> list[tuple[pd.DataFrame, BrainBatch]]:
    """Return the test rows, repetitions averaged, in batches that stay: those of the data module reuse their memory."""
    rows = data.items("test")
    found = []
    for part in chunks(len(rows), batch_size):
        batch = data.batch(rows.iloc[part])
        found.append((rows.iloc[part], dataclasses.replace(
            batch, signals={s: x.clone() for s, x in batch.signals.items()}, targets={})))
    return found


def _ranks(run: FoldRun, data: BrainData, batches: Sequence[tuple[pd.DataFrame, BrainBatch]], part: Extent, *,
           galleries: Mapping[str, list[str]], decoder: Any = None) -> Iterator[pd.DataFrame]:
    """Yield where the seen stimulus stands among the subject's test stimuli, for every space and subject."""
    decoder = decoder or run.decoder(data)
    predicted = [decoder.predict(batch) for _, batch in batches]
    rows = pd.concat([items for items, _ in batches], ignore_index=True)
    for space in data.target_specs:
        decoded = np.concatenate([of[space] for of in predicted]).reshape(len(rows), -1)
        yield rank_rows(rows, decoded, true=partial(data.target, space), galleries=galleries).assign(
            **part.facts(), space=space, fold=run.manifest.fold, seed=run.manifest.seed)
