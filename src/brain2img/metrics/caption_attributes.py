"""Attributes of the stimulus that a decoded caption names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.metrics.pairing import repairings
from brain2img.metrics.tables import CHANCE_COLUMNS, SCORE_COLUMNS, captions, chance_line, score_lines, stack
from brain2img.records import Decoded


def first_named(caption: str, values: Sequence[str]) -> int:
    """Return the place in `values` of the one that a caption names first, in whole words; -1 where it names none."""
    words = " ".join(["", *re.findall(r"\w+", caption.lower()), ""])
    at = [words.find(f" {value.lower()} ") for value in values]
    return min((place for place, i in enumerate(at) if i >= 0), key=at.__getitem__, default=-1)


def fits(captions: Sequence[str], attributes: Sequence[Mapping[str, Any]], name: str, *,
         others: Sequence[str] = ()) -> np.ndarray:
    """Return whether each caption names the value that each stimulus has.

    Parameters
    ----------
    captions
        n captions.
    attributes
        The attributes of N stimuli.
    name
        Name of the attribute.
    others
        Values that none of these stimuli has, but that a caption may name.

    Returns
    -------
    numpy.ndarray
        ``(n, N)``: 1 or 0; NaN for a stimulus that lacks the attribute.
    """
    true = [None if stimulus.get(name) is None else str(stimulus[name]) for stimulus in attributes]
    values = sorted({*others, *(value for value in true if value is not None)})
    answers = np.array([-2 if value is None else values.index(value) for value in true])
    named = np.array([first_named(caption, values) for caption in captions])
    return np.where(answers == -2, np.nan, named[:, None] == answers)


def name_accuracy(captions: Sequence[str], attributes: Sequence[Mapping[str, Any]], *,
                  together: Sequence[str] = ("kind", "colour")) -> dict[str, float]:
    """Return the share of captions that name the right value of each attribute, and of all of them together.

    Parameters
    ----------
    captions, attributes
        n captions, and the attributes of their n stimuli.
    together
        Names of attributes.

    Returns
    -------
    dict
        For the default: "kind", "colour" and "kind_and_colour", each in [0, 1].
    """
    right = {name: np.diag(fits(captions, attributes, name)) for name in together}
    right["_and_".join(together)] = np.prod(list(right.values()), axis=0)
    return {name: float(np.nanmean(values)) for name, values in right.items()}


class CaptionAttributes(Metric):
    """Whether a decoded caption names the attributes of its stimulus.

    Scores are "named_kind", "named_colour", ... for each attribute, and "named_kind_and_colour" for those that must
    be right together. What a caption names is the first value of the attribute in it, in whole words: in "a large
    black church at the top right and an orange clock, at night" the kind is "church" and the colour "black", those of
    the main object. A caption that names none is wrong. The vocabulary of an attribute are its values among the
    stimuli of the gallery and, where a space labels its dimensions "kind=church", among the labels.

    Parameters
    ----------
    attributes
        Names of attributes whose values occur as words; those that a study does not have are left out.
    together
        Of these, the ones that count as one score when all are right.

    Raises
    ------
    ValueError
        If `together` is not among `attributes`.
    """

    needs = ("captions",)
    unit = "%"
    proportion = True
    needs_attributes = True

    def __init__(self, *, attributes: Sequence[str] = ("kind", "colour", "size", "background"),
                 together: Sequence[str] = ("kind", "colour")) -> None:
        if not set(together) <= set(attributes):
            raise ValueError(f"caption_attributes: expected `together` among attributes {list(attributes)}, got "
                             f"{list(together)}. Correct metric.caption_attributes.")
        self.attributes, self.together = tuple(attributes), tuple(together)
        self.names = tuple(f"named_{name}" for name in (*attributes, "_and_".join(together)))
        words = {name: name.replace("_", " ") for name in attributes} | {"kind": "object"}
        self.labels = {f"named_{name}": f"{words[name]} named" for name in attributes}
        self.labels[self.names[-1]] = " and ".join(words[name] for name in together) + " named"

    def _matrices(self, decoded: Decoded) -> dict[str, np.ndarray]:
        """Return the name of each score -> ``(n, N)``, see `fits`."""
        found, known = captions(decoded), decoded.gallery_attributes or ()
        there = [name for name in self.attributes if any(stimulus.get(name) is not None for stimulus in known)]
        if not there:
            raise ValueError(f"attributes of the stimuli: expected some of {list(self.attributes)}, got "
                             f"{sorted({name for stimulus in known for name in stimulus})}. Name this study's in "
                             "metric.caption_attributes.attributes, or leave the metric out.")
        labels = [label.partition("=") for spec in decoded.specs.values() for label in spec.labels]
        matrices = {f"named_{name}": fits(found, known, name, others=[v for n, _, v in labels if n == name])
                    for name in there}
        if set(self.together) <= set(there):
            # a product keeps the NaN of a stimulus that lacks one of them
            matrices[self.names[-1]] = np.prod([matrices[f"named_{name}"] for name in self.together], axis=0)
        return matrices

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every caption, 0 or 1, see `interfaces.Metric.score`; no line where the stimulus lacks the attribute.

        Raises
        ------
        ValueError
            If there are no captions, or the stimuli have none of the attributes.
        """
        rows, truth = np.arange(len(decoded)), np.asarray(decoded.truth)
        return stack([score_lines(matrix[rows, truth], metric=name).dropna(subset="value")
                      for name, matrix in self._matrices(decoded).items()], columns=SCORE_COLUMNS)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`."""
        stimuli = repairings(decoded.truth, len(decoded.gallery_ids), generator=generator)
        rows = np.arange(len(decoded))
        values = {name: matrix[rows, stimuli] for name, matrix in self._matrices(decoded).items()}
        return stack([chance_line(np.nanmean(v), "re-pairing", metric=name) for name, v in values.items()
                      if not np.isnan(v).all()], columns=CHANCE_COLUMNS)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
