"""Pictures and captions: which of their scores are shown, and what the generator adds by itself, in words."""

from __future__ import annotations

import math
from typing import Any

from brain2img.meaning import Meaning
from brain2img.report.reading import Results
from brain2img.report.style import (
    CAPTIONS,
    IMAGES,
    MADE_METRICS,
    STIMULI,
    Column,
    decoder_label,
    generator_label,
    interval,
    listing,
    number,
    space_label,
)

TOLD = ("two_way", "attribute_accuracy/kind", "pixcorr", "named_kind_and_colour")
"""Scores that sentences tell, where there are any of them."""
ALONE = ("noise", "mean")
"""Conditions in which a generator gets nothing of the brain: what it makes then is its own."""


def made_columns(results: Results, study: str, of: str) -> list[Column]:
    """Return the kinds of score of pictures or captions, those to show first in front, circular ones last."""
    head = results.headline(study)

    def place(column: Column) -> tuple[bool, bool, int]:
        order = MADE_METRICS.index(column.metric) if column.metric in MADE_METRICS else len(MADE_METRICS)
        return column != head, results.is_circular(study, column), order

    return sorted(results.columns(study, of=of), key=place)


def alone(results: Results, study: str, decoder: str, *, column: Column, generator: str | None = None
          ) -> tuple[str, dict[str, Any]] | None:
    """Return the condition without a brain in which a generator does best, and its record."""
    found = [(c, results.record(study, decoder, column=column, condition=c, generator=generator)) for c in ALONE]
    there = [(c, r) for c, r in found if r is not None and math.isfinite(r["value"])]
    return max(there, key=lambda pair: column.meaning.sign * pair[1]["value"], default=None)


def made_results(results: Results, study: str) -> list[str]:
    """Return sentences about the pictures and captions of a study: scores, the generator's own share, the ceiling."""
    lines = []
    for of, word in ((IMAGES, "Pictures"), (CAPTIONS, "Captions")):
        columns = [c for c in made_columns(results, study, of) if c.metric in MADE_METRICS and c.direction in (
            "", "image_from_brain") and not results.is_circular(study, c)]
        if not columns:
            continue
        generator = results.generators(study, of)[0]
        decoder = results.main(study).decoder
        shown = [(c, r) for c in columns if (r := results.record(study, decoder, column=c, generator=generator))
                 and math.isfinite(r["value"])]
        if not shown:
            continue
        shown = [(c, r) for c, r in shown if c.metric in TOLD] or shown[:3]
        scores = [f"{_name(c)} {number(r['value'], c.meaning)} ({_beside(r, c)})" for c, r in shown]
        lines.append(f"{word} by {generator_label(generator)} of what {decoder_label(decoder)} decoded: "
                     f"{listing(scores)}; {shown[0][1]['n']} test images per subject.")
        lines += _shares(results, study, decoder, [c for c, _ in shown], generator=generator)
        best = [f"{_name(c)} {number(r['value'], c.meaning)}" for c, _ in shown if (r := results.record(
            study, decoder, column=c, condition="true", generator=generator))]
        if best:
            lines.append(f"From the true embedding, as if decoding were perfect, it reaches {listing(best)}.")
        read = next((r for c, _ in shown if c.metric == "attribute_accuracy/kind"
                     and (r := results.record(study, STIMULI, column=c))), None)
        if read is not None:
            lines.append(f"The judge names the object of {number(read['value'], Meaning.of(read))} of the stimuli "
                         "themselves.")
    return lines


def _name(column: Column) -> str:
    by = f" by {space_label(column.space)}" if column.space else ""
    return f"{column.meaning.label}{by}"


def _beside(record: dict[str, Any], column: Column) -> str:
    span = interval(record["low"], record["high"], column.meaning)
    chance = f"chance {number(record['chance'], column.meaning)}" if math.isfinite(record["chance"]) else ""
    return "; ".join(filter(None, (span and f"95 % interval {span}", chance)))


def _shares(results: Results, study: str, decoder: str, columns: list[Column], *, generator: str) -> list[str]:
    """Say of scores without a fixed chance level what is reached without a brain, and what the baseline reaches."""
    lines = []
    for column in [c for c in columns if c.metric != "two_way"]:
        def value(record: dict[str, Any], meaning: Meaning = column.meaning) -> str:
            return number(record["value"], meaning)

        record = results.record(study, decoder, column=column, generator=generator)
        controls = [(c, results.record(study, decoder, column=column, condition=c, generator=generator))
                    for c in ALONE]
        words = {"noise": "from noise", "mean": "from the mean embedding"}
        reached = [f"{value(r)} {words[c]}" for c, r in controls if r is not None]
        if record is None or not reached:
            continue
        base = results.baseline
        other = results.record(study, base, column=column, generator=generator) if decoder != base else None
        beside = "" if other is None else (
            f" With {decoder_label(base)} in {decoder_label(decoder)}'s place it is {value(other)}.")
        lines.append(f"Of {_name(column)} {value(record)}, it reaches {listing(reached)}: so much is the generator's "
                     f"own.{beside}")
    return lines
