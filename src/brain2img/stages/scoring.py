"""Scores of one decoder on one study: what it decoded, and the pictures and captions made from that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from brain2img.artifacts import Captions, EmbeddingCache, Predictions, Reconstructions, read_manifest, read_table
from brain2img.data.prepared import PreparedStudy
from brain2img.interfaces import Metric, Space
from brain2img.meaning import MEANING
from brain2img.metrics.ranking import RankScore
from brain2img.records import Decoded, EmbeddingSpec
from brain2img.report.style import CAPTIONS, CEILING, EMBEDDINGS, IMAGES, STIMULI
from brain2img.stages.build import build_metrics, plain
from brain2img.stages.decoded_ranks import ideal_ranks
from brain2img.stages.features import PictureFeatures
from brain2img.stages.galleries import check_gallery, of_concepts
from brain2img.stages.runs import fold_runs
from brain2img.stages.workspace import CONDITIONS, made_folders, relative

CURVES = ("repetitions", "time_course", "regions")
Tables = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class _Output:
    """What one folder holds: its lines, and what they give to `Decoded`.

    Parameters
    ----------
    of, generator, condition
        What is scored ("embeddings", "images", "captions"), the key of what made it ("" for embeddings), and how.
    rows
        Its lines, with subject and stimulus_id.
    parts
        Maps places in `rows` and the ids of the gallery to arguments of `Decoded`.
    """

    of: str
    generator: str
    condition: str
    rows: pd.DataFrame
    parts: Callable[[np.ndarray, list[str]], dict[str, Any]]


class MemberScores:
    """One decoder on one study: its predictions, pictures and captions under every condition that was made.

    Parameters
    ----------
    cfg
        Configuration of the member.
    root
        The outputs folder.
    features
        Shared by all members, for the pictures they share.
    """

    def __init__(self, cfg: DictConfig, root: Path, *, features: PictureFeatures) -> None:
        self.cfg, self.root, self._features = cfg, root, features
        self.name, self.metrics = cfg.name, build_metrics(cfg)
        self.runs = fold_runs(cfg)
        self.manifest = self.runs[0].manifest
        self.prepared: PreparedStudy = self.runs[0].prepared
        self.study = self.manifest.later["study_label"] or self.prepared.name
        if self.prepared.manifest.get("simulated"):
            self.study += " (simulated)"
        self.caches = [run.caches() for run in self.runs]
        self.predictions = {c: Predictions(root / "predictions" / self.name / c) for c in CONDITIONS
                            if c == "decoded" or (root / "predictions" / self.name / c / "manifest.json").exists()}
        self.subjects: list[str] = self.predictions["decoded"].rows["subject"].unique().tolist()
        self.pictures = {key: {c: Reconstructions(folder) for c, folder in found.items()}
                         for key, found in made_folders(cfg, "reconstructions").items()}
        self.captions = {key: {c: Captions(folder) for c, folder in found.items()}
                         for key, found in made_folders(cfg, "captions").items()}
        self.spaces: dict[str, Space] = features.spaces(cfg) if self.pictures else {}
        self._checked: set[tuple[str, tuple[str, ...]]] = set()  # galleries, by space and stimuli
        self._specs: dict[str, EmbeddingSpec] = features.specs(self.spaces, self.prepared)

    def _curve(self, curve: str) -> Path:
        return self.root / curve / self.name

    def curve(self, curve: str) -> pd.DataFrame | None:
        """Return the table of the repetitions, the time course or the regions, or None where it was not made."""
        made = (self._curve(curve) / "manifest.json").exists()
        return read_table(self._curve(curve) / f"{curve}.parquet").assign(study=self.study) if made else None

    def _folders(self) -> Iterator[tuple[str, str, str, Predictions | Reconstructions | Captions]]:
        """Yield stage, key, condition and folder of everything that was made."""
        for condition, predictions in self.predictions.items():
            yield "predictions", "", condition, predictions
        for stage, made in (("reconstructions", self.pictures), ("captions", self.captions)):
            for key, found in made.items():
                for condition, folder in found.items():
                    yield stage, key, condition, folder

    def inputs(self) -> dict[str, str]:
        """Return the ids of all that is scored."""
        found = {" ".join(filter(None, (self.name, stage, key, condition))): folder.manifest["id"]
                 for stage, key, condition, folder in self._folders()}
        found |= {f"{self.name} metric space {name}": spec.uid for name, spec in self._specs.items()}
        return found | {f"{self.name} {c}": read_manifest(self._curve(c))["id"] for c in (*CURVES, "importance")
                        if (self._curve(c) / "manifest.json").exists()}

    def entry(self) -> dict[str, Any]:
        """Return what the report needs to know of this member."""
        seconds = {"prepare": self.prepared.manifest["seconds"],
                   "train": sum(run.manifest.seconds for run in self.runs)}
        paths: dict[str, Any] = {"predictions": {}, "reconstructions": {}, "captions": {}}
        for stage, key, condition, folder in self._folders():
            word = {"predictions": "predict", "reconstructions": "reconstruct", "captions": "caption"}[stage]
            seconds[word] = seconds.get(word, 0.0) + folder.manifest["seconds"]
            at = paths[stage].setdefault(key, {}) if key else paths[stage]
            at[condition] = relative(folder.folder, self.root)
        return {"experiment": self.name, "study": self.study, "modality": self.prepared.modality,
                "decoder": self.manifest.label, "headline": plain(self.cfg.headline),
                "subjects": self.subjects, "seed": self.manifest.seed,
                "n_fold_runs": len(self.runs), "protocol": self.manifest.config.get("split", {}).get("kind"),
                "prepared": relative(self.prepared.folder, self.root),
                "run": relative(self.runs[0].folder.parent, self.root), **paths, "seconds": seconds,
                "importance": relative(self._curve("importance"), self.root) if (
                    self._curve("importance") / "manifest.json").exists() else None}

    def score(self, *, seed: int) -> Tables:
        """Return the row-level scores of every condition, and the chance levels (found on the decoded rows)."""
        tables, chances = [], []
        outputs = list(self._outputs())
        for output in outputs:
            same = [o for o in outputs if (o.of, o.generator) == (output.of, output.generator)]
            for subject in self.subjects:
                table, chance = self._score(output, subject, seed=seed if output.condition == "decoded" else None)
                tables.append(table)
                chances += [chance.assign(condition=o.condition) for o in same]
        return _stack(tables), _stack(chances)

    def ceiling(self, *, seed: int) -> Tables:
        """Return the scores of the stimuli themselves, as if they had been reconstructed without a fault.

        What is missing from 100 % there is the metric's own network's error (it may not name every object rightly).
        """
        tables: list[pd.DataFrame] = []
        chances: list[pd.DataFrame] = []
        for output in [o for o in self._outputs() if o.of == IMAGES and o.condition == "decoded"][:1]:
            def stimuli(places: np.ndarray, ids: list[str], rows: pd.DataFrame = output.rows) -> dict[str, Any]:
                truth = np.searchsorted(ids, rows["stimulus_id"].to_numpy()[places])
                parts = self._gallery(ids)
                return {**parts, "images": parts["gallery_images"][truth],
                        "features": {name: values[truth] for name, values in parts["gallery_features"].items()}}

            perfect = _Output(IMAGES, "", "decoded", output.rows, stimuli)
            for subject in self.subjects:
                table, chance = self._score(perfect, subject, seed=seed)
                # the same pictures whatever the network is also used for
                tables.append(table.assign(decoder=STIMULI, circular=False, row=-1))
                chances.append(chance.assign(decoder=STIMULI, circular=False, condition="decoded"))
        return _stack(tables), _stack(chances)

    def _outputs(self) -> Iterator[_Output]:
        for condition, predictions in self.predictions.items():
            yield _Output(EMBEDDINGS, "", condition, predictions.rows, self._embeddings(predictions))
        for key, pictures in self.pictures.items():
            for condition, made in pictures.items():
                yield _Output(IMAGES, key, condition, made.index, self._images(made))
        for key, captions in self.captions.items():
            for condition, said in captions.items():
                yield _Output(CAPTIONS, key, condition, said.table, self._captions(said))

    def _embeddings(self, predictions: Predictions) -> Callable[[np.ndarray, list[str]], dict[str, Any]]:
        def parts(places: np.ndarray, ids: list[str]) -> dict[str, Any]:
            gallery, caches = {}, self._caches(predictions.rows, places)
            for space in predictions.specs:
                cache = caches[space]
                gallery[space] = np.asarray(cache.array[cache.rows(ids)], dtype=np.float32)
                if (space, tuple(ids)) not in self._checked:
                    check_gallery(gallery[space], spec=cache.spec, stimulus_ids=ids, study=self.prepared.name)
                    self._checked.add((space, tuple(ids)))
            return {"gallery": gallery, "specs": predictions.specs,
                    "embeddings": {space: predictions.embeddings(space, places) for space in predictions.specs}}
        return parts

    def _caches(self, rows: pd.DataFrame, places: np.ndarray) -> dict[str, EmbeddingCache]:
        """Return the true embeddings of every space that the predictions at some places of `rows` are compared with.

        Raises
        ------
        ValueError
            If they are of several folds that have each learned a view of a space, so that they do not compare.
        """
        runs = sorted(set(rows["run"].to_numpy()[places])) if "run" in rows else [0]
        for space in self.caches[runs[0]]:
            if (n := len({self.caches[run][space].folder for run in runs})) > 1:
                raise ValueError(f"{self.name}, space {space!r}: expected the predictions of one subject to be of one "
                                 f"space, got those of {n} folds, of which each has learned a space of its own. Score "
                                 "the folds one by one (run=<folder of a fold>), or choose a head that learns none.")
        return self.caches[runs[0]]

    def _images(self, made: Reconstructions) -> Callable[[np.ndarray, list[str]], dict[str, Any]]:
        return lambda places, ids: {
            **self._gallery(ids), "images": made.images(places),
            "features": self._features.of_reconstructions(self.spaces, made, places)}

    def _gallery(self, ids: list[str]) -> dict[str, Any]:
        stimuli = self.prepared.stimuli_of(ids)
        return {"gallery_images": stimuli.images(), "feature_specs": self._specs,
                "gallery_features": self._features.of_stimuli(self.spaces, self.prepared, ids),
                "gallery_attributes": stimuli.table["attributes"].tolist()}

    def _captions(self, said: Captions) -> Callable[[np.ndarray, list[str]], dict[str, Any]]:
        def parts(places: np.ndarray, ids: list[str]) -> dict[str, Any]:
            table = self.prepared.stimuli_of(ids).table
            true = [[] if c is None else list(c) for c in table["captions"]]
            return {"captions": said.captions(places), "specs": self.predictions["decoded"].specs,
                    "gallery_attributes": table["attributes"].tolist(), "gallery_captions": true if any(true) else None}
        return parts

    def _score(self, output: _Output, subject: str, *, seed: int | None) -> Tables:
        """Return the scores of one subject's lines, and where there is a seed their chance levels."""
        places = np.flatnonzero(output.rows["subject"] == subject)
        ids = output.rows["stimulus_id"].to_numpy()[places]
        gallery_ids = sorted(set(ids))
        decoded = Decoded(truth=np.searchsorted(gallery_ids, ids), gallery_ids=tuple(gallery_ids),
                          **output.parts(places, gallery_ids))
        rows = self.predictions["decoded"].rows
        repetitions = rows["n_averaged"][rows["subject"] == subject].median()
        labels = {"study": self.study, "subject": subject, "modality": self.prepared.specs[subject].modality,
                  "decoder": self.manifest.label, "condition": output.condition, "of": output.of,
                  "generator": output.generator, "repetitions": int(repetitions)}
        circular = self._circular() if output.of != EMBEDDINGS else set()
        tables, chances = [], []
        for metric in self.metrics.values():
            if not _fits(metric, decoded, of=output.of):
                continue
            shown = of_concepts(decoded, study=self.prepared, caches=self._caches(
                output.rows, places)) if metric.of_concepts else decoded
            table = metric.score(shown).assign(**labels, transductive=metric.transductive)
            if "proportion" not in table:  # a metric may tell it line by line
                table["proportion"] = metric.proportion
            meanings = {name: asdict(metric.meaning(name)) for name in table["metric"].unique()}
            table = table.assign(**{key: table["metric"].map({name: meanings[name][key] for name in meanings})
                                    for key in MEANING})
            tables.append(table.assign(stimulus_id=ids[table["row"]], row=places[table["row"]],
                                       circular=table["space"].isin(circular)))
            if seed is not None:
                chance = metric.chance(decoded, generator=np.random.default_rng([seed, 6]))
                chances.append(chance.assign(**labels, transductive=metric.transductive,
                                             circular=chance["space"].isin(circular)))
        return _stack(tables), _stack(chances)

    def _circular(self) -> set[str]:
        """Return the metric spaces that are, by uid, also targets of the decoder, and so conditions of what it feeds.

        A picture made from an embedding resembles its stimulus in that space whatever else is wrong with it.
        """
        targets = {spec.uid for spec in self.predictions["decoded"].specs.values()} - {""}
        return {name for name, spec in self._specs.items() if spec.uid in targets}


def _fits(metric: Metric, decoded: Decoded, *, of: str) -> bool:
    """Tell whether a metric is about `of`, and all it needs is there."""
    about = {need for need in metric.needs if need in (IMAGES, CAPTIONS)} or {EMBEDDINGS}
    if of == CAPTIONS and decoded.gallery_captions is None and not metric.needs_attributes:
        return False  # the study has no captions to compare with
    there: Mapping[str, Any] = decoded.features if of == IMAGES else decoded.embeddings
    return about == {of} and all(need in there for need in metric.needs if need not in ("*", IMAGES, CAPTIONS))


def _stack(tables: list[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def observer(study: PreparedStudy, *, label: str) -> Tables:
    """Return the scores of the ideal observer of a simulated study, from the ranks it wrote when it was prepared.

    Parameters
    ----------
    study
        The study; one without an observer gives empty tables.
    label
        What tables call it.
    """
    ranks = ideal_ranks(study)
    if ranks is None:
        return pd.DataFrame(), pd.DataFrame()
    tables, chances = [], []
    for score in map(RankScore.named, ("top1", "top5", "two_way")):
        tables.append(pd.DataFrame({
            "study": label, "subject": ranks["subject"], "modality": study.modality, "decoder": CEILING,
            "condition": "decoded", "of": EMBEDDINGS, "generator": "", "space": "generator",
            "stimulus_id": ranks["stimulus_id"], "metric": score.name, "direction": ranks["direction"],
            "gallery": ranks["candidates"],
            "repetitions": ranks["repetitions"], "transductive": False, "circular": False,
            **asdict(score.meaning), "proportion": score.among is None, "value": score.values(ranks), "row": -1}))
        keys = tables[-1].drop(columns=["stimulus_id", "value", "row"]).drop_duplicates()
        chances.append(keys.assign(chance=score.chance(keys["gallery"]), chance_kind="analytic"))
    return pd.concat(tables, ignore_index=True), pd.concat(chances, ignore_index=True)
