"""k-way identification: the truth against k - 1 random distractors, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.meaning import Meaning
from brain2img.metrics.ranking import RankScore, chance_of_ranks, score_ranks
from brain2img.metrics.tables import needs_of
from brain2img.records import Decoded

_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 10: "ten", 20: "twenty", 50: "fifty"}


class Identification(Metric):
    """Expected accuracy of picking the truth out of k candidates by Pearson correlation, for each k.

    "image_from_brain" compares a decoded embedding with real ones, as the two-way score of the fMRI literature (Ozcelik
    & VanRullen 2023, https://arxiv.org/abs/2303.05334; MindEye, https://arxiv.org/abs/2305.18274); "brain_from_image"
    fixes the real one and varies the decoded ones, as Takagi & Nishimoto (https://doi.org/10.1101/2022.11.18.517004).
    Deviations: ties count half (published code counts them as errors), and k-way accuracies are expectations over
    all draws of distractors (published code draws them). A k above the number of candidates is left out.

    With ``of="images"`` the features of reconstructed pictures are compared with those of the stimuli, as the
    AlexNet, Inception and CLIP rows of the fMRI tables: the decoded row is then the reconstruction.

    Values are shares, not successes, so that intervals are bootstrapped.

    Parameters
    ----------
    ways
        The k of each score; they are named "two_way", "fifty_way", or e.g. "200_way".
    of
        "embeddings" or "images".
    space
        The space that is compared; None for every one, in turn.

    Raises
    ------
    ValueError
        If a k is below 2 or `of` is unknown.
    """

    proportion = False

    def __init__(self, *, ways: Sequence[int] = (2, 50), of: str = "embeddings", space: str | None = None) -> None:
        if not ways or min(ways) < 2:
            raise ValueError(f"identification: expected ways of at least 2, got {list(ways)}. "
                             "Correct metric.identification.ways.")
        self.names = tuple(f"{_WORDS.get(k, k)}_way" for k in ways)
        self.needs = needs_of(of, space)
        self._scores = [RankScore(name, among=k) for k, name in zip(ways, self.names, strict=True)]

    def meaning(self, name: str) -> Meaning:
        """Return what an accuracy of ranks means."""
        return next(score.meaning for score in self._scores if score.name == name)

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every decoded row in every space, see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If the gallery holds a stimulus twice, or the predictions hold NaN.
        """
        return score_ranks(decoded, self._scores, needs=self.needs, kind="correlation")

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return 1 / k (analytic), see `interfaces.Metric.chance`."""
        return chance_of_ranks(decoded, self._scores, needs=self.needs)

    @classmethod
    def tiny(cls) -> Self:
        """Return two-way and three-way identification."""
        return cls(ways=(2, 3))
