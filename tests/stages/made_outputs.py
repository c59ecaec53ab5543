"""An outputs folder made by hand, as the stages before `evaluate` leave it: plain colours as stimuli."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from brain2img.artifacts import Captions, Predictions, open_folder, write_array, write_json, write_table
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.interfaces import Space
from brain2img.records import EmbeddingSpec, SignalSpec, Stimuli
from brain2img.spaces.pixels import Pixels

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}
N_TEST, N_RENDERED = 24, 16
SUBJECTS = ("sub-01", "sub-02")
CONDITIONS = ("decoded", "noise", "shuffled", "mean", "true")


class ColourReader(Space):
    """Reads the colour of a picture; blind to blue, which it takes for grey. Counts what it looks at."""

    looked = 0

    def __init__(self, *, name: str = "reader") -> None:
        self.name = name

    def spec(self, stimuli: Stimuli) -> EmbeddingSpec:
        return EmbeddingSpec(name=self.name, shape=(4,), labels=tuple(f"colour={c}" for c in COLOURS), uid=self.uid())

    def uid(self) -> str:
        return "reader"

    def embed(self, stimuli: Stimuli, rows: Sequence[int]) -> np.ndarray:
        ColourReader.looked += len(rows)
        mean = stimuli.images(rows).mean(axis=(1, 2))
        logits = -np.linalg.norm(mean[:, None] - np.array(list(COLOURS.values())), axis=2)
        logits[:, 2] -= 1000
        return logits

    @classmethod
    def tiny(cls) -> ColourReader:
        return cls()


def stimuli(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Return images ``(n, 8, 8, 3)`` of a colour with a gradient of its own, and their colours."""
    names = [list(COLOURS)[i % 4] for i in range(N_TEST + 4)]
    images = np.array([COLOURS[name] for name in names])[:, None, None, :]
    images = images + rng.integers(-30, 31, (len(names), 8, 8, 3))
    return images.clip(0, 255).astype(np.uint8), names


def prepare(root: Path, images: np.ndarray, colours: list[str]) -> str:
    work = open_folder(root / "prepared" / "s" / "tiny", stage="prepare", config={}, inputs={})
    writer = PreparedWriter(work.work, study="s")
    ids = [f"test-{i:02d}" for i in range(N_TEST)] + [f"train-{i}" for i in range(4)]
    trials = pd.DataFrame({"stimulus_id": ids, "split": [i.split("-")[0] for i in ids], "repetition": 0})
    for subject in SUBJECTS:
        writer.add_subject(SignalSpec(subject=subject, modality="fmri", units="a.u.", n_channels=2, n_times=1),
                           trials=trials, signals=[np.zeros((len(ids), 2, 1), dtype="float32")])
    writer.finish(pd.DataFrame({"stimulus_id": ids, "kind": "image", "concept": ids,
                                "captions": [[f"a {c} plain"] for c in colours],
                                "attributes": [{"colour": c} for c in colours]}), images=images)
    work.finish()
    return work.id


def make(root: Path, *, label: str, noise: float, target: Space, seed: int = 0, said: bool = True) -> DictConfig:
    """Write one member with predictions in the space of `target`, and pictures and captions of `N_RENDERED` stimuli.

    Returns its configuration, without metrics.
    """
    rng = np.random.default_rng(seed)
    images, colours = stimuli(np.random.default_rng(99))
    prepared_id = prepare(root, images, colours) if not (root / "prepared").exists() else None
    prepared = PreparedStudy(root / "prepared" / "s" / "tiny")
    everything = prepared.stimuli
    cache = root / "cache" / "s" / target.name
    if not cache.exists():
        work = open_folder(cache, stage="embed", config={}, inputs={})
        write_array(work.work / "embeddings.npy", target.embed(everything, range(len(everything))).astype("float32"))
        write_table(work.work / "stimuli.parquet", everything.table[["stimulus_id"]])
        write_json(work.work / "spec.json", target.spec(everything).to_json())
        work.finish()
    run = open_folder(root / "train" / label / "fold-0_seed-0", stage="train", config={},
                      inputs={"prepared": prepared_id or prepared.manifest["id"]})
    run.finish(label=label, name=label, subjects=list(SUBJECTS), seed=0, n_fold_runs=1, fold=0, split_seed=0,
               study={}, study_name="made", later={"study_label": None},
               paths={"prepared": "prepared/s/tiny", "caches": {target.name: f"cache/s/{target.name}"}})
    rows = pd.DataFrame([{"subject": s, "stimulus_id": f"test-{i:02d}", "run": 0, "draw": 0, "n_averaged": 3,
                          "trial_ids": [i]} for s in SUBJECTS for i in range(N_TEST)])
    true = np.tile(target.embed(everything, range(N_TEST)), (2, 1, 1, 1)).astype("float32")
    noisy = np.concatenate([images[:N_TEST]] * 2) + noise * rng.standard_normal((len(rows), 8, 8, 3))
    blind = rng.integers(0, 255, noisy.shape)
    order = np.concatenate([o * N_TEST + np.roll(np.arange(N_TEST), 1) for o in range(2)])
    mean = np.broadcast_to(images.mean(axis=0), noisy.shape)
    seen = np.concatenate([images[:N_TEST]] * 2)
    for condition, pictures in zip(CONDITIONS, (noisy, blind, noisy[order], mean, seen), strict=True):
        work = open_folder(root / "predictions" / label / condition, stage="predict", config={}, inputs={})
        embedded = true + rng.normal(0, noise / 255, true.shape) if condition in ("decoded", "shuffled") else true
        write_array(work.work / f"{target.name}.npy", embedded.astype("float32"))
        Predictions.write(work.work, rows=rows, specs={target.name: target.spec(everything)})
        work.finish()
        made = rows[rows["stimulus_id"] < f"test-{N_RENDERED:02d}"]
        for key in ("painter", "blur"):
            work = open_folder(root / "reconstructions" / label / key / condition, stage="reconstruct",
                               config={"key": key, "label": label}, inputs={})
            files = []
            for i in made.index:
                picture = pictures[i].clip(0, 255).astype(np.uint8)
                picture = picture if key == "painter" else np.broadcast_to(picture.mean(axis=(0, 1)), picture.shape)
                files.append(f"{i}.png")
                Image.fromarray(picture.astype(np.uint8)).save(work.work / files[-1])
            # shuffled pictures are those of other rows, the true ones those of any subject
            made_of = {"shuffled": order, "true": np.arange(len(rows)) % N_TEST, "mean": np.zeros(len(rows), int)}
            origin = made_of.get(condition, np.arange(len(rows)))[made.index]
            word = "decoded" if condition == "shuffled" else condition
            write_table(work.work / "index.parquet", made[["subject", "stimulus_id", "run", "draw"]].assign(
                row=made.index, file=files, picture=[f"{word}-{o}" for o in origin]))
            work.finish()
        if said:
            work = open_folder(root / "captions" / label / "speaker" / condition, stage="caption", config={}, inputs={})
            words = [colours[i % N_TEST] for i in made.index]
            words = words if condition in ("decoded", "true") else ["red"] * len(made)
            Captions.write(work.work, rows=made, captions=[f"a {w} plain" for w in words])
            work.finish()
    return OmegaConf.create({
        "name": label, "seed": 0, "overwrite": False, "batch_size": 8, "paths": {"outputs": str(root)},
        "baseline": "ridge", "run": None, "members": None,
        "study": {"_target_": "brain2img.studies.scenes.Scenes", "modality": "fmri", "snr": 1.0},
        "metric_space": {}, "metric": {}, "reconstructor": {"painter": {}, "blur": {}}, "captioner": {"speaker": {}},
        "headline": {"space": target.name, "metric": "top1", "direction": "image_from_brain"}})


def judged(cfg: DictConfig, **spaces: dict) -> DictConfig:
    """Return the configuration with metrics, and metric spaces by name."""
    metric = "brain2img.metrics"
    return OmegaConf.merge(cfg, {"metric_space": spaces, "metric": {
        "retrieval": {"_target_": f"{metric}.retrieval.Retrieval", "ks": [1]},
        "pixcorr": {"_target_": f"{metric}.pixcorr.PixCorr"},
        "seen": {"_target_": f"{metric}.identification.Identification", "ways": [2], "of": "images"},
        "colour": {"_target_": f"{metric}.attribute_accuracy.AttributeAccuracy", "of": "images", "space": "reader"},
        "said": {"_target_": f"{metric}.caption_attributes.CaptionAttributes", "attributes": ["colour"],
                 "together": ["colour"]}}})


TARGET = Pixels(size=2, name="pixels")
JUDGE = {"_target_": "brain2img.spaces.pixels.Pixels", "size": 4, "name": "judge"}
READER = {"_target_": "made_outputs.ColourReader"}
SAME = {"_target_": "brain2img.spaces.pixels.Pixels", "size": 2, "name": "same"}
