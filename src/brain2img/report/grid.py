"""The grid of stimuli, reconstructions and captions: some trials at random, the best, the middle and the worst."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from brain2img.artifacts import Captions, Reconstructions
from brain2img.metrics.ranking import rank_table, similarity
from brain2img.report.reading import Member, Results
from brain2img.report.style import (
    IMAGES,
    Column,
    colours,
    count,
    decoder_label,
    generator_label,
    modality_label,
    number,
)

log = logging.getLogger(__name__)

PER_GROUP = 2
RANDOM = "drawn at random"
TRUE = "from the true embedding"
_KEYS = ["subject", "stimulus_id"]


@dataclass(frozen=True)
class Tile:
    """One picture of the grid: ``(h, w, 3)`` uint8 (0..255) or None, and the word below it."""

    image: np.ndarray | None
    caption: str = ""
    right: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the grid: what it shows, and a tile for every chosen trial."""

    label: str
    sub: str
    tiles: list[Tile]
    decoder: str = ""


@dataclass(frozen=True)
class Grid:
    """A grid of one study, and how its trials were chosen.

    Parameters
    ----------
    how, reading
        How the trials were chosen, and how the lines are to be read.
    groups
        Word and number of columns: ("best", 2), ("middle", 2), ...
    trials
        Subject, stimulus and score of every column, in order.
    heads
        What stands above each column.
    colours
        Decoder -> its colour.
    """

    study: str
    title: str
    how: str
    reading: list[str]
    heads: list[str]
    groups: list[tuple[str, int]]
    trials: pd.DataFrame
    colours: Mapping[str, str]
    lines: list[Line]


def ranks(decoded: np.ndarray, gallery: np.ndarray, *, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rank the true stimulus of every decoded embedding by cosine similarity to the gallery.

    Parameters
    ----------
    decoded
        ``(n, *shape)`` decoded embeddings.
    gallery
        ``(N, *shape)`` true embeddings.
    truth
        ``(n,)`` place of the true one in the gallery.

    Returns
    -------
    rank, retrieved, similarity
        ``(n,)`` each: rank from 1 (ties get the average rank), place of the most similar gallery entry, and cosine
        similarity to the true one.
    """
    found = similarity(decoded.reshape(len(decoded), -1), gallery.reshape(len(gallery), -1), kind="cosine")
    return (rank_table(found, truth)["rank"].to_numpy(), np.nan_to_num(found, nan=-1.0).argmax(1),
            found[np.arange(len(truth)), truth])


def _retrieval(member: Member, space: str) -> pd.DataFrame | None:
    """Return the rows of the decoded predictions with rank, retrieved stimulus, similarity and gallery size."""
    return member.kept(f"retrieval {space}", lambda: _retrieve(member, space))


def _retrieve(member: Member, space: str) -> pd.DataFrame | None:
    decoded, true = member.predictions("decoded"), member.predictions("true")
    if decoded is None or true is None or space not in decoded.specs or space not in true.specs:
        return None
    rows = decoded.rows.copy()
    rows["rank"], rows["similarity"], rows["retrieved"], rows["gallery"] = np.nan, np.nan, "", 0
    for subject in dict.fromkeys(rows["subject"]):
        of_subject = np.flatnonzero(rows["subject"] == subject)
        theirs = np.flatnonzero(true.rows["subject"] == subject)
        ids = true.rows["stimulus_id"].to_numpy()[theirs]
        ids, first = np.unique(ids, return_index=True)
        truth = pd.Index(ids).get_indexer(rows["stimulus_id"].to_numpy()[of_subject])
        if (truth < 0).any() or len(ids) < 2:
            log.warning("report: the true embeddings of %s lack stimuli of subject %s; retrieval is left out of the "
                        "grid", member.decoder, subject)
            return None
        rank, retrieved, closeness = ranks(
            decoded.embeddings(space, of_subject), true.embeddings(space, theirs[first]), truth=truth)
        columns = [rows.columns.get_loc(c) for c in ("rank", "similarity", "retrieved", "gallery")]
        for column, values in zip(columns, (rank, closeness, ids[retrieved], len(ids)), strict=True):
            rows.iloc[of_subject, column] = values
    return rows


def score_trials(results: Results, study: str) -> tuple[pd.DataFrame, str] | None:
    """Return subject, stimulus_id, score, tie of every test image of a study, best first, and what was ranked by.

    A stimulus with several rows (repeats of a cross-validation) has the mean of their scores.
    """
    member, column = results.main(study), results.headline(study)
    if column is None:
        return None
    retrieval = _retrieval(member, column.space) if column.gallery and column.of != IMAGES else None
    name = decoder_label(member.decoder)
    if retrieval is not None and column.direction != "brain_from_image":
        table = retrieval.assign(score=retrieval["rank"], tie=-retrieval["similarity"])
        by = f"the rank {name} gave the seen image among {retrieval['gallery'].max()} (ties: by similarity)"
        lower = True
    else:
        values = _trial_scores(results, member, column)
        if values is None:
            return None
        table = values.rename("score").reset_index().assign(tie=0.0)
        by, lower = f"the {column.meaning.label} {name} reached", not column.meaning.higher_is_better
    trials = table.groupby(_KEYS, sort=False).agg(score=("score", "mean"), tie=("tie", "mean")).reset_index()
    trials = trials[np.isfinite(trials["score"])]
    trials = trials.assign(key=trials["score"] if lower else -trials["score"])
    return trials.sort_values(["key", "tie"], kind="stable", ignore_index=True), by


def _trial_scores(results: Results, member: Member, column: Column) -> pd.Series | None:
    """Return the mean score of every (subject, stimulus_id) a member decoded; of pictures, by the first generator."""
    table = results.scores
    if table is None:
        return None
    found = table[(table["study"] == member.study) & (table["decoder"] == member.decoder)
                  & (table["condition"] == "decoded") & (table["metric"] == column.metric)
                  & (table["space"] == column.space) & (table["direction"] == column.direction)
                  & (table["of"] == column.of) & ~table["transductive"] & np.isfinite(table["value"])]
    if found.empty:
        return None
    first = found["generator"].iloc[0]
    found = found[(found["repetitions"] == found["repetitions"].max()) & (found["generator"] == first)]
    return found.groupby(_KEYS, sort=False)["value"].mean()


def choose(trials: pd.DataFrame, *, per_group: int = PER_GROUP) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """Take the best, the middle and the worst of trials that are sorted best first, and some of the rest at random.

    The random ones come first. No trial is taken twice, no stimulus either as long as there are others, and the same
    trials give the same choice.
    """
    n = len(trials)
    k = min(per_group, n // 4)
    if k == 0:
        return trials, [("all", n)]
    shown: list[int] = []

    def take(order: Iterable[int]) -> list[int]:
        free = trials.iloc[[place for place in order if place not in shown]]
        again = free["stimulus_id"].isin(trials["stimulus_id"].iloc[shown]) | free["stimulus_id"].duplicated()
        found = sorted(trials.index.get_indexer(free.index[np.argsort(again, kind="stable")][:k]))
        shown.extend(found)
        return found

    best, worst = take(range(n)), take(range(n - 1, -1, -1))
    middle = take(sorted(range(n), key=lambda place: abs(place - (n - 1) / 2)))
    drawn = take(np.random.default_rng(0).permutation(n))
    chosen = trials.iloc[[*drawn, *best, *middle, *worst]].reset_index(drop=True)
    return chosen, [(RANDOM, k), ("best", k), ("middle", k), ("worst", k)]


def build_grid(results: Results, study: str) -> Grid | None:
    """Return the grid of a study, or None where there are no stimuli or no ranked predictions."""
    scored = score_trials(results, study)
    main = results.main(study)
    prepared = main.prepared
    if scored is None or prepared is None or not prepared.has_images or scored[0].empty:
        return None
    ranked, by = scored
    pictures = main.reconstructions("decoded")
    if pictures is not None:
        shown = pd.MultiIndex.from_frame(pictures.index[_KEYS])
        ranked = ranked[pd.MultiIndex.from_frame(ranked[_KEYS]).isin(shown)].reset_index(drop=True)
    if ranked.empty:
        return None
    trials, groups = choose(ranked)
    simulated = "simulated " if results.is_simulated(study) else ""
    n_subjects = ranked["subject"].nunique()
    what = "decoded images of which pictures were made" if len(ranked) < len(scored[0]) else "decoded test images"
    who = count(n_subjects, f"{simulated}subject")
    how = (f"The {len(ranked)} {what} ({who}) were sorted by {by}; shown are the first, the middle and the last of "
           "that order, and before them some drawn at random, with a fixed seed, from the others, each image once. "
           "None was picked by hand.")
    stimuli = prepared.stimuli_of(trials["stimulus_id"])
    said = main.captions("decoded") is not None
    words = [str(c[0]) if said and c is not None and len(c) else "" for c in stimuli.table["captions"]]
    lines = [Line("stimulus", "what was seen", [Tile(i, w) for i, w in zip(stimuli.images(), words, strict=True)])]
    tiles = _made(main, trials, condition="true")
    if tiles:
        lines.append(Line("ceiling", f"{generator_label(_first(main))} {TRUE}", tiles))
    column = results.headline(study)
    assert column is not None, "trials were ranked without a headline"
    for member in results.members_of(study):
        lines += _member_lines(results, member, trials, only_first=member is not main)
    if column.gallery and column.of != IMAGES:
        lines += _retrieved(main, trials, space=column.space)
    title = f"{study}: {modality_label(main.modality)} of {count(n_subjects, simulated + 'subject')}"
    heads = trials["subject"].tolist() if n_subjects > 1 else [""] * len(trials)
    return Grid(study=study, title=title, how=how, reading=_reading(lines, said=said), heads=heads, groups=groups,
                lines=lines,
                colours=colours(results.decoders, baseline=results.baseline), trials=trials)


def _first(member: Member) -> str:
    return next(iter(member.generators("reconstructions")), "")


def _reading(lines: Sequence[Line], *, said: bool) -> list[str]:
    """Return how the lines of a grid are to be read."""
    found = ["Each column is one test image: what was seen, and below it what was made of the recordings."]
    if any(line.label == "ceiling" for line in lines):
        found.append("“Ceiling”: the picture from the true embedding, as if decoding were perfect.")
    if said:
        found.append("Below the stimulus one of its captions, below a picture the caption decoded with it.")
    if any(line.sub.startswith("nearest of") for line in lines):
        found.append("“Nearest”: the test image whose embedding is most like the decoded one, with the rank the seen "
                     "image got (framed where it came first); it is found, not made.")
    return found


def _member_lines(results: Results, member: Member, trials: pd.DataFrame, *, only_first: bool) -> list[Line]:
    """Return the lines of what one decoder's embeddings became, one for each generator."""
    lines = []
    for generator in member.generators("reconstructions")[:1 if only_first else None]:
        tiles = _made(member, trials, condition="decoded", generator=generator)
        if tiles and generator == _first(member) and not any(tile.caption for tile in tiles):
            tiles = [Tile(t.image, c) for t, c in zip(tiles, _marks(results, member, trials), strict=True)]
        if tiles:
            lines.append(Line(decoder_label(member.decoder), generator_label(generator), tiles, decoder=member.decoder))
    return lines


def _marks(results: Results, member: Member, trials: pd.DataFrame) -> list[str]:
    """Return a score of every picture, in words."""
    columns = results.columns(member.study, of=IMAGES)
    wanted = (member.headline["metric"], "ssim", "pixcorr")
    column = next((c for m in wanted for c in columns if c.metric == m and not c.direction), None)
    values = None if column is None else _trial_scores(results, member, column)
    if column is None or values is None:
        return [""] * len(trials)
    return [f"{column.meaning.label} {number(values[key], column.meaning)}" if key in values.index else ""
            for key in _keys(trials)]


def _keys(trials: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(trials["subject"], trials["stimulus_id"], strict=True))


def _retrieved(member: Member, trials: pd.DataFrame, *, space: str) -> list[Line]:
    """Return the line of the gallery images nearest to what was decoded."""
    retrieval, prepared = _retrieval(member, space), member.prepared
    if retrieval is None or prepared is None:
        return []
    found = retrieval.drop_duplicates(_KEYS).set_index(_KEYS).loc[_keys(trials)]
    images = prepared.stimuli_of(found["retrieved"].tolist()).images()
    return [Line(decoder_label(member.decoder), f"nearest of {found['gallery'].max()}", decoder=member.decoder, tiles=[
        Tile(image, f"true: rank {rank:g}", right=rank == 1)
        for image, rank in zip(images, found["rank"], strict=True)])]


def _made(member: Member, trials: pd.DataFrame, *, condition: str, generator: str | None = None) -> list[Tile]:
    """Return the first picture of every trial, by the first generator with its caption; empty where there is none."""
    pictures = member.reconstructions(condition, generator)
    if pictures is None:
        return []
    places = _places(pictures)
    captions = member.captions(condition) if generator in (None, _first(member)) else None
    said = {} if captions is None else _places(captions)
    tiles = []
    for key in _keys(trials):
        image = pictures.images([places[key]])[0] if key in places else None
        tiles.append(Tile(image, captions.captions([said[key]])[0] if captions is not None and key in said else ""))
    return tiles if any(tile.image is not None for tile in tiles) else []


def _places(made: Reconstructions | Captions) -> dict[tuple[str, str], int]:
    """Return (subject, stimulus_id) -> its first line."""
    table = made.index if isinstance(made, Reconstructions) else made.table
    return {key: i for i, key in reversed(list(enumerate(_keys(table))))}
