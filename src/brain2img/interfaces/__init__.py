"""The abstract classes a contributor implements.

Shape letters, used in every docstring of the project: ``B`` trials, ``B_s`` trials of one subject, ``C`` channels
(sensors, voxels, ROIs), ``T`` samples or TRs, ``F`` shared features, ``L`` tokens, ``H`` hidden width, ``D`` embedding
width, ``K`` subject tokens, ``N`` gallery size. ``F`` and ``T``: axes of the encoder's grid, not sensors and time.

Every class that a YAML names has a classmethod ``tiny()`` that returns a ready, small instance: the contract tests run
on it. A part is one file with one class and one YAML with its ``_target_``; there is no other registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Generator, Tensor, nn

from brain2img.interfaces.network import Augmentation, Encoder, Head, HeadArguments, SubjectAdapter
from brain2img.interfaces.part import Part
from brain2img.meaning import Meaning
from brain2img.records import BrainBatch, EmbeddingSpec, Stimuli

if TYPE_CHECKING:
    import pandas as pd

    from brain2img.records import Decoded

__all__ = ["Augmentation", "Captioner", "Decoder", "Encoder", "Head", "HeadArguments", "Maker", "Metric", "Part",
           "Prior", "Reconstructor", "Space", "Study", "SubjectAdapter"]


class Study(Part):
    """Turns the raw files of one study into a prepared folder; `prepare` of its `tiny()` takes about a second."""

    name: str
    """Name of the study: the folder under ``outputs/prepared`` and the ``study`` of every score."""
    variant: str = "standard"
    """What tells its prepared folders apart at a glance: the form of the raw files, the voxels, ..."""
    modality: str
    """"fmri", "eeg" or "meg": which members of a collection can decode it."""
    has_attributes: bool = False
    """Whether the known factors of its stimuli are among their attributes; parts that need them are left out if not."""

    @abstractmethod
    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write signals, trials and stimuli into the existing folder `out` through `data.prepared.PreparedWriter`.

        An interrupted call is continued by calling it again on the same `out`.

        Parameters
        ----------
        raw
            Folder or file as the study's authors publish it; None for simulated studies.
        out
            Working folder.

        Raises
        ------
        ValueError
            If the raw files are missing, truncated or contradict each other.
        """

    def raw_id(self, raw: Path | None) -> str:
        """Return an identity of the raw files that does not depend on where they lie ("" where there are none)."""
        return ""


class Space(Part):
    """A frozen backbone: stimulus -> embedding. Deterministic; never trained here."""

    name: str
    """Key of the space in the configuration."""
    needs_attributes: bool = False
    """Whether it can embed the stimuli of a study with ``has_attributes`` alone."""

    @abstractmethod
    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        """Return what `embed` will give for these stimuli (for most spaces, for any stimuli)."""

    @abstractmethod
    def uid(self) -> str:
        """Return the identity of weights, transform, layer and dtype."""

    @abstractmethod
    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        """Return embeddings ``(n, *spec.shape)`` float32 of the given rows of `stimuli`."""


class Decoder(ABC):
    """Brain signals -> embeddings of one or more spaces, deep or linear.

    Constructors take ``(*, specs: Mapping[str, SignalSpec], targets: Mapping[str, EmbeddingSpec], seed: int, ...)``,
    or, with `has_parts`, ``(*, adapter, encoder, heads, augmentation, training, seed: int, ...)``.
    """

    has_parts: bool = False
    """Whether it is built of an adapter, an encoder and heads, and trained in epochs."""
    adapter: SubjectAdapter | None = None
    """The subject adapter of a decoder with parts."""

    @property
    def before_average(self) -> Callable[[Tensor, str], Tensor] | None:
        """What single trials ``(n, C, T)`` of a subject go through before they are averaged, where there is such."""
        return self.adapter.once if self.adapter is not None and self.adapter.average_after else None

    @abstractmethod
    def fit(self, data: Any, *, folder: Path) -> None:
        """Fit on the training split of `data` (a `data.datamodule.BrainData`).

        Checkpoints and logs go into `folder`; an interrupted fit is continued from there.
        """

    @abstractmethod
    def predict(self, batch: BrainBatch) -> dict[str, np.ndarray]:
        """Return space -> ``(B, *shape)`` float32 for the trials of `batch`, in its order."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted decoder into `folder`."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If anything is missing, unexpected or of another shape, with the full list.
        """

    def learned_spaces(self) -> dict[str, tuple[EmbeddingSpec, Callable[[np.ndarray], np.ndarray]]]:
        """Return space -> what of it is decoded, and the map of true embeddings to that; none by default."""
        return {}

    def n_parameters(self) -> dict[str, int]:
        """Return name -> number of what is fitted; the name of a subject's own begins with it or holds it.

        Raises
        ------
        ValueError
            If the decoder does not know.
        """
        raise self._lacks("that counts its parameters", cure="Leave this experiment out of models=[...].")

    def slopes(self, batch: BrainBatch, *, space: str, directions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the slope of each trial's decoded embedding along a direction, with respect to its signals.

        Parameters
        ----------
        batch
            Trials, the B of them; a trial's slope does not depend on those beside it.
        space
            Decoded space.
        directions
            ``(B, *shape)`` one direction in the space for each trial.

        Returns
        -------
        dict of str to numpy.ndarray
            Subject -> ``(B_s, C, T)`` float32 of d <decoded, direction> / d signal, in units of the space per unit of
            the normalised signal.

        Raises
        ------
        ValueError
            If the decoder has no slope that is known.
        """
        raise self._lacks("whose slope is known",
                          cure="Use importance.method=occlusion, which needs predictions alone.")

    def load_epoch(self, folder: Path, epoch: int) -> None:
        """Read the weights after `epoch` (0 is the first), of those that ``trainer.keep_last`` kept in `folder`.

        Raises
        ------
        ValueError
            If the decoder is not trained in epochs, or as `load` does.
        """
        raise self._lacks("that is trained in epochs", cure="Use evaluate.py.")

    def _lacks(self, what: str, *, cure: str) -> ValueError:
        return ValueError(f"decoder: expected one {what}, got {type(self).__name__}, which is none. {cure}")

    def joint_priors(self) -> dict[str, Prior]:
        """Return space -> the prior that was trained jointly with this decoder; none by default."""
        return {}


class Prior(Part):
    """Moves decoded embeddings onto the manifold of the space."""

    per_subject: bool = False
    """Whether each subject has one of its own unless the stage is told otherwise; else one serves all subjects."""

    @abstractmethod
    def fit(self, predicted: np.ndarray, true: np.ndarray, *, folder: Path) -> None:
        """Fit on predictions of stimuli that the decoder was not trained on.

        Both are ``(n, *shape)``. Checkpoints and logs go into `folder`; an interrupted fit is continued from there.

        Raises
        ------
        ValueError
            If the shapes differ or a value is not finite.
        """

    @abstractmethod
    def sample(self, predicted: np.ndarray, *, generators: Sequence[Generator]) -> np.ndarray:
        """Return one sample ``(n, *shape)`` for each prediction ``(n, *shape)``.

        Each row draws from its own one of the n `generators`, so that it does not matter which rows come together.
        """

    def start(self, shape: tuple[int, ...]) -> nn.Module:
        """Make and return the network that a deep decoder trains jointly, for embeddings of this shape."""
        raise self._not_joint()

    def observe(self, targets: Callable[[], np.ndarray]) -> None:
        """Look at the true embeddings ``(n, *shape)`` of a joint training before it begins; nothing by default."""
        return

    def training_loss(self, context: Tensor, target: Tensor, *, generator: Generator) -> Tensor:
        """Return the loss by which a deep decoder trains this prior jointly."""
        raise self._not_joint()

    def _not_joint(self) -> ValueError:
        return ValueError(f"{type(self).__name__}: expected a prior that can be trained jointly, got one that cannot. "
                          "Fit it with the fit_prior stage.")

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the fitted prior into `folder`."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""


class Maker(Part):
    """What reconstructors and captioners share: they make something of embeddings, with weights that know which."""

    needs: tuple[str, ...]
    """Names of the spaces it reads."""
    tiny_shapes: Mapping[str, tuple[int, ...]]
    """Space -> shape of an embedding that `tiny()` reads: what the contract tests hand it."""

    def uid(self) -> str:
        """Return the identity of its weights, beside what the configuration says; "" where it has none."""
        return ""

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Raise ValueError where a space -> spec is not what the weights were trained on (uid, shape)."""
        return

    @property
    @abstractmethod
    def fits(self) -> bool:
        """Whether its `fit` does something: what is made then depends on the fold."""


class Reconstructor(Maker):
    """Embeddings -> images."""

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Look at the training stimuli: space -> ``(N, *shape)``, and N pictures, lazy; nothing by default."""
        return

    @property
    def fits(self) -> bool:
        """Whether a subclass has a `fit` of its own; see `Maker.fits`."""
        return type(self).fit is not Reconstructor.fit

    @abstractmethod
    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Map space -> ``(B, *shape)`` float32, on the CPU, to images ``(B, 3, h, w)`` in [0, 1].

        Each image draws from its own one of the B `generators`, so that it does not depend on those beside it.
        """


class Captioner(Maker):
    """Embeddings -> text."""

    def fit(self, embeddings: Mapping[str, np.ndarray], captions: Sequence[Sequence[str]]) -> None:
        """Look at the training stimuli: space -> ``(N, *shape)`` and their captions; nothing by default."""
        return

    @property
    def fits(self) -> bool:
        """Whether a subclass has a `fit` of its own; see `Maker.fits`."""
        return type(self).fit is not Captioner.fit

    @abstractmethod
    def caption(self, embeddings: Mapping[str, Tensor]) -> list[str]:
        """Map space -> ``(B, *shape)`` to B captions."""


class Metric(Part):
    """Scores what was decoded for one subject under one condition.

    Attributes
    ----------
    names
        Names of the scores in the `metric` column of `score`, e.g. ("top1", "top5").
    needs
        What it reads: names of spaces, "images" (reconstructions) or "captions"; what lacks one of them is not scored
        by this metric. ("*",) means every space of the predictions, one after the other. Beside "images", a space is
        one of the ``metric_space`` and the metric is handed its features of the images: ("images", "judge").
    labels
        Name of a score -> how it is called in text; one that is not there is written as its name.
    unit, decimals, higher_is_better, descriptive
        What its scores mean, see `brain2img.records.Meaning`; `meaning` says it score by score.
    transductive
        Whether a score uses the other test queries.
    proportion
        True where a value is 0, 1 or a tie's fraction, so that its interval is Wilson's.
    needs_attributes
        Whether it compares with the known attributes of the stimuli, which not every study has.
    of_concepts
        Whether its gallery is one mean embedding per concept in place of the stimuli; it is handed that.
    """

    names: tuple[str, ...]
    needs: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    unit: str = ""
    decimals: int = 3
    higher_is_better: bool = True
    descriptive: bool = False
    transductive: bool = False
    proportion: bool = False
    needs_attributes: bool = False
    of_concepts: bool = False

    def meaning(self, name: str) -> Meaning:
        """Return what the score called `name` means; by default what the attributes of the class say of all."""
        return Meaning(self.labels.get(name, name.replace("_", " ")), self.unit, self.decimals,
                       self.higher_is_better, self.descriptive)

    @abstractmethod
    def score(self, decoded: Decoded) -> pd.DataFrame:
        """Score every decoded row.

        Returns
        -------
        pandas.DataFrame
            One line per decoded row, metric, space and direction: `row` (0..n-1), `metric`, `space` ("" for images),
            `direction` ("image_from_brain", "brain_from_image" or ""), `gallery` (N or 0), `value`.
        """

    @abstractmethod
    def chance(self, decoded: Decoded, *, generator: np.random.Generator) -> pd.DataFrame:
        """Return what a decoder without information scores.

        Returns
        -------
        pandas.DataFrame
            One line per metric, space and direction: `metric`, `space`, `direction`, `chance`, `chance_kind`
            ("analytic", or "re-pairing": the mean over 200 random re-pairings of predictions and stimuli).
        """
