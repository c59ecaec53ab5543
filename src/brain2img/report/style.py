"""How scores are named, written and coloured: the same in every table and figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brain2img.meaning import Meaning

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
MADE_METRICS = ("two_way", "attribute_accuracy/kind", "attribute_accuracy/colour", "attribute_accuracy", "pixcorr",
                "pcc", "ssim", "mse", "named_kind_and_colour", "named_kind", "named_colour", "bleu4", "rougeL")
"""Scores of pictures and captions in the order in which tables and sentences name them; others follow."""
DIRECTION_LABELS = {"image_from_brain": "image from brain", "brain_from_image": "brain from image"}
PICTURE_DIRECTIONS = {"image_from_brain": "stimulus from picture", "brain_from_image": "picture from stimulus"}

# Okabe and Ito's colours, which stay apart for every kind of colour blindness
PALETTE = ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D00")
BASELINE_COLOUR, CEILING_COLOUR, GREY = "#E69F00", "#6A6A6A", "#9A9A9A"


class Column(NamedTuple):
    """One kind of score: what a column of the tables holds, and what it means."""

    space: str
    metric: str
    direction: str
    gallery: int
    transductive: bool
    of: str
    meaning: Meaning

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Column:
        """Return the kind of score that a line of a table holds."""
        return cls(str(line["space"]), str(line["metric"]), str(line["direction"]), int(line["gallery"]),
                   bool(line["transductive"]), str(line["of"]), Meaning.of(line))

    def among(self, table: pd.DataFrame) -> pd.Series:
        """Return which lines of a table are of this kind."""
        return pd.Series(np.logical_and.reduce([table[key] == getattr(self, key) for key in KIND]), index=table.index)


KIND = Column._fields[:-1]
"""Columns of a table that tell one kind of score from another."""


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
    return head_of(column.meaning), ", ".join(parts)


def head_of(meaning: Meaning) -> str:
    """Return how a score is called at the head of a column, with an arrow where low is good."""
    return meaning.label if meaning.higher_is_better else f"{meaning.label} ↓"


def number(value: float | None, meaning: Meaning, *, sign: bool = False, bare: bool = False) -> str:
    """Write a score: "43.1 %" for proportions, "0.451" for others, "–" for a missing one.

    Parameters
    ----------
    value
        The score, proportions in [0, 1]; None or NaN where it is missing.
    meaning
        What it means.
    sign
        Write a plus before positive values (for differences).
    bare
        Leave out the unit.
    """
    if value is None or not math.isfinite(value):
        return "–"
    plus = "+" if sign else ""
    if meaning.unit == "%":
        text = f"{100 * value:{plus}.1f}"
        text = text[:-2] if text.endswith(".0") else text
        unit = "" if bare else (" points" if sign else " %")
    else:
        text, unit = f"{value:{plus}.{meaning.decimals}f}", f" {meaning.unit}" if meaning.unit and not bare else ""
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−") + unit


def interval(low: float | None, high: float | None, meaning: Meaning, *, sign: bool = False) -> str:
    """Write an interval, "40.1–46 %" or "−1.2 to 2.2 points"; "" where it is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    dash = " to " if sign or min(low, high) < 0 else "–"
    return number(low, meaning, sign=sign, bare=True) + dash + number(high, meaning, sign=sign)


def with_interval(line: Mapping[str, Any], meaning: Meaning, *, key: str = "value", ends: tuple[str, str] = (
        "low", "high"), sign: bool = False) -> str:
    """Write the score of a line of a table with its interval, "43.1 % [40.1–46 %]"."""
    low, high = (line[end] for end in ends)
    return f"{number(line[key], meaning, sign=sign)} [{interval(low, high, meaning, sign=sign)}]"


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


def colours(decoders: Sequence[str], *, baseline: str) -> dict[str, str]:
    """Return one colour for every decoder; the baseline and the ceiling keep theirs in every report."""
    fixed = {baseline: BASELINE_COLOUR, CEILING: CEILING_COLOUR}
    others = [d for d in dict.fromkeys(decoders) if d not in fixed]
    return {**fixed, **{d: PALETTE[i % len(PALETTE)] for i, d in enumerate(others)}}
