"""From row-level scores to the records of ``summary.json``: means, intervals, chance, and differences to a baseline."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from brain2img.meaning import MEANING
from brain2img.metrics.intervals import Resampler, quantiles, wilson

KEYS = ["study", "subject", "modality", "decoder", "condition", "of", "generator", "space", "metric", "direction",
        "gallery", "repetitions", "transductive", "circular"]
"""`of` says what was scored ("embeddings", "images" or "captions"), `generator` the key of what made it, or ""."""
RECORD = [*KEYS, *MEANING, "value", "low", "high", "n", "chance", "chance_kind"]
MEAN = "mean"

log = logging.getLogger(__name__)


def _plain(value: Any) -> Any:
    """Return a JSON type: NaN and missing become None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value


def _need(table: pd.DataFrame, columns: list[str], *, what: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise ValueError(f"{what}: expected columns {columns}, got none of the name {missing}. "
                         "Run the evaluate stage again with overwrite=true.")


def _groups(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the keys and the rows of every group, in order of appearance."""
    for values, group in table.groupby(keys, sort=False, dropna=False, observed=True):
        yield dict(zip(keys, values, strict=True)), group


def _meaning(group: pd.DataFrame) -> dict[str, Any]:
    """Return what the scores of a group mean, which all of them say alike."""
    return {key: _plain(value) for key, value in group.iloc[0][list(MEANING)].items()}


def _matrix(group: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the mean value of every stimulus (sorted columns) for each value of `column`; NaN where it has none."""
    (row, rows), (place, stimuli) = (pd.factorize(group[name], sort=True) for name in (column, "stimulus_id"))
    flat, size = row * len(stimuli) + place, len(rows) * len(stimuli)
    counts = np.bincount(flat, minlength=size)
    sums = np.bincount(flat, weights=group["value"], minlength=size)
    means = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
    return pd.DataFrame(means.reshape(len(rows), len(stimuli)), index=rows, columns=stimuli)


def _mean_over(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return resampled means over stimuli, then over subjects.

    Parameters
    ----------
    values
        ``(subjects, stimuli)``, NaN where a subject has no such stimulus.
    counts
        ``(resamples, stimuli)`` how often each is drawn, the same stimuli for all subjects.
    """
    there = ~np.isnan(values)
    drawn = counts @ there.T.astype(np.float32)
    sums = counts @ np.where(there, values, 0.0).T
    # a subject of whose stimuli none was drawn does not count in that resample
    of_subject = np.divide(sums, drawn, out=np.zeros_like(sums), where=drawn > 0)
    return of_subject.sum(axis=1) / np.maximum((drawn > 0).sum(axis=1), 1)


def _prepared(scores: pd.DataFrame) -> pd.DataFrame:
    _need(scores, [*KEYS, *MEANING, "stimulus_id", "value"], what="scores")
    broken = scores[~np.isfinite(scores["value"].to_numpy(dtype=float))]
    if len(broken):
        first = broken.iloc[0]
        raise ValueError(f"scores of metric {first['metric']!r}, subject {first['subject']!r}, decoder "
                         f"{first['decoder']!r}: expected finite values, got NaN or infinity in {len(broken)} rows. "
                         "Look at the predictions of this decoder.")
    scores = scores.assign(stimulus_id=scores["stimulus_id"].astype(str), value=scores["value"].astype(float))
    if "proportion" not in scores:
        scores["proportion"] = False
    return scores


def records(scores: pd.DataFrame, chances: pd.DataFrame, *, generator: np.random.Generator,
            confidence: float = 0.95) -> list[dict[str, Any]]:
    """Return one record per group of scores, and one of the mean over subjects where there are several.

    Parameters
    ----------
    scores
        One line per decoded row and score: the columns `KEYS` and `MEANING`, stimulus_id, value, and proportion
        (whether the interval is Wilson's; else a bootstrap over stimuli). Rows of the same stimulus are averaged first.
    chances
        One line per group: the columns `KEYS` (gallery may be missing), chance and chance_kind.
    generator
        Source of randomness of the bootstrap; the result does not depend on the order of rows.
    confidence
        Of the intervals.

    Returns
    -------
    list of dict
        The keys `RECORD` in JSON types; `n` is the number of stimuli. Records of ``subject="mean"`` average the
        subjects; their interval resamples the same stimuli for all of them, and says nothing about other subjects;
        where all are right or all wrong it is Wilson's, of as many stimuli.

    Raises
    ------
    ValueError
        If a group has no chance level or several, or a value is NaN.
    """
    scores = _prepared(scores)
    on = [key for key in KEYS if key != "gallery" or "gallery" in chances]
    _need(chances, [*on, "chance", "chance_kind"], what="chance levels")
    levels = {tuple(map(_plain, row[:-2])): row[-2:]
              for row in chances[[*on, "chance", "chance_kind"]].itertuples(index=False, name=None)}
    if len(levels) != len(chances):
        raise ValueError(f"chance levels: expected one per group of scores, got {len(chances)} for {len(levels)} "
                         "groups. Concatenate the tables of each metric once.")
    resampler = Resampler(generator)
    done: list[dict[str, Any]] = []
    for keys, group in _groups(scores, [key for key in KEYS if key != "subject"]):
        matrix = _matrix(group, "subject")
        proportion = group.groupby("subject", sort=False)["proportion"].first()
        ours, meaning = [], _meaning(group)
        for subject in group["subject"].unique():
            values = matrix.loc[subject].dropna().to_numpy()
            record = {**{key: _plain(subject if key == "subject" else keys[key]) for key in KEYS}, **meaning}
            level = levels.get(tuple(record[key] for key in on))
            if level is None:
                raise ValueError(f"chance level: expected one for { {key: record[key] for key in on} }, got none. "
                                 "The metric's `chance` has to cover what its `score` returns.")
            if bool(proportion[subject]):
                low, high = wilson(values.sum(), len(values), confidence=confidence)
            else:
                low, high = quantiles(resampler.means(values), confidence=confidence)
            record.update(value=float(values.mean()), low=low, high=high, n=len(values), chance=_plain(level[0]),
                          chance_kind=_plain(level[1]))
            ours.append(record)
        done += ours
        if len(ours) > 1:
            draws = _mean_over(matrix.to_numpy(), resampler.counts(matrix.shape[1]))
            low, high = quantiles(draws, confidence=confidence)
            value = float(np.mean([r["value"] for r in ours]))
            if low == high and bool(proportion.all()):
                # all right or all wrong: a resample cannot differ, which does not make the next stimulus certain
                low, high = wilson(value * matrix.shape[1], matrix.shape[1], confidence=confidence)
            done.append({**ours[0], "subject": MEAN, "value": value, "low": low, "high": high,
                         "n": matrix.shape[1], "chance": float(np.mean([r["chance"] for r in ours]))})
    if any(record["n"] == 1 for record in done):
        log.warning("some scores come from a single stimulus: their bootstrap intervals have no width")
    return [{key: record[key] for key in RECORD} for record in done]


def differences(scores: pd.DataFrame, *, baseline: str, generator: np.random.Generator, condition: str = "decoded",
                confidence: float = 0.95) -> list[dict[str, Any]]:
    """Return the paired difference of every decoder to the decoder `baseline`, stimulus by stimulus.

    Parameters
    ----------
    scores
        As for `records`.
    baseline
        Name of a decoder. Groups in which it was not scored are left out, with a warning.
    generator
        Source of randomness of the bootstrap.
    condition
        The condition that is compared.
    confidence
        Of the intervals.

    Returns
    -------
    list of dict
        The keys of `records` but for the chance level, and `baseline`. `value` is decoder minus baseline in the
        metric's unit (for "mse" a negative one is the better), over the stimuli that both have; `n` is their number.
        ``subject="mean"`` averages the subjects that have both, where there are several.

    Raises
    ------
    ValueError
        If no score of `condition` has this decoder.
    """
    scores = _prepared(scores)
    scores = scores[scores["condition"] == condition]
    there = sorted(map(str, scores["decoder"].unique()))
    if baseline not in there:
        raise ValueError(f"baseline: expected one of the decoders {there} of condition {condition!r}, got "
                         f"{baseline!r}. Predict with it, or name another one.")
    resampler = Resampler(generator)
    done: list[dict[str, Any]] = []
    alone: dict[tuple[str, ...], list[str]] = {}  # place and decoders -> metrics without the baseline
    for keys, group in _groups(scores, [key for key in KEYS if key not in ("subject", "decoder")]):
        matrices = {decoder: _matrix(group[group["decoder"] == decoder], "subject")
                    for decoder in group["decoder"].unique()}
        base = matrices.pop(baseline, None)
        if base is None:
            place = " ".join(str(_plain(keys[key])) for key in ("study", "space") if _plain(keys[key]))
            alone.setdefault((place, *sorted(matrices)), []).append(keys["metric"])
            continue
        meaning = _meaning(group)
        for decoder, matrix in matrices.items():
            gap = (matrix - base).reindex([s for s in matrix.index if s in base.index])
            gap = gap.dropna(how="all", axis=0).dropna(how="all", axis=1)
            rows = [(subject, gap.loc[[subject]].dropna(axis=1)) for subject in gap.index]
            if len(rows) > 1:
                rows.append((MEAN, gap))
            for subject, table in rows:
                values = table.to_numpy()
                low, high = quantiles(_mean_over(values, resampler.counts(values.shape[1])), confidence=confidence)
                full = {**keys, "subject": subject, "decoder": decoder}
                done.append({**{key: _plain(full[key]) for key in KEYS}, **meaning, "baseline": baseline,
                             "value": float(np.nanmean(values, axis=1).mean()), "low": low, "high": high,
                             "n": values.shape[1]})
    for (place, *decoders), metrics in alone.items():
        log.warning("%s: no difference of %s to %s in %s: the baseline was not scored there", place,
                    " and ".join(decoders), baseline, ", ".join(dict.fromkeys(metrics)))
    return done
