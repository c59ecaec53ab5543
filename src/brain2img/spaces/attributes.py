"""The known factors of a study's stimuli as a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from brain2img.artifacts import digest
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, Stimuli


class Attributes(Space):
    """Categorical attributes one-hot, numeric ones as they are.

    The vocabulary is the sorted set of values over all stimuli of the study, which is part of the study's definition
    and not of any recording.

    Parameters
    ----------
    fields
        Names of the attributes, in this order; all by default.
    name
        Key of the space in the configuration.
    """

    needs_attributes = True

    def __init__(self, *, fields: Sequence[str] | None = None, name: str = "attributes") -> None:
        self.fields, self.name = None if fields is None else list(fields), name

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return one dimension per value: labels "kind=apple" or, for numbers, "x".

        Raises
        ------
        ValueError
            If a stimulus lacks an attribute.
        """
        rows = stimuli.table["attributes"]
        fields = self.fields if self.fields is not None else sorted({key for row in rows for key in row})
        labels: list[str] = []
        for name in fields:
            missing = [i for i, row in enumerate(rows) if name not in row]
            if missing or not len(rows):
                got = stimuli.table["stimulus_id"].iloc[missing[0]] if missing else "no stimuli"
                raise ValueError(f"space {self.name!r}: expected attribute {name!r} of every stimulus, got none for "
                                 f"{got!r}. Name the attributes all stimuli have in space.{self.name}.fields.")
            if all(isinstance(row[name], (int, float)) and not isinstance(row[name], bool) for row in rows):
                labels.append(name)
            else:
                labels += [f"{name}={value}" for value in sorted({str(row[name]) for row in rows})]
        if not labels:
            raise ValueError(f"space {self.name!r}: expected stimuli with attributes, got none. "
                             "Leave this space out for this study.")
        return EmbeddingSpec(name=self.name, shape=(len(labels),), dtype="float16", labels=tuple(labels),
                             uid=self.uid())

    def uid(self) -> str:
        """Return the identity of the choice of attributes."""
        return digest(["attributes", self.fields])

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return ``(n, D)`` float32: 0 or 1, and numbers as they are."""
        labels = {label: i for i, label in enumerate(self.spec(stimuli).labels)}
        names = {label.partition("=")[0] for label in labels}
        table = stimuli.table["attributes"]
        out = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for i, row in enumerate(rows):
            for name, value in table.iloc[row].items():
                if name in labels:
                    out[i, labels[name]] = value
                elif name in names:
                    out[i, labels[f"{name}={value}"]] = 1
        return out

    @classmethod
    def tiny(cls) -> Self:
        """Return a space of all attributes."""
        return cls()
