"""The results in words: what was run, what came out, and what to be wary of. Written from the records alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from brain2img.meaning import Meaning
from brain2img.report.reading import Member, Results
from brain2img.report.style import (
    CAPTIONS,
    CEILING,
    CONDITION_LABELS,
    CONTROLS,
    EMBEDDINGS,
    IMAGES,
    MEAN,
    STIMULI,
    Column,
    between,
    column_label,
    count,
    decoder_label,
    generator_label,
    interval,
    listing,
    modality_label,
    number,
)


@dataclass(frozen=True)
class Caveat:
    """One warning of the report.

    Parameters
    ----------
    title, text
        What it is, and what it means.
    severe
        True where the scores cannot be taken at face value.
    details
        Lines to unfold.
    """

    title: str
    text: str
    severe: bool = False
    details: tuple[str, ...] = ()


def what_was_run(results: Results, study: str) -> list[str]:
    """Return the facts of one study: recordings, trials, decoders, galleries, repetitions."""
    lines = []
    members = results.members_of(study)
    prepared = next((m.prepared for m in members if m.prepared is not None), None)
    subjects = results.subjects(study)
    simulated = "simulated " if results.is_simulated(study) else ""
    modality = modality_label(members[0].modality)
    if prepared is not None:
        specs = [prepared.specs[s] for s in subjects if s in prepared.specs] or list(prepared.specs.values())
        channels = "voxels" if specs[0].modality == "fmri" else "channels"
        text = (f"{modality} of {count(len(specs), simulated + 'subject')}: "
                f"{between(s.n_channels for s in specs)} {channels}")
        spec = specs[0]
        if spec.n_times > 1 and spec.sfreq:
            window = f"{1000 * spec.times[0]:.0f} to {1000 * spec.times[-1]:.0f} ms".replace("-", "−")
            text += f", {spec.sfreq:g} Hz, {window}"
        lines.append(text + ".")
        crossed = _cross_validated(members[0])
        if crossed or members[0].protocol in PROTOCOLS:
            lines.append(PROTOCOLS.get(members[0].protocol, crossed))
        for split, word in (("train", "Training"), ("test", "Test")) if not crossed else ():
            trials = prepared.trials[(prepared.trials["split"] == split)
                                     & prepared.trials["subject"].isin([s.subject for s in specs])]
            if trials.empty:
                continue
            per = trials.groupby("subject").agg(n=("row", "size"), stimuli=("stimulus_id", "nunique"))
            times = trials.groupby(["subject", "stimulus_id"]).size()
            shown = f", each shown {between(times)} times" if times.max() > 1 else ""
            lines.append(f"{word}: {between(per['n'])} trials of {between(per['stimuli'])} images per subject{shown}.")
    else:
        lines.append(f"{modality} of {count(len(subjects), simulated + 'subject')}.")
    names = [decoder_label(m.decoder) + (" (the baseline)" if m.is_baseline else "") for m in members]
    lines.append(f"{'Decoders' if len(names) > 1 else 'Decoder'}: {listing(names)}.")
    galleries = sorted({c.gallery for c in results.columns(study, of=EMBEDDINGS) if c.gallery > 1})
    table = results.records[(results.records["study"] == study)
                            & ~results.records["decoder"].isin([CEILING, STIMULI])]
    if galleries:
        lines.append(f"Retrieval from a gallery of {listing(str(g) for g in galleries)} images, each there once.")
    repetitions = sorted(set(table["repetitions"]) - {0})
    if repetitions:
        lines.append("Scored on single trials." if repetitions == [1] else
                     f"Signals averaged over {between(repetitions)} repetitions of a test image before decoding.")
    for of, word in ((IMAGES, "Pictures"), (CAPTIONS, "Captions")):
        makers = [generator_label(g) for g in results.generators(study, of)]
        if makers:
            n = between(table.loc[(table["of"] == of) & (table["subject"] != MEAN), "n"])
            lines.append(f"{word} by {listing(makers)}, of {n} test images per subject.")
    controls = [CONDITION_LABELS[c] for c in CONTROLS if (table["condition"] == c).any()]
    if controls:
        lines.append(f"Controls, which know nothing of the image: {listing(controls)}.")
    return lines


FEW_IMAGES = 60
"""Of fewer, leaving one out moves the mean of the others so much that scores without information fall."""
PROTOCOLS = {
    "in_subject": "In-subject: one model for each subject, trained and tested on this subject alone.",
    "leave_one_subject_out": "Leave one subject out: each subject is decoded by a model that was trained on all others "
                             "and on no test image of anybody; its signals are normalised with statistics of its own "
                             "recordings of training images, without labels."}
"""What is said of the kinds of split whose folds are subjects."""


def _cross_validated(member: Member) -> str:
    """Say how often each image was decoded where the run has several folds; else ""."""
    if member.protocol in PROTOCOLS:
        return ""  # each test image is decoded once a subject, as without folds
    fits = int(member.entry.get("n_fold_runs") or 1)
    predictions = member.predictions("decoded")
    if fits < 2 or predictions is None:
        return ""
    times = predictions.rows.groupby(["subject", "stimulus_id"]).size()
    images = predictions.rows["stimulus_id"].nunique()
    text = (f"Cross-validated in {fits} fits: {images} images, each decoded "
            f"{'once' if times.max() == 1 else f'{times.max()} times'} and never by a fit that had seen it.")
    if images <= FEW_IMAGES:
        text += (" A fit knows the mean of the other images, which lies away from the one it decodes: with so few, "
                 "what knows nothing lands below the stated chance, as the mean embedding below shows.")
    return text


def _achievement(column: Column, value: str) -> str:
    """Say what a decoder does that reaches `value` in a score."""
    gallery = f" out of {column.gallery}" if column.gallery > 1 else ""
    brain = column.direction == "brain_from_image"
    top = re.fullmatch(r"top(\d+)", column.metric)
    if top and int(top[1]) == 1:
        what = "finds the recording that belongs to an image" if brain else "picks the seen image"
        return f"{what}{gallery} in {value} of {'cases' if brain else 'trials'}"
    if top:
        what = "right recording" if brain else "seen image"
        return f"has the {what} among its first {top[1]}{gallery} in {value} of {'cases' if brain else 'trials'}"
    if column.metric == "two_way":
        return f"prefers the seen image to another one in {value} of pairs"
    if column.metric == "attribute_accuracy":
        return f"gets {value} of the attributes of the seen image right"
    where = f" in the space {column.space}" if column.space not in ("", "pixels") else ""
    return f"reaches {column.meaning.label} {value}{where}"


def is_above(low: float, high: float, chance: float, meaning: Meaning) -> bool:
    """Tell whether a whole interval is better than chance."""
    return bool(low > chance + 1e-9) if meaning.higher_is_better else bool(high < chance - 1e-9)


def is_alarming(record: Mapping[str, Any]) -> bool:
    """Tell whether a record of a control condition lies above chance where it must not."""
    if record["condition"] not in CONTROLS or record["descriptive"]:
        return False
    # a picture that fits no image in particular may honestly be nearer to each than another image's reconstruction:
    # only re-pairing the decoded pictures themselves has to give what re-pairing gives
    if record["chance_kind"] != "analytic" and record["condition"] != "shuffled":
        return False
    return is_above(record["low"], record["high"], record["chance"], Meaning.of(record))


def _versus_baseline(results: Results, study: str, member: Member, column: Column) -> str:
    """Say whether a decoder beats the baseline, by the interval of the paired difference."""
    found = results.difference(study, member.decoder, column=column)
    if found is None or not math.isfinite(found["value"]):
        return ""
    baseline = decoder_label(found["baseline"])
    meaning = column.meaning
    span = interval(found["low"], found["high"], meaning, sign=True)
    value = number(found["value"], meaning, sign=True)
    paired = f"paired difference {value}" + (f", 95 % interval {span}" if span else "")
    low, high = sorted((meaning.sign * found["low"], meaning.sign * found["high"]))
    name = decoder_label(member.decoder)
    if not span:
        return f"Against {baseline}: {paired}; without an interval nothing follows from it."
    better = "" if meaning.higher_is_better else " (lower is better)"
    if low > 0:
        return f"{name} beats {baseline}: {paired}{better}."
    if high < 0:
        return f"{name} does worse than {baseline}: {paired}{better}."
    return f"{name} does not beat {baseline}: {paired}{better}, so no difference is shown."


def main_result(results: Results, study: str) -> list[str]:
    """Return the result of one study: a first sentence with the numbers, then what qualifies it."""
    column = results.headline(study)
    members = results.members_of(study)
    if column is None:
        head = results.main(study).headline["metric"]
        if any(c.metric == head and results.is_circular(study, c) for c in results.columns(study)):
            label = next(c.meaning.label for c in results.columns(study) if c.metric == head)
            return [f"{label} is circular here, so it is no result, and no other headline was chosen: see "
                    "the warnings."]
        return ["The headline score is missing from the records."]
    lines = []
    subjects = results.subjects(study)
    who = (f"From {modality_label(members[0].modality)} of "
           f"{count(len(subjects), ('simulated ' if results.is_simulated(study) else '') + 'subject')}")
    ceiling = results.record(study, CEILING, column=column)
    baseline = results.record(study, results.baseline, column=column)
    for member in [m for m in members if not m.is_baseline] or members[:1]:
        record = results.record(study, member.decoder, column=column)
        name = decoder_label(member.decoder)
        if record is None or not math.isfinite(record["value"]):
            lines.append(f"{name} has no score for {column.meaning.label}.")
            continue
        meaning = column.meaning
        notes = []
        span = interval(record["low"], record["high"], meaning)
        if span:
            notes.append(f"95 % interval {span}")
        if math.isfinite(record["chance"]):
            notes.append(f"chance {number(record['chance'], meaning)}")
        # where chance is found by re-pairing, one guess for every image can be the harder mark
        guess = None if record["chance_kind"] == "analytic" else results.record(
            study, member.decoder, column=column, condition="mean")
        if guess is not None and math.isfinite(guess["value"]):
            notes.append(f"the mean for every image {number(guess['value'], meaning)}")
        if baseline is not None and not member.is_baseline:
            notes.append(f"{decoder_label(results.baseline)} {number(baseline['value'], meaning)}")
        if ceiling is not None:
            notes.append(f"{decoder_label(CEILING)} {number(ceiling['value'], meaning)}")
        if record["repetitions"] > 1:
            notes.append(f"{record['repetitions']} repetitions averaged")
        if not meaning.higher_is_better:
            notes.append("lower is better")
        start = who if not lines else "From the same recordings"
        lines.append(f"{start}, {name} {_achievement(column, number(record['value'], meaning))}"
                     + (f" ({'; '.join(notes)})" if notes else "") + ".")
        if span and math.isfinite(record["chance"]) and not is_above(record["low"], record["high"], record["chance"],
                                                                     meaning):
            lines.append(f"This is not above chance: it shows no information from the brain in {name}'s output.")
        elif span and guess is not None and not is_above(record["low"], record["high"], guess["value"], meaning):
            lines.append("This is no better than giving the mean for every image.")
        if not member.is_baseline and baseline is not None:
            lines.append(_versus_baseline(results, study, member, column)
                         or f"No paired difference to {decoder_label(results.baseline)} was computed.")
    return lines


def warnings_of(results: Results) -> list[Caveat]:
    """Return what a reader has to know before believing the scores, the gravest first."""
    found = [*_controls(results), *_above_ceiling(results)]
    table = results.records
    circular = table[table["circular"] & (table["condition"] == "decoded")]
    if len(circular):
        names = listing(sorted({f"{r.label} of {r.of}{f' in {r.space}' if r.space else ''}"
                                for r in circular.itertuples()}))
        found.append(Caveat("Circular scores", f"Marked ↻ in the tables: {names}. The network behind this score is "
                              "also a target of the decoder and a condition of what made the pictures, which can raise "
                              "it without any better reading of the brain. Never the headline."))
    if table["transductive"].any():
        names = listing(sorted(set(table.loc[table["transductive"], "label"])))
        queries = between(table.loc[table["transductive"], "n"])
        found.append(Caveat("Transductive scores", f"Columns headed “transductive” ({names}) use the other test "
                              f"queries of the subject, {queries} without their labels, as well, which a decoder of "
                              "single recordings cannot; compare them with each other only."))
    bare = [s for s in results.studies
            if not ((table["study"] == s) & table["condition"].isin(CONTROLS)).any()]
    if bare:
        found.append(Caveat("No control condition", f"{listing(bare)}: no noise, shuffled or mean condition was "
                              "scored, so only the stated chance tells what comes without a brain."))
    return found


def _controls(results: Results) -> list[Caveat]:
    table = results.records[results.records["condition"].isin(CONTROLS)]
    table = table[~table["descriptive"]]
    table = table[np.isfinite(table["chance"]) & np.isfinite(table["low"]) & np.isfinite(table["high"])]
    if table.empty:
        return []
    above = table[[is_alarming(r._asdict()) for r in table.itertuples()]]
    if above.empty:
        return []

    def line(r: Any) -> str:
        column = Column.of_line(r._asdict())
        head, sub = column_label(column)
        who = "mean over subjects" if r.subject == MEAN else r.subject
        by = f" by {generator_label(r.generator)}" if r.generator else ""
        return (f"{r.study}, {who}, {decoder_label(r.decoder)}{by}, {CONDITION_LABELS[r.condition]}: {head} "
                f"{f'({sub}) ' if sub else ''}{number(r.value, column.meaning)}, "
                f"interval {interval(r.low, r.high, column.meaning)}, chance {number(r.chance, column.meaning)}")

    # one interval in forty lies above by luck: what alarms is more than twice as many, of all rows or of the means
    groups = [(above, table), (above[above["subject"] == MEAN], table[table["subject"] == MEAN])]
    severe = any(len(found) > 0.05 * len(of) for found, of in groups)
    above = above.assign(first=above["subject"] != MEAN).sort_values("first", kind="stable")
    meaning = ("Something other than the brain raises these scores: a leak, a gallery that gives answers away, or a "
               "wrong chance level." if severe else "So few are no sign of a leak.")
    return [Caveat("Control row above chance",
                     f"Of {len(table)} control scores, {len(above)} {'has' if len(above) == 1 else 'have'} a 95 % "
                     "interval that lies wholly on the good side of chance; about "
                     f"{max(1, round(0.025 * len(table)))} would by luck alone. {meaning}",
                     severe=severe, details=tuple(line(r) for r in above.itertuples()))]


def _above_ceiling(results: Results) -> list[Caveat]:
    lines = []
    for study in results.studies:
        for column in results.columns(study, of=EMBEDDINGS):
            ceiling = results.record(study, CEILING, column=column)
            if ceiling is None or column.transductive or not math.isfinite(ceiling["value"]):
                continue
            best = ceiling["high"] if math.isfinite(ceiling["high"]) else ceiling["value"]
            for member in results.members_of(study):
                record = results.record(study, member.decoder, column=column)
                if record is not None and column.meaning.higher_is_better and record["low"] > best + 1e-9:
                    lines.append(f"{study}, {decoder_label(member.decoder)}: {column.meaning.label} "
                                 f"{number(record['value'], column.meaning)}, "
                                 f"{decoder_label(CEILING)} {number(ceiling['value'], column.meaning)}")
    if not lines:
        return []
    return [Caveat("Score above the ceiling", "No decoder can do better than the ideal observer, who knows how the "
                     "recordings were made: the ceiling is wrong, or test images leaked.", severe=True,
                     details=tuple(lines))]
