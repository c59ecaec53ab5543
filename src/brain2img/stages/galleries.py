"""What decoded embeddings are retrieved from: stimuli, each there once, or means of concepts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from brain2img.artifacts import EmbeddingCache
from brain2img.data.prepared import PreparedStudy
from brain2img.records import Decoded, EmbeddingSpec


def check_gallery(array: np.ndarray, *, spec: EmbeddingSpec, stimulus_ids: Sequence[str], study: str) -> None:
    """Refuse a gallery that holds one picture twice under different names.

    Embeddings of pictures that are equal to the last bit come from equal pictures; those with labels, as attributes,
    and those of texts may be equal for different stimuli, and tie.

    Raises
    ------
    ValueError
        Naming two stimuli.
    """
    if spec.kind != "image" or spec.labels:
        return
    first: dict[bytes, str] = {}
    twice = [(other, stimulus) for stimulus, values in zip(stimulus_ids, array, strict=True)
             if (other := first.setdefault(hashlib.sha256(np.ascontiguousarray(values).data).digest(), stimulus))
             != stimulus]
    if twice:
        raise ValueError(f"gallery of study {study}, space {spec.name!r}: expected every picture once, got "
                         f"{len(twice)} again ({twice[0][1]!r} is {twice[0][0]!r}). Give them "
                         "one stimulus id in the study, or leave the copies out with split.duplicates=drop.")


def of_concepts(decoded: Decoded, *, study: PreparedStudy, caches: Mapping[str, EmbeddingCache]) -> Decoded:
    """Return `decoded` with the mean embedding of the other stimuli of its concept in the place of each stimulus.

    The others are all that the study has, seen or not; a study may name stimuli that nobody saw for this.

    Raises
    ------
    ValueError
        If a stimulus is the only one of its concept, or has none.
    """
    table = study.stimulus_table.dropna(subset="concept")
    members = table.groupby("concept")["stimulus_id"].agg(list).to_dict()
    concept = dict(zip(table["stimulus_id"], table["concept"], strict=True))
    others = {s: [o for o in members.get(concept.get(s), ()) if o != s] for s in decoded.gallery_ids}
    alone = [s for s, found in others.items() if not found]
    if alone:
        raise ValueError(f"study {study.name}: expected other stimuli of every test concept for a gallery of concept "
                         f"means, got none for {len(alone)} of {len(others)} stimuli ({alone[0]!r}, ...). Name some in "
                         "stimuli.parquet, which nobody needs to have seen, or leave retrieval_concept out.")
    gallery = {space: np.stack([cache.array[cache.rows(others[s])].astype(np.float32).mean(axis=0)
                                for s in decoded.gallery_ids])
               for space, cache in caches.items() if space in decoded.embeddings}
    return dataclasses.replace(decoded, gallery=gallery)
