"""Top-k retrieval of stimuli from decoded embeddings, and of decoded embeddings from stimuli."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd

from brain2img.interfaces import Metric
from brain2img.meaning import Meaning
from brain2img.metrics.ranking import SIMILARITIES, RankScore, chance_of_ranks, score_ranks
from brain2img.records import Decoded

GALLERIES = ("stimuli", "concepts")


class Retrieval(Metric):
    """Share of queries whose truth is among the k most similar candidates, for each k.

    Two directions: "image_from_brain" (a decoded row ranks the N gallery stimuli) and "brain_from_image" (the stimulus
    of a row ranks the decoded rows; other rows of the same stimulus are no distractors; the value stands on that row).
    Each query is ranked alone, so the score is inductive. Embeddings are flattened. Ties are broken in every way
    at once: the value is the share of tie orders in which the truth is within k, so that a constant prediction scores
    exactly k / N. The `gallery` of "brain_from_image" is the number of candidates, the largest where rows differ.

    The published 300-way retrieval of MindEye (Scotti et al. 2023, https://arxiv.org/abs/2305.18274) averages draws of
    300 stimuli; here the whole gallery is ranked once and its size is reported.

    Parameters
    ----------
    ks
        The k of each score; they are named "top1", "top5", ...
    similarity
        "cosine" or "correlation".
    gallery
        "stimuli": the stimuli themselves. "concepts": in the place of each the mean embedding of the other stimuli of
        its concept that the study has, as in NICE (Song et al. 2024, https://arxiv.org/abs/2308.13234), whose 200-way
        score is therefore another one than ATM's; the scores are then named "top1_concept", ...

    Raises
    ------
    ValueError
        If a k is below 1 or the similarity or the gallery is unknown.
    """

    needs = ("*",)
    proportion = True

    def __init__(self, *, ks: Sequence[int] = (1, 5), similarity: str = "cosine", gallery: str = "stimuli") -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"retrieval: expected ks of at least 1, got {list(ks)}. Correct metric.retrieval.ks.")
        if similarity not in SIMILARITIES:
            raise ValueError(f"retrieval: expected a similarity of {SIMILARITIES}, got {similarity!r}. "
                             "Correct metric.retrieval.similarity.")
        if gallery not in GALLERIES:
            raise ValueError(f"retrieval: expected a gallery of {GALLERIES}, got {gallery!r}. Correct "
                             "metric.retrieval.gallery.")
        self.similarity, self.of_concepts = similarity, gallery == "concepts"
        self.names = tuple(f"top{k}_concept" if self.of_concepts else f"top{k}" for k in ks)
        self._scores = [RankScore(name, top=k) for k, name in zip(ks, self.names, strict=True)]

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
        return score_ranks(decoded, self._scores, needs=self.needs, kind=self.similarity)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return k / N (analytic), see `interfaces.Metric.chance`."""
        return chance_of_ranks(decoded, self._scores, needs=self.needs)

    @classmethod
    def tiny(cls) -> Self:
        """Return top-1 and top-5."""
        return cls()
