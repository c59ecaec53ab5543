"""How scores are named, written and coloured: the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

BASELINE = "ridge"
CEILING = "ceiling"
CONTROLS = ("noise", "shuffled", "mean")
CONDITIONS = ("decoded", *CONTROLS, "true")
MEAN = "mean"
"""Name of the subject under which means over subjects stand."""

CONDITION_LABELS = {
    "decoded": "decoded", "noise": "noise input", "shuffled": "shuffled pairs", "mean": "mean embedding",
    "true": "true embedding"}
MODALITY_LABELS = {"fmri": "fMRI", "eeg": "EEG", "meg": "MEG", "mixed": "recordings of several modalities"}
DECODER_LABELS = {"mindbridge": "MindBridge", "atm": "ATM", CEILING: "ideal observer"}
METRIC_LABELS = {
    "top1": "top-1", "top5": "top-5", "two_way": "two-way", "fifty_way": "50-way", "pixcorr": "PixCorr",
    "ssim": "SSIM", "mse": "MSE", "pcc": "PCC", "attribute_accuracy": "attributes right"}
PERCENT = ("top", "two_way", "fifty_way", "attribute_accuracy", "accuracy")
LOWER_IS_BETTER = ("mse", "rmse", "mae", "lpips")
DIRECTION_LABELS = {"image_from_brain": "image from brain", "brain_from_image": "brain from image"}

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


def decoder_label(decoder: str) -> str:
    """Return how a decoder is called in text."""
    return DECODER_LABELS.get(decoder, decoder.replace("_", " "))


def modality_label(modality: str) -> str:
    """Return how a modality is written."""
    return MODALITY_LABELS.get(modality, modality)


def metric_label(metric: str) -> str:
    """Return how a metric is written."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


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
        parts.append(f"in {column.space}")
    if column.direction:
        parts.append(DIRECTION_LABELS.get(column.direction, column.direction))
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
