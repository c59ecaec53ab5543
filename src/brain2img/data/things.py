"""The THINGS images that several studies show: their names, their concepts, and validation by concept.

Hebart et al. 2019, https://doi.org/10.1371/journal.pone.0223792: 1,854 concepts ("coat_rack", "bat2"), every image
named after its concept and a number ("coat_rack_13s.jpg").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.reading import reading


def concept_of(image: str) -> str:
    """Return the concept of an image by its name without ending: "coat_rack_13s" -> "coat_rack"."""
    return image.rpartition("_")[0] or image


def caption_of(concept: str) -> str:
    """Return the name of a concept as words; the number that tells homonyms apart is left out ("bat2" -> "bat")."""
    return re.sub(r"\d+$", "", concept).replace("_", " ").strip()


def validation_concepts(concepts: Iterable[str], *, n: int, seed: int) -> set[str]:
    """Return n of the training concepts, drawn by a hash of seed and name: the same whoever saw which of them.

    Raises
    ------
    ValueError
        If none would be left for training.
    """
    known = sorted(set(concepts), key=lambda concept: digest([seed, concept], length=64))
    if not 0 <= n < len(known):
        raise ValueError(f"study.n_val_concepts: expected 0 to {len(known) - 1} of the {len(known)} training concepts, "
                         f"got {n}. Set study.n_val_concepts.")
    return set(known[:n])


def categories(path: Path) -> dict[str, str]:
    """Return the category of every concept, from the table of concepts that comes with the THINGS images.

    Parameters
    ----------
    path
        ``things_concepts.tsv``: columns `uniqueID` and `Top-down Category (manual selection)`; concepts without an
        entry have none. Nothing is returned where the file is not there: categories are optional.

    Raises
    ------
    ValueError
        If the columns are missing.
    """
    if not path.is_file():
        return {}
    with reading(path, what="table"):
        table = pd.read_csv(path, sep="\t")
    name, category = "uniqueID", "Top-down Category (manual selection)"
    missing = {name, category} - set(table)
    if missing:
        raise ValueError(f"{path}: expected the columns {name!r} and {category!r}, got {list(table)}. Take "
                         "things_concepts.tsv from https://osf.io/jum2f, or leave it out.")
    table = table.dropna(subset=[name, category])
    return dict(zip(table[name].str.replace(" ", "_"), table[category], strict=True))


def stimulus_table(images: Mapping[str, Path], *, concepts: Sequence[str],
                   category_of: Mapping[str, str]) -> pd.DataFrame:
    """Return the stimuli that are THINGS images: one line each, as `data.prepared.PreparedWriter.finish` takes them.

    Parameters
    ----------
    images
        stimulus_id -> where the image is.
    concepts
        Concept of each image, in the same order.
    category_of
        Concept -> its category, where it has one.

    Raises
    ------
    ValueError
        If images are missing, with their number and the first.
    """
    missing = [path for path in images.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: expected an image there, got none ({len(missing)} of {len(images)} images are "
                         "missing). Unpack the images there, or set study.images.")
    return pd.DataFrame({"stimulus_id": list(images), "kind": "image", "file": [str(p) for p in images.values()],
                         "concept": list(concepts), "category": [category_of.get(name) for name in concepts],
                         "captions": [[caption_of(name)] for name in concepts],
                         "attributes": [{} for _ in concepts]})


def splits(concepts: pd.Series, *, test: pd.Series, n_val_concepts: int, seed: int) -> list[str]:
    """Return the split of each image: "test", "val" (all training images of the concepts held out) or "train".

    Parameters
    ----------
    concepts
        Concept of each image.
    test
        Whether it is a test image.
    n_val_concepts, seed
        As for `validation_concepts`.

    Raises
    ------
    ValueError
        If no concept would be left for training.
    """
    held_out = validation_concepts(concepts[~test], n=n_val_concepts, seed=seed)
    return np.where(test, "test", np.where(concepts.isin(held_out), "val", "train")).tolist()
