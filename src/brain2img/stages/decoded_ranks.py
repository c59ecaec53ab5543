"""Ranks of seen stimuli among candidates: what the analyses, the prior and the ideal observer are judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from brain2img.artifacts import read_table
from brain2img.data.datamodule import BrainData
from brain2img.data.dataset import chunks
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Decoder
from brain2img.metrics.ranking import rank_table, similarity
from brain2img.stages.runs import FoldRun


def decode(decoder: Decoder, data: BrainData, items: pd.DataFrame, *, batch_size: int) -> dict[str, np.ndarray]:
    """Return space -> ``(n, D)`` decoded embeddings of the rows `items`, flattened."""
    parts = [decoder.predict(data.batch(items.iloc[part], before_average=decoder.before_average))
             for part in chunks(len(items), batch_size)]
    return {space: np.concatenate([part[space] for part in parts]).reshape(len(items), -1) for space in parts[0]}


def rank_rows(items: pd.DataFrame, predicted: np.ndarray, *, true: Callable[[list[str]], np.ndarray],
              galleries: Mapping[str, Sequence[str]] | None = None, kind: str = "cosine") -> pd.DataFrame:
    """Return subject, stimulus_id and n_averaged of rows beside the rank of the stimulus that was seen.

    Parameters
    ----------
    items
        n rows with subject and stimulus_id.
    predicted
        ``(n, D)`` what was decoded from them.
    true
        Maps stimulus ids to their true embeddings.
    galleries
        Subject -> its candidates, sorted; None: the stimuli of all rows for everyone.
    kind
        See `brain2img.metrics.ranking.similarity`.
    """
    items = items.reset_index(drop=True)
    everyone = sorted(set(items["stimulus_id"]))
    tables = []
    for subject, group in items.groupby("subject", sort=False):
        ids = list(galleries[str(subject)]) if galleries is not None else everyone
        gallery = true(ids).reshape(len(ids), -1)
        ranks = rank_table(similarity(predicted[group.index], gallery, kind=kind),
                           np.searchsorted(ids, group["stimulus_id"]))
        tables.append(group[[c for c in ("subject", "stimulus_id", "n_averaged", "draw") if c in group]].join(
            ranks.set_index(group.index)))
    return pd.concat(tables).sort_index()


def ranks_of_run(run: FoldRun, data: BrainData, *, space: str, split: str, batch_size: int,
                 decoder: Decoder | None = None) -> pd.DataFrame:
    """Return `rank_rows` of a split's stimuli, repetitions averaged, by the decoder of a run unless one is given.

    Raises
    ------
    ValueError
        If the split has no trials.
    """
    items = data.items(split)
    if items.empty:
        raise ValueError(f"run {run.folder}: expected trials in split {split!r}, got none. Choose another "
                         "predict_split.")
    decoded = decode(decoder or run.decoder(data), data, items, batch_size=batch_size)[space]
    return rank_rows(items, decoded, true=lambda ids: data.target(space, ids))


def ideal_ranks(study: PreparedStudy) -> pd.DataFrame | None:
    """Return the ranks of the ideal observer of a simulated study with all repetitions; None where it has none.

    Raises
    ------
    ValueError
        If the study was prepared without numbers of ties.
    """
    path = study.folder / "ceiling.parquet"
    if not path.exists():
        return None
    ranks = read_table(path)
    if "above" not in ranks:
        raise ValueError(f"{path}: expected the columns above and tied, got {', '.join(ranks)}. Prepare the study "
                         "again with overwrite=true.")
    return ranks[ranks["repetitions"] == ranks["repetitions"].max()]
