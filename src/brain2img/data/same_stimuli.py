"""Which stimuli are the same one under several ids, by what they show and not by their names.

Pictures are the same if their pixels are equal, or if one is a copy of the other: compressed again, or resized with its
sides (a copy in other proportions is found too, a cut or mirrored one is not). Sentences are the same if their words
are. Copies are looked for in two steps. On a view of 16 x 16 pixels no value may differ by more than `_COARSE` levels
of 255, nor by more than `_OF_CONTRAST` of the larger contrast (a plain picture has none, and is the same as an equal
one only), and neither brightness nor contrast as a whole by more than `_BRIGHTER` levels. Those that pass are compared
at half the size of the smaller one, at most 128 pixels: brightness there, and colour at a quarter of it, may not differ
by more than `_FINE` levels anywhere.

The limits stand between what was measured of copies and of pictures that differ. Copies of photographs, pages of text
and drawings, of 128 pixels or more, JPEG quality 30 to 95 and half to 1.3 times the size: at most 9 levels apart in the
first step, 0.4 of the contrast, 1 level as a whole, and 21 in the second. Others: 2,200 drawn scenes 73 levels, 1,797
digits 30, gratings 2 degrees apart 27 in the first step, words 1.0 of their contrast; a page of text with one letter
changed passes the first and is 42 apart in the second. Smaller pictures lose more to JPEG, and copies of them may pass
unnoticed (28 % of drawings of 64 pixels at quality 75, nearly all at 50). Pictures made to differ by one or two levels
count as one: ``split.duplicates=keep`` is for these.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.data.images import StimulusImages

log = logging.getLogger(__name__)

POLICIES = ("refuse", "drop", "keep")
_ORDER = ("train", "val", "test")
_COARSE, _OF_CONTRAST, _BRIGHTER, _FINE = 16, 0.4, 1.0, 25
_SIDE, _POOLED = 16, 4
_ROWS = 256  # pictures read, and rows compared, at once
_View = tuple[np.ndarray, int]


def content(table: pd.DataFrame, images: StimulusImages) -> pd.DataFrame:
    """Return what every stimulus shows, and which it is the same as.

    Parameters
    ----------
    table
        Rows of ``stimuli.parquet``: stimulus_id, kind, file, captions.
    images
        Their pictures; each is read once, and again only if it looks like another one.

    Returns
    -------
    pandas.DataFrame
        content: a hash of the pixels as they are read, of the sentence where there is no picture, "" without either
        (a stimulus without a picture is not known by its captions, which others of its class share). same_as: the id of
        the first stimulus of the table that is the same, hence its own for most.
    """
    ids, hashes = table["stimulus_id"].tolist(), [""] * len(table)
    pictures = np.flatnonzero(table["file"].notna())
    views = np.empty((len(table), _SIDE, _SIDE, 3), dtype=np.uint8)
    for row, shown, view in _read(images, pictures):
        hashes[row], views[row] = shown, view
    for row in np.flatnonzero(table["file"].isna() & (table["kind"] != "image")).tolist():
        captions = table["captions"].iloc[row]
        words = [" ".join(str(text).split()) for text in captions] if captions is not None else []
        if any(words):
            hashes[row] = _hash("\n".join(words).encode())
    first: dict[str, int] = {}
    root = [first.setdefault(shown, row) if shown else row for row, shown in enumerate(hashes)]

    def root_of(row: int) -> int:
        while root[row] != row:
            root[row] = row = root[root[row]]
        return row

    alone = np.array([row for row in pictures if root[row] == row], dtype=int)
    fine = lru_cache(maxsize=4096)(lambda row: _fine(images([row])[0]))
    for a, b in _look_alike(views[alone]):
        one, other = root_of(int(alone[a])), root_of(int(alone[b]))
        if one != other and _is_copy(fine, int(alone[a]), int(alone[b])):
            root[max(one, other)] = min(one, other)
    return pd.DataFrame({"content": hashes, "same_as": [ids[root_of(row)] for row in range(len(ids))]},
                        index=table.index)


def _hash(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _read(images: StimulusImages, rows: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """Yield row, hash of the pixels and coarse view of every picture."""
    def block(part: Sequence[int]) -> list[tuple[int, str, np.ndarray]]:
        return [(row, _hash(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()), _view(image, _SIDE))
                for _, row, image in images.each(part)]

    rows = np.array(sorted(rows.tolist(), key=images.place_of), dtype=int)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(rows), 16 * _ROWS):
            parts = [rows[i:i + _ROWS].tolist() for i in range(start, min(start + 16 * _ROWS, len(rows)), _ROWS)]
            for found in pool.map(block, parts):
                yield from found


def _view(image: np.ndarray, side: int, *, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert(mode).resize((side, side), Image.Resampling.BILINEAR))


def _fine(image: np.ndarray) -> _View:
    """Return a picture in brightness and colour differences, at most 256 pixels wide, and its own smaller side."""
    side = min(*image.shape[:2], 256)
    return _view(image, side, mode="YCbCr"), side


def _is_copy(fine: Callable[[int], _View], one: int, other: int) -> bool:
    (a, side_a), (b, side_b) = fine(one), fine(other)
    side = max(1, min(side_a, side_b) // 2)
    for size, channels in ((side, slice(0, 1)), (max(1, side // 4), slice(1, 3))):
        views = [np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR),
                            dtype=np.int16)[..., channels] for x in (a, b)]
        if np.abs(views[0] - views[1]).max() > _FINE:
            return False
    return True


def _look_alike(views: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of places whose views ``(n, 16, 16, 3)`` pass the first step.

    Means of blocks of pixels differ by less than the pixels do, so pairs whose means are far apart are left out first,
    without losing any.
    """
    n = len(views)
    blocks = views.reshape(n, _POOLED, _SIDE // _POOLED, _POOLED, _SIDE // _POOLED, 3)
    pooled = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(n, 3 * _POOLED ** 2)
    order = np.argsort(pooled.mean(axis=1), kind="stable")
    pooled, flat = pooled[order], views.reshape(n, 3 * _SIDE ** 2)[order]
    contrast = views.reshape(n, _SIDE ** 2, 3).astype(np.float32).std(axis=1).max(axis=1)[order]
    means, squares = pooled.mean(axis=1), (pooled ** 2).sum(axis=1)
    limit = pooled.shape[1] * _COARSE ** 2 + 8.0  # and what single precision may lose
    for start in range(0, n, _ROWS):
        stop = min(start + _ROWS, n)
        end = int(np.searchsorted(means, means[stop - 1] + _COARSE, side="right"))
        for at in range(start, end, 16 * _ROWS):
            there = slice(at, min(at + 16 * _ROWS, end))
            apart = squares[start:stop, None] + squares[None, there] - 2 * pooled[start:stop] @ pooled[there].T
            a, b = np.nonzero(apart <= limit)
            a, b = a + start, b + at
            a, b = a[a < b], b[a < b]
            for some in range(0, len(a), 65536):
                i, j = a[some:some + 65536], b[some:some + 65536]
                worst = np.abs(flat[i].astype(np.int16) - flat[j]).max(axis=1, initial=0)
                like = (worst <= _COARSE) & (worst <= _OF_CONTRAST * np.maximum(contrast[i], contrast[j]))
                i, j = i[like], j[like]
                like = _as_bright(flat[i], flat[j], contrast=contrast[i])
                yield from zip(order[i[like]].tolist(), order[j[like]].tolist(), strict=True)


def _as_bright(one: np.ndarray, other: np.ndarray, *, contrast: np.ndarray) -> np.ndarray:
    """Return for pairs of views ``(n, 768)`` whether none is the other made brighter or stronger in contrast."""
    x, y = (views.reshape(-1, _SIDE ** 2, 3).astype(np.float32) for views in (one, other))
    level = np.abs(x.mean(axis=1) - y.mean(axis=1)).max(axis=1, initial=0)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    gain = (x * y).sum(axis=(1, 2)) / np.maximum((x * x).sum(axis=(1, 2)), 1)
    return (level <= _BRIGHTER) & (np.abs(gain - 1) * contrast <= _BRIGHTER)


def notice(table: pd.DataFrame, *, what: str) -> None:
    """Say in the log which stimuli are the same under several ids.

    Parameters
    ----------
    table
        Rows of ``stimuli.parquet``: stimulus_id, content, same_as.
    what
        What the message calls the study.
    """
    again = table[table["same_as"] != table["stimulus_id"]]
    if len(again):
        shown = dict(zip(table["stimulus_id"], table["content"], strict=True))
        exact = int((again["content"] == again["same_as"].map(shown)).sum())
        log.warning("%s: %d stimuli are others again under another id (%d of them equal, %d nearly: %s). Each "
                    "counts as one stimulus when trials are divided; split.duplicates says otherwise", what,
                    len(again), exact, len(again) - exact,
                    ", ".join(f"{s!r} is {first!r}" for s, first in
                              zip(again["stimulus_id"][:5], again["same_as"][:5], strict=True))
                    + (", ..." if len(again) > 5 else ""))


def settle(trials: pd.DataFrame, *, same_as: Mapping[str, str], duplicates: str, what: str) -> pd.Series:
    """Return the split of every trial once no stimulus stands in two splits under two ids.

    Parameters
    ----------
    trials
        Trials with stimulus_id and split.
    same_as
        Stimulus id -> id of the first that is the same; one without is itself.
    duplicates
        "refuse": an error where one stimulus is in several splits. "drop": copies of a test stimulus in training and
        validation, and of a validation stimulus in training, become "unused"; of several copies in the test or
        validation split only the first stays, so that no gallery holds a picture twice. "keep": copies are left.
    what
        What messages call the study.

    Raises
    ------
    ValueError
        Naming two ids and their splits.
    """
    split = trials["split"]
    if duplicates == "keep" or not same_as:
        return split
    of = trials.drop_duplicates(["stimulus_id", "split"])[["stimulus_id", "split"]]
    of = of.assign(group=[same_as.get(s, s) for s in of["stimulus_id"]],
                   rank=[_ORDER.index(s) if s in _ORDER else -1 for s in of["split"]])
    of = of[of["rank"] >= 0]
    copies = of[of.groupby("group")["stimulus_id"].transform("nunique") > 1]
    highest = copies.groupby("group")["rank"].transform("max")
    crossing = copies[copies["rank"] < highest]
    if duplicates == "refuse":
        if len(crossing):
            low = crossing.iloc[highest[crossing.index].argmax()]  # of those in the test split, if any
            high = copies[(copies["group"] == low["group"]) & (copies["rank"] > low["rank"])].iloc[-1]
            raise ValueError(
                f"{what}: expected every stimulus in one split, got {crossing['group'].nunique()} in several under "
                f"different ids ({low['stimulus_id']!r} in {low['split']} is {high['stimulus_id']!r} in "
                f"{high['split']}). Results of that split would be leaked: correct the study, or leave the copies out "
                "of training with split.duplicates=drop (split.duplicates=keep takes them for different stimuli).")
        return split
    kept = copies[(copies["rank"] == highest) & (highest > 0)]
    again = kept[kept.duplicated("group")]
    left_out = set(crossing["stimulus_id"]) | set(again["stimulus_id"])
    if not left_out:
        return split
    log.warning("%s: %d stimuli are left out (split.duplicates=drop), for they are others under another id: %s%s", what,
                len(left_out), ", ".join(sorted(left_out)[:5]), ", ..." if len(left_out) > 5 else "")
    return split.mask(trials["stimulus_id"].isin(left_out), "unused")
