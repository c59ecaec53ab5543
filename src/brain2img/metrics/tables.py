"""The tables every metric returns, and the checks every metric makes first; no plug-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from brain2img.records import Decoded

SCORE_COLUMNS = ["row", "metric", "space", "direction", "gallery", "value"]
CHANCE_COLUMNS = ["metric", "space", "direction", "gallery", "chance", "chance_kind"]
COMPARED = ("embeddings", "images")
"""What a metric that compares vectors can be about: see `needs_of`."""


def check(decoded: Decoded) -> None:
    """Refuse what no metric can score.

    Raises
    ------
    ValueError
        If there are no rows, if the gallery holds a stimulus twice, or if a row's stimulus is not in the gallery.
    """
    ids = pd.Index(decoded.gallery_ids)
    if not ids.is_unique:
        twice = ids[ids.duplicated()]
        raise ValueError(f"gallery: expected every stimulus once, got {len(twice)} again ({twice[0]!r}, ...). "
                         "Drop the copies: they would count as distractors of themselves.")
    if len(decoded) == 0:
        raise ValueError("decoded rows: expected at least one, got none. Predict a split that has trials.")
    truth = np.asarray(decoded.truth)
    if truth.min() < 0 or truth.max() >= len(ids):
        bad = truth[(truth < 0) | (truth >= len(ids))][0]
        raise ValueError(f"truth: expected places in a gallery of {len(ids)} stimuli, got {int(bad)}. "
                         "Put the stimulus of every decoded row into the gallery.")


def needs_of(of: str, space: str | None) -> tuple[str, ...]:
    """Return the `needs` of a metric that compares vectors of a space (None: of every one, in turn).

    Parameters
    ----------
    of
        "embeddings" (decoded from the brain) or "images" (features of the reconstructed pictures).
    space
        Name of the space.

    Raises
    ------
    ValueError
        If `of` is unknown.
    """
    if of not in COMPARED:
        raise ValueError(f"of: expected one of {COMPARED}, got {of!r}. Correct the metric's YAML.")
    return (*(("images",) if of == "images" else ()), space or "*")


def names_of(decoded: Decoded, *, needs: Sequence[str]) -> list[str]:
    """Return the names of the spaces that a metric with these `needs` compares."""
    there = decoded.features if "images" in needs else decoded.embeddings
    named = [need for need in needs if need != "images"]
    return list(there) if named == ["*"] else named


def spaces(decoded: Decoded, *, needs: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, decoded ``(n, D)`` and true ``(N, D)`` vectors of every needed space, flattened.

    They are decoded and true embeddings or, beside "images", features of reconstructions and of stimuli.

    Raises
    ------
    ValueError
        If a space is missing, of another shape than the gallery, or not finite.
    """
    check(decoded)
    words, found_in, true_in = (
        (("features of the reconstructions", "features of the stimuli"), decoded.features, decoded.gallery_features)
        if "images" in needs else (("predictions", "gallery"), decoded.embeddings, decoded.gallery))
    cure = ("Choose it with space@metric_space=[...]" if "images" in needs else
            "Train a head for it and embed the stimuli")
    for name in names_of(decoded, needs=needs):
        for what, there in zip(words, (found_in, true_in), strict=True):
            if name not in there:
                raise ValueError(f"{what}: expected space {name!r}, got {sorted(there)}. {cure}, or leave this metric "
                                 "out.")
        found, true = np.asarray(found_in[name]), np.asarray(true_in[name])
        for what, array, rows in zip(words, (found, true), (len(decoded), len(decoded.gallery_ids)), strict=True):
            if len(array) != rows:
                raise ValueError(f"{what} of space {name!r}: expected {rows} rows, got {len(array)}. "
                                 "Make this folder again with overwrite=true.")
        if found.shape[1:] != true.shape[1:]:
            raise ValueError(f"{words[0]} of space {name!r}: expected shape {true.shape[1:]} as in the gallery, got "
                             f"{found.shape[1:]}. Predict and embed with the same space.")
        found, true = found.reshape(len(found), -1), true.reshape(len(true), -1)
        for what, array in zip(words, (found, true), strict=True):
            broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if len(broken):
                raise ValueError(
                    f"{what} of space {name!r}: expected finite values, got NaN or infinity in {len(broken)} of "
                    f"{len(array)} rows (first: row {broken[0]}). The network that made them has diverged: train it "
                    "again with a lower learning rate or in full precision.")
        yield name, found, true


def captions(decoded: Decoded) -> Sequence[str]:
    """Return the decoded captions.

    Raises
    ------
    ValueError
        If there are none, or not one for every row.
    """
    check(decoded)
    if decoded.captions is None or len(decoded.captions) != len(decoded):
        got = "none" if decoded.captions is None else str(len(decoded.captions))
        raise ValueError(f"captions: expected one for each of {len(decoded)} decoded rows, got {got}. "
                         "Run the caption stage, or leave the caption metrics out.")
    return decoded.captions


def score_lines(values: np.ndarray, *, metric: str, space: str = "", direction: str = "",
                gallery: int = 0) -> pd.DataFrame:
    """Return one line per decoded row from its values ``(n,)``."""
    return pd.DataFrame({"row": np.arange(len(values)), "metric": metric, "space": space, "direction": direction,
                         "gallery": int(gallery), "value": np.asarray(values, dtype=float)})


def chance_line(chance: float, kind: str, *, metric: str, space: str = "", direction: str = "",
                gallery: int = 0) -> pd.DataFrame:
    """Return the one line of a chance level."""
    return pd.DataFrame({"metric": [metric], "space": [space], "direction": [direction], "gallery": [int(gallery)],
                         "chance": [float(chance)], "chance_kind": [kind]})


def stack(tables: Sequence[pd.DataFrame], *, columns: Sequence[str]) -> pd.DataFrame:
    """Put tables below each other; an empty list gives an empty table with the right columns and types."""
    if not tables:
        types = {"row": int, "gallery": int, "value": float, "chance": float, "proportion": bool}
        return pd.DataFrame({column: pd.Series(dtype=types.get(column, object)) for column in columns})
    return pd.concat(tables, ignore_index=True)
