"""A look at a study before anything long is run: what is understood, missing and wrong, and what to type next."""

from __future__ import annotations

import logging
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from brain2img.artifacts import safe_name
from brain2img.data.inspection import FEW_STIMULI, Inspection, few_stimuli, inspect
from brain2img.data.prepared import PreparedStudy
from brain2img.report.inspection import write_inspection
from brain2img.stages.build import plain
from brain2img.stages.prepare import prepare
from brain2img.stages.workspace import outputs

log = logging.getLogger(__name__)

#: Optimizer steps that the demo's deep decoders need at least, and the samples that the kernels of ATM there span.
_STEPS, _ATM_SAMPLES, _ATM_RATE = 200, 22, 62.5
_FOLDS = 6


def check(cfg: DictConfig) -> Path:
    """Prepare the study that ``study`` describes, unless that is done, and say what is in it; returns the page.

    Writes ``check/<study>/check.html`` and ``check.png``, and prints the command that runs the whole chain on it, which
    finds the study prepared. What cannot be prepared ends with the message of what to correct.

    Raises
    ------
    ValueError
        If raw files are missing, damaged or contradict each other, or a stimulus crosses splits.
    """
    study = PreparedStudy(prepare(cfg))
    log.info("look at %s", study.folder)
    found = inspect(study)
    given: list[str] = plain(cfg.get("typed")) or []
    command, advice = whole_chain(study, found, given=given), _advice(study)
    folder = outputs(cfg) / "check" / safe_name(run_name(study, given=given))
    folder.mkdir(parents=True, exist_ok=True)
    page = write_inspection(folder, study, found, command=command, advice=advice)
    for title, lines in (("What is there", found.understood), ("What looks wrong, or needs a thought", found.wrong),
                         ("What is missing, and what it costs", found.missing), ("Before you run it", advice)):
        if lines:
            log.info("\n%s:\n%s", title, "\n".join(f"- {line}" for line in lines))
    log.info("\nFigures: %s", page)
    Console().print(f"\nThe whole chain, up to the report:\n{' '.join(command)}", soft_wrap=True, markup=False,
                    highlight=False)
    return page


def run_name(study: PreparedStudy, *, given: Sequence[str]) -> str:
    """Return a name for the results: that of the command line, or of the study, or of the folder of its files."""
    values = {key: value for key, _, value in (o.lstrip("+").partition("=") for o in given)}
    if values.get("name"):
        return values["name"]
    if study.name in (values.get("study"), "arrays", "bids") and values.get("raw"):
        folder = Path(values["raw"].strip("'\"")).expanduser().resolve().name
        return re.sub(r"[^A-Za-z0-9_-]+", "_", folder) or study.name
    return study.name


def whole_chain(study: PreparedStudy, found: Inspection, *, given: Sequence[str]) -> list[str]:
    """Return the words of the command that runs the demo's decoders of the study's modality up to the report.

    Parameters
    ----------
    study, found
        The study and what was found in it.
    given
        Overrides of the command line that was used for `check`: they stay.
    """
    keys = {override.lstrip("+~").partition("=")[0] for override in given}
    words = [override for override in given if not override.startswith(("experiment=", "overwrite="))]
    spec = next(iter(study.specs.values()))
    timeless = spec.modality != "fmri" and spec.n_times == 1
    experiment = f"own_data/{spec.modality}_ridge" if timeless else "own_data"
    added: list[str] = [f"name={run_name(study, given=given)}"]
    if timeless:
        added.append("data.noise_normalise=false")
    elif spec.n_times > 1:
        if spec.times[0] < -1e-6 and spec.times[-1] > 0:
            added.append(f"data.window=[0,{spec.times[-1]:g}]")
        added += _atm(study)
    if found.constant:
        added.append(f"data.exclude_channels=[{','.join(found.constant)}]")
    n_stimuli = study.trials["stimulus_id"].nunique()
    if few_stimuli(study) and not any(key.startswith("split") for key in keys):
        added += (["split.kind=leave_one_stimulus_out"] if n_stimuli <= FEW_STIMULI // 2 else
                  ["split.kind=kfold", f"split.n_folds={_FOLDS}"])
    n_train = int((study.trials["split"] != "test").sum())
    batch = 2 ** max(3, math.floor(math.log2(max(8, n_train / 4))))
    if batch < 128:
        added += [f"trainer.batch_size={batch}", f"trainer.max_epochs={math.ceil(_STEPS / max(1, n_train // batch))}"]
    words += [word for word in added if word.partition("=")[0].lstrip("+") not in keys]
    return ["brain2img", "pipeline", f"experiment={experiment}", *map(shlex.quote, words)]


def _atm(study: PreparedStudy) -> list[str]:
    """Return settings with which ATM's kernels fit the rate and the window; those of the demo where they do."""
    spec = next(iter(study.specs.values()))
    rate = spec.sfreq or _ATM_RATE
    n_times = int((spec.times >= -1e-6).sum()) if spec.times[0] < 0 < spec.times[-1] else spec.n_times
    width = max(1, round(rate / _ATM_RATE))
    while width > 1 and n_times // width < _ATM_SAMPLES:
        width -= 1
    # ++, since the encoder of a member that has none of these settings is not asked
    settings = [] if width == 4 else [f"++encoder.bin={width}"]
    if (short := n_times // width) < _ATM_SAMPLES:
        settings += [f"++encoder.kernel={max(1, short // 5)}", f"++encoder.pool={max(1, short // 3)}",
                     "++encoder.stride=1", f"++encoder.n_heads={1 if short < 8 else 4}"]
    return settings


def _advice(study: PreparedStudy) -> list[str]:
    head = "clip_linear_contrastive" if study.modality == "fmri" else "clip_projector"
    lines = ["The small backbones of the demo know drawn scenes only, 64 x 64 pixels: with photographs the command "
             "runs, but hardly anything can be decoded in their spaces. Published ones are downloaded at first use: "
             f"for CLIP ViT-H/14 (3.9 GB) add \"space=[clip_vit_h14]\" \"head=[{head}]\" "
             "\"reconstructor=[nearest_training_image]\" \"captioner=[nearest_caption]\" "
             "\"space@metric_space=[]\"."]
    if few_stimuli(study):
        n = study.trials["stimulus_id"].nunique()
        lines.append(f"Every stimulus is decoded by decoders that have not seen it, and sought among all {n}: top-1 by "
                     f"chance is {100 / n:.3g} %, two-way 50 %. Each stimulus counts once, however often it was "
                     "shown, so that intervals are as wide as so few stimuli make them.")
    if study.modality == "mixed" or len({(s.n_times, s.sfreq, s.ch_names) for s in study.specs.values()}) > 1:
        lines.append("Subjects differ in channels, rate or window: a deep decoder that all share needs the same. "
                     "Choose common ones with data.channels=[...], or one subject with data.subjects=[...].")
    return lines
