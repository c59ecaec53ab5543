"""Features of pictures in the spaces that metrics name, every picture embedded once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig

from brain2img.artifacts import Reconstructions, digest
from brain2img.data.dataset import chunks
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, Stimuli
from brain2img.stages.build import build_space, plain
from brain2img.stages.progress import progress


class PictureFeatures:
    """Embeds stimuli and reconstructions in the metric spaces; what several conditions share is embedded once.

    Parameters
    ----------
    batch_size
        Pictures embedded at a time.
    """

    def __init__(self, *, batch_size: int) -> None:
        self._batch_size = batch_size
        self._built: dict[str, Space] = {}
        self._known: dict[Space, dict[Hashable, np.ndarray]] = {}

    def spaces(self, cfg: DictConfig) -> dict[str, Space]:
        """Return the ``metric_space`` of a configuration by name; members that ask for the same share it."""
        chosen: Mapping[str, Any] = plain(cfg.get("metric_space")) or {}
        for name, config in chosen.items():
            if digest([name, config]) not in self._built:
                self._built[digest([name, config])] = build_space(name, config)
        return {name: self._built[digest([name, config])] for name, config in chosen.items()}

    def specs(self, spaces: Mapping[str, Space], study: PreparedStudy) -> dict[str, EmbeddingSpec]:
        """Return what the features of each space are."""
        return {name: space.spec(study.stimuli) for name, space in spaces.items()}

    def of_stimuli(self, spaces: Mapping[str, Space], study: PreparedStudy, ids: Sequence[str]
                   ) -> dict[str, np.ndarray]:
        """Return space -> ``(N, *shape)`` features of the stimuli `ids`."""
        return self._of(spaces, study.stimuli_of(ids), [(study.folder, stimulus) for stimulus in ids])

    def of_reconstructions(self, spaces: Mapping[str, Space], pictures: Reconstructions, rows: np.ndarray
                           ) -> dict[str, np.ndarray]:
        """Return space -> ``(n, *shape)`` features of the given rows of the index of `pictures`."""
        table = pictures.index.iloc[rows].reset_index(drop=True)
        # conditions share pictures: one is known by what it was made from and with, not by where it lies
        maker = digest(pictures.manifest["config"])
        keys = [(maker, picture) for picture in table["picture"]]
        return self._of(spaces, Stimuli(table, lambda places: pictures.images(rows[np.asarray(places)])), keys)

    def _of(self, spaces: Mapping[str, Space], pictures: Stimuli, keys: Sequence[Hashable]) -> dict[str, np.ndarray]:
        found = {}
        for name, space in spaces.items():
            known = self._known.setdefault(space, {})
            first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
            new = sorted(first.values())
            for part in progress(chunks(len(new), self._batch_size), description=f"look at pictures with {name}"):
                places = [new[i] for i in part]
                for i, values in zip(places, space.embed(pictures, places), strict=True):
                    known[keys[i]] = np.asarray(values, dtype=np.float32)
            found[name] = np.stack([known[key] for key in keys])
        return found
