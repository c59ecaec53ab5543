"""The tables every metric returns, and the checks every metric makes first; no plug-in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from brain2img.records import Decoded

SCORE_COLUMNS = ["row", "metric", "space", "direction", "gallery", "value"]
CHANCE_COLUMNS = ["metric", "space", "direction", "gallery", "chance", "chance_kind"]


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


def spaces(decoded: Decoded, *, needs: Sequence[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, decoded ``(n, D)`` and true ``(N, D)`` embeddings of every needed space, flattened.

    Raises
    ------
    ValueError
        If a space is missing, of another shape than the gallery, or not finite.
    """
    check(decoded)
    for name in decoded.embeddings if tuple(needs) == ("*",) else needs:
        if name not in decoded.embeddings or name not in decoded.gallery:
            where = "predictions" if name not in decoded.embeddings else "gallery"
            there = decoded.embeddings if where == "predictions" else decoded.gallery
            raise ValueError(f"{where}: expected space {name!r}, got {sorted(there)}. "
                             "Train a head for it and embed the stimuli, or leave this metric out.")
        found, true = np.asarray(decoded.embeddings[name]), np.asarray(decoded.gallery[name])
        for what, array, rows in (("predictions", found, len(decoded)), ("gallery", true, len(decoded.gallery_ids))):
            if len(array) != rows:
                raise ValueError(f"{what} of space {name!r}: expected {rows} rows, got {len(array)}. "
                                 "Make this folder again with overwrite=true.")
        if found.shape[1:] != true.shape[1:]:
            raise ValueError(f"predictions of space {name!r}: expected shape {true.shape[1:]} as in the gallery, got "
                             f"{found.shape[1:]}. Predict and embed with the same space.")
        found, true = found.reshape(len(found), -1), true.reshape(len(true), -1)
        for what, array in (("predictions", found), ("gallery", true)):
            broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if len(broken):
                raise ValueError(
                    f"{what} of space {name!r}: expected finite values, got NaN or infinity in {len(broken)} of "
                    f"{len(array)} rows (first: row {broken[0]}). The network that made them has diverged: train it "
                    "again with a lower learning rate or in full precision.")
        yield name, found, true


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
