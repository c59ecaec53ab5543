"""The grid of stimuli, reconstructions and retrieved images, for the best, the middle and the worst trials."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from brain2img.artifacts import Reconstructions
from brain2img.report.reading import Member, Results
from brain2img.report.style import colours, count, decoder_label, is_lower_better, metric_label, modality_label, number

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

log = logging.getLogger(__name__)

CELL, GAP, GROUP_GAP, LABEL, CAPTION = 168, 10, 34, 250, 28
PER_GROUP = 4
TRUE = "from the truth"


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
    groups
        Word and number of columns: ("best", 4), ("middle", 4), ("worst", 4).
    trials
        Subject, stimulus and score of every column, in order.
    colours
        Decoder -> its colour.
    """

    study: str
    title: str
    how: str
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
        similarity to the true one. Rows with NaN rank last.
    """
    def unit(x: np.ndarray) -> np.ndarray:
        x = np.nan_to_num(np.asarray(x, dtype=np.float64).reshape(len(x), -1))
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    similarity = unit(decoded) @ unit(gallery).T
    bad = ~np.isfinite(decoded.reshape(len(decoded), -1)).all(axis=1)
    similarity[bad] = -1.0
    true = similarity[np.arange(len(truth)), truth]
    close = np.isclose(similarity, true[:, None], rtol=0, atol=1e-9)
    rank = 1 + ((similarity > true[:, None]) & ~close).sum(1) + 0.5 * (close.sum(1) - 1)
    rank[bad] = len(gallery)
    return rank, similarity.argmax(1), true


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
        mine = np.flatnonzero(rows["subject"] == subject)
        theirs = np.flatnonzero(true.rows["subject"] == subject)
        ids = true.rows["stimulus_id"].to_numpy()[theirs]
        ids, first = np.unique(ids, return_index=True)
        truth = pd.Index(ids).get_indexer(rows["stimulus_id"].to_numpy()[mine])
        if (truth < 0).any() or len(ids) < 2:
            log.warning("report: the true embeddings of %s lack stimuli of subject %s; retrieval is left out of the "
                        "grid", member.decoder, subject)
            return None
        rank, retrieved, similarity = ranks(
            decoded.embeddings(space, mine), true.embeddings(space, theirs[first]), truth=truth)
        columns = [rows.columns.get_loc(c) for c in ("rank", "similarity", "retrieved", "gallery")]
        for column, values in zip(columns, (rank, similarity, ids[retrieved], len(ids)), strict=True):
            rows.iloc[mine, column] = values
    return rows


def score_trials(results: Results, study: str) -> tuple[pd.DataFrame, str] | None:
    """Return subject, stimulus_id, row, score, tie of every test image of a study, best first, and what was ranked by.

    A stimulus with several rows (repeats of a cross-validation) has the mean of their scores, and shows the first.
    """
    member, column = results.main(study), results.headline(study)
    predictions = member.predictions("decoded")
    if predictions is None or column is None:
        return None
    retrieval = None if not column.gallery else _retrieval(member, column.space)
    if retrieval is not None and column.direction != "brain_from_image":
        table = retrieval.assign(score=retrieval["rank"], tie=-retrieval["similarity"])
        by = (f"the rank {decoder_label(member.decoder)} gave the seen image among {retrieval['gallery'].max()} (ties: "
              "by similarity)")
        lower = True
    else:
        values = _row_scores(results, member, metric=column.metric, space=column.space, direction=column.direction)
        if values is None:
            return None
        table = predictions.rows.assign(score=values, tie=0.0)
        by = f"the {metric_label(column.metric)} {decoder_label(member.decoder)} reached"
        lower = is_lower_better(column.metric)
    table = table.assign(row=np.arange(len(table)))
    trials = table.groupby(["subject", "stimulus_id"], sort=False).agg(
        score=("score", "mean"), tie=("tie", "mean"), row=("row", "first")).reset_index()
    trials = trials[np.isfinite(trials["score"])]
    trials = trials.assign(key=trials["score"] if lower else -trials["score"])
    return trials.sort_values(["key", "tie"], kind="stable", ignore_index=True), by


def _row_scores(results: Results, member: Member, *, metric: str, space: str | None, direction: str
                ) -> np.ndarray | None:
    """Return a score for every row of the decoded predictions of a member, NaN where there is none."""
    table, predictions = results.scores, member.predictions("decoded")
    if table is None or predictions is None or "row" not in table:
        return None
    found = table[(table["study"] == member.study) & (table["decoder"] == member.decoder)
                  & (table["condition"] == "decoded") & (table["metric"] == metric)
                  & (table["direction"] == direction) & ~table["transductive"]]
    if space is not None:
        found = found[found["space"] == space]
    found = found[found["repetitions"] == found["repetitions"].max()].drop_duplicates("row")
    values = np.full(len(predictions.rows), np.nan)
    rows = found["row"].to_numpy(dtype=int)
    keep = rows < len(values)
    values[rows[keep]] = found["value"].to_numpy()[keep]
    return values if np.isfinite(values).any() else None


def choose(trials: pd.DataFrame, *, per_group: int = PER_GROUP) -> tuple[pd.DataFrame, list[tuple[str, int]]]:
    """Take the best, the middle and the worst of trials that are sorted best first; none twice."""
    n = len(trials)
    k = min(per_group, n // 3)
    if k == 0:
        return trials, [("all", n)]
    middle = min(max((n - k) // 2, k), n - 2 * k)
    places = [*range(k), *range(middle, middle + k), *range(n - k, n)]
    return trials.iloc[places].reset_index(drop=True), [("best", k), ("middle", k), ("worst", k)]


def build_grid(results: Results, study: str) -> Grid | None:
    """Return the grid of a study, or None where there are no stimuli or no ranked predictions."""
    scored = score_trials(results, study)
    main = results.main(study)
    prepared = main.prepared
    if scored is None or prepared is None or not (prepared.folder / "images.npy").exists() or scored[0].empty:
        return None
    trials, groups = choose(scored[0])
    simulated = "simulated " if results.is_simulated(study) else ""
    n_subjects = scored[0]["subject"].nunique()
    how = (f"All {count(len(scored[0]), 'test image')} of {count(n_subjects, simulated + 'subject')} were "
           f"sorted by {scored[1]}; shown are the first, the middle and the last of that order, none picked by hand.")
    several = n_subjects > 1
    images = prepared.stimuli_of(trials["stimulus_id"]).images()
    lines = [Line("stimulus", "what was seen",
                  [Tile(i, str(s) if several else "") for i, s in zip(images, trials["subject"], strict=True)])]
    column = results.headline(study)
    assert column is not None, "trials were ranked without a headline"
    for member in results.members_of(study):
        lines += _member_lines(results, member, trials, space=column.space if column.gallery else "")
    true = next((m for m in results.members_of(study) if m.reconstructions("true") is not None), None)
    if true is not None:
        pictures = true.reconstructions("true")
        tiles = _reconstructed(pictures, trials) if pictures is not None else None
        if tiles is not None:
            lines.append(Line("reconstruction", TRUE, tiles))
    title = f"{study}: {modality_label(main.modality)} of {count(n_subjects, simulated + 'subject')}"
    return Grid(study=study, title=title, how=how, groups=groups, trials=trials,
                colours=colours(results.decoders), lines=lines)


def _member_lines(results: Results, member: Member, trials: pd.DataFrame, *, space: str) -> list[Line]:
    lines = []
    name = decoder_label(member.decoder)
    predictions, pictures = member.predictions("decoded"), member.reconstructions("decoded")
    if pictures is not None:
        values, metric = None, ""
        for metric in dict.fromkeys((member.headline["metric"], "ssim", "pixcorr")):
            values = _row_scores(results, member, metric=metric, space=None, direction="")
            if values is not None:
                break
        captions = [""] * len(trials)
        if values is not None and predictions is not None:
            table = predictions.rows.assign(score=values).groupby(["subject", "stimulus_id"])["score"].first()
            found = [table.get((s, i), math.nan) for s, i in zip(trials["subject"], trials["stimulus_id"], strict=True)]
            captions = [f"{metric_label(metric)} {number(v, metric=metric)}" if math.isfinite(v) else "" for v in found]
        tiles = _reconstructed(pictures, trials, captions=captions)
        if tiles is not None:
            lines.append(Line(name, "reconstruction", tiles, decoder=member.decoder))
    retrieval = _retrieval(member, space) if space else None
    prepared = results.main(member.study).prepared
    if retrieval is not None and prepared is not None:
        table = retrieval.drop_duplicates(["subject", "stimulus_id"]).set_index(["subject", "stimulus_id"])
        keys = list(zip(trials["subject"], trials["stimulus_id"], strict=True))
        if all(key in table.index for key in keys):
            found = table.loc[keys]
            images = prepared.stimuli_of(found["retrieved"].tolist()).images()
            lines.append(Line(name, f"nearest of {found['gallery'].max()}", decoder=member.decoder, tiles=[
                Tile(image, f"true: rank {rank:g}", right=rank == 1)
                for image, rank in zip(images, found["rank"], strict=True)]))
    return lines


def _reconstructed(pictures: Reconstructions, trials: pd.DataFrame, *, captions: Sequence[str] | None = None
                   ) -> list[Tile] | None:
    """Return the first reconstruction of every trial; None where the index does not say whose they are."""
    if not {"subject", "stimulus_id"} <= set(pictures.index.columns):
        log.warning("report: index.parquet of %s names no subject and stimulus_id; left out of the grid",
                    pictures.folder.name)
        return None
    index = pictures.index.reset_index(drop=True)
    first = index.assign(place=index.index).drop_duplicates(["subject", "stimulus_id"])
    places = first.set_index(["subject", "stimulus_id"])["place"]
    tiles = []
    for i, key in enumerate(zip(trials["subject"], trials["stimulus_id"], strict=True)):
        image = pictures.images([int(places[key])])[0] if key in places.index else None
        tiles.append(Tile(image, captions[i] if captions else ""))
    return tiles if any(t.image is not None for t in tiles) else None


def draw_grid(grid: Grid) -> Image:
    """Draw a grid: groups of trials side by side, lines below each other, on white."""
    from PIL import Image, ImageDraw

    n = len(grid.trials)
    left, top = 28 + LABEL, 128
    heights = [CELL + (CAPTION if any(t.caption for t in line.tiles) else 0) + GAP for line in grid.lines]
    width = left + n * (CELL + GAP) + (len(grid.groups) - 1) * GROUP_GAP + 28
    canvas = Image.new("RGB", (width, top + sum(heights) + 18), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((28, 24), grid.title, fill="#222222", font=_font(30, bold=True))
    columns, x = [], left
    for word, size in grid.groups:
        end = x + size * (CELL + GAP) - GAP
        draw.text(((x + end) / 2, 90), word, fill="#444444", font=_font(26), anchor="ms")
        draw.line([(x, 106), (end, 106)], fill="#999999", width=2)
        columns += [x + i * (CELL + GAP) for i in range(size)]
        x = end + GROUP_GAP
    y = top
    for line, height in zip(grid.lines, heights, strict=True):
        colour = grid.colours.get(line.decoder, "#444444")
        draw.rectangle([28, y, 34, y + CELL], fill=colour)
        draw.text((48, y + CELL / 2 - 18), line.label, fill="#222222", font=_font(26, bold=True), anchor="lm")
        draw.text((48, y + CELL / 2 + 18), line.sub, fill="#666666", font=_font(21), anchor="lm")
        for x, tile in zip(columns, line.tiles, strict=True):
            if tile.image is None:
                draw.rectangle([x, y, x + CELL - 1, y + CELL - 1], fill="#F2F2F2")
                draw.text((x + CELL / 2, y + CELL / 2), "none", fill="#999999", font=_font(20), anchor="mm")
            else:
                canvas.paste(_fit(tile.image), (x, y))
            if tile.right:
                draw.rectangle([x - 5, y - 5, x + CELL + 4, y + CELL + 4], outline=colour, width=5)
            if tile.caption:
                draw.text((x + CELL / 2, y + CELL + 8), _shorten(tile.caption), font=_font(19, bold=tile.right),
                          fill=colour if tile.right else "#666666", anchor="mt")
        y += height
    return canvas


def save_grids(grids: Sequence[Image], path: Path) -> None:
    """Write grids below each other into one PNG."""
    from PIL import Image

    canvas = Image.new("RGB", (max(g.width for g in grids), sum(g.height for g in grids)), "white")
    y = 0
    for grid in grids:
        canvas.paste(grid, (0, y))
        y += grid.height
    canvas.save(path)


def _fit(image: np.ndarray) -> Image:
    from PIL import Image

    # the pixels of tiny images are worth seeing; larger ones look better smoothed
    how = Image.Resampling.NEAREST if max(image.shape[:2]) <= 32 else Image.Resampling.BICUBIC
    return Image.fromarray(image).convert("RGB").resize((CELL, CELL), how)


def _shorten(text: str, *, length: int = 17) -> str:
    return text if len(text) <= length else text[:length - 1] + "…"


@functools.lru_cache(maxsize=8)
def _font(size: int, *, bold: bool = False) -> FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")), size)

