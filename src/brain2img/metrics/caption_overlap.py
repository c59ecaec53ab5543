"""Words that a decoded caption shares with the reference captions: BLEU and ROUGE."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Self

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU

from brain2img.interfaces import Metric
from brain2img.metrics.pairing import pairs_for_chance
from brain2img.metrics.tables import CHANCE_COLUMNS, captions, chance_line, score_lines, stack
from brain2img.records import Decoded

_PAIRS_FOR_CHANCE = 2000


class _Words:
    """The tokens of rouge-score (lower case, letters and digits), remembered: references come again and again."""

    def __init__(self) -> None:
        self.tokenize = lru_cache(maxsize=1 << 14)(DefaultTokenizer(use_stemmer=False).tokenize)


class CaptionOverlap(Metric):
    """BLEU-1 to BLEU-4 and ROUGE-1, ROUGE-L of every decoded caption against all captions of its stimulus, in [0, 1].

    - "bleu1" ... "bleu4": Papineni et al. 2002, https://aclanthology.org/P02-1040, of single sentences by sacrebleu
      (https://github.com/mjpost/sacrebleu): tokens "13a" in lower case, clipped by the largest count in any reference,
      brevity penalty by the nearest length, counts of zero smoothed exponentially, n-grams longer than the caption
      left out ("effective order"). Published tables give the BLEU of a whole corpus on other tokens, which is no mean
      over stimuli: do not set these numbers beside them.
    - "rouge1", "rougeL": F-measure of shared words and of the longest common subsequence, Lin 2004,
      https://aclanthology.org/W04-1013, by rouge-score without stemming; the best over the references.

    METEOR is left out: nltk's needs WordNet, which is a download of its own.
    """

    names = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rougeL")
    needs = ("captions",)
    labels: Mapping[str, str] = {**{f"bleu{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)}, "rouge1": "ROUGE-1",
                                 "rougeL": "ROUGE-L"}

    def __init__(self) -> None:
        self._bleu = BLEU(lowercase=True, effective_order=True)
        self._rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())
        self._compare = lru_cache(maxsize=1 << 16)(self._comparison)  # pairs come again under other conditions

    def _comparison(self, caption: str, references: tuple[str, ...]) -> list[float]:
        """Return the six values of one caption."""
        found = self._bleu.sentence_score(caption, references)
        bleu = [BLEU.compute_bleu(found.counts[:n], found.totals[:n], found.sys_len, found.ref_len, smooth_method="exp",
                                  effective_order=True, max_ngram_order=n).score / 100 for n in (1, 2, 3, 4)]
        rouge = self._rouge.score_multi(references, caption)
        return [*bleu, rouge["rouge1"].fmeasure, rouge["rougeL"].fmeasure]

    def _values(self, decoded: Decoded, rows: np.ndarray, stimuli: np.ndarray) -> np.ndarray:
        """Return ``(P, 6)`` for P pairs of a decoded row and a place in the gallery."""
        found, references = captions(decoded), decoded.gallery_captions
        bare = [s for s in set(stimuli.tolist()) if references is None or not len(references[s])]
        if bare or references is None:
            raise ValueError(f"captions of the stimuli: expected at least one for each, got none for "
                             f"{decoded.gallery_ids[min(bare)]!r}. Leave caption_overlap out for this study.")
        return np.array([self._compare(found[row], tuple(references[place]))
                         for row, place in zip(rows, stimuli, strict=True)])

    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every caption, in [0, 1], see `interfaces.Metric.score`.

        Raises
        ------
        ValueError
            If there are no captions, or a stimulus has none.
        """
        values = self._values(decoded, np.arange(len(decoded)), np.asarray(decoded.truth))
        return pd.concat([score_lines(values[:, i], metric=name) for i, name in enumerate(self.names)],
                         ignore_index=True)

    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return the mean over re-pairings, see `interfaces.Metric.chance`, from at most 2,000 pairs at random.

        Their mean has a standard error of about 0.005.
        """
        captions(decoded)
        rows, stimuli, counts = pairs_for_chance(decoded, most=_PAIRS_FOR_CHANCE, generator=generator)
        levels = np.average(self._values(decoded, rows, stimuli), axis=0, weights=counts)
        return stack([chance_line(level, "re-pairing", metric=name)
                      for name, level in zip(self.names, levels, strict=True)], columns=CHANCE_COLUMNS)

    @classmethod
    def tiny(cls) -> Self:
        """Return the default."""
        return cls()
