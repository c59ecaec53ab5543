"""Accuracy over windows and regions: tables, times of peaks, onset; used by the windows stage, no plug-in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from brain2img.metrics.cluster_permutation import FEWEST, clusters_above
from brain2img.metrics.intervals import Resampler, by_stimulus, quantiles
from brain2img.metrics.ranking import RankScore

METRICS = ("top1", "top5", "two_way")
MEAN = "mean"
"""Name of the subject under which means over subjects stand."""
PART = ["kind", "name", "start", "stop", "n_channels", "space"]


def table_of(ranks: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return the accuracy in every window and region, of each subject and on average.

    Parameters
    ----------
    ranks
        One line per part (kind, name, start, stop, n_channels), space, subject and stimulus, with its rank, see
        `ranking.rank_table`.
    seed
        Of the bootstrap.

    Returns
    -------
    pandas.DataFrame
        PART, subject ("mean" for all), metric, value, low, high (95 %, resampling stimuli), chance, gallery; of a
        "sensor" the value without it, and in drop, drop_low and drop_high what is lost, paired by stimulus.
    """
    everyone = pd.concat([ranks, ranks.assign(subject=MEAN)]) if ranks["subject"].nunique() > 1 else ranks
    lines = []
    resampler = Resampler(np.random.default_rng([seed, 11]))  # the same resamples for all parts
    whole = {key: group for key, group in everyone[everyone["kind"] == "whole"].groupby(["space", "subject"])}
    for key, group in everyone.groupby([*PART, "subject"], sort=False, dropna=False):
        facts = dict(zip([*PART, "subject"], key, strict=True))
        stimuli = group["stimulus_id"].to_numpy()
        for metric in METRICS:
            score = RankScore.named(metric)
            values = score.values(group)
            low, high = quantiles(resampler.means(by_stimulus(values, stimuli).to_numpy()), confidence=0.95)
            line = {**facts, "metric": metric, "value": values.mean(), "low": low, "high": high,
                    "chance": score.chance(group["candidates"]).mean(), "gallery": int(group["candidates"].max())}
            if facts["kind"] == "sensor":
                of = whole[facts["space"], facts["subject"]]
                assert (of["stimulus_id"].to_numpy() == stimuli).all(), "all parts rank the same stimuli in one order"
                lost = by_stimulus(score.values(of) - values, stimuli).to_numpy()
                line["drop"] = lost.mean()
                line["drop_low"], line["drop_high"] = quantiles(resampler.means(lost), confidence=0.95)
            lines.append(line)
    return pd.DataFrame(lines)


def peaks(ranks: pd.DataFrame, *, seed: int, metric: str = "two_way") -> pd.DataFrame:
    """Return when each space is decoded best: time of the peak and of half maximum, with bootstrap intervals.

    Curves are means over subjects minus chance. Times (s) of sliding windows are their centres, of growing ones their
    ends; half maximum is where the line between the windows first crosses half of the peak on the way up to it.
    Stimuli are resampled alike for all spaces, so that differences between spaces are paired.

    Returns
    -------
    pandas.DataFrame
        kind, space, what ("peak", "half"), time, low, high, and later_than: the space to which time is a difference
        ("" for none).
    """
    lines = []
    for kind in ("growing", "sliding"):
        draws: dict[tuple[str, str], tuple[float, np.ndarray]] = {}
        for space, ends, values in curves(ranks, kind=kind, metric=metric):
            times = ends.mean(axis=1) if kind == "sliding" else ends[:, 1]
            if len(times) < 2:
                continue
            counts = Resampler(np.random.default_rng([seed, 12])).counts(len(values))
            resampled = counts @ values / len(values) - 0.5
            mean = values.mean(axis=0) - 0.5
            for what, function in (("peak", peak), ("half", half_maximum)):
                draws[space, what] = function(times, mean), np.array([function(times, curve) for curve in resampled])
        for (space, what), (time, drawn) in draws.items():
            low, high = quantiles(drawn, confidence=0.95)
            lines.append({"kind": kind, "space": space, "what": what, "time": time, "low": low, "high": high,
                          "later_than": ""})
            for (other, also), (reference, others) in draws.items():
                if also == what and other < space:
                    low, high = quantiles(drawn - others, confidence=0.95)
                    lines.append({"kind": kind, "space": space, "what": what, "time": time - reference, "low": low,
                                  "high": high, "later_than": other})
    return pd.DataFrame(lines, columns=["kind", "space", "what", "time", "low", "high", "later_than"])


def clusters(ranks: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Return when two-way identification from sliding windows lies above chance, by cluster permutation.

    The units are subjects where there are `FEWEST` or more, else stimuli (averaged over subjects), which says nothing
    about other subjects. Two-way, because it is symmetric about chance where there is nothing to decode.

    Returns
    -------
    pandas.DataFrame
        space, first_start, first_stop, last_start, last_stop (s, of the first and the last window), p, unit, n_units.
    """
    unit = "subject" if ranks["subject"].nunique() >= FEWEST else "stimulus_id"
    lines = []
    for space, ends, values in curves(ranks, kind="sliding", metric="two_way", unit=unit):
        if min(values.shape) < 2:
            continue
        for cluster in clusters_above(values, chance=0.5, seed=seed):
            (a, b), (c, d) = ends[cluster.first], ends[cluster.last]
            lines.append({"space": space, "first_start": a, "first_stop": b, "last_start": c, "last_stop": d,
                          "p": cluster.p, "unit": unit.removesuffix("_id"), "n_units": len(values)})
    return pd.DataFrame(lines, columns=["space", "first_start", "first_stop", "last_start", "last_stop", "p", "unit",
                                        "n_units"])


def curves(ranks: pd.DataFrame, *, kind: str, metric: str, unit: str = "stimulus_id"
           ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield for every space the windows of a kind: their ends ``(T, 2)`` in s, and scores ``(n, T)`` of every unit."""
    of_kind = ranks[ranks["kind"] == kind]
    of_kind = of_kind.assign(value=RankScore.named(metric).values(of_kind))
    for space, group in of_kind.groupby("space", sort=False):
        table = group.pivot_table(index=unit, columns=["start", "stop"], values="value", aggfunc="mean")
        yield str(space), np.array(table.columns.tolist(), dtype=float), table.to_numpy()


def peak(times: np.ndarray, curve: np.ndarray) -> float:
    """Return the time of the largest value; the first of several."""
    return float(times[np.argmax(curve)])


def half_maximum(times: np.ndarray, curve: np.ndarray) -> float:
    """Return when the line between the points of a curve above 0 first reaches half of its maximum.

    The first time where the curve begins above it.
    """
    half = curve.max() / 2
    i = int(np.argmax(curve >= half))
    if i == 0:
        return float(times[0])
    share = (half - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(times[i - 1] + share * (times[i] - times[i - 1]))
