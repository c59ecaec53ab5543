"""What a score means: how it is called and written, and which way is good."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What a score means, whoever shows it: stated by its metric, and carried by every table of scores.

    Parameters
    ----------
    label
        How it is called in text.
    unit
        "%" for a proportion in [0, 1] that is written in per cent, else "".
    decimals
        Digits after the point where it is not in per cent.
    higher_is_better
        Whether a large value is a good one.
    descriptive
        Whether it describes predictions and says nothing of whether they are right, so that none beats chance in it.
    """

    label: str
    unit: str = ""
    decimals: int = 3
    higher_is_better: bool = True
    descriptive: bool = False

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Meaning:
        """Return the meaning that a line of a table carries."""
        return cls(str(line["label"]), str(line["unit"]), int(line["decimals"]), bool(line["higher_is_better"]),
                   bool(line["descriptive"]))

    @property
    def scale(self) -> float:
        """What values are multiplied by where they are drawn: 100 for per cent."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def sign(self) -> int:
        """1 where a large value is a good one, else -1."""
        return 1 if self.higher_is_better else -1


MEANING = tuple(f.name for f in dataclasses.fields(Meaning))
"""Columns of a `Meaning` in tables of scores."""
