"""How scores are named, written and coloured: the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BASELINE = "ridge"
CEILING = "ceiling"
STIMULI = "stimuli"
"""Name under which the scores of the stimuli themselves stand, as if they had been reconstructed without a fault."""
EMBEDDINGS, IMAGES, CAPTIONS = "embeddings", "images", "captions"
"""What a score is about: what was decoded, or the pictures or captions made from that."""
CONTROLS = ("noise", "shuffled", "mean")
CONDITIONS = ("decoded", *CONTROLS, "true")
MEAN = "mean"
"""Name of the subject under which means over subjects stand."""

CONDITION_LABELS = {
    "decoded": "decoded", "noise": "noise input", "shuffled": "shuffled pairs", "mean": "mean embedding",
    "true": "true embedding"}
MODALITY_LABELS = {"fmri": "fMRI", "eeg": "EEG", "meg": "MEG", "mixed": "recordings of several modalities"}
DECODER_LABELS = {
    "mindbridge": "MindBridge", "atm": "ATM", "vit3d": "ViT3D", "sttm": "STTM", "mindeye": "MindEye",
    "takagi": "Takagi & Nishimoto", "brain-diffuser": "Brain-Diffuser", "brain captioning": "Brain Captioning",
    CEILING: "ideal observer", STIMULI: "the stimuli themselves"}
GENERATOR_LABELS = {
    "kandinsky": "latent diffusion", "kandinsky_low_level": "latent diffusion, low-level start",
    "pixels": "decoded pixels", "prefix": "prefix language model", "nearest_caption": "nearest training caption"}
SPACE_LABELS = {"judge": "the judge", "judge_attributes": "the judge"}
METRIC_LABELS = {
    "top1": "top-1", "top5": "top-5", "two_way": "two-way", "fifty_way": "50-way", "pixcorr": "PixCorr",
    "ssim": "SSIM", "mse": "MSE", "pcc": "PCC", "attribute_accuracy": "attributes right",
    "attribute_accuracy/kind": "object right", "named_kind": "object named",
    "named_kind_and_colour": "object and colour named", "rouge1": "ROUGE-1", "rougeL": "ROUGE-L",
    **{f"bleu{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}}
MADE_METRICS = ("two_way", "attribute_accuracy/kind", "attribute_accuracy/colour", "attribute_accuracy", "pixcorr",
                "pcc", "ssim", "mse", "named_kind_and_colour", "named_kind", "named_colour", "bleu4", "rougeL")
"""Scores of pictures and captions in the order in which tables and sentences name them; others follow."""
PERCENT = ("top", "two_way", "fifty_way", "attribute_accuracy", "accuracy", "named")
LOWER_IS_BETTER = ("mse", "rmse", "mae", "lpips", "hubness")
DIRECTION_LABELS = {"image_from_brain": "image from brain", "brain_from_image": "brain from image"}
PICTURE_DIRECTIONS = {"image_from_brain": "stimulus from picture", "brain_from_image": "picture from stimulus"}

# Okabe and Ito's colours, which stay apart for every kind of colour blindness
PALETTE = ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D00")
RIDGE_COLOUR, CEILING_COLOUR, GREY = "#E69F00", "#6A6A6A", "#9A9A9A"


class Column(NamedTuple):
    """One kind of score: what a column of the tables holds."""

    space: str
    metric: str
    direction: str
    gallery: int
    transductive: bool
    of: str = EMBEDDINGS


def decoder_label(decoder: str) -> str:
    """Return how a decoder is called in text."""
    return DECODER_LABELS.get(decoder, decoder.replace("_", " "))


def generator_label(generator: str) -> str:
    """Return how a reconstructor or captioner is called in text, by its key."""
    return GENERATOR_LABELS.get(generator, generator.replace("_", " "))


def space_label(space: str) -> str:
    """Return how a space is called in text."""
    return SPACE_LABELS.get(space, space)


def modality_label(modality: str) -> str:
    """Return how a modality is written."""
    return MODALITY_LABELS.get(modality, modality)


def metric_label(metric: str) -> str:
    """Return how a metric is written."""
    if metric in METRIC_LABELS:
        return METRIC_LABELS[metric]
    for start, word in (("attribute_accuracy/", "right"), ("named_", "named")):
        if metric.startswith(start):
            return f"{metric.removeprefix(start).replace('_', ' ')} {word}"
    return metric.replace("_", " ")


def is_percent(metric: str) -> bool:
    """Tell whether a metric is a proportion that is written in per cent."""
    return metric.startswith(PERCENT)


def is_lower_better(metric: str) -> bool:
    """Tell whether a small value is a good one."""
    return metric.startswith(LOWER_IS_BETTER)


def column_label(column: Column) -> tuple[str, str]:
    """Return the two lines at the head of a column: the metric, and what it refers to."""
    parts = []
    if column.gallery > 1:
        parts.append(f"of {column.gallery}")
    if column.space:
        # features of a picture are what a network sees in it; a decoded embedding lies in the space itself
        parts.append(f"by {space_label(column.space)}" if column.of == IMAGES else f"in {column.space}")
    if column.direction and (column.of, column.direction) != (IMAGES, "image_from_brain"):
        labels = PICTURE_DIRECTIONS if column.of == IMAGES else DIRECTION_LABELS
        parts.append(labels.get(column.direction, column.direction))
    if column.transductive:
        parts.append("transductive")
    arrow = " ↓" if is_lower_better(column.metric) else ""
    return metric_label(column.metric) + arrow, ", ".join(parts)


def number(value: float | None, *, metric: str, sign: bool = False, bare: bool = False) -> str:
    """Write a score: "43.1 %" for proportions, "0.451" for others, "–" for a missing one.

    Parameters
    ----------
    value
        The score, proportions in [0, 1]; None or NaN where it is missing.
    metric
        Its metric.
    sign
        Write a plus before positive values (for differences).
    bare
        Leave out the unit.
    """
    if value is None or not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    if is_percent(metric):
        text = f"{100 * value:{plus}.1f}"
        text = text[:-2] if text.endswith(".0") else text
        unit = "" if bare else (" points" if sign else " %")
    else:
        digits = 4 if is_lower_better(metric) else 3
        text, unit = f"{value:{plus}.{digits}f}", ""
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−") + unit


def interval(low: float | None, high: float | None, *, metric: str, sign: bool = False) -> str:
    """Write an interval, "40.1–46 %" or "−1.2 to 2.2 points"; "" where it is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    dash = " to " if sign or min(low, high) < 0 else "–"
    return number(low, metric=metric, sign=sign, bare=True) + dash + number(high, metric=metric, sign=sign)


def count(n: int, noun: str, *, plural: str | None = None) -> str:
    """Write "1 subject", "3 subjects", "12 000 trials"."""
    return f"{n:,} ".replace(",", " ") + (noun if n == 1 else plural or f"{noun}s")


def listing(words: Iterable[str]) -> str:
    """Write "a", "a and b", "a, b and c"."""
    found = list(words)
    return found[0] if len(found) == 1 else ", ".join(found[:-1]) + f" and {found[-1]}" if found else ""


def between(values: Iterable[int]) -> str:
    """Write "40" or "40 to 80"."""
    found = sorted(set(values))
    return "" if not found else str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def colours(decoders: Sequence[str]) -> dict[str, str]:
    """Return one colour for every decoder; ridge and the ceiling keep theirs in every report."""
    fixed = {BASELINE: RIDGE_COLOUR, CEILING: CEILING_COLOUR}
    others = [d for d in dict.fromkeys(decoders) if d not in fixed]
    return {**fixed, **{d: PALETTE[i % len(PALETTE)] for i, d in enumerate(others)}}
