"""The THINGS images that several studies show: their names, their concepts, and validation by concept.

Hebart et al. 2019, https://doi.org/10.1371/journal.pone.0223792: 1,854 concepts ("coat_rack", "bat2"), every image
named after its concept and a number ("coat_rack_13s.jpg").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from brain2img.artifacts import digest


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
    table = pd.read_csv(path, sep="\t")
    name, category = "uniqueID", "Top-down Category (manual selection)"
    missing = {name, category} - set(table)
    if missing:
        raise ValueError(f"{path}: expected the columns {name!r} and {category!r}, got {list(table)}. Take "
                         "things_concepts.tsv from https://osf.io/jum2f, or leave it out.")
    table = table.dropna(subset=[name, category])
    return dict(zip(table[name].str.replace(" ", "_"), table[category], strict=True))


def stimulus_table(images: Mapping[str, Path], *, concepts: Path) -> pd.DataFrame:
    """Return the stimuli that are THINGS images: one line each, as `data.prepared.PreparedWriter.finish` takes them.

    Parameters
    ----------
    images
        Name of the image without ending -> where it is; the name is the stimulus_id.
    concepts
        Where ``things_concepts.tsv`` is, if it is there.

    Raises
    ------
    ValueError
        If images are missing, with their number and the first.
    """
    missing = [path for path in images.values() if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: expected an image there, got none ({len(missing)} of {len(images)} images are "
                         "missing). Unpack the THINGS images there (https://osf.io/jum2f), or set study.images.")
    of_concept = categories(concepts)
    names = [concept_of(image) for image in images]
    return pd.DataFrame({"stimulus_id": list(images), "kind": "image", "file": [str(p) for p in images.values()],
                         "concept": names, "category": [of_concept.get(name) for name in names],
                         "captions": [[caption_of(name)] for name in names],
                         "attributes": [{} for _ in names]})
