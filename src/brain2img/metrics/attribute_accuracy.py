"""Accuracy of the categorical attributes read off a decoded space, or off reconstructions by a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.meaning import Meaning
from brain2img.metrics.pairing import repairings
from brain2img.metrics.tables import (
    CHANCE_COLUMNS,
    SCORE_COLUMNS,
    chance_line,
    needs_of,
    score_lines,
    spaces,
    stack,
)
from brain2img.records import Decoded


def groups_of(labels: Sequence[str]) -> dict[str, list[int]]:
    """Return attribute -> its dimensions, for attributes with at least two values ("kind=apple", "kind=boat", ...).

    Numeric attributes ("x") have no "=" and are left out.
    """
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        name, equals, _ = label.partition("=")
        if equals:
            groups.setdefault(name, []).append(i)
    return {name: places for name, places in groups.items() if len(places) > 1}


def one_hot(attributes: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """Return ``(N, D)``: 1 where the label "kind=apple" is true of a stimulus, else 0; 0 for labels without "="."""
    pairs = [label.partition("=") for label in labels]
    return np.array([[float(bool(equals) and str(known.get(name)) == value) for name, equals, value in pairs]
                     for known in attributes])


def agreement(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return whether the largest value of a decoded vector is at the place of the true one's.

    Parameters
    ----------
    found, true
        ``(n, V)`` and ``(N, V)`` scores of V values.

    Returns
    -------
    numpy.ndarray
        ``(n, N)``: 1 or 0; where t values of `found` tie, the share of them that are right, so that a constant
        prediction scores 1 / V. NaN for a stimulus that has none of the values.
    """
    best = found == found.max(axis=1, keepdims=True)
    right = true == true.max(axis=1, keepdims=True)
    matrix = (best / best.sum(axis=1, keepdims=True)) @ right.T.astype(float)
    return np.where(right.all(axis=1)[None, :], np.nan, matrix)


class AttributeAccuracy(Metric):
    """Share of categorical attributes whose decoded value (the largest of its group) is the true one.

    Scores are "attribute_accuracy", the mean over the attributes of a stimulus, and "attribute_accuracy/<attribute>"
    for each. The column `proportion` of the table says which of them are successes (the single ones): it goes
    before the class's `proportion`.

    With ``of="images"`` the values are those that a network reads off a reconstruction (object recognition): the space
    holds its logits, and the true values are the known attributes of the stimulus, whatever the network makes of it.

    Parameters
    ----------
    space
        Space whose spec labels its dimensions "kind=apple".
    of
        "embeddings" or "images".

    Raises
    ------
    ValueError
        If `of` is unknown.
    """

    names = ("attribute_accuracy",)
    labels: Mapping[str, str] = {"attribute_accuracy": "attributes right", "attribute_accuracy/kind": "object right"}
    unit = "%"
    proportion = False
    needs_attributes = True

    def __init__(self, *, space: str = "attributes", of: str = "embeddings") -> None:
        self.space, self.of = space, of
        self.needs = needs_of(of, space)

    def meaning(self, name: str) -> Meaning:
        """Return what the mean over attributes, or the accuracy of a single one, means."""
        one = name.partition("/")[2].replace("_", " ")
        return Meaning(self.labels.get(name, f"{one} right"), self.unit)

    def _matrices(self, decoded: Decoded) -> dict[str, np.ndarray]:
        """Return attribute -> ``(n, N)`` agreement, and their mean under ""."""
        ((_, found, true),) = spaces(decoded, needs=self.needs)
        spec = (decoded.feature_specs if self.of == "images" else decoded.specs).get(self.space)
        groups = groups_of(spec.labels) if spec is not None else {}
        if spec is None or not groups or len(spec.labels) != found.shape[1]:
            got = "no spec" if spec is None else f"{len(spec.labels)} labels {list(spec.labels[:3])}"
            raise ValueError(
                f"space {self.space!r}: expected a label such as 'kind=apple' for each of {found.shape[1]} dimensions, "
                f"with at least two values of an attribute, got {got}. Score a space of attributes.")
        if self.of == "images":
            if decoded.gallery_attributes is None:
                raise ValueError("attributes of the stimuli: expected them beside the features of the images, got "
                                 "none. Leave this metric out for a study without attributes.")
            true = one_hot(decoded.gallery_attributes, spec.labels)
        matrices = {name: agreement(found[:, places], true[:, places]) for name, places in groups.items()}
        layers = np.stack(list(matrices.values()))
        known = (~np.isnan(layers)).sum(axis=0)
        mean = np.where(known > 0, np.nansum(layers, axis=0) / np.maximum(known, 1), np.nan)
        return {"": mean, **matrices}

    def _name(self, attribute: str) -> str:
        return f"{self.names[0]}/{attribute}" if attribute else self.names[0]

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every decoded row, in [0, 1], see `interfaces.Metric.score`.

        A row has no line for an attribute that its stimulus lacks.

        Raises
        ------
        ValueError
            If the space has no labels, or the predictions hold NaN.
        """
        tables = []
        for attribute, matrix in self._matrices(decoded).items():
            lines = score_lines(matrix[np.arange(len(decoded)), np.asarray(decoded.truth)],
                                metric=self._name(attribute), space=self.space)
            tables.append(lines.dropna(subset="value").assign(proportion=attribute != ""))
        return stack(tables, columns=[*SCORE_COLUMNS, "proportion"])

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`."""
        stimuli = repairings(decoded.truth, len(decoded.gallery_ids), generator=generator)
        rows = np.arange(len(decoded))
        tables = []
        for attribute, matrix in self._matrices(decoded).items():
            values = matrix[rows, stimuli]
            if not np.isnan(values).all():
                tables.append(chance_line(np.nanmean(values), "re-pairing", metric=self._name(attribute),
                                          space=self.space))
        return stack(tables, columns=CHANCE_COLUMNS)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
